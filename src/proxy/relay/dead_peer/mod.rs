//! Ends a session if a peer no longer acknowledges data (`dead_peer_timeout`).
//!
//! TCP_USER_TIMEOUT is not suitable. It also closes a connection whose peer acknowledges every window probe but does not
//! read. Examples are a server that waits for a lock, and a client that shows one page of a result. Instead, TCP_INFO of each
//! peer is read from time to time, and only for sessions that have relayed bytes since.
//!
//! The time of the last received segment is not sufficient: probes of a closed window back off to minutes, and in between
//! the peer has nothing to acknowledge. The criterion is data or a probe without a response.

#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::warn;

use crate::descriptors::is_local_shortage;
use crate::proxy::relay::span::Span;
use crate::transport::tcp_diag;
use crate::transport::tcp_diag::{Attribute, number};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Upstream,
}

/// Detects dead peers of one session.
#[derive(Debug)]
pub(crate) struct DeadPeers {
    timeout: Span,
    /// `None` while the session is idle and all data is acknowledged.
    watch: Option<Box<SocketWatch>>,
}

#[derive(Debug)]
struct SocketWatch {
    timer: Pin<Box<Sleep>>,
    client: Peer,
    upstream: Peer,
    /// Whether bytes were relayed since the last check.
    has_progress: bool,
}

#[derive(Debug, Default)]
struct Peer {
    unanswered: Option<Unanswered>,
}

/// Data or a probe to which a peer has not responded.
#[derive(Clone, Copy, Debug)]
struct Unanswered {
    since: Instant,
    /// The number of segments received by then. One more is a response.
    segments: u32,
}

/// The result of reading `TCP_INFO` of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerInfo {
    Tcp(TcpInfo),
    /// The socket is a Unix socket or closed, or the kernel does not support the query. Only the kernel's own timeouts apply.
    Unavailable,
    /// This host lacks a resource for the query, such as a descriptor. It is tried again.
    LocalShortage,
}

/// The fields of `struct tcp_info` (linux/tcp.h) that are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpInfo {
    /// Segments sent and not acknowledged.
    unacknowledged: u32,
    /// Bytes still to be sent.
    unsent: u32,
    /// Probes of a closed window or of an idle connection since the last segment from the peer.
    probes: u8,
    /// Time since data was last sent or retransmitted.
    last_sent: Duration,
    /// Time since the last segment from the peer.
    last_received: Duration,
    /// Segments received.
    segments: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerStatus {
    /// The peer has acknowledged everything.
    Acknowledged,
    /// The peer has not acknowledged everything. It is checked again at this time at the latest.
    Waiting(Option<Instant>),
    Dead,
}

impl DeadPeers {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout: timeout.into(), watch: None }
    }

    /// The audit detail for a dead peer.
    pub(crate) fn describe(&self, side: Side) -> String {
        let side = match side {
            Side::Client => "client",
            Side::Upstream => "upstream",
        };
        format!("{side}: acknowledged nothing for {:?} (dead_peer_timeout)", self.timeout.duration())
    }

    /// Ready when a peer is dead. Call it at every wake-up of the session, with `has_progress` if a byte has moved since the
    /// last call. `peer_info` reads `TCP_INFO` of a peer.
    pub(crate) fn poll(
        &mut self,
        has_progress: bool,
        mut peer_info: impl FnMut(Side) -> PeerInfo,
        cx: &mut Context<'_>,
    ) -> Poll<Side> {
        let timeout = self.timeout.duration();
        let interval = timeout / CHECKS_PER_TIMEOUT;
        match &mut self.watch {
            // The timer was polled before, so it wakes the session by itself.
            Some(watch) if has_progress && !watch.timer.is_elapsed() => {
                watch.has_progress = true;
                return Poll::Pending;
            }
            Some(watch) => watch.has_progress |= has_progress,
            None if has_progress => self.watch = Some(Box::new(SocketWatch::new(interval))),
            None => {}
        }
        let Some(watch) = &mut self.watch else { return Poll::Pending };
        while watch.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let mut next = now + interval;
            let mut is_idle = !watch.has_progress;
            for (side, peer) in [(Side::Client, &mut watch.client), (Side::Upstream, &mut watch.upstream)] {
                let status = match peer_info(side) {
                    PeerInfo::Tcp(info) => peer.check(info, now, timeout),
                    PeerInfo::Unavailable => PeerStatus::Acknowledged,
                    PeerInfo::LocalShortage => PeerStatus::Waiting(None),
                };
                match status {
                    PeerStatus::Acknowledged => {}
                    PeerStatus::Waiting(due) => {
                        is_idle = false;
                        next = due.map_or(next, |due| next.min(due));
                    }
                    PeerStatus::Dead => return Poll::Ready(side),
                }
            }
            if is_idle {
                self.watch = None;
                return Poll::Pending;
            }
            watch.has_progress = false;
            watch.timer.as_mut().reset(next);
        }
        Poll::Pending
    }
}

