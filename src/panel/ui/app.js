// Starts the panel: session, shell, views and keys.

import { bus, get, lastActivity, poll, send, staleSince } from './api.js';
import { auditView } from './audit.js';
import { clientsView } from './clients.js';
import { denialsView } from './denials.js';
import { announce, closeDialogs, toast } from './dialogs.js';
import { button, h, replace } from './dom.js';
import { explainView } from './explain.js';
import { fleetView } from './fleet.js';
import { clockSeconds, dateTime, MINUTE, SECOND } from './format.js';
import { issues } from './issues.js';
import { showShortcuts, startKeys } from './keys.js';
import { overviewView } from './overview.js';
import { reloadView } from './reload.js';
import { rotationView } from './rotation.js';
import { link, route } from './router.js';
import { sessionsView } from './sessions.js';
import { signIn } from './signin.js';
import { sourcesView } from './sources.js';
import { authenticates, can, state } from './state.js';
import { tlsView } from './tls.js';
import { tokensView } from './tokens.js';
import { errorNotice, notice, time, untrusted, updateTimes } from './widgets.js';

const VIEWS = [
  { name: 'overview', label: 'Overview', key: 'o', show: overviewView },
  { name: 'sources', label: 'Trusted sources', key: 's', show: sourcesView },
  { name: 'denials', label: 'Denials', key: 'd', show: denialsView },
  { name: 'sessions', label: 'Sessions', key: 'n', show: sessionsView },
  { name: 'clients', label: 'Clients', key: 'c', show: clientsView, isPresent: authenticates },
  { name: 'tls', label: 'TLS', key: 't', show: tlsView },
  { name: 'rotation', label: 'Rotation', key: 'r', show: rotationView },
  { name: 'explain', label: 'Explain', key: 'e', show: explainView },
  { name: 'reload', label: 'Reload', key: 'l', show: reloadView },
  { name: 'fleet', label: 'Fleet', key: 'f', show: fleetView, isPresent: () => Boolean(state.status?.fleet) },
  { name: 'audit', label: 'Audit', key: 'a', show: auditView },
  { name: 'tokens', label: 'Tokens', key: 'k', show: tokensView, role: 'owner' },
];

const main = document.getElementById('main');
const nav = document.getElementById('nav');
const account = document.getElementById('account');
const menuButton = document.getElementById('menu-button');
const menu = document.getElementById('shell-menu');

let current = null;
let statusPoll = null;
let certificatePoll = null;

// Views ---------------------------------------------------------------------------------------------------------------

const offered = () => VIEWS.filter((view) => (!view.role || can(view.role)) && (view.isPresent?.() ?? true));

const drain = h('div', { class: 'drain', id: 'drain', hidden: true });

/** Says on every page that changes are not possible. The overview has it among its issues. */
function showDrain() {
  const until = state.status?.draining?.until;
  drain.hidden = !until || route().view === 'overview';
  if (drain.dataset.until === String(until)) return;
  drain.dataset.until = String(until);
  replace(
    drain,
    until
      ? notice(
          'bad',
          h(
            'p',
            {},
            h('strong', {}, 'The program is draining.'),
            ' Changes are not possible. The remaining sessions are closed ',
            time(until),
            '.',
          ),
        )
      : null,
  );
}

function showView({ focus = true, keepsDialogs = false } = {}) {
  const place = route();
  const view = offered().find((each) => each.name === place.view);
  current?.destroy?.();
  current = null;
  closeMenu();
  if (!keepsDialogs) closeDialogs();
  if (!view) {
    document.title = 'Portcullis';
    const known = VIEWS.find((each) => each.name === place.view);
    const isForbidden = known?.role && !can(known.role);
    replace(
      main,
      h(
        'div',
        { class: 'page' },
        h('h1', {}, known ? 'Not available' : 'No such page'),
        h(
          'p',
          {},
          isForbidden
            ? 'Your role does not permit this page. Sign in with a token of an owner.'
            : known
              ? 'The configuration has no section for this page.'
              : 'The address names no page of the panel.',
        ),
        h('p', {}, h('a', { href: '#/' }, 'Open the overview')),
      ),
    );
    markCurrent(null);
    return;
  }
  document.title = `${view.label}${place.name ? ` · ${place.name}` : ''} · Portcullis`;
  markCurrent(view.name);
  const page = h('div', { class: `page page-${view.name}` });
  replace(main, drain, page);
  showDrain();
  try {
    current = view.show(page, place) ?? {};
  } catch (error) {
    console.error(error);
    replace(page, h('h1', {}, view.label), errorNotice(error));
    current = {};
  }
  if (focus) {
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
    announce(view.label);
  }
}

