// The functions of the panel that need no browser: `node --test tests/panel/unit.test.mjs`, with Node.js 20.19 or later.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { contains, isLoopback, networkAround, parseNetwork } from '../../src/panel/ui/address.js';
import { matcher } from '../../src/panel/ui/filter.js';
import { lookup, shellJoin, shellQuote, ttlUntil, visible, visibleJson } from '../../src/panel/ui/format.js';
import { commandsBetween, parseLine, restored } from '../../src/panel/ui/source-rules.js';
import { verdictOf } from '../../src/panel/ui/verdict.js';

const HOSTILE = [
  '',
  "it's",
  '"quoted"',
  '$(touch /tmp/x) `id` ${HOME}',
  '; rm -rf / & | > < * ? ~ ! # \\',
  'first\nsecond\r\n\tthird',
  "\\'\n$(id)",
  '\u001b[2Jgone\u0007\u007f7',
  'user\u202egnp.exe\u2066a\u2069 b',
  '\u200bzero\ufeffwidth\u00ad4',
  'tag\u{e0041}B',
  'Übung 💾',
  '-n',
  "'$'\\''",
];

// Shells -------------------------------------------------------------------------------------------------------------

test('quoted_text_is_one_argument_of_a_shell', () => {
  const options = { encoding: 'utf8', env: { LC_ALL: 'C.UTF-8', PATH: process.env.PATH } };
  const shown = HOSTILE.filter((text) => visible(text) === text);
  const command = `printf '%s\\0' ${shellJoin(shown)}`;
  // Debian's sh is dash.
  for (const shell of [['sh'], ['bash', '--noprofile', '--norc']]) {
    const printed = execFileSync(shell[0], [...shell.slice(1), '-c', command], options);
    assert.deepEqual(printed.split('\0').slice(0, -1), shown, shell[0]);
  }
});

test('text_with_hidden_characters_has_no_command', () => {
  const hidden = HOSTILE.filter((text) => visible(text) !== text);
  assert.ok(hidden.length > 5);
  for (const text of hidden) {
    assert.equal(shellQuote(text), null, JSON.stringify(text));
    assert.equal(shellJoin(['portcullis', text]), null, JSON.stringify(text));
  }
});

test('json_of_a_command_shows_every_character', () => {
  for (const text of HOSTILE) {
    const json = visibleJson({ text });
    assert.equal(visible(json), json, JSON.stringify(text));
    assert.deepEqual(JSON.parse(json), { text });
  }
});

test('look_up_finds_only_own_keys', () => {
  assert.equal(lookup({ open: 1 }, 'open'), 1);
  for (const key of ['constructor', '__proto__', 'toString', undefined, null]) assert.equal(lookup({}, key), undefined);
});

test('plain_arguments_stay_unquoted', () => {
  for (const text of ['cache', 'ip_addr:2001:db8::/32', 'app@example.com', '8h']) assert.equal(shellQuote(text), text);
});

test('restoring_commands_quote_what_others_have_written', () => {
  const rule = (value, description) => ({ type: 'ip_addr', value, uuid: value, description, expires_at: null });
  const before = [rule('192.0.2.1', "it's $(id)")];
  const { cli } = commandsBetween('cache', [rule('192.0.2.2', null)], before);
  assert.deepEqual(cli, [
    "portcullis sources append cache ip_addr:192.0.2.1 --description 'it'\\''s $(id)'",
    'portcullis sources remove cache ip_addr:192.0.2.2',
  ]);
  const edited = commandsBetween('cache', [rule('192.0.2.1', 'new')], before).cli;
  assert.deepEqual(edited, ["portcullis sources edit cache ip_addr:192.0.2.1 --description 'it'\\''s $(id)'"]);
});

// Durations ----------------------------------------------------------------------------------------------------------

test('duration_until_a_time_is_rounded_up_to_a_minute', () => {
  const now = Date.parse('2024-02-28T23:59:30Z');
  const cases = {
    '2024-02-28T23:59:31Z': '1m',
    '2024-02-29T00:59:30Z': '1h',
    '2024-02-29T00:59:31Z': '1h1m',
    '2024-03-01T23:59:30Z': '2d',
    '2024-03-01T01:01:30+01:00': '1d2m',
    '2025-02-28T01:00:30Z': '365d1h1m',
  };
  for (const [until, expected] of Object.entries(cases)) assert.equal(ttlUntil(until, now), expected, until);
});

