// Views by hash, so that a reload or a bookmark shows the same page with the same filter.

import { query } from './url.js';

/** The parts of the hash: `#/sources/cache?q=x` is `{ view: 'sources', name: 'cache', parameters }`. */
export function route() {
  const [location, search = ''] = window.location.hash.replace(/^#\/?/, '').split('?');
  const [view = '', ...rest] = location.split('/');
  let name = rest.join('/');
  try {
    name = decodeURIComponent(name);
  } catch {
    /* shown as it is */
  }
  return { view: view || 'overview', name, parameters: new URLSearchParams(search) };
}

export function link(view, name = '', parameters = {}) {
  const location = view === 'overview' ? '' : view;
  return `#/${location}${name ? `/${encodeURIComponent(name)}` : ''}${query(parameters)}`;
}

/** Changes parameters of the current page without showing it anew. */
export function remember(parameters) {
  const current = route();
  const merged = { ...Object.fromEntries(current.parameters), ...parameters };
  const target = link(current.view, current.name, merged);
  if (target !== window.location.hash) history.replaceState(null, '', target);
}

export const go = (target) => {
  window.location.hash = target;
};
