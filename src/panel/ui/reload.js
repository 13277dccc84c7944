// Reloading the configuration: first the plan, then the confirmation.

import { bus, notifyChanged, send } from './api.js';
import { changeDialog } from './changes.js';
import { commandSection } from './commands.js';
import { toast } from './dialogs.js';
import { add, button, h, markReady, replace } from './dom.js';
import { count, number } from './format.js';
import { roleName } from './issues.js';
import { plainTable, planSummary, sessionsEnded } from './plan-parts.js';
import { can, state } from './state.js';
import { emptyState, errorNotice, fingerprint, notice, pageHead, pill, skeleton, time, untrusted } from './widgets.js';

const REQUEST = { method: 'POST', path: '/v1/reload' };
const COMMANDS = { request: REQUEST, cli: ['portcullis reload'] };

export function reloadView(page) {
  const last = h('section', { class: 'card stack', 'aria-labelledby': 'last-reload-title' });
  const plan = h('section', { class: 'stack', id: 'reload-plan', 'aria-live': 'polite' });
  const mayReload = can('operator');
  add(page, [
    pageHead(
      'Reload',
      [
        'Reads the configuration and its files again. A reload applies completely or not at all.',
        'Where reload.watch is on (the default), Portcullis applies edits by itself within two seconds.',
      ].join(' '),
      mayReload
        ? h(
            'div',
            { class: 'actions' },
            button('Compare again', showPlan, { id: 'reload-compare' }),
            button('Reload…', reload, { kind: 'primary', id: 'reload' }),
          )
        : null,
    ),
    last,
    mayReload
      ? plan
      : notice(
          'info',
          h('p', {}, 'Your role shows the last reload. An operator or owner can compare the files and reload.'),
        ),
  ]);
  let lastSeen = '';

  function showLast(status) {
    if (!status) return;
    const signature = JSON.stringify([status.last_reload, status.generation]);
    if (signature === lastSeen) return;
    lastSeen = signature;
    const { last_reload: reloaded } = status;
    replace(
      last,
      h('h2', { id: 'last-reload-title' }, 'Last reload'),
      reloaded
        ? h('p', {}, pill(reloaded.result === 'applied' ? 'good' : 'bad', reloaded.result), ' ', time(reloaded.at))
        : h('p', { class: 'muted' }, 'None since the start.'),
      h(
        'p',
        { class: 'muted' },
        `Generation ${number(status.generation)} is in force since `,
        time(status.loaded_at),
        '.',
      ),
      reloaded?.error
        ? [
            h(
              'pre',
              { class: 'error-block', id: 'reload-error', tabindex: '0', 'aria-label': 'Error of the last reload' },
              reloaded.error,
            ),
            h('p', { class: 'small' }, 'Correct the file. The policy before it stays in force until then.'),
          ]
        : null,
    );
  }

  let run = 0;
  async function showPlan() {
    const mine = (run += 1);
    replace(plan, h('h2', {}, 'What a reload would change'), skeleton(4));
    try {
      const { data } = await send('POST', '/v1/reload?plan=true');
      if (mine !== run) return;
      const { nodes, isEmpty } = planNodes(data);
      replace(
        plan,
        h('h2', {}, 'What a reload would change'),
        isEmpty
          ? emptyState(
              'The files are in force already',
              [
                'Where reload.watch is off, edits appear here before they apply.',
                'Otherwise they apply within two seconds.',
              ].join(' '),
            )
          : nodes,
        commandSection(COMMANDS),
      );
      markReady(page);
    } catch (error) {
      if (mine !== run) return;
      replace(
        plan,
        h('h2', {}, 'What a reload would change'),
        error.id === 'reload_rejected' ? rejected(error) : errorNotice(error),
      );
      markReady(page);
    }
  }

  function reload() {
    changeDialog({
      id: 'reload-dialog',
      title: 'Reload the configuration',
      build: () => COMMANDS,
      show: ({ plan: data }) => {
        const { nodes, isEmpty } = planNodes(data);
        const ended = data.sessions_ended_count ?? 0;
        return {
          nodes: isEmpty
            ? [h('p', {}, 'The files are the same as the policy in force. A reload changes nothing.')]
            : nodes,
          confirm: ended > 0 ? `Reload, end ${count(ended, 'session')}` : 'Reload now',
          danger: ended > 0 || (data.weakened_count ?? 0) > 0,
        };
      },
      done: ({ result }) => {
        const { data } = result;
        toast(
          'good',
          data?.in_force_since
            ? 'The files are in force already.'
            : `Generation ${data?.generation ?? ''} is in force.`,
        );
        notifyChanged();
      },
    });
  }

  showLast(state.status);
  if (!mayReload) {
    markReady(page);
    return { onStatus: showLast };
  }
  bus.addEventListener('changed', showPlan);
  showPlan();
  return { onStatus: showLast, destroy: () => bus.removeEventListener('changed', showPlan) };
}

