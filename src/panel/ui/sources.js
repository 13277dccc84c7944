// The trusted sources of a listener or a source group.

import { contains, isLoopback, parseNetwork, sortKey } from './address.js';
import { poll } from './api.js';
import { add, button, h, markReady, replace } from './dom.js';
import { matcher, searchField } from './filter.js';
import { count, SECOND } from './format.js';
import { chosenListener, listenerPicker } from './listener-picker.js';
import { link, remember } from './router.js';
import { addDialog, editDialog, loadSources, removeDialog, undoDialog } from './source-changes.js';
import { originOf, showDetails, stateOf } from './source-facts.js';
import { isEditable, sourceOf } from './source-rules.js';
import { can, isGroup, sourceGroups, state } from './state.js';
import { counter, dataTable } from './table.js';
import { emptyState, errorNotice, notice, pageHead, skeleton, time, untrusted } from './widgets.js';

export function sourcesView(page, { name, parameters }) {
  const listener = chosenListener(page, 'sources', name);
  if (!listener) return {};
  const mayChange = can('operator');
  let rules = null;
  let etag = null;
  let query = parameters.get('q') ?? '';
  const [sortKeyName, sortDir] = (parameters.get('sort') ?? '').split(':');
  let selected = [];
  const haystacks = new WeakMap();

  const message = h('div', { 'aria-live': 'polite' });
  const found = counter();
  const undo = h('span', {});
  const removeSelected = button('Remove selected', () => removeDialog({ ...seen(), rules: selected }), {
    kind: 'small',
    id: 'remove-selected',
    disabled: true,
  });
  const table = dataTable({
    id: 'sources-table',
    label: `Trusted sources of ${listener}`,
    rowKey: (rule) => rule.uuid,
    rowClass: (rule) => (rule.state === 'expired' ? 'faded' : ''),
    sort: sortKeyName ? { key: sortKeyName, dir: sortDir || 'asc' } : null,
    onSort: (sort) => remember({ sort: sort ? `${sort.key}:${sort.dir}` : '' }),
    selectable: mayChange ? isEditable : null,
    rowLabel: sourceOf,
    onSelect: (chosen) => {
      selected = chosen;
      removeSelected.disabled = chosen.length === 0;
      removeSelected.textContent =
        chosen.length === 0 ? 'Remove selected' : `Remove ${count(chosen.length, 'selected rule')}`;
    },
    columns: [
      {
        key: 'type',
        label: 'Type',
        className: 'c-type',
        cell: (rule) => h('span', { class: 'muted' }, rule.type),
        sort: (rule) => rule.type,
      },
      {
        key: 'value',
        label: 'Value',
        className: 'c-main',
        cell: (rule) => h('span', { class: 'mono untrusted' }, untrusted(rule.value, { label: 'value' })),
        sort: (rule) => sortKey(rule.value),
      },
      {
        key: 'description',
        label: 'Description',
        className: 'c-wide',
        cell: (rule) => untrusted(rule.description, { label: 'description' }),
        sort: (rule) => rule.description,
      },
      {
        key: 'expires',
        label: 'Expires',
        className: 'c-time',
        cell: (rule) => time(rule.expires_at),
        sort: (rule) => rule.expires_at,
      },
      {
        key: 'origin',
        label: 'Origin',
        className: 'c-origin',
        cell: (rule) => h('span', { title: originOf(rule) }, rule.origin),
        sort: (rule) => rule.origin,
      },
      {
        key: 'sessions',
        label: 'Sessions',
        className: 'c-num',
        cell: (rule) => String(rule.sessions),
        sort: (rule) => rule.sessions,
      },
      {
        key: 'used',
        label: 'Last use',
        className: 'c-time',
        cell: (rule) => time(rule.last_used, { empty: 'not yet' }),
        sort: (rule) => rule.last_used,
      },
      { key: 'state', label: 'State', className: 'c-state', cell: stateOf, sort: (rule) => rule.state },
      {
        key: 'actions',
        label: 'Actions',
        hiddenLabel: true,
        className: 'c-actions',
        cell: (rule) =>
          mayChange && isEditable(rule)
            ? [
                button('Edit', () => editDialog({ ...seen(), rule }), {
                  kind: 'small',
                  'data-action': 'edit',
                  'aria-label': `Edit ${rule.type}:${rule.value}`,
                }),
                button('Remove', () => removeDialog({ ...seen(), rules: [rule] }), {
                  kind: 'small',
                  'data-action': 'remove',
                  'aria-label': `Remove ${rule.type}:${rule.value}`,
                }),
              ]
            : button('Details', () => showDetails(listener, rule), {
                kind: 'small',
                'data-action': 'details',
                'aria-label': `Details of ${rule.type}:${rule.value}`,
              }),
      },
    ],
    empty: () =>
      query !== ''
        ? emptyState(
            'No source matches',
            'The search looks at type, value, description, origin and state.',
            button('Clear the search', search.clear),
          )
        : emptyState(
            'No trusted source',
            isGroup(listener)
              ? 'The group admits no client. Add the first source, or look at who was denied.'
              : 'No client can connect to this listener. Add the first source, or look at who was denied.',
            mayChange ? button('Add sources', () => openAdd(), { kind: 'primary', id: 'add-first' }) : null,
            h('a', { class: 'button', href: link('denials', '', isGroup(listener) ? {} : { listener }) }, 'Show denials'),
          ),
  });

  const search = searchField({
    id: 'search-sources',
    label: 'Search sources',
    value: query,
    onInput: (text) => {
      query = text;
      remember({ q: text });
      filter();
    },
  });
  const actions = mayChange
    ? h(
        'div',
        { class: 'actions push' },
        undo,
        state.status?.your_address
          ? button(
              'Allow my address',
              () =>
                openAdd({
                  text: state.status.your_address,
                  description: `my address (${state.session.name})`,
                  expiry: '8h',
                  intro: hiddenAddressNotice(state.status.your_address),
                }),
              { id: 'allow-my-address', title: state.status.your_address },
            )
          : null,
        button('Add sources', () => openAdd(), { kind: 'primary', id: 'add-sources' }),
      )
    : null;
  add(page, [
    pageHead('Trusted sources', 'Only these sources can connect. Every other client is closed before a byte is read.'),
    h('div', { class: 'toolbar' }, listenerPicker('sources', listener, sourceGroups()), search.element, actions),
    message,
    h('div', { class: 'bar' }, found.element, mayChange ? removeSelected : null),
    table.element,
  ]);
  replace(table.element.lastElementChild, skeleton(8));
  table.table.hidden = true;
  table.element.lastElementChild.hidden = false;

  function haystack(rule) {
    let text = haystacks.get(rule);
    if (text === undefined) {
      text = `${rule.type}:${rule.value} ${rule.description ?? ''} ${rule.origin} ${rule.state}`.toLowerCase();
      haystacks.set(rule, text);
    }
    return text;
  }

  function filter() {
    if (!rules) return;
    const hasTerms = matcher(query);
    const address = /[.:]/.test(query) ? parseNetwork(query) : null;
    const isMatch = (rule) =>
      hasTerms(haystack(rule)) ||
      // An address also finds the network that contains it.
      (address !== null && networkOf(rule) !== null && contains(networkOf(rule), address));
    const shown = query === '' ? rules : rules.filter(isMatch);
    table.update(shown);
    found.show(shown.length, rules.length, 'source');
  }

  const networks = new WeakMap();
  function networkOf(rule) {
    if (!networks.has(rule)) networks.set(rule, rule.type === 'ip_addr' ? parseNetwork(rule.value) : null);
    return networks.get(rule);
  }

  const seen = () => ({ listener, context: rules ? { rules, etag } : null });
  const openAdd = (preset = {}) => addDialog({ ...seen(), ...preset });

  /** Offers to restore the rules of the file as they were before the last change. */
  function showUndo() {
    const { undo: last } = state;
    const isOffered = last?.listener === listener && last.etag === etag;
    if (last?.listener === listener && !isOffered && etag) state.undo = null;
    const shown = undo.firstElementChild;
    if (isOffered && !shown) replace(undo, button('Undo the last change', undoDialog, { id: 'undo' }));
    if (!isOffered && shown) replace(undo);
  }

  // A long list is long to send; it is read again after each change anyway.
  const interval = () => ((rules?.length ?? 0) > 500 ? 60 * SECOND : 10 * SECOND);
  const sourcesPoll = poll((options) => loadSources(listener, options), interval, {
    onData: (list) => {
      ({ rules, etag } = list);
      replace(message);
      filter();
      showUndo();
      markReady(page);
    },
    onError: (error, { isFirst }) => {
      if (!isFirst || error.status === 401) return;
      replace(message, errorNotice(error));
      table.element.lastElementChild.hidden = true;
    },
  });
  return {
    destroy() {
      sourcesPoll.stop();
      search.destroy();
      table.destroy();
    },
  };
}

/** A proxy or tunnel on the machine of the program connects from loopback, for everybody who uses it. */
function hiddenAddressNotice(address) {
  const host = window.location.hostname.replace(/^\[|\]$/g, '');
  if (!isLoopback(address) || host === 'localhost' || host.endsWith('.localhost') || isLoopback(host)) return null;
  const text = 'A proxy or tunnel hides your address. Enter the address from which your client connects instead.';
  return notice('warn', h('p', {}, h('strong', {}, `The program sees you at ${address}. `), text));
}
