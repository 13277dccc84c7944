// The evidence of a rotation as a checklist: is the new one there, who still uses the old one, can it be removed.

import { get, poll } from './api.js';
import { add, h, markReady, replace } from './dom.js';
import { groupBy, matcher, searchField } from './filter.js';
import { count, SECOND } from './format.js';
import { certificateState, roleName } from './issues.js';
import { listenerFilter } from './listener-picker.js';
import { link, remember } from './router.js';
import { counter, dataTable } from './table.js';
import { nameOf, usersText, verdictOf } from './verdict.js';
import { emptyState, errorNotice, fingerprint, pageHead, pill, skeleton, time, untrusted } from './widgets.js';

/** When changed files apply. */
const APPLIED = 'Changed files apply by themselves where reload.watch is on (the default), else after a reload.';

const LEAD = [
  'Add the new one next to the old one, wait until nobody uses the old one, then remove it.',
  'Uses are known since the start of the program.',
].join(' ');

export function rotationView(page, { parameters }) {
  let listener = parameters.get('listener') ?? '';
  let query = parameters.get('q') ?? '';
  let items = null;
  const message = h('div', { 'aria-live': 'polite' });
  const groups = h('div', { class: 'cert-list', id: 'rotation-groups' });
  const found = counter();
  const table = dataTable({
    id: 'rotation-sources',
    label: 'Trusted sources and their use',
    rowKey: (item) => `${item.listener} ${item.name}`,
    sort: { key: 'sessions', dir: 'desc' },
    columns: [
      {
        key: 'name',
        label: 'Source',
        className: 'c-main',
        cell: (item) => h('span', { class: 'mono untrusted' }, untrusted(item.name, { label: 'rule' })),
        sort: (item) => item.name,
      },
      {
        key: 'listener',
        label: 'Listener',
        className: 'c-listener',
        cell: (item) => untrusted(item.listener, { label: 'name' }),
        sort: (item) => item.listener,
      },
      {
        key: 'sessions',
        label: 'Sessions',
        className: 'c-num',
        cell: (item) => String(item.sessions),
        sort: (item) => item.sessions,
      },
      {
        key: 'used',
        label: 'Last use',
        className: 'c-time',
        cell: (item) => time(item.last_used, { empty: 'not yet' }),
        sort: (item) => item.last_used,
      },
      {
        key: 'users',
        label: 'Last users',
        className: 'c-wide',
        cell: (item) => untrusted(usersText(item), { label: 'list of users', empty: 'none' }),
        sort: (item) => usersText(item),
      },
      {
        key: 'verdict',
        label: 'Verdict',
        className: 'c-reason',
        cell: (item) => {
          const { kind, text, why } = verdictOf(item, { hasSuccessor: true });
          return h('span', { title: why }, pill(kind, text));
        },
        sort: (item) => verdictOf(item, { hasSuccessor: true }).text,
      },
    ],
    empty: () =>
      emptyState(
        query ? 'No source matches' : 'No trusted source',
        query ? 'Change the search to see the others.' : 'Add trusted sources first.',
      ),
  });
  const search = searchField({
    id: 'search-rotation',
    label: 'Search sources and users',
    value: query,
    onInput: (text) => {
      query = text;
      remember({ q: text });
      drawSources();
    },
  });
  add(page, [
    pageHead('Rotation', LEAD),
    h(
      'div',
      { class: 'toolbar' },
      listenerFilter(listener, (value) => {
        listener = value;
        remember({ listener });
        draw();
      }),
    ),
    message,
    h('h2', { class: 'section-title' }, 'Certificates and passwords'),
    groups,
    h('h2', { class: 'section-title' }, 'Trusted sources'),
    h('div', { class: 'toolbar' }, search.element),
    h('div', { class: 'bar' }, found.element),
    table.element,
  ]);
  replace(groups, h('div', { class: 'card' }, skeleton(5)));
  let last = '';

  const selected = () => items.filter((item) => listener === '' || item.listener === listener);

  function draw() {
    if (!items) return;
    drawSources();
    const certificates = selected().filter((item) => item.kind !== 'source');
    const byGroup = groupBy(certificates, (item) => JSON.stringify([item.listener, item.kind, item.user ?? null]));
    const signature = JSON.stringify([...byGroup]);
    if (signature === last) return;
    last = signature;
    if (byGroup.size === 0) {
      replace(
        groups,
        emptyState(
          'No certificate or password to rotate',
          'Listeners show their certificates, client CAs and the passwords of their clients here.',
        ),
      );
      return;
    }
    // A rotation that is under way needs attention first.
    replace(groups, [...byGroup.values()].sort((a, b) => Math.min(b.length, 2) - Math.min(a.length, 2)).map(groupCard));
  }

  function drawSources() {
    if (!items) return;
    const isMatch = matcher(query);
    const sources = selected().filter((item) => item.kind === 'source');
    const shown = sources.filter((item) => isMatch(haystack(item)));
    table.update(shown);
    found.show(shown.length, sources.length, 'source');
  }

  const rotationPoll = poll((options) => get('/v1/rotation', options), 15 * SECOND, {
    onData: (data) => {
      ({ items } = data);
      replace(message);
      draw();
      markReady(page);
    },
    onError: (error, { isFirst }) => {
      if (isFirst && error.status !== 401) {
        replace(message, errorNotice(error));
        replace(groups);
      }
    },
  });
  return {
    destroy() {
      rotationPoll.stop();
      search.destroy();
      table.destroy();
    },
  };
}

