// Client certificates: accepted, issued and removed in the panel.

import { execFileSync } from 'node:child_process';
import { assert, confirm, dialog, plan, press, until } from './driver.mjs';

const pinned = (page, text) => page.locator('.cert-list article', { hasText: text }).filter({ has: page.locator('[data-action=unpin]') });

export async function pasted_certificate_is_shown_then_accepted_then_removed(site) {
  assert.equal(await site.client({ certificate: 'foreign' }), null);
  const page = await site.signedIn('operator', '#/tls/cache');
  await page.locator('#pin-certificate').click();
  await dialog(page).locator('textarea').fill('no certificate');
  await press(page, 'review');
  await dialog(page).getByText('This is not a certificate in PEM').waitFor();
  await dialog(page).locator('textarea').fill(`${site.read('foreign.crt')}${site.read('foreign.key')}`);
  await press(page, 'review');
  await dialog(page).getByText('contains a private key').waitFor();
  await dialog(page).locator('textarea').fill(site.read('foreign.crt'));
  await press(page, 'review');
  const details = await plan(page);
  for (const part of [/CN=foreign/, /portcullis certs pin cache/, /no session ends/i]) assert.match(details, part);
  assert.match(details, /This also changes solo/, 'the listener that shares the directory is named');
  assert.equal(await site.client({ certificate: 'foreign' }), null, 'the details change nothing');
  await confirm(page);
  const client = await site.client({ certificate: 'foreign' });
  assert.ok(client, 'the certificate is accepted');
  const card = pinned(page, 'CN=foreign');
  await card.waitFor();
  await card.locator('[data-action=unpin]').click();
  assert.match(await plan(page), /1 session ends/);
  await confirm(page);
  await client.ended;
  assert.equal(await site.client({ certificate: 'foreign' }), null);
  const anonymous = await site.client();
  assert.ok(anonymous, 'others are not affected');
  anonymous.socket.destroy();
}

export async function removing_the_last_certificate_opens_nothing(site) {
  const [host, port] = site.vault.split(':');
  const admitted = await site.clientAt(host, port, { certificate: 'vault-client' });
  assert.ok(admitted, 'the pinned certificate is accepted');
  const page = await site.signedIn('operator', '#/tls/vault');
  await page.locator('#pin-certificate, #pin-first').first().waitFor();
  const card = pinned(page, 'CN=vault-client');
  await card.locator('[data-action=unpin]').click();
  assert.match(await plan(page), /no client can connect/i);
  await confirm(page);
  await page.getByText('No client certificate is pinned').waitFor();
  await admitted.ended;
  for (const certificate of [null, 'client', 'vault-client']) {
    assert.equal(await site.clientAt(host, port, { certificate }), null, `${certificate} is not admitted`);
  }
}

export async function issued_certificate_is_downloaded_once(site) {
  const page = await site.signedIn('operator', '#/tls/cache');
  await page.locator('#generate-certificate').click();
  assert.match(await dialog(page).innerText(), /better kept elsewhere/);
  await dialog(page).getByLabel('Name (CN)').fill('issued-app');
  await press(page, 'review');
  await dialog(page).locator('[data-action=confirm]').waitFor();
  assert.match(await dialog(page).innerText(), /portcullis certs issue --listener cache --name issued-app/);
  const [download] = await Promise.all([page.waitForEvent('download'), press(page, 'confirm')]);
  const archive = `${site.directory}/issued.zip`;
  await download.saveAs(archive);
  execFileSync('/usr/bin/python3', ['-m', 'zipfile', '-e', archive, site.directory]);
  site.write('issued.crt', site.read('redis_user.crt'));
  site.write('issued.key', site.read('redis_user_private.key'));
  assert.match(site.read('redis_ca.pem'), /BEGIN CERTIFICATE/);
  await press(page, 'done');
  const client = await site.client({ certificate: 'issued' });
  assert.ok(client, 'the issued certificate is accepted');
  client.socket.destroy();
}

export async function ca_bundle_is_downloaded(site) {
  const page = await site.signedIn('viewer', '#/tls/cache');
  assert.equal(await page.locator('#pin-certificate, #generate-certificate').count(), 0, 'a viewer changes nothing');
  const [download] = await Promise.all([page.waitForEvent('download'), page.locator('#download-ca').click()]);
  const file = `${site.directory}/downloaded.pem`;
  await download.saveAs(file);
  assert.equal(site.read('downloaded.pem'), site.read('ca.crt'));
  await until('the certificates are shown', async () => (await page.locator('.cert-list article').count()) >= 2);
}
