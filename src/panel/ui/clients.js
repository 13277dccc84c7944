// Clients that a listener authenticates: their passwords, who still uses which one, and changes of them.

import { notifyChanged, poll, send } from './api.js';
import { changeDialog } from './changes.js';
import { toast } from './dialogs.js';
import { add, button, h, markReady, replace } from './dom.js';
import { expiryField, FieldError } from './expiry.js';
import { matcher, searchField } from './filter.js';
import { count, lookup, SECOND, shellJoin, ttlUntil } from './format.js';
import { chosenListener, listenerPicker } from './listener-picker.js';
import { planSummary, sessionsEnded, sharedWith } from './plan-parts.js';
import { remember } from './router.js';
import { holdSecret } from './secrets.js';
import { can } from './state.js';
import { counter, dataTable } from './table.js';
import { path } from './url.js';
import { usersText, verdictOf } from './verdict.js';
import {
  commandBox,
  emptyState,
  errorNotice,
  facts,
  field,
  notice,
  pageHead,
  pill,
  time,
  untrusted,
} from './widgets.js';

const STATES = { valid: ['good', 'valid'], expired: ['bad', 'expired'], disabled: ['idle', 'disabled'] };

const LEAD = [
  'Clients with passwords of their own. To replace a password, add a new one, give it to the client, and remove the old',
  'one when nobody uses it.',
].join(' ');

const MAX_USER = 255;

