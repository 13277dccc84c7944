// Every change goes through one dialog: what it does (the plan of the API), the same as commands, then the confirmation.

import { ApiError, send } from './api.js';
import {
  announce,
  button,
  commandBox,
  copyButton,
  errorNotice,
  h,
  notice,
  openDialog,
  pill,
  replace,
  select,
  skeleton,
  time,
  untrusted,
} from './dom.js';
import { bytes, count, DAY, dateTime, HOUR, localInput, MINUTE, relative, shellQuote, words } from './format.js';

/** Longer bodies are shown as a file, because a shell limits the length of a command. */
const MAX_INLINE_BODY = 4096;

// Commands ------------------------------------------------------------------------------------------------------------

const API_HEADERS = ['-H "Authorization: Bearer $PORTCULLIS_TOKEN"'];

/** A call of the API by curl. The token comes from the environment, so that it is in no history of a shell. */
export function curl({ method, path, body, etag, data = null, output = null }) {
  const parts = ['curl -sS --fail-with-body', ...API_HEADERS];
  if (method !== 'GET') parts.push(`-X ${method}`);
  if (etag) parts.push(`-H ${shellQuote(`If-Match: ${etag}`)}`);
  if (data) {
    parts.push(`-H ${shellQuote('Content-Type: application/json')}`, `-d ${data}`);
  } else if (body !== undefined) {
    parts.push(`-H ${shellQuote('Content-Type: application/json')}`, `-d ${shellQuote(JSON.stringify(body))}`);
  }
  if (output) parts.push(`-o ${shellQuote(output)}`);
  parts.push(shellQuote(`${window.location.origin}${path}`));
  return parts.join(' \\\n  ');
}

/** The same change as commands, with copy buttons. */
export function commandSection({ cli, cliNote = null, request, api = null }) {
  const body = request?.body === undefined ? '' : JSON.stringify(request.body);
  const isLong = body.length > MAX_INLINE_BODY && !api;
  const text = api ?? (isLong ? curl({ ...request, data: '@body.json' }) : curl(request));
  return h(
    'section',
    { class: 'commands', 'aria-label': 'The same change as a command' },
    h('h3', {}, 'The same as a command'),
    cli?.length > 0 ? commandBox('Command line', cli.join('\n')) : null,
    cliNote ? h('p', { class: 'small muted' }, cliNote) : null,
    commandBox('API', text),
    isLong
      ? h(
          'p',
          { class: 'small' },
          `body.json has ${bytes(body.length)}. `,
          copyButton(body, 'Copy body.json', { kind: 'tiny' }),
        )
      : null,
    h(
      'p',
      { class: 'small muted' },
      'From another machine, add ',
      h('code', {}, `--url ${shellQuote(window.location.origin)}`),
      ' to the command, and set ',
      h('code', {}, '$PORTCULLIS_TOKEN'),
      '.',
    ),
  );
}

// Expiry --------------------------------------------------------------------------------------------------------------

const PRESETS = [
  ['1h', '1 hour'],
  ['8h', '8 hours'],
  ['30d', '30 days'],
  ['never', 'Never'],
  ['date', 'Date and time'],
];
const PRESET_LENGTH = { '1h': HOUR, '8h': 8 * HOUR, '30d': 30 * DAY };

/** A choice of an expiry. `read()` returns `{ ttl }`, `{ expires_at }` or throws with words. */
export function expiryField({ current = undefined, initial = null, name = 'expiry' } = {}) {
  const options =
    current === undefined
      ? PRESETS
      : [['keep', current ? `Keep: ${dateTime(current)} (${relative(current)})` : 'Keep: never'], ...PRESETS];
  const value = initial ?? (current === undefined ? 'never' : 'keep');
  const choice = select(options, value, { id: `${name}-choice`, name });
  const date = h('input', {
    type: 'datetime-local',
    id: `${name}-date`,
    name: `${name}-date`,
    'aria-label': 'Expires at, in your time zone',
  });
  date.value = localInput(Date.now() + 8 * HOUR);
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const effect = h('p', { class: 'help', role: 'status' });
  const show = () => {
    date.hidden = choice.value !== 'date';
    const length = PRESET_LENGTH[choice.value];
    if (length) effect.textContent = `Ends ${dateTime(Date.now() + length)}. Its sessions end then, too.`;
    else if (choice.value === 'date') effect.textContent = `In your time zone, ${zone}. Its sessions end then, too.`;
    else if (choice.value === 'never') effect.textContent = 'Stays until somebody removes it.';
    else effect.textContent = 'The expiry is not changed.';
  };
  choice.addEventListener('change', show);
  show();
  const element = h(
    'div',
    { class: 'field' },
    h('label', { for: choice.id }, 'Expires'),
    h('div', { class: 'inline' }, choice, date),
    effect,
  );
  return {
    element,
    read() {
      if (choice.value === 'keep') return {};
      if (choice.value === 'never') return { expires_at: null };
      if (choice.value !== 'date') return { ttl: choice.value };
      const at = new Date(date.value);
      if (Number.isNaN(at.getTime())) throw new FieldError('Enter a date and time for the expiry.', date);
      if (at.getTime() < Date.now() + MINUTE)
        throw new FieldError('The expiry is in the past. Choose a later time.', date);
      return { expires_at: at.toISOString().replace(/\.\d+Z$/, 'Z') };
    },
  };
}

