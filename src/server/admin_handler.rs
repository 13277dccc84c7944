//! Handles requests of the admin API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::addr::ClientAddr;
use crate::audit::Audit;
use crate::audit::admin::{AdminAction, AdminActionKind, Caller};
use crate::audit::changes::Changes;
use crate::control::response::{AdminResponse, Status};
use crate::control::{AdminRequest, PendingRequest};
use crate::dns::HostCache;
use crate::fault;
use crate::fault::record;
use crate::fault::record::Fault;
use crate::outcome::Reason;
use crate::policy::explain::ExplainError;
use crate::policy::{Built, ListenerPolicy, Snapshot};
use crate::printable;
use crate::proxy::listener::Listeners;
use crate::server::counts::{Count, Counts};
use crate::server::reload;
use crate::server::reload::{ReloadReply, ReplySender};
use crate::server::report;
use crate::session::registry::ConnectionRegistry;
use crate::timestamp::seconds;

#[derive(Debug)]
pub(crate) struct AdminHandler {
    requests: mpsc::Receiver<PendingRequest>,
    /// Sends reload requests to the reloader.
    reload_requests: mpsc::Sender<ReplySender>,
    registry: Arc<ConnectionRegistry>,
    host_cache: Arc<HostCache>,
    audit: Audit,
    started_at: OffsetDateTime,
    last_reload: Option<LastReload>,
    /// When the current content of the files came into force.
    files_since: OffsetDateTime,
    draining: Option<Draining>,
    /// Requests that are handled in the background.
    pending: JoinSet<()>,
}

#[derive(Clone, Copy, Debug)]
struct Draining {
    since: OffsetDateTime,
    /// When the remaining sessions are closed.
    until: OffsetDateTime,
}

#[derive(Debug)]
struct LastReload {
    at: OffsetDateTime,
    error: Option<String>,
}

impl AdminHandler {
    pub(crate) fn new(
        requests: mpsc::Receiver<PendingRequest>,
        reload_requests: mpsc::Sender<ReplySender>,
        registry: Arc<ConnectionRegistry>,
        host_cache: Arc<HostCache>,
        audit: Audit,
    ) -> Self {
        let started_at = OffsetDateTime::now_utc();
        Self {
            requests,
            reload_requests,
            registry,
            host_cache,
            audit,
            started_at,
            last_reload: None,
            files_since: started_at,
            draining: None,
            pending: JoinSet::new(),
        }
    }

    /// Marks the program as draining: reloads are rejected, and the remaining sessions are closed after `drain`.
    pub(crate) fn drain(&mut self, drain: Duration) {
        let since = OffsetDateTime::now_utc();
        let drain = time::Duration::try_from(drain).unwrap_or(time::Duration::MAX);
        self.draining = Some(Draining { since, until: since.saturating_add(drain) });
    }

    /// Whether the last reload was applied; true before the first reload.
    pub(crate) fn was_applied(&self) -> bool {
        self.last_reload.as_ref().is_none_or(|last| last.error.is_none())
    }

    /// Records that a policy was put in force or rejected. Returns since when the files are in force, if they were already.
    pub(crate) fn in_force_since(&mut self, was_in_force: bool) -> Option<OffsetDateTime> {
        if was_in_force {
            return Some(self.files_since);
        }
        self.files_since = OffsetDateTime::now_utc();
        None
    }

