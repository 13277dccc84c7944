//! One bound address, TCP or a Unix socket, and what is accepted from it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::Notify;

use crate::addr::{ClientAddr, TcpListenAddr};
use crate::source::packet_filter::PacketFilter;
use crate::transport::listen_socket::ListenSocket;
use crate::transport::socket::{AcceptedSocket, keep_alive};
use crate::transport::unix_socket;
use crate::transport::unix_socket::{Access, UnixSocketFile};

/// A bound socket.
#[derive(Debug)]
pub(crate) enum BoundSocket {
    Tcp(Arc<ListenSocket>),
    /// With its file, which goes first.
    Unix(UnixSocketFile, UnixListener),
}

impl BoundSocket {
    /// Binds a port; `shared` where a socket that is about to leave still has it. It is behind `filter` from the first client
    /// on, and rings `alarm` for strangers.
    pub(crate) fn tcp(
        address: &TcpListenAddr,
        shared: bool,
        filter: Option<&PacketFilter>,
        alarm: &Arc<Notify>,
        dead_peer_timeout: Duration,
    ) -> io::Result<Self> {
        let domain = if address.socket.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        if address.socket.is_ipv6() {
            // Said either way, so that net.ipv6.bindv6only does not decide.
            socket.set_only_v6(address.ipv6_only)?;
        }
        // Sessions of a former process in TIME_WAIT must not keep a restart waiting.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_port(shared)?;
        // Accepted sockets inherit it: said once, and not for every client.
        keep_alive(&socket, dead_peer_timeout)?;
        socket.bind(&address.socket.into())?;
        let port = ListenSocket::listen(socket, BACKLOG, filter, alarm)?;
        // Only for the moment: two portcullis processes must never share a port unnoticed.
        SockRef::from(port.socket()).set_reuse_port(false)?;
        Ok(Self::Tcp(Arc::new(port)))
    }

    /// Makes a Unix socket.
    pub(crate) fn unix(path: &Path, access: Access) -> io::Result<Self> {
        let (socket_file, listener) = unix_socket::listen(path, access, BACKLOG)?;
        Ok(Self::Unix(socket_file, listener))
    }

    /// Takes a client that waits.
    pub(crate) fn accept(&self) -> io::Result<(AcceptedSocket, ClientAddr)> {
        match self {
            Self::Tcp(port) => {
                let (stream, from) = port.accept()?;
                Ok((AcceptedSocket::Tcp(stream), ClientAddr::new(from)))
            }
            Self::Unix(_, listener) => {
                let (stream, _) = listener.accept()?;
                Ok((AcceptedSocket::Unix(stream), ClientAddr::UNIX))
            }
        }
    }

    /// The port that the kernel has chosen, with its address, or the one that was asked for.
    pub(crate) fn port(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(port) => port.socket().local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// What the shields look after.
    pub(crate) fn shielded_socket(&self) -> Option<&Arc<ListenSocket>> {
        match self {
            Self::Tcp(port) => Some(port),
            Self::Unix(..) => None,
        }
    }

    /// The file, where it is one.
    pub(crate) fn socket_file(&self) -> Option<&UnixSocketFile> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(socket_file, _) => Some(socket_file),
        }
    }

    /// Has clients accepted from now on looked after by keepalive for this long.
    pub(crate) fn keep_alive(&self, dead_peer_timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(port) => keep_alive(port.socket(), dead_peer_timeout),
            Self::Unix(..) => Ok(()),
        }
    }

    /// Lets, or no longer lets, another socket of this user be bound to the same port.
    pub(crate) fn share_port(&self, shared: bool) {
        if let Self::Tcp(port) = self {
            // Where it fails the bind that follows fails too, and says why.
            let _ = SockRef::from(port.socket()).set_reuse_port(shared);
        }
    }
}

impl AsRawFd for BoundSocket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(port) => port.as_raw_fd(),
            Self::Unix(_, listener) => listener.as_raw_fd(),
        }
    }
}

/// Connections the kernel keeps ready; it caps this at net.core.somaxconn.
pub(crate) const BACKLOG: i32 = 4096;
