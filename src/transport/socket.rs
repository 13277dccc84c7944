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
pub(crate) enum AcceptedSocket {
    /// At a port.
    Tcp(StdTcpStream),
    /// At the file of a Unix socket.
    Unix(StdUnixStream),
}

/// A socket that the worker of this thread waits on.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl TryFrom<AcceptedSocket> for Socket {
    type Error = io::Error;

    fn try_from(accepted: AcceptedSocket) -> io::Result<Self> {
        match accepted {
            AcceptedSocket::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream).map(Self::Tcp)
            }
            AcceptedSocket::Unix(stream) => {
                stream.set_nonblocking(true)?;
                UnixStream::from_std(stream).map(Self::Unix)
            }
        }
    }
}

/// Whether no byte has come that has not been read.
pub(crate) fn nothing_waits(stream: &TcpStream) -> io::Result<bool> {
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

/// Sets TCP_NODELAY and keepalive, by which a peer that is silent is found dead after `dead_peer_timeout`. The kernel sends no
/// probes while data waits for an acknowledgement; that is for `dead_peer` to notice.
///
/// # Errors
/// The kernel's, for example when the other side is gone already.
pub(crate) fn keep_alive(socket: &impl AsFd, dead_peer_timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let Probes { idle, interval, count } = Probes::within(dead_peer_timeout);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(count))
}

/// When a silent peer is asked whether it is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Probes {
    /// The silence before the first probe.
    idle: Duration,
    /// Between two probes without an answer.
    interval: Duration,
    /// How many without an answer end the connection.
    count: u32,
}

impl Probes {
    /// Those that take about this long. The kernel counts in seconds.
    fn within(timeout: Duration) -> Self {
        let whole = timeout.as_secs().max(1);
        let idle = (whole / 5).clamp(1, MAX_IDLE);
        let rest = whole.saturating_sub(idle);
        let interval = (whole / 20).clamp(1, MAX_STRIDE).max(rest.div_ceil(MAX_COUNT)).min(MAX_INTERVAL);
        let count = rest.div_ceil(interval).clamp(1, MAX_COUNT);
        let [idle, interval] = [idle, interval].map(Duration::from_secs);
        Self { idle, interval, count: u32::try_from(count).unwrap_or(1) }
    }
}

/// In seconds. Below the five minutes after which cloud load balancers and NAT gateways commonly forget a connection.
const MAX_IDLE: u64 = 60;
/// In seconds, where the kernel allows for enough of them.
const MAX_STRIDE: u64 = 15;
/// `MAX_TCP_KEEPINTVL`, in seconds, and `MAX_TCP_KEEPCNT` (linux/tcp.h).
const MAX_INTERVAL: u64 = 32_767;
const MAX_COUNT: u64 = 127;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn accepted_socket_is_kept_alive_as_its_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        keep_alive(&listener, Duration::from_secs(300)).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 16);
        #[cfg(target_os = "linux")]
        assert_eq!(accepted.tcp_user_timeout().unwrap().unwrap_or_default(), Duration::ZERO);
    }

    #[test]
    fn probes_take_as_long_as_a_dead_peer_has_and_suit_the_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for seconds in [1, 2, 7, 10, 59, 300, 3_600, 86_400, 3650 * 86_400] {
            let Probes { idle, interval, count } = Probes::within(Duration::from_secs(seconds));
            let taken = (idle + interval * count).as_secs();
            if seconds < 1_000_000 {
                let most = seconds + interval.as_secs().max(1);
                assert!((seconds..=most).contains(&taken), "{seconds} s: {idle:?}, {count} of {interval:?}");
            }
            assert!(idle.as_secs() <= MAX_IDLE);
            keep_alive(&listener, Duration::from_secs(seconds)).unwrap();
        }
        keep_alive(&listener, Duration::from_millis(50)).unwrap();
    }
}