function markCurrent(name) {
  for (const item of nav.querySelectorAll('a')) {
    if (item.dataset.view === name) item.setAttribute('aria-current', 'page');
    else item.removeAttribute('aria-current');
  }
}

const namesOf = (views) => views.map(({ name }) => name).join(' ');

/** Shows the views that the status offers. The links keep the focus unless the offer changes. */
function updateNav() {
  if (nav.dataset.views === namesOf(offered())) return;
  showNav();
  markCurrent(route().view);
}

function showNav() {
  nav.dataset.views = namesOf(offered());
  replace(
    nav,
    h(
      'ul',
      {},
      offered().map((view) =>
        h(
          'li',
          {},
          h(
            'a',
            {
              href: link(view.name),
              'data-view': view.name,
              id: `nav-${view.name}`,
              'aria-keyshortcuts': `g ${view.key}`,
            },
            h('span', {}, view.label),
            view.name === 'overview' ? h('span', { class: 'badge', id: 'issue-count', hidden: true }) : null,
          ),
        ),
      ),
    ),
  );
}

function showIssueCount() {
  const badge = document.getElementById('issue-count');
  if (!badge) return;
  const urgent = issues(state).filter(({ kind }) => kind !== 'info');
  badge.hidden = urgent.length === 0;
  badge.className = `badge ${urgent.some(({ kind }) => kind === 'bad') ? 'bad' : 'warn'}`;
  replace(
    badge,
    h('span', { 'aria-hidden': 'true' }, String(urgent.length)),
    h('span', { class: 'visually-hidden' }, `, ${urgent.length} to look at`),
  );
}

// Shell ---------------------------------------------------------------------------------------------------------------

function closeMenu() {
  menu.classList.remove('open');
  menuButton.setAttribute('aria-expanded', 'false');
}

menuButton.addEventListener('click', () => {
  const isOpen = menu.classList.toggle('open');
  menuButton.setAttribute('aria-expanded', String(isOpen));
  if (isOpen) nav.querySelector('a')?.focus();
});

document.getElementById('skip-link').addEventListener('click', (event) => {
  // The hash belongs to the router.
  event.preventDefault();
  main.focus();
});

const THEMES = [
  ['auto', 'System'],
  ['light', 'Light'],
  ['dark', 'Dark'],
];

function themeChoice() {
  const chosen = document.documentElement.dataset.theme ?? 'auto';
  const choose = (value) => {
    if (value === 'auto') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = value;
    try {
      if (value === 'auto') localStorage.removeItem('portcullis-theme');
      else localStorage.setItem('portcullis-theme', value);
    } catch {
      /* the choice lasts as long as the page */
    }
  };
  return h(
    'fieldset',
    { class: 'theme', id: 'theme' },
    h('legend', { class: 'visually-hidden' }, 'Theme'),
    THEMES.map(([value, label]) =>
      h(
        'label',
        {},
        h('input', {
          type: 'radio',
          name: 'theme',
          value,
          checked: value === chosen,
          on: { change: () => choose(value) },
        }),
        h('span', {}, label),
      ),
    ),
  );
}

function showAccount() {
  const { name, role, ends_at: ends } = state.session;
  replace(
    account,
    h(
      'p',
      {
        class: 'account-name',
        id: 'account-name',
        title: ends ? `The session ends ${dateTime(ends)} at the latest` : null,
      },
      untrusted(name, { label: 'name of the token' }),
    ),
    h('p', { class: 'account-role', id: 'account-role' }, role),
    h(
      'div',
      { class: 'actions' },
      button('Sign out', signOut, { kind: 'small', id: 'sign-out' }),
      button('Shortcuts', () => showShortcuts(offered()), {
        kind: 'small quiet',
        id: 'shortcuts',
        'aria-keyshortcuts': '?',
      }),
    ),
    themeChoice(),
  );
}

async function signOut() {
  try {
    await send('DELETE', '/ui/session');
  } catch (error) {
    if (error.status !== 401) {
      toast('bad', `Not signed out: ${error.message}`);
      return;
    }
  }
  stopAll();
  await start({ reason: 'You are signed out.' });
}

