//! Puts the parts together, runs them, and takes them apart again in the right order.

mod counts;
mod desk;
mod report;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Interval, timeout};
use tracing::{info, warn};

use self::desk::Desk;
use crate::admin::Admin;
use crate::audit::{Audit, Changes, LogHandle, open_audit_file};
use crate::config::Fingerprint;
use crate::connection::{House, Workers};
use crate::expiry::{ExpiryWatch, LOOK_EVERY};
use crate::listener::{BindError, Listeners};
use crate::names::Names;
use crate::notify;
use crate::outcome::Reason;
use crate::reload::{Attempt, Proposal, Reloader, Verdict};
use crate::sessions::Register;
use crate::signals::{Signals, Stop};
use crate::snapshot::{AddressChange, Built, Snapshot};
use crate::{readmission, resolver, revocation};

/// A proxy whose addresses are bound.
#[derive(Debug)]
pub struct Server {
    audit: Audit,
    log: LogHandle,
    published: watch::Sender<Arc<Snapshot>>,
    listeners: Listeners,
    register: Arc<Register>,
    names: Arc<Names>,
    reloader: Reloader,
    expiry: ExpiryWatch,
    /// What goes on beside the loop below, for as long as this lives.
    _beside: JoinSet<()>,
    admin: Admin,
    desk: Desk,
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control channel's socket cannot be had.
    #[error("admin.listen: {0}")]
    Admin(#[source] io::Error),
    /// An address cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The system gives no threads.
    #[error("worker threads cannot be started: {0}")]
    Workers(#[source] io::Error),
}

impl Server {
    /// Binds every address and starts to accept.
    ///
    /// # Errors
    /// When an address cannot be bound; then nothing is accepted anywhere.
    pub fn start(
        built: Built,
        fingerprint: Fingerprint,
        names: Arc<Names>,
        audit: Audit,
        log: LogHandle,
    ) -> Result<Self, StartError> {
        let snapshot = Arc::new(built.snapshot);
        let (askers, asked) = mpsc::channel(MOST_ASKERS);
        let reloader = Reloader::new(&snapshot, fingerprint, asked, Arc::clone(&names));
        let (published, current) = watch::channel(Arc::clone(&snapshot));
        let register = Arc::new(Register::default());
        let mut beside = JoinSet::new();
        beside.spawn(revocation::run(current.clone(), Arc::clone(&register)));
        beside.spawn(resolver::run(current.clone(), Arc::clone(&names)));
        beside.spawn(audit.clone().sum_up_floods());
        beside.spawn(readmission::run(current.clone()));
        let house = House { current, register: Arc::clone(&register), audit: audit.clone() };
        let workers = Workers::start(available_parallelism().map_or(1, usize::from), &house);
        let workers = Arc::new(workers.map_err(StartError::Workers)?);
        let mut listeners = Listeners::new(house, workers);
        let (requests, requested) = mpsc::channel(MOST_REQUESTS);
        let mut admin = Admin::new(requests);
        let socket = admin.prepare(snapshot.config.admin.as_ref()).map_err(StartError::Admin)?;
        let prepared = listeners.prepare(&snapshot)?;
        listeners.commit(prepared, &snapshot);
        admin.commit(socket);
        let desk = Desk::new(requested, askers, Arc::clone(&register), Arc::clone(&names), audit.clone());
        warn_all(&built.warnings);
        let server = Self {
            audit,
            log,
            published,
            listeners,
            register,
            names,
            reloader,
            expiry: ExpiryWatch::default(),
            _beside: beside,
            admin,
            desk,
        };
        server.announce(&snapshot, None);
        Ok(server)
    }

    /// Serves until told to stop, then drains.
    pub async fn run(mut self, mut signals: Signals) {
        notify::ready();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            let current = Arc::clone(&self.published.borrow());
            match self.next_proposal(&current, &mut signals, &mut looks).await {
                Some(Proposal::Reload(attempt)) => self.consider(attempt, &current),
                Some(Proposal::Refresh(snapshot)) => self.refresh(*snapshot, &current),
                None => break,
            }
        }
        self.drain(&mut signals.stop).await;
    }

    /// The next policy that is proposed, or nothing when it is time to stop.
    async fn next_proposal(
        &mut self,
        current: &Arc<Snapshot>,
        signals: &mut Signals,
        looks: &mut Interval,
    ) -> Option<Proposal> {
        // Kept across the looks: a reload that has begun must come to its end.
        let mut next = pin!(self.reloader.next(current, &mut signals.reload));
        loop {
            tokio::select! {
                () = signals.stop.next() => return None,
                request = self.desk.next() => self.desk.answer(request, current, &self.listeners),
                () = self.listeners.look_due() => self.listeners.look(current),
                _ = looks.tick() => self.expiry.look(current, &self.audit),
                proposal = &mut next => return Some(proposal),
            }
        }
    }

    /// Puts a proposed policy in force, whole, or refuses it, whole.
    fn consider(&mut self, attempt: Attempt, current: &Arc<Snapshot>) {
        let Attempt { requested, asker, outcome } = attempt;
        if requested {
            self.reopen_audit_file(current);
        }
        let verdict = outcome.and_then(|built| self.apply(*built, current));
        let error = verdict.as_ref().err().map(String::as_str);
        let known = self.desk.reloaded(error);
        if let Some(error) = error {
            // The same again, when nobody asked, is no news.
            if requested || !known {
                self.audit.reload_rejected(current.generation, error);
            }
        }
        if let Some(asker) = asker {
            // It may have hung up.
            let _ = asker.send(verdict);
        }
    }

    /// Puts a policy in force that differs by the addresses of its hosts only.
    fn refresh(&mut self, snapshot: Snapshot, current: &Snapshot) {
        let snapshot = Arc::new(snapshot);
        self.listeners.widen(&snapshot, current);
        self.published.send_replace(Arc::clone(&snapshot));
        self.listeners.follow(&snapshot);
        self.tell_addresses(&snapshot, current);
    }

    /// What log rotation needs of SIGHUP, whatever becomes of the reload.
    fn reopen_audit_file(&self, current: &Snapshot) {
        match current.config.log.audit_file.clone().map(open_audit_file).transpose() {
            Ok(destination) => self.audit.reopen(destination),
            Err(error) => warn!("the audit goes on into the old file: {error}"),
        }
    }

    fn apply(&mut self, built: Built, current: &Arc<Snapshot>) -> Verdict {
        let Built { snapshot, warnings } = built;
        let log = &snapshot.config.log;
        let other_audit_file = log.audit_file != current.config.log.audit_file;
        let audit_file = log.audit_file.clone().filter(|_| other_audit_file).map(open_audit_file).transpose()?;
        let socket = self.admin.prepare(snapshot.config.admin.as_ref());
        let socket = socket.map_err(|error| {
            self.reloader.try_again();
            format!("{}: admin.listen: {error}", snapshot.config.file.display())
        })?;
        let prepared = self.listeners.prepare(&snapshot).map_err(|error| {
            // The port may be given back without any file changing.
            self.reloader.try_again();
            format!("{}: {error}", snapshot.config.file.display())
        })?;

        // Nothing can fail from here on.
        let snapshot = Arc::new(snapshot);
        self.listeners.widen(&snapshot, current);
        self.published.send_replace(Arc::clone(&snapshot));
        self.listeners.commit(prepared, &snapshot);
        self.admin.commit(socket);
        if other_audit_file {
            self.audit.reopen(audit_file);
        }
        if let Err(error) = self.log.set_level(&snapshot.config.log.level) {
            warn!("the log keeps its level: {error}");
        }
        if snapshot.config.log.format != current.config.log.format {
            warn!("log.format takes effect at the next start");
        }
        for terms in snapshot.listeners() {
            terms.usage.keep_only(terms);
        }
        self.names.keep_only(&snapshot.hosts().map(|host| host.name.clone()).collect());
        self.reloader.applied(&snapshot);
        let changes = self.tell_changes(&snapshot, current);
        self.expiry.look(&snapshot, &self.audit);
        warn_all(&warnings);
        self.announce(&snapshot, Some(current));
        Ok(changes)
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
    fn announce(&self, snapshot: &Snapshot, before: Option<&Snapshot>) {
        for terms in snapshot.listeners() {
            let known = before.and_then(|before| before.named(&terms.name));
            if known.is_none_or(|known| known.doors != terms.doors) {
                let addresses: Vec<_> = self.listeners.addresses(terms).iter().map(ToString::to_string).collect();
                self.audit.ready(&terms.name, &terms.protocol.to_string(), &addresses);
            }
        }
    }

    /// Accepts no more, lets sessions go on until the deadline or a second signal, and then ends them.
    async fn drain(mut self, stop: &mut Stop) {
        notify::stopping();
        self.admin.close().await;
        let patient = tokio::select! {
            () = self.listeners.close() => true,
            () = stop.next() => false,
        };
        let patience = self.published.borrow().config.drain;
        let (sessions, connections) = (self.register.relaying(), self.register.count());
        info!(sessions, connections, drain = ?patience, "draining");
        let ended = tokio::select! {
            ended = timeout(patience, self.register.emptied()), if patient => ended.is_ok(),
            () = stop.next(), if patient => false,
            else => false,
        };
        if !ended {
            let (sessions, connections) = (self.register.relaying(), self.register.count());
            info!(sessions, connections, "closing open sessions");
            self.register.end_all(Reason::Shutdown);
            tokio::select! {
                _ = timeout(LAST_MOMENT, self.register.emptied()) => {}
                () = stop.next() => {}
            }
        }
        info!("stopped");
    }
}

fn warn_all(warnings: &[String]) {
    for warning in warnings {
        warn!("{warning}");
    }
}

/// Requests over the control channel that may wait to be answered, and reloads that may wait to be tried.
const MOST_REQUESTS: usize = 16;
const MOST_ASKERS: usize = 4;

/// Rules named one by one in the audit of one reload and listener; beyond that `reload.applied` has the counts. Keeps a
/// list of 100,000 new rules from crowding everything else out of the audit's queue.
const MOST_SOURCES_TOLD: usize = 1_000;

/// How long sessions that are ended may take to tell their clients: a round trip or two. A second signal ends even this.
const LAST_MOMENT: Duration = Duration::from_millis(500);
