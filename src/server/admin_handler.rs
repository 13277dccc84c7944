//! Answers what is asked over the control channel.

use crate::fault::record;
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
use crate::audit::changes::Changes;
use crate::control::response::{AdminResponse, Status};
use crate::control::{AdminRequest, Request};
use crate::dns::HostCache;
use crate::fault;
use crate::fault::record::Fault;
use crate::outcome::Reason;
use crate::policy::explain::ExplainError;
use crate::policy::{Built, ListenerPolicy, Snapshot};
use crate::printable;
use crate::proxy::listener::Listeners;
use crate::server::counts::{Count, Counts};
use crate::server::reload;
use crate::server::reload::{Asker, ReloadReply};
use crate::server::report;
use crate::session::registry::ConnectionRegistry;
use crate::timestamp::seconds;

/// Where requests come in.
#[derive(Debug)]
pub(crate) struct AdminHandler {
    requests: mpsc::Receiver<Request>,
    /// To the reloader.
    askers: mpsc::Sender<Asker>,
    registry: Arc<ConnectionRegistry>,
    host_cache: Arc<HostCache>,
    audit: Audit,
    started_at: OffsetDateTime,
    last_reload: Option<LastReload>,
    /// Since when what the files say has been in force.
    files_since: OffsetDateTime,
    draining: Option<Draining>,
    /// Answers that take their time.
    pending: JoinSet<()>,
}

/// The program is stopping.
#[derive(Clone, Copy, Debug)]
struct Draining {
    since: OffsetDateTime,
    /// When the sessions are ended that are left.
    until: OffsetDateTime,
}

/// What became of the last reload.
#[derive(Debug)]
struct LastReload {
    at: OffsetDateTime,
    error: Option<String>,
}

