// Whether a connection would be admitted, step by step.

import { bus, get, send } from './api.js';
import { commandSection } from './commands.js';
import { addressOf } from './denials.js';
import { add, button, h, markReady, replace } from './dom.js';
import { reasonText, shellJoin, words } from './format.js';
import { link, remember } from './router.js';
import { allowDialog } from './source-changes.js';
import { can, listeners, state } from './state.js';
import { query } from './url.js';
import { errorNotice, field, notice, pageHead, pill, select, skeleton, time, untrusted } from './widgets.js';

export function explainView(page, { parameters }) {
  const names = listeners().map((each) => each.name);
  const listener = select(
    names.map((each) => [each, each]),
    parameters.get('listener') || names[0] || '',
    { id: 'listener', name: 'listener' },
  );
  const source = h('input', {
    type: 'text',
    id: 'explain-source',
    name: 'source',
    value: parameters.get('source') ?? '',
    placeholder: '203.0.113.7, 2001:db8::7 or unix',
    autocomplete: 'off',
    spellcheck: 'false',
    'data-search': '',
    class: 'mono',
  });
  const certificate = h('textarea', {
    id: 'explain-certificate',
    name: 'certificate',
    rows: '4',
    spellcheck: 'false',
    autocomplete: 'off',
    placeholder: '-----BEGIN CERTIFICATE-----',
  });
  const denial = h('div', { class: 'stack', 'aria-live': 'polite', id: 'explain-denial' });
  const result = h('section', { class: 'stack', 'aria-live': 'polite', id: 'explain-result' });
  let denied = parameters.get('reason')
    ? { reason: parameters.get('reason'), listener: parameters.get('listener'), source: parameters.get('source') }
    : null;
  const form = h(
    'form',
    {
      class: 'card stack',
      novalidate: true,
      id: 'explain-form',
      on: {
        submit: (event) => {
          event.preventDefault();
          explain();
        },
      },
    },
    h(
      'div',
      { class: 'columns' },
      field('Listener', listener),
      field('Address of the client', source, { help: 'An IP address, or unix for a client of a Unix socket.' }),
    ),
    field('Client certificate (optional)', certificate, {
      help: 'PEM, the certificate and its chain. Do not paste a private key.',
    }),
    h(
      'div',
      { class: 'actions' },
      h('button', { type: 'submit', class: 'button primary', id: 'explain-submit' }, 'Explain'),
      state.status?.your_address
        ? button(
            'Use my address',
            () => {
              source.value = state.status.your_address;
              explain();
            },
            { id: 'explain-my-address' },
          )
        : null,
    ),
  );
  /** Shows the denial that led here: an address alone does not repeat what the certificate or the protocol caused. */
  async function showDenial() {
    const { reason, listener: name, source: address } = denied;
    try {
      const { denials } = await get(`/v1/denials${query({ listener: name })}`);
      const row = denials.find(
        (each) => each.reason === reason && addressOf(each) === address && each.listener === name,
      );
      if (!row || !denied) return;
      replace(
        denial,
        notice(
          'warn',
          h(
            'p',
            {},
            h('strong', {}, `${address} was denied at ${name}: ${reasonText(reason)}, last `, time(row.last), '.'),
          ),
          row.detail ? h('p', {}, untrusted(row.detail, { wrap: true })) : null,
          h(
            'p',
            { class: 'small' },
            'The address alone does not show this cause.',
            reason.startsWith('client_') ? ' Paste the certificate of the client in the form below.' : null,
          ),
        ),
      );
    } catch {
      /* only additional evidence */
    }
  }

  add(page, [
    pageHead('Explain', 'Asks the policy in force whether a connection would be admitted, and why. Nothing changes.'),
    denial,
    form,
    result,
  ]);
  let run = 0;

  async function explain() {
    const mine = (run += 1);
    const address = source.value.trim();
    const pem = certificate.value.trim();
    const name = listener.value;
    if (denied && (denied.listener !== name || denied.source !== address)) {
      denied = null;
      replace(denial);
    }
    remember({ listener: name, source: address, reason: denied?.reason ?? '' });
    if (address === '') {
      replace(result, notice('bad', h('p', {}, 'Enter the address of the client.')));
      source.focus();
      return;
    }
    if (/PRIVATE KEY/.test(pem)) {
      replace(
        result,
        notice('bad', h('p', {}, 'The text contains a private key. Remove it; only the certificate is needed.')),
      );
      certificate.focus();
      return;
    }
    const request =
      pem === ''
        ? { method: 'GET', path: `/v1/explain${query({ listener: name, source: address })}` }
        : {
            method: 'POST',
            path: '/v1/explain',
            body: { listener: name, source: address, client_certificate: `${pem}\n` },
          };
    replace(result, skeleton(4));
    try {
      const { data } = await send(request.method, request.path, request);
      if (mine !== run) return;
      show(data, { name, address, request, hasCertificate: pem !== '' });
      markReady(page);
    } catch (error) {
      if (mine !== run) return;
      replace(result, errorNotice(error));
      markReady(page);
    }
  }

  function show(data, { name, address, request, hasCertificate }) {
    const isAdmitted = data.verdict === 'admitted';
    const command = [
      'portcullis',
      'explain',
      '--listener',
      name,
      '--source',
      address,
      ...(hasCertificate ? ['--client-cert', 'client.crt'] : []),
    ];
    const isUntrusted = data.reason === 'untrusted_source' && address !== 'unix';
    replace(
      result,
      h('h2', { class: 'visually-hidden' }, 'Verdict'),
      h(
        'div',
        { class: `verdict ${isAdmitted ? 'good' : 'bad'}`, id: 'verdict' },
        pill(isAdmitted ? 'good' : 'bad', isAdmitted ? 'admitted' : 'refused'),
        h('strong', {}, isAdmitted ? `${address} can connect to ${name}` : `${address} cannot connect to ${name}`),
        data.reason ? h('span', {}, reasonText(data.reason)) : null,
        isUntrusted && can('operator')
          ? button(
              'Allow this source',
              () => allowDialog({ listener: name, choices: [{ value: address, label: 'only this address' }] }),
              { kind: 'small', id: 'explain-allow' },
            )
          : null,
      ),
      h(
        'div',
        { class: 'card' },
        h(
          'ol',
          { class: 'steps' },
          (data.steps ?? []).map((step, index, all) => {
            // The step that refuses can have several lines; the first one has the cause.
            const refusing = isAdmitted ? all.length : all.findIndex((each) => each.step === all.at(-1).step);
            const kind = index < refusing ? 'good' : index === refusing ? 'bad' : 'idle';
            return h(
              'li',
              { class: `step ${kind}` },
              h('span', { class: 'step-sign', 'aria-hidden': 'true' }, { good: '✓', bad: '✕', idle: '·' }[kind]),
              h(
                'div',
                {},
                h('p', { class: 'step-title' }, words(step.step)),
                h('p', {}, untrusted(inThePanel(step.text), { wrap: true })),
              ),
            );
          }),
        ),
        data.generation
          ? h(
              'p',
              { class: 'small muted' },
              `Policy of generation ${data.generation}. `,
              data.rule ? h('a', { href: link('sources', name, { q: address }) }, 'Show the rule') : null,
            )
          : null,
      ),
      commandSection({ cli: [shellJoin(command)], request }),
    );
  }

  const onChanged = () => {
    if (result.childElementCount > 0 && source.value.trim() !== '') explain();
  };
  bus.addEventListener('changed', onChanged);
  if (denied) showDenial();
  if (source.value !== '' && names.length > 0) explain();
  else markReady(page);
  return { destroy: () => bus.removeEventListener('changed', onChanged) };
}

/** The API names options of the command line. Here the certificate is pasted. */
const inThePanel = (text) =>
  String(text).replace(/pass --client-cert\b/, 'paste it in the field "Client certificate" above');
