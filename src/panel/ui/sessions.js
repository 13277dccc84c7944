// Open sessions, page by page.

import { get, notifyChanged, poll } from './api.js';
import { confirmDialog } from './changes.js';
import { toast } from './dialogs.js';
import { add, button, h, markReady, replace } from './dom.js';
import { debounced } from './filter.js';
import { count, lookup, number, SECOND, shellJoin } from './format.js';
import { listenerFilter } from './listener-picker.js';
import { clientOf } from './plan-parts.js';
import { link, remember } from './router.js';
import { authenticates, can } from './state.js';
import { dataTable, pager } from './table.js';
import { query as asQuery } from './url.js';
import { emptyState, errorNotice, facts, field, notice, pageHead, pill, time, untrusted } from './widgets.js';

const PAGE = 100;
const STATES = { open: ['good', 'open'], half_closed: ['warn', 'half closed'], closing: ['idle', 'closing'] };

export function sessionsView(page, { parameters }) {
  const filter = {
    listener: parameters.get('listener') ?? '',
    source: parameters.get('source') ?? '',
    client: parameters.get('client') ?? '',
  };
  let current = Math.max(0, Number(parameters.get('page') ?? 1) - 1) || 0;
  const mayChange = can('operator');
  const message = h('div', { 'aria-live': 'polite' });
  const found = h('p', { class: 'counter', role: 'status' });
  const isFiltered = () => filter.listener !== '' || filter.source !== '' || filter.client !== '';
  const pages = pager({
    onPage: (next) => {
      current = next;
      remember({ page: next === 0 ? '' : next + 1 });
      sessionsPoll.now({ background: false });
      window.scrollTo(0, 0);
    },
  });
  const table = dataTable({
    id: 'sessions-table',
    label: 'Sessions',
    rowKey: (row) => String(row.session),
    rowClass: (row) => (row.state === 'closing' ? 'faded' : ''),
    columns: [
      {
        key: 'session',
        label: 'Session',
        className: 'c-id',
        cell: (row) => h('span', { class: 'num' }, String(row.session)),
      },
      {
        key: 'listener',
        label: 'Listener',
        className: 'c-listener',
        cell: (row) => untrusted(row.listener, { label: 'name' }),
      },
      {
        key: 'client',
        label: 'Client',
        className: 'c-address c-main',
        cell: (row) =>
          h(
            'span',
            { class: 'untrusted', title: row.balancer ? `announced by the proxy ${row.balancer}` : null },
            clientOf(row),
          ),
      },
      authenticates()
        ? {
            key: 'user',
            label: 'User',
            className: 'c-state',
            cell: (row) =>
              row.unauthenticated
                ? h('span', { title: 'older than the credentials of the listener' }, pill('warn', 'unauthenticated'))
                : untrusted(row.user, { label: 'name' }),
          }
        : null,
      {
        key: 'subject',
        label: 'Certificate',
        className: 'c-wide',
        cell: (row) => untrusted(row.client_subject, { label: 'subject' }),
      },
      {
        key: 'rule',
        label: 'Admitted by',
        className: 'c-wide c-rule',
        cell: (row) => h('span', { class: 'mono untrusted' }, untrusted(row.rule, { label: 'rule' })),
      },
      { key: 'opened', label: 'Opened', className: 'c-time', cell: (row) => time(row.opened_at) },
      {
        key: 'state',
        label: 'State',
        className: 'c-state',
        cell: (row) =>
          h(
            'span',
            { title: row.half_closed_by ? `ended by the ${row.half_closed_by}` : null },
            pill(...(lookup(STATES, row.state) ?? ['idle', row.state])),
          ),
      },
      mayChange
        ? {
            key: 'actions',
            label: 'Actions',
            hiddenLabel: true,
            className: 'c-actions one',
            cell: (row) =>
              row.state === 'closing'
                ? null
                : button('Close', () => closeSession(row), {
                    kind: 'small',
                    'data-action': 'close-session',
                    'aria-label': `Close session ${row.session}`,
                  }),
          }
        : null,
    ].filter(Boolean),
    empty: () =>
      isFiltered()
        ? emptyState('No session matches', 'Change the filter to see the others.', button('Clear the filter', clear))
        : emptyState(
            'No open session',
            'A client that is admitted appears here once its upstream is reached.',
            h('a', { class: 'button', href: link('denials') }, 'Show denials'),
          ),
  });

  const search = debounced(() => {
    for (const key of ['source', 'client']) filter[key] = inputs[key].value.trim();
    changed();
  }, 250);
  const input = (key, placeholder) =>
    h('input', {
      type: 'search',
      id: `filter-${key}`,
      name: key,
      value: filter[key],
      placeholder,
      autocomplete: 'off',
      spellcheck: 'false',
      'data-search': key === 'source' ? '' : null,
      on: { input: search },
    });
  const inputs = {
    source: input('source', 'Address or network, such as 10.0.0.0/8'),
    client: input('client', 'Text in the subject of the certificate'),
  };
  const listenerField = listenerFilter(filter.listener, (value) => {
    filter.listener = value;
    changed();
  });
  add(page, [
    pageHead(
      'Sessions',
      'Connections to the upstream, oldest first. To keep a client out, remove its source or its certificate.',
    ),
    h(
      'div',
      { class: 'toolbar' },
      listenerField,
      field('Source', inputs.source, { className: 'grow' }),
      field('Subject', inputs.client, { className: 'grow' }),
    ),
    message,
    h('div', { class: 'bar' }, found),
    table.element,
    pages.element,
  ]);

  function changed() {
    current = 0;
    remember({ ...filter, page: '' });
    sessionsPoll.now({ background: false });
  }

  function clear() {
    search.cancel();
    Object.assign(filter, { listener: '', source: '', client: '' });
    for (const each of page.querySelectorAll('.toolbar input, .toolbar select')) each.value = '';
    changed();
  }

  function closeSession(row) {
    confirmDialog({
      id: 'close-session',
      title: `Close session ${row.session}`,
      confirm: 'Close the session',
      nodes: [
        facts([
          ['Listener', untrusted(row.listener)],
          ['Client', clientOf(row)],
          row.user ? ['User', untrusted(row.user, { label: 'name' })] : null,
          ['Certificate', untrusted(row.client_subject, { label: 'subject' })],
          ['Admitted by', h('code', {}, untrusted(row.rule, { label: 'rule' }))],
          ['Opened', time(row.opened_at)],
        ]),
        notice(
          'info',
          h(
            'p',
            {},
            'The client can connect again. To keep it out, ',
            h('a', { href: link('sources', row.listener, { q: row.source }) }, 'remove its source'),
            '.',
          ),
        ),
      ],
      change: {
        request: { method: 'DELETE', path: `/v1/sessions/${row.session}` },
        cli: [shellJoin(['portcullis', 'sessions', 'close', String(row.session)])],
      },
      done: () => {
        toast('good', `Session ${row.session} ends.`);
        notifyChanged();
      },
    });
  }

  const sessionsPoll = poll(
    (options) => get(`/v1/sessions${asQuery({ ...filter, limit: PAGE, offset: current * PAGE || null })}`, options),
    5 * SECOND,
    {
      onData: ({ sessions, total }) => {
        // The last sessions of the page may have ended.
        if (sessions.length === 0 && total > 0 && current > 0) {
          current = Math.ceil(total / PAGE) - 1;
          sessionsPoll.now();
          return;
        }
        replace(message);
        table.update(sessions);
        pages.show(current, PAGE, total);
        const text = isFiltered()
          ? `${count(total, 'session')} selected`
          : `${number(total)} ${total === 1 ? 'session' : 'sessions'}`;
        if (found.textContent !== text) found.textContent = text;
        markReady(page);
      },
      onError: (error) => {
        // A network that is being typed is invalid for a moment.
        if (error.status !== 422 && error.status !== 0 && error.status < 500) return;
        replace(message, errorNotice(error));
        pages.hide();
      },
    },
  );
  return {
    destroy() {
      search.cancel();
      sessionsPoll.stop();
      table.destroy();
    },
  };
}
