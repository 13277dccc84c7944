//! The way to one address: name resolution, TCP, Unix sockets.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};

use crate::addr::UpstreamAddr;
use crate::connection::socket::{Socket, keep_alive};
use crate::snapshot::{Node, Terms};

/// Connects to a node, by `deadline`. A name is resolved anew each time, and what it resolves to is tried in the resolver's
/// order, but those last that did not answer lately; no address may take more than its share of what time is left. Returns
/// also which of them it is, where it is one of TCP.
pub(super) async fn connect(node: &Node, terms: &Terms, deadline: Instant) -> io::Result<(Socket, Option<SocketAddr>)> {
    match node.address() {
        UpstreamAddr::Unix(path) => Ok((within(deadline, connect_unix(path)).await?, None)),
        UpstreamAddr::Tcp { host, port } => {
            let mut addresses = within(deadline, resolve(host, *port, &terms.resolving)).await?;
            node.sort(&mut addresses, Instant::now().into_std());
            let (stream, address) = connect_tcp(&addresses, node, deadline).await?;
            Ok((Socket::Tcp(stream), Some(address)))
        }
    }
}

/// Connects to one address of a node, and to no other.
pub(super) async fn connect_exactly(address: SocketAddr, deadline: Instant) -> io::Result<Socket> {
    let stream = within(deadline, TcpStream::connect(address)).await?;
    keep_alive(&stream)?;
    Ok(Socket::Tcp(stream))
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

async fn connect_tcp(addresses: &[SocketAddr], node: &Node, deadline: Instant) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::Error::other("the name has no address");
    let mut untried = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let share = deadline.saturating_duration_since(Instant::now()) / untried.max(1);
        untried = untried.saturating_sub(1);
        match within(Instant::now() + share, TcpStream::connect(address)).await {
            Ok(stream) => {
                keep_alive(&stream)?;
                return Ok((stream, *address));
            }
            Err(error) if addresses.len() == 1 => last = error,
            Err(error) => {
                node.address_is_silent(*address, Instant::now().into_std());
                last = io::Error::new(error.kind(), format!("{address}: {error}"));
            }
        }
    }
    Err(last)
}

/// The addresses of a host. The resolver of the system blocks a thread, also after nobody waits for its answer any more,
/// so `resolving` bounds how many threads one listener's resolver can take from the others.
async fn resolve(host: &str, port: u16, resolving: &Arc<Semaphore>) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let permit = Arc::clone(resolving).acquire_owned().await.map_err(io::Error::other)?;
    let name = (host.to_owned(), port);
    let resolved = spawn_blocking(move || {
        let addresses = name.to_socket_addrs().map(Vec::from_iter);
        drop(permit);
        addresses
    });
    resolved.await.map_err(io::Error::other)?
}

/// Does some of the work of connecting, by `deadline`.
pub(super) async fn within<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let too_slow = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time (connect_timeout)");
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(too_slow()))
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
