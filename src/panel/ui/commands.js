// A change as commands: of the command line and of the API.

import { h } from './dom.js';
import { bytes, shellQuote, visibleJson } from './format.js';
import { commandBox, copyButton } from './widgets.js';

/** Longer bodies are shown as a file, because a shell limits the length of a command. */
const MAX_INLINE_BODY = 4096;

const API_HEADERS = ['-H "Authorization: Bearer $PORTCULLIS_TOKEN"'];

/**
 * A call of the API by curl, or `null` if a part of it cannot be shown. The token comes from the environment, so that
 * it is in no history of a shell.
 */
export function curl({ method, path, body, etag, data = null, output = null }) {
  const quoted = {
    etag: shellQuote(`If-Match: ${etag ?? ''}`),
    body: shellQuote(visibleJson(body ?? null)),
    output: shellQuote(output ?? ''),
    url: shellQuote(`${window.location.origin}${path}`),
  };
  if (Object.values(quoted).includes(null)) return null;
  const parts = ['curl -sS --fail-with-body', ...API_HEADERS];
  if (method !== 'GET') parts.push(`-X ${method}`);
  if (etag) parts.push(`-H ${quoted.etag}`);
  if (data) {
    parts.push(`-H ${shellQuote('Content-Type: application/json')}`, `-d ${data}`);
  } else if (body !== undefined) {
    parts.push(`-H ${shellQuote('Content-Type: application/json')}`, `-d ${quoted.body}`);
  }
  if (output) parts.push(`-o ${quoted.output}`);
  parts.push(quoted.url);
  return parts.join(' \\\n  ');
}

/** The same change as commands, with copy buttons. `isLocal`: the command edits a file and asks no program. */
export function commandSection({ cli, cliNote = null, request, api = null, isLocal = false }) {
  const body = request?.body === undefined ? '' : JSON.stringify(request.body);
  const isLong = body.length > MAX_INLINE_BODY && !api;
  const commands = cli ?? [];
  const isHidden = commands.includes(null);
  const text = api ?? (isLong ? curl({ ...request, data: '@body.json' }) : curl(request));
  return h(
    'section',
    { class: 'commands', 'aria-label': 'The same change as a command' },
    h('h3', {}, 'The same as a command'),
    commands.length > 0 && !isHidden ? commandBox('Command line', commands.join('\n')) : null,
    isHidden || text === null
      ? h('p', { class: 'small muted' }, 'A value has control or invisible characters, so its command is not shown.')
      : null,
    cliNote ? h('p', { class: 'small muted' }, cliNote) : null,
    text === null ? null : commandBox('API', text),
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
      isLocal
        ? 'Run the command on the machine of the program. For the API, set '
        : [
            'From another machine, add ',
            h('code', {}, `--url ${shellQuote(window.location.origin)}`),
            ' to the command, and set ',
          ],
      h('code', {}, '$PORTCULLIS_TOKEN'),
      '.',
    ),
  );
}