test('duration_until_a_past_time_is_the_shortest', () => {
  assert.equal(ttlUntil('2000-01-01T00:00:00Z', Date.parse('2024-01-01T00:00:00Z')), '1m');
});

// Addresses ----------------------------------------------------------------------------------------------------------

test('only_addresses_and_networks_are_parsed', () => {
  for (const text of [
    '0.0.0.0/0',
    '192.0.2.1',
    ' 192.0.2.0/24 ',
    '::',
    '::/0',
    '2001:db8::1/128',
    '::ffff:192.0.2.1',
  ]) {
    assert.ok(parseNetwork(text), text);
  }
  const invalid = [
    null,
    undefined,
    '',
    ' ',
    '1',
    '1.2.3',
    '1.2.3.4.5',
    '256.0.0.1',
    '1.2.3.4/33',
    '1.2.3.4/-1',
    '1.2.3.4/',
    '1.2.3.4/24/8',
    '::1/129',
    ':::',
    '1::2::3',
    '1:2:3:4:5:6:7',
    '1:2:3:4:5:6:7:8:9',
    '12345::',
    'fe80::1%eth0',
    'app.internal',
    '1.2.3.4\n5.6.7.8',
    '1.2.3.4;id',
    '$(id)',
    "'1.2.3.4'",
    '\u202e1.2.3.4',
    '1\u200b.2.3.4',
    '１.2.3.4',
    '١.٢.٣.٤',
  ];
  for (const text of invalid) assert.equal(parseNetwork(text), null, JSON.stringify(text));
});

test('network_contains_its_addresses_and_smaller_networks', () => {
  const isIn = (network, address) => contains(parseNetwork(network), parseNetwork(address));
  for (const [network, address] of [
    ['0.0.0.0/0', '255.255.255.255'],
    ['192.0.2.0/24', '192.0.2.255'],
    ['192.0.2.0/24', '192.0.2.128/25'],
    ['192.0.2.1', '192.0.2.1/32'],
    ['2001:db8::/32', '2001:db8:ffff::1'],
    ['::/0', '::1'],
  ])
    assert.ok(isIn(network, address), `${network} contains ${address}`);
  for (const [network, address] of [
    ['192.0.2.0/24', '192.0.3.0'],
    ['192.0.2.0/24', '192.0.2.0/23'],
    ['0.0.0.0/0', '::1'],
    ['::/0', '192.0.2.1'],
    ['2001:db8::/32', '2001:db9::'],
    ['10.0.0.0/9', '10.128.0.0'],
  ])
    assert.ok(!isIn(network, address), `${network} does not contain ${address}`);
  assert.equal(networkAround('2001:db8::7', 64), '2001:db8::/64');
  assert.equal(networkAround('192.0.2.77', 24), '192.0.2.0/24');
});

test('loopback_addresses_are_known', () => {
  for (const text of ['127.0.0.1', '127.9.9.9', '::1', '::ffff:127.0.0.1']) assert.ok(isLoopback(text), text);
  for (const text of ['128.0.0.1', '::2', '::ffff:10.0.0.1', 'localhost', 'unix', '']) {
    assert.ok(!isLoopback(text), text);
  }
});

// Lines of sources ---------------------------------------------------------------------------------------------------

test('line_is_a_rule_with_a_description', () => {
  const cases = {
    '203.0.113.7': { type: 'ip_addr', value: '203.0.113.7' },
    '  198.51.100.0/24  # office  ': { type: 'ip_addr', value: '198.51.100.0/24', description: 'office' },
    '2001:db8::/32': { type: 'ip_addr', value: '2001:db8::/32' },
    'ip_addr:2001:db8::1': { type: 'ip_addr', value: '2001:db8::1' },
    'dns:app.internal # a # b': { type: 'dns', value: 'app.internal', description: 'a # b' },
    'kubernetes:pods:ns:app=x': { type: 'kubernetes', value: 'pods:ns:app=x' },
    'tag: backend': { type: 'tag', value: 'backend' },
    'a#b': { type: 'ip_addr', value: 'a#b' },
    'DNS:x': { type: 'ip_addr', value: 'DNS:x' },
  };
  for (const [line, rule] of Object.entries(cases)) assert.deepEqual(parseLine(line), rule, line);
});

