// Every change goes through one dialog: what it does (the plan of the API), the same as commands, then the
// confirmation.

import { ApiError, send } from './api.js';
import { commandSection } from './commands.js';
import { announce, openDialog } from './dialogs.js';
import { button, h, replace } from './dom.js';
import { FieldError } from './expiry.js';
import { errorNotice, notice, skeleton } from './widgets.js';

/**
 * Shows a form (if there is one), then the plan of a change, and makes the change once it is confirmed.
 *
 * - `form`: `{ element, read(), fail?(error), reviewLabel? }`; `read` throws a `FieldError`, `fail` may show an error at its field
 * - `load()`: reads what the change is based on, again after a 412. Returns the context
 * - `build(context, input)`: `{ request: { method, path, body, etag }, cli, cliNote, api, ... }`
 * - `plan(change, context)`: returns the plan, by default the same request with `plan=true`; `null` for a change without one
 * - `show({ plan, change, context, input })`: `{ nodes, confirm, danger, isEmpty }`
 * - `apply(change)`: makes the change, by default by its request
 * - `done({ result, change, context, input })`: after the change; may return nodes that replace the content
 */
export function changeDialog({
  id,
  title,
  form = null,
  context: initial = null,
  load = null,
  build,
  plan: askPlan = planOf,
  show,
  apply = applyOf,
  done,
}) {
  let context = initial;
  let input = null;
  let change = null;
  let run = 0;
  let busy = false;
  const message = h('div', { class: 'dialog-message', 'aria-live': 'polite' });
  const formPane = h('div', { class: 'pane' }, form?.element);
  const planPane = h('div', { class: 'pane', hidden: true });
  const opened = openDialog({
    title,
    id,
    size: 'wide',
    body: [message, formPane, planPane],
    onSubmit: () => {
      if (!busy && !formPane.hidden && form) review();
    },
    onClose: () => {
      run += 1;
    },
  });
  const { footer, content, close } = opened;

  const cancel = () => button('Cancel', close, { 'data-action': 'cancel' });

  function showForm() {
    formPane.hidden = false;
    planPane.hidden = true;
    replace(
      footer,
      cancel(),
      button(form.reviewLabel ?? 'Review the change', review, { kind: 'primary', 'data-action': 'review' }),
    );
  }

  async function review({ note = null, again = false } = {}) {
    const mine = (run += 1);
    replace(message, note);
    if (form && !again) {
      try {
        input = form.read();
      } catch (error) {
        if (!(error instanceof FieldError)) throw error;
        fail(error);
        return;
      }
    }
    busy = true;
    formPane.hidden = true;
    planPane.hidden = false;
    replace(planPane, skeleton(5), h('p', { class: 'visually-hidden' }, 'Asking the program what would change…'));
    replace(footer, cancel());
    opened.heading.focus();
    try {
      if (!context && load) context = await load();
      change = build(context, input);
      const plan = await askPlan(change, context, input);
      if (mine !== run) return;
      showPlan(plan);
    } catch (error) {
      if (mine !== run) return;
      if (error.status === 412 && load) {
        busy = false;
        await changedMeanwhile();
        return;
      }
      fail(error);
    } finally {
      if (mine === run) busy = false;
    }
  }

  // What the person typed stays; only what it is applied to is read again.
  async function changedMeanwhile() {
    context = null;
    await review({
      again: true,
      note: notice(
        'warn',
        h(
          'p',
          {},
          h('strong', {}, 'Somebody else changed this list since you read it.'),
          ' It was read again, and what you entered is kept. Below is the plan for the new list.',
        ),
      ),
    });
  }

  function showPlan(plan) {
    const { nodes, confirm = 'Confirm', danger = false, isEmpty = false } = show({ plan, change, context, input });
    replace(planPane, nodes, commandSection(change));
    const buttons = [cancel()];
    if (form)
      buttons.push(
        button(
          'Back',
          () => {
            run += 1;
            replace(message);
            showForm();
          },
          { 'data-action': 'back' },
        ),
      );
    if (!isEmpty) {
      buttons.push(
        button(confirm, () => confirmed(), { kind: danger ? 'danger' : 'primary', 'data-action': 'confirm' }),
      );
    }
    replace(footer, buttons);
    content.scrollTop = 0;
    // A dangerous change is not confirmed by the key that opened it.
    (danger || isEmpty ? opened.heading : footer.querySelector('[data-action=confirm]')).focus();
    announce('The plan is shown.');
  }

  async function confirmed() {
    if (busy) return;
    busy = true;
    const mine = (run += 1);
    const confirmButton = footer.querySelector('[data-action=confirm]');
    confirmButton?.setAttribute('aria-disabled', 'true');
    confirmButton?.classList.add('busy');
    replace(message);
    try {
      const result = await apply(change, input);
      if (mine !== run && !opened.dialog.isConnected) {
        await done({ result, change, context, input });
        return;
      }
      busy = false;
      const after = await done({ result, change, context, input, close });
      if (after) {
        replace(content, after);
        replace(footer, button('Done', close, { kind: 'primary', 'data-action': 'done' }));
        opened.heading.focus();
      } else {
        close();
      }
    } catch (error) {
      busy = false;
      if (error.status === 412 && load) {
        await changedMeanwhile();
        return;
      }
      confirmButton?.removeAttribute('aria-disabled');
      confirmButton?.classList.remove('busy');
      if (!(error instanceof ApiError)) console.error(error);
      replace(message, errorNotice(error, unsureText(error)));
      message.scrollIntoView({ block: 'nearest' });
    }
  }

  function fail(error) {
    if (!(error instanceof FieldError) && !(error instanceof ApiError)) console.error(error);
    busy = false;
    const isShown = form?.fail?.(error) ?? false;
    if (form) {
      showForm();
      if (isShown) return;
      replace(
        message,
        error instanceof FieldError
          ? notice('bad', h('p', { class: 'error-text' }, error.message))
          : errorNotice(error),
      );
      (error.control ?? content.querySelector('input, textarea, select'))?.focus();
    } else {
      replace(planPane);
      replace(message, errorNotice(error));
      replace(
        footer,
        button('Close', close, { 'data-action': 'cancel' }),
        button('Try again', () => review(), { kind: 'primary', 'data-action': 'retry' }),
      );
      opened.heading.focus();
    }
  }

  if (form) showForm();
  else review();
  return opened;
}

// Without an answer the change may have been made.
function unsureText(error) {
  return error.status === 0
    ? h('p', { class: 'small' }, 'It is not known whether the change was made. Compare the list before you try again.')
    : null;
}

async function planOf({ request }) {
  const separator = request.path.includes('?') ? '&' : '?';
  return (await send(request.method, `${request.path}${separator}plan=true`, request)).data;
}

const applyOf = ({ request }) => send(request.method, request.path, request);

/** A confirmation of a change that the API has no plan for. */
export function confirmDialog({ id, title, nodes, confirm, danger = true, change, apply = applyOf, done }) {
  return changeDialog({
    id,
    title,
    build: () => change,
    plan: async () => null,
    apply,
    done,
    show: () => ({ nodes, confirm, danger }),
  });
}
