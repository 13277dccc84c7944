// The plan of a change of trusted sources.

import { contains, isEverything, parseNetwork, sizeOf } from './address.js';
import { get } from './api.js';
import { h, replace } from './dom.js';
import { count, relative, visible } from './format.js';
import { planSummary, ruleLine, sessionsEnded } from './plan-parts.js';
import { sourceOf } from './source-rules.js';
import { isGroup } from './state.js';
import { query } from './url.js';
import { notice, time, untrusted } from './widgets.js';

/** What `changeDialog` shows: the rules, who can newly connect, and the sessions that end. */
export function showSourcesPlan(listener, { plan, change }) {
  const {
    rules_added: added,
    rules_removed: removed,
    rules_added_count: addedCount = added.length,
    rules_removed_count: removedCount = removed.length,
  } = plan;
  const endedHere = plan.sessions_ended_count ?? plan.sessions_ended.length;
  // `null` if a member of the fleet has not answered.
  const endedInFleet = plan.fleet ? plan.fleet.sessions_ended_count : endedHere;
  const ended = endedInFleet ?? endedHere;
  const mayEndMore = endedInFleet === null && removedCount > 0;
  const edits = (change.changes ?? []).map(editText).filter(Boolean);
  const renewed = change.renewed ?? [];
  const isEmpty = addedCount === 0 && removedCount === 0 && edits.length === 0 && renewed.length === 0;
  const everything = added.filter((rule) => isEverything(rule.value));
  const otherWarnings = (plan.warnings ?? []).filter(
    (warning) => !everything.some((rule) => warning.includes(rule.value)),
  );
  const removedValues = new Set(removed.map(sourceOf));
  const isNew = (rule) => !removedValues.has(sourceOf(rule));
  const newly = added.filter(isNew);
  const place = isGroup(listener) ? `a listener that uses ${listener}` : listener;
  const denied = h('div', {});
  if (newly.length > 0) showDenied(denied, listener, newly);
  const nodes = [
    plan.admits_nobody
      ? notice(
          'bad',
          h(
            'p',
            {},
            h('strong', {}, `After this change no client can connect to ${place}.`),
            ' Its list of trusted sources admits nobody.',
          ),
        )
      : null,
    everything.map((rule) =>
      notice(
        'bad',
        h(
          'p',
          {},
          h('strong', {}, `${rule.value} trusts every ${rule.value.includes(':') ? 'IPv6' : 'IPv4'} address.`),
          ' Every machine that reaches the listener can connect. Enter the smallest network that you need.',
        ),
      ),
    ),
    otherWarnings.map((warning) => notice('warn', h('p', {}, untrusted(warning, { wrap: true })))),
    planSummary([
      addedCount > 0 && ['good', `${count(addedCount, 'rule')} added`],
      removedCount > 0 && ['bad', `${count(removedCount, 'rule')} removed`],
      edits.length > 0 && ['info', `${count(edits.length, 'rule')} edited`],
      renewed.length > 0 && ['info', `${count(renewed.length, 'rule')} renewed`],
      isEmpty
        ? ['idle', 'nothing changes']
        : mayEndMore
          ? ['warn', 'sessions of the fleet that end: unknown']
          : ended > 0
            ? ['warn', `${count(ended, 'session ends', 'sessions end')}`]
            : ['good', 'no session ends'],
    ]),
    isEmpty
      ? h(
          'p',
          {},
          change.known?.length > 0
            ? 'All of these rules are there already, and stay as they are.'
            : 'The rules are like this already.',
        )
      : null,
    !isEmpty && change.known?.length > 0 ? h('p', { class: 'small muted' }, knownText(change.known)) : null,
    addedCount + removedCount + edits.length > 0
      ? h(
          'section',
          {},
          h('h3', {}, 'Rules'),
          h(
            'ul',
            { class: 'rule-lines', tabindex: '0', 'aria-label': 'Rules that change' },
            added.slice(0, 500).map((rule) => ruleLine('+', rule)),
            edits.slice(0, 100),
            removed.slice(0, 500).map((rule) => ruleLine('-', rule)),
          ),
          addedCount + removedCount > 1000 || added.length + removed.length < addedCount + removedCount
            ? h('p', { class: 'small muted' }, 'The list is longer than what is shown.')
            : null,
        )
      : null,
    newly.length > 0
      ? h('section', {}, h('h3', {}, 'Who can newly connect'), newSources(newly, addedCount), denied)
      : null,
    isEmpty ? null : sessionsEnded(plan.sessions_ended, endedHere),
    isEmpty || !plan.fleet ? null : atMembers(plan.fleet),
  ];
  const danger = plan.admits_nobody || everything.length > 0 || ended > 0 || mayEndMore;
  const verb =
    addedCount > 0 && removedCount === 0
      ? `Add ${count(addedCount, 'rule')}`
      : removedCount > 0 && addedCount === 0
        ? `Remove ${count(removedCount, 'rule')}`
        : 'Change the rules';
  const confirm = ended > 0 && !mayEndMore ? `${verb}, end ${count(ended, 'session')}` : verb;
  return { nodes, isEmpty, danger, confirm };
}

