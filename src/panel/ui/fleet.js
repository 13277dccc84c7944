// The members of the fleet, and the store that they share.

import { get, notifyChanged, poll } from './api.js';
import { confirmDialog } from './changes.js';
import { toast } from './dialogs.js';
import { add, button, h, markReady, replace } from './dom.js';
import { count, lookup, SECOND, shellJoin, words } from './format.js';
import { link } from './router.js';
import { can } from './state.js';
import { counter, dataTable } from './table.js';
import { path } from './url.js';
import { emptyState, errorNotice, facts, notice, pageHead, pill, skeleton, time, untrusted } from './widgets.js';

/** Digits of a policy hash, as many as the command shows. */
const SHORT_HASH = 12;

const STORE_STATES = { up: 'good', connecting: 'idle', down: 'warn', refused: 'bad' };
const MEMBER_STATES = { live: 'good', unknown: 'warn' };
const RULES_STATES = { in_force: 'good', unwritten: 'idle', unknown: 'warn', missing: 'warn', invalid: 'bad' };

export function fleetView(page) {
  const mayChange = can('operator');
  let own = null;
  let shownStore = '';

  const message = h('div', { 'aria-live': 'polite' });
  const store = h('section', { class: 'card', id: 'fleet-store', 'aria-labelledby': 'fleet-store-title' }, skeleton(4));
  const policy = h('p', { id: 'fleet-policy', role: 'status' });
  const found = counter();
  const table = dataTable({
    id: 'fleet-members',
    label: 'Members of the fleet',
    rowKey: (row) => row.member,
    columns: [
      {
        key: 'member',
        label: 'Member',
        className: 'c-main',
        cell: (row) => [
          untrusted(row.member, { label: 'name' }),
          row.member === own ? h('span', { class: 'muted small' }, ' (this member)') : null,
        ],
        sort: (row) => row.member,
      },
      {
        key: 'state',
        label: 'State',
        className: 'c-state',
        cell: (row) => pill(lookup(MEMBER_STATES, row.state) ?? 'idle', row.state),
        sort: (row) => row.state,
      },
      {
        key: 'seen',
        label: 'Last seen',
        className: 'c-time',
        cell: (row) => time(row.last_seen, { empty: 'not yet' }),
        sort: (row) => row.last_seen,
      },
      {
        key: 'revision',
        label: 'Revision',
        className: 'c-num',
        cell: (row) => (row.revision === null ? 'unknown' : String(row.revision)),
        sort: (row) => row.revision,
      },
      {
        key: 'policy',
        label: 'Policy hash',
        className: 'c-address',
        cell: (row) =>
          row.policy_hash
            ? h('code', { title: row.policy_hash }, row.policy_hash.slice(0, SHORT_HASH))
            : h('span', { class: 'muted' }, 'unknown'),
        sort: (row) => row.policy_hash,
      },
      {
        key: 'sessions',
        label: 'Sessions',
        className: 'c-num',
        cell: (row) => (row.sessions === null ? 'unknown' : String(row.sessions)),
        sort: (row) => row.sessions,
      },
      {
        key: 'actions',
        label: 'Actions',
        hiddenLabel: true,
        className: 'c-actions',
        cell: (row) =>
          mayChange && row.state === 'unknown'
            ? button('Forget', () => forgetDialog(row), {
                kind: 'small',
                'data-action': 'forget',
                'aria-label': `Forget ${row.member}`,
              })
            : null,
      },
    ],
    empty: emptyState('No member is known', 'The members are listed once the store has answered.'),
  });
  add(page, [
    pageHead('Fleet', 'Members that share trusted sources and session ticket keys over a store.'),
    message,
    store,
    h('h2', { class: 'section-title' }, 'Members'),
    h('div', { class: 'bar' }, found.element, policy),
    table.element,
  ]);

  function drawStore(fleet) {
    const signature = JSON.stringify({ ...fleet, members: null });
    if (signature === shownStore) return;
    shownStore = signature;
    const hasFocus = store.contains(document.activeElement);
    replace(store, h('div', { class: 'stack' }, storeCard(fleet, mayChange)));
    if (hasFocus) store.querySelector('#accept-store')?.focus();
  }

  const fleetPoll = poll((options) => get('/v1/fleet', options), 5 * SECOND, {
    onData: (fleet) => {
      own = fleet.member;
      replace(message);
      drawStore(fleet);
      const [kind, text] = policyState(fleet.members);
      replace(policy, pill(kind, text));
      table.update(fleet.members);
      found.show(fleet.members.length, fleet.members.length, 'member');
      markReady(page);
    },
    onError: (error, { isFirst }) => {
      // A reload may have removed the fleet.
      if ((isFirst || error.status === 404) && error.status !== 401) replace(message, errorNotice(error));
    },
  });
  return {
    destroy() {
      fleetPoll.stop();
      table.destroy();
    },
  };
}

