//! The upstream. Only a client that has been identified and has said what it wants can cost it a connection.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};

use super::hear::Ready;
use super::identify::Identified;
use super::part::{Leave, Startup};
use super::socket::{Socket, keep_alive};
use crate::addr::UpstreamAddr;
use crate::outcome::{Ending, Reason};
use crate::snapshot::Terms;

/// A client and its upstream, between which nothing has passed yet.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) identified: Identified,
    pub(super) upstream: Socket,
    /// What the client has said already and the upstream has not heard.
    pub(super) first: Vec<u8>,
}

pub(super) async fn dial(ready: Ready) -> Result<Dialled, Leave> {
    let Ready { identified, first } = ready;
    match connect(&identified.terms).await {
        Ok(upstream) => Ok(Dialled { identified, upstream, first }),
        Err(ending) => {
            let protocol = identified.terms.protocol;
            Err(Leave::refused(ending, identified.client, protocol, Startup::Heard))
        }
    }
}

/// Connects to the first of the upstream's addresses that can be reached.
pub(super) async fn connect(terms: &Terms) -> Result<Socket, Ending> {
    let mut failures = Vec::new();
    for address in &terms.upstream.addresses {
        match connect_to(address, terms).await {
            Ok(socket) => return Ok(socket),
            Err(error) => failures.push(format!("upstream {address}: {error}")),
        }
    }
    Err(Ending::new(Reason::UpstreamUnreachable, failures.join("; ")))
}

/// Connects to one address. A name is resolved anew each time, and what it resolves to is tried in the resolver's order; all
/// of it together takes `connect_timeout` at most, and no address may take more than its share of what is left.
async fn connect_to(address: &UpstreamAddr, terms: &Terms) -> io::Result<Socket> {
    let deadline = Instant::now() + terms.upstream.connect_timeout;
    match address {
        UpstreamAddr::Unix(path) => within(deadline, connect_unix(path)).await,
        UpstreamAddr::Tcp { host, port } => {
            let addresses = within(deadline, resolve(host, *port, &terms.resolving)).await?;
            connect_tcp(addresses, deadline).await
        }
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

async fn connect_tcp(addresses: Vec<SocketAddr>, deadline: Instant) -> io::Result<Socket> {
    let only = addresses.len() == 1;
    let mut last = io::Error::other("the name has no address");
    let mut untried = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let share = deadline.saturating_duration_since(Instant::now()) / untried.max(1);
        untried = untried.saturating_sub(1);
        match within(Instant::now() + share, TcpStream::connect(address)).await {
            Ok(stream) => {
                keep_alive(&stream)?;
                return Ok(Socket::Tcp(stream));
            }
            Err(error) if only => last = error,
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
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

async fn within<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let too_slow = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time (connect_timeout)");
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(too_slow()))
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
