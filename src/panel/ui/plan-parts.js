// What the plans of different changes have in common.

import { h } from './dom.js';
import { count, reasonText } from './format.js';
import { notice, pill, time, untrusted } from './widgets.js';

export function sessionsEnded(sessions, total, { kept = null } = {}) {
  if (total === 0) {
    const rest = kept ? ` ${count(kept, 'session stays', 'sessions stay')} open.` : '';
    return h('section', {}, h('h3', {}, 'Sessions'), h('p', { class: 'plan-none' }, `No open session ends.${rest}`));
  }
  return h(
    'section',
    {},
    h('h3', {}, `${count(total, 'session ends', 'sessions end')}`),
    plainTable(
      'Sessions that end',
      ['Session', 'Client', 'Certificate', 'Reason'],
      sessions
        .slice(0, 200)
        .map((session) => [
          String(session.session),
          [
            clientOf(session),
            session.user ? [' as ', untrusted(session.user, { label: 'name' })] : null,
            session.listener ? h('span', { class: 'muted' }, ' at ', untrusted(session.listener)) : null,
          ],
          untrusted(session.client_subject, { label: 'subject' }),
          [
            reasonText(session.reason),
            session.detail ? h('span', { class: 'muted' }, ': ', untrusted(session.detail, { label: 'reason' })) : null,
          ],
        ]),
    ),
    total > Math.min(sessions.length, 200)
      ? h('p', { class: 'small muted' }, `The first ${Math.min(sessions.length, 200)} are shown.`)
      : null,
  );
}

export function clientOf({ source, source_port: port, balancer }) {
  const address = port ? (source.includes(':') ? `[${source}]:${port}` : `${source}:${port}`) : source;
  return [h('span', { class: 'mono' }, address), balancer ? h('span', { class: 'muted' }, ` via ${balancer}`) : null];
}

/** A short table that is complete in the document. */
export function plainTable(label, heads, rows, { className = '' } = {}) {
  return h(
    'div',
    { class: 'plain-table-wrap', tabindex: '0', role: 'region', 'aria-label': label },
    h(
      'table',
      { class: `plain-table ${className}` },
      h(
        'thead',
        {},
        h(
          'tr',
          {},
          heads.map((head) => h('th', { scope: 'col' }, head)),
        ),
      ),
      h(
        'tbody',
        {},
        rows.map((row) =>
          h(
            'tr',
            {},
            row.map((cell) => h('td', {}, cell)),
          ),
        ),
      ),
    ),
  );
}

export function ruleLine(sign, rule, more = null) {
  const change = { '+': 'added', '-': 'removed', '~': 'changed' }[sign];
  return h(
    'li',
    { class: `rule-line ${change}` },
    h('span', { class: 'rule-sign', 'aria-hidden': 'true' }, sign === '-' ? '−' : sign),
    h('span', { class: 'visually-hidden' }, `${change}: `),
    h('span', { class: 'mono rule-value' }, untrusted(`${rule.type}:${rule.value}`, { label: 'rule' })),
    h(
      'span',
      { class: 'rule-more' },
      rule.description ? untrusted(rule.description, { label: 'description' }) : null,
      rule.expires_at
        ? h('span', { class: 'muted' }, rule.description ? ' · ' : '', 'expires ', time(rule.expires_at))
        : null,
      more,
    ),
  );
}

export function planSummary(parts) {
  return h(
    'p',
    { class: 'plan-summary' },
    parts.filter(Boolean).map(([kind, text]) => pill(kind, text)),
  );
}

/** A notice of the other listeners that a change of a shared file affects, or `null`. `what`: what they use. */
export function sharedWith(plan, listener, what) {
  const others = (plan.listeners ?? []).filter((name) => name !== listener);
  if (others.length === 0) return null;
  const title = h('strong', {}, `This also changes ${others.join(', ')}.`);
  return notice('warn', h('p', {}, title, ` These listeners use ${what}.`));
}
