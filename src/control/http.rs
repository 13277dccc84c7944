//! Serves one HTTP request per connection. Each step has a size limit and a timeout.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, HeaderValue,
    REFERRER_POLICY, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, SetOnce, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::debug;
use uuid::Uuid;

use crate::audit::Audit;
use crate::audit::admin::{AdminAction, AdminActionKind, AdminDenial, AdminDenialReason};
use crate::control::access::{Access, Caller, Peer};
use crate::control::clients::Identified;
use crate::control::error::ErrorKind;
use crate::control::event_stream::Follower;
use crate::control::parameters::Parameters;
use crate::control::rejected::Rejected;
use crate::control::response::{AdminResponse, Content, error_body};
use crate::control::route::{
    BodyLimit, Call, FoundRoute, Operation, PanelSessionOperation, Route, RouteAccess, SuccessContent, Unhandled,
};
use crate::control::routes::is_digitalocean;
use crate::control::{PART, PendingRequest, digitalocean, event_stream, openapi, route};
use crate::fault;
use crate::metrics::process::ProcessMetrics;
use crate::panel::files;
use crate::token::Role;

/// What all connections of the admin API share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) requests: mpsc::Sender<PendingRequest>,
    pub(crate) access: Access,
    pub(crate) audit: Audit,
    pub(crate) metrics: Arc<ProcessMetrics>,
    /// Limits the memory of large bodies.
    pub(crate) large_bodies: Semaphore,
    /// Limits the memory of long responses, in KiB.
    pub(crate) response_memory: Arc<Semaphore>,
    /// Limits the connections that stay open for events.
    pub(crate) streams: Arc<Semaphore>,
}

