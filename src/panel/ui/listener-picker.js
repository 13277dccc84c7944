// The choice of a listener, which all views share.

import { h, markReady } from './dom.js';
import { go, link } from './router.js';
import { listeners } from './state.js';
import { emptyState, field, select } from './widgets.js';

/** A choice that opens the same view for another listener. `others` are offered after the listeners. */
export function listenerPicker(view, name, others = []) {
  const names = [...listeners().map((each) => each.name), ...others];
  if (name && !names.includes(name)) names.unshift(name);
  const choice = select(
    names.map((each) => [each, each]),
    name,
    { id: 'listener', name: 'listener', on: { change: () => go(link(view, choice.value)) } },
  );
  return field('Listener', choice);
}

/** A filter by listener, with all of them as a choice. */
export function listenerFilter(value, onChange) {
  const names = listeners().map((each) => each.name);
  if (value && !names.includes(value)) names.push(value);
  const choice = select([['', 'All listeners'], ...names.map((each) => [each, each])], value ?? '', {
    id: 'listener',
    name: 'listener',
    on: { change: () => onChange(choice.value) },
  });
  return field('Listener', choice);
}

/**
 * The listener of a view: the one in the address, else the first that suits it, else the first. Without
 * any, it says what to do and returns `null`.
 */
export function chosenListener(page, view, name, isSuitable = () => true) {
  const first = (listeners().find(isSuitable) ?? listeners()[0])?.name;
  if (name) return name;
  if (first) {
    history.replaceState(null, '', link(view, first));
    return first;
  }
  page.append(
    h('h1', {}, 'No listener'),
    emptyState(
      'No listener is configured',
      'Add a [[listener]] to the configuration, then reload.',
      h('a', { class: 'button', href: link('reload') }, 'Open Reload'),
    ),
  );
  markReady(page);
  return null;
}
