// Drives a real browser for the tests of the control panel.
//
// `node scenario.mjs NAME SITE` runs one scenario. SITE is JSON with the addresses, files and tokens of the program under test.
// The process ends with 0 only if the scenario passed, no page logged an error, and no page asked another origin.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import tls from 'node:tls';
import { chromium } from 'playwright-core';

export { assert };

// Long enough for a busy machine. A step that takes longer has failed.
const PATIENCE = 60_000;

const ARGUMENTS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

export class Site {
  constructor(facts, browser) {
    Object.assign(this, facts);
    this.browser = browser;
    this.problems = [];
    this.contexts = [];
  }

  /** A new person at a browser: a page with a context of its own. */
  async person({ width = 1280, height = 900, scheme = 'light', bypassCsp = false, expects = [] } = {}) {
    const context = await this.browser.newContext({
      viewport: { width, height }, colorScheme: scheme, bypassCSP: bypassCsp, acceptDownloads: true, ignoreHTTPSErrors: true,
      locale: 'en-GB', timezoneId: 'Europe/Berlin', reducedMotion: 'reduce', permissions: ['clipboard-read', 'clipboard-write'],
    });
    context.setDefaultTimeout(PATIENCE);
    this.contexts.push(context);
    const page = await context.newPage();
    // An answer that the panel shows in words is no error of the page.
    const isExpected = (text) => [/the server responded with a status of 4\d\d/, ...expects].some((pattern) => pattern.test(text));
    const note = (text) => { if (!isExpected(text)) this.problems.push(text); };
    page.on('console', (message) => { if (message.type() === 'error') note(`console: ${message.text()}`); });
    page.on('pageerror', (error) => note(`page: ${error.message}`));
    page.on('request', (request) => {
      const { protocol, origin } = new URL(request.url());
      if (!['data:', 'blob:'].includes(protocol) && origin !== new URL(this.base).origin) note(`request to ${request.url()}`);
    });
    return page;
  }

  /** A person who has signed in with the token of this role, at this place of the panel. */
  async signedIn(role, hash = '#/', options = {}) {
    const page = await this.person(options);
    await page.goto(`${this.base}/ui/${hash}`);
    await signIn(page, this.tokens[role] ?? role);
    return page;
  }

