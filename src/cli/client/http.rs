//! One HTTP request per connection.

use std::error::Error;
use std::io;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, IF_MATCH};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

/// A connection to the running program, with or without TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(crate) type BoxedStream = Box<dyn Stream>;

/// A request to the running program.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// Path and query. See [`encoded`] for names in it.
    pub(crate) target: &'a str,
    pub(crate) body: Option<&'a Value>,
    /// The entity tag that the object must still have, with its quotes.
    pub(crate) if_match: Option<&'a str>,
}

impl<'a> Call<'a> {
    pub(crate) const fn get(target: &'a str) -> Self {
        Self { method: Method::GET, target, body: None, if_match: None }
    }

    /// `host` is the value of the `Host` header.
    pub(crate) fn into_request(
        self,
        host: &str,
        authorization: Option<HeaderValue>,
    ) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let body = self.body.map(ToString::to_string).unwrap_or_default();
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.target)
            .header(HOST, host)
            .header(CONTENT_TYPE, "application/json");
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if let Some(tag) = self.if_match {
            request = request.header(IF_MATCH, tag);
        }
        request.body(Full::from(body))
    }
}

/// A path with the parameters that have a value.
pub(crate) fn with_query(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let given = parameters.iter().filter_map(|(key, value)| Some(format!("{key}={}", encoded((*value)?))));
    let query: Vec<_> = given.collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

/// Percent-encodes a name for a segment of a path or a value in a query.
pub(crate) fn encoded(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

/// A response whose body is still to be read.
#[derive(Debug)]
pub(crate) struct OpenResponse {
    pub(crate) response: Response<Incoming>,
    connection: Connection,
}

/// The task that moves the bytes of a connection. It ends when this is dropped.
#[derive(Debug)]
struct Connection(JoinSet<Result<(), hyper::Error>>);

impl Connection {
    /// The error of the connection is more specific than the error of the request.
    async fn error_or(mut self, error: hyper::Error) -> HttpError {
        match self.0.join_next().await {
            Some(Ok(Err(cause))) => HttpError(cause.into()),
            Some(Ok(Ok(())) | Err(_)) | None => HttpError(error.into()),
        }
    }
}

impl OpenResponse {
    /// Sends a request and waits for the head of the response.
    pub(crate) async fn request(stream: BoxedStream, request: Request<Full<Bytes>>) -> Result<Self, HttpError> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| HttpError(error.into()))?;
        let mut task = JoinSet::new();
        task.spawn(connection);
        let connection = Connection(task);
        match sender.send_request(request).await {
            Ok(response) => Ok(Self { response, connection }),
            Err(error) => Err(connection.error_or(error).await),
        }
    }

    /// Reads the body.
    pub(crate) async fn collect(self) -> Result<Bytes, HttpError> {
        let Self { response, connection } = self;
        let body = Limited::new(response.into_body(), MAX_REPLY).collect().await;
        match body.map_err(|error| error.downcast::<hyper::Error>()) {
            Ok(body) => Ok(body.to_bytes()),
            Err(Ok(error)) => Err(connection.error_or(*error).await),
            Err(Err(error)) => Err(HttpError(error)),
        }
    }

    /// The next bytes of the body; `None` at its end.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, HttpError>> {
        loop {
            match self.response.body_mut().frame().await? {
                Err(error) => return Some(Err(HttpError(error.into()))),
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
            }
        }
    }
}

/// Why a request failed after the connection was made.
#[derive(Debug)]
pub(crate) struct HttpError(Box<dyn Error + Send + Sync>);

impl HttpError {
    /// The error of TLS behind it.
    pub(crate) fn tls(&self) -> Option<&rustls::Error> {
        let mut next: Option<&(dyn Error + 'static)> = Some(&*self.0);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<io::Error>().and_then(rustls_error) {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

impl std::fmt::Display for HttpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The error that rustls wraps into an I/O error.
pub(crate) fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Bytes. Far above the list of all sessions of a large machine; limits the memory that a wrong server can use up.
const MAX_REPLY: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_has_the_given_parameters_encoded() {
        assert_eq!(with_query("/v1/x", &[("a", None)]), "/v1/x");
        assert_eq!(with_query("/v1/x", &[("a", Some("1/2")), ("b", None), ("c", Some("&"))]), "/v1/x?a=1%2F2&c=%26");
    }

    #[test]
    fn names_in_targets_are_encoded() {
        assert_eq!(encoded("cache-1/x?y&z=%\u{e4}"), "cache%2D1%2Fx%3Fy%26z%3D%25%C3%A4");
    }
}