export function clientsView(page, { name, parameters }) {
  const listener = chosenListener(page, 'clients', name, (each) => each.credentials);
  if (!listener) return {};
  const mayChange = can('operator');
  const target = path`/v1/listeners/${listener}/clients`;
  let query = parameters.get('q') ?? '';
  let seen = null;
  const message = h('div', { 'aria-live': 'polite' });
  const actions = h('div', { class: 'actions push' });
  const where = h('p', { class: 'small muted' });
  const found = counter();
  const table = dataTable({
    id: 'clients-table',
    label: 'Clients and their passwords',
    rowKey: ({ user, password }) => JSON.stringify([user, password?.id ?? null]),
    rowClass: ({ password }) => (password?.state === 'valid' ? '' : 'faded'),
    columns: columns(),
    empty: () =>
      query
        ? emptyState('No client matches', 'Change the search to see the others.')
        : emptyState('No client', 'Without a client, nobody can authenticate at this listener.'),
  });
  const search = searchField({
    id: 'search-clients',
    label: 'Search clients',
    value: query,
    onInput: (text) => {
      query = text;
      remember({ q: text });
      drawTable();
    },
  });
  add(page, [
    pageHead('Clients', LEAD),
    h('div', { class: 'toolbar' }, listenerPicker('clients', listener), search.element, actions),
    message,
    h('div', { class: 'bar' }, found.element),
    table.element,
    where,
  ]);

  function columns() {
    return [
      {
        key: 'user',
        label: 'User',
        className: 'c-main',
        cell: ({ user }) => untrusted(user, { label: 'name' }),
        sort: ({ user }) => user,
      },
      {
        key: 'password',
        label: 'Password',
        className: 'c-state',
        cell: ({ password }) => untrusted(password?.id, { label: 'ID', empty: 'none' }),
        sort: ({ password }) => password?.id,
      },
      {
        key: 'state',
        label: 'State',
        className: 'c-state',
        cell: ({ disabled, password }) => stateOf(disabled ? 'disabled' : password?.state),
        sort: ({ disabled, password }) => (disabled ? 'disabled' : password?.state),
      },
      {
        key: 'expires',
        label: 'Expires',
        className: 'c-time',
        cell: ({ password }) => (password ? time(password.expires_at) : null),
        sort: ({ password }) => password?.expires_at,
      },
      {
        key: 'sessions',
        label: 'Sessions',
        className: 'c-num',
        cell: ({ password }) => (password ? String(password.sessions) : null),
        sort: ({ password }) => password?.sessions,
      },
      {
        key: 'used',
        label: 'Last use',
        className: 'c-time',
        cell: ({ password }) => (password ? time(password.last_used, { empty: 'not yet' }) : null),
        sort: ({ password }) => password?.last_used,
      },
      {
        key: 'users',
        label: 'Used by',
        className: 'c-wide',
        cell: ({ password }) =>
          password ? untrusted(usersText(password), { label: 'list of users', empty: 'nobody' }) : null,
        sort: ({ password }) => usersText(password ?? {}),
      },
      {
        key: 'certificates',
        label: 'Certificates',
        className: 'c-wide',
        cell: ({ certificates }) => untrusted(certificates.join(', '), { label: 'list', empty: 'none' }),
        sort: ({ certificates }) => certificates.join(),
      },
      mayChange
        ? {
            key: 'actions',
            label: 'Actions',
            hiddenLabel: true,
            className: 'c-actions one',
            cell: (row) =>
              row.password && seen?.list.writable
                ? button('Remove', () => removePassword(row), {
                    kind: 'small',
                    'data-action': 'remove-password',
                    'aria-label': `Remove the password ${row.password.id} of ${row.user}`,
                  })
                : null,
          }
        : null,
    ].filter(Boolean);
  }

  // A client without a password has a row, too.
  const rows = () =>
    seen.list.clients.flatMap((client) =>
      (client.passwords.length > 0 ? client.passwords : [null]).map((password) => ({
        ...client,
        password,
        writable: seen.list.writable,
      })),
    );

  function draw() {
    const { clients_file: file, writable, reason } = seen.list;
    replace(message, reason ? notice('info', h('p', {}, untrusted(reason, { wrap: true }))) : null);
    replace(
      actions,
      mayChange && writable ? button('Add a password', addPassword, { kind: 'primary', id: 'add-password' }) : null,
    );
    replace(where, file ? ['File: ', h('code', { class: 'break' }, untrusted(file, { label: 'path' }))] : null);
    drawTable();
  }

  function drawTable() {
    if (!seen) return;
    const isMatch = matcher(query);
    const all = rows();
    const shown = all.filter((row) => isMatch(haystack(row)));
    table.update(shown);
    found.show(shown.length, all.length, 'row');
  }

  async function load(options) {
    const answer = await send('GET', target, options);
    return { list: answer.data, etag: answer.etag };
  }

  const clientsPoll = poll(load, 10 * SECOND, {
    onData: (data) => {
      seen = data;
      draw();
      markReady(page);
    },
    onError: (error, { isFirst }) => {
      if (isFirst && error.status !== 401) replace(message, errorNotice(error));
    },
  });

  // Changes -----------------------------------------------------------------------------------------------------------

  const context = () => (seen ? { etag: seen.etag } : null);
  const reload = async () => ({ etag: (await load({})).etag });

  function addPassword() {
    const known = h(
      'datalist',
      { id: 'known-users' },
      seen.list.clients.slice(0, 1000).map(({ user }) => h('option', { value: user })),
    );
    const user = h('input', {
      type: 'text',
      id: 'password-user',
      name: 'password-user',
      list: 'known-users',
      maxlength: String(MAX_USER),
      autocomplete: 'off',
      autocapitalize: 'off',
      spellcheck: 'false',
    });
    const expiry = expiryField({ name: 'password-expiry' });
    const file = seen.list.clients_file;
    let release = null;
    changeDialog({
      onClose: () => release?.(),
      id: 'add-password-dialog',
      title: `Add a password at ${listener}`,
      context: context(),
      load: reload,
      form: {
        element: h(
          'div',
          { class: 'stack' },
          field('User', user, { help: 'A client of the list, or a new one. The password is generated.' }),
          known,
          expiry.element,
        ),
        read: () => {
          if (user.value === '') throw new FieldError('Enter the name of a user.', user);
          const { ttl, expires_at: end } = expiry.read();
          return { user: user.value, body: ttl ? { ttl } : end ? { expires_at: end } : {} };
        },
      },
      build: ({ etag }, { user: of, body }) => {
        const length = body.ttl ?? (body.expires_at ? ttlUntil(body.expires_at) : null);
        return {
          request: { method: 'POST', path: `${target}/${encodeURIComponent(of)}/passwords`, body, etag },
          cli: [
            shellJoin([
              'portcullis',
              'password',
              'add',
              of,
              '-f',
              file,
              '--generate',
              ...(length ? ['--expires', length] : []),
            ]),
          ],
          isLocal: true,
        };
      },
      show: ({ plan }) => ({
        nodes: [
          plan.is_new_client
            ? notice('info', h('p', {}, 'The list has no client of this name. The change adds it.'))
            : null,
          planNodes(plan, listener),
          facts([
            ['User', untrusted(plan.user, { label: 'name' })],
            ['Password', untrusted(plan.password?.id, { label: 'ID' })],
            ['Expires', time(plan.password?.expires_at, { mode: 'full' })],
          ]),
        ],
        confirm: 'Generate and add the password',
        danger: (plan.sessions_ended_count ?? 0) > 0,
      }),
      done: ({ result }) => {
        notifyChanged();
        const { user: of, id } = result.data;
        let { password: secret } = result.data;
        result.data.password = null;
        const box = h('div', { class: 'secret' });
        replace(box, commandBox(`Password ${id} of ${of}`, () => secret, { shown: secret }));
        release = holdSecret(() => {
          secret = '';
          const text = 'The password is no longer in the page. Remove it and add another one if you did not copy it.';
          replace(box, notice('info', h('p', {}, text)));
        });
        return h(
          'div',
          { class: 'stack' },
          notice(
            'warn',
            h(
              'p',
              {},
              h('strong', {}, 'Copy the password now.'),
              ' It is not shown again. The program keeps only what verifies it.',
            ),
          ),
          box,
          h('p', { class: 'muted small' }, 'The other passwords of the client stay valid until you remove them.'),
        );
      },
    });
  }

  function removePassword({ user, password, passwords }) {
    const hasSuccessor = passwords.some((other) => other.id !== password.id && other.state === 'valid');
    changeDialog({
      id: 'remove-password-dialog',
      title: 'Remove a password',
      context: context(),
      load: reload,
      build: ({ etag }) => ({
        request: {
          method: 'DELETE',
          path: `${target}/${encodeURIComponent(user)}/passwords/${encodeURIComponent(password.id)}`,
          etag,
        },
        cli: [shellJoin(['portcullis', 'password', 'remove', user, password.id, '-f', seen.list.clients_file])],
        isLocal: true,
      }),
      show: ({ plan }) => {
        const ended = plan.sessions_ended_count ?? 0;
        return {
          nodes: [evidence(plan.password ?? password, { user, hasSuccessor }), planNodes(plan, listener)],
          confirm: ended > 0 ? `Remove, end ${count(ended, 'session')}` : 'Remove the password',
          danger: true,
        };
      },
      done: () => {
        toast('good', `The password ${password.id} of ${user} is removed.`);
        notifyChanged();
      },
    });
  }

  return {
    destroy() {
      clientsPoll.stop();
      search.destroy();
      table.destroy();
    },
  };
}

