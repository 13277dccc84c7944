//! The bytes, both ways, until both sides are done. The end of one direction is passed on and leaves the other running.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::clock::Clock;
use super::dead_peer::{DeadPeers, Known, Sent, Side};
use super::dial::Dialled;
use super::flow::{Broken, Flow};
use super::leg::{ClientLeg, Leg, UpstreamLeg};
use super::opening::Opening;
use super::part::{Leave, Parting, Startup};
use super::settle::Welcome;
use crate::outcome::{Carried, Ending, Reason};
use crate::protocol::{Boundary, Protocol, goodbye};
use crate::sessions::{EndedBy, Presence};
use crate::snapshot::{Cancellable, Counted};
use crate::tls::UpstreamTls;

/// A session: a client and its upstream.
#[derive(Debug)]
pub(super) struct Relay {
    client: ClientLeg,
    upstream: UpstreamLeg,
    /// Has the words for what goes wrong in it.
    upstream_tls: Option<Arc<UpstreamTls>>,
    /// Whether the upstream was told of the client by a PROXY header.
    announces: bool,
    protocol: Protocol,
    /// From the client to the upstream.
    inbound: Flow,
    /// From the upstream to the client.
    outbound: Flow,
    /// Where the upstream's messages end, in the protocol that has words for a session that is shown out.
    boundary: Option<Boundary>,
    /// The beginning of a PostgreSQL session, as long as it lasts.
    opening: Option<Box<Opening>>,
    /// Lets a CancelRequest find it.
    cancellable: Option<Box<Cancellable>>,
    /// Which side ended first.
    first_end: Option<Reason>,
    /// Whether the upstream was lost before the client has heard anything from it.
    is_unheard: bool,
    /// By what the connection to the upstream broke while something was said to it.
    broken_by: Option<io::Error>,
    /// Whether it was told to end, by somebody or by its clock, and did not end by itself.
    shown_out: bool,
    clock: Clock,
    dead_peers: DeadPeers,
    /// Its place among the sessions of its listener and its source.
    _counted: Counted,
}

impl Relay {
    pub(super) fn new(welcome: Welcome, counted: Counted) -> Self {
        let Welcome { dialled: Dialled { identified, reached, first }, opening } = welcome;
        Self {
            client: identified.client,
            upstream: reached.leg,
            upstream_tls: identified.terms.upstream.tls().cloned(),
            announces: identified.terms.upstream.settings.announce.is_some(),
            protocol: identified.terms.protocol,
            opening,
            cancellable: None,
            inbound: Flow::new(first),
            outbound: Flow::new(Vec::new()),
            boundary: (identified.terms.protocol == Protocol::Postgres).then(Boundary::default),
            first_end: None,
            is_unheard: false,
            broken_by: None,
            shown_out: false,
            clock: Clock::new(identified.terms.limits),
            dead_peers: DeadPeers::new(identified.terms.limits.dead_peer_timeout),
            _counted: counted,
        }
    }

    /// Runs to the end. `carried` is right at any moment, however the session ends.
    pub(super) async fn run(&mut self, presence: &Presence, carried: &mut Carried) -> Ending {
        let mut shown_out = pin!(presence.shown_out());
        // Not `select!`, which keeps state of its own for as long as the session lives.
        poll_fn(|cx| {
            // First, so that not another byte passes.
            if let Poll::Ready(ending) = shown_out.as_mut().poll(cx) {
                self.shown_out = true;
                return Poll::Ready(ending);
            }
            let was_whole = self.first_end.is_none();
            let ended = self.poll(carried, cx);
            if let Some(first) = self.first_end.filter(|_| was_whole) {
                presence.mark_half_closed(EndedBy::of(first));
            }
            ended.map(|ending| match self.misgiving(&ending, *carried) {
                Some(words) => Ending::new(ending.reason, words),
                None => ending,
            })
        })
        .await
    }

