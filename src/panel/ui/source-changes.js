// The dialogs that change trusted sources.

import { notifyChanged, send } from './api.js';
import { changeDialog, planOf } from './changes.js';
import { curl } from './commands.js';
import { toast } from './dialogs.js';
import { button, h, newId, replace } from './dom.js';
import { expiryField, FieldError } from './expiry.js';
import { groupBy } from './filter.js';
import { count, shellJoin, shellQuote, visibleJson } from './format.js';
import { go, link } from './router.js';
import { addressesOf, stateOf } from './source-facts.js';
import { missingMembers, showSourcesPlan } from './source-plan.js';
import {
  appendCommand,
  changedRules,
  commandsBetween,
  editCommand,
  isEditable,
  parseLine,
  restored,
  sourceOf,
  unchanged,
} from './source-rules.js';
import { isGroup, isShared, sourceGroups, state } from './state.js';
import { path } from './url.js';
import { facts, field, time } from './widgets.js';

/** How many mistakes are searched for in one text. Each needs a request, because the API names the first one. */
const MAX_LINE_ERRORS = 8;

/** How long a change waits for the other members of a fleet. */
const MEMBER_WAIT = '5s';

const targetOf = (listener) => path`/v1/listeners/${listener}/sources`;

/** The target of a change, which waits until all members have it. */
const waiting = (listener, target) => (isShared(listener) ? `${target}?wait=${MEMBER_WAIT}` : target);

/** The same for the commands of a change. `null` stands for a command that cannot be shown. */
const waitingCommands = (listener, commands) =>
  isShared(listener) ? commands.map((command) => command && `${command} --wait ${MEMBER_WAIT}`) : commands;

/** The list of a listener, `{ rules, etag }`. */
export async function loadSources(listener, options) {
  const { data, etag } = await send('GET', targetOf(listener), options);
  return { rules: data.rules, etag };
}

const common = (listener) => ({
  load: () => loadSources(listener),
  show: (parts) => showSourcesPlan(listener, parts),
  done: doneAt(listener),
});

const doneAt =
  (listener) =>
  ({ result, change }) => {
    const undo = { listener, before: change.before, etag: result.etag };
    state.undo = undo;
    const run = () => (state.undo === undo ? undoDialog() : go(link('sources', listener)));
    const action = { label: 'Undo', name: 'undo', run };
    const missing = unconfirmed(result);
    if (missing) toast('warn', `The sources of ${listener} are changed at this member. ${missing}`, { action });
    else toast('good', `The sources of ${listener} are changed. The new rules are in force.`, { action });
    notifyChanged();
  };

/** Which members of the fleet have not confirmed a change, in words; `null` if all have. */
function unconfirmed({ data, response }) {
  if (response.status !== 202) return null;
  const names = missingMembers(data?.missing);
  return names ? `Not confirmed by ${names}.` : 'The other members of the fleet cannot be asked.';
}

// Adding --------------------------------------------------------------------------------------------------------------

/** Adds rules. `choices` offers them instead of a field for text. */
export function addDialog({
  listener,
  context = null,
  text = '',
  description: initial = '',
  expiry: preset = 'never',
  choices = null,
  intro = null,
  done = doneAt(listener),
}) {
  const target = targetOf(listener);
  const errorId = newId('line-errors');
  const lines = h('textarea', {
    id: 'new-sources',
    name: 'sources',
    rows: '5',
    spellcheck: 'false',
    autocomplete: 'off',
    autocapitalize: 'off',
    placeholder: '203.0.113.7\n198.51.100.0/24  # office\ndns:app.internal\ntag:backend',
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

  const groups = choices || isGroup(listener) ? [] : sourceGroups();
  const groupChoice =
    groups.length > 0
      ? h(
          'div',
          { class: 'bar', id: 'group-choice' },
          h('span', { class: 'muted small' }, 'Add a source group:'),
          groups.map((group) =>
            button(
              group,
              () => {
                lines.value = [...lines.value.split('\n').filter((line) => line.trim() !== ''), group].join('\n');
                lines.dispatchEvent(new Event('input'));
                lines.focus();
              },
              { kind: 'small', 'data-group': group },
            ),
          ),
        )
      : null;

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
        help: 'An address, a network, or TYPE:VALUE such as dns:app.internal, tag:backend or kubernetes:nodes. Text after # describes its line.',
        error: errors,
      }),
      groupChoice,
    ),
    choices ? errors : null,
    field('Description', description, {
      help: choices ? 'Such as why it is trusted, and who asked for it.' : 'For all lines without their own.',
    }),
    expiry.element,
  );

  let numbers = [];
  changeDialog({
    ...common(listener),
    context,
    done,
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
      const byDescription = groupBy(input.rules, (rule) => rule.description ?? '');
      const renewed = input.rules.filter((rule) =>
        current.some((each) => each.type === rule.type && each.value === rule.value && each.state === 'expired'),
      );
      const known = input.rules.filter((rule) =>
        current.some((each) => each.type === rule.type && each.value === rule.value && each.state !== 'expired'),
      );
      return {
        request: { method: 'POST', path: waiting(listener, target), body: { rules: input.rules }, etag },
        before: current.filter(isEditable),
        renewed,
        known,
        cli: waitingCommands(
          listener,
          [...byDescription].map(([shown, rules]) =>
            appendCommand(listener, rules, { description: shown, ...input.end }),
          ),
        ),
      };
    },
    plan: (change) => planWithLineErrors(change),
  });
}

