// A change as commands: of the command line and of the API.

import { h } from './dom.js';
import { bytes, shellQuote } from './format.js';
import { commandBox, copyButton } from './widgets.js';

/** Longer bodies are shown as a file, because a shell limits the length of a command. */
const MAX_INLINE_BODY = 4096;

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