    /// What to say of an upstream that was spoken to and hung up without a word: most likely it was not spoken to as it expects.
    fn misgiving(&self, ending: &Ending, carried: Carried) -> Option<&'static str> {
        let is_speechless = ending.reason == Reason::UpstreamClosed && carried.inbound > 0 && carried.outbound == 0;
        match (&self.upstream_tls, self.announces) {
            _ if !is_speechless => None,
            (_, true) => Some(
                "upstream: it hung up without a word; the PROXY header that begins the connection (proxy_protocol of the \
                 upstream) is nothing that redis or PostgreSQL itself understands",
            ),
            (None, false) => {
                Some("upstream: it hung up without a word; if it wants TLS on this port, set tls of the upstream")
            }
            (Some(_), false) => None,
        }
    }

    /// What is still to be said to the client. The upstream is let go of.
    pub(super) fn leave(self, ending: Ending) -> Leave {
        let mut words = self.outbound.held().to_vec();
        if self.shown_out {
            // Only between two messages, and not behind the upstream's end.
            if self.boundary.is_some_and(Boundary::is_reached) && !self.outbound.has_ended() {
                words.extend(goodbye(ending.reason));
            }
            return Leave::shown_out(ending, self.client, words);
        }
        if ending.reason == Reason::UpstreamTlsFailed && self.is_unheard {
            return Leave::refused(ending, self.client, self.protocol, Startup::Heard);
        }
        if self.outbound.has_ended() {
            return Leave::with_words(ending, self.client, words);
        }
        // The upstream may have had more to say, and close_notify would say that it had not.
        Leave { ending, parting: Parting::Cut(self.client, words) }
    }

    fn upstream_lost(&self, error: &io::Error) -> Ending {
        if let Some(words) = self.upstream_tls.as_ref().and_then(|tls| tls.explain(error)) {
            return Ending::new(Reason::UpstreamTlsFailed, words);
        }
        let reason = match error.kind() {
            kind if is_gone(kind) || kind == io::ErrorKind::UnexpectedEof => self.ended_by(Reason::UpstreamClosed),
            _ => Reason::IoError,
        };
        if error.kind() == io::ErrorKind::UnexpectedEof && reason == Reason::ClientClosed {
            // As redis ends every session that its client ends: nothing to be alarmed at.
            return Ending::new(reason, "upstream: it ended without close_notify after the client had ended");
        }
        Ending::new(reason, format_args!("upstream: {error}"))
    }

    fn client_lost(&self, error: &io::Error) -> Ending {
        let reason = match error.kind() {
            kind if is_gone(kind) => self.ended_by(Reason::ClientClosed),
            // rustls could not make sense of a record.
            io::ErrorKind::InvalidData => Reason::ProtocolViolation,
            _ => Reason::IoError,
        };
        Ending::new(reason, format_args!("client: {error}"))
    }

    /// Which side ended the session, now that this one has gone: not who did so because the other had ended.
    fn ended_by(&self, now: Reason) -> Reason {
        self.first_end.unwrap_or(now)
    }

    fn poll(&mut self, carried: &mut Carried, cx: &mut Context<'_>) -> Poll<Ending> {
        let before = *carried;
        match self.inbound.poll(&mut self.client, &mut self.upstream, &mut carried.inbound, cx) {
            Poll::Ready(Err(Broken::Reading(error))) => return Poll::Ready(self.client_lost(&error)),
            Poll::Ready(Err(Broken::Writing(error))) => {
                // The upstream takes no more, but what it has still to say is the client's.
                self.inbound.abandon();
                // A pipe is broken only behind the upstream's own end.
                self.broken_by = Some(error).filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
                self.first_end.get_or_insert(Reason::UpstreamClosed);
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.inbound.has_ended() {
            self.first_end.get_or_insert(Reason::ClientClosed);
        }
        let Self { upstream, broken_by, boundary, opening, cancellable, .. } = self;
        let mut upstream = Followed { upstream, broken_by, boundary, opening, cancellable };
        match self.outbound.poll(&mut upstream, &mut self.client, &mut carried.outbound, cx) {
            Poll::Ready(Err(Broken::Reading(error))) => {
                self.is_unheard = carried.outbound == 0;
                return Poll::Ready(self.upstream_lost(&error));
            }
            Poll::Ready(Err(Broken::Writing(error))) => return Poll::Ready(self.client_lost(&error)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.outbound.has_ended() {
            self.first_end.get_or_insert(Reason::UpstreamClosed);
        }
        match self.first_end {
            Some(reason) if self.inbound.is_done() && self.outbound.is_done() => Poll::Ready(reason.into()),
            first_end => {
                let has_carried = *carried != before;
                if let Poll::Ready(side) = self.poll_dead_peers(has_carried, cx) {
                    return Poll::Ready(Ending::new(Reason::IoError, self.dead_peers.words(side)));
                }
                let ended = self.clock.poll(first_end.is_some(), has_carried, cx);
                // Nobody has left, so that whoever is still there has to be told.
                self.shown_out |= ended == Poll::Ready(Reason::IdleTimeout);
                ended.map(Ending::from)
            }
        }
    }
}

impl Relay {
    fn poll_dead_peers(&mut self, has_carried: bool, cx: &mut Context<'_>) -> Poll<Side> {
        let Self { client, upstream, dead_peers, .. } = self;
        let sent = |side| match side {
            Side::Client => client.tcp().map_or(Known::Nothing, Sent::over),
            Side::Upstream => upstream.tcp().map_or(Known::Nothing, Sent::over),
        };
        dead_peers.poll(has_carried, sent, cx)
    }
}

/// An upstream that is read, and whose messages are followed. What has been read counts as said: what of it the client has
/// not taken yet goes before any last words.
struct Followed<'a> {
    upstream: &'a mut UpstreamLeg,
    broken_by: &'a mut Option<io::Error>,
    boundary: &'a mut Option<Boundary>,
    opening: &'a mut Option<Box<Opening>>,
    cancellable: &'a mut Option<Box<Cancellable>>,
}

impl Followed<'_> {
    /// Reads, and does not take for the end what may have been cut short.
    fn poll_uncut(&mut self, buffer: &mut ReadBuf<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut *self.upstream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        match self.upstream {
            Leg::Tls(stream) if stream.was_cut() => {
                let words = "it ended without close_notify, so what it said last may be missing";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, words)))
            }
            // What the kernel has told the writer it does not tell the reader, who is shown an end.
            Leg::Plain(_) => Poll::Ready(self.broken_by.take().map_or(Ok(()), Err)),
            Leg::Tls(_) => Poll::Ready(Ok(())),
        }
    }

    /// Reads the beginning of a session.
    fn poll_opening(&mut self, buffer: &mut ReadBuf<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Some(mut opening) = self.opening.take_if(|opening| opening.listens_only()) {
            let read = self.poll_uncut(buffer, cx);
            opening.hear(buffer.filled().get(before..).unwrap_or_default());
            if opening.is_over() {
                *self.cancellable = opening.cancellable().map(Box::new);
            } else {
                *self.opening = Some(opening);
            }
            return read;
        }
        while let Some(mut opening) = self.opening.take() {
            let due = opening.due();
            let now = due.len().min(buffer.remaining());
            buffer.put_slice(due.drain(..now).as_slice());
            if due.is_empty() && opening.is_over() {
                *self.cancellable = opening.cancellable().map(Box::new);
                if buffer.filled().len() == before {
                    break;
                }
                return Poll::Ready(Ok(()));
            }
            if buffer.filled().len() > before {
                *self.opening = Some(opening);
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; OPENING_READ];
            let mut chunk = ReadBuf::new(&mut bytes);
            let read = self.poll_uncut(&mut chunk, cx);
            match read {
                Poll::Ready(Ok(())) if chunk.filled().is_empty() => opening.end(),
                Poll::Ready(Ok(())) => {
                    opening.follow(chunk.filled());
                }
                Poll::Ready(Err(_)) | Poll::Pending => {
                    *self.opening = Some(opening);
                    return read;
                }
            }
            *self.opening = Some(opening);
        }
        self.poll_uncut(buffer, cx)
    }
}

impl AsyncRead for Followed<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match this.opening {
            None => ready!(this.poll_uncut(buffer, cx))?,
            Some(_) => ready!(this.poll_opening(buffer, cx))?,
        }
        if let Some(boundary) = this.boundary {
            boundary.follow(buffer.filled().get(before..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
    }
}

/// Whether the other side ended the connection, if not politely.
fn is_gone(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
    )
}

/// The beginning of a session is short, and most of it comes at once.
const OPENING_READ: usize = 4096;

#[cfg(test)]
mod tests;