/** Whether all members have the same policy, `[kind, text]`. The last hash of an unknown member proves nothing. */
export function policyState(members) {
  const known = members.filter(({ state, policy_hash: hash }) => state === 'live' && hash);
  const unknown = members.length - known.length;
  if (new Set(known.map(({ policy_hash: hash }) => hash)).size > 1) return ['warn', 'the policies differ'];
  if (unknown > 0) return ['warn', `the policy of ${count(unknown, 'member')} is unknown`];
  return known.length === 0 ? ['idle', 'no policy is known'] : ['good', 'all members have the same policy'];
}

function storeCard({ name, member, duplicate, store, rules, tickets }, mayChange) {
  const { engine, state, since, detail, revision } = store;
  return [
    h('h2', { id: 'fleet-store-title' }, 'Store'),
    duplicate
      ? notice('bad', h('p', {}, 'Another process has the name of this member. Give each member its own name.'))
      : null,
    state === 'refused'
      ? notice(
          'bad',
          h(
            'p',
            {},
            h('strong', {}, 'The store is refused: '),
            untrusted(detail, { wrap: true, empty: 'no reason is known' }),
          ),
          h('p', {}, 'Nothing of it is used and changes are not possible. Check the store before you accept it.'),
          mayChange
            ? h(
                'div',
                { class: 'actions' },
                button('Accept the store', () => acceptDialog(detail), { kind: 'danger', id: 'accept-store' }),
              )
            : null,
        )
      : null,
    state === 'down'
      ? notice(
          'warn',
          h('p', {}, h('strong', {}, 'The store is down: '), untrusted(detail, { wrap: true, empty: 'no answer' })),
          h('p', {}, 'The rules in force stay. Changes are not possible until the store answers.'),
        )
      : null,
    tickets?.error
      ? notice(
          'warn',
          h('p', {}, h('strong', {}, 'Ticket keys are not shared: '), untrusted(tickets.error, { wrap: true })),
        )
      : null,
    facts([
      ['Fleet', untrusted(name, { label: 'name' })],
      ['This member', untrusted(member, { label: 'name' })],
      ['State', [pill(lookup(STORE_STATES, state) ?? 'idle', state), since ? [' since ', time(since, { mode: 'full' })] : null]],
      ['Engine', engine],
      ['Revision', revision === null ? 'unknown' : String(revision)],
      ...Object.entries(rules ?? {}).map(([listener, shared]) => [
        ['Rules of ', h('a', { href: link('sources', listener) }, untrusted(listener, { label: 'name' }))],
        [
          pill(lookup(RULES_STATES, shared.state) ?? 'idle', words(shared.state)),
          shared.state === 'in_force' ? null : [' ', consequence(shared)],
          shared.detail ? [' ', untrusted(shared.detail, { wrap: true })] : null,
        ],
      ]),
    ]),
  ];
}

const consequence = ({ has_copy: hasCopy }) =>
  hasCopy === false
    ? 'No rules of the fleet are known here, so none of them admits a client.'
    : 'The last good rules stay in force.';

function forgetDialog({ member, last_seen: seen }) {
  confirmDialog({
    id: 'forget-member',
    title: 'Forget a member',
    confirm: 'Forget the member',
    nodes: [
      h('p', {}, 'Removes ', h('strong', {}, untrusted(member, { label: 'name' })), ' from the list of members.'),
      h('p', {}, 'It was last seen ', time(seen, { empty: 'at an unknown time' }), '.'),
      notice(
        'warn',
        h('p', {}, 'Forget a member only if it is gone for good.'),
        h('p', {}, 'If it still runs, it may serve clients, and no command waits for it any more.'),
      ),
    ],
    change: {
      request: { method: 'DELETE', path: path`/v1/fleet/members/${member}` },
      cli: [shellJoin(['portcullis', 'fleet', 'forget', member])],
    },
    done: () => {
      toast('good', `${member} is no longer a member.`);
      notifyChanged();
    },
  });
}

function acceptDialog(detail) {
  confirmDialog({
    id: 'accept-store-dialog',
    title: 'Accept the store',
    confirm: 'Accept the store',
    nodes: [
      h('p', {}, 'Accepts the store as it is, for all members. It is refused because:'),
      h('p', {}, untrusted(detail, { wrap: true, empty: 'no reason is known' })),
      notice(
        'bad',
        h(
          'p',
          {},
          h('strong', {}, 'The rules in the store come into force at all members.'),
          ' A backup has rules that were withdrawn since. They admit clients again, and sessions that only newer rules',
          ' admit end.',
        ),
      ),
      h('p', {}, 'Rules that the store has lost altogether are written to it from the last good copy of this member.'),
    ],
    change: {
      request: { method: 'POST', path: '/v1/fleet/accept' },
      cli: ['portcullis fleet accept'],
    },
    done: ({ result }) => {
      const { rules_written: written, in_use: isUsed } = result.data;
      const rest = written.length > 0 ? ` The last good rules of ${written.join(', ')} were written to it.` : '';
      if (isUsed) toast('good', `The store is accepted and in use.${rest}`);
      else toast('warn', `The store is accepted and not in use here yet.${rest}`);
      notifyChanged();
    },
  });
}
