//! The upstream. Only a client that has been identified and has said what it wants can cost it a connection.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};

use super::hear::Ready;
use super::identify::Identified;
use super::part::{Leave, Startup};
use super::socket::keep_alive;
use crate::addr::UpstreamAddr;
use crate::outcome::{Ending, Reason};
use crate::snapshot::Terms;

/// A client and its upstream, between which nothing has passed yet.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) identified: Identified,
    pub(super) upstream: UpstreamStream,
    /// What the client has said already and the upstream has not heard.
    pub(super) first: Vec<u8>,
}

pub(super) async fn dial(ready: Ready) -> Result<Dialled, Leave> {
    let Ready { identified, first } = ready;
    match connect(&identified.terms).await {
        Ok(upstream) => Ok(Dialled { identified, upstream, first }),
        Err(ending) => {
            let protocol = identified.terms.protocol;
            Err(Leave::refused(ending, identified.stream, protocol, Startup::Heard))
        }
    }
}

/// Connects to an upstream. A name is resolved anew each time, and its addresses are tried in the resolver's order; all
/// of it together takes `connect_timeout` at most, and no address may take more than its share of what is left.
pub(super) async fn connect(terms: &Terms) -> Result<UpstreamStream, Ending> {
    let upstream = &terms.upstream;
    let deadline = Instant::now() + upstream.connect_timeout;
    let connected = match &upstream.address {
        UpstreamAddr::Unix(path) => within(deadline, connect_unix(path)).await,
        UpstreamAddr::Tcp { host, port } => match within(deadline, resolve(host, *port, &terms.resolving)).await {
            Ok(addresses) => connect_tcp(addresses, deadline).await,
            Err(error) => Err(error),
        },
    };
    let failed =
        |error| Ending::new(Reason::UpstreamUnreachable, format_args!("upstream {}: {error}", upstream.address));
    connected.map_err(failed)
}

/// A socket whose queue is full refuses at once, other than TCP; it is asked again until it takes us.
async fn connect_unix(path: &Path) -> io::Result<UpstreamStream> {
    let mut pause = SHORTEST_PAUSE;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            connected => return connected.map(UpstreamStream::Unix),
        }
    }
}

async fn connect_tcp(addresses: Vec<SocketAddr>, deadline: Instant) -> io::Result<UpstreamStream> {
    let only = addresses.len() == 1;
    let mut last = io::Error::other("the name has no address");
    let mut untried = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let share = deadline.saturating_duration_since(Instant::now()) / untried.max(1);
        untried = untried.saturating_sub(1);
        match within(Instant::now() + share, TcpStream::connect(address)).await {
            Ok(stream) => {
                keep_alive(&stream)?;
                return Ok(UpstreamStream::Tcp(stream));
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

/// A connection to an upstream.
#[derive(Debug)]
pub(super) enum UpstreamStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl UpstreamStream {
    /// Passes a packet on to the byte.
    pub(super) async fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.write_all(packet).await
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
