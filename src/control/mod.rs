//! The admin API's server: HTTP and JSON on a Unix socket.
//!
//! A request is parsed into an [`AdminRequest`] and sent over a bounded queue to the task that owns the state; the
//! [`AdminResponse`] comes back the same way. A slow or hostile caller occupies one of a few connections and never the server's
//! loop. `docs/ADMIN.md` describes the paths and their JSON.

pub(crate) mod accept;
pub(crate) mod draining;
pub(crate) mod http;
pub(crate) mod parameters;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod route;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::addr::ClientAddr;
use crate::config;
use crate::control::response::AdminResponse;
use crate::transport::unix_socket;
use crate::transport::unix_socket::{Access, UnixSocketFile};

/// What a caller wants to know, or to have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// How the program is.
    Status,
    /// Which certificates and sources are in use, by whom, and since when not.
    Rotation,
    /// The open sessions, of all listeners.
    Sessions,
    /// The end of one session.
    CloseSession(u64),
    /// A reload, now.
    Reload,
    /// What a reload would change.
    Plan {
        /// Of this configuration, an absolute path, instead of the program's own.
        file: Option<PathBuf>,
    },
    /// What would become of a connection.
    Explain {
        /// The listener it comes to.
        listener: String,
        /// Where it comes from.
        source: ClientAddr,
        /// The certificates it presents, leaf first.
        chain: Vec<CertificateDer<'static>>,
    },
}

/// An [`AdminRequest`] and the way its answer goes back. One dropped without an answer is told to the caller as a failure.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub ask: AdminRequest,
    /// Where the answer goes. The caller may have hung up by then, which is nobody's failure.
    pub answer: oneshot::Sender<AdminResponse>,
}

/// The socket, where there is one, and those who have called on it.
#[derive(Debug)]
pub struct Admin {
    requests: mpsc::Sender<Request>,
    open: Option<Open>,
    /// The loops behind this socket and former ones, which end once their last caller has its answer.
    loops: JoinSet<()>,
}

/// A socket that is accepted from.
#[derive(Debug)]
struct Open {
    /// Goes first: it knows its file by a number that is given anew once the socket is closed.
    socket_file: UnixSocketFile,
    /// Dropped to stop the loop.
    _running: watch::Sender<()>,
    _listener: Arc<UnixListener>,
}

/// What [`Admin::commit`] will do. Dropped, a socket that was made for it is gone again.
#[derive(Debug)]
pub struct Prepared(Step);

impl Prepared {
    /// Whether the socket stays as it is.
    pub fn is_empty(&self) -> bool {
        matches!(self.0, Step::Stay)
    }
}

#[derive(Debug)]
enum Step {
    Stay,
    Close,
    Open(UnixSocketFile, UnixListener),
}

impl Admin {
    /// Nowhere yet.
    pub fn new(requests: mpsc::Sender<Request>) -> Self {
        Self { requests, open: None, loops: JoinSet::new() }
    }

    /// Listens at `path`, and sends what callers ask to `requests`.
    ///
    /// # Errors
    /// When the socket cannot be had, in words that name it.
    pub fn start(path: &Path, requests: mpsc::Sender<Request>) -> io::Result<Self> {
        let mut admin = Self::new(requests);
        let prepared = admin.prepare(Some(&config::Admin { socket: path.to_owned() }))?;
        admin.commit(prepared);
        Ok(admin)
    }

    /// Gets ready to be where `wanted` says: here still, elsewhere, or nowhere.
    ///
    /// # Errors
    /// When the socket cannot be had, in words that name it. The one that is open goes on, either way.
    pub fn prepare(&self, wanted: Option<&config::Admin>) -> io::Result<Prepared> {
        let Some(config::Admin { socket }) = wanted else { return Ok(Prepared(Step::Close)) };
        // Somebody who tidied it away, or put another in its place, gets a new one with the next reload.
        if self.open.as_ref().is_some_and(|open| open.socket_file.is_at(socket) && open.socket_file.is_ours()) {
            return Ok(Prepared(Step::Stay));
        }
        let in_words =
            |error: io::Error| io::Error::new(error.kind(), format!("admin socket {}: {error}", socket.display()));
        let listen = || unix_socket::listen(socket, Access::PRIVATE, BACKLOG);
        let listening = listen().or_else(|error| {
            // A program that is stopping gives way: it accepts no clients any more, and keeps the socket only to say so.
            if error.kind() != io::ErrorKind::AddrInUse || !draining::is_draining(socket) {
                return Err(error);
            }
            std::fs::remove_file(socket)?;
            listen()
        });
        let (socket_file, listener) = listening.map_err(in_words)?;
        Ok(Prepared(Step::Open(socket_file, UnixListener::from_std(listener)?)))
    }

    /// Does what was prepared. Callers who are waiting for an answer get it from where they asked, also the one who has
    /// just moved the socket by a reload.
    pub fn commit(&mut self, prepared: Prepared) {
        match prepared.0 {
            Step::Stay => {}
            Step::Close => self.open = None,
            Step::Open(socket_file, listener) => self.open = Some(self.accept_from(socket_file, listener)),
        }
        while self.loops.try_join_next().is_some() {}
    }

    /// Ends it: the socket is gone when this returns, and callers had a moment to get their answers.
    pub async fn close(&mut self) {
        self.open = None;
        let all = async { while self.loops.join_next().await.is_some() {} };
        let _ = timeout(LAST_MOMENT, all).await;
        self.loops.shutdown().await;
    }

    fn accept_from(&mut self, socket_file: UnixSocketFile, listener: UnixListener) -> Open {
        let listener = Arc::new(listener);
        let (running, stopped) = watch::channel(());
        self.loops.spawn(accept::keep_accepting(Arc::clone(&listener), stopped, self.requests.clone()));
        Open { socket_file, _running: running, _listener: listener }
    }
}

/// What its faults are noted under.
pub(crate) const PART: &str = "control channel";

/// Callers the kernel keeps ready while the others have their answers.
const BACKLOG: i32 = 128;

/// How long callers may take to fetch their answers when the program ends.
const LAST_MOMENT: Duration = Duration::from_millis(500);
