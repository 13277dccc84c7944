//! Sockets: that of a client at accept, and that of either side during a session. Every TCP socket has TCP_NODELAY and
//! keepalive.

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

/// A client's socket from which no byte was read, and which is not registered with a runtime yet.
#[derive(Debug)]
pub(crate) enum AcceptedSocket {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

/// A socket that is registered with the runtime of this thread.
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

/// Whether the receive buffer of the socket is empty.
pub(crate) fn is_drained(stream: &TcpStream) -> io::Result<bool> {
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

/// Sets TCP_NODELAY and keepalive. Keepalive detects a dead idle peer within `dead_peer_timeout`. While data is
/// unacknowledged, the kernel sends no keepalive probes; `proxy::relay::dead_peer` covers that case.
///
/// # Errors
/// The error of setsockopt(2), for example if the peer has closed the connection.
pub(crate) fn keep_alive(socket: &impl AsFd, dead_peer_timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let Probes { idle, interval, count } = Probes::within(dead_peer_timeout);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(count))
}

/// The keepalive settings of tcp(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Probes {
    /// Idle time before the first probe.
    idle: Duration,
    /// Time between two probes.
    interval: Duration,
    /// Unanswered probes that end the connection.
    count: u32,
}

impl Probes {
    /// Settings that detect a dead peer after about `timeout`. The kernel counts in seconds.
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

/// In seconds. Well below the five minutes after which cloud load balancers and NAT gateways commonly drop idle connections.
const MAX_IDLE: u64 = 60;
/// In seconds. Longer timeouts exceed it, because the number of probes is limited.
const MAX_STRIDE: u64 = 15;
/// `MAX_TCP_KEEPINTVL`, in seconds, and `MAX_TCP_KEEPCNT` (linux/tcp.h).
const MAX_INTERVAL: u64 = 32_767;
const MAX_COUNT: u64 = 127;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn accepted_socket_inherits_keepalive_from_its_listener() {
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
    fn keepalive_detects_a_dead_peer_after_the_timeout_within_kernel_limits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for seconds in [1, 2, 7, 10, 59, 300, 3_600, 86_400, 3650 * 86_400] {
            let Probes { idle, interval, count } = Probes::within(Duration::from_secs(seconds));
            let taken = (idle + interval * count).as_secs();
            if seconds < 1_000_000 {
                let max = seconds + interval.as_secs().max(1);
                assert!((seconds..=max).contains(&taken), "{seconds} s: {idle:?}, {count} of {interval:?}");
            }
            assert!(idle.as_secs() <= MAX_IDLE);
            keep_alive(&listener, Duration::from_secs(seconds)).unwrap();
        }
        keep_alive(&listener, Duration::from_millis(50)).unwrap();
    }
}
