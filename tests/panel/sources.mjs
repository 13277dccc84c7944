// Trusted sources and denials.

import { assert, confirm, dialog, plan, press, until } from './driver.mjs';

const table = (page) => page.locator('#sources-table');
const row = (page, text) => table(page).locator('tbody tr', { hasText: text });

async function add(page, lines) {
  await page.locator('#add-sources').click();
  await dialog(page).locator('textarea').fill(lines);
}

export async function sources_are_added_edited_removed_and_restored(site) {
  const page = await site.signedIn('operator', '#/sources/cache');
  await row(page, '127.0.0.1').waitFor();
  assert.match(await row(page, '192.0.2.0/24').innerText(), /config/);
  assert.equal(await row(page, '192.0.2.0/24').locator('[data-action=edit]').count(), 0, 'the configuration is not edited here');

  await add(page, '203.0.113.7 # office\nip_addr:2001:db8::/32\nnot an address');
  await press(page, 'review');
  await dialog(page).getByText('not an address', { exact: false }).first().waitFor();
  assert.ok(!(await site.values()).includes('203.0.113.7'), 'an invalid line changes nothing');
  await dialog(page).locator('textarea').fill('203.0.113.7 # office\nip_addr:2001:db8::/32');
  await press(page, 'review');
  const added = await plan(page);
  assert.match(added, /203\.0\.113\.7/);
  assert.match(added, /No open session ends/);
  assert.match(added, /portcullis sources append cache/);
  assert.match(added, /curl .*\/v1\/listeners\/cache\/sources/s);
  await confirm(page);
  await row(page, '203.0.113.7').waitFor();
  assert.match(await row(page, '203.0.113.7').innerText(), /office/);
  assert.match(site.read('cache.sources'), /description = "office"/);

  await row(page, '203.0.113.7').locator('[data-action=edit]').click();
  await dialog(page).getByLabel('Description').fill('new office');
  await dialog(page).getByLabel('Expires', { exact: true }).selectOption('8h');
  await press(page, 'review');
  assert.match(await plan(page), /portcullis sources edit cache .*203\.0\.113\.7.* --description 'new office' --ttl 8h/);
  await confirm(page);
  await row(page, 'new office').waitFor();
  const edited = (await site.api('viewer', 'GET', '/v1/listeners/cache/sources')).body.rules.find(({ value }) => value === '203.0.113.7');
  const hours = (new Date(edited.expires_at) - Date.now()) / 3_600_000;
  assert.ok(hours > 7.8 && hours <= 8, `expires in ${hours} h`);

  // A removal names the session that it ends.
  const client = await site.client();
  await row(page, '127.0.0.1').locator('[data-action=remove]').click();
  const removal = await plan(page);
  assert.match(removal, /1 session ends/);
  await confirm(page);
  await client.ended;
  assert.equal(await site.client(), null);

  await page.locator('#undo').click();
  assert.match(await plan(page), /127\.0\.0\.1/);
  await confirm(page);
  await row(page, '127.0.0.1').waitFor();
  const back = await site.client();
  assert.ok(back, 'the undo admits the client again');
  back.socket.destroy();
}

export async function cloud_source_shows_why_it_is_not_resolved(site) {
  const page = await site.signedIn('operator', '#/sources/cache');
  await row(page, '127.0.0.1').waitFor();
  await add(page, 'tag:backend # web servers\nkubernetes:pods:shop');
  await press(page, 'review');
  await dialog(page).getByText('resolver.kubernetes', { exact: false }).first().waitFor();
  await dialog(page).locator('textarea').fill('tag:backend # web servers');
  await press(page, 'review');
  assert.match(await plan(page), /tag:backend/);
  await confirm(page);
  await row(page, 'backend').waitFor();
  const state = row(page, 'backend').locator('.c-state span').first();
  await until('the lookup failed', async () => /127\.0\.0\.1/.test((await state.getAttribute('title')) ?? ''));
  assert.match(await state.innerText(), /unresolved/);
}

/** The token of `do.token` in panel.rs. */
const CLOUD_TOKEN = 'dop_v1_of_a_test';

