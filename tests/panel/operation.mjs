// Overview, sessions, explain, reload, rotation and the live audit.

import { assert, confirm, dialog, plan, press, until } from './driver.mjs';

const DATA_ROW = 'tbody tr';

export async function overview_shows_what_is_connected_and_what_needs_a_person(site) {
  const client = await site.client();
  assert.equal(await site.client({ from: '127.0.0.2' }), null);
  await site.api('operator', 'PUT', '/v1/listeners/solo/sources', { rules: [] });
  const page = await site.signedIn('viewer');
  const card = page.locator('#card-cache');
  await card.getByText('1 open session').waitFor();
  const text = await card.innerText();
  for (const part of [/redis/, new RegExp(site.cache.replaceAll('.', '\\.')), /healthy/, /1 × untrusted source/i, /client certificate optional/]) assert.match(text, part);
  assert.match(await page.locator('#card-orders').innerText(), /postgres/);
  assert.match(await page.locator('#program').innerText(), /generation \d/);
  // The banner leads to the place where the problem is fixed.
  const issue = page.locator('.issue', { hasText: 'solo' }).first();
  await issue.waitFor();
  await issue.getByRole('link').click();
  await page.getByRole('heading', { level: 1, name: 'Trusted sources' }).waitFor();
  assert.equal(new URL(page.url()).hash.split('?')[0], '#/sources/solo');
  client.socket.destroy();
}

export async function session_is_found_and_closed(site) {
  const [plain, certified] = [await site.client(), await site.client({ certificate: 'client' })];
  const page = await site.signedIn('operator', '#/sessions');
  const rows = page.locator('#sessions-table').locator(DATA_ROW);
  await until('both sessions are listed', async () => (await page.locator('#sessions-table [data-action=close-session]').count()) === 2);
  await page.getByLabel('Subject').fill('panel-client');
  await until('one session is selected', async () => (await page.locator('#sessions-table [data-action=close-session]').count()) === 1);
  assert.match(await rows.first().innerText(), /CN=panel-client/);
  await page.locator('[data-action=close-session]').click();
  assert.match(await dialog(page).innerText(), /portcullis sessions close \d+/);
  await press(page, 'cancel');
  assert.ok(!certified.socket.destroyed, 'cancelling closes nothing');
  await page.locator('[data-action=close-session]').click();
  await confirm(page);
  await certified.ended;
  assert.ok(!plain.socket.destroyed, 'the other session stays open');
  await page.getByLabel('Subject').fill('');
  await page.getByLabel('Source').fill('10.0.0.0/8');
  await page.getByText('No session matches').waitFor();
  plain.socket.destroy();
}

export async function explain_answers_for_any_address_and_certificate(site) {
  const page = await site.signedIn('viewer', '#/explain');
  await page.getByLabel('Address of the client').fill('198.51.100.7');
  await page.locator('#explain-submit').click();
  await page.locator('#verdict', { hasText: 'refused' }).waitFor();
  assert.match(await page.locator('#explain-result').innerText(), /no rule trusts this address/);
  assert.equal(await page.locator('#explain-allow').count(), 0, 'a viewer cannot allow it');
  await page.locator('#explain-my-address').click();
  await page.locator('#verdict', { hasText: 'admitted' }).waitFor();
  await page.getByLabel('Client certificate').fill(site.read('foreign.crt'));
  await page.locator('#explain-submit').click();
  await page.locator('#verdict', { hasText: 'refused' }).waitFor();
}

export async function reload_is_planned_and_a_rejected_one_names_file_and_line(site) {
  const before = site.read('portcullis.toml');
  const page = await site.signedIn('operator', '#/reload');
  await page.getByText('The files are in force already').waitFor();
  site.write('portcullis.toml', before.replace('trusted_sources = ["192.0.2.0/24"]', 'trusted_sources = ["192.0.2.0/24", "198.51.100.0/24"]'));
  await page.locator('#reload-compare').click();
  await page.locator('#reload-plan', { hasText: '198.51.100.0/24' }).waitFor();
  assert.equal((await site.values()).includes('198.51.100.0/24'), false, 'the plan changes nothing');
  await page.locator('#reload').click();
  assert.match(await plan(page), /portcullis reload/);
  await confirm(page);
  await until('the new rule is in force', async () => (await site.values()).includes('198.51.100.0/24'));

  site.write('portcullis.toml', before.replace('protocol = "redis"', 'protocol = "redsi"'));
  await page.locator('#reload-compare').click();
  await page.locator('#reload-plan .error-block').waitFor();
  assert.match(await page.locator('#reload-plan').innerText(), /portcullis\.toml:\d+:\d+: .*"redis"/s);
  await page.locator('#reload').click();
  await dialog(page).locator('[data-action=retry]').waitFor();
  await press(page, 'cancel');
  assert.equal((await site.api('operator', 'POST', '/v1/reload')).status, 422);
  await page.goto(`${site.base}/ui/#/`);
  await page.locator('.issue', { hasText: /reload/i }).first().waitFor();
}

export async function rotation_shows_who_uses_what(site) {
  const client = await site.client({ certificate: 'client' });
  const page = await site.signedIn('viewer', '#/rotation');
  await page.locator('#rotation-groups', { hasText: 'panel-client' }).waitFor();
  const sources = page.locator('#rotation-sources').locator(DATA_ROW, { hasText: '127.0.0.1' }).first();
  assert.match(await sources.innerText(), /not safe to remove/);
  client.socket.destroy();
  await client.ended;
  await until('the use is over', async () => /wait/.test(await sources.innerText()));
}

export async function audit_is_followed_filtered_and_paused(site) {
  const page = await site.signedIn('viewer', '#/audit');
  await page.locator('#stream-status', { hasText: 'Live' }).waitFor();
  assert.equal(await site.client({ from: '127.0.0.3' }), null);
  const denied = page.locator('#events li', { hasText: 'connection.denied' }).filter({ hasText: '127.0.0.3' });
  await denied.first().waitFor();
  assert.equal((await site.api('operator', 'POST', '/v1/reload')).status, 200);
  await page.getByLabel('Event', { exact: true }).selectOption('admin.action');
  await page.locator('#events li', { hasText: 'reload' }).first().waitFor();
  assert.equal(await denied.count(), 0, 'only actions are shown');
  await page.getByLabel('Event', { exact: true }).selectOption('');
  await denied.first().waitFor();
  await page.locator('#pause').click();
  assert.equal(await site.client({ from: '127.0.0.4' }), null);
  await page.locator('#stream-status', { hasText: /Paused, [1-9]/ }).waitFor();
  const later = page.locator('#events li', { hasText: '127.0.0.4' });
  assert.equal(await later.count(), 0);
  await page.locator('#pause').click();
  await later.first().waitFor();
}

export async function chart_shows_the_values_of_the_last_minutes(site) {
  const client = await site.client();
  assert.equal(await site.client({ from: '127.0.0.2' }), null);
  const history = async () => {
    const { body } = await site.api('viewer', 'GET', '/v1/history');
    return body.listeners.find(({ name }) => name === 'cache');
  };
  // The program takes a value each minute, the first at its start.
  await until('a value has the session', async () => (await history()).sessions.at(-1) === 1, 180_000);
  const page = await site.signedIn('viewer');
  const chart = page.locator('#card-cache .chart-svg');
  await chart.waitFor();
  assert.match(await chart.getAttribute('aria-label'), /now 1, highest 1, lowest 0\. Denied connections: 1/);
  client.socket.destroy();
}
