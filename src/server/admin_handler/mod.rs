//! Handles requests of the admin API.

pub(crate) mod action;
pub(crate) mod changes;
pub(crate) mod client_certificates;
pub(crate) mod fleet;
pub(crate) mod passwords;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::agent::state::AgentState;
use crate::audit::Audit;
use crate::audit::admin::AdminActionKind;
use crate::audit::changes::Changes;
use crate::control::PendingRequest;
use crate::control::access::Caller;
use crate::control::error::ErrorKind;
use crate::control::request::{AdminRequest, DenialFilter, SessionFilter};
use crate::control::response::AdminResponse;
use crate::fault;
use crate::fault::record;
use crate::fault::record::Fault;
use crate::outcome::Reason;
use crate::policy::explain::{ExplainError, Hypothetical};
use crate::policy::{Built, ListenerPolicy, Snapshot};
use crate::printable;
use crate::proxy::listener::Listeners;
use crate::resolution::cache::ResolutionCache;
use crate::server::admin_handler::action::Action;
use crate::server::admin_handler::changes::{find_listener, find_rules};
use crate::server::counts::{Count, Counts};
use crate::server::fleet::FleetService;
use crate::server::history::History;
use crate::server::reload;
use crate::server::reload::{ReloadReply, ReloadRequest};
use crate::server::report;
use crate::server::report::sources::RuleList;
use crate::session::registry::ConnectionRegistry;
use crate::source::id::listener_uuid;
use crate::timestamp::seconds;
use crate::token::last_use::LastUses;

#[derive(Debug)]
pub(crate) struct AdminHandler {
    requests: mpsc::Receiver<PendingRequest>,
    /// Sends requests to the reloader.
    reload_requests: mpsc::Sender<ReloadRequest>,
    registry: Arc<ConnectionRegistry>,
    resolutions: Arc<ResolutionCache>,
    audit: Audit,
    last_uses: Arc<LastUses>,
    started_at: OffsetDateTime,
    last_reload: Option<LastReload>,
    /// When the current content of the files came into force.
    files_since: OffsetDateTime,
    draining: Option<Draining>,
    /// Requests that are handled in the background.
    pending: JoinSet<()>,
    /// Limits the memory of lists that are being written.
    long_reads: Arc<Semaphore>,
    fleet: Arc<FleetService>,
}

/// The requests that the handler receives, and those that it sends.
#[derive(Debug)]
pub(crate) struct Queues {
    /// Performs requests about the fleet.
    pub(crate) fleet: Arc<FleetService>,
    pub(crate) requests: mpsc::Receiver<PendingRequest>,
    pub(crate) reload_requests: mpsc::Sender<ReloadRequest>,
}

/// What the handler reads of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerState<'a> {
    pub(crate) listeners: &'a Listeners,
    pub(crate) history: &'a History,
    pub(crate) agent: &'a AgentState,
}

/// Where a request comes from.
#[derive(Clone, Debug)]
struct Origin {
    caller: Caller,
    request_id: String,
}

