// What views and dialogs show about a rule.

import { openDialog } from './dialogs.js';
import { button, h } from './dom.js';
import { lookup } from './format.js';
import { link } from './router.js';
import { facts, notice, pill, time, untrusted } from './widgets.js';

const STATES = {
  resolved: ['good', 'resolved'],
  expired: ['idle', 'expired'],
  unresolved: ['bad', 'unresolved'],
  stale: ['warn', 'stale'],
};

/** Where a rule comes from, in words. */
const ORIGINS = {
  config: 'in the configuration file, not changed here',
  file: 'in the sources_file',
  fleet: 'shared by the fleet',
};

export const originOf = (rule) => lookup(ORIGINS, rule.origin) ?? rule.origin;

export function stateOf(rule) {
  const [kind, text] = lookup(STATES, rule.state) ?? ['idle', rule.state];
  return h(
    'span',
    { title: rule.detail ?? (rule.addresses?.length ? rule.addresses.join(', ') : null) },
    pill(kind, text),
  );
}

export function addressesOf(rule) {
  if (rule.addresses.length === 0) return 'none, so the rule admits no client';
  const shown = rule.addresses.slice(0, 50);
  const more = rule.addresses.length - shown.length;
  if (rule.objects) {
    const named = (address) =>
      h('li', {}, h('span', { class: 'mono' }, address), ' ', untrusted(lookup(rule.objects, address), { wrap: true }));
    return h('ul', { class: 'plain' }, shown.map(named), more > 0 ? h('li', {}, `and ${more} more`) : null);
  }
  return h('span', { class: 'mono break' }, shown.join(', '), more > 0 ? ` and ${more} more` : null);
}

export function showDetails(listener, rule) {
  openDialog({
    title: 'Trusted source',
    id: 'source-details',
    body: h(
      'div',
      { class: 'stack' },
      facts([
        ['Rule', h('code', { class: 'break' }, untrusted(`${rule.type}:${rule.value}`, { wrap: true }))],
        ['Description', untrusted(rule.description, { wrap: true })],
        ['State', stateOf(rule)],
        rule.detail ? ['Last lookup', untrusted(rule.detail, { wrap: true })] : null,
        rule.addresses
          ? ['Addresses', addressesOf(rule)]
          : rule.addresses_count
            ? ['Addresses', `${rule.addresses_count} addresses`]
            : null,
        ['Expires', time(rule.expires_at)],
        ['Origin', originOf(rule)],
        ['Sessions', String(rule.sessions)],
        ['Last use', time(rule.last_used, { empty: 'not since the start' })],
        ['UUID', h('code', { class: 'break' }, rule.uuid)],
      ]),
      rule.origin === 'config'
        ? notice('info', h('p', {}, 'This rule is in the configuration. Edit trusted_sources there, then reload.'))
        : null,
    ),
    actions: (close) => [
      h(
        'a',
        {
          class: 'button',
          href: link('explain', '', { listener, source: rule.type === 'ip_addr' ? rule.value.split('/')[0] : '' }),
          on: { click: close },
        },
        'Explain',
      ),
      button('Close', close, { kind: 'primary' }),
    ],
  });
}
