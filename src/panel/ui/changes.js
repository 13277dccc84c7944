// Every change goes through one dialog: what it does (the plan of the API), the same as commands, then the
// confirmation.

import { ApiError, notifyChanged, send } from './api.js';
import { commandSection } from './commands.js';
import { announce, openDialog } from './dialogs.js';
import { button, h, replace } from './dom.js';
import { FieldError } from './expiry.js';
import { errorNotice, notice, skeleton } from './widgets.js';

/** How often a list is read again by itself, before a person is asked. */
const MAX_REREADS = 1;

/**
 * Shows a form (if there is one), then the plan of a change, and makes the change once it is confirmed.
 *
 * - `form`: `{ element, read(), fail?(error), reviewLabel? }`; `read` throws a `FieldError`, `fail` may show an error
 *   at its field
 * - `context`: what the change is based on, or `null` to load it
 * - `load()`: reads what the change is based on, again after a 412. Returns the context
 * - `build(context, input)`: `{ request: { method, path, body, etag }, cli, cliNote, isLocal, api, ... }`
 * - `plan(change)`: returns the plan, by default that of the request with `plan=true`; `null` for a change without one
 * - `show({ plan, change, input })`: `{ nodes, confirm, danger, isEmpty }`
 * - `apply(change)`: makes the change, by default by its request
 * - `done({ result, change, input })`: after the change; may return nodes that replace the content
 * - `onClose()`: after the dialog is closed, in whatever state
 *
 * The dialog passes through these states, which hold the data that they show:
 *
 *     form → planning → planned → applying → applied → closed
 *
 * A failed plan leads back to `form` (or, without a form, to `failed`), a failed change to `planned`, and a list that
 * has changed meanwhile (412) to `planning`, or to `failed` once it was read again in vain. Every state except
 * `applying` can be closed. An answer counts only in the state that asked for it.
 */
