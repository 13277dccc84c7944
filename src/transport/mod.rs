//! Streams over TCP or Unix sockets, with or without TLS, and listening sockets.

pub(crate) mod listen_socket;
pub(crate) mod pending;
pub(crate) mod scratch;
pub(crate) mod socket;
pub(crate) mod tcp_diag;
pub(crate) mod tls_stream;
pub(crate) mod unix_socket;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::identity::client_verifier::PresentedIdentity;
use crate::tls::engine::{Client, Side};
use crate::transport::socket::Socket;
use crate::transport::tls_stream::TlsStream;

pub(crate) type ClientStream = Stream<TlsStream>;

pub(crate) type UpstreamStream = Stream<TlsStream<TcpStream, Client>>;

/// A stream to the client or to the upstream.
#[derive(Debug)]
pub(crate) enum Stream<T> {
    Plain(Socket),
    Tls(Box<T>),
}

impl ClientStream {
    /// The identity that the client presented in TLS.
    pub(crate) fn presented(&self) -> PresentedIdentity<'_> {
        match self {
            Self::Plain(_) => PresentedIdentity::Plaintext,
            Self::Tls(stream) => PresentedIdentity::Chain(stream.engine().client_chain()),
        }
    }

    /// The address that the client connected to. `None` for a Unix socket.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.tcp()?.local_addr().ok()
    }

    /// Returns the socket. Unsent and unread bytes of the TLS stream are discarded.
    pub(crate) fn into_socket(self) -> Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => Socket::Tcp(stream.into_socket()),
        }
    }
}

impl<S: Side> Stream<TlsStream<TcpStream, S>> {
    pub(crate) fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(Socket::Tcp(stream)) => Some(stream),
            Self::Plain(Socket::Unix(_)) => None,
            Self::Tls(stream) => Some(stream.socket()),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stream<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buffer),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stream<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }
}
