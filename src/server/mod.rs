//! Composition: starts the parts, publishes policies, answers admin requests, and drains.

pub(crate) mod admin_handler;
pub(crate) mod apply;
pub(crate) mod background;
pub(crate) mod certificate_expiry;
pub(crate) mod cloud;
pub(crate) mod counts;
pub(crate) mod fleet;
pub(crate) mod history;
pub(crate) mod passwords;
pub(crate) mod pins;
pub(crate) mod published;
pub(crate) mod reload;
pub(crate) mod report;
pub(crate) mod signals;
pub(crate) mod systemd;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Interval, sleep, timeout};
use tracing::{info, warn};

use crate::agent::state::AgentState;
use crate::audit::log::LogHandle;
use crate::audit::{Audit, open_audit_file};
use crate::config::files::Fingerprint;
use crate::control::AdminServer;
use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
use crate::descriptors::Descriptors;
use crate::fault;
use crate::fault::RESTART_PAUSE;
use crate::fleet::store::{Request, StoreClient};
use crate::metrics::exposition::Sources;
use crate::metrics::exposition::endpoint::MetricsEndpoint;
use crate::metrics::process::ProcessMetrics;
use crate::outcome::Reason;
use crate::policy::{Built, Current, Snapshot};
use crate::proxy::accepted::Shared;
use crate::proxy::listener::{BindError, Listeners};
use crate::proxy::worker::Workers;
use crate::resolution::cache::ResolutionCache;
use crate::server::admin_handler::{AdminHandler, Queues, ServerState};
use crate::server::background::Background;
use crate::server::certificate_expiry::{CHECK_INTERVAL, ExpiryWatch};
use crate::server::fleet::{FleetService, Parts};
use crate::server::history::History;
use crate::server::published::Published;
use crate::server::reload::change::{BuiltChange, ChangeResult, PendingChange};
use crate::server::reload::thread::PolicyThread;
use crate::server::reload::{PolicyChange, ReloadAttempt, ReloadReply, Reloader};
use crate::server::signals::{Signals, Stop};
use crate::session::registry::ConnectionRegistry;

