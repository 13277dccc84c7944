// Clients and their passwords: added, removed with their sessions, and shown.

import { spawn } from 'node:child_process';
import { assert, assertAccessible, assertFits, confirm, dialog, plan, press, shown, until } from './driver.mjs';

/** A session of PostgreSQL that waits in a query. */
async function session(site, password) {
  const before = await sessionCount(site);
  const child = spawn(site.psql, ['-X', '-w', '-d', site.conninfo, '-c', 'select pg_sleep(600)'], { env: { PATH: process.env.PATH, HOME: '/nonexistent', PGPASSWORD: password }, stdio: 'ignore' });
  const ended = new Promise((resolve) => { child.on('exit', resolve); });
  await until('the session is open', async () => (await sessionCount(site)) > before);
  return { ended, end: () => { child.kill(); return ended; } };
}

const sessionCount = async (site) => (await site.api('viewer', 'GET', '/v1/sessions')).body.total;

const row = (page, id) => page.locator('#clients-table tbody tr', { has: page.locator(`[data-action=remove-password][aria-label="Remove the password ${id} of app"]`) });

export async function password_is_generated_once_and_the_old_one_is_removed_with_its_sessions(site) {
  const old = await session(site, site.password);
  const page = await site.signedIn('operator', '#/clients/main');
  await row(page, 'p1').waitFor();
  assert.match(await row(page, 'p1').innerText(), /valid[\s\S]*1[\s\S]*127\.0\.0\.1/, 'who uses it is shown');

  await page.locator('#add-password').click();
  await press(page, 'review');
  await dialog(page).getByText('Enter the name of a user.').waitFor();
  await dialog(page).getByLabel('User', { exact: true }).fill('app');
  await dialog(page).getByLabel('Expires', { exact: true }).selectOption('30d');
  await press(page, 'review');
  const details = await plan(page);
  assert.match(details, /no session ends/i);
  assert.match(details, /Run the command on the machine of the program/);
  assert.match(details, /portcullis password add app -f .*clients\.toml --generate --expires 30d/);
  assert.equal((await site.api('viewer', 'GET', '/v1/listeners/main/clients')).body.clients[0].passwords.length, 1, 'a plan changes nothing');
  await press(page, 'confirm');
  const secret = dialog(page).locator('.secret code');
  await secret.waitFor();
  const password = await secret.innerText();
  assert.equal(password.length, 32);
  await dialog(page).locator('.secret [data-action=copy]').click();
  await until('the password is copied', async () => (await page.evaluate(() => navigator.clipboard.readText())) === password);
  await press(page, 'done');
  await row(page, 'p2').waitFor();
  assert.ok(!(await page.content()).includes(password), 'the page no longer has the password');
  const fresh = await session(site, password);

  await page.goto(`${site.base}/ui/#/rotation`);
  await page.locator('[data-rotation="main password"]', { hasText: '1 session still uses the old one' }).waitFor();
  await page.goto(`${site.base}/ui/#/clients/main`);
  await row(page, 'p1').locator('[data-action=remove-password]').click();
  const removal = await plan(page);
  for (const part of [/not safe to remove/, /1 session ends/, /as app/, /credential revoked/, /127\.0\.0\.1/]) assert.match(removal, part);
  assert.equal(await sessionCount(site), 2, 'the plan ends no session');
  await confirm(page);
  await old.ended;
  await until('the row is gone', async () => (await row(page, 'p1').count()) === 0);
  assert.equal(await sessionCount(site), 1, 'the session with the new password stays');
  await row(page, 'p2').locator('[data-action=remove-password]').click();
  assert.match(await plan(page), /can no longer authenticate/);
  await press(page, 'cancel');
  await fresh.end();
  assert.equal(await site.countActions('password.add'), 1);
  assert.equal(await site.countActions('password.remove'), 1);
}

export async function clients_are_shown_to_a_viewer_and_sessions_name_their_user(site) {
  const open = await session(site, site.password);
  const page = await site.signedIn('viewer', '#/clients');
  await page.locator('#clients-table', { hasText: 'app' }).waitFor();
  assert.equal(new URL(page.url()).hash, '#/clients/main', 'the listener that has clients is chosen');
  assert.equal(await page.locator('#add-password, [data-action=remove-password]').count(), 0, 'a viewer changes nothing');
  for (const text of ['cn:web', 'disabled', 'expired']) await page.locator('#clients-table').getByText(text, { exact: true }).first().waitFor();
  await page.locator('#search-clients').fill('cn:web');
  await until('one row is left', async () => (await page.locator('#clients-table tbody tr:not(.spacer)').count()) === 1);
  await page.goto(`${site.base}/ui/#/clients/cache`);
  await page.getByText('has no [listener.credentials]').waitFor();
  await page.goto(`${site.base}/ui/#/sessions`);
  await page.locator('#sessions-table').getByText('app', { exact: true }).waitFor();
  await open.end();
}

export async function clients_are_accessible_at_every_width(site) {
  const visit = async (page) => {
    await page.goto(`${site.base}/ui/#/clients/main`);
    await shown(page, '#/clients');
  };
  for (const scheme of ['light', 'dark']) {
    const page = await site.signedIn('operator', '#/', { scheme, bypassCsp: true });
    await visit(page);
    await assertAccessible(page, `the clients, ${scheme}`);
    await page.keyboard.press('g');
    await page.keyboard.press('o');
    await shown(page, '#/');
    await page.keyboard.press('g');
    await page.keyboard.press('c');
    await shown(page, '#/clients');
    await page.locator('#add-password').focus();
    await page.keyboard.press('Enter');
    await dialog(page).getByLabel('User', { exact: true }).fill('app');
    await assertAccessible(page, `the form, ${scheme}`);
    await page.keyboard.press('Enter');
    await dialog(page).locator('[data-action=confirm]').waitFor();
    await assertAccessible(page, `the plan, ${scheme}`);
    await press(page, 'confirm');
    await dialog(page).locator('.secret code').waitFor();
    await assertAccessible(page, `the password, ${scheme}`);
    await press(page, 'done');
  }
  for (const width of [360, 1280, 3840]) {
    const page = await site.signedIn('operator', '#/', { width, height: width === 360 ? 740 : 1000 });
    await visit(page);
    await assertFits(page, `the clients at ${width} px`);
  }
}
