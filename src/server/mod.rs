//! Composition: starts the parts, publishes policies, answers admin requests, and drains.

pub(crate) mod admin_handler;
pub(crate) mod apply;
pub(crate) mod certificate_expiry;
pub(crate) mod counts;
pub(crate) mod published;
pub(crate) mod reload;
pub(crate) mod report;
pub(crate) mod signals;
pub(crate) mod systemd;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Interval, sleep, timeout};
use tracing::{info, warn};

use crate::audit::log::LogHandle;
use crate::audit::{Audit, open_audit_file};
use crate::config::files::Fingerprint;
use crate::control::Admin;
use crate::descriptors::Descriptors;
use crate::dns::HostCache;
use crate::dns::refresher;
use crate::fault;
use crate::fault::RESTART_PAUSE;
use crate::outcome::Reason;
use crate::policy::{Built, Snapshot};
use crate::proxy::accepted::Shared;
use crate::proxy::listener::{BindError, Listeners};
use crate::proxy::worker::Workers;
use crate::server::admin_handler::AdminHandler;
use crate::server::certificate_expiry::{ExpiryWatch, LOOK_EVERY};
use crate::server::published::Published;
use crate::server::reload::thread::PolicyThread;
use crate::server::reload::{PolicyChange, ReloadAttempt, ReloadReply, Reloader};
use crate::server::signals::{Signals, Stop};
use crate::session::registry::ConnectionRegistry;
use crate::session::revocation;
use crate::upstream::health_check;

/// A proxy whose addresses are bound.
#[derive(Debug)]
pub(crate) struct Server {
    audit: Audit,
    log: LogHandle,
    published: Published,
    listeners: Listeners,
    registry: Arc<ConnectionRegistry>,
    host_cache: Arc<HostCache>,
    reloader: Reloader,
    expiry: ExpiryWatch,
    /// What goes on beside the loop below, for as long as this lives.
    _beside: JoinSet<()>,
    admin: Admin,
    admin_handler: AdminHandler,
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
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
    pub(crate) fn start(
        built: Built,
        fingerprint: Fingerprint,
        host_cache: Arc<HostCache>,
        audit: Audit,
        log: LogHandle,
    ) -> Result<Self, StartError> {
        let snapshot = Arc::new(built.snapshot);
        let (askers, asked) = mpsc::channel(MOST_ASKERS);
        let reloader = Reloader::new(&snapshot, fingerprint, asked, Arc::clone(&host_cache), PolicyThread::start());
        let published = Published::new(&snapshot);
        let current = published.subscribe();
        let registry = Arc::new(ConnectionRegistry::default());
        let mut beside = JoinSet::new();
        let (policy, present) = (current.clone(), Arc::clone(&registry));
        let revoke = move || revocation::run(policy.clone(), Arc::clone(&present));
        beside.spawn(fault::restarted("revocation", revoke));
        let (hosts, known) = (published.hosts(), Arc::clone(&host_cache));
        beside.spawn(fault::restarted(refresher::PART, move || refresher::run(hosts.clone(), Arc::clone(&known))));
        let floods = audit.clone();
        beside.spawn(fault::restarted("audit", move || floods.clone().sum_up_floods()));
        let upstreams = published.upstreams();
        beside.spawn(fault::restarted(health_check::PART, move || health_check::run(upstreams.clone())));
        let descriptors = Descriptors::default();
        let shared = Shared { current, registry: Arc::clone(&registry), audit: audit.clone(), descriptors };
        let workers = Workers::start(available_parallelism().map_or(1, usize::from), &shared);
        let workers = Arc::new(workers.map_err(StartError::Workers)?);
        let mut listeners = Listeners::new(shared, workers);
        let (requests, requested) = mpsc::channel(MOST_REQUESTS);
        let mut admin = Admin::new(requests);
        let socket = admin.prepare(snapshot.config.admin.as_ref()).map_err(StartError::Admin)?;
        let prepared = listeners.prepare(&snapshot)?;
        listeners.commit(prepared, &snapshot);
        admin.commit(socket);
        let admin_handler =
            AdminHandler::new(requested, askers, Arc::clone(&registry), Arc::clone(&host_cache), audit.clone());
        warn_all(&built.warnings);
        let server = Self {
            audit,
            log,
            published,
            listeners,
            registry,
            host_cache,
            reloader,
            expiry: ExpiryWatch::default(),
            _beside: beside,
            admin,
            admin_handler,
        };
        server.proxy_header(&snapshot, None);
        Ok(server)
    }