impl Shared {
    /// Without tokens.
    pub(crate) fn new(requests: mpsc::Sender<PendingRequest>, audit: Audit, metrics: Arc<ProcessMetrics>) -> Self {
        Self {
            requests,
            access: Access::default(),
            audit,
            metrics,
            large_bodies: Semaphore::new(MAX_LARGE_BODIES),
            response_memory: Arc::new(Semaphore::new(MAX_RESPONSE_KIBIBYTES as usize)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }
}

/// Large bodies that are read or handled at the same time.
const MAX_LARGE_BODIES: usize = 4;

/// Memory of all long responses that are being sent.
const MAX_RESPONSE_KIBIBYTES: u32 = 256 << 10;

/// A response from this size on counts.
const LONG_RESPONSE_KIBIBYTES: u32 = 1 << 10;

/// Connections that follow events.
pub(crate) const MAX_STREAMS: usize = 32;

pub(crate) type ResponseBody = UnsyncBoxBody<Bytes, Infallible>;

/// Serves one client. Errors of the connection are ignored: the client has disconnected or does not speak HTTP.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: Peer,
    identified: Identified,
    shared: &Arc<Shared>,
) {
    let tail = SetOnce::new();
    let service = service_fn(|request| {
        let answer = Exchange::new(peer, identified.clone(), Arc::clone(shared)).answer(request);
        async {
            let mut response = answer.await;
            if let Some(kept) = response.extensions_mut().remove::<Tail>() {
                // A connection has one response.
                let _ = tail.set(kept);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        // An idle client would occupy one of the few connections.
        .keep_alive(false)
        // A client may end its direction after the request.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let end = Instant::now() + CONNECTION_TIMEOUT;
    let ended = async {
        match timeout_at(end, tail.wait()).await {
            Ok(Tail::Events(follower)) => follower.ended().await,
            Ok(Tail::Memory(_)) => sleep_until(end).await,
            Err(_) => {}
        }
    };
    tokio::select! {
        _ = connection => {}
        () = ended => {}
    }
}

/// What a connection needs after its response has begun.
#[derive(Clone, Debug)]
enum Tail {
    Events(Follower),
    /// Held until the client has read its response.
    Memory(#[expect(dead_code, reason = "released when it is dropped")] Arc<OwnedSemaphorePermit>),
}

/// One request and its response.
struct Exchange {
    peer: Peer,
    /// Set when the caller is identified.
    identified: Identified,
    shared: Arc<Shared>,
    /// In the response, and in the audit event of a change.
    request_id: String,
    caller: Option<Caller>,
}

impl Exchange {
    fn new(peer: Peer, identified: Identified, shared: Arc<Shared>) -> Self {
        Self { peer, identified, shared, request_id: Uuid::new_v4().to_string(), caller: None }
    }

    async fn answer(mut self, request: Request<Incoming>) -> Response<ResponseBody> {
        let (head, body) = request.into_parts();
        let (response, allowed) = match self.respond(&head, body).await {
            Ok(response) => (response, None),
            Err(Unhandled { response, allowed }) => (response, allowed),
        };
        debug!(
            method = %head.method,
            path = head.uri.path(),
            status = response.status.as_u16(),
            request_id = self.request_id,
            "admin request"
        );
        let role = self.caller.as_ref().map(Caller::role);
        self.shared.metrics.admin.note_request(role.map(Role::code), response.status.as_u16());
        self.into_http(response, allowed, is_digitalocean(head.uri.path()))
    }

    async fn respond(&mut self, head: &Parts, body: Incoming) -> Result<AdminResponse, Unhandled> {
        check_head(head)?;
        let found = route::find(&head.method, head.uri.path());
        // Public routes have no secret: they help a person who has no token yet.
        let access = found.as_ref().map(|found| found.route.access);
        match access {
            Ok(RouteAccess::Public) => {}
            Ok(RouteAccess::Browser) => self.check_browser(head)?,
            Ok(RouteAccess::Role(_)) | Err(_) => {
                let is_stream = found.as_ref().is_ok_and(|found| found.route.success.content == SuccessContent::Events);
                self.caller = Some(self.identify(head, is_stream)?);
                self.identified.set();
            }
        }
        let FoundRoute { route, path } = found?;
        self.require_role(route, head)?;
        let query = Parameters::parse(head.uri.query().unwrap_or(""), route.query)?;
        let is_large = is_large(&body, route.body);
        let shared = Arc::clone(&self.shared);
        // Slow senders of large bodies hold up neither small ones nor the callers of this machine.
        let _permit = if is_large && self.peer.addr.ip().is_some() {
            Some(large_body_permit(&shared.large_bodies).await?)
        } else {
            None
        };
        let body = read_body(body, route.body).await?;
        let parse = route.parse;
        let operation = if is_large {
            let headers = head.headers.clone();
            // Takes so long that it would delay the server loop.
            let parsed = move || parse(&Call { path, query, headers: &headers, body: &body });
            fault::contained_blocking(PART, parsed)
                .await
                .unwrap_or_else(|fault| Err(AdminResponse::error(ErrorKind::ServerError, fault)))
        } else {
            parse(&Call { path, query, headers: &head.headers, body: &body })
        };
        let request = match operation? {
            Operation::Paths if self.is_for_panel(head) => return Ok(AdminResponse::see_other(PANEL_PATH)),
            Operation::Paths => return Ok(AdminResponse::ok(openapi::paths())),
            Operation::OpenApi => return Ok(AdminResponse::ok(openapi::description())),
            Operation::OpenPanel => return Ok(AdminResponse::see_other(PANEL_PATH)),
            Operation::PanelFile(file) => return Ok(AdminResponse::panel_file(file)),
            Operation::SignIn(token) => return Ok(self.sign_in(head, &token)?),
            Operation::PanelSession(operation) => return Ok(self.panel_session(head, operation)?),
            Operation::Request(request) => request,
        };
        let caller = self.known_caller()?;
        let (sender, receiver) = oneshot::channel();
        let pending = PendingRequest { request, caller, request_id: self.request_id.clone(), reply: sender };
        Ok(send(pending, receiver, &self.shared.requests).await)
    }

    fn identify(&self, head: &Parts, is_stream: bool) -> Result<Caller, AdminResponse> {
        self.shared.access.identify(self.peer, head, is_stream).map_err(|rejected| self.denied(head, *rejected))
    }

    fn check_browser(&self, head: &Parts) -> Result<(), AdminResponse> {
        let is_change = head.method != Method::GET;
        let checked = self.shared.access.check_browser(self.peer, head, is_change);
        checked.map_err(|rejected| self.denied(head, *rejected))
    }

    fn denied(&self, head: &Parts, rejected: Rejected) -> AdminResponse {
        let Rejected { reason, token, response } = rejected;
        if let Some(reason) = reason {
            if reason.is_failed_authentication() {
                self.shared.metrics.admin.note_auth_failure();
            }
            self.audit_denial(head, reason, token.as_deref());
        }
        response
    }

    /// The caller of a route that is not public.
    fn known_caller(&self) -> Result<Caller, AdminResponse> {
        self.caller.clone().ok_or_else(|| AdminResponse::error(ErrorKind::Unauthorized, "a token is required"))
    }

    /// Whether a browser has opened the admin address.
    fn is_for_panel(&self, head: &Parts) -> bool {
        let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains("text/html"));
        self.peer.addr.ip().is_some() && head.headers.get(ACCEPT).is_some_and(accepts)
    }

    fn sign_in(&mut self, head: &Parts, token: &str) -> Result<AdminResponse, AdminResponse> {
        let signed_in = self.shared.access.sign_in(self.peer, head, token);
        let (caller, response) = match signed_in {
            Ok(signed_in) => signed_in,
            Err(rejected) => return Err(self.denied(head, *rejected)),
        };
        self.audit_panel(&caller, AdminActionKind::PanelSignIn);
        self.caller = Some(caller);
        self.identified.set();
        Ok(response)
    }

    fn panel_session(&self, head: &Parts, operation: PanelSessionOperation) -> Result<AdminResponse, AdminResponse> {
        let caller = self.known_caller()?;
        Ok(match operation {
            PanelSessionOperation::Show => AdminResponse::ok(self.shared.access.panel_session(&caller)),
            PanelSessionOperation::SignOut => {
                self.audit_panel(&caller, AdminActionKind::PanelSignOut);
                self.shared.access.sign_out(self.peer, head, &caller)
            }
        })
    }

    fn audit_panel(&self, caller: &Caller, kind: AdminActionKind) {
        let request_id = Some(self.request_id.as_str());
        let action = AdminAction { caller: caller.audited(), kind, target: None, request_id, detail: None };
        self.shared.audit.admin_action(&action);
    }

    fn require_role(&self, route: &Route, head: &Parts) -> Result<(), AdminResponse> {
        let (RouteAccess::Role(required), Some(caller)) = (route.access, &self.caller) else { return Ok(()) };
        if caller.role() >= required {
            return Ok(());
        }
        self.audit_denial(head, AdminDenialReason::Forbidden, caller.token_name());
        let message =
            format_args!("the role {} does not suffice; this needs {}", caller.role().code(), required.code());
        Err(AdminResponse::error(ErrorKind::Forbidden, message))
    }

    fn audit_denial(&self, head: &Parts, reason: AdminDenialReason, token: Option<&str>) {
        self.shared.audit.admin_denied(&AdminDenial {
            source: self.peer.addr,
            reason,
            token,
            method: head.method.as_str(),
            path: head.uri.path(),
            request_id: &self.request_id,
        });
    }

    fn into_http(self, admin: AdminResponse, allowed: Option<String>, is_digitalocean: bool) -> Response<ResponseBody> {
        let AdminResponse { status, content, mut headers } = admin;
        let (body, content_type, tail) = match content {
            Content::Empty => (empty(), None, None),
            Content::Json(value) => (full(&value), Some(JSON), None),
            Content::Text(text) => match self.memory_for(&text) {
                Ok(tail) => (Full::from(text).boxed_unsync(), Some(JSON), tail),
                Err(response) => return self.into_http(response, None, is_digitalocean),
            },
            Content::File { bytes, content_type } => match self.memory_for(&bytes) {
                Ok(tail) => (Full::from(bytes).boxed_unsync(), Some(content_type), tail),
                Err(response) => return self.into_http(response, None, is_digitalocean),
            },
            Content::Error { kind, message } => {
                let (id, message) = if is_digitalocean {
                    (kind.digitalocean_id(), kind.digitalocean_message().unwrap_or(&message))
                } else {
                    (kind.id(), message.as_str())
                };
                (full(&error_body(id, message, &self.request_id)), Some(JSON), None)
            }
            Content::Events(stream) => match Arc::clone(&self.shared.streams).try_acquire_owned() {
                Ok(permit) => {
                    let follower = Follower::new(Arc::clone(&self.shared), self.caller.clone());
                    let body = event_stream::body(*stream, follower.clone(), permit);
                    // A reverse proxy such as nginx would hold events back until its buffer is full.
                    headers.push((HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")));
                    (body, Some("text/event-stream"), Some(Tail::Events(follower)))
                }
                Err(_) => {
                    let message = format_args!("{MAX_STREAMS} clients follow events already; try again later");
                    let response = AdminResponse::error(ErrorKind::TooManyRequests, message);
                    return self.into_http(response, None, is_digitalocean);
                }
            },
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let map = response.headers_mut();
        map.extend(headers);
        if let Some(content_type) = content_type {
            map.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        map.extend(SECURITY_HEADERS.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))));
        let text = [(X_REQUEST_ID, Some(self.request_id)), (ALLOW, allowed)];
        map.extend(text.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(value?).ok()?))));
        if is_digitalocean {
            map.extend(digitalocean::rate_limit_headers());
        }
        if let Some(tail) = tail {
            response.extensions_mut().insert(tail);
        }
        response
    }

    /// Reserves memory for a long response, which a slow client may keep in memory until [`CONNECTION_TIMEOUT`]. Callers of
    /// this machine are not limited.
    fn memory_for(&self, text: &Bytes) -> Result<Option<Tail>, AdminResponse> {
        let kibibytes = u32::try_from(text.len() >> 10).unwrap_or(u32::MAX).min(MAX_RESPONSE_KIBIBYTES);
        if kibibytes < LONG_RESPONSE_KIBIBYTES || self.peer.addr.ip().is_none() {
            return Ok(None);
        }
        match Arc::clone(&self.shared.response_memory).try_acquire_many_owned(kibibytes) {
            Ok(permit) => Ok(Some(Tail::Memory(Arc::new(permit)))),
            Err(_) => Err(busy("other clients are reading long responses; try again later")),
        }
    }
}

fn check_head(head: &Parts) -> Result<(), AdminResponse> {
    let length = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if length > MAX_TARGET {
        let message = format_args!("the target has {length} bytes; the limit is {MAX_TARGET}");
        return Err(AdminResponse::error(ErrorKind::UriTooLong, message));
    }
    // RFC 9112 §3.2
    if head.version == Version::HTTP_11 && head.headers.get_all(HOST).iter().count() != 1 {
        return Err(AdminResponse::error(ErrorKind::BadRequest, "the request must have one Host header"));
    }
    Ok(())
}

/// Whether a body may be larger than one that is read and parsed without further precaution.
fn is_large(body: &Incoming, limit: BodyLimit) -> bool {
    let is_small = |length| usize::try_from(length).is_ok_and(|length| length <= BodyLimit::Small.bytes());
    limit == BodyLimit::Sources && !body.size_hint().upper().is_some_and(is_small)
}

fn busy(message: &str) -> AdminResponse {
    AdminResponse::error(ErrorKind::TooManyRequests, message).with_header(RETRY_AFTER, HeaderValue::from_static("5"))
}

async fn large_body_permit(permits: &Semaphore) -> Result<SemaphorePermit<'_>, AdminResponse> {
    match timeout(PERMIT_TIMEOUT, permits.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => Err(busy("other clients are sending large bodies; try again later")),
    }
}

/// Reads the body within its limit and [`BODY_TIMEOUT`].
async fn read_body(body: Incoming, limit: BodyLimit) -> Result<Bytes, AdminResponse> {
    let bytes = limit.bytes();
    match timeout(BODY_TIMEOUT, Limited::new(body, bytes).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format_args!("the body is too large; the limit is {} KiB", bytes >> 10);
            Err(AdminResponse::error(ErrorKind::PayloadTooLarge, message))
        }
        Ok(Err(error)) => {
            Err(AdminResponse::error(ErrorKind::BadRequest, format_args!("cannot read the body: {error}")))
        }
        Err(_) => Err(AdminResponse::error(ErrorKind::RequestTimeout, "the body is incomplete")),
    }
}

/// Sends the request to the owner of the state and waits for the response.
async fn send(
    pending: PendingRequest,
    receiver: oneshot::Receiver<AdminResponse>,
    requests: &mpsc::Sender<PendingRequest>,
) -> AdminResponse {
    let response = async {
        requests.send(pending).await.ok()?;
        receiver.await.ok()
    };
    match timeout(RESPONSE_TIMEOUT, response).await {
        Ok(Some(response)) => response,
        Ok(None) => AdminResponse::error(ErrorKind::ServerError, "the program is stopping or has failed; see its log"),
        Err(_) => {
            let message =
                format_args!("no response within {RESPONSE_TIMEOUT:?}; the request may still complete, see the log");
            AdminResponse::error(ErrorKind::ServerError, message)
        }
    }
}

fn full(value: &serde_json::Value) -> ResponseBody {
    Full::from(format!("{value}\n")).boxed_unsync()
}

fn empty() -> ResponseBody {
    Full::default().boxed_unsync()
}

const JSON: &str = "application/json";

/// Headers of every response. A browser must neither store it, nor take it for a page or a script, nor show it inside of
/// another page.
static SECURITY_HEADERS: [(HeaderName, &str); 7] = [
    (CACHE_CONTROL, "no-store"),
    (CONTENT_SECURITY_POLICY, files::CONTENT_SECURITY_POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

const PANEL_PATH: &str = "/ui/";

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// From accept to the end of the request head.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// From the end of the head to the end of the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a large body waits for others. A client that sends one may take [`BODY_TIMEOUT`].
const PERMIT_TIMEOUT: Duration = Duration::from_secs(15);

/// Less than the timeout of the commands, so that they receive the error.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(25);

/// The whole connection, including the time in which the client reads the response.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes.
const MAX_HEAD: usize = 16 << 10;

/// Bytes; longer than any valid target.
const MAX_TARGET: usize = 1024;
