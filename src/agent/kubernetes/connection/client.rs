//! The HTTP client of kube, with limits on the answers of the server.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::header::RETRY_AFTER;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as HttpClient, Error as HttpError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt as _};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder, service_fn};

use crate::agent::kubernetes::failure::{Rejected, TooLong};

/// Builds a client. It verifies the certificate of the server, follows no redirect and uses no proxy.
///
/// # Errors
/// When a certificate or key is not valid.
pub(super) fn build(config: Config) -> Result<Client, String> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(tcp).map_err(|error| error.to_string())?;
    let http = HttpClient::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .build::<_, Body>(https);
    let bounded = service_fn(move |request: Request<Body>| {
        let limit = Limit::of(&request);
        let (again, http) = (repeated(&request), http.clone());
        async move {
            let answer = match (http.request(request).await, again) {
                // The server has closed a connection that was kept for the next request.
                (Err(error), Some(again)) if !error.is_connect() => http.request(again).await,
                (answer, _) => answer,
            };
            bounded(answer, limit).await
        }
    });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(|error| error.to_string())?)
        .layer(config.extra_headers_layer().map_err(|error| error.to_string())?)
        .service(bounded);
    Ok(Client::new(service, config.default_namespace))
}

/// A copy of a GET request, which has no body. A write is not repeated, because it may have been performed.
fn repeated(request: &Request<Body>) -> Option<Request<Body>> {
    if request.method() != Method::GET {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    request.uri().clone_into(copy.uri_mut());
    request.headers().clone_into(copy.headers_mut());
    Some(copy)
}

/// The body of an answer with a status of success.
///
/// # Errors
/// [`Rejected`] for another status. kube takes the status from the body, which may state another one or none.
async fn bounded(answer: Result<Response<Incoming>, HttpError>, limit: Limit) -> Result<Response<Bounded>, BoxError> {
    let answer = answer?;
    if matches!(answer.status(), StatusCode::OK | StatusCode::CREATED | StatusCode::ACCEPTED) {
        return Ok(answer.map(|inner| Bounded { inner, limit, used: 0 }));
    }
    let code = answer.status().as_u16();
    let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = Limited::new(answer.into_body(), MAX_ERROR).collect().await.map(http_body_util::Collected::to_bytes);
    let status = serde_json::from_slice(&body.unwrap_or_default()).ok();
    Err(Rejected { code, status, retry_after: seconds.map(Duration::from_secs) }.into())
}

/// What a limit applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// The whole body of a list.
    Body(usize),
    /// Each line of a watch, which is one event. The body has no end.
    Line(usize),
}

impl Limit {
    fn of(request: &Request<Body>) -> Self {
        let mut parameters = request.uri().query().unwrap_or_default().split('&');
        if parameters.any(|parameter| parameter == "watch=true") { Self::Line(MAX_EVENT) } else { Self::Body(MAX_PAGE) }
    }

    /// The bytes that count after these have come.
    fn count(self, used: usize, data: &[u8]) -> usize {
        match (self, data.iter().rposition(|byte| *byte == b'\n')) {
            (Self::Line(_), Some(end)) => data.len().saturating_sub(end).saturating_sub(1),
            _ => used.saturating_add(data.len()),
        }
    }

    const fn error(self) -> TooLong {
        match self {
            Self::Body(limit) => TooLong { limit, unit: "page" },
            Self::Line(limit) => TooLong { limit, unit: "event" },
        }
    }

    const fn is_exceeded(self, used: usize) -> bool {
        let (Self::Body(limit) | Self::Line(limit)) = self;
        used > limit
    }
}

/// A body that ends with an error when it exceeds its limit.
struct Bounded {
    inner: Incoming,
    limit: Limit,
    used: usize,
}

impl hyper::body::Body for Bounded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(frame)) => frame,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return Poll::Pending,
        };
        if let Ok(frame) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.used = self.limit.count(self.used, data);
            if self.limit.is_exceeded(self.used) {
                return Poll::Ready(Some(Err(self.limit.error().into())));
            }
        }
        Poll::Ready(Some(frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A page has 500 objects, and an object at most 1.5 MiB (the limit of etcd), but rarely more than 50 KiB.
const MAX_PAGE: usize = 64 << 20;

/// An event has one object.
const MAX_EVENT: usize = 8 << 20;

/// The maximum body of an error.
const MAX_ERROR: usize = 64 << 10;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that nobody answers is found by TCP, in addition to the limits of requests and watches.
const KEEPALIVE: Duration = Duration::from_secs(15);
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The pages of a list share a connection. Later requests open a new one, which also finds a server that has moved.
const POOL_IDLE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_a_watch_applies_to_each_line() {
        let request =
            |query: &str| Request::builder().uri(format!("/api/v1/pods?{query}")).body(Body::empty()).unwrap();
        let watch = Limit::of(&request("watch=true&resourceVersion=5"));
        assert_eq!(watch, Limit::Line(MAX_EVENT));
        assert_eq!(Limit::of(&request("limit=500&labelSelector=watch%3Dtrue")), Limit::Body(MAX_PAGE));
        assert_eq!(watch.count(10, b"abc"), 13);
        assert_eq!(watch.count(10, b"abc\n"), 0);
        assert_eq!(watch.count(10, b"abc\nde\nf"), 1);
        assert_eq!(Limit::Body(9).count(10, b"abc\n"), 14);
        assert!(watch.is_exceeded(MAX_EVENT + 1) && !watch.is_exceeded(MAX_EVENT));
    }
}
