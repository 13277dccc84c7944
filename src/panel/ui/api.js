// Requests to the API of the program, and timers that repeat them.

import { MINUTE, SECOND } from './format.js';

/** A failed request. `status` is 0 when no answer came. */
export class ApiError extends Error {
  constructor({ status, id, message, requestId, retryAfter }) {
    super(message);
    Object.assign(this, { status, id, requestId, retryAfter });
  }
}

/**
 * Events: `session-ended`, `freshness` when a timer fails or recovers, `changed` after a change, and
 * `fault` with an error of the panel itself.
 */
export const bus = new EventTarget();

/** Has all views and the status read again. */
export const notifyChanged = () => bus.dispatchEvent(new Event('changed'));

// The server answers one request per connection and closes further connections of one source above its limit.
const MAX_PARALLEL = 4;
let running = 0;
const waiting = [];

function acquire() {
  if (running < MAX_PARALLEL) {
    running += 1;
    return Promise.resolve();
  }
  return new Promise((resolve) => waiting.push(resolve));
}

function release() {
  const next = waiting.shift();
  if (next) next();
  else running -= 1;
}

let lastForeground = Date.now();

/** When the server last counted a request as the activity of a person. */
export const lastActivity = () => lastForeground;

export async function toError(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    /* not every failure has a body in JSON */
  }
  return new ApiError({
    status: response.status,
    id: body?.id ?? 'unknown',
    message: body?.message ?? `The program answered ${response.status} ${response.statusText}.`,
    requestId: body?.request_id ?? response.headers.get('x-request-id'),
    retryAfter: response.headers.get('retry-after'),
  });
}

/**
 * Sends a request. Returns `{ data, etag, response }`.
 *
 * `raw` leaves the body of the answer unread, for downloads.
 */
export async function send(method, target, { body, etag, background = false, raw = false } = {}) {
  await acquire();
  try {
    const headers = { Accept: 'application/json' };
    if (background) headers['X-Portcullis-Background'] = 'true';
    else lastForeground = Date.now();
    if (etag) headers['If-Match'] = etag;
    // Also without a body: the type proves to the server that no plain form of another site sent the request.
    if (method !== 'GET') headers['Content-Type'] = 'application/json';
    let response;
    try {
      response = await fetch(target, {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: 'no-store',
        credentials: 'same-origin',
        signal: AbortSignal.timeout(60 * SECOND),
      });
    } catch (error) {
      const message =
        error.name === 'TimeoutError'
          ? 'The program did not answer in 60 s. Check that it runs, then try again.'
          : 'The program cannot be reached. Check that it runs and that the network works, then try again.';
      throw new ApiError({ status: 0, id: 'unreachable', message });
    }
    if (!response.ok) {
      const error = await toError(response);
      if (response.status === 401 && target !== '/ui/session') {
        bus.dispatchEvent(new Event('session-ended'));
      }
      throw error;
    }
    if (raw) return { response };
    let data = null;
    try {
      const text = response.status === 204 ? '' : await response.text();
      data = text === '' ? null : JSON.parse(text);
    } catch {
      throw new ApiError({ status: 0, id: 'unreadable', message: 'The answer of the program ended early. Try again.' });
    }
    return { data, etag: response.headers.get('etag'), response };
  } finally {
    release();
  }
}

export const get = async (target, options) => (await send('GET', target, options)).data;

// Timers --------------------------------------------------------------------------------------------------------------

const failing = new Map();

/** Since when what is shown is not up to date, or `null`. */
export function staleSince() {
  const since = [...failing.values()];
  return since.length === 0
    ? null
    : { since: new Date(Math.min(...since.map((each) => each.since))), error: since[0].error };
}

function report(poll, failure) {
  const before = failing.size;
  if (failure) failing.set(poll, failure);
  else failing.delete(poll);
  if (failure || before !== failing.size) bus.dispatchEvent(new Event('freshness'));
}

/**
 * Loads at once, at an interval, and after each change: later after failures, and not while the tab is hidden.
 *
 * @param load receives `{ background }` for the request
 * @param interval in milliseconds, or a function that returns it
 */
export function poll(load, interval, { onData, onError = () => {} }) {
  const handle = {};
  let timer = null;
  let isStopped = false;
  let isBusy = false;
  let failures = 0;
  let lastGood = Date.now();
  let isFirst = true;
  // How to load again, if that was asked for meanwhile.
  let next = null;
  const every = () => (typeof interval === 'function' ? interval() : interval);

  async function run({ background }) {
    clearTimeout(timer);
    if (isStopped) return;
    if (isBusy) {
      next = { background: background && (next?.background ?? true) };
      return;
    }
    isBusy = true;
    let answer = null;
    let failure = null;
    try {
      answer = await load({ background });
    } catch (error) {
      failure = error;
    }
    if (isStopped) return;
    let wait = 0;
    if (failure) wait = failed(failure);
    // With a request that waits, this answer may be older than the change or the filter for which it was asked.
    else if (!next) wait = arrived(answer);
    isBusy = false;
    if (isStopped) return;
    if (next) {
      const options = next;
      next = null;
      run(options);
    } else if (!document.hidden) {
      timer = setTimeout(() => run({ background: true }), wait);
    }
  }

  function arrived(answer) {
    failures = 0;
    lastGood = Date.now();
    isFirst = false;
    report(handle, null);
    // An error in here is one of the panel, which asking again does not repair.
    try {
      onData(answer);
    } catch (error) {
      console.error(error);
      bus.dispatchEvent(new CustomEvent('fault', { detail: error }));
    }
    return every();
  }

  function failed(error) {
    if (!(error instanceof ApiError)) console.error(error);
    failures += 1;
    // After the sign-in the view is built anew, with new timers.
    if (error.status !== 401) report(handle, { since: lastGood, error });
    onError(error, { isFirst });
    return Math.min(Math.max(every(), 2 * SECOND) * 2 ** Math.min(failures, 5), MINUTE);
  }

  const onVisible = () => {
    if (document.hidden) clearTimeout(timer);
    else run({ background: true });
  };
  const onChanged = () => run({ background: true });
  document.addEventListener('visibilitychange', onVisible);
  bus.addEventListener('changed', onChanged);
  handle.now = ({ background = true } = {}) => run({ background });
  handle.stop = () => {
    isStopped = true;
    clearTimeout(timer);
    document.removeEventListener('visibilitychange', onVisible);
    bus.removeEventListener('changed', onChanged);
    report(handle, null);
  };
  run({ background: false });
  return handle;
}
