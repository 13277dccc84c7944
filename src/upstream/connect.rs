//! Connects to one address: name resolution, TCP, Unix sockets.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use crate::addr::UpstreamAddr;
use crate::descriptors::{is_local_shortage, shortage};
use crate::fault;
use crate::transport::socket::{Socket, keep_alive};
use crate::upstream::Upstream;
use crate::upstream::endpoint::{ConfiguredAddress, Endpoint};

/// Resolves a configured address by `deadline`. Ejected endpoints come last and, with `needs_primary`, replicas after the
/// others. A name is resolved again each time.
pub(crate) async fn resolve(
    configured: &Arc<ConfiguredAddress>,
    upstream: &Upstream,
    deadline: Instant,
    needs_primary: bool,
) -> io::Result<Vec<Endpoint>> {
    let sockets = match configured.address() {
        UpstreamAddr::Unix(_) => vec![None],
        UpstreamAddr::Tcp { host, port } => within(deadline, look_up(host, *port, &upstream.resolving)).await?,
    };
    Ok(configured.set_resolved(&sockets, needs_primary))
}

/// Connects to exactly this endpoint.
pub(crate) async fn connect(endpoint: &Endpoint, upstream: &Upstream, deadline: Instant) -> io::Result<Socket> {
    match (endpoint.socket, endpoint.configured.address()) {
        (Some(address), _) => {
            let connected = within(deadline, TcpStream::connect(address)).await;
            let stream = connected.map_err(|error| explain_unavailable(address, error))?;
            keep_alive(&stream, upstream.dead_peer_timeout)?;
            Ok(Socket::Tcp(stream))
        }
        (None, UpstreamAddr::Unix(path)) => within(deadline, connect_unix(path)).await,
        (None, UpstreamAddr::Tcp { .. }) => Err(io::Error::other("the name has not been resolved")),
    }
}

/// Distinguishes the two causes of EADDRNOTAVAIL: this host has no address of the family, or all local ports to this address
/// are in use. Connecting a UDP socket fails only in the first case, because it needs a port but not a free TCP port.
fn explain_unavailable(address: SocketAddr, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::AddrNotAvailable {
        return error;
    }
    let unspecified = match address.is_ipv4() {
        true => SocketAddr::from(([0, 0, 0, 0], 0)),
        false => SocketAddr::from(([0_u16; 8], 0)),
    };
    let connected = UdpSocket::bind(unspecified).and_then(|socket| socket.connect(address));
    match connected {
        Err(failed) if !is_local_shortage(&failed) || failed.kind() == io::ErrorKind::AddrNotAvailable => {
            io::Error::new(io::ErrorKind::HostUnreachable, "this host has no local address that can reach the upstream")
        }
        _ => error,
    }
}

/// Connects to a Unix socket. Unlike TCP, a full backlog fails at once with EAGAIN, so the connect is repeated.
async fn connect_unix(path: &Path) -> io::Result<Socket> {
    let mut pause = MIN_PAUSE;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
            connected => return connected.map(Socket::Unix),
        }
    }
}

/// Resolves a host. The system resolver blocks a thread, even after its caller has given up, so `resolving` bounds the
/// number of threads for one listener.
async fn look_up(host: &str, port: u16, resolving: &Arc<Semaphore>) -> io::Result<Vec<Option<SocketAddr>>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![Some(SocketAddr::new(ip, port))]);
    }
    let permit = Arc::clone(resolving).acquire_owned().await.map_err(io::Error::other)?;
    let name = (host.to_owned(), port);
    let resolved = fault::contained_blocking("upstream resolver", move || {
        let _permit = permit;
        let addresses = name.to_socket_addrs().map_err(|error| shortage().unwrap_or(error))?;
        Ok::<_, io::Error>(addresses.take(MAX_ADDRESSES).map(Some).collect())
    });
    let addresses: Vec<_> = resolved.await.map_err(io::Error::other)??;
    if addresses.is_empty() { Err(io::Error::other("the host name has no addresses")) } else { Ok(addresses) }
}

/// Limits a step of the dial to `deadline`.
pub(crate) async fn within<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let timed_out = || io::Error::new(io::ErrorKind::TimedOut, "did not respond within connect_timeout");
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(timed_out()))
}

/// The number of addresses of a name that are used.
const MAX_ADDRESSES: usize = 32;

const MIN_PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(100);
