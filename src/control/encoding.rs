//! Turns the answer to a request into an HTTP response.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::control::access::Caller;
use crate::control::error::ErrorKind;
use crate::control::event_stream::Follower;
use crate::control::response::{AdminResponse, Content, error_body};
use crate::control::shared::{MAX_RESPONSE_KIBIBYTES, MAX_STREAMS, ResponseBody, Shared};
use crate::control::{digitalocean, event_stream};
use crate::panel::files;

/// What a connection needs after its response has begun.
#[derive(Clone, Debug)]
pub(crate) enum Tail {
    Events(Follower),
    /// Held until the client has read its response.
    Memory(#[expect(dead_code, reason = "released when it is dropped")] Arc<OwnedSemaphorePermit>),
}

/// The request that a response is for.
pub(crate) struct Encoding {
    pub(crate) shared: Arc<Shared>,
    pub(crate) caller: Option<Caller>,
    pub(crate) request_id: String,
    /// Whether the errors have the words of DigitalOcean's API.
    pub(crate) is_digitalocean: bool,
    /// Whether the client is on another machine, and so may be slow.
    pub(crate) is_remote: bool,
}

impl Encoding {
    /// The response. `allowed` has the methods of the path for status 405.
    pub(crate) fn response(self, admin: AdminResponse, allowed: Option<String>) -> Response<ResponseBody> {
        let AdminResponse { status, content, mut headers } = admin;
        let (body, content_type, tail) = match content {
            Content::Empty => (empty(), None, None),
            Content::Json(value) => (full(&value), Some(JSON), None),
            Content::Text(text) => match self.memory_for(&text) {
                Ok(tail) => (Full::from(text).boxed_unsync(), Some(JSON), tail),
                Err(response) => return self.response(response, None),
            },
            Content::File { bytes, content_type } => match self.memory_for(&bytes) {
                Ok(tail) => (Full::from(bytes).boxed_unsync(), Some(content_type), tail),
                Err(response) => return self.response(response, None),
            },
            Content::Error { kind, message } => {
                let (id, message) = if self.is_digitalocean {
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
                    return self.response(response, None);
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
        if self.is_digitalocean {
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
        if kibibytes < LONG_RESPONSE_KIBIBYTES || !self.is_remote {
            return Ok(None);
        }
        match Arc::clone(&self.shared.response_memory).try_acquire_many_owned(kibibytes) {
            Ok(permit) => Ok(Some(Tail::Memory(Arc::new(permit)))),
            Err(_) => Err(busy("other clients are reading long responses; try again later")),
        }
    }
}

/// The response to a client that has to wait for others.
pub(crate) fn busy(message: &str) -> AdminResponse {
    AdminResponse::error(ErrorKind::TooManyRequests, message).with_header(RETRY_AFTER, HeaderValue::from_static("5"))
}

fn full(value: &serde_json::Value) -> ResponseBody {
    Full::from(format!("{value}\n")).boxed_unsync()
}

fn empty() -> ResponseBody {
    Full::default().boxed_unsync()
}

/// A response from this size on counts.
const LONG_RESPONSE_KIBIBYTES: u32 = 1 << 10;

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

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