function haystack(item) {
  return [item.name, item.description, item.listener, usersText(item)].join(' ').toLowerCase();
}

function groupCard(items) {
  const [{ listener, kind, user }] = items;
  const isValid = (item) => !item.fault && (!item.not_after || new Date(item.not_after).getTime() > Date.now());
  // The one that was added last is the new one; of those added together, the one that is valid longest.
  const sorted = [...items].sort(
    (a, b) =>
      (b.since_generation ?? 0) - (a.since_generation ?? 0) ||
      (user === undefined ? 0 : String(b.since ?? '').localeCompare(String(a.since ?? ''))) ||
      String(b.not_after).localeCompare(String(a.not_after)),
  );
  const [newest, ...older] = sorted;
  const ofUser = user === undefined ? null : [' of ', untrusted(user, { label: 'name' })];
  const title = [untrusted(listener, { label: 'name' }), ': ', roleName(kind), items.length > 1 ? 's' : '', ofUser];
  const step = (state, heading, ...evidence) =>
    h(
      'li',
      { class: `step ${state}` },
      h('span', { class: 'step-sign', 'aria-hidden': 'true' }, { good: '✓', warn: '!', bad: '✕' }[state] ?? '○'),
      h(
        'div',
        {},
        h(
          'p',
          { class: 'step-title' },
          heading,
          h(
            'span',
            { class: 'visually-hidden' },
            { good: ' (done)', warn: ' (wait)', bad: ' (not yet)' }[state] ?? ' (open)',
          ),
        ),
        evidence,
      ),
    );
  if (older.length === 0) {
    return h(
      'article',
      { class: 'card cert', 'data-rotation': `${listener} ${kind}` },
      h('h3', {}, title),
      itemLine(newest),
      users(newest),
      h(
        'p',
        { class: 'muted small' },
        kind === 'server_certificate'
          ? `To rotate it, replace its certificate and key files. ${APPLIED}`
          : kind === 'password'
            ? ['To rotate it, ', h('a', { href: link('clients', listener) }, 'add the new one next to it'), '.']
            : `To rotate it, configure the new one next to it. Both are valid side by side. ${APPLIED}`,
      ),
    );
  }
  const verdictFor = (item) =>
    verdictOf(item, { hasSuccessor: sorted.some((other) => other !== item && isValid(other)) });
  // Valid ones with different subjects can serve different clients, so their order says nothing.
  const hasOrder = new Set(items.filter(isValid).map((item) => item.user ?? item.name)).size <= 1;
  if (!hasOrder) {
    return h(
      'article',
      { class: 'card cert', 'data-rotation': `${listener} ${kind}` },
      h('h3', {}, title),
      h('p', { class: 'muted small' }, 'Their subjects differ, so each one is judged on its own.'),
      h(
        'ol',
        { class: 'steps' },
        sorted.map((item) => {
          const verdict = verdictFor(item);
          return step(
            item.fault ? 'bad' : verdict.kind,
            [untrusted(item.name, { label: 'subject' }), ' ', pill(verdict.kind, verdict.text)],
            itemLine(item, { hasName: false }),
            item.fault ? h('p', { class: 'bad-text' }, untrusted(item.fault, { wrap: true })) : null,
            users(item),
            h('p', { class: 'muted' }, verdict.why, ' ', nextStep(item)),
          );
        }),
      ),
    );
  }
  return h(
    'article',
    { class: 'card cert', 'data-rotation': `${listener} ${kind}` },
    h('h3', {}, title),
    h(
      'ol',
      { class: 'steps' },
      step(
        isValid(newest) ? 'good' : 'bad',
        'New one added',
        itemLine(newest),
        newest.fault ? h('p', { class: 'bad-text' }, untrusted(newest.fault, { wrap: true })) : null,
      ),
      step(
        newest.sessions > 0 || newest.last_used ? 'good' : 'warn',
        newest.sessions > 0
          ? `${count(newest.sessions, 'session uses', 'sessions use')} the new one`
          : newest.last_used
            ? 'The new one was used'
            : 'Nobody uses the new one yet',
        users(newest),
      ),
      older.map((old) => {
        const verdict = verdictFor(old);
        return [
          step(
            old.sessions > 0 ? 'bad' : verdict.kind,
            old.sessions > 0
              ? `${count(old.sessions, 'session still uses', 'sessions still use')} the old one`
              : 'No open session uses the old one',
            itemLine(old),
            users(old),
          ),
          step(
            verdict.kind,
            ['Remove the old one: ', pill(verdict.kind, verdict.text)],
            h(
              'p',
              { class: 'muted' },
              verdict.why,
              ' ',
              nextStep(old),
            ),
          ),
        ];
      }),
    ),
  );
}

