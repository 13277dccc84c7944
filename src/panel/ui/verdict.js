// The evidence of a rotation: who uses the old one, and whether it can be removed.

import { count, DAY, relative } from './format.js';

/** A job that runs once a week would not be noticed earlier. */
const QUIET = 7 * DAY;

const notSafe = (why) => ({ kind: 'bad', text: 'not safe to remove', why });
const safe = (why) => ({ kind: 'good', text: 'safe to remove', why });
const wait = (why) => ({ kind: 'warn', text: 'wait', why });
const keep = (why) => ({ kind: 'warn', text: 'keep it', why });

/** Whether an item can be removed, why, and how to show it. `hasSuccessor`: another one of its kind is valid. */
export function verdictOf(item, { hasSuccessor, now = Date.now() }) {
  if (item.kind === 'upstream_password') return verdictOfUpstreamPassword(item, { hasSuccessor, now });
  const { sessions, last_used: last, since, not_after: until, kind } = item;
  const age = (time) => now - new Date(time).getTime();
  const days = (time) => Math.floor(age(time) / DAY);
  if (sessions > 0) return notSafe(`${count(sessions, 'open session relies', 'open sessions rely')} on it.`);
  if (until && age(until) > 0) return safe('It has expired, so it admits nobody.');
  if (kind !== 'source' && !hasSuccessor) return keep('It is the only valid one of its kind. Add its successor first.');
  if (last) {
    return age(last) >= QUIET
      ? safe(`No session uses it, and nobody used it for ${days(last)} days.`)
      : wait(`No session uses it now, but it was used ${relative(last, now)}. Its last users may connect again.`);
  }
  return since && age(since) >= QUIET
    ? safe(`Nobody used it since it was added or the program started, ${days(since)} days ago.`)
    : wait(`Nobody used it yet, but it is observed only since ${since ? relative(since, now) : 'the start'}.`);
}

/** A user of an item, by its certificate and its login. */
export const nameOf = ({ subject, user }) => [subject, user].filter(Boolean).join(' as ');

/** Who uses an item now, else who used it last. */
export function usersText(item) {
  const users = item.sessions > 0 ? item.clients : item.last_users;
  return (users ?? [])
    .slice(0, 3)
    .map((user) => [nameOf(user), user.source].filter(Boolean).join(' from '))
    .join('; ');
}

/** Open sessions do not rely on it: each connection to the database uses a password once. */
function verdictOfUpstreamPassword(item, { hasSuccessor, now }) {
  const { last_users: accepted = [], rejected_users: rejected = [], last_used: last } = item;
  if (!hasSuccessor) return keep('It is the only one in the file. Add its successor first.');
  if (accepted.length === 0) {
    return wait(rejected.length > 0 ? 'The database rejects it, and has not accepted it yet.' : 'It was not tried yet.');
  }
  const isRejected = ({ user }) => rejected.some((other) => other.user === user);
  return accepted.every(isRejected)
    ? safe('The database now rejects it for each user that it was accepted for.')
    : notSafe(`The database accepted it ${relative(last, now)}.`);
}