/// A proxy whose addresses are bound.
#[derive(Debug)]
pub(crate) struct Server {
    audit: Audit,
    log: LogHandle,
    published: Published,
    listeners: Listeners,
    registry: Arc<ConnectionRegistry>,
    resolutions: Arc<ResolutionCache>,
    agent: Arc<AgentState>,
    reloader: Reloader,
    expiry: ExpiryWatch,
    history: History,
    fleet: Arc<FleetService>,
    /// Background tasks, aborted when the server is dropped.
    _tasks: JoinSet<()>,
    admin: AdminServer,
    admin_handler: AdminHandler,
    metrics: Arc<ProcessMetrics>,
    metrics_endpoint: MetricsEndpoint,
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// An admin address cannot be opened.
    #[error("admin.listen: {0}")]
    Admin(#[source] io::Error),
    /// The address of the metrics cannot be bound.
    #[error("admin.metrics: {0}")]
    Metrics(#[source] io::Error),
    /// An address cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Worker threads cannot be started.
    #[error("cannot start worker threads: {0}")]
    Workers(#[source] io::Error),
}

impl Server {
    /// Binds every address and starts to accept connections.
    ///
    /// # Errors
    /// If an address cannot be bound. Then no listener accepts connections.
    pub(crate) fn start(
        built: Built,
        fingerprint: Fingerprint,
        resolutions: Arc<ResolutionCache>,
        audit: Audit,
        log: LogHandle,
    ) -> Result<Self, StartError> {
        let snapshot = Arc::new(built.snapshot);
        let (reload_requests, reloads) = mpsc::channel(MAX_RELOAD_REQUESTS);
        let reloader = Reloader::new(&snapshot, fingerprint, reloads, Arc::clone(&resolutions), PolicyThread::start());
        resolutions.expect(cloud::sources(&snapshot));
        let published = Published::new(&snapshot);
        let current = published.subscribe();
        let registry = Arc::new(ConnectionRegistry::default());
        let agent = Arc::<AgentState>::default();
        let (fleet, store_requests) = fleet_service(&current, &registry, &audit, &reload_requests);
        let tasks = Background {
            published: &published,
            registry: &registry,
            resolutions: &resolutions,
            agent: &agent,
            audit: &audit,
            fleet: &fleet,
            store_requests,
        }
        .start();
        let metrics = Arc::<ProcessMetrics>::default();
        let mut metrics_endpoint = MetricsEndpoint::new(Arc::new(Sources {
            current: current.clone(),
            registry: Arc::clone(&registry),
            resolutions: Arc::clone(&resolutions),
            agent: Arc::clone(&agent),
            fleet: {
                let fleet = Arc::clone(&fleet);
                Box::new(move || fleet.figures())
            },
            process: Arc::clone(&metrics),
            audit_dropped: {
                let audit = audit.clone();
                Box::new(move || audit.dropped())
            },
        }));
        let descriptors = Descriptors::default();
        let shared = Shared { current, registry: Arc::clone(&registry), audit: audit.clone(), descriptors, worker: 0 };
        let workers = Workers::start(available_parallelism().map_or(1, usize::from), &shared);
        let workers = Arc::new(workers.map_err(StartError::Workers)?);
        let mut listeners = Listeners::new(shared, workers);
        let (requests, requested) = mpsc::channel(MAX_ADMIN_REQUESTS);
        let mut admin = AdminServer::new(requests, audit.clone(), Arc::clone(&metrics));
        let hosts = snapshot.admin_host_names();
        let socket = admin.prepare(snapshot.config.admin.as_ref(), snapshot.admin_server_tls(), hosts);
        let socket = socket.map_err(StartError::Admin)?;
        let endpoint = metrics_endpoint.prepare(metrics_address(&snapshot)).map_err(StartError::Metrics)?;
        let prepared = listeners.prepare(&snapshot)?;
        metrics_endpoint.commit(endpoint);
        listeners.commit(prepared, &snapshot);
        admin.commit(socket);
        audit.record_recent(snapshot.config.admin.is_some());
        metrics.readiness.set_ready();
        let admin_handler = AdminHandler::new(
            Queues { fleet: Arc::clone(&fleet), requests: requested, reload_requests },
            Arc::clone(&registry),
            Arc::clone(&resolutions),
            audit.clone(),
            admin.last_uses(),
        );
        warn_all(&built.warnings);
        let server = Self {
            audit,
            log,
            published,
            listeners,
            registry,
            resolutions,
            agent,
            reloader,
            expiry: ExpiryWatch::default(),
            history: History::new(),
            fleet,
            _tasks: tasks,
            admin,
            admin_handler,
            metrics,
            metrics_endpoint,
        };
        server.audit_ready(&snapshot, None);
        Ok(server)
    }

    /// Serves until SIGTERM or SIGINT, then drains.
    pub(crate) async fn run(mut self, mut signals: Signals) {
        self.notify_systemd();
        let mut expiry_checks = tokio::time::interval(CHECK_INTERVAL);
        loop {
            match fault::contained("server loop", self.turn(&mut signals, &mut expiry_checks)).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => {
                    // The panic may have interrupted a reload.
                    self.reloader.force_attempt();
                    self.notify_systemd();
                    tokio::select! {
                        () = signals.stop.next() => break,
                        () = sleep(RESTART_PAUSE) => {}
                    }
                }
            }
        }
        self.drain(&mut signals.stop).await;
    }

    /// Handles the next policy change. Returns `false` when it is time to stop.
    async fn turn(&mut self, signals: &mut Signals, expiry_checks: &mut Interval) -> bool {
        let current = self.published.policy();
        match self.next_change(&current, signals, expiry_checks).await {
            Some(PolicyChange::Reload(attempt)) => self.handle_reload(attempt, &current),
            Some(PolicyChange::FileChange(change)) => {
                tokio::select! {
                    // A disk that hangs does not keep the program from stopping.
                    () = signals.stop.next() => return false,
                    () = self.handle_file_change(*change, &current) => {}
                }
            }
            Some(PolicyChange::Refresh(snapshot)) => self.refresh(*snapshot, &current),
            None => return false,
        }
        true
    }

    /// Waits for the next policy change, or returns `None` when it is time to stop.
    async fn next_change(
        &mut self,
        current: &Arc<Snapshot>,
        signals: &mut Signals,
        expiry_checks: &mut Interval,
    ) -> Option<PolicyChange> {
        // Kept across iterations, so that a reload in progress is not cancelled.
        let mut next = pin!(self.reloader.next(current, &mut signals.reload));
        loop {
            tokio::select! {
                () = signals.stop.next() => return None,
                request = self.admin_handler.next() => {
                    let state = ServerState { listeners: &self.listeners, history: &self.history, agent: &self.agent };
                    contain(admin_handler::PART, || self.admin_handler.handle(request, current, &state));
                }
                () = self.listeners.shields_due() => self.listeners.update_shields(current),
                _ = expiry_checks.tick() => contain(certificate_expiry::PART, || self.expiry.check(current, &self.audit)),
                () = self.history.due() => {
                    let now = OffsetDateTime::now_utc();
                    contain(history::PART, || self.history.record(current, now));
                }
                change = &mut next => return Some(change),
            }
        }
    }

    /// Applies a reload completely or rejects it, and reports the result.
    fn handle_reload(&mut self, attempt: ReloadAttempt, current: &Arc<Snapshot>) {
        let ReloadAttempt { requested, reply, same_files, outcome } = attempt;
        if requested {
            self.reopen_audit_file(current);
        }
        // Equal files may give another policy: names of users and groups, and limits of the process, are not part of them.
        let is_same = || outcome.as_ref().is_ok_and(|built| built.snapshot.is_same_policy(current));
        let is_in_force = same_files && self.admin_handler.was_applied() && is_same();
        // A requested reload without a change keeps the generation and reports since when it is in force. SIGHUP, which has
        // no response, always makes a new generation.
        let kept = reply.is_some() && is_in_force;
        let result = outcome.and_then(|built| self.apply(*built, current, kept));
        let in_force_since = self.admin_handler.in_force_since(is_in_force && result.is_ok());
        self.metrics.reloads.note(result.is_ok());
        let error = result.as_ref().err().map(String::as_str);
        let is_repeated = self.admin_handler.record_reload(error);
        if let Some(error) = error {
            // A repeated error is reported only for a requested reload.
            if requested || !is_repeated {
                self.audit.reload_rejected(current.generation, error);
            }
        }
        // Notify systemd before the reply: the status must be current when ExecReload= ends.
        self.notify_systemd();
        if let Some(reply) = reply {
            // Fails if the client has disconnected.
            let _ = reply.send(ReloadReply { result, in_force_since });
        }
    }

    /// Writes a changed file and puts its policy in force, or does neither.
    async fn handle_file_change(&mut self, change: PendingChange, current: &Arc<Snapshot>) {
        let PendingChange { change, action, reply } = change;
        let BuiltChange { built, fingerprint, write, affected, listeners } = change;
        let prepared = fault::contain(reload::PART, || self.prepare(&built.snapshot, current));
        let prepared = prepared.unwrap_or_else(|fault| Err(fault.to_string()));
        let prepared = prepared.map_err(|error| AdminResponse::error(ErrorKind::ReloadRejected, error));
        let result = match prepared {
            Ok(prepared) => self.reloader.write(write, fingerprint).await.map(|()| prepared),
            Err(response) => Err(response),
        };
        let result = result.map(|prepared| {
            if let Some(action) = action {
                action.write(&self.audit);
            }
            self.put_in_force(*built, prepared, current);
            let _ = self.admin_handler.in_force_since(false);
            self.admin_handler.record_reload(None);
            self.metrics.reloads.note(true);
            self.notify_systemd();
            ChangeResult::Applied { snapshot: self.published.policy(), affected, listeners }
        });
        // Fails if the client has disconnected.
        let _ = reply.send(result);
    }

    /// Reports readiness and the result of the last reload to systemd.
    fn notify_systemd(&self) {
        let current = self.published.policy();
        let listeners = match current.listeners().len() {
            1 => "1 listener".to_owned(),
            count => format!("{count} listeners"),
        };
        let serving = format!("serving {listeners}, generation {}", current.generation);
        let rejected = self.admin_handler.rejection().map(|text| format!("; {text}")).unwrap_or_default();
        systemd::ready(&format!("{serving}{rejected}"));
    }

    /// Log rotation relies on SIGHUP to reopen the audit file, even if the reload is rejected.
    fn reopen_audit_file(&self, current: &Snapshot) {
        match current.config.log.audit_file.clone().map(open_audit_file).transpose() {
            Ok(destination) => self.audit.reopen(destination),
            Err(error) => warn!(%error, "cannot reopen audit_file, continuing with the previous one"),
        }
    }

    /// Stops accepting, waits for sessions until the deadline or a second signal, then closes them.
    async fn drain(mut self, stop: &mut Stop) {
        let sessions = self.registry.relaying();
        let current = self.published.policy();
        let drain = current.config.drain;
        systemd::stopping(&format!("draining: {sessions} open sessions, waiting up to {drain:?}"));
        self.metrics.readiness.set_draining();
        self.admin_handler.drain(drain);
        let is_waiting = tokio::select! {
            () = self.listeners.close() => true,
            () = stop.next() => false,
        };
        let (sessions, connections) = (self.registry.relaying(), self.registry.count());
        info!(sessions, connections, drain = ?drain, "draining");
        let registry = Arc::clone(&self.registry);
        let ended = tokio::select! {
            ended = timeout(drain, registry.drained()), if is_waiting => ended.is_ok(),
            () = stop.next(), if is_waiting => false,
            () = self.handle_while_draining(&current), if is_waiting => false,
            else => false,
        };
        if !ended {
            let (sessions, connections) = (self.registry.relaying(), self.registry.count());
            info!(sessions, connections, "closing open sessions");
            self.registry.terminate_all(Reason::Shutdown);
            tokio::select! {
                _ = timeout(CLOSE_TIMEOUT, registry.drained()) => {}
                () = stop.next() => {}
            }
        }
        tokio::select! {
            () = self.fleet.leave() => {}
            () = stop.next() => {}
        }
        // Clients that still wait for a response receive an error at once.
        drop(self.admin_handler);
        // The admin addresses close last, so that the state can be queried while draining.
        tokio::select! {
            () = self.admin.close() => {}
            () = stop.next() => {}
        }
        info!("stopped");
    }

    /// Handles admin requests until the future is dropped.
    async fn handle_while_draining(&mut self, current: &Arc<Snapshot>) {
        loop {
            let request = self.admin_handler.next().await;
            let state = ServerState { listeners: &self.listeners, history: &self.history, agent: &self.agent };
            contain(admin_handler::PART, || self.admin_handler.handle(request, current, &state));
        }
    }
}

/// The part of the program that belongs to a fleet, and the operations that it wants performed on the store.
fn fleet_service(
    current: &Current,
    registry: &Arc<ConnectionRegistry>,
    audit: &Audit,
    reload_requests: &mpsc::Sender<reload::ReloadRequest>,
) -> (Arc<FleetService>, mpsc::Receiver<Request>) {
    let (store, requests) = StoreClient::new();
    let (current, registry, audit) = (current.clone(), Arc::clone(registry), audit.clone());
    let reload_requests = reload_requests.clone();
    (FleetService::new(Parts { store, current, registry, audit, reload_requests }), requests)
}

/// Runs `work` and contains a panic in it, which is recorded as an internal fault.
fn contain(part: &'static str, work: impl FnOnce()) {
    let _ = fault::contain(part, work);
}

/// The address of `/metrics`.
fn metrics_address(snapshot: &Snapshot) -> Option<SocketAddr> {
    snapshot.config.admin.as_ref()?.metrics
}

fn warn_all(warnings: &[String]) {
    for warning in warnings {
        warn!(%warning, "configuration warning");
    }
}

/// Queue lengths.
const MAX_ADMIN_REQUESTS: usize = 16;
const MAX_RELOAD_REQUESTS: usize = 4;

/// How long closed sessions may take to send farewell messages: a round trip or two, on a busy machine too. The wait ends with the
/// last session or a second signal.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
