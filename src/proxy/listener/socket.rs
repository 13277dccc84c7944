//! A bound TCP or Unix socket.

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

#[derive(Debug)]
pub(crate) enum BoundSocket {
    Tcp(Arc<ListenSocket>),
    /// The file is dropped before the socket.
    Unix(UnixSocketFile, UnixListener),
}

impl BoundSocket {
    /// Binds a TCP address and listens. `shared` means that a socket of the previous policy still has the port. `filter`
    /// applies from the first client on, and `alarm` is notified of untrusted sources.
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
            // Always set, so that net.ipv6.bindv6only has no effect.
            socket.set_only_v6(address.ipv6_only)?;
        }
        // Connections of a former process in TIME_WAIT must not block a restart.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_port(shared)?;
        // Accepted sockets inherit the setting.
        keep_alive(&socket, dead_peer_timeout)?;
        socket.bind(&address.socket.into())?;
        let socket = ListenSocket::listen(socket, BACKLOG, filter, alarm)?;
        // Reset at once: two portcullis processes must never share a port by accident.
        SockRef::from(socket.socket()).set_reuse_port(false)?;
        Ok(Self::Tcp(Arc::new(socket)))
    }

    pub(crate) fn unix(path: &Path, access: Access) -> io::Result<Self> {
        let (socket_file, listener) = unix_socket::listen(path, access, BACKLOG)?;
        Ok(Self::Unix(socket_file, listener))
    }

    /// Accepts a client from the backlog.
    pub(crate) fn accept(&self) -> io::Result<(AcceptedSocket, ClientAddr)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept()?;
                Ok((AcceptedSocket::Tcp(stream), ClientAddr::new(peer)))
            }
            Self::Unix(_, listener) => {
                let (stream, _) = listener.accept()?;
                Ok((AcceptedSocket::Unix(stream), ClientAddr::UNIX))
            }
        }
    }

    /// The bound TCP address, with the port that the kernel chose for port 0.
    pub(crate) fn tcp_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.socket().local_addr().ok(),
            Self::Unix(..) => None,
        }
    }

    /// The socket that a shield can filter. `None` for a Unix socket.
    pub(crate) fn shielded_socket(&self) -> Option<&Arc<ListenSocket>> {
        match self {
            Self::Tcp(socket) => Some(socket),
            Self::Unix(..) => None,
        }
    }

    /// `None` for a TCP socket.
    pub(crate) fn socket_file(&self) -> Option<&UnixSocketFile> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(socket_file, _) => Some(socket_file),
        }
    }

    /// Sets the keepalive of the clients accepted from now on.
    pub(crate) fn keep_alive(&self, dead_peer_timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => keep_alive(socket.socket(), dead_peer_timeout),
            Self::Unix(..) => Ok(()),
        }
    }

    /// Sets whether another socket of this user can be bound to the same port.
    pub(crate) fn share_port(&self, shared: bool) {
        if let Self::Tcp(socket) = self {
            // If this fails, the following bind fails too and reports the error.
            let _ = SockRef::from(socket.socket()).set_reuse_port(shared);
        }
    }
}

impl AsRawFd for BoundSocket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(socket) => socket.as_raw_fd(),
            Self::Unix(_, listener) => listener.as_raw_fd(),
        }
    }
}

/// Connections that the kernel queues. It caps the number at net.core.somaxconn.
pub(crate) const BACKLOG: i32 = 4096;
