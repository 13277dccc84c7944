// The parts that views are built of.

import { announce, openDialog } from './dialogs.js';
import { button, h, newId, SIGNS } from './dom.js';
import { dateTime, fullTime, relative, shortFingerprint, visible, visibleParts } from './format.js';

// A title is for a glance; the dialog has all of it.
const MAX_TITLE = 300;
const MAX_INLINE = 2000;
const LONG = 40;

/**
 * A name or text that a client, a certificate or a colleague chose: isolated from the direction of the text around it,
 * in one line, with the full text reachable.
 */
export function untrusted(text, { empty = '–', label = 'text', wrap = false } = {}) {
  if (text === null || text === undefined || text === '') return h('span', { class: 'muted' }, empty);
  const value = String(text);
  const shown = visible(value);
  const parts = visibleParts(wrap ? value : value.slice(0, MAX_INLINE)).map((part) =>
    part.isEscaped ? h('span', { class: 'escaped' }, part.text) : part.text,
  );
  const title = shown.length > MAX_TITLE ? `${shown.slice(0, MAX_TITLE)}…` : shown;
  const body = h(
    'bdi',
    { dir: 'auto', class: wrap ? 'untrusted wrap' : 'untrusted', title: wrap ? null : title },
    parts,
  );
  if (wrap || shown.length <= LONG) return body;
  const more = h(
    'button',
    {
      type: 'button',
      class: 'show-all',
      'data-focus': 'show-all',
      'aria-label': `Show the whole ${label}`,
      title: `Show the whole ${label}`,
      on: {
        click: (event) => {
          event.stopPropagation();
          showText(label, value);
        },
      },
    },
    '⋯',
  );
  return h('span', { class: 'untrusted-long' }, body, more);
}

function showText(label, value) {
  openDialog({
    title: label[0].toUpperCase() + label.slice(1),
    body: h('p', { class: 'whole-text' }, untrusted(value, { wrap: true })),
    actions: (close) => [copyButton(value, 'Copy'), button('Close', close, { kind: 'primary' })],
  });
}

/** A state as words with a sign and a colour, so that the colour is never alone. */
export function pill(kind, text, properties = {}) {
  return h(
    'span',
    { class: `pill ${kind}`, ...properties },
    h('span', { class: 'pill-sign', 'aria-hidden': 'true' }, SIGNS[kind] ?? '•'),
    h('span', {}, text),
  );
}

export function notice(kind, ...children) {
  return h(
    'div',
    { class: `notice ${kind}`, role: kind === 'bad' ? 'alert' : null },
    h('span', { class: 'notice-sign', 'aria-hidden': 'true' }, SIGNS[kind] ?? 'i'),
    h('div', { class: 'notice-body' }, children),
  );
}

/** A time relative to now. `updateTimes` keeps it up to date. It shows the local time and UTC on hover. */
export function time(text, { empty = 'never', mode = 'relative' } = {}) {
  if (!text) return h('span', { class: 'muted' }, empty);
  const shown = mode === 'relative' ? relative(text) : dateTime(text);
  return h('time', { datetime: text, title: fullTime(text), 'data-relative': mode === 'relative' }, shown);
}

/** Keeps the times that `time` has built up to date. */
export function updateTimes() {
  if (document.hidden) return;
  const now = Date.now();
  for (const element of document.querySelectorAll('time[data-relative]')) {
    const shown = relative(element.dateTime, now);
    if (element.textContent !== shown) element.textContent = shown;
  }
}

export function fingerprint(sha256) {
  if (!sha256) return h('span', { class: 'muted' }, '–');
  return h(
    'span',
    { class: 'fingerprint' },
    h('code', { title: sha256 }, shortFingerprint(sha256)),
    copyButton(sha256, 'Copy', { label: `Copy the SHA-256 fingerprint ${shortFingerprint(sha256)}`, kind: 'tiny' }),
  );
}

export function copyButton(text, label = 'Copy', { label: name = null, kind = '' } = {}) {
  const element = button(
    label,
    async () => {
      const value = typeof text === 'function' ? text() : text;
      let isCopied = true;
      try {
        await navigator.clipboard.writeText(value);
      } catch {
        isCopied = copyBySelection(value, element);
      }
      element.textContent = isCopied ? 'Copied' : 'Not copied';
      announce(isCopied ? 'Copied' : 'The browser did not allow copying. Select the text and copy it.');
      setTimeout(() => {
        element.textContent = label;
      }, 1600);
    },
    { kind: `copy ${kind}`, 'aria-label': name, 'data-action': 'copy' },
  );
  return element;
}

// Plain HTTP on another name than localhost has no clipboard API.
function copyBySelection(value, near) {
  const area = h('textarea', { class: 'visually-hidden', readonly: true, 'aria-hidden': 'true' });
  area.value = value;
  (near.closest('dialog') ?? document.body).append(area);
  area.select();
  const isCopied = document.execCommand('copy');
  area.remove();
  near.focus();
  return isCopied;
}

/** A command in a box with a button that copies it. */
export function commandBox(label, text, { shown = text } = {}) {
  const id = newId('command');
  return h(
    'div',
    { class: 'command' },
    h(
      'div',
      { class: 'command-head' },
      h('span', { class: 'command-label', id }, label),
      copyButton(text, 'Copy', { label: `Copy: ${label}`, kind: 'tiny' }),
    ),
    h('pre', { tabindex: '0', role: 'group', 'aria-labelledby': id }, h('code', {}, visibleLines(shown))),
  );
}

const visibleLines = (text) => text.split('\n').map(visible).join('\n');

/** An error of the API or of the network, with the number that finds it in the audit. */
export function errorNotice(error, ...more) {
  return notice(
    'bad',
    h('p', { class: 'error-text' }, visibleLines(error.message)),
    error.requestId ? h('p', { class: 'small' }, 'Request ', h('code', {}, error.requestId)) : null,
    more,
  );
}

/** A list of terms with values. */
export function facts(entries) {
  const shown = entries.filter(Boolean);
  return h(
    'dl',
    { class: 'facts' },
    shown.map(([term, value]) => [h('dt', {}, term), h('dd', {}, value)]),
  );
}

export function emptyState(title, text, ...actions) {
  return h(
    'div',
    { class: 'empty' },
    h('p', { class: 'empty-title' }, title),
    text ? h('p', {}, text) : null,
    actions.length > 0 ? h('div', { class: 'actions' }, actions) : null,
  );
}

export const skeleton = (lines = 6) =>
  h(
    'div',
    { class: 'skeleton', 'aria-hidden': 'true' },
    Array.from({ length: lines }, () => h('span', {})),
  );

/** A field with its label and its help or error below, both linked to the control. */
export function field(label, control, { help = null, error = null, className = '' } = {}) {
  if (!control.id) control.id = newId('field');
  const ids = [];
  const note = help ? h('p', { class: 'help', id: `${control.id}-help` }, help) : null;
  if (note) ids.push(note.id);
  if (error) {
    error.id = `${control.id}-error`;
    ids.push(error.id);
  }
  if (ids.length > 0) control.setAttribute('aria-describedby', ids.join(' '));
  return h('div', { class: `field ${className}` }, h('label', { for: control.id }, label), control, note, error);
}

export function select(options, value, properties = {}) {
  const element = h(
    'select',
    properties,
    options.map(([key, label]) => h('option', { value: key }, label)),
  );
  element.value = value;
  return element;
}

/** The head of a view: its name, what it is for, and its actions. */
export function pageHead(title, lead, actions = null) {
  return h('div', { class: 'page-head' }, h('div', {}, h('h1', {}, title), h('p', { class: 'lead' }, lead)), actions);
}
