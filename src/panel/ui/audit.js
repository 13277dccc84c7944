// Audit events as they happen.

import { ApiError, bus, toError } from './api.js';
import { add, button, h, markReady, replace } from './dom.js';
import { matcher, searchField } from './filter.js';
import { bytes, clockSeconds, count, duration, fullTime, number, SECOND, visible, words } from './format.js';
import { listenerFilter } from './listener-picker.js';
import { remember } from './router.js';
import { query as asQuery } from './url.js';
import { commandBox, emptyState, errorNotice, facts, field, notice, pageHead, select, untrusted } from './widgets.js';

/** Events that stay in the page. Older ones are in the audit file. */
const MAX_EVENTS = 400;
const RECENT = 200;

/** Recent events arrive within this time, if there are any. */
const READY = SECOND / 2;

/** The server sends a comment every 15 s. Without one for this time the connection is dead. */
const SILENCE = 45 * SECOND;

/** A comment arrives within this time of connecting, unless something on the way holds it back. */
const FIRST = 20 * SECOND;

const EVENTS = [
  'connection.denied',
  'connection.opened',
  'connection.closed',
  'session.revoked',
  'admin.action',
  'admin.denied',
  'source.added',
  'source.removed',
  'source.resolved',
  'source.stale',
  'reload.applied',
  'reload.rejected',
  'policy.weakened',
  'certificate.expiring',
  'cancel.forwarded',
  'shield.on',
  'shield.off',
];
const KINDS = [
  [/^(connection\.denied|admin\.denied|reload\.rejected)$/, 'bad'],
  [/(weakened|expiring|revoked|stale|dropped|suppressed|shield)/, 'warn'],
  [/(opened|applied|added)$/, 'good'],
];

