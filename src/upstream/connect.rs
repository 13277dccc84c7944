//! The way to one address: name resolution, TCP, Unix sockets.

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
use crate::upstream::endpoint::{ConfiguredUpstream, Endpoint};

/// The places that a node leads to, by `deadline`, those last that did not answer lately or, where `writes` count, take none.
/// A name is resolved anew each time.
pub(crate) async fn resolve(
    configured: &Arc<ConfiguredUpstream>,
    upstream: &Upstream,
    deadline: Instant,
    writes: bool,
) -> io::Result<Vec<Endpoint>> {
    let sockets = match configured.address() {
        UpstreamAddr::Unix(_) => vec![None],
        UpstreamAddr::Tcp { host, port } => within(deadline, look_up(host, *port, &upstream.resolving)).await?,
    };
    Ok(configured.resolved(&sockets, writes))
}

/// Connects to a place, and to no other.
pub(crate) async fn connect(endpoint: &Endpoint, upstream: &Upstream, deadline: Instant) -> io::Result<Socket> {
    match (endpoint.socket, endpoint.configured.address()) {
        (Some(address), _) => {
            let connected = within(deadline, TcpStream::connect(address)).await;
            let stream = connected.map_err(|error| unusable(address, error))?;
            keep_alive(&stream, upstream.dead_peer_timeout)?;
            Ok(Socket::Tcp(stream))
        }
        (None, UpstreamAddr::Unix(path)) => within(deadline, connect_unix(path)).await,
        (None, UpstreamAddr::Tcp { .. }) => Err(io::Error::other("the name has not been resolved")),
    }
}

/// Tells an address that this machine cannot connect to, for want of an address of the kind, from one to which all local ports
/// are in use: the kernel has one error for both, and connecting a UDP socket needs a port too, but not one that is free for
/// this address alone.
fn unusable(address: SocketAddr, error: io::Error) -> io::Error {
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
            io::Error::new(io::ErrorKind::HostUnreachable, "this machine has no address from which it can be reached")
        }
        _ => error,
    }
}

/// A socket whose queue is full refuses at once, other than TCP; it is asked again until it takes us.
async fn connect_unix(path: &Path) -> io::Result<Socket> {
    let mut pause = SHORTEST_PAUSE;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            connected => return connected.map(Socket::Unix),
        }
    }
}

/// The addresses of a host. The resolver of the system blocks a thread, also after nobody waits for its answer any more,
/// so `resolving` bounds how many threads one listener's resolver can take from the others.
async fn look_up(host: &str, port: u16, resolving: &Arc<Semaphore>) -> io::Result<Vec<Option<SocketAddr>>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![Some(SocketAddr::new(ip, port))]);
    }
    let permit = Arc::clone(resolving).acquire_owned().await.map_err(io::Error::other)?;
    let name = (host.to_owned(), port);
    let resolved = fault::contained_blocking("upstream resolver", move || {
        let _permit = permit;
        let addresses = name.to_socket_addrs().map_err(|error| shortage().unwrap_or(error))?;
        Ok::<_, io::Error>(addresses.take(MOST_PLACES).map(Some).collect())
    });
    let addresses: Vec<_> = resolved.await.map_err(io::Error::other)??;
    if addresses.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(addresses) }
}

/// Does some of the work of connecting, by `deadline`.
pub(crate) async fn within<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let too_slow = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time (connect_timeout)");
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(too_slow()))
}

/// More addresses of a name than are worth trying for one client.
const MOST_PLACES: usize = 32;

const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