  /** Calls the API with the token of a role. */
  async api(role, method, target, body) {
    const response = await fetch(`${this.base}${target}`, {
      method,
      headers: { Authorization: `Bearer ${this.tokens[role]}`, 'Content-Type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await response.text();
    return { status: response.status, body: text === '' ? null : JSON.parse(text) };
  }

  /** The number of actions of this name in the audit. */
  async countActions(action) {
    // Its event comes after all earlier ones.
    const last = await this.api('owner', 'POST', '/v1/tokens', { name: `mark-${Date.now()}`, role: 'viewer' });
    const stop = new AbortController();
    const response = await fetch(`${this.base}/v1/events?event=admin.action&recent=1000`, { headers: { Authorization: `Bearer ${this.tokens.viewer}` }, signal: stop.signal });
    let text = '';
    for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
      text += chunk;
      if (text.includes(`"target":"${last.body.name}"`)) break;
    }
    stop.abort();
    return text.split(`"action":"${action}"`).length - 1;
  }

  async values() {
    const { body } = await this.api('viewer', 'GET', '/v1/listeners/cache/sources');
    return body.rules.map(({ value }) => value);
  }

  read(name) {
    return fs.readFileSync(path.join(this.directory, name), 'utf8');
  }

  write(name, text) {
    fs.writeFileSync(path.join(this.directory, name), text);
  }

  /** A client of the listener `cache`. Resolves with `null` if it is not admitted. */
  client(options) {
    const [host, port] = this.cache.split(':');
    return this.clientAt(host, port, options);
  }

  /** The same for the listener at this address. */
  clientAt(host, port, { from = '127.0.0.1', certificate = null } = {}) {
    const own = certificate ? { cert: this.read(`${certificate}.crt`), key: this.read(`${certificate}.key`) } : {};
    return new Promise((resolve) => {
      const socket = tls.connect({ host, port: Number(port), localAddress: from, ca: this.read('ca.crt'), servername: 'localhost', ...own });
      const client = { socket, ended: new Promise((done) => { socket.on('close', done); }) };
      socket.on('error', () => resolve(null));
      socket.on('close', () => resolve(null));
      socket.on('secureConnect', () => socket.write('PING\r\n'));
      socket.on('data', () => resolve(client));
    });
  }

  async close() {
    await Promise.all(this.contexts.map((context) => context.close()));
  }
}

export async function signIn(page, token) {
  await page.getByLabel('Token', { exact: true }).fill(token);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.locator('#app:not([hidden]) .page h1').waitFor();
}

/** Waits until the view of this hash shows its first data. */
export async function shown(page, hash) {
  const [, name] = /^#\/(\w*)/.exec(hash);
  await page.locator(`.page-${name || 'overview'}[data-ready]`).waitFor();
}

/** The dialog in front. */
export const dialog = (page) => page.locator('dialog.dialog[open]').last();

/** Presses the button of the dialog in front that has this purpose. */
export async function press(page, action) {
  await dialog(page).locator(`[data-action=${action}]:not([aria-disabled=true])`).click();
}

/** Waits for the plan, and returns its text. */
export async function plan(page) {
  await dialog(page).locator('[data-action=confirm], [data-action=retry]').waitFor();
  return dialog(page).innerText();
}

/** Confirms the plan that is shown, and waits until the dialog is closed. */
export async function confirm(page) {
  const shown = await dialog(page).elementHandle();
  await press(page, 'confirm');
  await page.waitForFunction((element) => !element.open, shown);
}

/** Serious findings of axe. The page must bypass the policy: only this tool may evaluate text as a script. */
export async function assertAccessible(page, what) {
  const { source } = createRequire(import.meta.url)('axe-core');
  await page.evaluate(source);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  const serious = violations.filter(({ impact }) => ['serious', 'critical'].includes(impact));
  assert.deepEqual(serious.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map(({ html }) => html.slice(0, 160)).join(' | ')}`), [], what);
}

/** The page is not wider than its window. */
export async function assertFits(page, what) {
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(overflow <= 0, `${what} is ${overflow} px too wide`);
}

/** Waits until a condition holds. */
export async function until(what, condition, patience = PATIENCE) {
  const deadline = Date.now() + patience;
  for (;;) {
    const result = await condition();
    if (result) return result;
    assert.ok(Date.now() < deadline, `${what}: not in time`);
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
}

/** Runs the scenario that the command line names. */
export async function main(scenarios) {
  const [name, facts] = process.argv.slice(2);
  const scenario = scenarios[name];
  assert.ok(scenario, `there is no scenario ${name}`);
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ARGUMENTS });
  const site = new Site(JSON.parse(facts), browser);
  try {
    await scenario(site);
    await site.close();
    assert.deepEqual(site.problems, [], 'no page has a problem');
  } catch (error) {
    await failureScreenshots(site, name);
    throw error;
  } finally {
    await browser.close();
  }
}

async function failureScreenshots(site, name) {
  for (const [index, context] of site.contexts.entries()) {
    for (const page of context.pages()) {
      const text = await page.locator('body').innerText({ timeout: 1000 }).catch(() => '');
      console.error(`--- page ${index} of ${name}: ${page.url()}\n${text.slice(0, 3000)}`);
      if (process.env.PORTCULLIS_PANEL_FAILURES) await page.screenshot({ path: `${process.env.PORTCULLIS_PANEL_FAILURES}/${name}-${index}.png` }).catch(() => {});
    }
  }
  if (site.problems.length > 0) console.error(`--- problems\n${site.problems.join('\n')}`);
}
