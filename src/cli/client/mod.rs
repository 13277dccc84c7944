//! The client of the admin API: sends one request at a time over the admin socket of the running program.

pub(crate) mod json_view;
pub(crate) mod reload;
pub(crate) mod rotation;
pub(crate) mod sessions;
pub(crate) mod status;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::cli::client::json_view::JsonView;
use crate::cli::{Failure, Running};
use crate::config::Config;

#[derive(Debug)]
pub(crate) struct AdminClient {
    socket: PathBuf,
    runtime: Runtime,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl AdminClient {
    /// Uses the socket of `--socket`, or else the one in the configuration.
    pub(crate) fn find(running: &Running) -> Result<Self, Failure> {
        Self::at(running.socket.as_deref(), &running.config.config)
    }

    /// Uses `socket`, or else the socket in the configuration file.
    pub(crate) fn at(socket: Option<&Path>, config: &Path) -> Result<Self, Failure> {
        let socket = match socket {
            Some(socket) => socket.to_owned(),
            None => configured_socket(config)?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::Failed(error.to_string()))?;
        Ok(Self { socket, runtime })
    }

    /// Sends a GET request and returns the body.
    pub(crate) fn get(&self, target: &str) -> Result<Value, Failure> {
        self.send(Method::GET, target, None)?.into_body()
    }

    /// Sends a request and waits for the reply.
    pub(crate) fn send(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Reply, Failure> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let exchange = async { timeout(REPLY_TIMEOUT, self.exchange(method, target, body)).await };
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

    async fn exchange(&self, method: Method, target: &str, body: String) -> Result<Reply, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let broken = |error: &dyn std::fmt::Display| {
            self.failure(format_args!("the program closed the connection: {error}; check its log"))
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, "portcullis")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .map_err(|error| self.failure(format_args!("invalid request target {target:?}: {error}")))?;
        let exchanged = async move {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_REPLY).collect().await;
            body.map(|body| (status, body.to_bytes())).map_err(|error| error.to_string())
        };
        let (connection, exchanged) = tokio::join!(connection, exchanged);
        // The error of the connection is more specific than the error of the request.
        let (status, body) = exchanged.map_err(|error| match connection {
            Err(cause) => broken(&cause),
            Ok(()) => broken(&error),
        })?;
        match serde_json::from_slice(&body) {
            Ok(body) => Ok(Reply { status, body }),
            Err(_) => Err(self.failure(format_args!(
                "the server at this socket is not Portcullis (status {status}, no JSON); correct the path"
            ))),
        }
    }

    /// Explains why the socket cannot be connected to, and how to fix it.
    fn unreachable(&self, error: &io::Error) -> Failure {
        let socket = self.socket.display();
        self.failure(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "no running program: there is no such socket. Start one that has [admin] listen = \"unix:{socket}\", \
                 or pass another socket with --socket"
            ),
            io::ErrorKind::ConnectionRefused => {
                "no running program: the one that created this socket has stopped. Start it again".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "permission denied: only root and the user of the running program may use it; run the command with sudo -u USER".to_owned()
            }
            io::ErrorKind::WouldBlock => "too many requests are pending; try again".to_owned(),
            _ => format!("cannot be connected to: {error}"),
        })
    }

    fn failure(&self, why: impl std::fmt::Display) -> Failure {
        Failure::file(&self.socket, why)
    }
}

impl Reply {
    /// Whether the status is 2xx.
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Returns the body of a success, or the error message as a failure.
    pub(crate) fn into_body(self) -> Result<Value, Failure> {
        if self.is_success() { Ok(self.body) } else { Err(Failure::Failed(self.message())) }
    }

    /// Returns the message of an error.
    pub(crate) fn message(&self) -> String {
        let message = JsonView(&self.body).lines("message");
        if message.is_empty() { format!("the program replied with status {}", self.status) } else { message.join("\n") }
    }
}

/// Reads the admin socket from the configuration. Other parts of the file may be invalid.
fn configured_socket(config: &Path) -> Result<PathBuf, Failure> {
    match Config::admin_of(config) {
        Ok(Some(admin)) => admin.socket().map(Path::to_owned).ok_or_else(|| Failure::file(config, NO_SOCKET)),
        Ok(None) => Err(Failure::file(
            config,
            "has no [admin] section, so a program that uses it has no admin socket. Add\n\n    \
             [admin]\n    listen = \"unix:/run/portcullis/admin.sock\"\n\n\
             and reload with SIGHUP, or pass the socket of another program with --socket",
        )),
        Err(problems) => {
            if !config.exists() {
                crate::cli::hint(&crate::cli::missing_configuration(config));
            }
            crate::cli::hint("use --socket PATH to reach a running program without a configuration file");
            Err(Failure::Configuration(problems))
        }
    }
}

const NO_SOCKET: &str =
    "has no Unix socket in admin.listen; use --url and a token, or add \"unix:/run/portcullis/admin.sock\"";

/// A reload of many large files takes seconds. The server times out a little earlier and reports the timeout.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes. Far above the list of all sessions of a large machine; limits the memory that a wrong server can use up.
const MAX_REPLY: usize = 256 << 20;