function showFreshness() {
  const element = document.getElementById('freshness');
  const stale = staleSince();
  element.classList.toggle('stale', stale !== null);
  element.title = stale ? `${stale.error.message} The panel tries again by itself.` : 'What is shown is up to date.';
  const text = stale ? `Not up to date since ${clockSeconds(stale.since)}` : 'Up to date';
  if (element.textContent !== text) element.textContent = text;
}

bus.addEventListener('freshness', showFreshness);

bus.addEventListener('fault', ({ detail: error }) => {
  toast('bad', `The panel cannot show this page: ${error.message}. Reload it; report the fault if it comes back.`);
});

// Session -------------------------------------------------------------------------------------------------------------

function stopAll() {
  statusPoll?.stop();
  certificatePoll?.stop();
  current?.destroy?.();
  current = null;
  closeDialogs({ force: true });
  Object.assign(state, { session: null, status: null, certificates: null, undo: null });
  replace(main);
}

const ENDED = [
  'Your session has ended. The token expired or was revoked, you signed out in another tab, 30 minutes passed without',
  'activity, or the program was restarted. Sign in again to return to this page.',
].join(' ');

bus.addEventListener('session-ended', async () => {
  if (document.getElementById('signin') || !state.session) return;
  const before = { ...state.session, hash: window.location.hash };
  statusPoll?.stop();
  certificatePoll?.stop();
  current?.destroy?.();
  current = null;
  const session = await signIn({ reason: ENDED });
  const isSame = session.name === before.name && session.role === before.role;
  // Another person must not see what this one has typed.
  if (!isSame) stopAll();
  begin(session, { focus: false, keepsDialogs: isSame && window.location.hash === before.hash });
});

async function start({ reason = null } = {}) {
  document.getElementById('app').hidden = true;
  let session = null;
  if (!reason) {
    try {
      session = await get('/ui/session');
    } catch (error) {
      if (error.status !== 401) {
        const boot = document.getElementById('boot');
        boot.hidden = false;
        replace(
          boot,
          errorNotice(error),
          button(
            'Try again',
            () => {
              replace(boot, 'Loading…');
              start();
            },
            { kind: 'primary' },
          ),
        );
        return;
      }
    }
  }
  document.getElementById('boot').hidden = true;
  session ??= await signIn({ reason });
  begin(session, { focus: true });
}

function begin(session, { focus, keepsDialogs = false }) {
  state.session = session;
  document.getElementById('boot').hidden = true;
  document.getElementById('app').hidden = false;
  showNav();
  showAccount();
  showFreshness();
  let isShown = false;
  const onStatus = (status) => {
    state.status = status;
    updateNav();
    showIssueCount();
    showDrain();
    // The first status names the listeners, which most views need.
    if (!isShown) {
      isShown = true;
      showView({ focus, keepsDialogs });
    } else {
      current?.onStatus?.(status);
    }
  };
  replace(main, h('div', { class: 'page' }, h('p', { class: 'muted' }, 'Loading…')));
  statusPoll = poll((options) => get('/v1/status', options), 5 * SECOND, {
    onData: onStatus,
    onError: (error, { isFirst }) => {
      if (!isFirst || isShown || error.status === 401) return;
      const hint = h('p', {}, 'The panel tries again by itself.');
      replace(main, h('div', { class: 'page' }, h('h1', {}, 'No answer'), errorNotice(error), hint));
    },
  });
  certificatePoll = poll((options) => get('/v1/certificates', options), 2 * MINUTE, {
    onData: ({ certificates }) => {
      state.certificates = certificates;
      showIssueCount();
      current?.onStatus?.(state.status);
    },
  });
}

// A person who reads or types sends no request, and yet is active.
for (const event of ['keydown', 'pointerdown']) {
  document.addEventListener(
    event,
    () => {
      if (state.session && Date.now() - lastActivity() > 5 * MINUTE) send('GET', '/ui/session').catch(() => {});
    },
    { passive: true, capture: true },
  );
}

startKeys({ views: offered, main, isActive: () => state.session !== null });

document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || !menu.classList.contains('open')) return;
  closeMenu();
  menuButton.focus();
});

window.addEventListener('hashchange', () => {
  // After the sign-in the view of the new address is shown.
  if (state.session && state.status && !document.getElementById('signin')) showView();
});

setInterval(updateTimes, 5 * SECOND);
start();
