// What needs a person, from the status and the certificates, each with a link to where it is fixed.

import { count, dateTime, DAY, HOUR, lookup, relative } from './format.js';
import { link } from './router.js';

/** Audit events warn 30 days ahead, too. */
const WARNING = 30 * DAY;

/** The state of a certificate, with the same limits and words on every page. */
export function certificateState({ not_after: until, expired = false }, now = Date.now()) {
  const left = new Date(until).getTime() - now;
  if (expired || left <= 0) return { kind: 'bad', text: 'expired' };
  if (left < WARNING) return { kind: 'warn', text: `expires ${relative(until, now)}` };
  return { kind: 'good', text: 'valid' };
}

const ROLE_NAMES = {
  server: 'server certificate',
  server_certificate: 'server certificate',
  client_ca: 'client CA',
  client_certificate: 'client certificate',
  upstream_ca: 'upstream CA',
  upstream_certificate: 'certificate for the upstream',
  admin: 'certificate of the admin address',
  admin_client_ca: 'client CA of the admin address',
  source: 'trusted source',
  password: 'password',
  upstream_password: 'upstream password',
};

export const roleName = (role) => lookup(ROLE_NAMES, role) ?? String(role).replaceAll('_', ' ');

const aRole = (role) => `${/^[aeiou]/.test(roleName(role)) ? 'an' : 'a'} ${roleName(role)}`;

export function admitsNobody(listener) {
  if (listener.enforcement !== 'enforce') return false;
  // The mode of the file, not a rule, admits the clients of a Unix socket.
  if (listener.addresses.length > 0 && listener.addresses.every((address) => address.startsWith('unix:'))) return false;
  const withoutAddress = (listener.dns_sources ?? []).filter((source) => source.addresses.length === 0).length;
  const unresolved = (listener.cloud_sources ?? []).filter((source) => source.addresses_count === 0).length;
  return listener.trusted_sources === 0 || listener.trusted_sources === withoutAddress + unresolved;
}

