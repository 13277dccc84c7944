// Certificates of a listener: its own, those that it trusts, and the client certificates that are pinned.

import { get, notifyChanged, poll, send } from './api.js';
import { changeDialog } from './changes.js';
import { curl } from './commands.js';
import { toast } from './dialogs.js';
import { add, button, h, markReady, replace } from './dom.js';
import { FieldError } from './expiry.js';
import { count, dateTime, DAY, lookup, number, SECOND, shellJoin } from './format.js';
import { certificateState, roleName } from './issues.js';
import { chosenListener, listenerPicker } from './listener-picker.js';
import { planSummary, sessionsEnded, sharedWith } from './plan-parts.js';
import { link } from './router.js';
import { holdSecret } from './secrets.js';
import { can, listenerNamed } from './state.js';
import { path } from './url.js';
import {
  emptyState,
  errorNotice,
  facts,
  field,
  fingerprint,
  notice,
  pageHead,
  pill,
  skeleton,
  time,
  untrusted,
} from './widgets.js';

const MODES = {
  none: ['warn', 'not required', 'Every trusted source can connect without a client certificate.'],
  optional: ['info', 'optional', 'A client may connect without a certificate. One that it sends must be valid.'],
  required: ['good', 'required', 'Only a client with a valid certificate can connect.'],
};

const MAX_PEM = 60 * 1024;

// What the API accepts of a certificate to issue.
const NAME = /^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$/;
const NAME_RULE = 'Enter 1 to 64 letters, digits, dots, underscores, hyphens and @. Begin with a letter or digit.';
const MAX_DAYS = 3650;
const MAX_DNS_NAMES = 16;

