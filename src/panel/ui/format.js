// Text for people: times, durations, numbers, hidden characters, and commands for a shell.

const DATE_TIME = new Intl.DateTimeFormat(undefined, {
  year: 'numeric',
  month: 'short',
  day: 'numeric',
  hour: '2-digit',
  minute: '2-digit',
});
const DATE_TIME_SECONDS = new Intl.DateTimeFormat(undefined, {
  year: 'numeric',
  month: 'short',
  day: 'numeric',
  hour: '2-digit',
  minute: '2-digit',
  second: '2-digit',
  timeZoneName: 'short',
});
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const CLOCK_SECONDS = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const NUMBER = new Intl.NumberFormat('en');

export const SECOND = 1000;
export const MINUTE = 60 * SECOND;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

export const number = (value) => NUMBER.format(value);
export const count = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;
export const clock = (date) => CLOCK.format(date);
export const clockSeconds = (date) => CLOCK_SECONDS.format(date);
export const dateTime = (text) => DATE_TIME.format(new Date(text));

/** The time in the reader's zone, and the same in UTC. */
export function fullTime(text) {
  const date = new Date(text);
  const utc = date
    .toISOString()
    .replace('T', ' ')
    .replace(/\.\d+Z$/, '');
  return `${DATE_TIME_SECONDS.format(date)} · ${utc} UTC`;
}

/** A duration in milliseconds in its largest unit, as in `8 h`. */
export function duration(milliseconds) {
  const value = Math.abs(milliseconds);
  if (value < MINUTE) return `${Math.round(value / SECOND)} s`;
  if (value < HOUR) return `${Math.round(value / MINUTE)} min`;
  if (value < 2 * DAY) return `${Math.round(value / HOUR)} h`;
  if (value < 730 * DAY) return `${Math.round(value / DAY)} d`;
  return `${(value / (365.25 * DAY)).toFixed(0)} y`;
}

export function relative(text, now = Date.now()) {
  const difference = new Date(text).getTime() - now;
  if (Math.abs(difference) < 5 * SECOND) return 'now';
  return difference > 0 ? `in ${duration(difference)}` : `${duration(difference)} ago`;
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  const units = ['KiB', 'MiB', 'GiB', 'TiB'];
  let rest = value;
  let unit = 'B';
  for (const next of units) {
    if (rest < 1024) break;
    rest /= 1024;
    unit = next;
  }
  return `${rest.toFixed(rest < 10 ? 1 : 0)} ${unit}`;
}

/** A value of an object used as a map, for keys that others choose: `constructor` is not one of them. */
export const lookup = (map, key) => (Object.hasOwn(map, key) ? map[key] : undefined);

/** A code of the API as words: `untrusted_source` is `untrusted source`. */
export const words = (code) => String(code ?? '').replaceAll('_', ' ');

const REASONS = {
  client_certificate_expired: 'expired client certificate',
  client_certificate_invalid: 'invalid client certificate',
  client_certificate_missing: 'missing client certificate',
  client_certificate_revoked: 'revoked client certificate',
  client_certificate_unknown_ca: 'client certificate of an unknown CA',
  client_not_trusted: 'client not in trusted_clients',
  handshake_failed: 'failed TLS handshake',
  io_error: 'I/O error',
  proxy_header_invalid: 'invalid PROXY header',
  proxy_header_missing: 'missing PROXY header',
};

/** A reason of the API in plain words. */
export const reasonText = (code) => lookup(REASONS, code) ?? words(code);

// Control characters, characters that change the direction of text, and characters without a glyph.
const HIDDEN = new RegExp(
  [
    '[\\u0000-\\u001f\\u007f-\\u009f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b-\\u200f',
    '\\u2028-\\u202f\\u205f-\\u206f\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb\\u{e0000}-\\u{e0fff}]',
  ].join(''),
  'gu',
);

const escapeOne = (character) => {
  if (character === '\n') return '\\n';
  if (character === '\t') return '\\t';
  return `\\u{${character.codePointAt(0).toString(16)}}`;
};

/** The text with hidden characters in a visible form. */
export const visible = (text) => String(text ?? '').replace(HIDDEN, escapeOne);

/** The parts of a text: `{ text, isEscaped }`, where a hidden character is a part of its own. */
export function visibleParts(text) {
  const parts = [];
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    parts.push({ text: text.slice(from, match.index), isEscaped: false });
    parts.push({ text: escapeOne(match[0]), isEscaped: true });
    from = match.index + match[0].length;
  }
  parts.push({ text: text.slice(from), isEscaped: false });
  return parts.filter((part) => part.text !== '');
}

/**
 * An argument of a shell: in single quotes (POSIX.1-2017 §2.2.2), which every shell reads alike. A text with hidden
 * characters is `null`: a person who pastes a command has to see all of it, and not every shell has escapes for them.
 */
export function shellQuote(text) {
  const value = String(text);
  if (value.search(HIDDEN) >= 0) return null;
  if (/^[A-Za-z0-9_@%+=:,./-]+$/.test(value)) return value;
  return `'${value.replaceAll("'", "'\\''")}'`;
}

/** The arguments of a command, or `null` if one of them cannot be shown. */
export function shellJoin(words) {
  const quoted = words.map(shellQuote);
  return quoted.includes(null) ? null : quoted.join(' ');
}

const escapeUnit = (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`;

/** JSON in which hidden characters are escapes, so that it can be shown and be an argument of a shell. */
export const visibleJson = (value) =>
  JSON.stringify(value).replace(HIDDEN, (character) => character.split('').map(escapeUnit).join(''));

/** A duration of the API and the commands until a time, rounded up to a minute. */
export function ttlUntil(date, now = Date.now()) {
  const minutes = Math.max(1, Math.ceil((new Date(date).getTime() - now) / MINUTE));
  const days = Math.floor(minutes / 1440);
  const hours = Math.floor((minutes % 1440) / 60);
  const rest = minutes % 60;
  return [days && `${days}d`, hours && `${hours}h`, rest && `${rest}m`].filter(Boolean).join('');
}

/** The value of a `datetime-local` field, which has no zone. */
export function localInput(date) {
  const value = new Date(date);
  const two = (part) => String(part).padStart(2, '0');
  const day = [value.getFullYear(), two(value.getMonth() + 1), two(value.getDate())].join('-');
  return `${day}T${two(value.getHours())}:${two(value.getMinutes())}`;
}

export const shortFingerprint = (sha256) => (sha256 ? sha256.slice(0, 8) : '');