impl SocketWatch {
    fn new(interval: Duration) -> Self {
        Self {
            timer: Box::pin(sleep_until(Instant::now() + interval)),
            client: Peer::default(),
            upstream: Peer::default(),
            has_progress: false,
        }
    }
}

impl Peer {
    fn check(&mut self, info: TcpInfo, now: Instant, timeout: Duration) -> PeerStatus {
        let unanswered_since = info.unanswered_since(now);
        let former = self.unanswered.filter(|former| former.segments == info.segments);
        self.unanswered = unanswered_since.map(|since| former.unwrap_or(Unanswered { since, segments: info.segments }));
        match self.unanswered {
            Some(Unanswered { since, .. }) if now.saturating_duration_since(since) >= timeout => PeerStatus::Dead,
            Some(Unanswered { since, .. }) => PeerStatus::Waiting(Some(since + timeout)),
            None if info.unacknowledged > 0 || info.unsent > 0 => PeerStatus::Waiting(None),
            None => PeerStatus::Acknowledged,
        }
    }
}

impl TcpInfo {
    /// Reads `TCP_INFO` of a socket.
    pub(crate) fn read(stream: &TcpStream) -> PeerInfo {
        match read(stream) {
            Ok(info) => PeerInfo::Tcp(info),
            // The connection is closed. The relay finds that out when it reads.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotConnected) => {
                PeerInfo::Unavailable
            }
            Err(error) if is_local_shortage(&error) || error.kind() == io::ErrorKind::WouldBlock => {
                PeerInfo::LocalShortage
            }
            Err(error) => {
                UNAVAILABLE_LOGGED.call_once(|| {
                    warn!(%error, "cannot read TCP_INFO, only keepalive and kernel timeouts detect dead peers");
                });
                PeerInfo::Unavailable
            }
        }
    }

    /// Parses `struct tcp_info`. `None` if the kernel is older than Linux 4.6 and the structure too short.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at| number(bytes, at).map(u32::from_ne_bytes);
        let age = |at| word(at).map(|milliseconds| Duration::from_millis(milliseconds.into()));
        Some(Self {
            probes: *bytes.get(3)?,
            unacknowledged: word(24)?,
            last_sent: age(44)?,
            // tcpi_last_ack_recv is not updated by a data segment without a new acknowledgement.
            last_received: age(52)?.min(age(56)?),
            segments: word(140)?,
            unsent: word(144)?,
        })
    }

    /// The latest time since which data or a probe is without a response.
    fn unanswered_since(&self, now: Instant) -> Option<Instant> {
        // Both ages are rounded by the kernel, so data counts only if it was sent after the last received segment.
        if self.unacknowledged > 0 && self.last_sent < self.last_received {
            return Some(now.checked_sub(self.last_sent).unwrap_or(now));
        }
        (self.probes > 0).then_some(now)
    }
}

fn read(stream: &TcpStream) -> io::Result<TcpInfo> {
    let info = tcp_diag::read(stream, stream.local_addr()?, Some(stream.peer_addr()?), Attribute::Info)?;
    TcpInfo::parse(&info).ok_or_else(|| io::Error::other("the kernel is older than Linux 4.6"))
}

static UNAVAILABLE_LOGGED: Once = Once::new();

/// The number of checks within `dead_peer_timeout`.
const CHECKS_PER_TIMEOUT: u32 = 4;