impl AdminHandler {
    pub(crate) fn new(
        requests: mpsc::Receiver<Request>,
        askers: mpsc::Sender<Asker>,
        registry: Arc<ConnectionRegistry>,
        host_cache: Arc<HostCache>,
        audit: Audit,
    ) -> Self {
        let started_at = OffsetDateTime::now_utc();
        Self {
            requests,
            askers,
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

    /// The program stops: it takes no new policy, and ends the sessions that are left after `patience`.
    pub(crate) fn drain(&mut self, patience: Duration) {
        let since = OffsetDateTime::now_utc();
        let patience = time::Duration::try_from(patience).unwrap_or(time::Duration::MAX);
        self.draining = Some(Draining { since, until: since.saturating_add(patience) });
    }

    /// Whether the last reload was applied. Without one, what the files said at the start is in force.
    pub(crate) fn was_applied(&self) -> bool {
        self.last_reload.as_ref().is_none_or(|last| last.error.is_none())
    }

    /// Notes that a policy was put in force, or refused. Returns since when what the files say has been in force, where it
    /// was before.
    pub(crate) fn in_force_since(&mut self, was_in_force: bool) -> Option<OffsetDateTime> {
        if was_in_force {
            return Some(self.files_since);
        }
        self.files_since = OffsetDateTime::now_utc();
        None
    }

    /// The next request. Never comes where nobody can ask.
    pub(crate) async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    /// Notes what became of a reload. Returns whether that is what became of the last one too.
    pub(crate) fn reloaded(&mut self, error: Option<&str>) -> bool {
        let last = LastReload { at: OffsetDateTime::now_utc(), error: error.map(str::to_owned) };
        let former = self.last_reload.replace(last);
        former.is_some_and(|former| former.error.as_deref() == error)
    }

    /// What became of the last reload, where it was rejected: when, and the first thing that is wrong.
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

    /// Answers, at once or later; a caller that has hung up is not waited for.
    pub(crate) fn answer(&mut self, request: Request, current: &Arc<Snapshot>, listeners: &Listeners) {
        while self.pending.try_join_next().is_some() {}
        let Request { ask, answer } = request;
        if self.draining.is_some() && matches!(ask, AdminRequest::Reload | AdminRequest::Plan { .. }) {
            let _ = answer.send(AdminResponse::error(Status::Conflict, "draining", DRAINING));
            return;
        }
        let at_once = match ask {
            AdminRequest::Status => AdminResponse::done(self.status(current, listeners)),
            AdminRequest::Rotation => AdminResponse::done(report::rotation(current, &self.registry)),
            AdminRequest::Sessions => AdminResponse::done(report::sessions(&self.registry)),
            AdminRequest::CloseSession(id) => self.close(id),
            AdminRequest::Reload => return self.reload(answer),
            AdminRequest::Plan { file } => return self.plan(file, current, answer),
            AdminRequest::Explain { listener, source, chain } => {
                let current = Arc::clone(current);
                return self.answer_later(answer, move || explain(&current, &listener, source, &chain));
            }
        };
        let _ = answer.send(self.with_draining(at_once));
    }

    /// Whoever asks a program that is stopping is told so.
    fn with_draining(&self, mut answer: AdminResponse) -> AdminResponse {
        if let (Some(Draining { since, until }), Some(object)) = (self.draining, answer.body.as_object_mut()) {
            object.insert("draining".to_owned(), json!({ "since": seconds(since), "until": seconds(until) }));
        }
        answer
    }

    fn status(&self, current: &Snapshot, listeners: &Listeners) -> Value {
        let last_reload = self.last_reload.as_ref().map(|LastReload { at, error }| {
            let result = if error.is_none() { "applied" } else { "rejected" };
            json!({ "result": result, "at": seconds(*at), "error": error.as_deref().map(printable::lines) })
        });
        let counts = Counts::of(&self.registry);
        let listener = |policy: &Arc<ListenerPolicy>| {
            let Count { relaying, closing } = counts.at(&policy.name);
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
            "faults": record::recent().iter().map(told).collect::<Vec<_>>(),
            "listeners": current.listeners().iter().map(listener).collect::<Vec<_>>(),
            "removed_listeners": counts.of_removed_listeners(current),
        })
    }

    fn close(&self, id: u64) -> AdminResponse {
        let found = self.registry.find(id);
        let Some((live, state)) = found.and_then(|live| live.state().map(|state| (live, state))) else {
            return AdminResponse::error(Status::NotFound, "no_such_session", format_args!("there is no session {id}"));
        };
        // One that is closing is gone in a moment without anybody's doing.
        if state.is_relaying() {
            self.audit.admin_action("sessions.close", &id.to_string());
            live.end(Reason::ClosedByAdmin.into());
        }
        AdminResponse::done(json!({ "session": id, "was": state.code() }))
    }

    fn reload(&mut self, answer: oneshot::Sender<AdminResponse>) {
        let (asker, told) = oneshot::channel();
        if self.askers.try_send(asker).is_err() {
            let busy = "too many reloads have been asked for already; wait for those";
            let _ = answer.send(AdminResponse::error(Status::Conflict, "reload_busy", busy));
            return;
        }
        self.audit.admin_action("reload", "");
        self.pending.spawn(async move {
            if let Ok(told) = told.await {
                let _ = answer.send(in_answer(told));
            }
        });
    }

    /// Builds on a thread of its own what a reload would build, and puts it in force nowhere.
    fn plan(&mut self, file: Option<PathBuf>, current: &Arc<Snapshot>, answer: oneshot::Sender<AdminResponse>) {
        let (current, registry, host_cache) =
            (Arc::clone(current), Arc::clone(&self.registry), Arc::clone(&self.host_cache));
        self.answer_later(answer, move || {
            let file = file.as_deref().unwrap_or(&current.config.file);
            match reload::build(file, Some(&current), &host_cache).0 {
                Ok(Built { snapshot, warnings }) => {
                    let built = Built { snapshot: snapshot.planned(), warnings };
                    AdminResponse::done(report::plan(&built, &current, &registry))
                }
                Err(problems) => AdminResponse::error(Status::Unprocessable, "configuration_invalid", problems),
            }
        });
    }

    /// Works out an answer on a thread of its own.
    fn answer_later(
        &mut self,
        answer: oneshot::Sender<AdminResponse>,
        work: impl FnOnce() -> AdminResponse + Send + 'static,
    ) {
        self.pending.spawn(async move {
            let failed = |fault| AdminResponse::error(Status::Failed, "internal_fault", fault);
            let _ = answer.send(fault::contained_blocking(PART, work).await.unwrap_or_else(failed));
        });
    }
}

/// What the policy in force would do with a connection. The configuration is named in every answer: the caller may mean
/// another one.
fn explain(current: &Snapshot, listener: &str, source: ClientAddr, chain: &[CertificateDer<'_>]) -> AdminResponse {
    let explained = current.explain(listener, source, chain, OffsetDateTime::now_utc());
    let mut answer = match explained {
        Ok(explanation) => AdminResponse::done(explanation.in_json()),
        Err(error @ ExplainError::UnknownListener { .. }) => AdminResponse::error(Status::NotFound, "not_found", error),
        Err(error @ ExplainError::Impossible { .. }) => {
            AdminResponse::error(Status::Unprocessable, "unprocessable_entity", error)
        }
    };
    if let Some(fields) = answer.body.as_object_mut() {
        // A relative path would be relative to a directory that the caller may not know.
        let config = std::path::absolute(&current.config.file).unwrap_or_else(|_| current.config.file.clone());
        fields.insert("config".to_owned(), json!(config));
        fields.insert("generation".to_owned(), current.generation.into());
    }
    answer
}

const DRAINING: &str = "draining: the program is stopping and takes no new policy; start it again when it has ended";

/// What its faults are noted under.
pub(crate) const PART: &str = "answers to commands";

fn told(fault: &Fault) -> Value {
    let Fault { at, part, location, message, count } = fault;
    json!({ "at": seconds(*at), "part": part, "location": location, "message": message, "count": count })
}

fn in_answer(told: ReloadReply) -> AdminResponse {
    let ReloadReply { verdict, in_force_since } = told;
    let changes = match verdict {
        Ok(changes) => changes,
        Err(error) => return AdminResponse::error(Status::Unprocessable, "reload_rejected", error),
    };
    let Changes { listeners_added, listeners_removed, listeners_moved, .. } = &changes;
    AdminResponse::done(json!({
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

/// Longest part of an error in the status line for systemd, in bytes.
const MAX_REJECTION: usize = 320;