impl Origin {
    fn action(self, kind: AdminActionKind, target: Option<String>, detail: Option<String>) -> Action {
        let Self { caller, request_id } = self;
        Action { kind, caller, target, request_id, detail }
    }
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
        queues: Queues,
        registry: Arc<ConnectionRegistry>,
        resolutions: Arc<ResolutionCache>,
        audit: Audit,
        last_uses: Arc<LastUses>,
    ) -> Self {
        let started_at = OffsetDateTime::now_utc();
        let Queues { fleet, requests, reload_requests } = queues;
        Self {
            requests,
            reload_requests,
            registry,
            resolutions,
            audit,
            last_uses,
            started_at,
            last_reload: None,
            files_since: started_at,
            draining: None,
            pending: JoinSet::new(),
            long_reads: Arc::new(Semaphore::new(MAX_LONG_READS)),
            fleet,
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
    pub(crate) fn handle(&mut self, request: PendingRequest, current: &Arc<Snapshot>, state: &ServerState<'_>) {
        let ServerState { listeners, history, .. } = *state;
        while self.pending.try_join_next().is_some() {}
        let PendingRequest { request, caller, request_id, reply } = request;
        let origin = Origin { caller, request_id };
        if self.draining.is_some() && is_change(&request) {
            let _ = reply.send(AdminResponse::error(ErrorKind::Conflict, DRAINING));
            return;
        }
        let response = match request {
            AdminRequest::Status => AdminResponse::ok(self.status(current, state, &origin)),
            AdminRequest::Listeners => {
                let counts = Counts::from_registry(&self.registry);
                let all = current.listeners().iter().map(|policy| self.listener(policy, &counts, listeners));
                AdminResponse::ok(json!({ "listeners": all.collect::<Vec<_>>() }))
            }
            AdminRequest::Listener(name) => match find_listener(current, &name) {
                Ok(policy) => {
                    AdminResponse::ok(self.listener(policy, &Counts::from_registry(&self.registry), listeners))
                }
                Err(response) => response,
            },
            AdminRequest::SourceGroups => source_groups(current),
            AdminRequest::Events { filter, recent, follow } => {
                let reader = self.audit.recent_events().reader(recent, filter);
                AdminResponse::events(if follow { reader } else { reader.of_the_past() })
            }
            AdminRequest::History => AdminResponse::ok(history.json()),
            AdminRequest::CloseSession(id) => self.close(id, origin),
            AdminRequest::Tokens => AdminResponse::ok(report::tokens::list(current, &self.last_uses)),
            AdminRequest::Denials(DenialFilter { listener, since }) => {
                let since = since.and_then(|since| time::Duration::try_from(since).ok());
                let since = since.map(|since| OffsetDateTime::now_utc().saturating_sub(since));
                match listener.as_deref().map(|name| find_listener(current, name)).transpose() {
                    Ok(policy) => {
                        let denials = self.audit.denials().list(policy.map(|policy| &*policy.name), since);
                        AdminResponse::ok(report::denials::list(&denials, self.audit.denials().replaced(), current))
                    }
                    Err(response) => response,
                }
            }
            AdminRequest::Reload => return self.reload(origin, reply),
            AdminRequest::Plan { file } => return self.plan(file, &origin, current, reply),
            AdminRequest::ChangeSources(change) => return self.change_sources(change, origin, current, reply),
            AdminRequest::NewToken(token) => return self.new_token(token, origin, current, reply),
            AdminRequest::RevokeToken(name) => return self.revoke_token(name, origin, current, reply),
            AdminRequest::Explain { listener, source, chain } => {
                let (current, resolutions) = (Arc::clone(current), Arc::clone(&self.resolutions));
                let explained =
                    move || explain(&current, &listener, Hypothetical { client: source, chain: &chain }, &resolutions);
                return self.handle_in_background(reply, explained);
            }
            // These can be long.
            AdminRequest::Sources { listener } => return self.read_rules(listener, current, reply, sources),
            AdminRequest::Firewall { listener } => return self.read_rules(listener, current, reply, firewall),
            AdminRequest::CaBundle { listener } => return self.read_listener(listener, current, reply, ca_bundle),
            AdminRequest::CaBundleFile { listener } => {
                return self.read_listener(listener, current, reply, |policy, _, _| {
                    report::certificates::ca_bundle_file(policy)
                });
            }
            AdminRequest::ClientCertificates { listener } => {
                return self.read_listener(listener, current, reply, client_certificates::list);
            }
            AdminRequest::Rotation => {
                return self.read(current, reply, |current, registry, _| {
                    Ok(AdminResponse::ok(report::rotation(current, registry)))
                });
            }
            AdminRequest::Certificates => {
                return self.read(current, reply, |current, registry, _| {
                    Ok(AdminResponse::ok(report::certificates::list(current, registry)))
                });
            }
            AdminRequest::Sessions(filter) => return self.sessions(filter, current, reply),
            other => return self.handle_other(other, origin, current, reply),
        };
        let _ = reply.send(self.with_draining(response));
    }

    /// Handles the requests about client certificates, passwords and the fleet.
    fn handle_other(
        &mut self,
        request: AdminRequest,
        origin: Origin,
        current: &Arc<Snapshot>,
        reply: oneshot::Sender<AdminResponse>,
    ) {
        match request {
            AdminRequest::ChangePins(change) => self.change_pins(change, origin, current, reply),
            AdminRequest::Clients { listener } => {
                self.read(current, reply, move |current, registry, _| passwords::list(current, &listener, registry));
            }
            AdminRequest::ChangePasswords(change) => self.change_passwords(change, origin, current, reply),
            AdminRequest::IssueCertificate(request) => self.issue_certificate(request, origin, current, reply),
            AdminRequest::Fleet => self.describe_fleet(reply),
            AdminRequest::AcceptStore => self.accept_store(origin, reply),
            AdminRequest::ForgetMember(name) => self.forget_member(name, origin, reply),
            AdminRequest::CloseSessions(request) => self.close_sessions(request, origin, reply),
            AdminRequest::FleetRotation => self.fleet_rotation(reply),
            other => {
                let message = format_args!("a request without a handler: {other:?}");
                let _ = reply.send(AdminResponse::error(ErrorKind::ServerError, message));
            }
        }
    }

    fn sessions(&mut self, filter: SessionFilter, current: &Arc<Snapshot>, reply: oneshot::Sender<AdminResponse>) {
        self.read(current, reply, move |current, registry, _| {
            Ok(AdminResponse::ok(report::sessions(current, registry, &filter)))
        });
    }

    /// Computes the response on a separate thread from the policy in force.
    fn read(
        &mut self,
        current: &Arc<Snapshot>,
        reply: oneshot::Sender<AdminResponse>,
        report: impl FnOnce(&Snapshot, &ConnectionRegistry, &ResolutionCache) -> Result<AdminResponse, AdminResponse>
        + Send
        + 'static,
    ) {
        let (current, registry) = (Arc::clone(current), Arc::clone(&self.registry));
        let (resolutions, draining) = (Arc::clone(&self.resolutions), self.draining);
        let slots = Arc::clone(&self.long_reads);
        self.pending.spawn(async move {
            let Ok(_slot) = slots.acquire().await else { return };
            // The client has disconnected while it waited.
            if reply.is_closed() {
                return;
            }
            let work = move || {
                let response = report(&current, &registry, &resolutions).unwrap_or_else(|error| error);
                with_draining(response, draining)
            };
            let _ = reply.send(in_background(work).await);
        });
    }

    /// The same for a request about one listener.
    fn read_listener(
        &mut self,
        listener: String,
        current: &Arc<Snapshot>,
        reply: oneshot::Sender<AdminResponse>,
        report: ListenerReport,
    ) {
        self.read(current, reply, move |current, registry, resolutions| {
            report(find_listener(current, &listener)?, registry, resolutions)
        });
    }

    /// The same for a request about the rules of a listener or a group.
    fn read_rules(
        &mut self,
        id: String,
        current: &Arc<Snapshot>,
        reply: oneshot::Sender<AdminResponse>,
        report: RulesReport,
    ) {
        self.read(current, reply, move |current, registry, resolutions| {
            Ok(report(&find_rules(current, &id)?, registry, resolutions))
        });
    }

    fn with_draining(&self, response: AdminResponse) -> AdminResponse {
        with_draining(response, self.draining)
    }

    fn status(&self, current: &Snapshot, state: &ServerState<'_>, origin: &Origin) -> Value {
        let ServerState { listeners, agent, .. } = *state;
        let last_reload = self.last_reload.as_ref().map(|LastReload { at, error }| {
            let result = if error.is_none() { "applied" } else { "rejected" };
            json!({ "result": result, "at": seconds(*at), "error": error.as_deref().map(printable::lines) })
        });
        let counts = Counts::from_registry(&self.registry);
        let listener = |policy: &Arc<ListenerPolicy>| self.listener(policy, &counts, listeners);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "started_at": seconds(self.started_at),
            "generation": current.generation,
            "config": current.config.file,
            "loaded_at": seconds(current.built_at),
            "last_reload": last_reload,
            "agent": report::agent(&agent.status()),
            "fleet": self.fleet.summary(),
            "descriptors": report::descriptors(&listeners.descriptors()),
            "faults": record::recent().iter().map(fault_json).collect::<Vec<_>>(),
            "listeners": current.listeners().iter().map(listener).collect::<Vec<_>>(),
            "source_groups": report::sources::groups(current),
            "removed_listeners": counts.of_removed_listeners(current),
            // For a caller that wants to trust itself.
            "your_address": origin.caller.source(),
        })
    }

    fn listener(&self, policy: &Arc<ListenerPolicy>, counts: &Counts, listeners: &Listeners) -> Value {
        let Count { relaying, closing } = counts.of_listener(&policy.name);
        json!({
            "name": &*policy.name,
            "uuid": listener_uuid(&policy.name).to_string(),
            "protocol": policy.protocol.to_string(),
            "addresses": listeners.addresses(policy),
            "tls": policy.tls.is_some(),
            "upstream": &*policy.upstream.name,
            "upstream_health": report::upstream_health(policy),
            "upstream_tls": policy.upstream.tls().is_some(),
            "upstreams": report::upstreams(policy),
            "client_auth": policy.client_auth().to_string(),
            "credentials": policy.credentials.is_some(),
            "enforcement": policy.sources.enforcement.to_string(),
            "trusted_sources": policy.sources.trusted.count(),
            "next_certificate_expiry": report::certificates::next_expiry(policy),
            "shield": report::shield(&listeners.shield(policy)),
            "dns_sources": report::dns_sources(policy, &self.resolutions),
            "cloud_sources": report::cloud_sources(policy, &self.resolutions),
            "fleet_rules": crate::server::fleet::report::rules(&self.fleet.policy(), &policy.name, &self.fleet.status()),
            "handshakes": policy.open_handshakes(),
            "max_handshakes": policy.max_handshakes,
            "sessions": relaying,
            "sessions_closing": closing,
            "denied": report::denied(policy),
        })
    }

    fn close(&self, id: u64, origin: Origin) -> AdminResponse {
        let found = self.registry.find(id);
        let Some((live, state)) = found.and_then(|live| live.state().map(|state| (live, state))) else {
            return AdminResponse::error(ErrorKind::NotFound, format_args!("there is no session {id}"));
        };
        // A closing session ends by itself.
        if state.is_relaying() {
            origin.action(AdminActionKind::SessionsClose, Some(id.to_string()), None).write(&self.audit);
            live.end(Reason::ClosedByAdmin.into());
        }
        AdminResponse::no_content()
    }

    fn reload(&mut self, origin: Origin, reply: oneshot::Sender<AdminResponse>) {
        let (sender, result) = oneshot::channel();
        if self.reload_requests.try_send(ReloadRequest::Reload(sender)).is_err() {
            let busy = "too many reload requests are pending; try again when they are done";
            let _ = reply.send(AdminResponse::error(ErrorKind::Conflict, busy));
            return;
        }
        origin.action(AdminActionKind::Reload, None, None).write(&self.audit);
        self.respond_later(reply, async move { Some(reload_response(result.await.ok()?)) });
    }

    /// Builds the policy of a reload on a separate thread without putting it in force.
    fn plan(
        &mut self,
        file: Option<PathBuf>,
        origin: &Origin,
        current: &Arc<Snapshot>,
        reply: oneshot::Sender<AdminResponse>,
    ) {
        if file.is_some() && origin.caller != Caller::Unix {
            let _ = reply.send(AdminResponse::error(ErrorKind::Forbidden, FILE_OF_THIS_MACHINE));
            return;
        }
        let (current, registry, resolutions) =
            (Arc::clone(current), Arc::clone(&self.registry), Arc::clone(&self.resolutions));
        self.handle_in_background(reply, move || {
            let file = file.as_deref().unwrap_or(&current.config.file);
            match reload::build(file, Some(&current), &resolutions).0 {
                Ok(Built { snapshot, warnings }) => {
                    let built = Built { snapshot: snapshot.planned(), warnings };
                    AdminResponse::ok(report::plan(&built, &current, &registry))
                }
                Err(problems) => AdminResponse::error(ErrorKind::ReloadRejected, problems),
            }
        });
    }

    /// Computes the response on a separate thread.
    fn handle_in_background(
        &mut self,
        reply: oneshot::Sender<AdminResponse>,
        work: impl FnOnce() -> AdminResponse + Send + 'static,
    ) {
        self.respond_later(reply, async move { Some(in_background(work).await) });
    }

    /// Sends the response when it is there. Without one, the client receives an error.
    fn respond_later(
        &mut self,
        reply: oneshot::Sender<AdminResponse>,
        response: impl Future<Output = Option<AdminResponse>> + Send + 'static,
    ) {
        self.pending.spawn(async move {
            if let Some(response) = response.await {
                let _ = reply.send(response);
            }
        });
    }
}