export async function resolved_cloud_source_names_its_objects_and_becomes_stale(site) {
  const page = await site.signedIn('viewer', '#/sources/cache');
  await row(page, '127.0.0.1').waitFor();
  const rules = [{ type: 'tag', value: 'web', description: 'web servers' }];
  assert.equal((await site.api('operator', 'POST', '/v1/listeners/cache/sources', { rules })).status, 201);
  const source = row(page, 'web servers');
  await source.locator('.c-state').getByText('resolved', { exact: true }).waitFor();
  await source.getByRole('button', { name: 'Details' }).click();
  const addresses = await dialog(page).locator('.facts li').allInnerTexts();
  assert.deepEqual(addresses, ['127.0.0.7 droplet web-7', '2001:db8::7 droplet web-7']);
  await press(page, 'close-dialog');

  site.write('do.token', 'dop_v1_revoked');
  await source.locator('.c-state').getByText('stale', { exact: true }).waitFor();
  await page.getByRole('link', { name: 'Overview' }).click();
  const issue = page.locator('[data-issue=cloud-cache]');
  await issue.waitFor();
  assert.match(await issue.innerText(), /cache: 1 cloud source is not resolved\s+tag:web: the token is rejected \(401/);
  await issue.getByRole('link', { name: 'Show the source' }).click();
  await source.waitFor();
  site.write('do.token', CLOUD_TOKEN);
  await source.locator('.c-state').getByText('resolved', { exact: true }).waitFor();
}

export async function own_address_is_trusted_with_one_choice(site) {
  await site.api('operator', 'PUT', '/v1/listeners/cache/sources', { rules: [] });
  const page = await site.signedIn('operator', '#/sources/cache');
  await page.locator('#allow-my-address').click();
  assert.match(await dialog(page).locator('textarea').inputValue(), /127\.0\.0\.1/);
  await press(page, 'review');
  assert.match(await plan(page), /--ttl 8h/);
  await confirm(page);
  await row(page, '127.0.0.1').waitFor();
}

export async function dangerous_lists_are_warned_about(site) {
  const page = await site.signedIn('operator', '#/sources/solo');
  await page.locator('#add-sources').waitFor();
  await add(page, '0.0.0.0/0');
  await press(page, 'review');
  assert.match(await plan(page), /every IPv4 address/);
  await press(page, 'cancel');
  await dialog(page).getByText('Discard what you entered?').waitFor();
  await press(page, 'discard');
  await row(page, '127.0.0.1').locator('[data-action=remove]').click();
  assert.match(await plan(page), /no client can connect|nobody/i);
  await press(page, 'cancel');
  assert.match(site.read('solo.sources'), /127\.0\.0\.1/, 'nothing was changed');
}

export async function listener_without_a_file_explains_how_to_add_one(site) {
  const page = await site.signedIn('operator', '#/sources/fixed');
  await page.locator('#add-sources').click();
  await dialog(page).locator('textarea').fill('203.0.113.9');
  await press(page, 'review');
  await dialog(page).getByText('sources_file', { exact: false }).first().waitFor();
}

export async function source_group_is_changed_and_added_to_a_listener(site) {
  const page = await site.signedIn('operator', '#/sources/cache');
  await row(page, '127.0.0.1').waitFor();
  await page.locator('#listener').selectOption('group:office');
  await row(page, '192.0.2.77').waitFor();
  assert.match(await row(page, '192.0.2.77').innerText(), /config/);
  await page.locator('#add-sources').click();
  assert.equal(await dialog(page).locator('#group-choice').count(), 0, 'a group contains no group');
  await dialog(page).locator('textarea').fill('127.0.0.2 # desk');
  await press(page, 'review');
  const added = await plan(page);
  assert.match(added, /portcullis sources append '?group:office'? /);
  assert.match(added, /\/v1\/listeners\/group(:|%3A)office\/sources/);
  await confirm(page);
  await row(page, '127.0.0.2').waitFor();
  assert.match(site.read('office.sources'), /description = "desk"/);

  await page.locator('#listener').selectOption('cache');
  await row(page, '127.0.0.1').waitFor();
  await page.locator('#add-sources').click();
  await dialog(page).locator('[data-group="group:office"]').click();
  assert.equal(await dialog(page).locator('textarea').inputValue(), 'group:office');
  await press(page, 'review');
  assert.match(await plan(page), /the sources of group:office/);
  await confirm(page);
  await row(page, 'office').waitFor();
  const client = await site.client({ from: '127.0.0.2' });
  assert.ok(client, 'the group admits the client');

  await page.locator('#listener').selectOption('group:office');
  await row(page, '127.0.0.2').locator('[data-action=remove]').click();
  assert.match(await plan(page), /1 session ends/);
  await confirm(page);
  await client.ended;
  assert.equal(await site.client({ from: '127.0.0.2' }), null);
}

export async function two_people_edit_at_once(site) {
  const page = await site.signedIn('operator', '#/sources/cache');
  await row(page, '127.0.0.1').waitFor();
  await add(page, '203.0.113.50 # mine');
  await press(page, 'review');
  await plan(page);
  // Somebody else changes the list while the plan is shown.
  const other = await site.api('operator', 'POST', '/v1/listeners/cache/sources', { rules: [{ type: 'ip_addr', value: '203.0.113.51' }] });
  assert.equal(other.status, 201);
  await press(page, 'confirm');
  await dialog(page).getByText('Somebody else changed this list').waitFor();
  assert.match(await plan(page), /203\.0\.113\.50/, 'what the person typed is kept');
  await confirm(page);
  await row(page, '203.0.113.50').waitFor();
  assert.deepEqual((await site.values()).filter((value) => value.startsWith('203')).sort(), ['203.0.113.50', '203.0.113.51'], 'nothing is lost');
}

export async function ten_thousand_sources_are_searched(site) {
  const rules = Array.from({ length: 10_000 }, (_, index) => ({ type: 'ip_addr', value: `10.${index >> 8}.${index & 255}.1`, description: `host ${index}` }));
  assert.equal((await site.api('operator', 'PUT', '/v1/listeners/cache/sources', { rules })).status, 204);
  const page = await site.signedIn('operator', '#/sources/cache');
  await row(page, '10.0.0.1').first().waitFor();
  const rows = await table(page).locator('tbody tr').count();
  assert.ok(rows < 200, `${rows} rows are in the document`);
  assert.equal(await page.locator('table[aria-rowcount]').first().getAttribute('aria-rowcount'), '10002', 'header, 10,000 of the file, 1 of the configuration');
  await page.locator('#search-sources').fill('host 9876');
  await row(page, '10.38.148.1').waitFor();
  await until('one row is left', async () => (await table(page).locator('tbody tr').count()) <= 3);
  await page.locator('#search-sources').fill('');
  // The keyboard sorts, too.
  const head = table(page).getByRole('button', { name: /Value/ });
  await head.focus();
  await page.keyboard.press('Enter');
  await page.keyboard.press('Enter');
  await table(page).locator('th[aria-sort=descending]', { hasText: 'Value' }).waitFor();
  await until('the highest address is first', async () => /192\.0\.2\.0\/24/.test(await table(page).locator('tbody tr:not([aria-hidden])').first().innerText()));
}

export async function denied_source_is_allowed_and_explained(site) {
  assert.equal(await site.client({ from: '127.0.0.2' }), null);
  const page = await site.signedIn('operator', '#/denials');
  const denied = page.locator('#denials-table tbody tr', { hasText: '127.0.0.2' });
  await denied.waitFor();
  assert.match(await denied.innerText(), /untrusted source/i);
  await denied.locator('[data-action=allow]').click();
  await dialog(page).getByLabel('Expires', { exact: true }).selectOption('1h');
  await press(page, 'review');
  assert.match(await plan(page), /portcullis sources append cache .*127\.0\.0\.2.*--ttl 1h/s);
  await confirm(page);
  const client = await site.client({ from: '127.0.0.2' });
  assert.ok(client, 'the source is trusted now');
  client.socket.destroy();
  await denied.locator('[data-action=explain]').click();
  await page.getByRole('heading', { level: 1, name: 'Explain' }).waitFor();
  await page.getByText(/admitted/i).first().waitFor();
}
