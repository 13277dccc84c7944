// Accessibility, keyboard, widths, themes, and the pictures of the documents.

import fs from 'node:fs';
import { assert, assertAccessible, assertFits, dialog, press, shown, until } from './driver.mjs';

const VIEWS = ['#/', '#/sources/cache', '#/denials', '#/sessions', '#/tls/cache', '#/rotation', '#/explain?listener=cache&source=127.0.0.1', '#/reload', '#/audit', '#/tokens'];

async function populated(site) {
  const clients = [await site.client(), await site.client({ certificate: 'client' })];
  await site.client({ from: '127.0.0.2' });
  return () => clients.forEach((client) => client?.socket.destroy());
}

/** Another hash stays in the document, so the heading of the view before it is there for a moment. */
async function visit(page, site, view) {
  await page.goto(`${site.base}/ui/${view}`);
  await shown(page, view);
}

/** Serious findings of axe on every view and one dialog, in both themes. */
export async function no_view_has_a_serious_accessibility_problem(site) {
  const release = await populated(site);
  for (const scheme of ['light', 'dark']) {
    const page = await site.signedIn('owner', '#/', { scheme, bypassCsp: true });
    const check = (what) => assertAccessible(page, `${what}, ${scheme}`);
    for (const view of VIEWS) {
      await visit(page, site, view);
      await check(view);
    }
    await visit(page, site, '#/sources/cache');
    await page.locator('#add-sources').click();
    await dialog(page).locator('textarea').fill('203.0.113.7');
    await check('form');
    await press(page, 'review');
    await dialog(page).locator('[data-action=confirm]').waitFor();
    await check('plan');
  }
  release();
}

export async function every_view_fits_every_width(site) {
  const release = await populated(site);
  for (const width of [360, 1280, 3840]) {
    const page = await site.signedIn('owner', '#/', { width, height: width === 360 ? 740 : 1000 });
    for (const view of VIEWS) {
      await visit(page, site, view);
      await assertFits(page, `${view} at ${width} px`);
    }
  }
  release();
}

export async function keyboard_reaches_everything(site) {
  const page = await site.person();
  await page.goto(`${site.base}/ui/`);
  await page.getByLabel('Token', { exact: true }).waitFor();
  await page.keyboard.type(site.tokens.operator);
  await page.keyboard.press('Enter');
  await page.locator('#app:not([hidden]) .page h1').waitFor();
  await page.keyboard.press('g');
  await page.keyboard.press('s');
  await page.getByRole('heading', { level: 1, name: 'Trusted sources' }).waitFor();
  await page.locator('#sources-table', { hasText: '127.0.0.1' }).waitFor();
  await page.keyboard.press('/');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'search-sources');
  await page.keyboard.press('Escape');
  await page.locator('#add-sources').focus();
  await page.keyboard.press('Enter');
  await dialog(page).locator('textarea').waitFor();
  await page.keyboard.press('Escape');
  await until('the dialog is closed', async () => (await page.locator('dialog.dialog[open]').count()) === 0);
  assert.equal(await page.evaluate(() => document.activeElement.id), 'add-sources', 'the focus returns to the opener');
  await page.keyboard.press('?');
  await dialog(page).getByText('Shortcuts', { exact: false }).first().waitFor();
}

export async function times_are_local_with_utc_on_hover(site) {
  const page = await site.signedIn('viewer', '#/');
  const element = page.locator('#program time').first();
  assert.match(await element.getAttribute('title'), /UTC/);
  await page.goto(`${site.base}/ui/#/tls/cache`);
  const validFrom = page.locator('.cert-list time', { hasText: /\d{2}:\d{2}/ }).first();
  await validFrom.waitFor();
  const at = new Date(await validFrom.getAttribute('datetime'));
  const hour = at.toLocaleTimeString('en-GB', { timeZone: 'Europe/Berlin', hour: '2-digit', minute: '2-digit' });
  assert.ok((await validFrom.innerText()).includes(hour), `${await validFrom.innerText()} is not ${hour}`);
}

/** A plausible answer of `GET /v1/history`. */
function lastHour(names) {
  const sample = (base, index) => Math.max(0, Math.round(base * (1 + 0.35 * Math.sin(index / 9) + 0.12 * Math.sin(index * 2.3))));
  const listener = (name, base) => ({
    name,
    sessions: Array.from({ length: 60 }, (_, index) => sample(base, index + base)),
    denied: Array.from({ length: 60 }, (_, index) => (index % 17 === base % 17 ? 3 : 0)),
  });
  return { interval_seconds: 60, until: new Date().toISOString(), listeners: names.map((name, index) => listener(name, [14, 6, 9, 4, 2][index])) };
}

/** The pictures of README.md and docs/PANEL.md. Written to the directory in PORTCULLIS_SCREENSHOTS. */
export async function pictures_of_the_documents(site) {
  const rule = (value, description, ttl) => ({ type: 'ip_addr', value, description, ttl });
  await site.api('operator', 'PUT', '/v1/listeners/cache/sources', { rules: [
    rule('127.0.0.1', 'application on this machine'), rule('10.1.0.0/16', 'production network'), rule('10.7.3.20', 'reporting job'),
    rule('203.0.113.0/24', 'office'), rule('198.51.100.42', 'laptop of Kim, ticket 4711', '8h'), rule('2001:db8:7::/48', 'VPN'),
  ] });
  const release = await populated(site);
  const directory = process.env.PORTCULLIS_SCREENSHOTS ?? `${site.directory}/pictures`;
  fs.mkdirSync(directory, { recursive: true });
  const names = { '#/': 'overview', '#/sources/cache': 'sources' };
  for (const scheme of ['light', 'dark']) {
    const page = await site.signedIn('owner', '#/explain', { scheme, width: 1280, height: 800 });
    // An hour that a test cannot wait for.
    await page.route('**/v1/history', (route) => route.fulfill({ json: lastHour(['cache', 'fixed', 'orders', 'solo', 'vault']) }));
    for (const [view, name] of Object.entries(names)) {
      await visit(page, site, view);
      const path = `${directory}/panel-${name}-${scheme}.png`;
      await page.screenshot({ path });
      assert.ok(fs.statSync(path).size > 10_000, `${path} shows something`);
    }
  }
  release();
}
