// The state of the program and of each listener, with what needs a person first.

import { get, poll } from './api.js';
import { add, h, markReady, replace, svg } from './dom.js';
import { clock, count, dateTime, lookup, MINUTE, number, reasonText, relative, words } from './format.js';
import { admitsNobody, certificateState, issues, roleName } from './issues.js';
import { link } from './router.js';
import { state } from './state.js';
import { emptyState, facts, pill, skeleton, time, untrusted } from './widgets.js';

const WIDTH = 300;
const HEIGHT = 56;
const DENIED_HEIGHT = 20;

export function overviewView(page, { parameters }) {
  const banner = h('section', { class: 'banner', id: 'banner', 'aria-label': 'What needs you' });
  const program = h('section', { class: 'card program', id: 'program', 'aria-labelledby': 'program-title' });
  const cards = h('div', { class: 'listener-cards' });
  add(page, [h('h1', {}, 'Overview'), banner, h('h2', { class: 'section-title' }, 'Listeners'), cards, program]);
  const charts = new Map();
  const shown = new Map();
  let history = null;
  let highlighted = parameters.get('listener');
  let lastBanner = '';
  let lastProgram = '';

  function draw(status) {
    if (!status) return;
    drawBanner(status);
    drawProgram(status);
    const names = new Set(status.listeners.map(({ name }) => name));
    for (const [name, card] of shown) {
      if (!names.has(name)) {
        card.element.remove();
        shown.delete(name);
        charts.delete(name);
      }
    }
    if (status.listeners.length === 0 && cards.childElementCount === 0) {
      replace(
        cards,
        emptyState(
          'No listener is configured',
          'Add a [[listener]] to the configuration, then reload.',
          h('a', { class: 'button', href: link('reload') }, 'Open Reload'),
        ),
      );
    }
    for (const listener of status.listeners) {
      let card = shown.get(listener.name);
      if (!card) {
        card = listenerCard(listener.name, charts);
        shown.set(listener.name, card);
        cards.querySelector('.empty')?.remove();
        cards.append(card.element);
        if (history) card.chart.show(historyOf(listener.name));
      }
      card.update(listener);
    }
    if (highlighted) {
      const card = shown.get(highlighted)?.element;
      card?.classList.add('highlight');
      card?.scrollIntoView({ block: 'center' });
      highlighted = null;
    }
  }

  const historyOf = (name) => {
    const found = history?.listeners.find((each) => each.name === name);
    return found ? { ...found, interval: history.interval_seconds, until: history.until } : null;
  };

  function drawBanner(status) {
    const list = issues({ ...state, status });
    const signature = JSON.stringify(list.map((issue) => ({ ...issue, text: null }))) + Math.floor(Date.now() / MINUTE);
    if (signature === lastBanner) return;
    lastBanner = signature;
    if (list.length === 0) {
      replace(banner, h('p', { class: 'all-good' }, pill('good', 'Nothing needs your attention')));
      return;
    }
    // Rebuilding the list would take the focus from its links.
    const focused = banner.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    replace(
      banner,
      h(
        'ul',
        { class: 'issues' },
        list.map(({ kind, key, title, text, target, action }) =>
          h(
            'li',
            { class: `issue ${kind}`, 'data-issue': key },
            h('span', { class: 'notice-sign', 'aria-hidden': 'true' }, { bad: '✕', warn: '!', info: 'i' }[kind]),
            h(
              'div',
              { class: 'issue-text' },
              h('p', { class: 'issue-title' }, untrusted(title, { wrap: true })),
              h('p', { class: 'small' }, untrusted(text, { wrap: true })),
            ),
            h('a', { class: 'button small', href: target, 'data-key': key }, action),
          ),
        ),
      ),
    );
    if (focused) banner.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  function drawProgram(status) {
    const { last_reload: last, descriptors } = status;
    const signature = JSON.stringify([
      status.version,
      status.pid,
      status.generation,
      last,
      descriptors,
      status.faults,
      status.draining,
    ]);
    if (signature === lastProgram) return;
    lastProgram = signature;
    replace(
      program,
      h('h2', { id: 'program-title' }, 'Program'),
      facts([
        ['Version', status.version],
        ['Process', [String(status.pid), ', started ', time(status.started_at)]],
        ['Configuration', h('code', { class: 'break' }, untrusted(status.config, { label: 'path' }))],
        ['Policy in force', [`generation ${number(status.generation)}, since `, time(status.loaded_at)]],
        [
          'Last reload',
          last
            ? [
                pill(last.result === 'applied' ? 'good' : 'bad', last.result),
                ' ',
                time(last.at),
                ' ',
                h('a', { href: link('reload') }, 'Open Reload'),
              ]
            : 'none yet',
        ],
        descriptors
          ? ['Connections', `${number(descriptors.connections)} of at most ${number(descriptors.max_connections)}`]
          : null,
        ['Internal faults', (status.faults ?? []).length === 0 ? 'none' : count(status.faults.length, 'fault')],
      ]),
      last?.error
        ? h('pre', { class: 'error-block', tabindex: '0', 'aria-label': 'Error of the last reload' }, last.error)
        : null,
    );
  }

  replace(banner, skeleton(1));
  draw(state.status);
  const historyPoll = poll(
    (options) =>
      get('/v1/history', options).catch((error) => {
        // A program of an earlier version has no history.
        if (error.status === 404) return null;
        throw error;
      }),
    MINUTE,
    {
      onData: (data) => {
        history = data;
        for (const [name, chart] of charts) chart.show(historyOf(name), { isMissing: data === null });
        markReady(page);
      },
    },
  );
  return { onStatus: draw, destroy: () => historyPoll.stop() };
}

const HEALTH = { healthy: ['good', 'healthy'], unhealthy: ['bad', 'unhealthy'], unknown: ['idle', 'not dialled yet'] };

function listenerCard(name, charts) {
  const titleId = `listener-${CSS.escape(name)}`;
  const head = h('div', { class: 'card-head' });
  const body = h('div', { class: 'card-body' });
  const chart = sessionChart(name);
  charts.set(name, chart);
  const sessions = h('p', { class: 'big-number' });
  const element = h(
    'article',
    { class: 'card listener-card', 'aria-labelledby': titleId, 'data-listener': name, id: `card-${name}` },
    head,
    h('div', { class: 'card-chart' }, sessions, chart.element),
    body,
  );
  let last = '';

  function update(listener) {
    const signature = JSON.stringify({ ...listener, handshakes: 0 });
    if (signature === last) return;
    last = signature;
    const [kind, health] = lookup(HEALTH, listener.upstream_health) ?? ['idle', words(listener.upstream_health)];
    replace(
      head,
      h(
        'div',
        { class: 'card-title' },
        h('h3', { id: titleId }, untrusted(name, { label: 'name' })),
        h('span', { class: 'protocol' }, listener.protocol),
      ),
      listener.enforcement === 'observe' ? pill('warn', 'observe') : null,
    );
    replace(
      sessions,
      h(
        'a',
        { href: link('sessions', '', { listener: name }) },
        h('strong', {}, number(listener.sessions)),
        h('span', {}, listener.sessions === 1 ? ' open session' : ' open sessions'),
      ),
    );
    const healthy = (listener.upstreams ?? []).filter((each) => each.healthy).length;
    const broken = (listener.upstreams ?? []).filter((each) => each.health === 'unhealthy');
    const stale = (listener.dns_sources ?? []).filter((each) => each.stale);
    const unsettled = (listener.cloud_sources ?? []).filter((each) => each.state !== 'resolved');
    const expiry = listener.next_certificate_expiry;
    replace(
      body,
      facts(
        [
          [
            'Addresses',
            h(
              'ul',
              { class: 'plain' },
              listener.addresses.map((address) => h('li', { class: 'mono' }, untrusted(address, { label: 'address' }))),
            ),
          ],
          [
            'Upstream',
            [
              h('span', { class: 'mono' }, untrusted(listener.upstream, { label: 'address' })),
              ' ',
              pill(kind, health),
              listener.upstreams?.length > 1
                ? h('span', { class: 'muted' }, ` ${healthy} of ${listener.upstreams.length} healthy`)
                : null,
              broken
                .slice(0, 3)
                .map((each) =>
                  h(
                    'p',
                    { class: 'small bad-text' },
                    untrusted(`${each.address}: ${each.error ?? 'no answer'}`, { wrap: true }),
                  ),
                ),
            ],
          ],
          [
            'Trusted sources',
            [
              h('a', { href: link('sources', name) }, count(listener.trusted_sources, 'rule')),
              admitsNobody(listener) ? [' ', pill('bad', 'admits nobody')] : null,
            ],
          ],
          [
            'Host names',
            (listener.dns_sources ?? []).length === 0
              ? null
              : stale.length === 0
                ? [count(listener.dns_sources.length, 'name'), ' ', pill('good', 'resolved')]
                : [
                    pill('warn', `${stale.length} of ${listener.dns_sources.length} stale`),
                    ' ',
                    h('a', { href: link('sources', name, { q: 'dns' }) }, 'Show'),
                  ],
          ],
          [
            'Cloud sources',
            (listener.cloud_sources ?? []).length === 0
              ? null
              : unsettled.length === 0
                ? [count(listener.cloud_sources.length, 'source'), ' ', pill('good', 'resolved')]
                : [
                    pill('warn', `${unsettled.length} of ${listener.cloud_sources.length} not resolved`),
                    ' ',
                    h('a', { href: link('sources', name) }, 'Show'),
                  ],
          ],
          ['Denied', denied(name, listener.denied)],
          [
            'TLS',
            listener.tls
              ? [clientAuthText(listener.client_auth), ' ', h('a', { href: link('tls', name) }, 'Show')]
              : pill('warn', 'off'),
          ],
          [
            'Next expiry',
            expiry
              ? [
                  expiryPill(expiry),
                  ' ',
                  h('span', { class: 'muted' }, `${roleName(expiry.role)} `),
                  untrusted(expiry.subject, { label: 'subject' }),
                ]
              : h('span', { class: 'muted' }, 'no certificate'),
          ],
          ['Shield', shield(listener.shield)],
        ].filter((entry) => entry && entry[1] !== null),
      ),
    );
  }
  return { element, update, chart };
}

const clientAuthText = (mode) =>
  mode === 'none' ? 'on, no client certificate requested' : `on, client certificate ${mode}`;

function expiryPill({ not_after: until }) {
  const { kind, text } = certificateState({ not_after: until });
  const shown = kind === 'good' ? `${text}, expires ${relative(until)}` : text;
  return h('span', { title: dateTime(until) }, pill(kind, shown));
}

function shield(value) {
  if (!value || value.mode === 'off') return h('span', { class: 'muted' }, 'off');
  const dropped = value.dropped ? `, ${count(value.dropped, 'packet')} dropped` : '';
  if (value.unavailable_reason) {
    return [
      pill('warn', 'not active'),
      h('p', { class: 'small' }, untrusted(value.unavailable_reason, { wrap: true })),
    ];
  }
  if (value.active_since) return [pill('good', 'active'), ` since ${dateTime(value.active_since)}${dropped}`];
  return `${value.mode}, not active now${dropped}`;
}

function denied(name, reasons) {
  const list = Object.entries(reasons ?? {}).sort((a, b) => b[1] - a[1]);
  if (list.length === 0) return h('span', { class: 'muted' }, 'none since the start');
  const top = list.slice(0, 3);
  const rest = list.slice(3).reduce((sum, [, value]) => sum + value, 0);
  return h(
    'ul',
    { class: 'plain denied-reasons' },
    top.map(([reason, value]) =>
      h(
        'li',
        {},
        h(
          'a',
          { href: link('denials', '', { listener: name, q: reasonText(reason) }) },
          h('span', { class: 'num' }, number(value)),
          ` × ${reasonText(reason)}`,
        ),
      ),
    ),
    rest > 0 ? h('li', { class: 'muted' }, h('span', { class: 'num' }, number(rest)), ' × other reasons') : null,
  );
}

// Charts --------------------------------------------------------------------------------------------------------------

function sessionChart(name) {
  const drawing = h('div', { class: 'chart-drawing' });
  const readout = h('p', { class: 'chart-readout', 'aria-hidden': 'true' }, ' ');
  const element = h('div', { class: 'chart' }, drawing, readout);
  let data = null;

  function show(history, { isMissing = false } = {}) {
    data = history;
    const points = history?.sessions ?? [];
    if (points.length < 2) {
      replace(
        drawing,
        h(
          'p',
          { class: 'chart-empty' },
          isMissing ? 'This version has no history.' : 'The chart appears after two minutes.',
        ),
      );
      readout.textContent = ' ';
      return;
    }
    const highest = Math.max(1, ...points);
    const denials = history.denied ?? [];
    const mostDenied = Math.max(1, ...denials);
    // The newest sample is at the right edge, also when the hour is not complete.
    const x = (index) => WIDTH - (points.length - 1 - index) * (WIDTH / 59);
    const y = (value) => HEIGHT - 3 - (value / highest) * (HEIGHT - 6);
    const line = points
      .map((value, index) => `${index === 0 ? 'M' : 'L'}${x(index).toFixed(1)} ${y(value).toFixed(1)}`)
      .join('');
    const area = `${line}L${WIDTH} ${HEIGHT}L${x(0).toFixed(1)} ${HEIGHT}Z`;
    const bar = WIDTH / 59 - 1.5;
    const total = denials.reduce((sum, value) => sum + value, 0);
    const label = [
      `Sessions at ${name} in the last hour: now ${points.at(-1)}`,
      `highest ${Math.max(...points)}, lowest ${Math.min(...points)}. Denied connections: ${total}.`,
    ].join(', ');
    const graphic = svg(
      'svg',
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT + DENIED_HEIGHT + 4}`,
        preserveAspectRatio: 'none',
        role: 'img',
        class: 'chart-svg',
        'aria-label': label,
      },
      svg('line', { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT, class: 'chart-axis' }),
      svg('path', { d: area, class: 'chart-area' }),
      svg('path', { d: line, class: 'chart-line', 'vector-effect': 'non-scaling-stroke' }),
      denials.map((value, index) => {
        if (value === 0) return null;
        const height = Math.max(2, (value / mostDenied) * DENIED_HEIGHT);
        return svg('rect', {
          x: (x(index) - bar / 2).toFixed(1),
          y: (HEIGHT + 4 + DENIED_HEIGHT - height).toFixed(1),
          width: bar.toFixed(1),
          height: height.toFixed(1),
          class: 'chart-denied',
        });
      }),
      svg('line', {
        x1: 0,
        x2: 0,
        y1: 0,
        y2: HEIGHT + DENIED_HEIGHT + 4,
        class: 'chart-cursor',
        'vector-effect': 'non-scaling-stroke',
        visibility: 'hidden',
      }),
    );
    replace(drawing, graphic);
    const cursor = graphic.lastElementChild;
    graphic.addEventListener('pointermove', (event) => {
      const box = graphic.getBoundingClientRect();
      const position = ((event.clientX - box.left) / box.width) * WIDTH;
      const index = Math.max(
        0,
        Math.min(points.length - 1, Math.round(points.length - 1 - (WIDTH - position) / (WIDTH / 59))),
      );
      cursor.setAttribute('x1', x(index));
      cursor.setAttribute('x2', x(index));
      cursor.setAttribute('visibility', 'visible');
      const at = new Date(new Date(data.until).getTime() - (points.length - 1 - index) * data.interval * 1000);
      replace(
        readout,
        h('span', {}, clock(at)),
        h('span', {}, `${count(points[index], 'session')}, ${number(denials[index] ?? 0)} denied`),
      );
    });
    graphic.addEventListener('pointerleave', () => {
      cursor.setAttribute('visibility', 'hidden');
      rest();
    });
    const rest = () =>
      replace(
        readout,
        h('span', {}, `last hour, highest ${number(Math.max(...points))}`),
        h('span', {}, total > 0 ? `${number(total)} denied` : 'none denied'),
      );
    rest();
  }
  replace(drawing, h('p', { class: 'chart-empty' }, 'Loading…'));
  return { element, show };
}