    /// Waits for the next request; never completes without an admin socket.
    pub(crate) async fn next(&mut self) -> PendingRequest {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    /// Records the result of a reload. Returns whether the last reload had the same result.
    pub(crate) fn record_reload(&mut self, error: Option<&str>) -> bool {
        let last = LastReload { at: OffsetDateTime::now_utc(), error: error.map(str::to_owned) };
        let former = self.last_reload.replace(last);
        former.is_some_and(|former| former.error.as_deref() == error)
    }

    /// The time and the first error of the last reload, if it was rejected.
    pub(crate) fn rejection(&self) -> Option<String> {
        let LastReload { at, error } = self.last_reload.as_ref()?;
        let error = error.as_ref()?;
        let first = error.lines().next().unwrap_or("");
        let more = match error.lines().count() {
            0 | 1 => String::new(),
            count => format!(" (and {} more)", count.saturating_sub(1)),
        };
        Some(format!("reload rejected at {}: {}{more}", seconds(*at), printable::cut(first, MAX_REJECTION)))
    }

    /// Handles a request at once or in the background. A reply to a disconnected client is dropped.
    pub(crate) fn handle(&mut self, request: PendingRequest, current: &Arc<Snapshot>, listeners: &Listeners) {
        while self.pending.try_join_next().is_some() {}
        let PendingRequest { request, reply } = request;
        if self.draining.is_some() && matches!(request, AdminRequest::Reload | AdminRequest::Plan { .. }) {
            let _ = reply.send(AdminResponse::error(Status::Conflict, "draining", DRAINING));
            return;
        }
        let response = match request {
            AdminRequest::Status => AdminResponse::ok(self.status(current, listeners)),
            AdminRequest::Rotation => AdminResponse::ok(report::rotation(current, &self.registry)),
            AdminRequest::Sessions => AdminResponse::ok(report::sessions(&self.registry)),
            AdminRequest::CloseSession(id) => self.close(id),
            AdminRequest::Reload => return self.reload(reply),
            AdminRequest::Plan { file } => return self.plan(file, current, reply),
            AdminRequest::Explain { listener, source, chain } => {
                let current = Arc::clone(current);
                return self.handle_in_background(reply, move || explain(&current, &listener, source, &chain));
            }
        };
        let _ = reply.send(self.with_draining(response));
    }

    /// Adds `draining` to the response of a draining program.
    fn with_draining(&self, mut response: AdminResponse) -> AdminResponse {
        if let (Some(Draining { since, until }), Some(object)) = (self.draining, response.body.as_object_mut()) {
            object.insert("draining".to_owned(), json!({ "since": seconds(since), "until": seconds(until) }));
        }
        response
    }

    fn status(&self, current: &Snapshot, listeners: &Listeners) -> Value {
        let last_reload = self.last_reload.as_ref().map(|LastReload { at, error }| {
            let result = if error.is_none() { "applied" } else { "rejected" };
            json!({ "result": result, "at": seconds(*at), "error": error.as_deref().map(printable::lines) })
        });
        let counts = Counts::from_registry(&self.registry);
        let listener = |policy: &Arc<ListenerPolicy>| {
            let Count { relaying, closing } = counts.of_listener(&policy.name);
            json!({
                "name": &*policy.name,
                "protocol": policy.protocol.to_string(),
                "addresses": listeners.addresses(policy),
                "upstream": &*policy.upstream.name,
                "upstream_health": report::upstream_health(policy),
                "upstreams": report::upstreams(policy),
                "client_auth": policy.client_auth().to_string(),
                "enforcement": policy.sources.enforcement.to_string(),
                "trusted_sources": policy.sources.trusted.rules().len(),
                "shield": report::shield(&listeners.shield(policy)),
                "dns_sources": report::dns_sources(policy, &self.host_cache),
                "handshakes": policy.open_handshakes(),
                "max_handshakes": policy.max_handshakes,
                "sessions": relaying,
                "sessions_closing": closing,
            })
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "started_at": seconds(self.started_at),
            "generation": current.generation,
            "config": current.config.file,
            "loaded_at": seconds(current.built_at),
            "last_reload": last_reload,
            "descriptors": report::descriptors(&listeners.descriptors()),
            "faults": record::recent().iter().map(fault_json).collect::<Vec<_>>(),
            "listeners": current.listeners().iter().map(listener).collect::<Vec<_>>(),
            "removed_listeners": counts.of_removed_listeners(current),
        })
    }

    fn close(&self, id: u64) -> AdminResponse {
        let found = self.registry.find(id);
        let Some((live, state)) = found.and_then(|live| live.state().map(|state| (live, state))) else {
            return AdminResponse::error(Status::NotFound, "no_such_session", format_args!("there is no session {id}"));
        };
        // A closing session ends by itself.
        if state.is_relaying() {
            self.audit_action(AdminActionKind::SessionsClose, Some(&id.to_string()));
            live.end(Reason::ClosedByAdmin.into());
        }
        AdminResponse::ok(json!({ "session": id, "was": state.code() }))
    }

    /// All callers use the Unix socket.
    fn audit_action(&self, kind: AdminActionKind, target: Option<&str>) {
        let caller = Caller::Unix;
        self.audit.admin_action(&AdminAction { caller, kind, target, request_id: None, detail: None });
    }

