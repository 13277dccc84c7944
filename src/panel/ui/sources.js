// The trusted sources of a listener.

import { bus, get, path, poll, send } from './api.js';
import { contains, isEverything, parseNetwork, sizeOf, sortKey } from './address.js';
import { changeDialog, curl, expiryField, FieldError, planSummary, ruleLine, sessionsEnded } from './changes.js';
import {
  add,
  button,
  emptyState,
  errorNotice,
  facts,
  field,
  h,
  newId,
  notice,
  openDialog,
  pill,
  replace,
  skeleton,
  time,
  toast,
  untrusted,
} from './dom.js';
import { count, relative, SECOND, shellJoin, shellQuote, ttlUntil } from './format.js';
import { chosenListener, listenerPicker } from './listener-picker.js';
import { link, remember, route } from './router.js';
import { can, state } from './state.js';
import { counter, dataTable, searchField } from './table.js';

const STATES = {
  resolved: ['good', 'resolved'],
  expired: ['idle', 'expired'],
  unresolved: ['bad', 'unresolved'],
  stale: ['warn', 'stale'],
};

/** How many mistakes are searched for in one text. Each needs a request, because the API names the first one. */
const MAX_LINE_ERRORS = 8;

export function sourcesView(page, { name, parameters }) {
  const listener = chosenListener(page, 'sources', name);
  if (!listener) return {};
  const mayChange = can('operator');
  let rules = null;
  let etag = null;
  let query = parameters.get('q') ?? '';
  const [sortKeyName, sortDir] = (parameters.get('sort') ?? '').split(':');
  let selected = [];
  const target = path`/v1/listeners/${listener}/sources`;
  const haystacks = new WeakMap();

  const message = h('div', { 'aria-live': 'polite' });
  const found = counter();
  const undo = h('span', {});
  const removeSelected = button('Remove selected', () => removeRules(selected), {
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
    selectable: mayChange ? (rule) => rule.origin !== 'config' : null,
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
        cell: (rule) => h('span', { title: ORIGINS[rule.origin] }, rule.origin),
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
          mayChange && rule.origin !== 'config'
            ? [
                button('Edit', () => edit(rule), {
                  kind: 'small',
                  'data-action': 'edit',
                  'aria-label': `Edit ${rule.type}:${rule.value}`,
                }),
                button('Remove', () => removeRules([rule]), {
                  kind: 'small',
                  'data-action': 'remove',
                  'aria-label': `Remove ${rule.type}:${rule.value}`,
                }),
              ]
            : button('Details', () => details(rule), {
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
            button('Clear the search', () => {
              query = '';
              page.querySelector('[data-search]').value = '';
              remember({ q: '' });
              filter();
            }),
          )
        : emptyState(
            'No trusted source',
            'No client can connect to this listener. Add the first source, or look at who was denied.',
            mayChange ? button('Add sources', () => openAdd(), { kind: 'primary', id: 'add-first' }) : null,
            h('a', { class: 'button', href: link('denials', '', { listener }) }, 'Show denials'),
          ),
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
                }),
              { id: 'allow-my-address', title: state.status.your_address },
            )
          : null,
        button('Add sources', () => openAdd(), { kind: 'primary', id: 'add-sources' }),
      )
    : null;
  add(page, [
    h(
      'div',
      { class: 'page-head' },
      h(
        'div',
        {},
        h('h1', {}, 'Trusted sources'),
        h(
          'p',
          { class: 'lead' },
          'Only these sources can connect. Every other client is closed before a byte is read.',
        ),
      ),
    ),
    h(
      'div',
      { class: 'toolbar' },
      listenerPicker('sources', listener),
      searchField({
        id: 'search-sources',
        label: 'Search sources',
        value: query,
        onInput: (text) => {
          query = text;
          remember({ q: text });
          filter();
        },
      }),
      actions,
    ),
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
    const terms = query.toLowerCase().split(/\s+/).filter(Boolean);
    const address = /[.:]/.test(query) ? parseNetwork(query) : null;
    const isMatch = (rule) =>
      terms.every((term) => haystack(rule).includes(term)) ||
      // An address also finds the network that contains it.
      (address !== null && networkOf(rule) !== null && contains(networkOf(rule), address));
    const shown = terms.length === 0 ? rules : rules.filter(isMatch);
    table.update(shown);
    found.show(shown.length, rules.length, 'source');
  }

  const networks = new WeakMap();
  function networkOf(rule) {
    if (!networks.has(rule)) networks.set(rule, rule.type === 'ip_addr' ? parseNetwork(rule.value) : null);
    return networks.get(rule);
  }

  async function load(options) {
    const answer = await send('GET', target, options);
    return { rules: answer.data.rules, etag: answer.etag };
  }

  function take(list) {
    ({ rules, etag } = list);
    replace(message);
    filter();
    showUndo();
  }

  // A long list is long to send; it is read again after each change anyway.
  const sourcesPoll = poll(load, () => ((rules?.length ?? 0) > 500 ? 60 * SECOND : 10 * SECOND), {
    onData: take,
    onError: (error, { isFirst }) => {
      if (!isFirst || error.status === 401) return;
      replace(message, errorNotice(error));
      table.element.lastElementChild.hidden = true;
    },
  });

  const seen = () => (rules ? { rules, etag } : null);
  const reread = async () => {
    const list = await load({});
    take(list);
    return list;
  };

  // Changes -----------------------------------------------------------------------------------------------------------

  const common = { load: reread, show: (parts) => showSourcesPlan(listener, parts), done };

  function openAdd(preset = {}) {
    addDialog({ listener, target, ...preset, common: { ...common, context: seen() } });
  }

  function edit(rule) {
    const value = h('input', {
      id: 'edit-value',
      name: 'value',
      type: 'text',
      maxlength: '253',
      spellcheck: 'false',
      autocomplete: 'off',
      value: rule.value,
      class: 'mono',
    });
    const description = h('input', {
      id: 'edit-description',
      name: 'description',
      type: 'text',
      maxlength: '255',
      autocomplete: 'off',
      dir: 'auto',
      value: rule.description ?? '',
    });
    const expiry = expiryField({ current: rule.expires_at, name: 'edit-expiry' });
    changeDialog({
      ...common,
      id: 'edit-source',
      title: 'Edit a trusted source',
      context: seen(),
      form: {
        element: h(
          'div',
          { class: 'stack' },
          field(`Value (${rule.type})`, value),
          field('Description', description, { help: 'Such as why it is trusted, and who asked for it.' }),
          expiry.element,
          facts([
            ['State', stateOf(rule)],
            rule.addresses ? ['Addresses', addressesOf(rule)] : null,
            ['Sessions', String(rule.sessions)],
            ['Last use', time(rule.last_used, { empty: 'not yet' })],
            ['Created', time(rule.created_at, { empty: 'unknown', mode: 'full' })],
          ]),
        ),
        read: () => {
          if (value.value.trim() === '') throw new FieldError('Enter a value.', value);
          return { value: value.value.trim(), description: description.value, ...expiry.read() };
        },
        fail: () => false,
      },
      build: ({ rules: current, etag: tag }, input) => {
        const old = current.find((each) => each.uuid === rule.uuid);
        if (!old)
          throw new FieldError(
            'Somebody removed this rule meanwhile. Close the dialog, and add it again if it is still needed.',
          );
        const isMoved = input.value !== old.value;
        const changed = { ...unchanged(old), value: input.value };
        // Another value is another rule: it has none of the former fields.
        if (isMoved)
          Object.assign(changed, { uuid: undefined, description: old.description, expires_at: old.expires_at });
        if (input.description !== (old.description ?? '')) changed.description = input.description;
        if ('ttl' in input) {
          delete changed.expires_at;
          changed.ttl = input.ttl;
        } else if ('expires_at' in input) {
          changed.expires_at = input.expires_at;
        }
        const body = {
          rules: current.filter(isEditable).map((each) => (each.uuid === rule.uuid ? changed : unchanged(each))),
        };
        const edits = `.rules |= map(if .uuid == ${JSON.stringify(rule.uuid)} then ${JSON.stringify(changed)} else {type, value, uuid, origin} end)`;
        return {
          request: { method: 'PUT', path: target, body, etag: tag },
          before: current.filter(isEditable),
          changes: isMoved ? [] : [{ old, input }],
          cli: isMoved
            ? [
                appendCommand(listener, [{ type: rule.type, value: input.value }], {
                  description: input.description,
                  ...expiryOf(input, old),
                }),
                shellJoin(['portcullis', 'sources', 'remove', listener, `${old.type}:${old.value}`]),
              ]
            : [],
          cliNote: isMoved ? null : 'The command line has no command that edits a rule in place. Use the API.',
          api: editByJq(target, edits, tag),
        };
      },
    });
  }

  function removeRules(chosen) {
    const wanted = new Set(chosen.map((rule) => rule.uuid));
    const first = chosen[0];
    changeDialog({
      ...common,
      id: 'remove-sources',
      title: chosen.length === 1 ? 'Remove a trusted source' : `Remove ${count(chosen.length, 'trusted source')}`,
      context: seen(),
      build: ({ rules: current, etag: tag }) => {
        const before = current.filter(isEditable);
        const kept = before.filter((rule) => !wanted.has(rule.uuid));
        const cli = [
          shellJoin([
            'portcullis',
            'sources',
            'remove',
            listener,
            ...chosen.map((rule) => `${rule.type}:${rule.value}`),
          ]),
        ];
        if (chosen.length === 1) {
          return {
            request: { method: 'DELETE', path: `${target}/${encodeURIComponent(first.uuid)}`, etag: tag },
            before,
            cli,
          };
        }
        const list = JSON.stringify([...wanted]);
        return {
          request: { method: 'PUT', path: target, body: { rules: kept.map(unchanged) }, etag: tag },
          before,
          cli,
          api: editByJq(
            target,
            `.rules |= map(select(.uuid as $u | ${list} | index($u) | not) | {type, value, uuid, origin})`,
            tag,
          ),
        };
      },
    });
  }

  /** Offers to restore the rules of the file as they were before the last change. */
  function showUndo() {
    const { undo: last } = state;
    const isOffered = last?.listener === listener && last.etag === etag;
    if (last?.listener === listener && !isOffered && etag) state.undo = null;
    const shown = undo.firstElementChild;
    if (isOffered && !shown)
      replace(
        undo,
        button('Undo the last change', () => openUndo(), { id: 'undo' }),
      );
    if (!isOffered && shown) replace(undo);
  }

  function openUndo() {
    const { before } = state.undo;
    changeDialog({
      ...common,
      id: 'undo-change',
      title: 'Undo the last change',
      context: seen(),
      build: ({ rules: current, etag: tag }) => {
        const now = current.filter(isEditable);
        return {
          request: { method: 'PUT', path: target, body: { rules: restored(before, now) }, etag: tag },
          before: now,
          changes: changedRules(now, before),
          ...commandsBetween(listener, now, before),
        };
      },
    });
  }

  async function done({ result, change }) {
    state.undo = { listener, before: change.before, etag: result.etag };
    table.clearSelection();
    toast('good', `The sources of ${listener} are changed. The new rules are in force.`, {
      action: {
        label: 'Undo',
        name: 'undo',
        run: () => {
          if (state.undo && route().view === 'sources' && route().name === listener) openUndo();
          else window.location.hash = link('sources', listener);
        },
      },
    });
    bus.dispatchEvent(new Event('changed'));
    await reread().catch(() => sourcesPoll.now());
  }

  function details(rule) {
    openDialog({
      title: 'Trusted source',
      id: 'source-details',
      body: h(
        'div',
        { class: 'stack' },
        facts([
          ['Rule', h('code', { class: 'break' }, untrusted(`${rule.type}:${rule.value}`, { wrap: true }))],
          ['Description', untrusted(rule.description, { wrap: true })],
          ['State', stateOf(rule)],
          rule.detail ? ['Last lookup', untrusted(rule.detail, { wrap: true })] : null,
          rule.addresses ? ['Addresses', addressesOf(rule)] : null,
          ['Expires', time(rule.expires_at)],
          ['Origin', ORIGINS[rule.origin] ?? rule.origin],
          ['Sessions', String(rule.sessions)],
          ['Last use', time(rule.last_used, { empty: 'not since the start' })],
          ['UUID', h('code', { class: 'break' }, rule.uuid)],
        ]),
        rule.origin === 'config'
          ? notice('info', h('p', {}, 'This rule is in the configuration. Edit trusted_sources there, then reload.'))
          : null,
      ),
      actions: (close) => [
        h(
          'a',
          {
            class: 'button',
            href: link('explain', '', { listener, source: rule.type === 'ip_addr' ? rule.value.split('/')[0] : '' }),
            on: { click: close },
          },
          'Explain',
        ),
        button('Close', close, { kind: 'primary' }),
      ],
    });
  }

  return {
    onStatus: () => {},
    destroy() {
      sourcesPoll.stop();
      table.destroy();
    },
  };
}

