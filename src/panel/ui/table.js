// Tables that sort and select, and that stay fast with many thousand rows: only the visible ones are in the document.

import { add, button, h, newId, replace } from './dom.js';
import { number } from './format.js';
import { select } from './widgets.js';

/** Rows that are kept above and below the window. */
const OVERSCAN = 12;

/** Shorter tables are complete in the document, so that the browser's own search finds everything. */
const MIN_VIRTUAL = 120;

const collator = new Intl.Collator('en', { numeric: true, sensitivity: 'base' });

function compare(a, b) {
  if (a === b) return 0;
  // Missing values come last in both directions, so they are compared by the caller.
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  if (typeof a === 'string' && typeof b === 'string' && a.length > 30 && a.length === b.length) return a < b ? -1 : 1;
  return collator.compare(String(a), String(b));
}

/**
 * A table. Each column has `key`, `label`, `cell(row)`, and optionally `sort(row)`, `className` and `hiddenLabel`.
 *
 * `selectable(row)` permits a checkbox, which `rowLabel(row)` names.
 *
 * `update(rows)` shows other rows: a row whose data is unchanged keeps its elements, and with them the focus.
 */
export function dataTable({
  id,
  label,
  columns,
  rowKey,
  rowClass = () => '',
  sort = null,
  onSort = () => {},
  selectable = null,
  rowLabel = rowKey,
  onSelect = () => {},
  empty = null,
}) {
  const state = { rows: [], sorted: [], sort, selected: new Set(), rowHeight: 0 };
  const nodes = new Map();
  const above = h(
    'tr',
    { class: 'spacer', 'aria-hidden': 'true', role: 'presentation' },
    h('td', { colspan: columns.length + (selectable ? 1 : 0), role: 'presentation' }),
  );
  const below = above.cloneNode(true);
  const body = h('tbody', { role: 'rowgroup' });
  const headers = new Map();

  const sortBy = (key) => {
    const isSame = state.sort?.key === key;
    state.sort = { key, dir: isSame && state.sort.dir === 'asc' ? 'desc' : 'asc' };
    onSort(state.sort);
    resort();
  };

  const headCells = columns.map((column) => {
    const cell = h(
      'th',
      { scope: 'col', role: 'columnheader', class: column.className },
      column.sort
        ? h(
            'button',
            { type: 'button', class: 'sort', 'data-sort': column.key, on: { click: () => sortBy(column.key) } },
            column.label,
            h('span', { class: 'sort-sign', 'aria-hidden': 'true' }),
          )
        : h('span', { class: column.hiddenLabel ? 'visually-hidden' : null }, column.label),
    );
    headers.set(column.key, cell);
    return cell;
  });

  const all = selectable
    ? h('input', {
        type: 'checkbox',
        'aria-label': 'Select all rows that are shown',
        'data-action': 'select-all',
        on: {
          change: () => {
            for (const row of state.sorted) {
              if (!selectable(row)) continue;
              if (all.checked) state.selected.add(rowKey(row));
              else state.selected.delete(rowKey(row));
            }
            selectionChanged();
          },
        },
      })
    : null;
  if (all) headCells.unshift(h('th', { scope: 'col', role: 'columnheader', class: 'c-select' }, all));

  const table = h(
    'table',
    { id, role: 'table', 'aria-label': label, class: 'data-table' },
    h('thead', { role: 'rowgroup' }, h('tr', { role: 'row', 'aria-rowindex': '1' }, headCells)),
    body,
  );
  const nothing = h('div', { class: 'table-empty', hidden: true });
  const sortable = columns.filter((column) => column.sort);
  const order =
    sortable.length > 0
      ? select(
          [
            ...(sort ? [] : [['', 'As listed']]),
            ...sortable.flatMap((column) => [
              [`${column.key}:asc`, `${column.label}, ascending`],
              [`${column.key}:desc`, `${column.label}, descending`],
            ]),
          ],
          sort ? `${sort.key}:${sort.dir}` : '',
          {
            id: newId('order'),
            on: {
              change: () => {
                const [key, dir] = order.value.split(':');
                state.sort = key ? { key, dir } : null;
                onSort(state.sort);
                resort();
              },
            },
          },
        )
      : null;
  // Cards on a narrow screen have no header to sort by.
  const orderField = order ? h('div', { class: 'narrow-sort' }, h('label', { for: order.id }, 'Sort by'), order) : null;
  const element = h('div', { class: 'table-wrap' }, orderField, table, nothing);

  function selectionChanged() {
    const selectableRows = state.sorted.filter((row) => selectable(row));
    const chosen = selectableRows.filter((row) => state.selected.has(rowKey(row))).length;
    all.checked = chosen > 0 && chosen === selectableRows.length;
    all.indeterminate = chosen > 0 && chosen < selectableRows.length;
    all.disabled = selectableRows.length === 0;
    for (const [key, { row }] of nodes) {
      const box = row.querySelector('input[data-row-select]');
      if (box) box.checked = state.selected.has(key);
      row.classList.toggle('selected', state.selected.has(key));
    }
    onSelect(state.rows.filter((row) => state.selected.has(rowKey(row))));
  }

  function resort() {
    for (const [key, cell] of headers) {
      if (state.sort?.key === key) {
        cell.setAttribute('aria-sort', state.sort.dir === 'asc' ? 'ascending' : 'descending');
      } else cell.removeAttribute('aria-sort');
    }
    if (order && state.sort) order.value = `${state.sort.key}:${state.sort.dir}`;
    const column = columns.find((each) => each.key === state.sort?.key);
    if (column?.sort) {
      const sign = state.sort.dir === 'desc' ? -1 : 1;
      const keyed = state.rows.map((row, index) => ({ row, index, value: column.sort(row) }));
      const isMissing = (value) => value === null || value === undefined || value === '';
      keyed.sort((a, b) => {
        if (isMissing(a.value) !== isMissing(b.value)) return isMissing(a.value) ? 1 : -1;
        return (isMissing(a.value) ? 0 : compare(a.value, b.value)) * sign || a.index - b.index;
      });
      state.sorted = keyed.map(({ row }) => row);
    } else {
      state.sorted = state.rows;
    }
    if (all) selectionChanged();
    draw();
  }

  function build(row, index) {
    const key = rowKey(row);
    const cells = columns.map((column) =>
      h(
        'td',
        { role: 'cell', class: column.className, 'data-label': column.label },
        h('div', { class: 'cell' }, column.cell(row)),
      ),
    );
    if (all) {
      const box = selectable(row)
        ? h('input', {
            type: 'checkbox',
            'data-row-select': '',
            'data-focus': 'select',
            'aria-label': `Select ${rowLabel(row)}`,
            checked: state.selected.has(key),
            on: {
              change: (event) => {
                if (event.target.checked) state.selected.add(key);
                else state.selected.delete(key);
                selectionChanged();
              },
            },
          })
        : null;
      cells.unshift(h('td', { role: 'cell', class: 'c-select' }, box));
    }
    return h(
      'tr',
      {
        role: 'row',
        class: `${rowClass(row)} ${state.selected.has(key) ? 'selected' : ''}`.trim() || null,
        'aria-rowindex': index + 2,
        'data-key': key,
      },
      cells,
    );
  }

  function draw() {
    const total = state.sorted.length;
    nothing.hidden = total > 0;
    table.hidden = total === 0;
    if (orderField) orderField.hidden = total < 2;
    if (total === 0) {
      nodes.clear();
      replace(body);
      replace(nothing, typeof empty === 'function' ? empty() : empty);
      return;
    }
    table.setAttribute('aria-rowcount', total + 1);
    const isVirtual = total > MIN_VIRTUAL;
    table.classList.toggle('virtual', isVirtual);
    let first = 0;
    let last = total;
    if (isVirtual) {
      if (state.rowHeight === 0) state.rowHeight = measure();
      const top = table.tBodies[0].getBoundingClientRect().top;
      first = Math.max(0, Math.floor(-top / state.rowHeight) - OVERSCAN);
      last = Math.min(total, Math.ceil((window.innerHeight - top) / state.rowHeight) + OVERSCAN);
      first = Math.max(0, Math.min(first, total - 1));
      last = Math.max(last, Math.min(total, first + OVERSCAN));
    }
    const wanted = new Set();
    const elements = [];
    const active = body.contains(document.activeElement) ? document.activeElement : null;
    const activeRow = active?.closest('tr')?.dataset.key;
    for (let index = first; index < last; index += 1) {
      const row = state.sorted[index];
      const key = String(rowKey(row));
      const signature = JSON.stringify(row);
      let known = nodes.get(key);
      if (!known || known.signature !== signature) {
        known = { row: build(row, index), signature };
        nodes.set(key, known);
      }
      known.row.setAttribute('aria-rowindex', index + 2);
      wanted.add(key);
      elements.push(known.row);
    }
    for (const key of nodes.keys()) if (!wanted.has(key)) nodes.delete(key);
    if (isVirtual) {
      above.firstElementChild.style.height = `${first * state.rowHeight}px`;
      below.firstElementChild.style.height = `${(total - last) * state.rowHeight}px`;
      above.hidden = first === 0;
      below.hidden = last === total;
      elements.unshift(above);
      elements.push(below);
    }
    settle(elements);
    if (active && !active.isConnected && activeRow) {
      const name = active.dataset.focus ?? active.dataset.action;
      nodes
        .get(activeRow)
        ?.row.querySelector(name ? `[data-focus="${CSS.escape(name)}"], [data-action="${CSS.escape(name)}"]` : 'button')
        ?.focus({ preventScroll: true });
    }
  }

  // Only moves what differs: an element that is moved loses the focus.
  function settle(elements) {
    const keep = new Set(elements);
    for (const child of [...body.children]) if (!keep.has(child)) child.remove();
    let place = body.firstElementChild;
    for (const element of elements) {
      if (element === place) place = place.nextElementSibling;
      else body.insertBefore(element, place);
    }
  }

  function measure() {
    const probe = build(state.sorted[0], 0);
    body.append(probe);
    const height = probe.getBoundingClientRect().height;
    probe.remove();
    return height || 44;
  }

  let isScheduled = false;
  const schedule = () => {
    if (isScheduled) return;
    isScheduled = true;
    requestAnimationFrame(() => {
      isScheduled = false;
      if (table.isConnected && table.classList.contains('virtual')) draw();
    });
  };
  const onResize = () => {
    state.rowHeight = 0;
    schedule();
  };
  window.addEventListener('scroll', schedule, { passive: true });
  window.addEventListener('resize', onResize);

  return {
    element,
    table,
    update(rows) {
      state.rows = rows;
      const keys = new Set(rows.map(rowKey));
      for (const key of state.selected) if (!keys.has(key)) state.selected.delete(key);
      resort();
    },
    destroy() {
      window.removeEventListener('scroll', schedule);
      window.removeEventListener('resize', onResize);
    },
  };
}

/** `12 of 10,000 sources`, in a place of its own so that nothing moves. */
export function counter() {
  const element = h('p', { class: 'counter', role: 'status' });
  return {
    element,
    show(shown, total, noun, plural = `${noun}s`) {
      const words = total === 1 ? noun : plural;
      const text = shown === total ? `${number(total)} ${words}` : `${number(shown)} of ${number(total)} ${words}`;
      if (element.textContent !== text) element.textContent = text;
    },
  };
}

export function pager({ onPage }) {
  const text = h('span', { class: 'pager-text', role: 'status' });
  let page = 0;
  const back = button('Previous', () => onPage(page - 1), { 'data-action': 'previous-page' });
  const next = button('Next', () => onPage(page + 1), { 'data-action': 'next-page' });
  const element = h('nav', { class: 'pager', 'aria-label': 'Pages', hidden: true });
  add(element, [back, text, next]);
  return {
    element,
    hide() {
      element.hidden = true;
    },
    show(current, size, total) {
      page = current;
      const pages = Math.max(1, Math.ceil(total / size));
      element.hidden = pages <= 1;
      back.disabled = page === 0;
      next.disabled = page >= pages - 1;
      text.textContent = `Page ${number(page + 1)} of ${number(pages)}`;
    },
  };
}
