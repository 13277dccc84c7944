//! Ends a session one of whose peers no longer acknowledges what it is sent (`dead_peer_timeout`).
//!
//! TCP_USER_TIMEOUT cannot do that: the kernel also counts a peer by it that acknowledges every probe of its closed window
//! and only does not read, as a server that waits for a lock or a client that shows a page of a result. So the kernel is
//! asked what a peer has left unanswered, now and then, and only of sessions that have carried bytes since.
//!
//! How long ago a peer was heard does not tell: probes of a closed window back off to minutes, and in between there is
//! nothing to answer. What counts is a question that is without an answer.

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
use crate::proxy::relay::timing::Span;
use crate::transport::tcp_diag;
use crate::transport::tcp_diag::{Attribute, number};

/// One of the two peers of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Upstream,
}

/// Looks after both peers of one session.
#[derive(Debug)]
pub(crate) struct DeadPeers {
    timeout: Span,
    /// Nothing as long as no byte was carried and all that was sent is acknowledged: an idle session has none.
    watch: Option<Box<SocketWatch>>,
}

#[derive(Debug)]
struct SocketWatch {
    alarm: Pin<Box<Sleep>>,
    client: Peer,
    upstream: Peer,
    /// Whether bytes were carried since the last look.
    has_carried: bool,
}

/// What is known of one peer.
#[derive(Debug, Default)]
struct Peer {
    unanswered: Option<Unanswered>,
}

/// A question that a peer has not answered.
#[derive(Clone, Copy, Debug)]
struct Unanswered {
    since: Instant,
    /// How many segments had come by then; one more is an answer.
    segments: u32,
}

/// What there is to learn of a connection from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Sent(Sent),
    /// It is a Unix socket or gone, or the kernel does not tell: its own limits are all there is.
    Nothing,
    /// The question could not be put for want of something on this machine, such as a descriptor.
    NotNow,
}

/// What the kernel knows of a connection, of `struct tcp_info` (linux/tcp.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Segments that are sent and not acknowledged.
    unacknowledged: u32,
    /// Bytes that are still to be sent.
    unsent: u32,
    /// Probes of a closed window, or of an idle connection, since the peer was heard last.
    probes: u8,
    /// Since data was sent, or sent again.
    sent_ago: Duration,
    /// Since the peer was heard.
    heard_ago: Duration,
    /// Segments received.
    segments: u32,
}

/// What is to be done about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerStatus {
    /// It has acknowledged everything.
    Selected,
    /// It has not, and is to be looked at again by then at the latest.
    Owes(Option<Instant>),
    Dead,
}

impl DeadPeers {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout: timeout.into(), watch: None }
    }

    /// What this peer has done, for the operator.
    pub(crate) fn words(&self, side: Side) -> String {
        let side = match side {
            Side::Client => "client",
            Side::Upstream => "upstream",
        };
        format!("{side}: it has acknowledged nothing for {:?} (dead_peer_timeout)", self.timeout.duration())
    }

    /// Ready when a peer is dead. To be asked at every wake-up of the session: `has_carried` says whether a byte has moved
    /// since the last time, and `sent` what the kernel knows of a peer.
    pub(crate) fn poll(
        &mut self,
        has_carried: bool,
        mut sent: impl FnMut(Side) -> Known,
        cx: &mut Context<'_>,
    ) -> Poll<Side> {
        let timeout = self.timeout.duration();
        let interval = timeout / LOOKS;
        match &mut self.watch {
            // A timer that has been polled wakes the session by itself.
            Some(watch) if has_carried && !watch.alarm.is_elapsed() => {
                watch.has_carried = true;
                return Poll::Pending;
            }
            Some(watch) => watch.has_carried |= has_carried,
            None if has_carried => self.watch = Some(Box::new(SocketWatch::new(interval))),
            None => {}
        }
        let Some(watch) = &mut self.watch else { return Poll::Pending };
        while watch.alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let mut next = now + interval;
            let mut is_settled = !watch.has_carried;
            for (side, peer) in [(Side::Client, &mut watch.client), (Side::Upstream, &mut watch.upstream)] {
                let verdict = match sent(side) {
                    Known::Sent(sent) => peer.judge(sent, now, timeout),
                    Known::Nothing => PeerStatus::Selected,
                    Known::NotNow => PeerStatus::Owes(None),
                };
                match verdict {
                    PeerStatus::Selected => {}
                    PeerStatus::Owes(due) => {
                        is_settled = false;
                        next = due.map_or(next, |due| next.min(due));
                    }
                    PeerStatus::Dead => return Poll::Ready(side),
                }
            }
            if is_settled {
                self.watch = None;
                return Poll::Pending;
            }
            watch.has_carried = false;
            watch.alarm.as_mut().reset(next);
        }
        Poll::Pending
    }
}

