// The choice of an expiry in a form.

import { h } from './dom.js';
import { dateTime, DAY, HOUR, localInput, MINUTE, relative } from './format.js';
import { select } from './widgets.js';

/** A mistake in a field, before anything was sent. */
export class FieldError extends Error {
  constructor(message, control = null) {
    super(message);
    this.control = control;
  }
}

const PRESETS = [
  ['1h', '1 hour'],
  ['8h', '8 hours'],
  ['30d', '30 days'],
  ['never', 'Never'],
  ['date', 'Date and time'],
];
const PRESET_LENGTH = { '1h': HOUR, '8h': 8 * HOUR, '30d': 30 * DAY };

/** A choice of an expiry. `read()` returns `{ ttl }`, `{ expires_at }` or throws with words. */
export function expiryField({ current = undefined, initial = null, name = 'expiry' } = {}) {
  const options =
    current === undefined
      ? PRESETS
      : [['keep', current ? `Keep: ${dateTime(current)} (${relative(current)})` : 'Keep: never'], ...PRESETS];
  const value = initial ?? (current === undefined ? 'never' : 'keep');
  const choice = select(options, value, { id: `${name}-choice`, name });
  const date = h('input', {
    type: 'datetime-local',
    id: `${name}-date`,
    name: `${name}-date`,
    'aria-label': 'Expires at, in your time zone',
  });
  date.value = localInput(Date.now() + 8 * HOUR);
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const effect = h('p', { class: 'help', role: 'status' });
  const show = () => {
    date.hidden = choice.value !== 'date';
    const length = PRESET_LENGTH[choice.value];
    if (length) effect.textContent = `Ends ${dateTime(Date.now() + length)}. Its sessions end then, too.`;
    else if (choice.value === 'date') effect.textContent = `In your time zone, ${zone}. Its sessions end then, too.`;
    else if (choice.value === 'never') effect.textContent = 'Stays until somebody removes it.';
    else effect.textContent = 'The expiry is not changed.';
  };
  choice.addEventListener('change', show);
  show();
  const element = h(
    'div',
    { class: 'field' },
    h('label', { for: choice.id }, 'Expires'),
    h('div', { class: 'inline' }, choice, date),
    effect,
  );
  return {
    element,
    read() {
      if (choice.value === 'keep') return {};
      if (choice.value === 'never') return { expires_at: null };
      if (choice.value !== 'date') return { ttl: choice.value };
      const at = new Date(date.value);
      if (Number.isNaN(at.getTime())) throw new FieldError('Enter a date and time for the expiry.', date);
      if (at.getTime() < Date.now() + MINUTE) {
        throw new FieldError('The expiry is in the past. Choose a later time.', date);
      }
      return { expires_at: at.toISOString().replace(/\.\d+Z$/, 'Z') };
    },
  };
}
