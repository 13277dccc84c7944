//! The upstream. Only a client that has been identified and has said what it wants can cost it a connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

use super::hear::Ready;
use super::identify::Identified;
use super::part::{Leave, Startup};
use super::socket::keep_alive;
use crate::addr::UpstreamAddr;
use crate::config::Upstream;
use crate::outcome::{Ending, Reason};

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
    match connect(&identified.terms.upstream).await {
        Ok(upstream) => Ok(Dialled { identified, upstream, first }),
        Err(ending) => {
            let protocol = identified.terms.protocol;
            Err(Leave::refused(ending, identified.stream, protocol, Startup::Heard))
        }
    }
}

/// Connects to an upstream. A name is resolved anew each time, and its addresses are tried in the resolver's order; all
/// of it together takes `connect_timeout` at most, and no address may take more than its share of what is left.
pub(super) async fn connect(upstream: &Upstream) -> Result<UpstreamStream, Ending> {
    let failed = |error: io::Error| {
        Ending::new(Reason::UpstreamUnreachable, format_args!("upstream {}: {error}", upstream.address))
    };
    let deadline = Instant::now() + upstream.connect_timeout;
    match &upstream.address {
        UpstreamAddr::Unix(path) => {
            within(deadline, UnixStream::connect(path)).await.map(UpstreamStream::Unix).map_err(failed)
        }
        UpstreamAddr::Tcp { host, port } => connect_tcp(host, *port, deadline).await.map_err(failed),
    }
}

async fn connect_tcp(host: &str, port: u16, deadline: Instant) -> io::Result<UpstreamStream> {
    let addresses: Vec<_> = within(deadline, tokio::net::lookup_host((host, port))).await?.collect();
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
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}

async fn within<T>(deadline: Instant, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let too_slow = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time (connect_timeout)");
    timeout_at(deadline, work).await.unwrap_or_else(|_| Err(too_slow()))
}

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
