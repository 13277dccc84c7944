//! Puts a policy in force, completely or not at all.

use std::sync::Arc;

use tracing::{info, warn};

use crate::audit::changes::Changes;
use crate::audit::open_audit_file;
use crate::audit::sink::Destination;
use crate::metrics::exposition::{answer, endpoint};
use crate::policy::changes::AddressChange;
use crate::policy::{Built, Snapshot};
use crate::proxy::listener;
use crate::server::reload::ReloadResult;
use crate::server::{Server, cloud, contain, metrics_address, warn_all};
use crate::server::{certificate_expiry, reload};
use crate::source::addresses::Resolvable;
use crate::{control, fault};

/// The resources of a policy, opened before it is put in force.
pub(crate) struct Prepared {
    addresses: listener::Prepared,
    socket: control::Prepared,
    metrics: endpoint::Prepared,
    /// The new destination of the audit, if `log.audit_file` changes; `Some(None)` for none.
    audit_file: Option<Option<Destination>>,
}

impl Prepared {
    /// Whether no resource changes.
    fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.socket.is_empty() && self.metrics.is_empty() && self.audit_file.is_none()
    }
}

impl Server {
    /// Puts a policy in force.
    ///
    /// If it `is_in_force` already and no socket changes, the current policy stays with its generation.
    ///
    /// # Errors
    /// The reason why a resource of the policy cannot be opened. The current policy stays in force.
    pub(crate) fn apply(&mut self, built: Built, current: &Arc<Snapshot>, is_in_force: bool) -> ReloadResult {
        let prepared = fault::contain(reload::PART, || self.prepare(&built.snapshot, current));
        let prepared = prepared.unwrap_or_else(|fault| Err(fault.to_string()))?;
        if is_in_force && prepared.is_empty() {
            info!(generation = current.generation, "the configuration is already in force");
            return Ok(Changes { generation: current.generation, ..Changes::default() });
        }
        Ok(self.put_in_force(built, prepared, current))
    }

    /// Opens all resources of a policy that may fail to open.
    pub(crate) fn prepare(&mut self, snapshot: &Snapshot, current: &Snapshot) -> Result<Prepared, String> {
        let log = &snapshot.config.log;
        let other_audit_file = log.audit_file != current.config.log.audit_file;
        let audit_file = log.audit_file.clone().filter(|_| other_audit_file).map(open_audit_file).transpose()?;
        let hosts = snapshot.admin_host_names();
        let socket = self.admin.prepare(snapshot.config.admin.as_ref(), snapshot.admin_server_tls(), hosts);
        let socket = socket.map_err(|error| {
            self.reloader.force_attempt();
            format!("{}: admin.listen: {error}", snapshot.config.file.display())
        })?;
        let metrics = self.metrics_endpoint.prepare(metrics_address(snapshot)).map_err(|error| {
            self.reloader.force_attempt();
            format!("{}: admin.metrics: {error}", snapshot.config.file.display())
        })?;
        let addresses = self.listeners.prepare(snapshot).map_err(|error| {
            // The port may become free without a change of any file.
            self.reloader.force_attempt();
            format!("{}: {error}", snapshot.config.file.display())
        })?;
        Ok(Prepared { addresses, socket, metrics, audit_file: other_audit_file.then_some(audit_file) })
    }

    /// Puts a prepared policy in force. Nothing can fail here, and a panic in one part does not affect the others.
    pub(crate) fn put_in_force(&mut self, built: Built, prepared: Prepared, current: &Snapshot) -> Changes {
        let Built { snapshot, warnings } = built;
        let Prepared { addresses, socket, metrics, audit_file } = prepared;
        let snapshot = Arc::new(snapshot);
        self.listeners.widen(&snapshot, current);
        self.resolutions.expect(cloud::sources(&snapshot));
        self.published.publish(&snapshot);
        contain("listeners", || self.listeners.commit(addresses, &snapshot));
        contain(control::PART, || self.admin.commit(socket));
        self.audit.record_recent(snapshot.config.admin.is_some());
        contain(answer::PART, || self.metrics_endpoint.commit(metrics));
        contain("log", || self.follow_log(audit_file, &snapshot, current));
        contain(reload::PART, || {
            for policy in snapshot.listeners() {
                policy.usage.keep_only(policy);
            }
            self.resolutions.keep_only(&snapshot.resolvables().collect());
            self.reloader.note_in_force(&snapshot);
        });
        let changes = fault::contain("audit", || self.audit_changes(&snapshot, current));
        contain(certificate_expiry::PART, || self.expiry.check(&snapshot, &self.audit));
        contain("audit", || {
            warn_all(&warnings);
            self.audit_ready(&snapshot, Some(current));
        });
        changes.unwrap_or_else(|_| Changes { generation: snapshot.generation, ..Changes::default() })
    }