/** Where a person continues. */
function nextStep({ listener, kind, sessions, clients = [], more_clients: more = 0 }) {
  if (sessions > 0) {
    const [client] = clients;
    const isOne = clients.length === 1 && more === 0;
    const target = link('sessions', '', { listener, ...(isOne ? filterFor(client) : {}) });
    return h('a', { href: target }, 'Show the sessions');
  }
  if (kind === 'password') return h('a', { href: link('clients', listener) }, 'Open Clients');
  return kind === 'client_certificate' ? h('a', { href: link('tls', listener) }, 'Open TLS') : null;
}

const filterFor = ({ subject, source }) => (subject ? { client: subject, source } : { source });

function itemLine(item, { hasName = true } = {}) {
  const state = item.not_after ? certificateState(item) : null;
  return h(
    'p',
    {},
    hasName ? [untrusted(item.name, { label: 'subject' }), ' '] : null,
    item.sha256 ? [fingerprint(item.sha256), ' '] : null,
    h(
      'span',
      { class: 'muted' },
      state ? [pill(state.kind, state.text), ' not after ', time(item.not_after, { mode: 'full' })] : null,
      item.since ? [', added ', time(item.since)] : null,
    ),
  );
}

function users(item) {
  if (item.sessions > 0) {
    return h(
      'ul',
      { class: 'evidence' },
      (item.clients ?? []).map((client) =>
        h(
          'li',
          {},
          who(client),
          ': ',
          h(
            'a',
            { href: link('sessions', '', { listener: item.listener, ...filterFor(client) }) },
            count(client.sessions, 'session'),
          ),
        ),
      ),
      item.more_clients > 0 ? h('li', {}, `and ${count(item.more_clients, 'other client')}`) : null,
    );
  }
  const [accepted, rejected] = [item.last_users ?? [], item.rejected_users ?? []];
  if (accepted.length === 0 && rejected.length === 0) {
    return h(
      'p',
      { class: 'muted' },
      item.last_used ? ['Last used ', time(item.last_used), '.'] : 'Not used since it was added.',
    );
  }
  return h(
    'ul',
    { class: 'evidence' },
    rejected.slice(0, 5).map((user) => h('li', {}, who(user), ', rejected ', time(user.last_rejected))),
    accepted.slice(0, 5).map((user) => h('li', {}, who(user), ', last use ', time(user.last_used))),
  );
}

/** The subject of its certificate, the user as which it has authenticated, or both. */

/** A user of the database has no source. */
const who = (client) => {
  const name = nameOf(client);
  return [
    name ? untrusted(name, { label: client.subject ? 'subject' : 'user' }) : null,
    name && client.source ? ' from ' : null,
    client.source ? h('span', { class: 'mono' }, client.source) : null,
  ];
};
