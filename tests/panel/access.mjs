// Signing in, roles, and the end of a session.

import { assert, confirm, dialog, press, signIn, until } from './driver.mjs';

export async function signing_in(site) {
  const page = await site.person();
  await page.goto(`${site.base}/`);
  assert.equal(new URL(page.url()).pathname, '/ui/', 'the address leads to the panel');
  const submit = page.getByRole('button', { name: 'Sign in' });
  await submit.click();
  await page.getByText('Paste a token first.').waitFor();
  await page.getByLabel('Token', { exact: true }).fill('wrong');
  await submit.click();
  await page.getByText('This token is not accepted').waitFor();
  assert.equal(await page.locator('#app').isHidden(), true, 'nothing is shown without a session');

  await signIn(page, site.tokens.viewer);
  assert.match(await page.locator('#account').innerText(), /viewer/);
  const storage = await page.evaluate(() => JSON.stringify([document.cookie, { ...localStorage }, { ...sessionStorage }]));
  assert.ok(!storage.includes(site.tokens.viewer) && JSON.parse(storage)[0] === '', `no script reads token or cookie: ${storage}`);

  await page.goto(`${site.base}/ui/#/denials`);
  await page.getByRole('heading', { level: 1, name: 'Denials' }).waitFor();
  await page.reload();
  await page.getByRole('heading', { level: 1, name: 'Denials' }).waitFor();
  await page.locator('#sign-out').click();
  await page.getByText('You are signed out.').waitFor();
  await page.reload();
  await page.getByLabel('Token', { exact: true }).waitFor();
}

export async function role_is_offered_what_it_may_do(site) {
  const viewer = await site.signedIn('viewer', '#/sources/cache');
  await viewer.locator('#sources-table').getByText('192.0.2.0/24').waitFor();
  for (const id of ['add-sources', 'allow-my-address', 'remove-selected', 'nav-tokens']) {
    assert.equal(await viewer.locator(`#${id}`).count(), 0, `${id} is not offered to a viewer`);
  }
  assert.equal(await viewer.locator('[data-action=edit], [data-action=remove]').count(), 0);
  await viewer.goto(`${site.base}/ui/#/tokens`);
  await viewer.getByText('Your role does not permit this page').waitFor();
  // The server decides, whatever a page offers.
  const status = await viewer.evaluate(async () => (await fetch('/v1/listeners/cache/sources', {
    method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{"rules":[{"type":"ip_addr","value":"10.9.9.9"}]}',
  })).status);
  assert.equal(status, 403);

  const operator = await site.signedIn('operator', '#/sources/cache');
  await operator.locator('#add-sources').waitFor();
  assert.equal(await operator.locator('#nav-tokens').count(), 0);
  assert.equal(await operator.locator('#nav-fleet').count(), 0, 'the program has no fleet');
  await operator.goto(`${site.base}/ui/#/fleet`);
  await operator.getByText('The configuration has no section for this page').waitFor();
  const owner = await site.signedIn('owner', '#/tokens');
  await owner.locator('#create-token').waitFor();
}

export async function revoked_token_ends_the_session(site) {
  const { body } = await site.api('owner', 'POST', '/v1/tokens', { name: 'leaver', role: 'operator' });
  const page = await site.signedIn(body.token, '#/sources/cache');
  await page.locator('#sources-table').getByText('192.0.2.0/24').waitFor();
  await site.api('owner', 'DELETE', '/v1/tokens/leaver');
  await page.locator('#signin').waitFor();
  assert.match(await page.locator('#signin-message').innerText(), /ended/);
  // The person continues where they were.
  await signIn(page, site.tokens.operator);
  await page.locator('#sources-table').getByText('192.0.2.0/24').waitFor();
  assert.equal(new URL(page.url()).hash, '#/sources/cache');
}

export async function tokens_are_created_once_and_revoked(site) {
  const page = await site.signedIn('owner', '#/tokens');
  await page.locator('#create-token').click();
  await dialog(page).getByLabel('Name').fill('ci');
  await dialog(page).getByLabel('Role').selectOption('operator');
  await press(page, 'review');
  await dialog(page).locator('[data-action=confirm]').waitFor();
  assert.match(await dialog(page).innerText(), /portcullis token new --name ci --role operator --ttl 30d/);
  await press(page, 'confirm');
  await dialog(page).locator('[data-action=done]').waitFor();
  const [token] = /pcl_[A-Za-z0-9]+/.exec(await dialog(page).innerText());
  const check = await fetch(`${site.base}/v1/status`, { headers: { Authorization: `Bearer ${token}` } });
  assert.equal(check.status, 200);
  await press(page, 'done');
  const row = page.locator('#tokens-table tbody tr', { hasText: 'ci' }).filter({ hasText: 'operator' }).filter({ hasText: 'file' });
  await row.waitFor();
  // The row is there before the dialog has gone.
  await until('it is not shown again', async () => !(await page.content()).includes(token));
  await row.locator('[data-action=revoke]').click();
  assert.match(await dialog(page).innerText(), /portcullis token revoke ci/);
  await confirm(page);
  await until('the token is refused', async () => (await fetch(`${site.base}/v1/status`, { headers: { Authorization: `Bearer ${token}` } })).status === 401);
}

export async function cookie_is_tied_to_the_host_under_tls(site) {
  const page = await site.signedIn('viewer');
  await page.locator('#card-cache').waitFor();
  const [cookie] = await page.context().cookies();
  assert.match(cookie.name, /^__Host-portcullis-\d+$/);
  assert.ok(cookie.secure && cookie.httpOnly && cookie.sameSite === 'Strict' && cookie.path === '/');
}