/** Asks for the plan. Of invalid lines the API names the first, so the others are found by asking without it. */
async function planWithLineErrors({ request }) {
  const ask = (body) => planOf({ request: { ...request, body } });
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

/** Trusts one denied source. `onAllowed` receives the values of the new rules. */
export function allowDialog({ listener, choices, intro = null, onAllowed = () => {} }) {
  addDialog({
    listener,
    text: choices[0].value,
    choices,
    intro,
    expiry: '8h',
    done: ({ result, change }) => {
      state.undo = { listener, before: change.before, etag: result.etag };
      const values = change.request.body.rules.map((rule) => rule.value);
      onAllowed(values);
      const showSources = () => go(link('sources', listener));
      const missing = unconfirmed(result);
      const text = `${listener} admits ${values.join(', ')} now.`;
      toast(missing ? 'warn' : 'good', missing ? `${text} ${missing}` : text, {
        action: { label: 'Show the sources', name: 'show-sources', run: showSources },
      });
      notifyChanged();
    },
  });
}

// Editing, removing, restoring ----------------------------------------------------------------------------------------

/** The form has one rule, so its place in the request means nothing to a person. */
async function planOfOne(change) {
  try {
    return await planOf(change);
  } catch (error) {
    const line = lineError(error);
    if (line) error.message = line.message;
    throw error;
  }
}

/** Edits one rule. `context` is the list that the person sees, `{ rules, etag }`. */
export function editDialog({ listener, context, rule }) {
  const target = targetOf(listener);
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
    ...common(listener),
    plan: planOfOne,
    id: 'edit-source',
    title: 'Edit a trusted source',
    context,
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
    },
    build: ({ rules: current, etag: tag }, input) => {
      const old = current.find((each) => each.uuid === rule.uuid);
      if (!old) throw new FieldError('Somebody removed this rule meanwhile. Add it again if it is still needed.');
      const isMoved = input.value !== old.value;
      const changed = { ...unchanged(old), value: input.value };
      // Another value is another rule: it has none of the former fields.
      const { description: oldDescription, expires_at } = old;
      if (isMoved) Object.assign(changed, { uuid: undefined, description: oldDescription, expires_at });
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
      const [uuid, edited] = [rule.uuid, changed].map(visibleJson);
      const edits = `.rules |= map(if .uuid == ${uuid} then ${edited} else {type, value, uuid, origin} end)`;
      return {
        request: { method: 'PUT', path: waiting(listener, target), body, etag: tag },
        before: current.filter(isEditable),
        changes: isMoved ? [] : [{ old, input }],
        cli: waitingCommands(
          listener,
          isMoved
            ? [
                appendCommand(listener, [{ type: rule.type, value: input.value }], {
                  description: input.description,
                  ...expiryOf(input, old),
                }),
                shellJoin(['portcullis', 'sources', 'remove', listener, sourceOf(old)]),
              ]
            : [editCommand(listener, old, input)].filter(Boolean),
        ),
        api: editByJq(listener, edits, tag),
      };
    },
  });
}

/** The expiry of an edited rule as an option of a command. */
function expiryOf(input, old) {
  if ('ttl' in input || 'expires_at' in input) return input;
  return { expires_at: old.expires_at };
}

/** Removes rules. */
export function removeDialog({ listener, context, rules: chosen }) {
  const target = targetOf(listener);
  const wanted = new Set(chosen.map((rule) => rule.uuid));
  const first = chosen[0];
  changeDialog({
    ...common(listener),
    id: 'remove-sources',
    title: chosen.length === 1 ? 'Remove a trusted source' : `Remove ${count(chosen.length, 'trusted source')}`,
    context,
    build: ({ rules: current, etag: tag }) => {
      const before = current.filter(isEditable);
      const kept = before.filter((rule) => !wanted.has(rule.uuid));
      const command = shellJoin(['portcullis', 'sources', 'remove', listener, ...chosen.map(sourceOf)]);
      const cli = waitingCommands(listener, [command]);
      if (chosen.length === 1) {
        return {
          request: {
            method: 'DELETE',
            path: waiting(listener, `${target}/${encodeURIComponent(first.uuid)}`),
            etag: tag,
          },
          before,
          cli,
        };
      }
      const list = visibleJson([...wanted]);
      return {
        request: {
          method: 'PUT',
          path: waiting(listener, target),
          body: { rules: kept.map(unchanged) },
          etag: tag,
        },
        before,
        cli,
        api: editByJq(
          listener,
          `.rules |= map(select(.uuid as $u | ${list} | index($u) | not) | {type, value, uuid, origin})`,
          tag,
        ),
      };
    },
  });
}

/** Restores the rules as they were before the last change. */
export function undoDialog() {
  const { listener, before, etag: last } = state.undo;
  const target = targetOf(listener);
  changeDialog({
    ...common(listener),
    id: 'undo-change',
    title: 'Undo the last change',
    build: ({ rules, etag }) => {
      if (etag !== last) throw new FieldError('The list has changed again since then. Edit its rules instead.');
      const now = rules.filter(isEditable);
      return {
        request: { method: 'PUT', path: waiting(listener, target), body: { rules: restored(before, now) }, etag },
        before: now,
        changes: changedRules(now, before),
        cli: waitingCommands(listener, commandsBetween(listener, now, before).cli),
      };
    },
  });
}

/** An edit of a long list, as a pipe that fits on a command line. */
function editByJq(listener, filter, etag) {
  const target = targetOf(listener);
  const read = curl({ method: 'GET', path: target });
  const write = curl({ method: 'PUT', path: waiting(listener, target), etag, data: '@-' });
  return `${read} |\njq ${shellQuote(filter)} |\n${write}`;
}
