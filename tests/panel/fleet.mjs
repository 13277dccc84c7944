// The members of a fleet, each with a panel of its own. They share rules over a real etcd.

import { createRequire } from 'node:module';
import { assert, confirm, dialog, plan, press } from './driver.mjs';

const member = (page, name) => page.locator('#fleet-members tbody tr').filter({ has: page.locator(`td.c-main bdi:text-is("${name}")`) });
const rule = (page, value) => page.locator('#sources-table tbody tr', { hasText: value });
const toast = (page, text) => page.locator('.toast', { hasText: text }).first();

/** The panel of the second member. */
const second = (site) => Object.assign(Object.create(site), site.second);

async function add(page, value) {
  await page.locator('#add-sources').click();
  await dialog(page).locator('textarea').fill(value);
  await press(page, 'review');
  return plan(page);
}

async function enter(page, site, hash) {
  await page.goto(`${site.base}/ui/${hash}`);
}

export async function members_of_a_fleet_are_listed_share_rules_and_are_forgotten(site) {
  const other = second(site);
  const page = await site.signedIn('operator', '#/fleet', { bypassCsp: true });
  for (const name of ['a', 'b']) await member(page, name).filter({ hasText: 'live' }).waitFor();
  assert.match(await member(page, 'a').innerText(), /this member/);
  assert.match(await page.locator('#fleet-store').innerText(), /prod.*up.*etcd/s);
  await page.locator('#fleet-policy', { hasText: 'all members have the same policy' }).waitFor();
  assert.equal(await page.locator('[data-action=forget], #accept-store').count(), 0, 'nothing needs a person');
  assert.equal(await page.locator('#nav-fleet').getAttribute('aria-current'), 'page');
  await fits(page);

  // A rule of one panel is in the other.
  const elsewhere = await other.signedIn('operator', '#/sources/main');
  await enter(page, site, '#/sources/main');
  const added = await add(page, '127.0.0.7 # shared');
  assert.match(added, /0 sessions end at all members/);
  assert.match(added, /portcullis sources append main .*127\.0\.0\.7.* --wait 5s/);
  await confirm(page);
  await toast(page, 'The new rules are in force').waitFor();
  await rule(elsewhere, '127.0.0.7').waitFor();
  assert.match(await rule(elsewhere, '127.0.0.7').innerText(), /fleet/);
  const client = await other.clientAt(...other.main.split(':'), { from: '127.0.0.7' });
  assert.ok(client, 'the other member admits the client');
  await rule(page, '127.0.0.7').locator('[data-action=edit]').click();
  await dialog(page).getByLabel('Description').fill('shared by all');
  await press(page, 'review');
  assert.match(await plan(page), /portcullis sources edit main .*--wait 5s/);
  await confirm(page);
  await rule(elsewhere, 'shared by all').waitFor();
  await rule(page, '127.0.0.7').locator('[data-action=remove]').click();
  assert.match(await plan(page), /1 session ends at all members/);
  await confirm(page);
  await client.ended;
  await rule(elsewhere, '127.0.0.7').waitFor({ state: 'detached' });

  await elsewhere.context().close();
  const { body: status } = await other.api('viewer', 'GET', '/v1/status');
  process.kill(status.pid, 'SIGKILL');
  await add(page, '127.0.0.8');
  await confirm(page);
  await toast(page, /changed at this member.*Not confirmed by b/).waitFor();
  await enter(page, site, '#/fleet');
  await member(page, 'b').filter({ hasText: 'unknown' }).waitFor();
  await page.locator('#fleet-policy', { hasText: 'the policy of 1 member is unknown' }).waitFor();
  await enter(page, site, '#/sources/main');
  await rule(page, '127.0.0.8').locator('[data-action=remove]').click();
  assert.match(await plan(page), /Unknown: no answer from b \(unknown\)/);
  await press(page, 'cancel');

  const viewer = await site.signedIn('viewer', '#/fleet');
  await member(viewer, 'b').waitFor();
  assert.equal(await viewer.locator('[data-action=forget]').count(), 0, 'a viewer forgets no member');
  await enter(page, site, '#/fleet');
  await member(page, 'b').locator('[data-action=forget]').click();
  assert.match(await plan(page), /gone for good.*portcullis fleet forget b.*DELETE/s);
  await isAccessible(page);
  await confirm(page);
  await member(page, 'b').waitFor({ state: 'detached' });
}

export async function store_that_is_down_or_refused_is_shown_and_accepted(site) {
  const page = await site.signedIn('operator', '#/fleet', { bypassCsp: true, expects: [/status of 503/] });
  await page.locator('#fleet-store', { hasText: 'up' }).waitFor();
  const { body: fleet } = await site.api('viewer', 'GET', '/v1/fleet');
  const store = { ...fleet.store, state: 'refused', detail: 'the store is <b>another</b> one than before' };
  await page.route('**/v1/fleet', (route) => route.fulfill({ json: { ...fleet, store } }));
  await page.locator('#fleet-store', { hasText: 'The store is refused: the store is <b>another</b> one' }).waitFor();
  await page.locator('#accept-store').click();
  const accepting = await plan(page);
  assert.match(accepting, /The rules in the store come into force at all members/);
  assert.match(accepting, /portcullis fleet accept.*-X POST/s);
  await isAccessible(page);
  await confirm(page);
  await toast(page, 'The store is accepted').waitFor();
  await page.unroute('**/v1/fleet');

  process.kill(site.etcd, 'SIGKILL');
  await page.locator('#fleet-store', { hasText: 'The store is down' }).waitFor();
  await enter(page, site, '#/sources/main');
  await page.locator('#add-sources').waitFor();
  assert.match(await add(page, '127.0.0.9'), /the members cannot be asked|0 sessions end/);
  await press(page, 'confirm');
  await dialog(page).getByText('the store of the fleet').first().waitFor();
  await dialog(page).getByText(/What you entered is kept. Try again in \d+ s/).waitFor();
  await press(page, 'cancel');
  await press(page, 'discard').catch(() => {});
  await enter(page, site, '#/');
  await page.locator('[data-issue=fleet-store]', { hasText: 'The store of the fleet is down' }).waitFor();
}

/** Nothing is cut off at any width, and no finding of axe is serious. */
async function fits(page) {
  const size = page.viewportSize();
  for (const width of [360, 1280]) {
    await page.setViewportSize({ ...size, width });
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(overflow <= 0, `${overflow} px too wide at ${width} px`);
  }
  await page.setViewportSize(size);
}

async function isAccessible(page) {
  const { source } = createRequire(import.meta.url)('axe-core');
  await page.evaluate(source);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  const serious = violations.filter(({ impact }) => ['serious', 'critical'].includes(impact));
  assert.deepEqual(serious.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map(({ html }) => html.slice(0, 160)).join(' | ')}`), []);
}
