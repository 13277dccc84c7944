//! Serves one HTTP request per connection. Each step has a size limit and a timeout.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::control::response::{AdminResponse, Status};
use crate::control::route;
use crate::control::route::Route;
use crate::control::{AdminRequest, PendingRequest};

/// Serves one client. Errors of the connection are ignored: the client has disconnected or does not speak HTTP.
pub(crate) async fn serve(stream: UnixStream, requests: mpsc::Sender<PendingRequest>) {
    let service = service_fn(|request| respond(request, &requests));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        // An idle client would occupy one of the few connections.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

async fn respond(
    request: hyper::Request<Incoming>,
    requests: &mpsc::Sender<PendingRequest>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let route = match read_body(body).await {
        Ok(body) => route::route(&head.method, &head.uri, &body),
        Err(response) => Err(response),
    };
    let allowed = match &route {
        Err(AdminResponse { status: Status::MethodNotAllowed, .. }) => route::allowed_methods(head.uri.path()),
        Ok(_) | Err(_) => None,
    };
    let response = match route {
        Ok(Route::Paths) => AdminResponse::ok(route::paths()),
        Ok(Route::Request(request)) => send(request, requests).await,
        Ok(Route::SessionsOf(listener)) => filter_sessions(&listener, send(AdminRequest::Sessions, requests).await),
        Err(response) => response,
    };
    Ok(to_http(&response, allowed))
}

/// Reads the body within [`MAX_BODY`] and [`BODY_TIMEOUT`].
async fn read_body(body: Incoming) -> Result<Bytes, AdminResponse> {
    match timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format_args!("the body is too large; the limit is {} KiB", MAX_BODY >> 10);
            Err(AdminResponse::error(Status::ContentTooLarge, "content_too_large", message))
        }
        Ok(Err(error)) => {
            let message = format_args!("cannot read the body: {error}");
            Err(AdminResponse::error(Status::Unprocessable, "body_invalid", message))
        }
        Err(_) => Err(AdminResponse::error(Status::RequestTimeout, "request_timeout", "the body is incomplete")),
    }
}

/// Sends the request to the owner of the state and waits for the response.
async fn send(request: AdminRequest, requests: &mpsc::Sender<PendingRequest>) -> AdminResponse {
    let (sender, receiver) = oneshot::channel();
    let response = async {
        requests.send(PendingRequest { request, reply: sender }).await.ok()?;
        receiver.await.ok()
    };
    match timeout(RESPONSE_TIMEOUT, response).await {
        Ok(Some(response)) => response,
        Ok(None) => AdminResponse::error(
            Status::InternalError,
            "not_answered",
            "the program is stopping or has failed; see its log",
        ),
        Err(_) => {
            let message =
                format_args!("no response within {RESPONSE_TIMEOUT:?}; the request may still complete, see the log");
            AdminResponse::error(Status::InternalError, "no_answer_in_time", message)
        }
    }
}

/// Keeps the sessions of one listener.
fn filter_sessions(listener: &str, mut response: AdminResponse) -> AdminResponse {
    if let Some(sessions) = response.body.get_mut("sessions").and_then(|sessions| sessions.as_array_mut()) {
        sessions.retain(|session| session.get("listener").and_then(|name| name.as_str()) == Some(listener));
    }
    response
}

fn to_http(admin: &AdminResponse, allowed: Option<String>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{}\n", admin.body)));
    *response.status_mut() = StatusCode::from_u16(admin.status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(allowed) = allowed.and_then(|methods| HeaderValue::from_str(&methods).ok()) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// From accept to the end of the request head.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// From the end of the head to the end of the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Less than the timeout of the commands, so that they receive the error.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(25);

/// The whole connection, including the time in which the client reads the response.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes.
const MAX_HEAD: usize = 16 << 10;

/// Bytes.
pub(crate) const MAX_BODY: usize = 64 << 10;
