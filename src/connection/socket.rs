//! Sockets: of a client as it was accepted, and of either side while it is served. What every TCP socket of this program is
//! told: send small writes at once, and notice when the other side is dead.

use std::io;
use std::mem::MaybeUninit;
use std::net::TcpStream as StdTcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A client's socket from which nothing has been read, and which no worker waits on yet.
#[derive(Debug)]
pub enum Accepted {
    /// At a port.
    Tcp(StdTcpStream),
    /// At the file of a Unix socket.
    Unix(StdUnixStream),
}

/// A socket that the worker of this thread waits on.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl TryFrom<Accepted> for Socket {
    type Error = io::Error;

    fn try_from(accepted: Accepted) -> io::Result<Self> {
        match accepted {
            Accepted::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream).map(Self::Tcp)
            }
            Accepted::Unix(stream) => {
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream).map(Self::Unix)
            }
        }
    }
}

/// Whether no byte has come that has not been read.
pub(super) fn nothing_waits(stream: &TcpStream) -> io::Result<bool> {
    let mut early = [MaybeUninit::uninit()];
    match SockRef::from(stream).peek(&mut early) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
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

/// Sets TCP_NODELAY, keepalive and TCP_USER_TIMEOUT.
///
/// # Errors
/// The kernel's, for example when the other side is gone already.
pub fn keep_alive(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let probes = TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(RETRIES);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

/// Silence after which the other side is asked whether it is still there. Below the five minutes after which cloud load balancers
/// and NAT gateways commonly forget a connection.
const IDLE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(15);
/// Only where there is no TCP_USER_TIMEOUT, which takes the place of the count.
const RETRIES: u32 = 16;

/// How long the other side may leave probes or bytes unacknowledged before it counts as dead. The kernel counts one that is
/// alive but does not read here too, as soon as its window is full; so this is also the longest pause a client can make in
/// the middle of a result, and should not be shorter than somebody looks at a page of it.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn an_accepted_socket_is_kept_alive_as_its_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        keep_alive(&listener).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), IDLE);
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), INTERVAL);
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), RETRIES);
        #[cfg(target_os = "linux")]
        assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }
}