/** A list of `{ kind, key, title, text, target, action }`, the most urgent first. */
export function issues({ status, certificates, session }) {
  const found = [];
  const put = (kind, key, title, text, target, action) => found.push({ kind, key, title, text, target, action });
  if (!status) return found;
  if (status.draining) {
    put(
      'bad',
      'draining',
      'The program is draining',
      `It stops, and closes the remaining sessions ${relative(status.draining.until)}. Changes are not possible.`,
      link('sessions'),
      'Show the sessions',
    );
  }
  if (status.last_reload?.result === 'rejected') {
    put(
      'bad',
      'reload',
      'The last reload was rejected',
      `${relative(status.last_reload.at)}; the policy before it stays in force. ${firstLine(status.last_reload.error)}`,
      link('reload'),
      'Show the error',
    );
  }
  if (status.descriptors && !status.descriptors.accepting) {
    put(
      'bad',
      'descriptors',
      'New connections wait',
      `All ${count(status.descriptors.max_connections, 'connection')} that the limit of open files permits are ` +
        'in use. Raise the limit and restart.',
      link('sessions'),
      'Show the sessions',
    );
  }
  putFleet(status.fleet, put);
  for (const listener of status.listeners ?? []) {
    const { name } = listener;
    if (listener.upstream_health === 'unhealthy') {
      const broken = listener.upstreams?.find((each) => each.health === 'unhealthy');
      put(
        'bad',
        `upstream-${name}`,
        `${name}: the upstream is unhealthy`,
        broken?.error ? `${broken.address}: ${broken.error}` : `${listener.upstream} cannot be used.`,
        link('overview', '', { listener: name }),
        'Show the upstream',
      );
    }
    if (admitsNobody(listener)) {
      put(
        'bad',
        `nobody-${name}`,
        `${name}: no client can connect`,
        listener.trusted_sources === 0 ? 'The listener has no trusted source.' : 'None of its host names resolves.',
        link('sources', name),
        'Add a source',
      );
    }
    if (listener.enforcement === 'observe') {
      put(
        'warn',
        `observe-${name}`,
        `${name}: untrusted sources are admitted`,
        'Enforcement is observe. Set enforcement = "enforce" in the configuration, then reload.',
        link('reload'),
        'Open Reload',
      );
    }
    const stale = (listener.dns_sources ?? []).filter((source) => source.stale);
    if (stale.length > 0) {
      put(
        'warn',
        `dns-${name}`,
        `${name}: ${count(stale.length, 'host name does', 'host names do')} not resolve`,
        `${stale[0].rule}: ${stale[0].error ?? 'no answer'}`,
        link('sources', name, { q: stale.length === 1 ? stale[0].rule.replace(/^dns:/, '') : 'dns' }),
        'Show the source',
      );
    }
    const unsettled = (listener.cloud_sources ?? []).filter((source) => source.state !== 'resolved');
    if (unsettled.length > 0) {
      put(
        'warn',
        `cloud-${name}`,
        `${name}: ${count(unsettled.length, 'cloud source is', 'cloud sources are')} not resolved`,
        `${unsettled[0].rule}: ${unsettled[0].detail ?? 'no answer'}`,
        link('sources', name, { q: unsettled.length === 1 ? unsettled[0].rule.replace(/^[^:]*:/, '') : '' }),
        'Show the source',
      );
    }
    const shared = listener.fleet_rules;
    if (shared && ['missing', 'invalid'].includes(shared.state)) {
      put(
        'warn',
        `fleet-rules-${name}`,
        `${name}: the rules in the store of the fleet are ${shared.state}`,
        `The last good rules stay in force. ${firstLine(shared.detail)}`,
        link('fleet'),
        'Show the fleet',
      );
    }
    if (listener.shield?.unavailable_reason) {
      put(
        'warn',
        `shield-${name}`,
        `${name}: the shield is not active`,
        listener.shield.unavailable_reason,
        link('overview', '', { listener: name }),
        'Show the listener',
      );
    }
  }
  for (const certificate of certificates ?? []) {
    const { kind, text } = certificateState(certificate);
    if (kind === 'good') continue;
    const where = certificate.listener ?? 'admin address';
    const target = certificate.listener ? link('tls', certificate.listener) : link('reload');
    const action = certificate.listener ? 'Show the certificate' : 'Replace the file, then reload';
    put(
      kind,
      `certificate-${where}-${certificate.role}-${certificate.sha256}`,
      `${where}: ${aRole(certificate.role)} ${text === 'expired' ? 'has expired' : text}`,
      `${certificate.subject || certificate.names?.[0] || certificate.sha256}, ${dateTime(certificate.not_after)}`,
      target,
      action,
    );
  }
  for (const fault of status.faults ?? []) {
    put(
      'warn',
      `fault-${fault.part}-${fault.location}`,
      `Internal fault in ${fault.part}`,
      `${fault.message} (${count(fault.count, 'time')}, last ${relative(fault.at)}). Report it with the log.`,
      link('audit'),
      'Open the audit',
    );
  }
  for (const removed of status.removed_listeners ?? []) {
    put(
      'info',
      `removed-${removed.name}`,
      `${removed.name}: removed, with ${count(removed.sessions, 'open session')}`,
      'The listener is no longer in the configuration.',
      link('sessions', '', { listener: removed.name }),
      'Show the sessions',
    );
  }
  const ends = session?.expires_at ? new Date(session.expires_at).getTime() - Date.now() : Infinity;
  if (ends < HOUR) {
    put(
      'info',
      'token',
      'Your token expires soon',
      `${session.name} expires ${relative(session.expires_at)}. An owner can create a new one.`,
      link('tokens'),
      'Open Tokens',
    );
  }
  const order = { bad: 0, warn: 1, info: 2 };
  return found.sort((a, b) => order[a.kind] - order[b.kind]);
}

function putFleet(fleet, put) {
  if (!fleet) return;
  const { store, detail, duplicate } = fleet;
  if (store === 'refused' || store === 'down') {
    put(
      store === 'refused' ? 'bad' : 'warn',
      'fleet-store',
      `The store of the fleet is ${store}`,
      `The last good rules stay in force, and the rules of the fleet cannot be changed. ${firstLine(detail)}`,
      link('fleet'),
      'Show the fleet',
    );
  }
  if (duplicate) {
    put(
      'bad',
      'fleet-duplicate',
      'Another process has the name of this member',
      `Both are ${fleet.member} in the fleet ${fleet.name}. Give each member its own name.`,
      link('fleet'),
      'Show the fleet',
    );
  }
}

const firstLine = (text) => String(text ?? '').split('\n')[0];
