//! The client of the admin API: sends one request at a time to the running program.

pub(crate) mod access_token;
pub(crate) mod args;
pub(crate) mod certificates;
pub(crate) mod denials;
pub(crate) mod events;
pub(crate) mod fleet;
pub(crate) mod http;
pub(crate) mod issued;
pub(crate) mod json_view;
pub(crate) mod listeners;
pub(crate) mod members;
pub(crate) mod pins;
pub(crate) mod reload;
pub(crate) mod remote;
pub(crate) mod reply;
pub(crate) mod rotation;
pub(crate) mod server_events;
pub(crate) mod sessions;
pub(crate) mod socket;
pub(crate) mod sources;
pub(crate) mod status;
pub(crate) mod tls;
pub(crate) mod tokens;
pub(crate) mod url;

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, ETAG};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::cli::Failure;
use crate::cli::client::args::Running;
use crate::cli::client::http::{BoxedStream, Call, HttpError, OpenResponse};
use crate::cli::client::json_view::JsonView;
use crate::cli::client::remote::Remote;
use crate::cli::client::reply::Reply;
use crate::cli::client::socket::AdminSocket;
use crate::issuing::bundle::NOT_AFTER_HEADER;

#[derive(Debug)]
pub(crate) struct AdminClient {
    program: Program,
    runtime: Runtime,
}

/// Where the running program is.
#[derive(Debug)]
enum Program {
    Socket(AdminSocket),
    Remote(Box<Remote>),
}

impl AdminClient {
    /// Uses `--url` or `--socket`, or else the socket in the configuration.
    pub(crate) fn find(running: &Running) -> Result<Self, Failure> {
        match &running.remote.url {
            Some(url) => Self::new(Program::Remote(Box::new(Remote::new(url, &running.remote)?))),
            None => Self::at(running.socket.as_deref(), &running.config.config),
        }
    }

    /// Uses `socket`, or else the socket in the configuration file.
    pub(crate) fn at(socket: Option<&Path>, config: &Path) -> Result<Self, Failure> {
        Self::new(Program::Socket(AdminSocket::find(socket, config)?))
    }