function haystack({ user, password, certificates, upstream_user: upstream }) {
  return [user, password?.id, upstream, ...certificates, usersText(password ?? {})].join(' ').toLowerCase();
}

function stateOf(state) {
  if (!state) return h('span', { class: 'muted' }, '–');
  return pill(...(lookup(STATES, state) ?? ['idle', state]));
}

/** Who uses a password, and whether it can be removed. */
function evidence(password, { user, hasSuccessor }) {
  const { kind, text, why } = verdictOf(
    { ...password, kind: 'password', not_after: password.expires_at, since: password.created_at },
    { hasSuccessor },
  );
  return [
    facts([
      ['User', untrusted(user, { label: 'name' })],
      ['Password', untrusted(password.id, { label: 'ID' })],
      ['Last use', time(password.last_used, { empty: 'not since the start' })],
      ['Used by', untrusted(usersText(password), { wrap: true, empty: 'nobody' })],
    ]),
    h('p', {}, pill(kind, text), ' ', why),
  ];
}

function planNodes(plan, listener) {
  const ended = plan.sessions_ended_count ?? plan.sessions_ended?.length ?? 0;
  return [
    sharedWith(plan, listener, 'the same file of clients'),
    (plan.warnings ?? []).map((warning) => notice('warn', h('p', {}, untrusted(warning, { wrap: true })))),
    planSummary([ended > 0 ? ['warn', count(ended, 'session ends', 'sessions end')] : ['good', 'no session ends']]),
    ended > 0 ? sessionsEnded(plan.sessions_ended ?? [], ended) : null,
  ];
}