impl SocketWatch {
    fn new(interval: Duration) -> Self {
        Self {
            alarm: Box::pin(sleep_until(Instant::now() + interval)),
            client: Peer::default(),
            upstream: Peer::default(),
            has_carried: false,
        }
    }
}

impl Peer {
    fn judge(&mut self, sent: Sent, now: Instant, timeout: Duration) -> PeerStatus {
        let asked = sent.asked(now);
        let former = self.unanswered.filter(|former| former.segments == sent.segments);
        self.unanswered = asked.map(|since| former.unwrap_or(Unanswered { since, segments: sent.segments }));
        match self.unanswered {
            Some(Unanswered { since, .. }) if now.saturating_duration_since(since) >= timeout => PeerStatus::Dead,
            Some(Unanswered { since, .. }) => PeerStatus::Owes(Some(since + timeout)),
            None if sent.unacknowledged > 0 || sent.unsent > 0 => PeerStatus::Owes(None),
            None => PeerStatus::Selected,
        }
    }
}

impl Sent {
    /// What the kernel knows of a connection.
    pub(crate) fn over(stream: &TcpStream) -> Known {
        match read(stream) {
            Ok(sent) => Known::Sent(sent),
            // It is gone, and its reader is told.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotConnected) => {
                Known::Nothing
            }
            Err(error) if is_local_shortage(&error) || error.kind() == io::ErrorKind::WouldBlock => Known::NotNow,
            Err(error) => {
                NOT_TO_BE_HAD.call_once(|| {
                    warn!(%error, "cannot read TCP_INFO, dead peers are found by the limits of the kernel only");
                });
                Known::Nothing
            }
        }
    }

    /// Of `struct tcp_info`. A kernel before 4.6 knows too little.
    fn of(info: &[u8]) -> Option<Self> {
        let word = |at| number(info, at).map(u32::from_ne_bytes);
        let age = |at| word(at).map(|milliseconds| Duration::from_millis(milliseconds.into()));
        Some(Self {
            probes: *info.get(3)?,
            unacknowledged: word(24)?,
            sent_ago: age(44)?,
            // What a peer sends acknowledges, too, but does not count as an acknowledgement where it brings none.
            heard_ago: age(52)?.min(age(56)?),
            segments: word(140)?,
            unsent: word(144)?,
        })
    }

    /// Since when at the latest something waits for an answer; nothing where nothing does.
    fn asked(&self, now: Instant) -> Option<Instant> {
        // Both ages have the kernel's resolution, so data counts as unanswered only where the peer was heard before it.
        if self.unacknowledged > 0 && self.sent_ago < self.heard_ago {
            return Some(now.checked_sub(self.sent_ago).unwrap_or(now));
        }
        (self.probes > 0).then_some(now)
    }
}

fn read(stream: &TcpStream) -> io::Result<Sent> {
    let info = tcp_diag::read(stream, stream.local_addr()?, Some(stream.peer_addr()?), Attribute::Info)?;
    Sent::of(&info).ok_or_else(|| io::Error::other("the kernel is older than Linux 4.6"))
}

static NOT_TO_BE_HAD: Once = Once::new();

/// How often the kernel is asked in the time that a peer has.
const LOOKS: u32 = 4;
