// Modal dialogs, results at the edge of the window, and what screen readers announce.

import { add, button, h, newId, SIGNS } from './dom.js';

const opened = new Set();

/**
 * Opens a modal dialog. The focus returns to the control that opened it, also if that was built anew meanwhile.
 *
 * `actions` receives `close` and returns the buttons. While `mayClose({ asks })` returns false, a key or button that
 * would close the dialog calls `onRefused` instead. `asks` is false when another view is shown. Returns
 * `{ content, footer, heading, close }`.
 */
export function openDialog({
  title,
  body,
  actions,
  size = '',
  id = null,
  mayClose = () => true,
  onRefused = () => {},
  onClose = () => {},
  onSubmit = null,
}) {
  const opener = document.activeElement;
  const titleId = newId('dialog-title');
  const heading = h('h2', { id: titleId, tabindex: '-1' }, title);
  const content = h('div', { class: 'dialog-body' }, body);
  const footer = h('div', { class: 'dialog-actions' });
  let isForced = false;
  let isAllowed = false;
  const close = ({ force = false, asks = true } = {}) => {
    isForced ||= force === true;
    isAllowed = isForced || mayClose({ asks });
    if (isAllowed) dialog.close();
    else onRefused();
  };
  const closeButton = button('Close', close, {
    kind: 'quiet',
    'data-action': 'close-dialog',
    'aria-label': 'Close the dialog',
  });
  const submit = (event) => {
    event.preventDefault();
    onSubmit?.();
  };
  const form = h(
    'form',
    { class: 'dialog-form', novalidate: true, on: { submit } },
    h('header', { class: 'dialog-head' }, heading, closeButton),
    content,
    footer,
  );
  const dialog = h('dialog', { class: `dialog ${size}`, id, 'aria-labelledby': titleId }, form);
  if (actions) add(footer, actions(close));
  dialog.addEventListener('cancel', (event) => {
    event.preventDefault();
    close();
  });
  dialog.addEventListener('close', () => {
    // Some browsers close a dialog at the second Esc, whatever `cancel` answers.
    if (!isAllowed && !mayClose({ asks: true })) {
      dialog.showModal();
      onRefused();
      return;
    }
    opened.delete(close);
    dialog.remove();
    onClose();
    if (!opener?.isConnected) focusAgain(opener);
  });
  document.body.append(dialog);
  dialog.showModal();
  opened.add(close);
  const first = content.querySelector('[autofocus], input:not([type=hidden]), textarea, select');
  (first ?? heading).focus();
  return { content, footer, heading, close };
}

/** Closes all dialogs, the front one first. One whose change is being applied stays, except by `force`. */
export function closeDialogs({ force = false } = {}) {
  for (const close of [...opened].reverse()) close({ force, asks: false });
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
    h('span', { class: 'notice-sign', 'aria-hidden': 'true' }, SIGNS[kind] ?? 'i'),
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
