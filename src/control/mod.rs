//! The admin API's server: HTTP and JSON on a Unix socket.
//!
//! A request is parsed into an [`AdminRequest`] and sent over a bounded queue to the task that owns the state; the
//! [`AdminResponse`] returns the same way. A slow or hostile client occupies one of a few connections and never blocks the
//! loop of the server. `docs/ADMIN.md` describes the paths and their JSON.

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
use crate::config::admin::Admin;
use crate::control::response::AdminResponse;
use crate::transport::unix_socket;
use crate::transport::unix_socket::{Access, UnixSocketFile};

/// A parsed request of the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// The state of the program.
    Status,
    /// Certificates, CAs and sources with their use.
    Rotation,
    /// The sessions of all listeners.
    Sessions,
    /// Close one session, by its ID.
    CloseSession(u64),
    /// Reload the configuration.
    Reload,
    /// Show what a reload would change.
    Plan {
        /// Absolute path of another configuration file.
        file: Option<PathBuf>,
    },
    /// Explain whether a connection would be admitted.
    Explain {
        /// Name of the listener.
        listener: String,
        /// Address of the client.
        source: ClientAddr,
        /// Client certificate chain, leaf first; may be empty.
        chain: Vec<CertificateDer<'static>>,
    },
}

/// An [`AdminRequest`] with its reply channel. If it is dropped without a reply, the client receives an error.
#[derive(Debug)]
pub struct PendingRequest {
    pub request: AdminRequest,
    /// Sends the response. Sending fails if the client has disconnected, which is not an error.
    pub reply: oneshot::Sender<AdminResponse>,
}

/// The server of the admin socket, which may be closed.
#[derive(Debug)]
pub struct AdminServer {
    requests: mpsc::Sender<PendingRequest>,
    open: Option<Open>,
    /// The accept loops of this socket and former ones; each ends once its last client has its response.
    loops: JoinSet<()>,
}

#[derive(Debug)]
struct Open {
    /// Dropped first: it identifies its file by the inode, which can be reused once the socket is closed.
    socket_file: UnixSocketFile,
    /// Dropped to stop the accept loop.
    _running: watch::Sender<()>,
    _listener: Arc<UnixListener>,
}

/// The change that [`AdminServer::commit`] applies. Dropping it removes a socket that was created for it.
#[derive(Debug)]
pub struct Prepared(Step);

impl Prepared {
    /// Whether the socket stays unchanged.
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

impl AdminServer {
    /// A server without a socket.
    pub fn new(requests: mpsc::Sender<PendingRequest>) -> Self {
        Self { requests, open: None, loops: JoinSet::new() }
    }

    /// Listens on the Unix socket `path` and sends requests to `requests`.
    ///
    /// # Errors
    /// If the socket cannot be created; the error names it.
    pub fn start(path: &Path, requests: mpsc::Sender<PendingRequest>) -> io::Result<Self> {
        let mut admin = Self::new(requests);
        let prepared = admin.prepare_socket(Some(path))?;
        admin.commit(prepared);
        Ok(admin)
    }

    /// Prepares the change to `settings`: the same socket, another one, or none.
    ///
    /// # Errors
    /// If the socket cannot be created; the error names it. The open socket stays open.
    pub fn prepare(&self, settings: Option<&Admin>) -> io::Result<Prepared> {
        self.prepare_socket(settings.and_then(Admin::socket))
    }

    fn prepare_socket(&self, socket: Option<&Path>) -> io::Result<Prepared> {
        let Some(socket) = socket else { return Ok(Prepared(Step::Close)) };
        // If the socket file was removed or replaced, create a new one.
        if self.open.as_ref().is_some_and(|open| open.socket_file.is_at(socket) && open.socket_file.is_ours()) {
            return Ok(Prepared(Step::Stay));
        }
        let with_path =
            |error: io::Error| io::Error::new(error.kind(), format!("admin socket {}: {error}", socket.display()));
        let listen = || unix_socket::listen(socket, Access::PRIVATE, BACKLOG);
        let listening = listen().or_else(|error| {
            // Take the socket over from a draining program, which serves it only to report that it is draining.
            if error.kind() != io::ErrorKind::AddrInUse || !draining::is_draining(socket) {
                return Err(error);
            }
            std::fs::remove_file(socket)?;
            listen()
        });
        let (socket_file, listener) = listening.map_err(with_path)?;
        Ok(Prepared(Step::Open(socket_file, UnixListener::from_std(listener)?)))
    }

    /// Applies the prepared change. Clients of the previous socket still receive their responses, including the client
    /// whose reload moved the socket.
    pub fn commit(&mut self, prepared: Prepared) {
        match prepared.0 {
            Step::Stay => {}
            Step::Close => self.open = None,
            Step::Open(socket_file, listener) => self.open = Some(self.accept_from(socket_file, listener)),
        }
        while self.loops.try_join_next().is_some() {}
    }

    /// Removes the socket and gives clients a short time to read their responses.
    pub async fn close(&mut self) {
        self.open = None;
        let all = async { while self.loops.join_next().await.is_some() {} };
        let _ = timeout(CLOSE_TIMEOUT, all).await;
        self.loops.shutdown().await;
    }

    fn accept_from(&mut self, socket_file: UnixSocketFile, listener: UnixListener) -> Open {
        let listener = Arc::new(listener);
        let (running, stopped) = watch::channel(());
        self.loops.spawn(accept::keep_accepting(Arc::clone(&listener), stopped, self.requests.clone()));
        Open { socket_file, _running: running, _listener: listener }
    }
}

/// The name of this part in internal faults.
pub(crate) const PART: &str = "admin socket";

/// Connections that the kernel holds while others are served.
const BACKLOG: i32 = 128;

/// How long clients may take to read their responses when the program stops.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
