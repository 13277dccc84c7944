// Text for people: times, durations, numbers, and commands that can be pasted into a shell.

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

/** A code of the API as words: `untrusted_source` is `untrusted source`. */
export const words = (code) => String(code ?? '').replaceAll('_', ' ');

/** An argument of a POSIX shell. */
export function shellQuote(text) {
  const value = String(text);
  // A line break inside single quotes is legal, but pasting it into a terminal is not obvious to the reader.
  // eslint-disable-next-line no-control-regex
  if (/[\u0000-\u001f\u007f-\u009f]/.test(value)) {
    const escaped = [...value].map((character) => {
      const code = character.codePointAt(0);
      if (character === '\n') return '\\n';
      if (character === '\\' || character === "'") return `\\${character}`;
      // Octal always takes three digits at most, so the character behind it is never swallowed.
      if (code < 0x20 || code === 0x7f) return `\\${code.toString(8).padStart(3, '0')}`;
      if (code >= 0x80 && code < 0xa0) return `\\u${code.toString(16).padStart(4, '0')}`;
      return character;
    });
    return `$'${escaped.join('')}'`;
  }
  if (value !== '' && /^[A-Za-z0-9_@%+=:,./-]+$/.test(value)) return value;
  return `'${value.replaceAll("'", `'\\''`)}'`;
}

export const shellJoin = (words) => words.map(shellQuote).join(' ');

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
  return `${value.getFullYear()}-${two(value.getMonth() + 1)}-${two(value.getDate())}T${two(value.getHours())}:${two(value.getMinutes())}`;
}

export const shortFingerprint = (sha256) => (sha256 ? sha256.slice(0, 8) : '');
