//! Puts the parts together, runs them, and takes them apart again in the right order.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Interval, timeout};
use tracing::{info, warn};

use crate::audit::{Audit, LogHandle, open_audit_file};
use crate::config::Fingerprint;
use crate::connection::{House, Workers};
use crate::expiry::{ExpiryWatch, LOOK_EVERY};
use crate::listener::{BindError, Listeners};
use crate::notify;
use crate::outcome::Reason;
use crate::reload::{Proposal, Reloader};
use crate::sessions::Register;
use crate::signals::{Signals, Stop};
use crate::snapshot::{Built, Snapshot, SourceChanges};

/// A proxy whose addresses are bound.
#[derive(Debug)]
pub struct Server {
    audit: Audit,
    log: LogHandle,
    published: watch::Sender<Arc<Snapshot>>,
    listeners: Listeners,
    register: Arc<Register>,
    reloader: Reloader,
    expiry: ExpiryWatch,
    /// Why the last reload was refused, if it was.
    rejected: Option<String>,
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
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
    pub fn start(built: Built, fingerprint: Fingerprint, audit: Audit, log: LogHandle) -> Result<Self, StartError> {
        let snapshot = Arc::new(built.snapshot);
        let reloader = Reloader::new(&snapshot, fingerprint);
        let (published, current) = watch::channel(Arc::clone(&snapshot));
        let register = Arc::new(Register::default());
        let house = House { current, register: Arc::clone(&register), audit: audit.clone() };
        let workers = Workers::start(available_parallelism().map_or(1, usize::from), &house);
        let workers = Arc::new(workers.map_err(StartError::Workers)?);
        let mut listeners = Listeners::new(house, workers);
        let prepared = listeners.prepare(&snapshot)?;
        listeners.commit(prepared, &snapshot);
        warn_all(&built.warnings);
        let server = Self {
            audit,
            log,
            published,
            listeners,
            register,
            reloader,
            expiry: ExpiryWatch::default(),
            rejected: None,
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
                Some(proposal) => self.consider(proposal, &current),
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
                _ = looks.tick() => self.expiry.look(current, &self.audit),
                proposal = &mut next => return Some(proposal),
            }
        }
    }

    /// Puts a proposed policy in force, whole, or refuses it, whole.
    fn consider(&mut self, proposal: Proposal, current: &Arc<Snapshot>) {
        let Proposal { requested, outcome } = proposal;
        if requested {
            self.reopen_audit_file(current);
        }
        match outcome.and_then(|built| self.apply(*built, current)) {
            Ok(()) => self.rejected = None,
            Err(error) => self.reject(error, current, requested),
        }
    }

    /// What log rotation needs of SIGHUP, whatever becomes of the reload.
    fn reopen_audit_file(&self, current: &Snapshot) {
        match current.config.log.audit_file.clone().map(open_audit_file).transpose() {
            Ok(destination) => self.audit.reopen(destination),
            Err(error) => warn!("the audit goes on into the old file: {error}"),
        }
    }

    fn apply(&mut self, built: Built, current: &Arc<Snapshot>) -> Result<(), String> {
        let Built { snapshot, warnings } = built;
        let log = &snapshot.config.log;
        let other_audit_file = log.audit_file != current.config.log.audit_file;
        let audit_file = log.audit_file.clone().filter(|_| other_audit_file).map(open_audit_file).transpose()?;
        let prepared = self.listeners.prepare(&snapshot).map_err(|error| {
            // The port may be given back without any file changing.
            self.reloader.try_again();
            format!("{}: {error}", snapshot.config.file.display())
        })?;

        // Nothing can fail from here on.
        let snapshot = Arc::new(snapshot);
        self.published.send_replace(Arc::clone(&snapshot));
        self.listeners.commit(prepared, &snapshot);
        if other_audit_file {
            self.audit.reopen(audit_file);
        }
        if let Err(error) = self.log.set_level(&snapshot.config.log.level) {
            warn!("the log keeps its level: {error}");
        }
        if snapshot.config.log.format != current.config.log.format {
            warn!("log.format takes effect at the next start");
        }
        self.reloader.applied(&snapshot);
        self.tell_changes(&snapshot, current);
        self.expiry.look(&snapshot, &self.audit);
        warn_all(&warnings);
        self.announce(&snapshot, Some(current));
        Ok(())
    }

    /// Audits a refusal, unless it is the same as the last one and nobody asked.
    fn reject(&mut self, error: String, current: &Snapshot, requested: bool) {
        if requested || self.rejected.as_ref() != Some(&error) {
            self.audit.reload_rejected(current.generation, &error);
        }
        self.rejected = Some(error);
    }

    fn tell_changes(&self, snapshot: &Snapshot, current: &Snapshot) {
        let sources = snapshot.source_changes_since(current);
        for SourceChanges { listener, added, removed } in &sources {
            added.iter().take(MOST_SOURCES_TOLD).for_each(|rule| self.audit.source_added(listener, rule));
            removed.iter().take(MOST_SOURCES_TOLD).for_each(|rule| self.audit.source_removed(listener, rule));
        }
        self.audit.reload_applied(snapshot.generation, &snapshot.changes_since(current, &sources));
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
        tokio::select! {
            () = self.listeners.close() => {}
            () = stop.next() => {}
        }
        let patience = self.published.borrow().config.drain;
        info!("stopping; connections that are open have {patience:?} to end: {}", self.register.count());
        let ended = tokio::select! {
            ended = timeout(patience, self.register.emptied()) => ended.is_ok(),
            () = stop.next() => false,
        };
        if !ended {
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

/// Rules named one by one in the audit of one reload and listener; beyond that `reload.applied` has the counts. Keeps a
/// list of 100,000 new rules from crowding everything else out of the audit's queue.
const MOST_SOURCES_TOLD: usize = 1_000;

/// How long sessions that are ended may take to tell their clients: a round trip or two. A second signal ends even this.
const LAST_MOMENT: Duration = Duration::from_millis(500);
