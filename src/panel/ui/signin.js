// Signing in and out. The page is a dialog above everything else, so that what was typed below it is kept.

import { send } from './api.js';
import { h, replace } from './dom.js';
import { commandBox, field, notice } from './widgets.js';

let open = null;

/** Shows the sign-in page, and resolves with the session. */
export function signIn({ reason = null } = {}) {
  open ??= show(reason).finally(() => {
    open = null;
  });
  return open;
}

function show(reason) {
  const message = h('div', { id: 'signin-message', class: 'dialog-message', 'aria-live': 'assertive' });
  const token = h('input', {
    type: 'password',
    id: 'token',
    name: 'portcullis-token',
    autocomplete: 'off',
    required: true,
    maxlength: '512',
    spellcheck: 'false',
    autocapitalize: 'off',
    autofocus: true,
    placeholder: 'pcl_…',
  });
  const submit = h('button', { type: 'submit', class: 'button primary', id: 'signin-submit' }, 'Sign in');
  const form = h(
    'form',
    { id: 'signin-form', class: 'signin-card', novalidate: true },
    h('img', { src: 'icon.svg', alt: '', width: '48', height: '48' }),
    h('h1', { id: 'signin-title' }, 'Sign in to Portcullis'),
    h('p', { class: 'muted' }, h('bdi', {}, window.location.host)),
    message,
    field('Token', token, { help: 'Paste a token of the admin API. The panel keeps it in no storage of the browser.' }),
    submit,
    h(
      'details',
      { class: 'signin-help' },
      h('summary', {}, 'Where do I get a token?'),
      h(
        'p',
        {},
        'Run this on the machine of the program. Choose the role ',
        h('code', {}, 'viewer'),
        ' to read, ',
        h('code', {}, 'operator'),
        ' to change sources, client certificates and passwords, or ',
        h('code', {}, 'owner'),
        ' to manage tokens as well.',
      ),
      commandBox('Create a token', 'portcullis token new --name NAME --role owner'),
    ),
  );
  const dialog = h('dialog', { id: 'signin', class: 'signin', 'aria-labelledby': 'signin-title' }, form);
  if (reason) replace(message, notice('info', h('p', {}, reason)));

  return new Promise((resolve) => {
    dialog.addEventListener('cancel', (event) => event.preventDefault());
    // Some browsers close a dialog at the second Esc even so.
    dialog.addEventListener('close', () => {
      if (dialog.isConnected) dialog.showModal();
    });
    form.addEventListener('submit', async (event) => {
      event.preventDefault();
      const text = token.value.trim();
      if (text === '') {
        fail('Paste a token first.');
        return;
      }
      submit.disabled = true;
      replace(message);
      try {
        const { data } = await send('POST', '/ui/session', { body: { token: text } });
        token.value = '';
        dialog.remove();
        resolve(data);
      } catch (error) {
        fail(inWords(error));
      } finally {
        submit.disabled = false;
      }
    });

    function fail(text) {
      token.setAttribute('aria-invalid', 'true');
      replace(message, notice('bad', h('p', { class: 'error-text' }, text)));
      token.focus();
      token.select();
    }

    document.body.append(dialog);
    dialog.showModal();
    token.focus();
  });
}

function inWords(error) {
  if (error.status === 401) {
    return 'This token is not accepted: it is unknown, revoked, expired, or not valid from your address.';
  }
  if (error.status === 429) {
    const wait = error.retryAfter ? `in ${error.retryAfter} s` : 'later';
    return `Too many attempts from your address. Try again ${wait}.`;
  }
  if (error.status === 421) {
    const advice = 'Open the panel under a name of the admin certificate, or add the name to hosts in [admin].';
    return `${error.message} ${advice}`;
  }
  return error.message;
}
