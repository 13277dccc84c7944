// Builds elements. Text only ever becomes a text node, so a name that a client chose is never markup.

import { fullTime, relative, dateTime, shortFingerprint } from './format.js';

const SVG = 'http://www.w3.org/2000/svg';

function fill(element, properties, children) {
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === 'on') {
      for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    } else if (key === 'value' || key === 'checked' || key === 'selected' || key === 'indeterminate') {
      element[key] = value;
    } else {
      element.setAttribute(key === 'className' ? 'class' : key, value === true ? '' : String(value));
    }
  }
  add(element, children);
  return element;
}

export function add(element, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === '') continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);
export const svg = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

export function replace(element, ...children) {
  element.replaceChildren();
  return add(element, children);
}

let lastId = 0;
export const newId = (prefix) => `${prefix}-${(lastId += 1)}`;

// Text that others choose ---------------------------------------------------------------------------------------------

// Control characters, characters that change the direction of text, and characters without a glyph.
const HIDDEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\u{e0000}-\u{e0fff}]/gu;

const escapeOne = (character) => {
  if (character === '\n') return '\\n';
  if (character === '\t') return '\\t';
  return `\\u{${character.codePointAt(0).toString(16)}}`;
};

/** The text with hidden characters in a visible form. */
export const visible = (text) => String(text ?? '').replace(HIDDEN, escapeOne);

// A title is for a glance; the dialog has all of it.
const MAX_TITLE = 300;
const LONG = 40;

/**
 * A name or text that a client, a certificate or a colleague chose: isolated from the direction of the text around it, in
 * one line, with the full text reachable.
 */
export function untrusted(text, { empty = '–', label = 'text', wrap = false } = {}) {
  if (text === null || text === undefined || text === '') return h('span', { class: 'muted' }, empty);
  const value = String(text);
  const shown = visible(value);
  const parts = [];
  let from = 0;
  for (const match of value.slice(0, wrap ? undefined : 2000).matchAll(HIDDEN)) {
    parts.push(value.slice(from, match.index));
    parts.push(h('span', { class: 'escaped' }, escapeOne(match[0])));
    from = match.index + match[0].length;
  }
  parts.push(value.slice(from, wrap ? undefined : 2000));
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

// Small parts ---------------------------------------------------------------------------------------------------------

export function button(label, onClick, { kind = '', ...properties } = {}) {
  return h('button', { type: 'button', class: `button ${kind}`.trim(), on: { click: onClick }, ...properties }, label);
}

const ICONS = { good: '✓', warn: '!', bad: '✕', info: 'i', idle: '○' };

/** A state as words with a sign and a colour, so that the colour is never alone. */
export function pill(kind, text, properties = {}) {
  return h(
    'span',
    { class: `pill ${kind}`, ...properties },
    h('span', { class: 'pill-sign', 'aria-hidden': 'true' }, ICONS[kind] ?? '•'),
    h('span', {}, text),
  );
}

export function notice(kind, ...children) {
  return h(
    'div',
    { class: `notice ${kind}`, role: kind === 'bad' ? 'alert' : null },
    h('span', { class: 'notice-sign', 'aria-hidden': 'true' }, ICONS[kind] ?? 'i'),
    h('div', { class: 'notice-body' }, children),
  );
}

/** A time relative to now. It is kept up to date, and shows the local time and UTC on hover. */
export function time(text, { empty = 'never', mode = 'relative' } = {}) {
  if (!text) return h('span', { class: 'muted' }, empty);
  const shown = mode === 'relative' ? relative(text) : dateTime(text);
  return h('time', { datetime: text, title: fullTime(text), 'data-relative': mode === 'relative' }, shown);
}

setInterval(() => {
  if (document.hidden) return;
  const now = Date.now();
  for (const element of document.querySelectorAll('time[data-relative]')) {
    const shown = relative(element.dateTime, now);
    if (element.textContent !== shown) element.textContent = shown;
  }
}, 5000);

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

// Dialogs, results ----------------------------------------------------------------------------------------------------

/**
 * Opens a modal dialog. The focus returns to the control that opened it, also if that was built anew meanwhile.
 *
 * `actions` receives `close` and returns the buttons.
 */
export function openDialog({ title, body, actions, size = '', id = null, onClose = () => {}, onSubmit = null }) {
  const opener = document.activeElement;
  const titleId = newId('dialog-title');
  const heading = h('h2', { id: titleId, tabindex: '-1' }, title);
  const content = h('div', { class: 'dialog-body' }, body);
  const footer = h('div', { class: 'dialog-actions' });
  const form = h(
    'form',
    {
      class: 'dialog-form',
      novalidate: true,
      on: {
        submit: (event) => {
          event.preventDefault();
          onSubmit?.();
        },
      },
    },
    h(
      'header',
      { class: 'dialog-head' },
      heading,
      button('Close', () => dialog.close(), {
        kind: 'quiet',
        'data-action': 'close-dialog',
        'aria-label': 'Close the dialog',
      }),
    ),
    content,
    footer,
  );
  const dialog = h('dialog', { class: `dialog ${size}`, id, 'aria-labelledby': titleId }, form);
  const close = () => dialog.close();
  if (actions) add(footer, actions(close));
  dialog.addEventListener('close', () => {
    dialog.remove();
    onClose();
    if (!opener?.isConnected) focusAgain(opener);
  });
  document.body.append(dialog);
  dialog.showModal();
  const first = content.querySelector('[autofocus], input:not([type=hidden]), textarea, select');
  (first ?? heading).focus();
  return { dialog, content, footer, heading, close };
}

function focusAgain(element) {
  const name = element?.id ? `#${CSS.escape(element.id)}` : null;
  const found = name ? document.querySelector(name) : null;
  (found ?? document.getElementById('main'))?.focus({ preventScroll: true });
}

const live = h('p', { class: 'visually-hidden', 'aria-live': 'polite', id: 'announcer' });
document.body.append(live);

/** Announces to screen readers what is visible elsewhere. */
export function announce(text) {
  // A modal dialog makes the rest of the page silent.
  const host = [...document.querySelectorAll('dialog[open]')].at(-1) ?? document.body;
  if (live.parentElement !== host) host.append(live);
  live.textContent = '';
  setTimeout(() => {
    live.textContent = text;
  }, 50);
}

/** A result at the edge of the window. One with an action stays until it is used or closed. */
export function toast(kind, text, { action = null } = {}) {
  const box = document.getElementById('toasts');
  const remove = () => {
    element.remove();
    if (box.childElementCount === 0 && box.matches(':popover-open')) box.hidePopover();
  };
  // Only the last change can be undone.
  if (action) box.querySelector(`[data-action="${action.name}"]`)?.closest('.toast').remove();
  const element = h(
    'div',
    { class: `toast ${kind}` },
    h('span', { class: 'notice-sign', 'aria-hidden': 'true' }, ICONS[kind] ?? 'i'),
    h('p', {}, text),
    action
      ? button(
          action.label,
          () => {
            remove();
            action.run();
          },
          { kind: 'small', 'data-action': action.name },
        )
      : null,
    button('✕', remove, { kind: 'quiet tiny', 'aria-label': 'Dismiss' }),
  );
  box.append(element);
  while (box.childElementCount > 3) box.firstElementChild.remove();
  // Shown anew, it lies above a dialog that was opened meanwhile.
  if (box.matches(':popover-open')) box.hidePopover();
  box.showPopover();
  announce(text);
  setTimeout(remove, action ? 30_000 : 6_000);
}

export const isHTMLInput = (element) =>
  element instanceof HTMLElement && (element.matches('input, textarea, select') || element.isContentEditable);
