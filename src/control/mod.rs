//! The admin API's server: HTTP and JSON on Unix sockets and TCP addresses.
//!
//! A request is authenticated, routed by the table in [`routes`] and parsed into an [`AdminRequest`]. It is sent over a bounded
//! queue to the task that owns the state; the [`AdminResponse`] returns the same way. A slow or hostile client occupies one of a
//! few connections and never blocks the loop of the server. `docs/ADMIN.md` describes the paths and their JSON.

pub(crate) mod accept;
pub(crate) mod access;
pub(crate) mod browser;
pub(crate) mod clients;
pub(crate) mod digitalocean;
pub(crate) mod draining;
pub(crate) mod encoding;
pub(crate) mod error;
pub(crate) mod event_stream;
pub(crate) mod exchange;
pub(crate) mod http;
pub(crate) mod openapi;
pub(crate) mod panel;
pub(crate) mod parameters;
pub(crate) mod rejected;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod route;
pub(crate) mod routes;
pub(crate) mod shared;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, UnixListener};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::info;

use crate::addr::{ListenAddr, TcpListenAddr};
use crate::audit::{Audit, LineFormat};
use crate::config::admin::Admin;
use crate::control::accept::{AdminSocket, Service};
use crate::control::access::Caller;
pub use crate::control::request::AdminRequest;
use crate::control::response::AdminResponse;
use crate::control::shared::Shared;
use crate::metrics::process::ProcessMetrics;
use crate::panel::site::HostNames;
use crate::tls::server::ServerTls;
use crate::token::Token;
use crate::token::last_use::LastUses;
use crate::transport::unix_socket;
use crate::transport::unix_socket::UnixSocketFile;

/// An [`AdminRequest`] with its reply channel. If it is dropped without a reply, the client receives an error.
#[derive(Debug)]
pub struct PendingRequest {
    pub request: AdminRequest,
    pub caller: Caller,
    /// The ID in the response, and in the audit event of a change.
    pub request_id: String,
    /// Sends the response. Sending fails if the client has disconnected, which is not an error.
    pub reply: oneshot::Sender<AdminResponse>,
}

/// The server of the admin addresses, of which there may be none.
#[derive(Debug)]
pub struct AdminServer {
    shared: Arc<Shared>,
    tls: watch::Sender<Option<Arc<ServerTls>>>,
    open: Vec<Open>,
    /// The accept loops of these addresses and former ones; each ends once its last client has its response.
    loops: JoinSet<()>,
}

/// A bound address. It is closed when it is dropped.
#[derive(Debug)]
struct Open {
    /// Dropped first: it identifies its file by the inode, which can be reused once the socket is closed.
    socket_file: Option<UnixSocketFile>,
    address: ListenAddr,
    /// Dropped to stop the accept loop.
    _running: watch::Sender<()>,
    _socket: Arc<AdminSocket>,
}

/// The settings that [`AdminServer::commit`] applies.
#[derive(Debug)]
pub struct Prepared {
    /// Each address, with its socket if it is not open yet.
    addresses: Vec<(ListenAddr, Option<NewSocket>)>,
    tokens: Arc<Vec<Token>>,
    tls: Option<Arc<ServerTls>>,
    panel_hosts: HostNames,
    is_empty: bool,
}

/// A socket that was bound for a change. Dropping it removes it.
#[derive(Debug)]
struct NewSocket {
    socket_file: Option<UnixSocketFile>,
    socket: AdminSocket,
}

impl Prepared {
    /// Whether all addresses stay unchanged.
    pub fn is_empty(&self) -> bool {
        self.is_empty
    }
}

impl AdminServer {
    /// A server without an address.
    pub(crate) fn new(requests: mpsc::Sender<PendingRequest>, audit: Audit, metrics: Arc<ProcessMetrics>) -> Self {
        let shared = Shared::new(requests, audit, metrics);
        Self { shared: Arc::new(shared), tls: watch::Sender::new(None), open: Vec::new(), loops: JoinSet::new() }
    }

    /// Listens on the Unix socket `path` and sends requests to `requests`.
    ///
    /// # Errors
    /// If the socket cannot be created; the error names it.
    pub fn start(path: &Path, requests: mpsc::Sender<PendingRequest>) -> io::Result<Self> {
        let audit = Audit::start(LineFormat::Text, None);
        let mut server = Self::new(requests, audit, Arc::default());
        let prepared = server.prepare(Some(&Admin::at_socket(path)), None, Vec::new())?;
        server.commit(prepared);
        Ok(server)
    }

    /// When and from where each token was last used.
    pub(crate) fn last_uses(&self) -> Arc<LastUses> {
        self.shared.access.last_uses()
    }

