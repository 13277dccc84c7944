// What hostile clients, pages and failures do to the panel.

import http from 'node:http';
import { assert, confirm, dialog, plan, press, shown, signIn, until } from './driver.mjs';

const MARKUP = '<img src=x onerror=alert(1)><script>alert(2)</script>';
const LONG = 'W'.repeat(200);

/** A server of another origin, with this page. */
async function otherOrigin(html) {
  const server = http.createServer((request, response) => {
    response.setHeader('Content-Type', 'text/html');
    response.end(html);
  });
  await new Promise((resolve) => { server.listen(0, '127.0.0.1', resolve); });
  return { server, port: server.address().port };
}

export async function names_that_others_choose_stay_text(site) {
  const rules = [MARKUP, LONG].map((description, index) => ({ type: 'ip_addr', value: `198.51.100.${index}`, description }));
  assert.equal((await site.api('operator', 'POST', '/v1/listeners/cache/sources', { rules })).status, 201);
  const clients = [await site.client({ certificate: 'hostile' }), await site.client({ certificate: 'long' })];
  assert.ok(clients.every(Boolean), 'hostile subjects are valid ones');
  const page = await site.signedIn('owner', '#/sources/cache');
  const alerts = [];
  page.on('dialog', (each) => { alerts.push(each.message()); each.dismiss(); });
  // Where the description or the subject of the connected client has to be.
  const views = {
    '#/sources/cache': '#sources-table',
    '#/sessions': '#sessions-table',
    '#/rotation': '#rotation-groups',
    '#/tls/cache': null,
    '#/audit': '#events',
    '#/': null,
    '#/denials': null,
  };
  for (const [view, place] of Object.entries(views)) {
    await page.goto(`${site.base}/ui/${view}`);
    await shown(page, view);
    for (const text of place ? ['onerror', ...(view === '#/sessions' ? ['WWWWWWWWWW'] : [])] : []) {
      await page.locator(place, { hasText: text }).first().waitFor();
    }
    assert.equal(await page.locator('main img[src="x"], main script, .page img').count(), 0, `${view} has markup of a client`);
    const text = await page.locator('main').innerText();
    assert.ok(!text.includes('\u202E'), `${view} shows an override of the direction of text as it is`);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(overflow <= 0, `${view} is ${overflow} px too wide`);
  }
  assert.deepEqual(alerts, []);
  clients.forEach(({ socket }) => socket.destroy());
}

export async function other_pages_can_neither_read_nor_change(site) {
  const page = await site.signedIn('owner', '#/', { expects: [/./] });
  const target = `${site.base}/v1/reload`;
  const { server, port } = await otherOrigin(`<title>elsewhere</title><form id=f method=post action="${target}" enctype="text/plain"><input name="{}" value=""></form>
    <iframe src="${site.base}/ui/"></iframe>`);
  // Another host, and another port of the same host: cookies do not tell the latter from the panel.
  for (const host of ['127.0.0.1', 'localhost']) {
    await page.goto(`http://${host}:${port}/`);
    const answers = await page.evaluate(async (url) => {
      const attempt = async (path, options) => {
        try {
          const response = await fetch(`${url}${path}`, { credentials: 'include', ...options });
          return `${response.type} ${response.status}`;
        } catch {
          return 'failed';
        }
      };
      return [
        await attempt('/v1/status', {}),
        await attempt('/v1/reload', { method: 'POST', mode: 'no-cors', body: '{}' }),
        await attempt('/v1/reload', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{}' }),
        await attempt('/v1/sessions/1', { method: 'DELETE' }),
      ];
    }, site.base);
    assert.deepEqual(answers, ['failed', 'failed', 'failed', 'failed'], host);
    const inner = () => page.frames().find((frame) => frame !== page.mainFrame());
    await until('the frame is refused', () => inner()?.url().startsWith('chrome-error:'));
    await Promise.all([page.waitForNavigation(), page.evaluate(() => document.getElementById('f').submit())]);
    assert.match(await page.locator('body').innerText(), /forbidden|unauthorized/);
  }
  assert.equal(await site.countActions('reload'), 0, 'nothing was reloaded');
  server.close();
}

export async function failing_api_loses_nothing_that_was_typed(site) {
  const page = await site.signedIn('operator', '#/sources/cache', { expects: [/Failed to load resource|net::ERR/] });
  await page.locator('#sources-table', { hasText: '127.0.0.1' }).waitFor();
  await page.locator('#add-sources').click();
  await dialog(page).locator('textarea').fill('203.0.113.99 # typed');
  let failures = 0;
  await page.route('**/v1/listeners/cache/sources**', async (route) => {
    if (route.request().method() === 'GET') return route.fallback();
    failures += 1;
    if (failures === 1) return route.abort('connectionreset');
    if (failures === 2) return route.fulfill({ status: 500, contentType: 'application/json', body: JSON.stringify({ id: 'server_error', message: 'the disk is full', request_id: 'r-42' }) });
    if (failures === 3) return route.fulfill({ status: 502, contentType: 'text/html', body: '<h1>Bad gateway</h1>' });
    return route.fallback();
  });
  await press(page, 'review');
  await dialog(page).getByText('cannot be reached').waitFor();
  assert.equal(await dialog(page).locator('textarea').inputValue(), '203.0.113.99 # typed');
  await press(page, 'review');
  await dialog(page).getByText('the disk is full').waitFor();
  assert.match(await dialog(page).innerText(), /r-42/, 'the log can be searched for it');
  await press(page, 'review');
  await dialog(page).getByText('502').waitFor();
  await press(page, 'review');
  await plan(page);
  failures = 0;
  await press(page, 'confirm');
  await dialog(page).getByText('It is not known whether the change was made').waitFor();
  await page.unroute('**/v1/listeners/cache/sources**');
  await confirm(page);
  await page.locator('#sources-table', { hasText: '203.0.113.99' }).waitFor();
}

export async function outage_of_the_program_is_shown_and_survived(site) {
  const page = await site.signedIn('viewer', '#/', { expects: [/Failed to load resource|net::ERR/] });
  await page.locator('#card-cache').waitFor();
  await page.route('**/v1/**', (route) => route.abort('connectionrefused'));
  await page.locator('#freshness', { hasText: 'Not up to date since' }).waitFor();
  assert.ok(await page.locator('#card-cache').isVisible(), 'the last state stays visible');
  await page.unroute('**/v1/**');
  await page.locator('#freshness', { hasText: /^Up to date$/ }).waitFor();
}

export async function stolen_session_ends_with_sign_out(site) {
  const page = await site.signedIn('owner');
  const [cookie] = await page.context().cookies();
  assert.ok(cookie.httpOnly && cookie.sameSite === 'Strict');
  const isOpen = async () => (await fetch(`${site.base}/v1/status`, { headers: { Cookie: `${cookie.name}=${cookie.value}` } })).status === 200;
  assert.ok(await isOpen());
  await page.locator('#sign-out').click();
  await page.getByText('You are signed out.').waitFor();
  assert.ok(!(await isOpen()));
  await signIn(page, site.tokens.owner);
  await until('a new cookie', async () => (await page.context().cookies())[0]?.value !== cookie.value);
}