    /// Applies `[log]` and reopens the audit file if it changed.
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

    fn audit_changes(&self, snapshot: &Snapshot, current: &Snapshot) -> Changes {
        let sources = snapshot.source_changes_since(current);
        for changes in &sources {
            changes.added().take(MAX_SOURCE_EVENTS).for_each(|(owner, rule)| self.audit.source_added(owner, rule));
            changes.removed().take(MAX_SOURCE_EVENTS).for_each(|(owner, rule)| self.audit.source_removed(owner, rule));
        }
        self.audit_addresses(snapshot, current);
        let changes = snapshot.changes_since(current, &sources);
        self.audit.reload_applied(&changes);
        changes
    }

    fn audit_addresses(&self, snapshot: &Snapshot, current: &Snapshot) {
        let changes = snapshot.address_changes_since(current);
        for group in changes.chunk_by(|one, next| one.owner == next.owner) {
            let hosts = group.iter().filter_map(|change| Some((change, change.source.host()?)));
            let added = hosts.clone().filter(|(change, _)| !change.added.is_empty());
            for (AddressChange { owner, added, .. }, name) in added.take(MAX_SOURCE_EVENTS) {
                self.audit.addresses_added(*owner, name, added);
            }
            let removed = hosts.filter(|(change, _)| !change.removed.is_empty());
            for (AddressChange { owner, removed, .. }, name) in removed.take(MAX_SOURCE_EVENTS) {
                self.audit.addresses_removed(*owner, name, removed);
            }
            // A rule that was removed has its own event.
            let is_named = |change: &AddressChange<'_>| {
                snapshot.rule_set(change.owner).is_some_and(|set| set.known(&change.source).is_some())
            };
            let cloud = group.iter().filter(|change| change.source.cloud().is_some() && is_named(change));
            for AddressChange { owner, source, added, removed, count } in cloud.take(MAX_SOURCE_EVENTS) {
                let Resolvable::Cloud(source) = source else { continue };
                self.audit.source_resolved(*owner, source, [added.len(), removed.len(), *count]);
            }
        }
    }

    /// Emits `ready` for each listener at the start, and later for each listener with changed addresses.
    pub(crate) fn audit_ready(&self, snapshot: &Snapshot, before: Option<&Snapshot>) {
        for policy in snapshot.listeners() {
            let known = before.and_then(|before| before.named(&policy.name));
            if known.is_none_or(|known| known.bind_addrs != policy.bind_addrs) {
                let addresses: Vec<_> = self.listeners.addresses(policy).iter().map(ToString::to_string).collect();
                self.audit.ready(&policy.name, &policy.protocol.to_string(), &addresses);
            }
        }
    }

    /// Puts a policy in force that differs only in the addresses of its hosts and cloud sources.
    pub(crate) fn refresh(&mut self, snapshot: Snapshot, current: &Snapshot) {
        let snapshot = Arc::new(snapshot);
        self.listeners.widen(&snapshot, current);
        self.published.publish(&snapshot);
        self.listeners.follow(&snapshot);
        contain("audit", || self.audit_addresses(&snapshot, current));
    }
}

/// Source events per listener or group and reload; `reload.applied` has the full counts. The limit keeps a list of 100,000 new rules
/// from displacing all other events in the audit queue.
const MAX_SOURCE_EVENTS: usize = 1_000;
