// Lists: filtered by text, and in groups.

import { h } from './dom.js';

/** A function that runs once no call came for `delay` milliseconds. `cancel()` drops the call that waits. */
export function debounced(run, delay) {
  let timer = null;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), delay);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

/** Whether a text in lower case contains every term of the query. */
export function matcher(query) {
  const terms = query.toLowerCase().split(/\s+/).filter(Boolean);
  return (text) => terms.every((term) => text.includes(term));
}

/** The items by their key, as a `Map` of lists. */
export function groupBy(items, keyOf) {
  const groups = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (groups.has(key)) groups.get(key).push(item);
    else groups.set(key, [item]);
  }
  return groups;
}

/** A field that filters. `/` focuses it from anywhere. Returns `{ element, clear, destroy }`. */
export function searchField({ label, value = '', onInput, id }) {
  const search = debounced(() => onInput(input.value.trim()), 60);
  const input = h('input', {
    type: 'search',
    id,
    name: id,
    value,
    placeholder: label,
    'aria-label': label,
    'data-search': '',
    autocomplete: 'off',
    spellcheck: 'false',
    on: { input: search },
  });
  return {
    element: h('div', { class: 'search' }, input, h('kbd', { 'aria-hidden': 'true' }, '/')),
    clear() {
      search.cancel();
      input.value = '';
      onInput('');
    },
    // A view that is gone must not write into the address of the next one.
    destroy: search.cancel,
  };
}