const ORIGINS = {
  config: 'in the configuration file, not changed here',
  file: 'in the sources_file',
  fleet: 'shared by the fleet',
};

export const isEditable = (rule) => rule.origin !== 'config';

/** A rule that stays as it is. PUT keeps description and expiry where a request does not state them. */
const unchanged = ({ type, value, uuid }) => ({ type, value, uuid });

/** The rules of an earlier list, as a request that restores them. */
function restored(before, now) {
  const present = new Map(now.map((rule) => [rule.uuid, rule]));
  return before.map((rule) => {
    const same = present.get(rule.uuid);
    if (
      same &&
      same.value === rule.value &&
      same.description === rule.description &&
      same.expires_at === rule.expires_at
    )
      return unchanged(rule);
    const { description, expires_at } = rule;
    return { ...unchanged(rule), description, expires_at };
  });
}

function stateOf(rule) {
  const [kind, text] = STATES[rule.state] ?? ['idle', rule.state];
  return h(
    'span',
    { title: rule.detail ?? (rule.addresses?.length ? rule.addresses.join(', ') : null) },
    pill(kind, text),
  );
}

function addressesOf(rule) {
  if (rule.addresses.length === 0) return 'none, so the rule admits no client';
  return h(
    'span',
    { class: 'mono break' },
    rule.addresses.slice(0, 50).join(', '),
    rule.addresses.length > 50 ? ` and ${rule.addresses.length - 50} more` : null,
  );
}

