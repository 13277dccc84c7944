// Denied connections by source and reason, each with the way to admit it.

import { contains, networkAround, parseNetwork, sizeOf, sortKey } from './address.js';
import { get, poll } from './api.js';
import { add, button, h, markReady, replace } from './dom.js';
import { matcher, searchField } from './filter.js';
import { number, reasonText, SECOND } from './format.js';
import { listenerFilter } from './listener-picker.js';
import { link, remember } from './router.js';
import { allowDialog } from './source-changes.js';
import { can } from './state.js';
import { counter, dataTable } from './table.js';
import { query as asQuery } from './url.js';
import { emptyState, errorNotice, field, notice, pageHead, select, time, untrusted } from './widgets.js';

/** When the rows were last denied before their source was allowed. A later denial makes the row a new question. */
const allowed = new Map();

const keyOf = (row) => `${row.listener} ${row.network} ${row.reason}`;

function markAllowed(listener, values, rows) {
  const networks = values.map(parseNetwork).filter(Boolean);
  for (const row of rows) {
    const address = row.listener === listener && row.rule ? parseNetwork(row.rule.value) : null;
    if (address && networks.some((network) => contains(network, address))) allowed.set(keyOf(row), row.last);
  }
}

/** The address of the last denial, as the API explains it. */
export const addressOf = (row) => row.last_address ?? (row.network === 'unix' ? 'unix' : row.network.split('/')[0]);

