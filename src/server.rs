//! Puts the parts together, runs them, and takes them apart again in the right order.

use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Interval, timeout};
use tracing::{info, warn};

use crate::audit::{Audit, Destination, LogHandle, open_audit_file};
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
        let server = Self { audit, log, published, listeners, register, reloader, expiry: ExpiryWatch::default() };
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
        let applied = match proposal.outcome {
            Ok(built) => self.apply(*built, current, proposal.requested),
            Err(error) => Err(error),
        };
        if let Err(error) = applied {
            let error = format!("{error}; generation {} goes on unchanged", current.generation);
            self.audit.reload_rejected(current.generation, &error);
        }
    }

    fn apply(&mut self, built: Built, current: &Arc<Snapshot>, requested: bool) -> Result<(), String> {
        let Built { snapshot, warnings } = built;
        let audit_file = self.audit_file(&snapshot, current, requested)?;
        let prepared = self.listeners.prepare(&snapshot);
        let prepared = prepared.map_err(|error| format!("{}: {error}", snapshot.config.file.display()))?;

        // Nothing can fail from here on.
        let snapshot = Arc::new(snapshot);
        self.published.send_replace(Arc::clone(&snapshot));
        self.listeners.commit(prepared, &snapshot);
        if let Some(destination) = audit_file {
            self.audit.reopen(destination);
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

    /// The audit file, opened, where it is another one or SIGHUP asks to open it anew.
    fn audit_file(
        &self,
        snapshot: &Snapshot,
        current: &Snapshot,
        requested: bool,
    ) -> Result<Option<Option<Destination>>, String> {
        let wanted = &snapshot.config.log.audit_file;
        if !requested && *wanted == current.config.log.audit_file {
            return Ok(None);
        }
        wanted.clone().map(open_audit_file).transpose().map(Some)
    }

    fn tell_changes(&self, snapshot: &Snapshot, current: &Snapshot) {
        for SourceChanges { listener, added, removed } in snapshot.source_changes_since(current) {
            added.into_iter().take(MOST_SOURCES_TOLD).for_each(|rule| self.audit.source_added(listener, rule));
            removed.into_iter().take(MOST_SOURCES_TOLD).for_each(|rule| self.audit.source_removed(listener, rule));
        }
        self.audit.reload_applied(snapshot.generation, &snapshot.changes_since(current));
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
        self.listeners.close().await;
        let patience = self.published.borrow().config.drain;
        info!("stopping: {} connections are open, and have {patience:?} to end", self.register.count());
        let drained = tokio::select! {
            drained = timeout(patience, self.register.emptied()) => drained.is_ok(),
            () = stop.next() => false,
        };
        if !drained {
            self.register.end_all(Reason::Shutdown);
            let _ = timeout(LAST_WORDS, self.register.emptied()).await;
        }
        info!("stopped");
    }
}

/// Reads the configuration of a start.
///
/// # Errors
/// Every problem found.
pub fn load(file: &Path) -> (Result<Built, crate::config::Problems>, Fingerprint) {
    crate::reload::build(file, None)
}

fn warn_all(warnings: &[String]) {
    for warning in warnings {
        warn!("{warning}");
    }
}

/// Rules named one by one in the audit of one reload and listener; beyond that `reload.applied` has the counts. Keeps a
/// list of 100,000 new rules from crowding everything else out of the audit's queue.
const MOST_SOURCES_TOLD: usize = 1_000;

/// How long sessions that were ended at the deadline may take over their goodbyes.
const LAST_WORDS: Duration = Duration::from_secs(2);