    fn new(program: Program) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { program, runtime: runtime.map_err(|error| Failure::Failed(error.to_string()))? })
    }

    /// Sends a GET request and returns the body.
    pub(crate) fn get(&self, target: &str) -> Result<Value, Failure> {
        self.call(Call::get(target))?.into_body()
    }

    /// Sends a request and waits for the reply.
    pub(crate) fn send(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Reply, Failure> {
        self.call(Call { method, target, body, if_match: None })
    }

    /// Sends a request and waits for the reply.
    ///
    /// # Errors
    /// Without a reply, or if the program rejects the caller: statuses 401, 403 and 429.
    pub(crate) fn call(&self, call: Call<'_>) -> Result<Reply, Failure> {
        let exchange = async { timeout(REPLY_TIMEOUT, self.exchange(call)).await };
        let reply = self.runtime.block_on(exchange).unwrap_or_else(|_| {
            Err(self.failure(format_args!("the program did not reply within {REPLY_TIMEOUT:?}; check its log")))
        })?;
        if let Some(draining) = reply.body.get("draining") {
            let until = JsonView(draining).text_or_dash("until");
            crate::cli::hint(&format!(
                "draining: the program is stopping and closes the remaining sessions at {until}"
            ));
        }
        Ok(reply)
    }

    /// Sends a request whose success is a file of this type.
    pub(crate) fn download(&self, call: Call<'_>, content_type: &str) -> Result<Download, Failure> {
        let exchange = async {
            let opened = self.request(call).await?;
            if !opened.response.status().is_success() {
                self.read(opened).await?.into_listener_body()?;
                return Err(self.failure("the reply is neither a file nor an error; check the version of the program"));
            }
            let is_expected = opened.response.headers().get(CONTENT_TYPE).is_some_and(|found| found == content_type);
            if !is_expected {
                return Err(
                    self.failure(format_args!("the reply is not of the type {content_type}; check the address"))
                );
            }
            let not_after =
                opened.response.headers().get(NOT_AFTER_HEADER).and_then(|end| end.to_str().ok()).map(str::to_owned);
            let bytes = opened.collect().await.map_err(|error| self.broken(&error))?;
            Ok(Download { bytes, not_after })
        };
        let exchange = async { timeout(REPLY_TIMEOUT, exchange).await };
        self.runtime.block_on(exchange).unwrap_or_else(|_| {
            Err(self.failure(format_args!("the program did not reply within {REPLY_TIMEOUT:?}; check its log")))
        })
    }

    /// Runs a future that uses [`open`](Self::open).
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Sends a request whose response has a body that is read while it arrives. A response with an error is a failure.
    pub(crate) async fn open(&self, call: Call<'_>) -> Result<OpenResponse, Failure> {
        let opened = async { timeout(REPLY_TIMEOUT, self.request(call)).await };
        let opened = opened.await.unwrap_or_else(|_| {
            Err(self.failure(format_args!("the program did not reply within {REPLY_TIMEOUT:?}; check its log")))
        })?;
        if opened.response.status().is_success() {
            return Ok(opened);
        }
        let reply = self.read(opened).await?;
        Err(Failure::Failed(reply.message()))
    }

    async fn exchange(&self, call: Call<'_>) -> Result<Reply, Failure> {
        let opened = self.request(call).await?;
        self.read(opened).await
    }

    async fn request(&self, call: Call<'_>) -> Result<OpenResponse, Failure> {
        let target = call.target;
        let request = match &self.program {
            Program::Socket(_) => call.into_request("portcullis", None),
            Program::Remote(remote) => {
                call.into_request(&remote.url.authority(), Some(remote.token.authorization.clone()))
            }
        };
        let request =
            request.map_err(|error| self.failure(format_args!("invalid request target {target:?}: {error}")))?;
        let stream = self.connect().await?;
        OpenResponse::request(stream, request).await.map_err(|error| self.broken(&error))
    }

    async fn read(&self, opened: OpenResponse) -> Result<Reply, Failure> {
        let status = opened.response.status().as_u16();
        let etag = opened.response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let body = opened.collect().await.map_err(|error| self.broken(&error))?;
        let body = match (body.is_empty(), serde_json::from_slice(&body)) {
            (true, _) => Value::Null,
            (false, Ok(body)) => body,
            (false, Err(_)) => {
                return Err(self.failure(format_args!(
                    "the server there is not Portcullis (status {status}, no JSON); correct the address"
                )));
            }
        };
        let reply = Reply { status, etag, body };
        match self.rejection(&reply) {
            Some(failure) => Err(failure),
            None => Ok(reply),
        }
    }

    /// The failure of a caller that the program does not accept. The message names which token was sent.
    fn rejection(&self, reply: &Reply) -> Option<Failure> {
        let Program::Remote(remote) = &self.program else { return None };
        let (origin, message) = (&remote.token.origin, reply.message());
        let why = match reply.status {
            401 => format!(
                "{origin} is not accepted: it is unknown, revoked or expired, or may not be used from this address; set \
                 another one"
            ),
            403 => format!("{origin} is not allowed to do this: {message}; use a token with that role"),
            429 => message,
            _ => return None,
        };
        Some(remote.failure(why))
    }

    async fn connect(&self) -> Result<BoxedStream, Failure> {
        match &self.program {
            Program::Socket(socket) => socket.connect().await,
            Program::Remote(remote) => remote.connect().await,
        }
    }

    /// The failure of a connection that ended early.
    pub(crate) fn broken(&self, error: &HttpError) -> Failure {
        match (&self.program, error.tls()) {
            // With TLS 1.3, the server rejects a client certificate after the handshake of the client.
            (Program::Remote(remote), Some(tls)) => remote.failure(tls::explain(tls, &remote.url.host)),
            (Program::Remote(remote), None) if remote.is_plain() => remote.failure(format_args!(
                "the program closed the connection: {error}; check its log. If it uses TLS, use https://"
            )),
            _ => self.failure(format_args!("the program closed the connection: {error}; check its log")),
        }
    }

    pub(crate) fn failure(&self, why: impl Display) -> Failure {
        match &self.program {
            Program::Socket(socket) => socket.failure(why),
            Program::Remote(remote) => remote.failure(why),
        }
    }
}

/// A file that the program sends.
#[derive(Debug)]
pub(crate) struct Download {
    pub(crate) bytes: Bytes,
    /// When the certificate in it expires (RFC 3339).
    pub(crate) not_after: Option<String>,
}

/// A change of 100,000 rules takes half a minute on a small machine that is busy. The server times out a little earlier and
/// reports the timeout.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