/// Reports about one listener.
type ListenerReport =
    fn(&ListenerPolicy, &ConnectionRegistry, &ResolutionCache) -> Result<AdminResponse, AdminResponse>;

/// Reports about the rules of one listener or group.
type RulesReport = fn(&RuleList<'_>, &ConnectionRegistry, &ResolutionCache) -> AdminResponse;

fn sources(list: &RuleList<'_>, registry: &ConnectionRegistry, resolutions: &ResolutionCache) -> AdminResponse {
    AdminResponse::ok(report::sources::list(list, registry, resolutions)).with_etag(&report::sources::etag(list))
}

fn firewall(list: &RuleList<'_>, _: &ConnectionRegistry, _: &ResolutionCache) -> AdminResponse {
    AdminResponse::ok(report::sources::firewall(list)).with_etag(&report::sources::etag(list))
}

fn source_groups(current: &Snapshot) -> AdminResponse {
    AdminResponse::ok(json!({ "source_groups": report::sources::groups(current) }))
}

fn ca_bundle(
    policy: &ListenerPolicy,
    _: &ConnectionRegistry,
    _: &ResolutionCache,
) -> Result<AdminResponse, AdminResponse> {
    report::certificates::ca_bundle(policy).map(AdminResponse::ok)
}

async fn in_background(work: impl FnOnce() -> AdminResponse + Send + 'static) -> AdminResponse {
    let failed = |fault| AdminResponse::error(ErrorKind::ServerError, fault);
    fault::contained_blocking(PART, || work().written()).await.unwrap_or_else(failed)
}

/// Whether a request is rejected while the program stops.
fn is_change(request: &AdminRequest) -> bool {
    matches!(
        request,
        AdminRequest::Reload
            | AdminRequest::Plan { .. }
            | AdminRequest::ChangeSources(_)
            | AdminRequest::ChangePins(_)
            | AdminRequest::ChangePasswords(_)
            | AdminRequest::IssueCertificate(_)
            | AdminRequest::NewToken(_)
            | AdminRequest::RevokeToken(_)
            | AdminRequest::AcceptStore
    )
}

/// Adds `draining` to the response of a draining program.
fn with_draining(mut response: AdminResponse, draining: Option<Draining>) -> AdminResponse {
    if let (Some(Draining { since, until }), Some(object)) = (draining, response.json_mut()) {
        object.insert("draining".to_owned(), json!({ "since": seconds(since), "until": seconds(until) }));
    }
    response
}

/// Explains a connection by the policy in force. Each response names the configuration file, so that the client can detect
/// that it is not the expected one.
fn explain(
    current: &Snapshot,
    listener: &str,
    connection: Hypothetical<'_>,
    resolutions: &ResolutionCache,
) -> AdminResponse {
    let explained = current.explain(listener, connection, resolutions, OffsetDateTime::now_utc());
    let mut response = match explained {
        Ok(explanation) => AdminResponse::ok(explanation.in_json()),
        Err(error @ ExplainError::UnknownListener { .. }) => AdminResponse::error(ErrorKind::NotFound, error),
        Err(error @ ExplainError::Impossible { .. }) => AdminResponse::error(ErrorKind::Unprocessable, error),
    };
    if let Some(fields) = response.json_mut() {
        // The client does not know the working directory of the program.
        let config = std::path::absolute(&current.config.file).unwrap_or_else(|_| current.config.file.clone());
        fields.insert("config".to_owned(), json!(config));
        fields.insert("generation".to_owned(), current.generation.into());
    }
    response
}

const DRAINING: &str = "draining: the program is stopping and does not reload; start it again once it has stopped";

/// The problems of a file show parts of it.
const FILE_OF_THIS_MACHINE: &str =
    "\"file\" names a file of the machine of Portcullis, so it requires the Unix socket; leave it out to plan a reload";

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
        Err(error) => return AdminResponse::error(ErrorKind::ReloadRejected, error),
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

/// Lists that are written at the same time. One of 100,000 rules needs about 250 MiB meanwhile.
const MAX_LONG_READS: usize = 2;