    /// Serves until told to stop, then drains.
    pub(crate) async fn run(mut self, mut signals: Signals) {
        self.tell_systemd();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            match fault::contained("server loop", self.turn(&mut signals, &mut looks)).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => {
                    // A reload may have been under way.
                    self.reloader.try_again();
                    self.tell_systemd();
                    tokio::select! {
                        () = signals.stop.next() => break,
                        () = sleep(RESTART_PAUSE) => {}
                    }
                }
            }
        }
        self.drain(&mut signals.stop).await;
    }

    /// Waits for the next policy and deals with it. Returns whether there will be another turn.
    async fn turn(&mut self, signals: &mut Signals, looks: &mut Interval) -> bool {
        let current = self.published.policy();
        match self.next_proposal(&current, signals, looks).await {
            Some(PolicyChange::Reload(attempt)) => self.consider(attempt, &current),
            Some(PolicyChange::Refresh(snapshot)) => self.refresh(*snapshot, &current),
            None => return false,
        }
        true
    }

    /// The next policy that is proposed, or nothing when it is time to stop.
    async fn next_proposal(
        &mut self,
        current: &Arc<Snapshot>,
        signals: &mut Signals,
        looks: &mut Interval,
    ) -> Option<PolicyChange> {
        // Kept across the looks: a reload that has begun must come to its end.
        let mut next = pin!(self.reloader.next(current, &mut signals.reload));
        loop {
            tokio::select! {
                () = signals.stop.next() => return None,
                request = self.admin_handler.next() => {
                    attempt(admin_handler::PART, || self.admin_handler.answer(request, current, &self.listeners));
                }
                () = self.listeners.shields_due() => self.listeners.update_shields(current),
                _ = looks.tick() => attempt(certificate_expiry::PART, || self.expiry.look(current, &self.audit)),
                proposal = &mut next => return Some(proposal),
            }
        }
    }

    /// Puts a proposed policy in force, whole, or refuses it, whole.
    fn consider(&mut self, attempt: ReloadAttempt, current: &Arc<Snapshot>) {
        let ReloadAttempt { requested, asker, same_files, outcome } = attempt;
        if requested {
            self.reopen_audit_file(current);
        }
        let is_in_force = same_files && self.admin_handler.was_applied();
        // A caller that comes after the watcher, or once more, learns since when. SIGHUP has no answer but the event.
        let kept = asker.is_some() && is_in_force;
        let verdict = outcome.and_then(|built| self.apply(*built, current, kept));
        let in_force_since = self.admin_handler.in_force_since(is_in_force && verdict.is_ok());
        let error = verdict.as_ref().err().map(String::as_str);
        let known = self.admin_handler.reloaded(error);
        if let Some(error) = error {
            // The same again, when nobody asked, is no news.
            if requested || !known {
                self.audit.reload_rejected(current.generation, error);
            }
        }
        // Before whoever asked goes on: systemd must not see the end of ExecReload= and an older verdict.
        self.tell_systemd();
        if let Some(asker) = asker {
            // It may have hung up.
            let _ = asker.send(ReloadReply { verdict, in_force_since });
        }
    }

    /// Tells systemd that the program serves, and what became of the last reload.
    fn tell_systemd(&self) {
        let current = self.published.policy();
        let listeners = match current.listeners().len() {
            1 => "1 listener".to_owned(),
            count => format!("{count} listeners"),
        };
        let serving = format!("serving {listeners}, generation {}", current.generation);
        let rejected = self.admin_handler.rejection().map(|words| format!("; {words}")).unwrap_or_default();
        systemd::ready(&format!("{serving}{rejected}"));
    }

    /// What log rotation needs of SIGHUP, whatever becomes of the reload.
    fn reopen_audit_file(&self, current: &Snapshot) {
        match current.config.log.audit_file.clone().map(open_audit_file).transpose() {
            Ok(destination) => self.audit.reopen(destination),
            Err(error) => warn!(%error, "cannot reopen audit_file, continuing with the previous one"),
        }
    }

    /// Accepts no more, lets sessions go on until the deadline or a second signal, and then ends them.
    async fn drain(mut self, stop: &mut Stop) {
        let sessions = self.registry.relaying();
        let current = self.published.policy();
        let patience = current.config.drain;
        systemd::stopping(&format!("draining: {sessions} open sessions, waiting for at most {patience:?}"));
        self.admin_handler.drain(patience);
        let patient = tokio::select! {
            () = self.listeners.close() => true,
            () = stop.next() => false,
        };
        let (sessions, connections) = (self.registry.relaying(), self.registry.count());
        info!(sessions, connections, drain = ?patience, "draining");
        let registry = Arc::clone(&self.registry);
        let ended = tokio::select! {
            ended = timeout(patience, registry.drained()), if patient => ended.is_ok(),
            () = stop.next(), if patient => false,
            () = self.answer_while_draining(&current), if patient => false,
            else => false,
        };
        if !ended {
            let (sessions, connections) = (self.registry.relaying(), self.registry.count());
            info!(sessions, connections, "closing open sessions");
            self.registry.terminate_all(Reason::Shutdown);
            tokio::select! {
                _ = timeout(LAST_MOMENT, registry.drained()) => {}
                () = stop.next() => {}
            }
        }
        // Who still waits is told at once that there will be no answer.
        drop(self.admin_handler);
        // To the end, so that whoever asks learns what the program does.
        tokio::select! {
            () = self.admin.close() => {}
            () = stop.next() => {}
        }
        info!("stopped");
    }

    /// Answers the commands, for as long as this is let run.
    async fn answer_while_draining(&mut self, current: &Arc<Snapshot>) {
        loop {
            let request = self.admin_handler.next().await;
            attempt(admin_handler::PART, || self.admin_handler.answer(request, current, &self.listeners));
        }
    }
}

/// Does a piece of work that nobody waits for. A fault in it is noted, and the others go on.
fn attempt(part: &'static str, work: impl FnOnce()) {
    let _ = fault::contain(part, work);
}

fn warn_all(warnings: &[String]) {
    for warning in warnings {
        warn!(%warning, "configuration warning");
    }
}

/// Requests over the control channel that may wait to be answered, and reloads that may wait to be tried.
const MOST_REQUESTS: usize = 16;
const MOST_ASKERS: usize = 4;

/// How long sessions that are ended may take to tell their clients: a round trip or two. A second signal ends even this.
const LAST_MOMENT: Duration = Duration::from_millis(500);
