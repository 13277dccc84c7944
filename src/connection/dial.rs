//! The upstream. Only a client that has been identified and has said what it wants can cost it a connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

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

/// Connects to an upstream. A name is resolved anew each time, and each of its addresses is tried in the resolver's order.
pub(super) async fn connect(upstream: &Upstream) -> Result<UpstreamStream, Ending> {
    let failed = |why: &dyn std::fmt::Display| {
        Ending::new(Reason::UpstreamUnreachable, format_args!("upstream {}: {why}", upstream.address))
    };
    let limit = upstream.connect_timeout;
    match &upstream.address {
        UpstreamAddr::Unix(path) => match timeout(limit, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => Ok(UpstreamStream::Unix(stream)),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(failed(&TimedOut(limit))),
        },
        UpstreamAddr::Tcp { host, port } => {
            let resolved = timeout(limit, tokio::net::lookup_host((host.as_str(), *port))).await;
            let addresses = match resolved {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(error)) => return Err(failed(&error)),
                Err(_) => return Err(failed(&"the name was not resolved in time")),
            };
            let mut last = failed(&"the name has no address");
            for address in addresses {
                last = match timeout(limit, TcpStream::connect(address)).await {
                    Ok(Ok(stream)) => return prepared(stream).map_err(|error| failed(&error)),
                    Ok(Err(error)) => failed(&format_args!("{address}: {error}")),
                    Err(_) => failed(&format_args!("{address}: {}", TimedOut(limit))),
                };
            }
            Err(last)
        }
    }
}

fn prepared(stream: TcpStream) -> io::Result<UpstreamStream> {
    keep_alive(&stream)?;
    Ok(UpstreamStream::Tcp(stream))
}

struct TimedOut(Duration);

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no answer within {:?} (connect_timeout)", self.0)
    }
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