export function auditView(page, { parameters }) {
  let listener = parameters.get('listener') ?? '';
  let event = parameters.get('event') ?? '';
  let query = parameters.get('q') ?? '';
  let isPaused = false;
  let held = 0;
  let entries = [];
  let seen = new Set();
  let controller = null;
  let retry = null;
  let ready = null;
  let failures = 0;
  let isDestroyed = false;

  const list = h('ol', { class: 'events', id: 'events', 'aria-label': 'Audit events, newest first' });
  const status = h('p', { class: 'counter', role: 'status', id: 'stream-status' });
  const message = h('div', { 'aria-live': 'polite' });
  const pause = button(
    'Pause',
    () => {
      isPaused = !isPaused;
      pause.textContent = isPaused ? 'Continue' : 'Pause';
      pause.setAttribute('aria-pressed', String(isPaused));
      if (!isPaused) {
        held = 0;
        draw();
      }
      showStatus();
    },
    { id: 'pause', 'aria-pressed': 'false' },
  );
  const kind = select(
    [['', 'All events'], ...[...new Set([...EVENTS, ...(event ? [event] : [])])].map((each) => [each, each])],
    event,
    {
      id: 'event',
      name: 'event',
      on: {
        change: () => {
          event = kind.value;
          remember({ event });
          restart();
        },
      },
    },
  );
  const search = searchField({
    id: 'search-events',
    label: 'Search events',
    value: query,
    onInput: (text) => {
      query = text;
      hasTerms = matcher(query);
      remember({ q: text });
      draw();
    },
  });
  add(page, [
    pageHead(
      'Audit',
      'Events as they happen, newest first. The program keeps the last 1,024; the audit file has all of them.',
    ),
    h(
      'div',
      { class: 'toolbar' },
      listenerFilter(listener, (chosen) => {
        listener = chosen;
        remember({ listener });
        restart();
      }),
      field('Event', kind),
      search.element,
      h('div', { class: 'actions push' }, pause),
    ),
    message,
    h('div', { class: 'bar' }, status),
    list,
  ]);

  let connection = 'connecting';
  function showStatus() {
    const shown = entries.filter(isMatch).length;
    const state = {
      connecting: 'Connecting…',
      live: 'Live',
      hidden: 'Waiting while the tab is hidden',
      retrying: 'Disconnected, connecting again…',
    }[connection];
    const text = isPaused ? `Paused, ${number(held)} new` : `${state} · ${number(shown)} shown`;
    if (status.textContent !== text) status.textContent = text;
  }

  let hasTerms = matcher(query);
  const isMatch = (entry) => hasTerms(entry.haystack);

  // Events ------------------------------------------------------------------------------------------------------------

  let queued = [];
  let isScheduled = false;
  function put(name, data) {
    if (name === 'lost') {
      let lost = 0;
      try {
        lost = JSON.parse(data).lost;
      } catch {
        /* the number is unknown */
      }
      queued.push({
        element: h(
          'li',
          { class: 'event lost' },
          `${number(lost)} events were lost here, because this page read too slowly. The audit file has them.`,
        ),
        haystack: '',
        isLost: true,
      });
    } else {
      // After a reconnect, the recent events come again.
      if (seen.has(data)) return;
      seen.add(data);
      let fields;
      try {
        fields = JSON.parse(data);
      } catch {
        return;
      }
      queued.push({ element: null, fields, haystack: data.toLowerCase(), data });
    }
    if (!isScheduled) {
      isScheduled = true;
      // A flood of events costs one layout for each frame, not one for each event.
      setTimeout(flush, 120);
    }
  }

  function flush() {
    isScheduled = false;
    if (isDestroyed) return;
    const fresh = queued.slice(-MAX_EVENTS);
    queued = [];
    entries = [...fresh.reverse(), ...entries].slice(0, MAX_EVENTS);
    if (seen.size > 4 * MAX_EVENTS) seen = new Set(entries.map((entry) => entry.data));
    markReady(page);
    if (isPaused) {
      held += fresh.length;
    } else {
      draw();
    }
    showStatus();
  }

  function draw() {
    const shown = entries.filter((entry) => entry.isLost || isMatch(entry));
    if (shown.length === 0) {
      replace(
        list,
        h(
          'li',
          {},
          emptyState(
            entries.length === 0 ? 'No event yet' : 'No event matches',
            entries.length === 0
              ? 'Events appear here within a second: connections, changes, reloads.'
              : 'Change the filter to see the others.',
          ),
        ),
      );
    } else {
      const keep = new Set(shown.map((entry) => (entry.element ??= eventElement(entry))));
      for (const child of [...list.children]) if (!keep.has(child)) child.remove();
      let place = list.firstElementChild;
      for (const { element } of shown) {
        if (element === place) place = place.nextElementSibling;
        else list.insertBefore(element, place);
      }
    }
    showStatus();
  }

  // The stream --------------------------------------------------------------------------------------------------------

  function restart() {
    entries = [];
    seen = new Set();
    queued = [];
    failures = 0;
    draw();
    connect();
  }

  async function connect() {
    clearTimeout(retry);
    controller?.abort();
    if (isDestroyed) return;
    if (document.hidden) {
      connection = 'hidden';
      showStatus();
      return;
    }
    const mine = new AbortController();
    controller = mine;
    connection = failures === 0 ? 'connecting' : 'retrying';
    showStatus();
    let silence = null;
    let isArriving = false;
    const buffering = setTimeout(() => replace(message, bufferingNotice()), FIRST);
    const alive = () => {
      clearTimeout(silence);
      silence = setTimeout(() => mine.abort(), SILENCE);
    };
    try {
      alive();
      const response = await fetch(`/v1/events${asQuery({ listener, event, recent: RECENT })}`, {
        headers: { Accept: 'text/event-stream', 'X-Portcullis-Background': 'true' },
        cache: 'no-store',
        signal: mine.signal,
      });
      if (!response.ok) throw await toError(response);
      connection = 'live';
      ready ??= setTimeout(() => markReady(page), READY);
      failures = 0;
      showStatus();
      await read(response.body, () => {
        alive();
        if (isArriving) return;
        isArriving = true;
        clearTimeout(buffering);
        replace(message);
      });
      throw new ApiError({ status: 0, id: 'ended', message: 'The stream of events ended.' });
    } catch (error) {
      if (isDestroyed || controller !== mine) return;
      if (error.status === 401) {
        bus.dispatchEvent(new Event('session-ended'));
        return;
      }
      failures += 1;
      connection = 'retrying';
      showStatus();
      if (error instanceof ApiError && error.status > 0) replace(message, errorNotice(error));
      const wait = Math.min(SECOND * 2 ** failures, 60 * SECOND) * (0.75 + Math.random() / 2);
      retry = setTimeout(connect, wait);
    } finally {
      clearTimeout(silence);
      clearTimeout(buffering);
    }
  }

  async function read(body, alive) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      rest += value.replaceAll('\r\n', '\n');
      const blocks = rest.split('\n\n');
      rest = blocks.pop();
      for (const block of blocks) {
        let name = 'message';
        const data = [];
        for (const line of block.split('\n')) {
          if (line.startsWith('event:')) name = line.slice(6).trim();
          else if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
        }
        if (data.length > 0) put(name, data.join('\n'));
      }
    }
  }

  const onVisible = () => {
    if (document.hidden) {
      controller?.abort();
      controller = null;
      clearTimeout(retry);
      connection = 'hidden';
      showStatus();
    } else {
      connect();
    }
  };
  document.addEventListener('visibilitychange', onVisible);
  draw();
  connect();
  return {
    destroy() {
      isDestroyed = true;
      clearTimeout(retry);
      clearTimeout(ready);
      search.destroy();
      controller?.abort();
      document.removeEventListener('visibilitychange', onVisible);
    },
  };
}