export function tlsView(page, { name }) {
  const listener = chosenListener(page, 'tls', name);
  if (!listener) return {};
  const mayChange = can('operator');
  const target = path`/v1/listeners/${listener}/client-certificates`;
  const message = h('div', { 'aria-live': 'polite' });
  const authentication = h('section', { class: 'card stack', 'aria-labelledby': 'authentication-title' });
  const pinned = h('div', { class: 'stack' });
  const others = h('div', { class: 'stack' });
  const actions = h('div', { class: 'actions push' });
  add(page, [
    pageHead(
      'TLS',
      'Certificates of the listener, the authorities that it trusts, and the client certificates that it accepts.',
    ),
    h('div', { class: 'toolbar' }, listenerPicker('tls', listener), actions),
    message,
    authentication,
    h('h2', { class: 'section-title' }, 'Pinned client certificates'),
    pinned,
    h('h2', { class: 'section-title' }, 'Certificates and authorities'),
    others,
  ]);
  replace(authentication, skeleton(3));
  replace(pinned, h('div', { class: 'card' }, skeleton(3)));
  replace(others, h('div', { class: 'card' }, skeleton(3)));
  let seen = null;
  let last = '';

  async function load(options) {
    const answer = await send('GET', target, options);
    return { list: answer.data, etag: answer.etag };
  }

  async function loadAll(options) {
    const [clients, all] = await Promise.all([
      // A program of an earlier version does not have this path.
      load(options).catch((error) => {
        if (error.id === 'path_not_found') return null;
        throw error;
      }),
      get('/v1/certificates', options),
    ]);
    return { clients, certificates: all.certificates.filter((each) => each.listener === listener) };
  }

  function draw({ clients, certificates }) {
    seen = clients;
    replace(message);
    const signature = JSON.stringify([clients, certificates, listenerNamed(listener)?.client_auth]);
    if (signature === last) return;
    last = signature;
    const mode = clients?.list.client_auth ?? listenerNamed(listener)?.client_auth ?? 'none';
    const hasTls = listenerNamed(listener)?.tls !== false;
    const [kind, text, effect] = lookup(MODES, mode) ?? ['idle', mode, ''];
    const issuing = clients?.list.issuing_ca;
    replace(
      actions,
      clients?.list.ca_bundle
        ? h(
            'a',
            {
              class: 'button',
              href: path`/v1/listeners/${listener}/ca-bundle`,
              download: `${listener}-ca.pem`,
              id: 'download-ca',
            },
            'Download the CA bundle',
          )
        : null,
      mayChange && issuing
        ? button('Generate certificate', () => issue(issuing), { id: 'generate-certificate' })
        : null,
      mayChange && clients?.list.writable
        ? button('Add client certificate', () => pin(), { kind: 'primary', id: 'pin-certificate' })
        : null,
    );
    replace(
      authentication,
      h('h2', { id: 'authentication-title' }, 'Client authentication'),
      hasTls
        ? h('p', {}, pill(kind, text), ' ', effect)
        : notice(
            'warn',
            h(
              'p',
              {},
              'This listener has no TLS. Passwords and data pass in plaintext.',
              ' Add [listener.tls] to the configuration.',
            ),
          ),
      h(
        'p',
        { class: 'muted small' },
        'Set client_auth in [listener.tls] of the configuration. The edit applies by itself where reload.watch is on',
        ' (the default), else after a ',
        h('a', { href: link('reload') }, 'reload'),
        '.',
      ),
      issuing
        ? h(
            'p',
            { class: 'small' },
            'Certificates are issued by ',
            untrusted(issuing.subject, { label: 'subject' }),
            ' ',
            fingerprint(issuing.sha256),
            ', valid until ',
            time(issuing.not_after, { mode: 'full' }),
            '.',
          )
        : null,
      clients && !clients.list.ca_bundle
        ? h(
            'p',
            { class: 'muted small' },
            'To offer the CA bundle for download, set ca_bundle to the file that clients should trust.',
          )
        : null,
    );
    drawPinned(clients);
    const rest = certificates.filter((each) => each.role !== 'client_certificate' || !clients);
    const order = ['server', 'client_ca', 'client_certificate', 'upstream_ca', 'upstream_certificate'];
    rest.sort((a, b) => order.indexOf(a.role) - order.indexOf(b.role) || a.not_after.localeCompare(b.not_after));
    replace(
      others,
      rest.length === 0
        ? emptyState('No certificate', 'This listener and its upstream use none.')
        : h(
            'div',
            { class: 'cert-list' },
            rest.map((each) => certificateCard(each)),
          ),
    );
  }

  function drawPinned(clients) {
    if (!clients) {
      replace(
        pinned,
        notice(
          'info',
          h('p', {}, 'This version of the program does not manage client certificates. They are listed below.'),
        ),
      );
      return;
    }
    const { certificates, writable, reason, location } = clients.list;
    const where = location
      ? h(
          'p',
          { class: 'small muted' },
          'Files: ',
          h('code', { class: 'break' }, untrusted(location, { label: 'path' })),
        )
      : null;
    const locked = writable
      ? null
      : notice(
          'info',
          h(
            'p',
            {},
            untrusted(reason ?? 'Client certificates of this listener cannot be changed here.', { wrap: true }),
          ),
        );
    replace(
      pinned,
      locked,
      certificates.length === 0
        ? emptyState(
            'No client certificate is pinned',
            writable ? 'A pinned certificate is trusted by its fingerprint; no CA is needed.' : null,
            writable && mayChange
              ? button('Add client certificate', () => pin(), { kind: 'primary', id: 'pin-first' })
              : null,
          )
        : h(
            'div',
            { class: 'cert-list' },
            certificates.map((each) =>
              certificateCard(
                { ...each, role: 'client_certificate' },
                mayChange && writable
                  ? button('Remove', () => unpin(each), {
                      kind: 'small',
                      'data-action': 'unpin',
                      'aria-label': `Remove ${each.subject || each.sha256}`,
                    })
                  : null,
              ),
            ),
          ),
      where,
    );
  }

  const tlsPoll = poll(loadAll, 15 * SECOND, {
    onData: (data) => {
      draw(data);
      markReady(page);
    },
    onError: (error, { isFirst }) => {
      if (!isFirst || error.status === 401) return;
      replace(message, errorNotice(error));
      for (const box of [authentication, pinned, others]) replace(box);
    },
  });

  // Changes -----------------------------------------------------------------------------------------------------------

  const context = () => (seen ? { etag: seen.etag } : null);
  const reload = async () => ({ etag: (await load({})).etag });

  function pin() {
    const pem = h('textarea', {
      id: 'certificate-pem',
      name: 'certificate',
      rows: '9',
      spellcheck: 'false',
      autocomplete: 'off',
      autocapitalize: 'off',
      placeholder: '-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----',
    });
    const file = h('input', {
      type: 'file',
      id: 'certificate-file',
      name: 'certificate-file',
      accept: '.pem,.crt,.cer,application/x-pem-file,application/x-x509-ca-cert',
    });
    const problem = h('p', { class: 'field-error', role: 'alert' });
    pem.addEventListener('input', () => replace(problem));
    file.addEventListener('change', async () => {
      const [chosen] = file.files;
      if (!chosen) return;
      if (chosen.size > MAX_PEM) {
        replace(problem, `${chosen.name} is larger than 60 KiB. Choose a file with one certificate.`);
        return;
      }
      const text = await chosen.text();
      if (!text.includes('-----BEGIN')) {
        file.value = '';
        const command = shellJoin(['openssl', 'x509', '-inform', 'DER', '-in', chosen.name]);
        replace(
          problem,
          'This file is not PEM. If it is DER, convert it: ',
          h('code', {}, command ?? 'openssl x509 -inform DER -in FILE'),
        );
        return;
      }
      pem.value = text;
      pem.dispatchEvent(new Event('input', { bubbles: true }));
      replace(problem);
    });
    changeDialog({
      id: 'pin-dialog',
      title: `Add a client certificate to ${listener}`,
      context: context(),
      load: reload,
      form: {
        element: h(
          'div',
          { class: 'stack' },
          field('Certificate (PEM)', pem, {
            help: 'Paste it, or choose a file. The details are shown before it is accepted.',
            error: problem,
          }),
          field('Or a file', file),
        ),
        reviewLabel: 'Show the details',
        read: () => {
          const text = pem.value.trim();
          if (text === '') throw new FieldError('Paste a certificate, or choose a file.', pem);
          if (/PRIVATE KEY/.test(text)) {
            throw new FieldError(
              'The text contains a private key. It was not sent. Remove the key; only the certificate is needed.',
              pem,
            );
          }
          if (!text.includes('-----BEGIN CERTIFICATE-----')) {
            throw new FieldError('This is not a certificate in PEM. It begins with -----BEGIN CERTIFICATE-----.', pem);
          }
          return { certificate: `${text}\n` };
        },
      },
      build: ({ etag }, input) => {
        const request = { method: 'POST', path: target, body: input, etag };
        const fromFile = curl({ ...request, data: '@-' });
        return {
          request,
          cli: [shellJoin(['portcullis', 'certs', 'pin', listener, 'client.crt'])],
          cliNote: 'client.crt is the file with this certificate.',
          api: `jq -n --rawfile certificate client.crt '{$certificate}' |\n${fromFile}`,
        };
      },
      show: ({ plan }) => ({
        nodes: [
          plan.is_new ? null : notice('info', h('p', {}, 'This certificate is pinned already.')),
          planNodes(plan, listener),
          planCard(plan.certificate),
        ],
        confirm: 'Accept this certificate',
        danger: (plan.sessions_ended_count ?? 0) > 0 || plan.admits_nobody,
        isEmpty: !plan.is_new,
      }),
      done: ({ result }) => {
        toast('good', `${result.data?.subject || 'The certificate'} is accepted.`);
        notifyChanged();
      },
    });
  }

  function unpin(certificate) {
    changeDialog({
      id: 'unpin-dialog',
      title: 'Remove a client certificate',
      context: context(),
      load: reload,
      build: ({ etag }) => ({
        request: { method: 'DELETE', path: `${target}/${encodeURIComponent(certificate.sha256)}`, etag },
        cli: [shellJoin(['portcullis', 'certs', 'unpin', listener, certificate.sha256])],
      }),
      show: ({ plan }) => {
        const ended = plan.sessions_ended_count ?? 0;
        return {
          nodes: [planNodes(plan, listener), planCard(plan.certificate ?? certificate)],
          confirm: ended > 0 ? `Remove, end ${count(ended, 'session')}` : 'Remove the certificate',
          danger: true,
        };
      },
      done: () => {
        toast('good', `${certificate.subject || 'The certificate'} is removed.`);
        notifyChanged();
      },
    });
  }

  function issue(issuing) {
    const end = new Date(issuing.not_after).getTime();
    const untilDays = (length) => dateTime(Math.min(Date.now() + length * DAY, end));
    // The API ends a certificate with its CA. A shorter life than the one that was asked for is a surprise later.
    const most = Math.min(MAX_DAYS, Math.floor((end - Date.now()) / DAY));
    const cn = h('input', {
      type: 'text',
      id: 'issue-name',
      name: 'common-name',
      maxlength: '64',
      autocomplete: 'off',
      spellcheck: 'false',
      placeholder: 'app',
    });
    const days = h('input', {
      type: 'number',
      id: 'issue-days',
      name: 'days',
      min: '1',
      max: String(Math.max(1, most)),
      value: String(Math.max(1, Math.min(90, most))),
    });
    const dns = h('input', {
      type: 'text',
      id: 'issue-dns',
      name: 'dns',
      autocomplete: 'off',
      spellcheck: 'false',
      placeholder: 'app.internal',
    });
    const validity = h('span', { role: 'status' });
    const showValidity = () => {
      const length = Number(days.value);
      const isValid = Number.isInteger(length) && length >= 1 && length <= most;
      replace(validity, isValid ? ` Valid until ${untilDays(length)}.` : null);
    };
    days.addEventListener('input', showValidity);
    showValidity();
    const nameError = h('p', { class: 'field-error', role: 'alert' });
    const checkName = () => {
      const isWrong = cn.value.trim() !== '' && !NAME.test(cn.value.trim());
      cn.toggleAttribute('aria-invalid', false);
      if (isWrong) cn.setAttribute('aria-invalid', 'true');
      replace(nameError, isWrong ? NAME_RULE : null);
    };
    cn.addEventListener('change', checkName);
    cn.addEventListener('input', () => nameError.childNodes.length > 0 && checkName());
    let release = null;
    changeDialog({
      onClose: () => release?.(),
      id: 'issue-dialog',
      title: `Generate a client certificate for ${listener}`,
      form: {
        element: h(
          'div',
          { class: 'stack' },
          notice(
            'warn',
            h(
              'p',
              {},
              h('strong', {}, 'The key of the CA is on this machine.'),
              ' Whoever controls the machine can issue certificates. It is better kept elsewhere;',
              ' remove issuing_ca when you no longer need it.',
            ),
          ),
          field('Name (CN)', cn, {
            help: [
              'The name of the client in the audit and in trusted_clients: letters, digits, dots, underscores, hyphens',
              'and @. It begins with a letter or digit.',
            ].join(' '),
            error: nameError,
          }),
          field('Valid for days', days, {
            help: [
              most < MAX_DAYS
                ? `At most ${number(Math.max(0, most))}, because the CA expires on ${dateTime(end)}.`
                : `At most ${number(MAX_DAYS)}.`,
              validity,
            ],
          }),
          field('DNS names (optional)', dns, { help: `At most ${MAX_DNS_NAMES} host names, separated by spaces.` }),
        ),
        reviewLabel: 'Review',
        read: () => {
          const name = cn.value.trim();
          if (!NAME.test(name)) {
            throw new FieldError(NAME_RULE, cn);
          }
          const length = Number(days.value);
          if (most < 1) {
            const why = `The CA expires on ${dateTime(end)}. Replace issuing_ca with a CA that is valid longer.`;
            throw new FieldError(why, days);
          }
          if (!Number.isInteger(length) || length < 1 || length > most) {
            const why = most < MAX_DAYS ? ` The CA expires on ${dateTime(end)}.` : '';
            throw new FieldError(`Enter a number of days from 1 to ${number(most)}.${why}`, days);
          }
          const names = dns.value.split(/[\s,]+/).filter(Boolean);
          if (names.length > MAX_DNS_NAMES) throw new FieldError(`Enter at most ${MAX_DNS_NAMES} host names.`, dns);
          return { name, days: length, ...(names.length > 0 ? { dns: names } : {}) };
        },
      },
      build: (nothing, input) => {
        const request = { method: 'POST', path: `${target}/issue`, body: input };
        return {
          request,
          cli: [
            shellJoin([
              'portcullis',
              'certs',
              'issue',
              '--listener',
              listener,
              '--name',
              input.name,
              ...(input.dns ?? []).flatMap((each) => ['--dns', each]),
              '--days',
              String(input.days),
            ]),
          ],
          api: curl({ ...request, output: `${input.name}.zip` }),
        };
      },
      plan: async () => null,
      show: ({ input }) => ({
        nodes: [
          h(
            'p',
            {},
            'Issues a certificate for ',
            h('strong', {}, untrusted(input.name)),
            ` that is valid for ${count(input.days, 'day')}, until ${untilDays(input.days)}, signed by `,
            untrusted(issuing.subject, { label: 'subject' }),
            '.',
          ),
          notice(
            'info',
            h(
              'p',
              {},
              'The private key is in the download only. The program does not keep it.',
              ' The download cannot be repeated.',
            ),
          ),
        ],
        confirm: 'Generate and download',
      }),
      apply: (change) => send('POST', change.request.path, { ...change.request, raw: true }),
      done: async ({ result, input }) => {
        const blob = await result.response.blob();
        const given = /filename="([^"\\/]+)"/.exec(result.response.headers.get('content-disposition') ?? '')?.[1];
        const until = result.response.headers.get('x-not-after');
        const url = URL.createObjectURL(blob);
        const file = given ?? `${input.name}.zip`;
        const download = h(
          'a',
          { class: 'button', href: url, download: file, id: 'issued-download' },
          `Save ${file} again`,
        );
        download.click();
        const place = h('div', {}, download);
        release = holdSecret(() => {
          URL.revokeObjectURL(url);
          const text = 'The key is no longer in the page. Issue another certificate if you did not save this one.';
          replace(place, notice('info', h('p', {}, text)));
        });
        setTimeout(release, 600 * SECOND);
        return h(
          'div',
          { class: 'stack' },
          notice(
            'good',
            h(
              'p',
              {},
              h('strong', {}, `${file} is downloaded.`),
              ' It has the certificate, its private key, and the CA that the client should trust.',
            ),
            h('p', {}, `The certificate is valid until ${validUntil(until) ?? untilDays(input.days)}.`),
          ),
          notice('warn', h('p', {}, 'Store it safely now. When this dialog is closed, the key is gone.')),
          place,
          notice(
            'info',
            h('p', {}, 'Portcullis keeps no list of issued certificates. Note who received this one.'),
            h(
              'p',
              {},
              'To revoke it, add its serial number to a revocation list in client_crl, signed by the CA.',
              ' To admit single certificates only, pin them instead of trusting the CA.',
            ),
          ),
        );
      },
    });
  }

  return { destroy: () => tlsPoll.stop() };
}

