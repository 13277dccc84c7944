//! The answers on `[admin] metrics`: `/metrics`, `/healthz` and `/readyz`, without a token.

use std::sync::Arc;

use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Response, StatusCode};

use crate::fault;
use crate::metrics::exposition::{Sources, render};

/// Answers one request. `accept` is its `Accept` header.
///
/// A scrape is rendered on a thread of the blocking pool, so it delays neither connections nor the loop of the server.
pub(crate) async fn respond(
    sources: &Arc<Sources>,
    method: &Method,
    path: &str,
    accept: Option<&str>,
) -> Response<String> {
    let is_known = matches!(path, "/metrics" | "/healthz" | "/readyz");
    if !is_known {
        return plain(StatusCode::NOT_FOUND, "not found; this address serves /metrics, /healthz and /readyz");
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed; use GET");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/metrics" => scrape(Arc::clone(sources), accept.map(str::to_owned)).await,
        "/readyz" => match sources.process.readiness.check() {
            Ok(()) => plain(StatusCode::OK, "ready"),
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        _ => plain(StatusCode::OK, "ok"),
    }
}

async fn scrape(sources: Arc<Sources>, accept: Option<String>) -> Response<String> {
    let rendered = fault::contained_blocking(PART, move || render(&sources, accept.as_deref())).await;
    match rendered {
        Ok(Ok((content_type, body))) => with_type(StatusCode::OK, content_type, body),
        Ok(Err(_)) | Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "internal fault; see the log"),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<String> {
    with_type(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn with_type(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The name of this part in internal faults.
pub(crate) const PART: &str = "metrics";