    /// Prepares the change to `settings`: opens the addresses that are not open yet. A browser may open the panel under the
    /// names `panel_hosts`.
    ///
    /// # Errors
    /// If an address cannot be opened; the error names it. All open addresses stay open.
    pub fn prepare(
        &self,
        settings: Option<&Admin>,
        tls: Option<Arc<ServerTls>>,
        panel_hosts: Vec<String>,
    ) -> io::Result<Prepared> {
        let wanted = settings.map(|admin| admin.listen.as_slice()).unwrap_or_default();
        let mut is_empty = wanted.len() == self.open.len();
        let mut addresses = Vec::with_capacity(wanted.len());
        for address in wanted {
            // If a socket file was removed or replaced, create a new one.
            let is_kept = self
                .open
                .iter()
                .any(|open| open.address == *address && open.socket_file.as_ref().is_none_or(UnixSocketFile::is_ours));
            is_empty &= is_kept;
            let socket = if is_kept { None } else { Some(open(address)?) };
            addresses.push((address.clone(), socket));
        }
        let tokens = settings.map(|admin| Arc::clone(&admin.tokens)).unwrap_or_default();
        let panel_hosts = HostNames::new(panel_hosts);
        Ok(Prepared { addresses, tokens, tls, panel_hosts, is_empty })
    }

    /// Applies the prepared change. Clients of previous addresses still receive their responses, including the client whose
    /// reload moved the address.
    pub fn commit(&mut self, prepared: Prepared) {
        let Prepared { addresses, tokens, tls, panel_hosts, is_empty: _ } = prepared;
        self.shared.access.set_panel_hosts(panel_hosts);
        self.shared.access.set_tokens(&tokens);
        self.tls.send_replace(tls);
        let mut former = std::mem::take(&mut self.open);
        for (address, socket) in addresses {
            let known = former.iter().position(|open| open.address == address);
            let known = known.map(|index| former.swap_remove(index));
            let open = match socket {
                Some(socket) => Some(self.accept_from(address, socket)),
                None => known,
            };
            self.open.extend(open);
        }
        while self.loops.try_join_next().is_some() {}
    }

    /// Closes all addresses and gives clients a short time to read their responses.
    pub async fn close(&mut self) {
        self.open.clear();
        let all = async { while self.loops.join_next().await.is_some() {} };
        let _ = timeout(CLOSE_TIMEOUT, all).await;
        self.loops.shutdown().await;
    }

    fn accept_from(&mut self, address: ListenAddr, socket: NewSocket) -> Open {
        let NewSocket { socket_file, socket } = socket;
        let (running, stopped) = watch::channel(());
        let socket = Arc::new(socket);
        let service = Service { shared: Arc::clone(&self.shared), tls: self.tls.subscribe(), limiter: Arc::default() };
        info!(%address, "admin address open");
        self.loops.spawn(accept::keep_accepting(Arc::downgrade(&socket), Arc::new(service), stopped));
        Open { socket_file, address, _running: running, _socket: socket }
    }
}

fn open(address: &ListenAddr) -> io::Result<NewSocket> {
    match address {
        ListenAddr::Unix(path) => open_unix(path),
        ListenAddr::Tcp(address) => open_tcp(address),
    }
}

fn open_unix(path: &Path) -> io::Result<NewSocket> {
    let with_path =
        |error: io::Error| io::Error::new(error.kind(), format!("admin socket {}: {error}", path.display()));
    let listen = || unix_socket::listen(path, unix_socket::Access::PRIVATE, BACKLOG);
    let listening = listen().or_else(|error| {
        // Take the socket over from a draining program, which serves it only to report that it is draining.
        if error.kind() != io::ErrorKind::AddrInUse || !draining::is_draining(path) {
            return Err(error);
        }
        std::fs::remove_file(path)?;
        listen()
    });
    let (socket_file, listener) = listening.map_err(with_path)?;
    let socket = AdminSocket::Unix(UnixListener::from_std(listener)?);
    Ok(NewSocket { socket_file: Some(socket_file), socket })
}

fn open_tcp(address: &TcpListenAddr) -> io::Result<NewSocket> {
    let with_address = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    let listen = || {
        let socket = if address.socket.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address.socket)?;
        socket.listen(BACKLOG.unsigned_abs())
    };
    let socket = AdminSocket::Tcp(listen().map_err(with_address)?);
    Ok(NewSocket { socket_file: None, socket })
}

/// The name of this part in internal faults.
pub(crate) const PART: &str = "admin API";

/// Connections that the kernel holds while others are served.
const BACKLOG: i32 = 128;

/// How long clients may take to read their responses when the program stops.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