export function changeDialog({
  id,
  title,
  form = null,
  context: given = null,
  load = null,
  build,
  plan: askPlan = planOf,
  show,
  apply = applyOf,
  done,
  onClose = () => {},
}) {
  const message = h('div', { class: 'dialog-message', 'aria-live': 'polite' });
  const formPane = h('div', { class: 'pane' }, form?.element);
  const planPane = h('div', { class: 'pane', hidden: true });
  const question = h('div', { class: 'dialog-message', 'aria-live': 'assertive' });
  let state = { name: 'closed' };
  // What a person entered is lost only after a second Esc or Cancel.
  const untouched = entered(formPane);
  let isAsked = false;
  const opened = openDialog({
    title,
    id,
    size: 'wide',
    body: [question, message, formPane, planPane],
    mayClose: ({ asks }) => state.name !== 'applying' && !(asks && mustAsk()),
    onRefused: () => (state.name === 'applying' ? showWaiting() : askToDiscard()),
    onSubmit: () => review(),
    onClose: () => {
      enter({ name: 'closed' });
      onClose();
    },
  });
  const { footer, content, close, heading } = opened;

  const draw = {
    form: drawForm,
    planning: drawPlanning,
    planned: drawPlan,
    applying: drawApplying,
    applied: drawApplied,
    failed: drawFailure,
    closed: () => {},
  };

  function enter(next) {
    state = next;
    if (state.name === 'applying') window.addEventListener('beforeunload', askBeforeUnload);
    else window.removeEventListener('beforeunload', askBeforeUnload);
    isAsked = false;
    question.replaceChildren();
    draw[next.name](next);
    return next;
  }

  // Transitions -------------------------------------------------------------------------------------------------------

  function review() {
    if (state.name !== 'form') return;
    const { context } = state;
    let input;
    try {
      input = form.read();
    } catch (error) {
      enter({ name: 'form', context, error });
      return;
    }
    ask({ context, input });
  }

  async function ask({ context: known, input, note = null, rereads = 0 }) {
    const planning = enter({ name: 'planning', note });
    let context = known;
    try {
      if (!context && load) context = await load();
      const change = build(context, input);
      const plan = await askPlan(change);
      if (state !== planning) return;
      const shown = show({ plan, change, input });
      enter({ name: 'planned', context, input, change, shown, commands: commandSection(change), note, rereads });
    } catch (error) {
      if (state !== planning) return;
      if (isOutdated(error)) askAgain({ input, error, rereads });
      else enter({ name: form ? 'form' : 'failed', context, input, error });
    }
  }

  // What the person typed stays; only what it is applied to is read again. A proxy that changes ETag or If-Match would
  // make every answer a 412.
  function askAgain({ input, error, rereads }) {
    notifyChanged();
    if (rereads >= MAX_REREADS) {
      enter({ name: 'failed', context: null, input, error });
      return;
    }
    const note = notice(
      'warn',
      h(
        'p',
        {},
        h('strong', {}, 'Somebody else changed this list since you read it.'),
        ' It was read again, and what you entered is kept. Below is the plan for the new list.',
      ),
    );
    ask({ context: null, input, note, rereads: rereads + 1 });
  }

  async function confirm() {
    if (state.name !== 'planned') return;
    const planned = state;
    const { change, input, rereads } = planned;
    const applying = enter({ name: 'applying' });
    let result;
    try {
      result = await apply(change);
    } catch (error) {
      if (state !== applying) return;
      if (isOutdated(error)) askAgain({ input, error, rereads });
      else enter({ ...planned, note: null, error });
      return;
    }
    // Closed by force: another person has signed in, who must not see the result.
    if (state !== applying) return;
    let nodes = null;
    try {
      nodes = await done({ result, change, input });
    } catch (error) {
      nodes = [notice('warn', h('p', {}, 'The change was made, but its result cannot be shown.')), errorOf(error)];
    }
    if (state === applying) enter({ name: 'applied', nodes });
  }

  const isOutdated = (error) => error.status === 412 && load !== null;

  // What each state shows ---------------------------------------------------------------------------------------------

  const cancel = () => button('Cancel', close, { 'data-action': 'cancel' });

  function showPane(pane) {
    formPane.hidden = pane !== formPane;
    planPane.hidden = pane !== planPane;
  }

  function drawForm({ error = null }) {
    showPane(formPane);
    replace(message);
    const label = form.reviewLabel ?? 'Review the change';
    replace(footer, cancel(), button(label, review, { kind: 'primary', 'data-action': 'review' }));
    if (!error || form.fail?.(error)) return;
    replace(message, errorOf(error));
    (error.control ?? content.querySelector('input, textarea, select'))?.focus();
  }

  function drawPlanning({ note }) {
    showPane(planPane);
    replace(message, note);
    replace(planPane, skeleton(5), h('p', { class: 'visually-hidden' }, 'Asking the program what would change…'));
    replace(footer, cancel());
    heading.focus();
  }

  function drawPlan({ context, shown, commands, note, error = null }) {
    const { nodes, confirm: label = 'Confirm', danger = false, isEmpty = false } = shown;
    const back = () => enter({ name: 'form', context });
    showPane(planPane);
    replace(message, error ? errorOf(error, adviceFor(error)) : note);
    replace(planPane, nodes, commands);
    replace(
      footer,
      cancel(),
      form ? button('Back', () => state.name === 'planned' && back(), { 'data-action': 'back' }) : null,
      isEmpty ? null : button(label, confirm, { kind: danger ? 'danger' : 'primary', 'data-action': 'confirm' }),
    );
    content.scrollTop = 0;
    // A dangerous change is not confirmed by the key that opened it.
    (danger || isEmpty ? heading : footer.querySelector('[data-action=confirm]')).focus();
    if (!error) announce('The plan is shown.');
  }

  function drawApplying() {
    replace(message);
    for (const each of footer.children) each.setAttribute('aria-disabled', 'true');
    footer.querySelector('[data-action=confirm]').classList.add('busy');
  }

  const mustAsk = () => !isAsked && !['applied', 'closed'].includes(state.name) && entered(formPane) !== untouched;

  function askToDiscard() {
    isAsked = true;
    const keep = button('Keep editing', forgetQuestion, { kind: 'small', 'data-action': 'keep' });
    const discard = button('Discard', close, { kind: 'small danger', 'data-action': 'discard' });
    question.replaceChildren(
      notice(
        'warn',
        h('p', {}, h('strong', {}, 'Discard what you entered?'), ' Press Esc again to discard it.'),
        h('div', { class: 'actions' }, keep, discard),
      ),
    );
    question.scrollIntoView({ block: 'nearest' });
    keep.focus();
  }

  function forgetQuestion() {
    isAsked = false;
    question.replaceChildren();
    content.querySelector('input, textarea, select')?.focus();
  }

  function showWaiting() {
    const text = 'The change is being applied. The dialog stays open until the result is known.';
    replace(message, notice('info', h('p', {}, text)));
    message.scrollIntoView({ block: 'nearest' });
  }

  function drawApplied({ nodes }) {
    if (!nodes) {
      close();
      return;
    }
    replace(content, nodes);
    replace(footer, button('Done', close, { kind: 'primary', 'data-action': 'done' }));
    heading.focus();
  }

  function drawFailure({ context, input, error }) {
    showPane(planPane);
    // Without `load`, nothing of the context can have changed.
    const retry = () => ask({ context: load ? null : context, input });
    replace(planPane);
    replace(message, errorOf(error));
    replace(
      footer,
      button('Close', close, { 'data-action': 'cancel' }),
      form ? button('Back', () => enter({ name: 'form', context }), { 'data-action': 'back' }) : null,
      button('Try again', retry, { kind: 'primary', 'data-action': 'retry' }),
    );
    heading.focus();
  }

  // Who types on has answered the question.
  formPane.addEventListener('input', () => {
    isAsked = false;
    question.replaceChildren();
  });
  if (form) enter({ name: 'form', context: given });
  else ask({ context: given, input: null });
}

/** What the fields of a form contain, as a text to compare. */
const entered = (form) =>
  JSON.stringify(
    [...form.querySelectorAll('input:not([type=radio], [type=file]), textarea, select')].map(({ value }) => value),
  );

// The browser asks the person before it leaves the page.
const askBeforeUnload = (event) => event.preventDefault();

function errorOf(error, ...more) {
  if (error instanceof FieldError) return notice('bad', h('p', { class: 'error-text' }, error.message));
  if (!(error instanceof ApiError)) console.error(error);
  return errorNotice(error, more);
}

// Without an answer the change may have been made.
function adviceFor(error) {
  if (error.status === 503 && error.retryAfter) {
    const text = `What you entered is kept. Try again in ${error.retryAfter} s or later.`;
    return h('p', { class: 'small' }, text);
  }
  if (error.status !== 0) return null;
  const text = 'It is not known whether the change was made. Compare the list before you try again.';
  return h('p', { class: 'small' }, text);
}

/** The plan of a change, from its request with `plan=true`. */
export async function planOf({ request }) {
  const separator = request.path.includes('?') ? '&' : '?';
  return (await send(request.method, `${request.path}${separator}plan=true`, request)).data;
}

const applyOf = ({ request }) => send(request.method, request.path, request);

/** A confirmation of a change that the API has no plan for. */
export function confirmDialog({ nodes, confirm, change, ...rest }) {
  changeDialog({
    build: () => change,
    plan: async () => null,
    show: () => ({ nodes, confirm, danger: true }),
    ...rest,
  });
}