/** The expiry of an edited rule as an option of a command. */
function expiryOf(input, old) {
  if ('ttl' in input || 'expires_at' in input) return input;
  return { expires_at: old.expires_at };
}

// Adding --------------------------------------------------------------------------------------------------------------

/** A line of text as a rule: `TYPE:VALUE`, an address or a network, and after `#` a description. */
export function parseLine(text) {
  const match = /^(.*?)(?:\s+#\s*(.*))?$/.exec(text.trim());
  const rule = match[1].trim();
  const description = match[2]?.trim();
  // An IPv6 address contains colons, too.
  const typed = parseNetwork(rule) ? null : /^([a-z][a-z0-9_]*):(.+)$/.exec(rule);
  const parts = typed ? { type: typed[1], value: typed[2].trim() } : { type: 'ip_addr', value: rule };
  return description ? { ...parts, description } : parts;
}

function addDialog({
  listener,
  target,
  text = '',
  description: initial = '',
  expiry: preset = 'never',
  choices = null,
  intro = null,
  common,
}) {
  const errorId = newId('line-errors');
  const lines = h('textarea', {
    id: 'new-sources',
    name: 'sources',
    rows: '5',
    spellcheck: 'false',
    autocomplete: 'off',
    autocapitalize: 'off',
    placeholder: '203.0.113.7\n198.51.100.0/24  # office\ndns:app.internal',
  });
  lines.value = text;
  const errors = h('div', { class: 'field-error', id: errorId, role: 'alert' });
  const description = h('input', {
    id: 'new-description',
    name: 'description',
    type: 'text',
    maxlength: '255',
    autocomplete: 'off',
    dir: 'auto',
    value: initial,
  });
  const expiry = expiryField({ initial: preset, name: 'new-expiry' });
  lines.addEventListener('input', () => {
    lines.removeAttribute('aria-invalid');
    replace(errors);
  });

  const choice = choices
    ? h(
        'fieldset',
        { class: 'choices' },
        h('legend', { class: 'visually-hidden' }, 'Which addresses'),
        choices.map(({ value, label }, index) =>
          h(
            'label',
            {},
            h('input', {
              type: 'radio',
              name: 'source-choice',
              value,
              checked: index === 0,
              on: {
                change: () => {
                  lines.value = value;
                },
              },
            }),
            h('span', { class: 'mono' }, value),
            h('span', { class: 'muted small' }, label),
          ),
        ),
      )
    : null;

  const element = h(
    'div',
    { class: 'stack' },
    intro,
    choice,
    h(
      'div',
      { class: choices ? 'visually-hidden' : 'stack', 'aria-hidden': choices ? 'true' : null, inert: Boolean(choices) },
      field('Sources, one per line', lines, {
        help: 'An address, a network, or TYPE:VALUE such as dns:app.internal. Text after # is the description of its line.',
        error: errors,
      }),
    ),
    choices ? errors : null,
    field('Description', description, {
      help: choices ? 'Such as why it is trusted, and who asked for it.' : 'For all lines without their own.',
    }),
    expiry.element,
  );

  let numbers = [];
  return changeDialog({
    ...common,
    id: 'add-sources-dialog',
    title: `Add trusted sources to ${listener}`,
    form: {
      element,
      read: () => {
        const entered = lines.value
          .split('\n')
          .map((line, index) => ({ line, number: index + 1 }))
          .filter(({ line }) => line.trim() !== '' && !line.trim().startsWith('#'));
        if (entered.length === 0) throw new FieldError('Enter at least one source.', lines);
        numbers = entered.map(({ number }) => number);
        const end = expiry.read();
        const rules = entered.map(({ line }) => {
          const rule = parseLine(line);
          const shown = rule.description ?? description.value.trim();
          return { ...rule, ...(shown ? { description: shown } : {}), ...end };
        });
        return { rules, end };
      },
      fail: (error) => {
        const places = error.lineErrors;
        if (!places) return false;
        lines.setAttribute('aria-invalid', 'true');
        replace(
          errors,
          h(
            'ul',
            { class: 'plain' },
            places.map(({ index, message }) =>
              h('li', {}, h('strong', {}, `Line ${numbers[index] ?? index + 1}: `), message),
            ),
          ),
        );
        lines.focus();
        const start = lines.value
          .split('\n')
          .slice(0, (numbers[places[0].index] ?? 1) - 1)
          .reduce((sum, line) => sum + line.length + 1, 0);
        lines.setSelectionRange(
          start,
          start + (lines.value.split('\n')[(numbers[places[0].index] ?? 1) - 1] ?? '').length,
        );
        return true;
      },
    },
    build: ({ rules: current, etag }, input) => {
      const groups = new Map();
      for (const rule of input.rules) {
        const key = rule.description ?? '';
        groups.set(key, [...(groups.get(key) ?? []), rule]);
      }
      const renewed = input.rules.filter((rule) =>
        current.some((each) => each.type === rule.type && each.value === rule.value && each.state === 'expired'),
      );
      const known = input.rules.filter((rule) =>
        current.some((each) => each.type === rule.type && each.value === rule.value && each.state !== 'expired'),
      );
      return {
        request: { method: 'POST', path: target, body: { rules: input.rules }, etag },
        before: current.filter(isEditable),
        renewed,
        known,
        cli: [...groups].map(([shown, rules]) => appendCommand(listener, rules, { description: shown, ...input.end })),
      };
    },
    plan: (change) => planWithLineErrors(change),
  });
}

/** Asks for the plan. Of invalid lines the API names the first, so the others are found by asking without it. */
async function planWithLineErrors({ request }) {
  const ask = async (body) =>
    (await send(request.method, `${request.path}?plan=true`, { body, etag: request.etag })).data;
  try {
    return await ask(request.body);
  } catch (error) {
    const first = lineError(error);
    if (!first) throw error;
    const found = [first];
    const left = request.body.rules.map((rule, index) => ({ rule, index }));
    while (found.length < MAX_LINE_ERRORS) {
      left.splice(
        left.findIndex(({ index }) => index === found.at(-1).index),
        1,
      );
      if (left.length === 0) break;
      let next = null;
      try {
        await ask({ rules: left.map(({ rule }) => rule) });
      } catch (other) {
        next = lineError(other);
      }
      if (!next) break;
      found.push({ ...next, index: left[next.index].index });
    }
    error.lineErrors = found;
    throw error;
  }
}

function lineError(error) {
  if (error.status !== 422) return null;
  const match = /^rules\[(\d+)\](?:\.(\w+))?: ([\s\S]*)$/.exec(error.message);
  return match
    ? { index: Number(match[1]), message: match[2] && match[2] !== 'value' ? `${match[2]}: ${match[3]}` : match[3] }
    : null;
}

/** The dialog that trusts one denied source. */
export function allowDialog({ listener, choices, intro }) {
  const target = path`/v1/listeners/${listener}/sources`;
  const load = async () => {
    const answer = await send('GET', target);
    return { rules: answer.data.rules, etag: answer.etag };
  };
  return addDialog({
    listener,
    target,
    text: choices[0].value,
    choices,
    intro,
    expiry: '8h',
    common: {
      load,
      context: null,
      show: (parts) => showSourcesPlan(listener, parts),
      done: ({ result, change }) => {
        state.undo = { listener, before: change.before, etag: result.etag };
        toast('good', `${listener} admits ${change.request.body.rules.map((rule) => rule.value).join(', ')} now.`, {
          action: {
            label: 'Show the sources',
            name: 'show-sources',
            run: () => {
              window.location.hash = link('sources', listener);
            },
          },
        });
        bus.dispatchEvent(new Event('changed'));
      },
    },
  });
}

// Commands ------------------------------------------------------------------------------------------------------------

export function appendCommand(listener, rules, { description = '', ttl = null, expires_at: until = null } = {}) {
  const words = ['portcullis', 'sources', 'append', listener, ...rules.map((rule) => `${rule.type}:${rule.value}`)];
  if (description) words.push('--description', description);
  if (ttl) words.push('--ttl', ttl);
  else if (until) words.push('--ttl', ttlUntil(until));
  return shellJoin(words);
}

/** An edit of a long list, as a pipe that fits on a command line. */
function editByJq(target, filter, etag) {
  const read = curl({ method: 'GET', path: target });
  const write = curl({ method: 'PUT', path: target, etag, data: '@-' });
  return `${read} |\njq ${shellQuote(filter)} |\n${write}`;
}

const sourceOf = (rule) => `${rule.type}:${rule.value}`;

function changedRules(before, after) {
  const earlier = new Map(before.map((rule) => [sourceOf(rule), rule]));
  return after
    .filter((rule) => {
      const old = earlier.get(sourceOf(rule));
      return old && ((old.description ?? '') !== (rule.description ?? '') || old.expires_at !== rule.expires_at);
    })
    .map((rule) => ({
      old: earlier.get(sourceOf(rule)),
      input: { value: rule.value, description: rule.description ?? '', expires_at: rule.expires_at },
    }));
}

/** The commands that lead from one list to another. */
function commandsBetween(listener, before, after) {
  const [had, has] = [before, after].map((rules) => new Set(rules.map(sourceOf)));
  const removed = before.filter((rule) => !has.has(sourceOf(rule)));
  const added = after.filter((rule) => !had.has(sourceOf(rule)));
  const cli = [];
  const groups = new Map();
  for (const rule of added) {
    const key = JSON.stringify([rule.description ?? '', rule.expires_at]);
    groups.set(key, [...(groups.get(key) ?? []), rule]);
  }
  for (const rules of groups.values())
    cli.push(
      appendCommand(listener, rules, { description: rules[0].description ?? '', expires_at: rules[0].expires_at }),
    );
  if (removed.length > 0) cli.push(shellJoin(['portcullis', 'sources', 'remove', listener, ...removed.map(sourceOf)]));
  const hasEdits = changedRules(before, after).length > 0;
  return {
    cli,
    cliNote: hasEdits ? 'The command line has no command that edits a rule in place. Use the API for those.' : null,
  };
}

// The plan ------------------------------------------------------------------------------------------------------------

function showSourcesPlan(listener, { plan, change, context }) {
  const {
    rules_added: added,
    rules_removed: removed,
    rules_added_count: addedCount = added.length,
    rules_removed_count: removedCount = removed.length,
  } = plan;
  const ended = plan.sessions_ended_count ?? plan.sessions_ended.length;
  const edits = (change.changes ?? []).map(editText).filter(Boolean);
  const renewed = change.renewed ?? [];
  const isEmpty = addedCount === 0 && removedCount === 0 && edits.length === 0 && renewed.length === 0;
  const everything = added.filter((rule) => isEverything(rule.value));
  const otherWarnings = (plan.warnings ?? []).filter(
    (warning) => !everything.some((rule) => warning.includes(rule.value)),
  );
  const removedValues = new Set(removed.map(sourceOf));
  const isNew = (rule) => !removedValues.has(sourceOf(rule));
  const newly = added.filter(isNew);
  const denied = h('div', {});
  if (newly.length > 0) showDenied(denied, listener, newly);
  const nodes = [
    plan.admits_nobody
      ? notice(
          'bad',
          h(
            'p',
            {},
            h('strong', {}, `After this change no client can connect to ${listener}.`),
            ' Its list of trusted sources admits nobody.',
          ),
        )
      : null,
    everything.map((rule) =>
      notice(
        'bad',
        h(
          'p',
          {},
          h('strong', {}, `${rule.value} trusts every ${rule.value.includes(':') ? 'IPv6' : 'IPv4'} address.`),
          ' Every machine that reaches the listener can connect. Enter the smallest network that you need.',
        ),
      ),
    ),
    otherWarnings.map((warning) => notice('warn', h('p', {}, untrusted(warning, { wrap: true })))),
    planSummary([
      addedCount > 0 && ['good', `${count(addedCount, 'rule')} added`],
      removedCount > 0 && ['bad', `${count(removedCount, 'rule')} removed`],
      edits.length > 0 && ['info', `${count(edits.length, 'rule')} edited`],
      renewed.length > 0 && ['info', `${count(renewed.length, 'rule')} renewed`],
      isEmpty
        ? ['idle', 'nothing changes']
        : ended > 0
          ? ['warn', `${count(ended, 'session ends', 'sessions end')}`]
          : ['good', 'no session ends'],
    ]),
    isEmpty
      ? h(
          'p',
          {},
          change.known?.length > 0
            ? 'All of these rules are there already, and stay as they are.'
            : 'The rules are like this already.',
        )
      : null,
    !isEmpty && change.known?.length > 0
      ? h(
          'p',
          { class: 'small muted' },
          `${count(change.known.length, 'rule is', 'rules are')} there already and ${change.known.length === 1 ? 'stays as it is' : 'stay as they are'}: ${change.known.slice(0, 5).map(sourceOf).join(', ')}${change.known.length > 5 ? ' …' : ''}`,
        )
      : null,
    addedCount + removedCount + edits.length > 0
      ? h(
          'section',
          {},
          h('h3', {}, 'Rules'),
          h(
            'ul',
            { class: 'rule-lines', tabindex: '0', 'aria-label': 'Rules that change' },
            added.slice(0, 500).map((rule) => ruleLine('+', rule)),
            edits.slice(0, 100),
            removed.slice(0, 500).map((rule) => ruleLine('-', rule)),
          ),
          addedCount + removedCount > 1000 || added.length + removed.length < addedCount + removedCount
            ? h('p', { class: 'small muted' }, 'The list is longer than what is shown.')
            : null,
        )
      : null,
    newly.length > 0
      ? h('section', {}, h('h3', {}, 'Who can newly connect'), newcomers(newly, addedCount), denied)
      : null,
    isEmpty ? null : sessionsEnded(plan.sessions_ended, ended),
  ];
  const danger = plan.admits_nobody || everything.length > 0 || ended > 0;
  const verb =
    addedCount > 0 && removedCount === 0
      ? `Add ${count(addedCount, 'rule')}`
      : removedCount > 0 && addedCount === 0
        ? `Remove ${count(removedCount, 'rule')}`
        : 'Change the rules';
  return { nodes, isEmpty, danger, confirm: ended > 0 ? `${verb}, end ${count(ended, 'session')}` : verb, context };
}

function editText({ old, input }) {
  const parts = [];
  if ((old.description ?? '') !== (input.description ?? '')) {
    parts.push(
      h(
        'span',
        {},
        'description: ',
        untrusted(old.description, { empty: 'none', label: 'description' }),
        ' → ',
        untrusted(input.description, { empty: 'none', label: 'description' }),
      ),
    );
  }
  const end =
    'ttl' in input
      ? `in ${input.ttl}`
      : 'expires_at' in input && input.expires_at !== old.expires_at
        ? input.expires_at
          ? relative(input.expires_at)
          : 'never'
        : null;
  if (end)
    parts.push(
      h(
        'span',
        {},
        parts.length > 0 ? '; ' : '',
        'expiry: ',
        old.expires_at ? relative(old.expires_at) : 'never',
        ' → ',
        end,
      ),
    );
  if (parts.length === 0) return null;
  return ruleLine('~', { type: old.type, value: input.value }, parts);
}

function newcomers(rules, total) {
  const words = (rule) => {
    const size = rule.type === 'ip_addr' ? sizeOf(rule.value) : null;
    if (rule.type === 'dns')
      return ['the addresses that ', h('code', {}, untrusted(rule.value, { label: 'name' })), ' resolves to'];
    if (rule.type === 'ip_addr')
      return [h('code', {}, untrusted(rule.value, { label: 'address' })), size ? ` (${size} addresses)` : ''];
    return ['the machines of ', h('code', {}, untrusted(sourceOf(rule), { label: 'rule' }))];
  };
  return h(
    'ul',
    { class: 'bullets' },
    rules
      .slice(0, 8)
      .map((rule) =>
        h('li', {}, words(rule), rule.expires_at ? [', until ', time(rule.expires_at, { mode: 'full' })] : null),
      ),
    total > 8 ? h('li', {}, `and ${total - 8} more`) : null,
  );
}

/** Denied sources that the new rules admit: the best evidence that a rule is right, or too wide. */
async function showDenied(box, listener, rules) {
  const networks = rules
    .filter((rule) => rule.type === 'ip_addr')
    .map((rule) => parseNetwork(rule.value))
    .filter(Boolean);
  if (networks.length === 0) return;
  try {
    const { denials } = await get(`/v1/denials?listener=${encodeURIComponent(listener)}`);
    const matching = denials.filter(({ reason, last_address: address }) => {
      const client = reason === 'untrusted_source' && address ? parseNetwork(address) : null;
      return client && networks.some((network) => contains(network, client));
    });
    replace(
      box,
      h(
        'p',
        { class: 'small muted' },
        matching.length === 0
          ? 'None of them was denied in the last day.'
          : [
              'Denied in the last day, and admitted after this change: ',
              h(
                'span',
                { class: 'mono' },
                matching
                  .slice(0, 6)
                  .map((each) => each.last_address)
                  .join(', '),
              ),
              matching.length > 6 ? ` and ${matching.length - 6} more` : '',
              '.',
            ],
      ),
    );
  } catch {
    /* only additional evidence */
  }
}
