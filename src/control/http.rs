//! One caller: a request, an answer, good-bye. Every step has its size and its time.

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
use crate::control::route::Wanted;
use crate::control::{AdminRequest, Request};

/// Serves one caller. What goes wrong on the way is the caller's own: it has hung up, or does not speak HTTP.
pub(crate) async fn serve(stream: UnixStream, requests: mpsc::Sender<Request>) {
    let service = service_fn(|request| answer(request, &requests));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        // A caller that stays would keep one of the few places from others.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(WHOLE, connection).await;
}

async fn answer(
    request: hyper::Request<Incoming>,
    requests: &mpsc::Sender<Request>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let wanted = match whole(body).await {
        Ok(body) => route::route(&head.method, &head.uri, &body),
        Err(answer) => Err(answer),
    };
    let allowed = match &wanted {
        Err(AdminResponse { status: Status::MethodNotAllowed, .. }) => route::allowed(head.uri.path()),
        Ok(_) | Err(_) => None,
    };
    let answer = match wanted {
        Ok(Wanted::Paths) => AdminResponse::done(route::paths()),
        Ok(Wanted::Ask(what)) => ask(what, requests).await,
        Ok(Wanted::SessionsOf(listener)) => only(&listener, ask(AdminRequest::Sessions, requests).await),
        Err(answer) => answer,
    };
    Ok(response(&answer, allowed))
}

/// The body, which is to be small and to come soon.
async fn whole(body: Incoming) -> Result<Bytes, AdminResponse> {
    match timeout(BODY, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format_args!("the body may have {} KiB at most", MAX_BODY >> 10);
            Err(AdminResponse::error(Status::ContentTooLarge, "content_too_large", message))
        }
        Ok(Err(error)) => {
            let message = format_args!("the body cannot be read: {error}");
            Err(AdminResponse::error(Status::Unprocessable, "body_invalid", message))
        }
        Err(_) => {
            Err(AdminResponse::error(Status::RequestTimeout, "request_timeout", "the body did not come to its end"))
        }
    }
}

/// Puts the question to whoever owns the state.
async fn ask(ask: AdminRequest, requests: &mpsc::Sender<Request>) -> AdminResponse {
    let (sender, receiver) = oneshot::channel();
    let answered = async {
        requests.send(Request { ask, answer: sender }).await.ok()?;
        receiver.await.ok()
    };
    match timeout(PATIENCE, answered).await {
        Ok(Some(answer)) => answer,
        Ok(None) => {
            AdminResponse::error(Status::Failed, "not_answered", "the program is ending, or has failed; see its log")
        }
        Err(_) => {
            let message =
                format_args!("no answer within {PATIENCE:?}; what was asked for may still be done: see the log");
            AdminResponse::error(Status::Failed, "no_answer_in_time", message)
        }
    }
}

/// The sessions of one listener out of those of all.
fn only(listener: &str, mut answer: AdminResponse) -> AdminResponse {
    if let Some(sessions) = answer.body.get_mut("sessions").and_then(|sessions| sessions.as_array_mut()) {
        sessions.retain(|session| session.get("listener").and_then(|name| name.as_str()) == Some(listener));
    }
    answer
}

fn response(answer: &AdminResponse, allowed: Option<String>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{}\n", answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(allowed) = allowed.and_then(|methods| HeaderValue::from_str(&methods).ok()) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// From accept to the end of the request's head.
pub(crate) const HEAD: Duration = Duration::from_secs(10);

/// From there to the end of its body.
const BODY: Duration = Duration::from_secs(10);

/// How long an answer may take: less than the commands wait, so that they are told.
const PATIENCE: Duration = Duration::from_secs(25);

/// All of it, the caller's reading of the answer included.
const WHOLE: Duration = Duration::from_secs(60);

const MAX_HEAD: usize = 16 << 10;

/// The largest body that is read.
pub(crate) const MAX_BODY: usize = 64 << 10;
