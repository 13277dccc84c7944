//! One request and its response: who calls, which route, what it asks for, and the answer of the owner of the state.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{ACCEPT, HOST, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, Version};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;
use uuid::Uuid;

use crate::audit::admin::{AdminAction, AdminActionKind, AdminDenial, AdminDenialReason};
use crate::control::access::{Caller, Peer};
use crate::control::clients::Identified;
use crate::control::encoding::{Encoding, busy};
use crate::control::error::ErrorKind;
use crate::control::parameters::Parameters;
use crate::control::rejected::Rejected;
use crate::control::response::AdminResponse;
use crate::control::route::{
    BodyLimit, Call, FoundRoute, Operation, PanelSessionOperation, Route, RouteAccess, SuccessContent, Unhandled,
};
use crate::control::routes::is_digitalocean;
use crate::control::shared::{ResponseBody, Shared};
use crate::control::{PART, PendingRequest, openapi, route};
use crate::fault;
use crate::token::Role;

/// One request and its response.
pub(crate) struct Exchange {
    peer: Peer,
    /// Set when the caller is identified.
    identified: Identified,
    shared: Arc<Shared>,
    /// In the response, and in the audit event of a change.
    request_id: String,
    caller: Option<Caller>,
}

impl Exchange {
    pub(crate) fn new(peer: Peer, identified: Identified, shared: Arc<Shared>) -> Self {
        Self { peer, identified, shared, request_id: Uuid::new_v4().to_string(), caller: None }
    }

    pub(crate) async fn answer(mut self, request: Request<Incoming>) -> Response<ResponseBody> {
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
        let Self { peer, identified: _, shared, request_id, caller } = self;
        let (is_digitalocean, is_remote) = (is_digitalocean(head.uri.path()), peer.addr.ip().is_some());
        Encoding { shared, caller, request_id, is_digitalocean, is_remote }.response(response, allowed)
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

const PANEL_PATH: &str = "/ui/";

/// From the end of the head to the end of the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a large body waits for others. A client that sends one may take [`BODY_TIMEOUT`].
const PERMIT_TIMEOUT: Duration = Duration::from_secs(15);

/// Less than the timeout of the commands, so that they receive the error.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(50);

/// Bytes; longer than any valid target.
const MAX_TARGET: usize = 1024;