test('hostile_line_stays_one_value_that_the_program_judges', () => {
  for (const text of HOSTILE.map((each) => each.trim()).filter((each) => each !== '' && !/\s#\s/.test(each))) {
    assert.deepEqual(parseLine(text), { type: 'ip_addr', value: text }, JSON.stringify(text));
    assert.deepEqual(parseLine(`192.0.2.1 # ${text}`), { type: 'ip_addr', value: '192.0.2.1', description: text });
  }
  assert.deepEqual(parseLine('192.0.2.1\u2028x'), { type: 'ip_addr', value: '192.0.2.1\u2028x' });
});

test('restoring_states_only_what_differs', () => {
  const rule = { type: 'ip_addr', value: '192.0.2.1', uuid: 'u', description: 'a', expires_at: null, sessions: 3 };
  assert.deepEqual(restored([rule], [rule]), [{ type: 'ip_addr', value: '192.0.2.1', uuid: 'u' }]);
  for (const now of [[], [{ ...rule, description: 'b' }], [{ ...rule, expires_at: '2024-01-01T00:00:00Z' }]]) {
    const [request] = restored([rule], now);
    assert.equal(request.description, 'a');
    assert.equal(request.expires_at, null);
  }
});

test('search_finds_rows_that_have_every_term', () => {
  const row = 'ip_addr:192.0.2.1 office (east) file';
  for (const query of ['', '  ', 'OFFICE', 'file 192', '(east)']) assert.ok(matcher(query)(row), query);
  for (const query of ['office west', '.*', '[0-9]', '\u202eoffice']) assert.ok(!matcher(query)(row), query);
});

// Rotation -----------------------------------------------------------------------------------------------------------

test('verdict_follows_the_evidence', () => {
  const now = Date.parse('2024-06-30T00:00:00Z');
  const ago = (days) => new Date(now - days * 86_400_000).toISOString();
  const verdict = (item, hasSuccessor = true) => {
    const unused = { kind: 'client_ca', sessions: 0, last_used: null, since: ago(30), not_after: ago(-30) };
    return verdictOf({ ...unused, ...item }, { hasSuccessor, now }).text;
  };
  assert.equal(verdict({ sessions: 1 }), 'not safe to remove');
  assert.equal(verdict({ sessions: 1, not_after: ago(1) }), 'not safe to remove', 'also after it has expired');
  assert.equal(verdict({ not_after: ago(1) }, false), 'safe to remove', 'an expired one admits nobody');
  assert.equal(verdict({}, false), 'keep it');
  assert.equal(verdict({ kind: 'source', not_after: null }, false), 'safe to remove', 'a source needs no successor');
  assert.equal(verdict({ last_used: ago(1) }), 'wait');
  assert.equal(verdict({ last_used: ago(7) }), 'safe to remove');
  assert.equal(verdict({ last_used: ago(-1) }), 'wait', 'the clock of the browser is late');
  assert.equal(verdict({ since: ago(1) }), 'wait');
  assert.equal(verdict({ since: null }), 'wait');
});

test('password_of_the_database_can_be_removed_when_it_is_rejected_for_all_its_users', () => {
  const verdict = (accepted, rejected, hasSuccessor = true) => {
    const users = (names) => names.map((user) => ({ user }));
    const item = { kind: 'upstream_password', sessions: 0, last_used: accepted.length > 0 ? '2026-01-01T00:00:00Z' : null };
    const evidence = { last_users: users(accepted), rejected_users: users(rejected) };
    return verdictOf({ ...item, ...evidence }, { hasSuccessor }).text;
  };
  assert.equal(verdict(['app'], ['app']), 'safe to remove');
  assert.equal(verdict(['app', 'job'], ['app']), 'not safe to remove', 'another user has it');
  assert.equal(verdict(['app'], []), 'not safe to remove');
  assert.equal(verdict([], ['app']), 'wait', 'it may be the next one');
  assert.equal(verdict([], []), 'wait');
  assert.equal(verdict(['app'], ['app'], false), 'keep it');
});
