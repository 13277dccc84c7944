// Keyboard shortcuts.

import { openDialog } from './dialogs.js';
import { button, h, isHTMLInput, replace } from './dom.js';
import { SECOND } from './format.js';
import { go, link } from './router.js';

/** How long a letter may come after `g`. */
const PATIENCE = 5 * SECOND;

const MODIFIERS = ['Shift', 'Control', 'Alt', 'Meta', 'AltGraph', 'CapsLock'];

/**
 * Listens for the shortcuts: `g` and the letter of a view, `/` for the search of `main`, `?` for the list of shortcuts.
 *
 * `views()` are those that the person may open.
 */
export function startKeys({ views, main, isActive }) {
  const hint = h('div', { class: 'key-hint', id: 'key-hint', role: 'status', hidden: true });
  document.body.append(hint);
  let timer = null;

  const isWaiting = () => timer !== null;

  function waitForLetter() {
    timer = setTimeout(stopWaiting, PATIENCE);
    hint.hidden = false;
    replace(
      hint,
      h('span', {}, 'Go to'),
      views().map((view) => h('span', { class: 'key-hint-view' }, h('kbd', {}, view.key), ` ${view.label}`)),
    );
  }

  function stopWaiting() {
    clearTimeout(timer);
    timer = null;
    hint.hidden = true;
  }

  document.addEventListener('pointerdown', stopWaiting, { passive: true });
  document.addEventListener('keydown', (event) => {
    if (MODIFIERS.includes(event.key)) return;
    const wasWaiting = isWaiting();
    stopWaiting();
    if (event.ctrlKey || event.metaKey || event.altKey || !isActive()) return;
    if (event.key === 'Escape' && event.target.matches?.('[data-search]') && event.target.value === '') {
      event.target.blur();
      return;
    }
    if (isHTMLInput(event.target) || document.querySelector('dialog[open]')) return;
    if (wasWaiting) {
      const view = views().find((each) => each.key === event.key.toLowerCase());
      if (!view) return;
      event.preventDefault();
      go(link(view.name));
    } else if (event.key === 'g') {
      waitForLetter();
    } else if (event.key === '/') {
      const search = main.querySelector('[data-search]');
      if (!search) return;
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === '?') {
      event.preventDefault();
      showShortcuts(views());
    }
  });
}

/** Shows the list of shortcuts. */
export function showShortcuts(views) {
  const key = (...keys) => keys.map((each) => h('kbd', {}, each));
  openDialog({
    title: 'Keyboard shortcuts',
    id: 'shortcuts-dialog',
    body: h(
      'dl',
      { class: 'shortcuts' },
      h('dt', {}, key('/')),
      h('dd', {}, 'Focus the search'),
      h('dt', {}, key('?')),
      h('dd', {}, 'Show the shortcuts'),
      h('dt', {}, key('Esc')),
      h('dd', {}, 'Close the dialog'),
      views.map((view) => [h('dt', {}, key('g', view.key)), h('dd', {}, view.label)]),
    ),
    actions: (close) => [button('Done', close, { kind: 'primary' })],
  });
}
