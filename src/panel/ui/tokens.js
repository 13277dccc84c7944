// Tokens of the admin API, for owners.

import { get, notifyChanged, poll } from './api.js';
import { changeDialog, confirmDialog } from './changes.js';
import { toast } from './dialogs.js';
import { add, button, h, markReady, replace } from './dom.js';
import { expiryField, FieldError } from './expiry.js';
import { SECOND, shellJoin, ttlUntil } from './format.js';
import { holdSecret } from './secrets.js';
import { state } from './state.js';
import { counter, dataTable } from './table.js';
import {
  commandBox,
  emptyState,
  errorNotice,
  field,
  notice,
  pageHead,
  pill,
  select,
  time,
  untrusted,
} from './widgets.js';

const ROLES = [
  ['viewer', 'viewer: reads everything except tokens'],
  ['operator', 'operator: also changes sources, client certificates and passwords, closes sessions, reloads'],
  ['owner', 'owner: also manages tokens'],
];

export function tokensView(page) {
  const message = h('div', { 'aria-live': 'polite' });
  const found = counter();
  const table = dataTable({
    id: 'tokens-table',
    label: 'Tokens',
    rowKey: (token) => token.name,
    rowClass: (token) => (token.state === 'expired' ? 'faded' : ''),
    sort: { key: 'name', dir: 'asc' },
    columns: [
      {
        key: 'name',
        label: 'Name',
        className: 'c-main',
        cell: (token) => [
          untrusted(token.name, { label: 'name' }),
          token.name === state.session?.name ? h('span', { class: 'muted small' }, ' (this session)') : null,
        ],
        sort: (token) => token.name,
      },
      { key: 'role', label: 'Role', className: 'c-state', cell: (token) => token.role, sort: (token) => token.role },
      {
        key: 'origin',
        label: 'Origin',
        className: 'c-origin',
        cell: (token) => token.origin,
        sort: (token) => token.origin,
      },
      {
        key: 'expires',
        label: 'Expires',
        className: 'c-time',
        cell: (token) => (token.state === 'expired' ? pill('bad', 'expired') : time(token.expires_at)),
        sort: (token) => token.expires_at,
      },
      {
        key: 'used',
        label: 'Last use',
        className: 'c-time',
        cell: (token) => time(token.last_used_at, { empty: 'not yet' }),
        sort: (token) => token.last_used_at,
      },
      {
        key: 'from',
        label: 'From',
        cell: (token) => h('span', { class: 'mono untrusted' }, untrusted(token.last_used_from, { label: 'address' })),
        sort: (token) => token.last_used_from,
      },
      {
        key: 'sources',
        label: 'May be used from',
        className: 'c-wide',
        cell: (token) =>
          h(
            'span',
            { class: 'mono untrusted' },
            token.sources.length === 0 ? 'everywhere' : untrusted(token.sources.join(', '), { label: 'list' }),
          ),
        sort: (token) => token.sources.join(),
      },
      {
        key: 'actions',
        label: 'Actions',
        hiddenLabel: true,
        className: 'c-actions',
        cell: (token) =>
          token.origin === 'file'
            ? button('Revoke', () => revoke(token), {
                kind: 'small',
                'data-action': 'revoke',
                'aria-label': `Revoke ${token.name}`,
              })
            : h(
                'span',
                { class: 'muted small', title: 'Remove it from the configuration, then reload.' },
                'in the configuration',
              ),
      },
    ],
    empty: () =>
      emptyState(
        'No token',
        'Create one for each person and each program, so that each can be revoked alone.',
        button('Create a token', create, { kind: 'primary' }),
      ),
  });
  add(page, [
    pageHead(
      'Tokens',
      'Tokens sign in to this panel and to the API. The last use is known since the start of the program.',
      h('div', { class: 'actions' }, button('Create a token', create, { kind: 'primary', id: 'create-token' })),
    ),
    message,
    h('div', { class: 'bar' }, found.element),
    table.element,
  ]);

  function create() {
    const name = h('input', {
      type: 'text',
      id: 'token-name',
      name: 'token-name',
      maxlength: '64',
      autocomplete: 'off',
      spellcheck: 'false',
      placeholder: 'ci',
    });
    const role = select(ROLES, 'viewer', { id: 'token-role', name: 'token-role' });
    const sources = h('input', {
      type: 'text',
      id: 'token-sources',
      name: 'token-sources',
      autocomplete: 'off',
      spellcheck: 'false',
      placeholder: '10.0.0.0/8 192.0.2.7',
      class: 'mono',
    });
    const expiry = expiryField({ initial: '30d', name: 'token-expiry' });
    let release = null;
    changeDialog({
      onClose: () => release?.(),
      id: 'create-token-dialog',
      title: 'Create a token',
      form: {
        element: h(
          'div',
          { class: 'stack' },
          field('Name', name, { help: 'Shown in the audit for everything that the token does.' }),
          field('Role', role),
          expiry.element,
          field('May be used from (optional)', sources, {
            help: 'Addresses and networks, separated by spaces. Empty: everywhere.',
          }),
        ),
        read: () => {
          if (name.value.trim() === '') throw new FieldError('Enter a name.', name);
          const end = expiry.read();
          const networks = sources.value.split(/[\s,]+/).filter(Boolean);
          return {
            name: name.value.trim(),
            role: role.value,
            ...(end.ttl ? { ttl: end.ttl } : end.expires_at ? { ttl: ttlUntil(end.expires_at) } : {}),
            ...(networks.length > 0 ? { sources: networks } : {}),
          };
        },
        reviewLabel: 'Review',
      },
      build: (context, input) => ({
        request: { method: 'POST', path: '/v1/tokens', body: input },
        cli: [
          shellJoin([
            'portcullis',
            'token',
            'new',
            '--name',
            input.name,
            '--role',
            input.role,
            ...(input.ttl ? ['--ttl', input.ttl] : []),
            ...(input.sources ?? []).flatMap((network) => ['--source', network]),
          ]),
        ],
      }),
      plan: async () => null,
      show: ({ input }) => {
        const places = input.sources?.join(', ') ?? 'everywhere';
        const end = input.ttl ? `expires in ${input.ttl}` : 'does not expire';
        return {
          confirm: 'Create the token',
          nodes: [
            h(
              'p',
              {},
              'Creates the token ',
              h('strong', {}, untrusted(input.name)),
              ` with the role ${input.role}. It ${end}, and can be used from ${places}.`,
            ),
            input.role === 'owner' && !input.sources
              ? notice(
                  'warn',
                  h('p', {}, 'An owner may change everything. Limit the token to the networks that need it.'),
                )
              : null,
          ],
        };
      },
      done: ({ result }) => {
        notifyChanged();
        const { name: created } = result.data;
        let { token: secret } = result.data;
        result.data.token = null;
        const box = h('div', { class: 'secret' });
        const wipe = () => {
          secret = '';
          const text = 'The session ended, so the token was removed from the page. Revoke it if you did not copy it.';
          replace(box, notice('info', h('p', {}, text)));
        };
        replace(box, commandBox(`Token ${created}`, () => secret, { shown: secret }));
        release = holdSecret(wipe);
        return h(
          'div',
          { class: 'stack' },
          notice(
            'warn',
            h(
              'p',
              {},
              h('strong', {}, 'Copy the token now.'),
              ' It is not shown again. The program keeps only its SHA-256.',
            ),
          ),
          box,
        );
      },
    });
  }

  function revoke(token) {
    const isOwn = token.name === state.session?.name;
    confirmDialog({
      id: 'revoke-token',
      title: 'Revoke a token',
      confirm: 'Revoke the token',
      nodes: [
        h(
          'p',
          {},
          'Revokes ',
          h('strong', {}, untrusted(token.name, { label: 'name' })),
          ` (${token.role}). Its next request is refused, and its panel sessions and event streams end.`,
        ),
        h(
          'p',
          { class: 'muted' },
          'Last use: ',
          time(token.last_used_at, { empty: 'not since the start of the program' }),
          token.last_used_from ? ` from ${token.last_used_from}` : '',
          '.',
        ),
        isOwn ? notice('bad', h('p', {}, 'You are signed in with this token. Your session ends.')) : null,
      ],
      change: {
        request: { method: 'DELETE', path: `/v1/tokens/${encodeURIComponent(token.name)}` },
        cli: [shellJoin(['portcullis', 'token', 'revoke', token.name])],
      },
      done: () => {
        toast('good', `${token.name} is revoked.`);
        notifyChanged();
      },
    });
  }

  const tokensPoll = poll((options) => get('/v1/tokens', options), 30 * SECOND, {
    onData: ({ tokens }) => {
      replace(message);
      table.update(tokens);
      found.show(tokens.length, tokens.length, 'token');
      markReady(page);
    },
    onError: (error, { isFirst }) => {
      if (isFirst && error.status !== 401) replace(message, errorNotice(error));
    },
  });
  return {
    destroy() {
      tokensPoll.stop();
      table.destroy();
    },
  };
}