function rejected(error) {
  return h(
    'div',
    { class: 'stack' },
    notice(
      'bad',
      h(
        'p',
        {},
        h('strong', {}, 'A reload would be rejected.'),
        ' Correct these errors first. The policy in force is not affected.',
      ),
    ),
    h('pre', { class: 'error-block', tabindex: '0', 'aria-label': 'Errors' }, error.message),
  );
}

const value = (text) =>
  text === null || text === undefined
    ? h('span', { class: 'muted' }, 'none')
    : untrusted(String(text), { label: 'value', wrap: String(text).length < 200 });

function planNodes(plan) {
  const { differences = [], differences_count: total = differences.length, weakened_count: weakened = 0 } = plan;
  const listenerChanges = [
    ['listeners_added', 'added', 'good'],
    ['listeners_removed', 'removed', 'bad'],
    ['listeners_moved', 'moved', 'info'],
  ].flatMap(([key, text, kind]) => (plan[key] ?? []).map((name) => [kind, `listener ${name} ${text}`]));
  const [added, removed] = ['sources_added', 'sources_removed'].map((key) => plan[key] ?? []);
  const [incoming, outgoing] = ['certificates_in', 'certificates_out'].map((key) => plan[key] ?? []);
  const addedCount = plan.sources_added_count ?? added.length;
  const removedCount = plan.sources_removed_count ?? removed.length;
  const ended = plan.sessions_ended_count ?? 0;
  const isEmpty =
    total === 0 &&
    listenerChanges.length === 0 &&
    addedCount + removedCount + incoming.length + outgoing.length === 0 &&
    ended === 0;
  const nodes = [
    weakened > 0
      ? notice(
          'bad',
          h(
            'p',
            {},
            h('strong', {}, `${count(weakened, 'setting weakens', 'settings weaken')} protection.`),
            ' They admit what is refused now.',
          ),
        )
      : null,
    (plan.warnings ?? []).map((warning) => notice('warn', h('p', { class: 'error-text' }, warning))),
    planSummary([
      ...listenerChanges,
      total > 0 && ['info', `${count(total, 'setting')} changed`],
      addedCount > 0 && ['good', `${count(addedCount, 'source')} added`],
      removedCount > 0 && ['bad', `${count(removedCount, 'source')} removed`],
      incoming.length > 0 && ['good', `${count(incoming.length, 'certificate')} added`],
      outgoing.length > 0 && ['bad', `${count(outgoing.length, 'certificate')} removed`],
      ended > 0 ? ['warn', count(ended, 'session ends', 'sessions end')] : ['good', 'no session ends'],
    ]),
    differences.length > 0
      ? h(
          'section',
          {},
          h('h3', {}, 'Settings'),
          plainTable(
            'Changed settings',
            ['Listener', 'Key', 'Now', 'After the reload', ''],
            differences.map((each) => [
              each.listener ? untrusted(each.listener) : h('span', { class: 'muted' }, 'process'),
              h('code', {}, each.key),
              value(each.old),
              value(each.new),
              each.weakens ? pill('bad', 'weakens protection') : null,
            ]),
            { className: 'diff' },
          ),
        )
      : null,
    addedCount + removedCount > 0
      ? h(
          'section',
          {},
          h('h3', {}, 'Sources'),
          plainTable(
            'Changed sources',
            ['', 'Listener', 'Rule'],
            [
              ...added
                .slice(0, 200)
                .map((each) => [
                  pill('good', 'added'),
                  untrusted(each.listener),
                  h('code', {}, untrusted(each.rule, { label: 'rule' })),
                ]),
              ...removed
                .slice(0, 200)
                .map((each) => [
                  pill('bad', 'removed'),
                  untrusted(each.listener),
                  h('code', {}, untrusted(each.rule, { label: 'rule' })),
                ]),
            ],
          ),
        )
      : null,
    incoming.length + outgoing.length > 0
      ? h(
          'section',
          {},
          h('h3', {}, 'Certificates'),
          plainTable(
            'Changed certificates',
            ['', 'Listener', 'Role', 'Subject', 'Expires', 'SHA-256'],
            [
              ...incoming.map((each) => ['good', 'added', each]),
              ...outgoing.map((each) => ['bad', 'removed', each]),
            ].map(([kind, text, each]) => [
              pill(kind, text),
              each.listener ? untrusted(each.listener) : h('span', { class: 'muted' }, 'admin address'),
              roleName(each.role),
              untrusted(each.subject, { label: 'subject' }),
              time(each.not_after),
              fingerprint(each.sha256),
            ]),
          ),
        )
      : null,
    sessionsEnded(plan.sessions_ended ?? [], ended, { kept: plan.sessions_kept }),
  ];
  return { nodes, isEmpty };
}