/** A time of a header in words, or `null`. */
function validUntil(text) {
  return text && !Number.isNaN(new Date(text).getTime()) ? dateTime(text) : null;
}

function planNodes(plan, listener) {
  const ended = plan.sessions_ended_count ?? plan.sessions_ended?.length ?? 0;
  const closed = plan.listeners_admitting_nobody ?? [listener];
  return [
    sharedWith(plan, listener, 'the same files of client certificates'),
    plan.admits_nobody
      ? notice(
          'bad',
          h(
            'p',
            {},
            h('strong', {}, `After this change no client can connect to ${closed.join(', ')}.`),
            ' No accepted certificate is left.',
          ),
        )
      : null,
    (plan.warnings ?? []).map((warning) => notice('warn', h('p', {}, untrusted(warning, { wrap: true })))),
    planSummary([ended > 0 ? ['warn', count(ended, 'session ends', 'sessions end')] : ['good', 'no session ends']]),
    ended > 0 ? sessionsEnded(plan.sessions_ended ?? [], ended) : null,
  ];
}

const certificateFacts = (certificate) => [
  ['Issuer', certificate.self_signed ? 'self-signed' : untrusted(certificate.issuer, { label: 'issuer' })],
  certificate.names?.length > 0
    ? [
        'Names',
        h(
          'span',
          { class: 'names' },
          certificate.names.slice(0, 30).map((each) => h('span', { class: 'tag' }, untrusted(each, { label: 'name' }))),
          certificate.names.length > 30 ? `and ${certificate.names.length - 30} more` : null,
        ),
      ]
    : null,
  ['Valid from', time(certificate.not_before, { mode: 'full', empty: 'unknown' })],
  ['Expires', [time(certificate.not_after, { mode: 'full' }), ' (', time(certificate.not_after), ')']],
  ['SHA-256', fingerprint(certificate.sha256)],
];

function planCard(certificate) {
  return h(
    'section',
    { id: 'certificate-details' },
    h('h3', {}, untrusted(certificate.subject, { wrap: true, empty: 'no subject' })),
    facts(certificateFacts(certificate)),
  );
}

function certificateCard(certificate, action = null) {
  const state = certificateState(certificate);
  return h(
    'article',
    { class: 'card cert', 'data-sha256': certificate.sha256 },
    h(
      'div',
      { class: 'cert-head' },
      h(
        'div',
        { class: 'stack-tight' },
        h('h3', {}, untrusted(certificate.subject, { label: 'subject', empty: 'no subject' })),
        h('p', { class: 'muted small' }, roleName(certificate.role)),
      ),
      pill(state.kind, state.text),
    ),
    facts([
      ...certificateFacts(certificate),
      certificate.file ? ['File', h('code', { class: 'break' }, untrusted(certificate.file, { label: 'path' }))] : null,
      certificate.sessions === null || certificate.sessions === undefined
        ? null
        : ['Sessions', String(certificate.sessions)],
      ['Last use', time(certificate.last_used, { empty: 'not since the start' })],
    ]),
    action ? h('div', { class: 'actions' }, action) : null,
  );
}