    fn reload(&mut self, reply: oneshot::Sender<AdminResponse>) {
        let (sender, result) = oneshot::channel();
        if self.reload_requests.try_send(sender).is_err() {
            let busy = "too many reload requests are pending; try again when they are done";
            let _ = reply.send(AdminResponse::error(Status::Conflict, "reload_busy", busy));
            return;
        }
        self.audit_action(AdminActionKind::Reload, None);
        self.pending.spawn(async move {
            if let Ok(result) = result.await {
                let _ = reply.send(reload_response(result));
            }
        });
    }

    /// Builds the policy of a reload on a separate thread without putting it in force.
    fn plan(&mut self, file: Option<PathBuf>, current: &Arc<Snapshot>, reply: oneshot::Sender<AdminResponse>) {
        let (current, registry, host_cache) =
            (Arc::clone(current), Arc::clone(&self.registry), Arc::clone(&self.host_cache));
        self.handle_in_background(reply, move || {
            let file = file.as_deref().unwrap_or(&current.config.file);
            match reload::build(file, Some(&current), &host_cache).0 {
                Ok(Built { snapshot, warnings }) => {
                    let built = Built { snapshot: snapshot.planned(), warnings };
                    AdminResponse::ok(report::plan(&built, &current, &registry))
                }
                Err(problems) => AdminResponse::error(Status::Unprocessable, "configuration_invalid", problems),
            }
        });
    }

    /// Computes the response on a separate thread.
    fn handle_in_background(
        &mut self,
        reply: oneshot::Sender<AdminResponse>,
        work: impl FnOnce() -> AdminResponse + Send + 'static,
    ) {
        self.pending.spawn(async move {
            let failed = |fault| AdminResponse::error(Status::InternalError, "internal_fault", fault);
            let _ = reply.send(fault::contained_blocking(PART, work).await.unwrap_or_else(failed));
        });
    }
}

/// Explains a connection by the policy in force. Each response names the configuration file, so that the client can detect
/// that it is not the expected one.
fn explain(current: &Snapshot, listener: &str, source: ClientAddr, chain: &[CertificateDer<'_>]) -> AdminResponse {
    let explained = current.explain(listener, source, chain, OffsetDateTime::now_utc());
    let mut response = match explained {
        Ok(explanation) => AdminResponse::ok(explanation.in_json()),
        Err(error @ ExplainError::UnknownListener { .. }) => AdminResponse::error(Status::NotFound, "not_found", error),
        Err(error @ ExplainError::Impossible { .. }) => {
            AdminResponse::error(Status::Unprocessable, "unprocessable_entity", error)
        }
    };
    if let Some(fields) = response.body.as_object_mut() {
        // The client does not know the working directory of the program.
        let config = std::path::absolute(&current.config.file).unwrap_or_else(|_| current.config.file.clone());
        fields.insert("config".to_owned(), json!(config));
        fields.insert("generation".to_owned(), current.generation.into());
    }
    response
}

const DRAINING: &str = "draining: the program is stopping and does not reload; start it again once it has stopped";

/// The name of this part in internal faults.
pub(crate) const PART: &str = "admin requests";

fn fault_json(fault: &Fault) -> Value {
    let Fault { at, part, location, message, count } = fault;
    json!({ "at": seconds(*at), "part": part, "location": location, "message": message, "count": count })
}

fn reload_response(reply: ReloadReply) -> AdminResponse {
    let ReloadReply { result, in_force_since } = reply;
    let changes = match result {
        Ok(changes) => changes,
        Err(error) => return AdminResponse::error(Status::Unprocessable, "reload_rejected", error),
    };
    let Changes { listeners_added, listeners_removed, listeners_moved, .. } = &changes;
    AdminResponse::ok(json!({
        "result": "applied",
        "generation": changes.generation,
        "listeners_added": listeners_added,
        "listeners_removed": listeners_removed,
        "listeners_moved": listeners_moved,
        "sources_added": changes.sources_added,
        "sources_removed": changes.sources_removed,
        "certificates_in": changes.certificates_in,
        "certificates_out": changes.certificates_out,
        "in_force_since": in_force_since.map(seconds),
        "differences": report::differences(&changes.differences),
        "differences_count": changes.differences.len(),
        "weakened_count": changes.weakened().count(),
    }))
}

/// Bytes of an error in the status line for systemd.
const MAX_REJECTION: usize = 320;
