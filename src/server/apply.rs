//! Putting a policy in force, whole.

use std::sync::Arc;

use tracing::{info, warn};

use crate::audit::changes::Changes;
use crate::audit::open_audit_file;
use crate::audit::sink::Destination;
use crate::policy::changes::AddressChange;
use crate::policy::{Built, Snapshot};
use crate::proxy::listener;
use crate::server::reload::ReloadResult;
use crate::server::{Server, attempt, warn_all};
use crate::server::{certificate_expiry, reload};
use crate::{control, fault};

/// What a policy needs, ready to be used.
pub(crate) struct Prepared {
    addresses: listener::Prepared,
    socket: control::Prepared,
    /// Where the audit goes, if that is somewhere else than before.
    audit_file: Option<Option<Destination>>,
}

impl Prepared {
    /// Whether nothing has to be opened or closed.
    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.socket.is_empty() && self.audit_file.is_none()
    }
}

impl Server {
    /// Puts a policy in force, or says why not. Where its files `are_in_force` already and every socket is in its place, the
    /// current policy stays, with its generation.
    pub(crate) fn apply(&mut self, built: Built, current: &Arc<Snapshot>, are_in_force: bool) -> ReloadResult {
        let prepared = fault::contain(reload::PART, || self.prepare(&built.snapshot, current));
        let prepared = prepared.unwrap_or_else(|fault| Err(fault.to_string()))?;
        if are_in_force && prepared.is_empty() {
            info!(generation = current.generation, "the configuration is already in force");
            return Ok(Changes { generation: current.generation, ..Changes::default() });
        }
        Ok(self.put_in_force(built, prepared, current))
    }

    /// Gets all that a policy needs and that may not be had.
    pub(crate) fn prepare(&mut self, snapshot: &Snapshot, current: &Snapshot) -> Result<Prepared, String> {
        let log = &snapshot.config.log;
        let other_audit_file = log.audit_file != current.config.log.audit_file;
        let audit_file = log.audit_file.clone().filter(|_| other_audit_file).map(open_audit_file).transpose()?;
        let socket = self.admin.prepare(snapshot.config.admin.as_ref());
        let socket = socket.map_err(|error| {
            self.reloader.try_again();
            format!("{}: admin.listen: {error}", snapshot.config.file.display())
        })?;
        let addresses = self.listeners.prepare(snapshot).map_err(|error| {
            // The port may be given back without any file changing.
            self.reloader.try_again();
            format!("{}: {error}", snapshot.config.file.display())
        })?;
        Ok(Prepared { addresses, socket, audit_file: other_audit_file.then_some(audit_file) })
    }

    /// Nothing can fail any more. A fault in one part must keep no other from following the policy.
    pub(crate) fn put_in_force(&mut self, built: Built, prepared: Prepared, current: &Snapshot) -> Changes {
        let Built { snapshot, warnings } = built;
        let Prepared { addresses, socket, audit_file } = prepared;
        let snapshot = Arc::new(snapshot);
        self.listeners.widen(&snapshot, current);
        self.published.publish(&snapshot);
        attempt("listeners", || self.listeners.commit(addresses, &snapshot));
        attempt(control::PART, || self.admin.commit(socket));
        attempt("log", || self.follow_log(audit_file, &snapshot, current));
        attempt(reload::PART, || {
            for policy in snapshot.listeners() {
                policy.usage.keep_only(policy);
            }
            self.host_cache.keep_only(&snapshot.hosts().map(|host| host.name.clone()).collect());
            self.reloader.applied(&snapshot);
        });
        let changes = fault::contain("audit", || self.tell_changes(&snapshot, current));
        attempt(certificate_expiry::PART, || self.expiry.look(&snapshot, &self.audit));
        attempt("audit", || {
            warn_all(&warnings);
            self.proxy_header(&snapshot, Some(current));
        });
        changes.unwrap_or_else(|_| Changes { generation: snapshot.generation, ..Changes::default() })
    }

    /// Takes over `[log]`, with the audit file where it is another one.
    fn follow_log(&self, audit_file: Option<Option<Destination>>, snapshot: &Snapshot, current: &Snapshot) {
        if let Some(audit_file) = audit_file {
            self.audit.reopen(audit_file);
        }
        if let Err(error) = self.log.set_level(&snapshot.config.log.level) {
            warn!(%error, "cannot apply log.level, keeping the previous one");
        }
        if snapshot.config.log.format != current.config.log.format {
            warn!("log.format changed, takes effect at the next start");
        }
    }

    fn tell_changes(&self, snapshot: &Snapshot, current: &Snapshot) -> Changes {
        let sources = snapshot.source_changes_since(current);
        for changes in &sources {
            changes
                .added()
                .take(MOST_SOURCES_TOLD)
                .for_each(|(listener, rule)| self.audit.source_added(listener, rule));
            changes
                .removed()
                .take(MOST_SOURCES_TOLD)
                .for_each(|(listener, rule)| self.audit.source_removed(listener, rule));
        }
        self.tell_addresses(snapshot, current);
        let changes = snapshot.changes_since(current, &sources);
        self.audit.reload_applied(&changes);
        changes
    }

    fn tell_addresses(&self, snapshot: &Snapshot, current: &Snapshot) {
        let changes = snapshot.address_changes_since(current);
        for of_listener in changes.chunk_by(|one, next| one.listener == next.listener) {
            let added = of_listener.iter().filter(|change| !change.added.is_empty());
            for AddressChange { listener, name, added, .. } in added.take(MOST_SOURCES_TOLD) {
                self.audit.addresses_added(listener, name, added);
            }
            let removed = of_listener.iter().filter(|change| !change.removed.is_empty());
            for AddressChange { listener, name, removed, .. } in removed.take(MOST_SOURCES_TOLD) {
                self.audit.addresses_removed(listener, name, removed);
            }
        }
    }

    /// Says which listeners are ready: all at the start, later those with other addresses than before.
    pub(crate) fn proxy_header(&self, snapshot: &Snapshot, before: Option<&Snapshot>) {
        for policy in snapshot.listeners() {
            let known = before.and_then(|before| before.named(&policy.name));
            if known.is_none_or(|known| known.bind_addrs != policy.bind_addrs) {
                let addresses: Vec<_> = self.listeners.addresses(policy).iter().map(ToString::to_string).collect();
                self.audit.ready(&policy.name, &policy.protocol.to_string(), &addresses);
            }
        }
    }

    /// Puts a policy in force that differs by the addresses of its hosts only.
    pub(crate) fn refresh(&mut self, snapshot: Snapshot, current: &Snapshot) {
        let snapshot = Arc::new(snapshot);
        self.listeners.widen(&snapshot, current);
        self.published.publish(&snapshot);
        self.listeners.follow(&snapshot);
        attempt("audit", || self.tell_addresses(&snapshot, current));
    }
}

/// Rules named one by one in the audit of one reload and listener; beyond that `reload.applied` has the counts. Keeps a
/// list of 100,000 new rules from crowding everything else out of the audit's queue.
const MOST_SOURCES_TOLD: usize = 1_000;