function bufferingNotice() {
  return notice(
    'warn',
    h(
      'p',
      {},
      h('strong', {}, 'No event arrived within 20 seconds.'),
      ' A reverse proxy may be buffering them. For nginx, set ',
      h('code', {}, 'proxy_buffering off'),
      ' for this address.',
    ),
  );
}

const kindOf = (name) => KINDS.find(([pattern]) => pattern.test(name))?.[1] ?? '';

function eventElement({ fields, data }) {
  const { ts, event, ...others } = fields;
  const body = h('div', { class: 'event-body' });
  const details = h(
    'details',
    {
      on: {
        toggle: () => {
          if (details.open && body.childElementCount === 0) fillBody();
        },
      },
    },
    h(
      'summary',
      {},
      h('time', { datetime: ts, title: ts ? fullTime(ts) : null }, ts ? clockSeconds(new Date(ts)) : ''),
      h('span', { class: `event-name ${kindOf(event ?? '')}` }, visible(event)),
      h('span', { class: 'event-text' }, summary(event, others)),
    ),
    body,
  );
  function fillBody() {
    replace(
      body,
      facts([
        ['Time', ts ? fullTime(ts) : 'unknown'],
        ...Object.entries(others).map(([key, value]) => [
          words(key),
          h(
            'span',
            { class: 'mono' },
            untrusted(typeof value === 'string' ? value : JSON.stringify(value), { wrap: true }),
          ),
        ]),
      ]),
      commandBox('JSON', data),
    );
  }
  return h('li', { class: 'event' }, details);
}

/** The fields that say most, in one line. */
function summary(event, fields) {
  const parts = [];
  const put = (text, label = 'text') => {
    if (text !== undefined && text !== null && text !== '') {
      parts.push(
        parts.length > 0 ? ' · ' : null,
        h('bdi', { dir: 'auto', title: label }, visible(String(text).slice(0, 200))),
      );
    }
  };
  put(fields.listener, 'listener');
  put(fields.generation ? `generation ${fields.generation}` : null, 'policy');
  put(fields.actor, 'actor');
  put(fields.action, 'action');
  put(fields.target, 'target');
  put(fields.source, 'source');
  put(fields.reason ? words(fields.reason) : null, 'reason');
  put(fields.client_subject ?? fields.subject, 'subject');
  put(fields.sni, 'host name');
  put(fields.rule, 'rule');
  put(fields.key ? `${fields.key}: ${fields.old} → ${fields.new}` : null, 'setting');
  put(fields.sources_added ? `${count(fields.sources_added, 'source')} added` : null, 'sources added');
  put(fields.sources_removed ? `${count(fields.sources_removed, 'source')} removed` : null, 'sources removed');
  put(
    fields.weakened_count
      ? count(fields.weakened_count, 'setting weakens protection', 'settings weaken protection')
      : null,
    'weakened',
  );
  put(fields.error, 'error');
  put(fields.detail, 'detail');
  if (fields.bytes_in !== undefined) put(`${bytes(fields.bytes_in)} in, ${bytes(fields.bytes_out ?? 0)} out`, 'bytes');
  if (event === 'connection.closed' && fields.duration_ms !== undefined) put(duration(fields.duration_ms), 'duration');
  return parts;
}
