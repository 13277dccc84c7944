//! The running program, as the commands reach it: one question at a time over its admin socket.

pub(crate) mod reading;
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

use crate::cli::client::reading::Reading;
use crate::cli::{Failure, Running};
use crate::config::Config;

/// The way to the running program.
#[derive(Debug)]
pub(crate) struct Control {
    socket: PathBuf,
    runtime: Runtime,
}

/// What it said.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Control {
    /// Finds the socket: the one that is named, or else the one of the configuration.
    pub(crate) fn find(running: &Running) -> Result<Self, Failure> {
        Self::at(running.socket.as_deref(), &running.config.config)
    }

    /// The same for a socket that may be named and a configuration.
    pub(crate) fn at(socket: Option<&Path>, config: &Path) -> Result<Self, Failure> {
        let socket = match socket {
            Some(socket) => socket.to_owned(),
            None => socket_of(config)?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::Failed(error.to_string()))?;
        Ok(Self { socket, runtime })
    }

    /// What there is at `target`.
    pub(crate) fn get(&self, target: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, target, None)?.done()
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Reply, Failure> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let answered = async { timeout(PATIENCE, self.exchange(method, target, body)).await };
        let reply = self.runtime.block_on(answered).unwrap_or_else(|_| {
            Err(self.failure(format_args!("the program has not answered within {PATIENCE:?}; its log may say why")))
        })?;
        if let Some(draining) = reply.body.get("draining") {
            let until = Reading(draining).text_or_dash("until");
            crate::cli::hint(&format!(
                "draining: the program is stopping, and ends the sessions that are left at {until}"
            ));
        }
        Ok(reply)
    }

    async fn exchange(&self, method: Method, target: &str, body: String) -> Result<Reply, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let broken = |error: &dyn std::fmt::Display| self.failure(format_args!("the program hung up: {error}"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, "portcullis")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .map_err(|error| self.failure(format_args!("{target:?} cannot be asked for: {error}")))?;
        let exchanged = async move {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            body.map(|body| (status, body.to_bytes())).map_err(|error| error.to_string())
        };
        let (connection, exchanged) = tokio::join!(connection, exchanged);
        // The connection knows better why there was no answer.
        let (status, body) = exchanged.map_err(|error| match connection {
            Err(cause) => broken(&cause),
            Ok(()) => broken(&error),
        })?;
        match serde_json::from_slice(&body) {
            Ok(body) => Ok(Reply { status, body }),
            Err(_) => Err(self.failure(format_args!("what answered (status {status}) is not Portcullis"))),
        }
    }

    /// Why there is no connection, and what to do about it.
    fn unreachable(&self, error: &io::Error) -> Failure {
        let socket = self.socket.display();
        self.failure(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "no running program: there is no such socket. Start one whose [admin] says listen = \"unix:{socket}\", \
                 or name another socket with --socket"
            ),
            io::ErrorKind::ConnectionRefused => {
                "no running program: the one that made this socket has ended. Start it again".to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "permission denied: only the user the program runs as may use it, and root; try sudo -u".to_owned()
            }
            io::ErrorKind::WouldBlock => "too many others are asking at the moment; try again".to_owned(),
            _ => format!("cannot be connected to: {error}"),
        })
    }

    fn failure(&self, why: impl std::fmt::Display) -> Failure {
        Failure::file(&self.socket, why)
    }
}

impl Reply {
    /// Whether it was done, found or planned.
    pub(crate) fn is_done(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// What was asked for, or why not.
    pub(crate) fn done(self) -> Result<Value, Failure> {
        if self.is_done() { Ok(self.body) } else { Err(Failure::Failed(self.message())) }
    }

    /// The words of an error.
    pub(crate) fn message(&self) -> String {
        let message = Reading(&self.body).lines("message");
        if message.is_empty() {
            format!("the program answered with status {}", self.status)
        } else {
            message.join("\n")
        }
    }
}

/// The socket that a configuration names. The rest of the file may be as wrong as it likes.
fn socket_of(config: &Path) -> Result<PathBuf, Failure> {
    match Config::admin_of(config) {
        Ok(Some(admin)) => Ok(admin.socket),
        Ok(None) => Err(Failure::file(
            config,
            "has no [admin], so a program that runs with it cannot be talked to. Add\n\n    \
             [admin]\n    listen = \"unix:/run/portcullis/admin.sock\"\n\n\
             and reload with SIGHUP; or name the socket of another program with --socket",
        )),
        Err(problems) => {
            if !config.exists() {
                crate::cli::hint(&crate::cli::no_configuration(config));
            }
            crate::cli::hint("--socket PATH names the running program's socket without a configuration");
            Err(Failure::Configuration(problems))
        }
    }
}

/// A reload of many large files takes seconds. The program itself gives up a little earlier, and says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// Far above the list of all sessions of a large machine; bounds what a wrong socket can make this program hold.
const MAX_ANSWER: usize = 256 << 20;