/** The sessions of all members of the fleet that end, those of this member included. */
function atMembers({ sessions_ended_count: ended, missing }) {
  const names = missingMembers(missing);
  const text =
    ended === null
      ? `Unknown: ${names ? `no answer from ${names}` : 'the members cannot be asked'}.`
      : `${count(ended, 'session ends', 'sessions end')} at all members, this one included.`;
  return h('section', { id: 'plan-fleet' }, h('h3', {}, 'Sessions of the fleet'), h('p', {}, text));
}

/** `b (unknown), c (live)`; empty if none is named. */
export const missingMembers = (missing) =>
  (missing ?? []).map(({ member, state }) => `${visible(member)} (${state})`).join(', ');

function knownText(known) {
  const rest = known.length === 1 ? 'stays as it is' : 'stay as they are';
  const names = [...known.slice(0, 5).map(sourceOf), ...(known.length > 5 ? ['…'] : [])].join(', ');
  return `${count(known.length, 'rule is', 'rules are')} there already and ${rest}: ${names}`;
}

function editText({ old, input }) {
  const parts = [];
  if ((old.description ?? '') !== (input.description ?? '')) {
    parts.push(
      h(
        'span',
        {},
        'description: ',
        untrusted(old.description, { empty: 'none', label: 'description' }),
        ' → ',
        untrusted(input.description, { empty: 'none', label: 'description' }),
      ),
    );
  }
  const end =
    'ttl' in input
      ? `in ${input.ttl}`
      : 'expires_at' in input && input.expires_at !== old.expires_at
        ? input.expires_at
          ? relative(input.expires_at)
          : 'never'
        : null;
  if (end) {
    parts.push(
      h(
        'span',
        {},
        parts.length > 0 ? '; ' : '',
        'expiry: ',
        old.expires_at ? relative(old.expires_at) : 'never',
        ' → ',
        end,
      ),
    );
  }
  if (parts.length === 0) return null;
  return ruleLine('~', { type: old.type, value: input.value }, parts);
}

function newSources(rules, total) {
  const words = (rule) => {
    const size = rule.type === 'ip_addr' ? sizeOf(rule.value) : null;
    if (rule.type === 'dns') {
      return ['the addresses that ', h('code', {}, untrusted(rule.value, { label: 'name' })), ' resolves to'];
    }
    if (rule.type === 'ip_addr') {
      return [h('code', {}, untrusted(rule.value, { label: 'address' })), size ? ` (${size} addresses)` : ''];
    }
    if (rule.type === 'group') {
      return ['the sources of ', h('code', {}, untrusted(sourceOf(rule), { label: 'rule' }))];
    }
    return ['the machines of ', h('code', {}, untrusted(sourceOf(rule), { label: 'rule' }))];
  };
  return h(
    'ul',
    { class: 'bullets' },
    rules
      .slice(0, 8)
      .map((rule) =>
        h('li', {}, words(rule), rule.expires_at ? [', until ', time(rule.expires_at, { mode: 'full' })] : null),
      ),
    total > 8 ? h('li', {}, `and ${total - 8} more`) : null,
  );
}

/** Denied sources that the new rules admit: the best evidence that a rule is right, or too wide. */
async function showDenied(box, listener, rules) {
  const networks = rules
    .filter((rule) => rule.type === 'ip_addr')
    .map((rule) => parseNetwork(rule.value))
    .filter(Boolean);
  if (networks.length === 0 || isGroup(listener)) return;
  try {
    const { denials } = await get(`/v1/denials${query({ listener })}`);
    const matching = denials.filter(({ reason, last_address: address }) => {
      const client = reason === 'untrusted_source' && address ? parseNetwork(address) : null;
      return client && networks.some((network) => contains(network, client));
    });
    replace(
      box,
      h(
        'p',
        { class: 'small muted' },
        matching.length === 0
          ? 'None of them was denied in the last day.'
          : [
              'Denied in the last day, and admitted after this change: ',
              h(
                'span',
                { class: 'mono' },
                matching
                  .slice(0, 6)
                  .map((each) => each.last_address)
                  .join(', '),
              ),
              matching.length > 6 ? ` and ${matching.length - 6} more` : '',
              '.',
            ],
      ),
    );
  } catch {
    /* only additional evidence */
  }
}
