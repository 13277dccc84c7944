// Rules of trusted sources: how people write them, and what leads from one list to another.

import { parseNetwork } from './address.js';
import { groupBy } from './filter.js';
import { shellJoin, ttlUntil } from './format.js';

/** A line of text as a rule: `TYPE:VALUE`, an address or a network, and after `#` a description. */
export function parseLine(text) {
  const match = /^(.*?)(?:\s+#\s*(.*))?$/s.exec(text.trim());
  const rule = match[1].trim();
  const description = match[2]?.trim();
  // An IPv6 address contains colons, too.
  const typed = parseNetwork(rule) ? null : /^([a-z][a-z0-9_]*):(.+)$/s.exec(rule);
  const parts = typed ? { type: typed[1], value: typed[2].trim() } : { type: 'ip_addr', value: rule };
  return description ? { ...parts, description } : parts;
}

/** A rule as commands name it. */
export const sourceOf = (rule) => `${rule.type}:${rule.value}`;

/** Whether the API changes the rule. */
export const isEditable = (rule) => rule.origin !== 'config';

/** A rule that stays as it is. PUT keeps description and expiry where a request does not state them. */
export const unchanged = ({ type, value, uuid }) => ({ type, value, uuid });

/** The rules of an earlier list, as a request that restores them. */
export function restored(before, now) {
  const present = new Map(now.map((rule) => [rule.uuid, rule]));
  return before.map((rule) => {
    const same = present.get(rule.uuid);
    const isSame = ['value', 'description', 'expires_at'].every((key) => same?.[key] === rule[key]);
    if (same && isSame) return unchanged(rule);
    const { description, expires_at } = rule;
    return { ...unchanged(rule), description, expires_at };
  });
}

/** The rules that both lists have, with another description or expiry: `{ old, input }`. */
export function changedRules(before, after) {
  const earlier = new Map(before.map((rule) => [sourceOf(rule), rule]));
  return after
    .filter((rule) => {
      const old = earlier.get(sourceOf(rule));
      return old && ((old.description ?? '') !== (rule.description ?? '') || old.expires_at !== rule.expires_at);
    })
    .map((rule) => ({
      old: earlier.get(sourceOf(rule)),
      input: { value: rule.value, description: rule.description ?? '', expires_at: rule.expires_at },
    }));
}

/** The commands that lead from one list to another. */
export function commandsBetween(listener, before, after) {
  const [had, has] = [before, after].map((rules) => new Set(rules.map(sourceOf)));
  const removed = before.filter((rule) => !has.has(sourceOf(rule)));
  const added = after.filter((rule) => !had.has(sourceOf(rule)));
  const cli = [];
  const groups = groupBy(added, (rule) => JSON.stringify([rule.description ?? '', rule.expires_at]));
  for (const rules of groups.values()) {
    const [{ description, expires_at }] = rules;
    cli.push(appendCommand(listener, rules, { description: description ?? '', expires_at }));
  }
  if (removed.length > 0) cli.push(shellJoin(['portcullis', 'sources', 'remove', listener, ...removed.map(sourceOf)]));
  const edits = changedRules(before, after).map(({ old, input }) => {
    const isSame = input.expires_at === old.expires_at;
    return editCommand(listener, old, isSame ? { description: input.description } : input);
  });
  return { cli: [...cli, ...edits.filter(Boolean)] };
}

/** The command that changes a rule in place, or `null` if nothing changes. */
export function editCommand(listener, old, { description, ttl, expires_at: until }) {
  const options = [];
  if (description !== undefined && description !== (old.description ?? '')) options.push('--description', description);
  if (ttl) options.push('--ttl', ttl);
  else if (until === null) options.push('--no-expiry');
  else if (until) options.push('--expires-at', until);
  if (options.length === 0) return null;
  return shellJoin(['portcullis', 'sources', 'edit', listener, sourceOf(old), ...options]);
}

/** The command that adds rules. An expiry is rounded up to a minute. */
export function appendCommand(listener, rules, { description = '', ttl = null, expires_at: until = null } = {}) {
  const words = ['portcullis', 'sources', 'append', listener, ...rules.map(sourceOf)];
  if (description) words.push('--description', description);
  if (ttl) words.push('--ttl', ttl);
  else if (until) words.push('--ttl', ttlUntil(until));
  return shellJoin(words);
}