export function denialsView(page, { parameters }) {
  let rows = null;
  let replaced = 0;
  let query = parameters.get('q') ?? '';
  let listener = parameters.get('listener') ?? '';
  let since = parameters.get('since') ?? '';
  const found = counter();
  const message = h('div', { 'aria-live': 'polite' });
  const mayChange = can('operator');
  const table = dataTable({
    id: 'denials-table',
    label: 'Denied sources',
    rowKey: keyOf,
    sort: { key: 'last', dir: 'desc' },
    columns: [
      { key: 'source', label: 'Source', className: 'c-main', cell: sourceCell, sort: (row) => sortKey(row.network) },
      {
        key: 'listener',
        label: 'Listener',
        className: 'c-listener',
        cell: (row) => untrusted(row.listener, { label: 'name' }),
        sort: (row) => row.listener,
      },
      {
        key: 'reason',
        label: 'Reason',
        className: 'c-reason c-detail',
        cell: reasonCell,
        sort: (row) => row.reason,
      },
      { key: 'count', label: 'Count', className: 'c-num', cell: (row) => number(row.count), sort: (row) => row.count },
      { key: 'first', label: 'First', className: 'c-time', cell: (row) => time(row.first), sort: (row) => row.first },
      { key: 'last', label: 'Last', className: 'c-time', cell: (row) => time(row.last), sort: (row) => row.last },
      {
        key: 'actions',
        label: 'Actions',
        hiddenLabel: true,
        className: 'c-actions two',
        cell: (row) => [
          row.isAllowed ? h('span', { class: 'allowed muted small' }, 'allowed now') : null,
          row.rule && mayChange && !row.isAllowed
            ? button('Allow this source', () => allow(row), {
                kind: 'small',
                'data-action': 'allow',
                'aria-label': `Allow this source: ${row.last_address ?? row.network} at ${row.listener}`,
              })
            : null,
          h(
            'a',
            {
              class: 'button small',
              href: link('explain', '', {
                listener: row.listener,
                source: addressOf(row),
                ...(row.reason === 'untrusted_source' ? {} : { reason: row.reason }),
              }),
              'data-action': 'explain',
              'aria-label': `Explain ${row.last_address ?? row.network} at ${row.listener}`,
            },
            'Explain',
          ),
        ],
      },
    ],
    empty: () =>
      rows?.length > 0
        ? emptyState('No denial matches', 'Change the filter to see the others.')
        : emptyState(
            'Nobody was denied',
            'A client that is not admitted appears here within seconds, with the reason and the way to admit it.',
            h('a', { class: 'button', href: link('explain') }, 'Explain an address'),
          ),
  });

  const period = select(
    [
      ['', 'Last 24 hours'],
      ['1h', 'Last hour'],
      ['10m', 'Last 10 minutes'],
    ],
    since,
    {
      id: 'since',
      name: 'since',
      on: {
        change: () => {
          since = period.value;
          remember({ since });
          denialsPoll.now({ background: false });
        },
      },
    },
  );
  const search = searchField({
    id: 'search-denials',
    label: 'Search source or reason',
    value: query,
    onInput: (text) => {
      query = text;
      remember({ q: text });
      filter();
    },
  });
  add(page, [
    pageHead(
      'Denials',
      'Denied connections, grouped by source and reason. The program keeps them in memory for a day.',
    ),
    h(
      'div',
      { class: 'toolbar' },
      listenerFilter(listener, (value) => {
        listener = value;
        remember({ listener });
        denialsPoll.now({ background: false });
      }),
      field('Period', period),
      search.element,
    ),
    message,
    h('div', { class: 'bar' }, found.element),
    table.element,
  ]);

  function filter() {
    if (!rows) return;
    const isMatch = matcher(query);
    const shown = rows.filter((row) => isMatch(haystack(row)));
    table.update(shown.map((row) => ({ ...row, isAllowed: allowed.get(keyOf(row)) === row.last })));
    found.show(shown.length, rows.length, 'entry', 'entries');
    replace(
      message,
      replaced > 0
        ? notice(
            'info',
            h('p', {}, `${number(replaced)} groups made room for newer ones since the start. The audit is complete.`),
          )
        : null,
    );
  }

  function allow(row) {
    allowDialog({
      listener: row.listener,
      choices: choicesFor(row),
      intro: h(
        'p',
        {},
        `Denied ${number(row.count)} ${row.count === 1 ? 'time' : 'times'}, last `,
        time(row.last),
        ': ',
        reasonText(row.reason),
        '.',
      ),
      onAllowed: (values) => {
        markAllowed(row.listener, values, rows ?? []);
        filter();
      },
    });
  }

  const denialsPoll = poll((options) => get(`/v1/denials${asQuery({ listener, since })}`, options), 10 * SECOND, {
    onData: (data) => {
      rows = data.denials;
      replaced = data.replaced ?? 0;
      filter();
      markReady(page);
    },
    onError: (error, { isFirst }) => {
      if (isFirst && error.status !== 401) replace(message, errorNotice(error));
    },
  });
  return {
    destroy() {
      denialsPoll.stop();
      search.destroy();
      table.destroy();
    },
  };
}

function haystack(row) {
  const parts = [row.network, row.last_address, row.listener, reasonText(row.reason), row.reason, row.detail];
  return parts.join(' ').toLowerCase();
}

function reasonCell(row) {
  const reason = h('span', { class: 'untrusted', title: reasonText(row.reason) }, reasonText(row.reason));
  if (!row.detail) return reason;
  return [reason, h('span', { class: 'detail muted small' }, untrusted(row.detail, { label: 'detail' }))];
}

function sourceCell(row) {
  const isNetwork = row.last_address && row.network !== row.last_address;
  return [
    h('span', { class: 'mono untrusted', title: row.last_address ?? row.network }, row.last_address ?? row.network),
    isNetwork ? h('span', { class: 'muted small untrusted' }, ` in ${row.network}`) : null,
  ];
}

/** The single address comes first; its usual network is a choice. */
function choicesFor({ rule }) {
  const address = parseNetwork(rule.value);
  const choices = [{ value: rule.value, label: 'only this address' }];
  if (address && rule.type === 'ip_addr') {
    for (const prefix of address.bits === 32 ? [24] : [64, 48]) {
      const network = networkAround(rule.value.split('/')[0], prefix);
      if (network) choices.push({ value: network, label: `its network, ${sizeOf(network)} addresses` });
    }
  }
  return choices;
}