/** A mistake in a field, before anything was sent. */
export class FieldError extends Error {
  constructor(message, control = null) {
    super(message);
    this.control = control;
  }
}

// The dialog ----------------------------------------------------------------------------------------------------------

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

// What a plan shows ---------------------------------------------------------------------------------------------------

export function sessionsEnded(sessions, total, { kept = null } = {}) {
  if (total === 0) {
    const rest = kept ? ` ${count(kept, 'session stays', 'sessions stay')} open.` : '';
    return h('section', {}, h('h3', {}, 'Sessions'), h('p', { class: 'plan-none' }, `No open session ends.${rest}`));
  }
  return h(
    'section',
    {},
    h('h3', {}, `${count(total, 'session ends', 'sessions end')}`),
    plainTable(
      'Sessions that end',
      ['Session', 'Client', 'Certificate', 'Reason'],
      sessions
        .slice(0, 200)
        .map((session) => [
          String(session.session),
          [
            clientOf(session),
            session.listener ? h('span', { class: 'muted' }, ' at ', untrusted(session.listener)) : null,
          ],
          untrusted(session.client_subject, { label: 'subject' }),
          [
            words(session.reason),
            session.detail ? h('span', { class: 'muted' }, ': ', untrusted(session.detail, { label: 'reason' })) : null,
          ],
        ]),
    ),
    total > Math.min(sessions.length, 200)
      ? h('p', { class: 'small muted' }, `The first ${Math.min(sessions.length, 200)} are shown.`)
      : null,
  );
}

export function clientOf({ source, source_port: port, balancer }) {
  const address = port ? (source.includes(':') ? `[${source}]:${port}` : `${source}:${port}`) : source;
  return [h('span', { class: 'mono' }, address), balancer ? h('span', { class: 'muted' }, ` via ${balancer}`) : null];
}

/** A short table that is complete in the document. */
export function plainTable(label, heads, rows, { className = '' } = {}) {
  return h(
    'div',
    { class: 'plain-table-wrap', tabindex: '0', role: 'region', 'aria-label': label },
    h(
      'table',
      { class: `plain-table ${className}` },
      h(
        'thead',
        {},
        h(
          'tr',
          {},
          heads.map((head) => h('th', { scope: 'col' }, head)),
        ),
      ),
      h(
        'tbody',
        {},
        rows.map((row) =>
          h(
            'tr',
            {},
            row.map((cell) => h('td', {}, cell)),
          ),
        ),
      ),
    ),
  );
}

export function ruleLine(sign, rule, more = null) {
  const kind = { '+': 'added', '-': 'removed', '~': 'changed' }[sign];
  const name = { '+': 'added', '-': 'removed', '~': 'changed' }[sign];
  return h(
    'li',
    { class: `rule-line ${kind}` },
    h('span', { class: 'rule-sign', 'aria-hidden': 'true' }, sign === '-' ? '−' : sign),
    h('span', { class: 'visually-hidden' }, `${name}: `),
    h('span', { class: 'mono rule-value' }, untrusted(`${rule.type}:${rule.value}`, { label: 'rule' })),
    h(
      'span',
      { class: 'rule-more' },
      rule.description ? untrusted(rule.description, { label: 'description' }) : null,
      rule.expires_at
        ? h('span', { class: 'muted' }, rule.description ? ' · ' : '', 'expires ', time(rule.expires_at))
        : null,
      more,
    ),
  );
}

export function planSummary(parts) {
  return h(
    'p',
    { class: 'plan-summary' },
    parts.filter(Boolean).map(([kind, text]) => pill(kind, text)),
  );
}

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
