//! The bytes, both ways, until both sides are done. The end of one direction is passed on and leaves the other running.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::clock::Clock;
use super::dial::Dialled;
use super::flow::{Broken, Flow};
use super::leg::ClientLeg;
use super::part::Leave;
use super::socket::Socket;
use crate::outcome::{Carried, Ending, Reason};
use crate::protocol::{Boundary, Protocol, goodbye};
use crate::sessions::Presence;
use crate::snapshot::Counted;

/// A session: a client and its upstream.
#[derive(Debug)]
pub(super) struct Relay {
    client: ClientLeg,
    upstream: Socket,
    /// From the client to the upstream.
    inbound: Flow,
    /// From the upstream to the client.
    outbound: Flow,
    /// Where the upstream's messages end, in the protocol that has words for a session that is shown out.
    boundary: Option<Boundary>,
    /// Which side ended first.
    first_end: Option<Reason>,
    /// Whether it was told to end, by somebody or by its clock, and did not end by itself.
    shown_out: bool,
    clock: Clock,
    /// Its place among the sessions of its listener and its source.
    _counted: Counted,
}

impl Relay {
    pub(super) fn new(dialled: Dialled, counted: Counted) -> Self {
        let Dialled { identified, upstream, first } = dialled;
        Self {
            client: identified.client,
            upstream,
            inbound: Flow::new(first),
            outbound: Flow::new(Vec::new()),
            boundary: (identified.terms.protocol == Protocol::Postgres).then(Boundary::default),
            first_end: None,
            shown_out: false,
            clock: Clock::new(identified.terms.limits),
            _counted: counted,
        }
    }

    /// Runs to the end. `carried` is right at any moment, however the session ends.
    pub(super) async fn run(&mut self, presence: &Presence, carried: &mut Carried) -> Ending {
        tokio::select! {
            biased;
            // First, so that not another byte passes.
            ending = presence.shown_out() => {
                self.shown_out = true;
                ending
            }
            ending = poll_fn(|cx| self.poll(carried, cx)) => ending,
        }
    }

    /// What is still to be said to the client. The upstream is let go of.
    pub(super) fn leave(self, ending: Ending) -> Leave {
        if !self.shown_out {
            return Leave::with_words(ending, self.client, Vec::new());
        }
        let mut words = self.outbound.held().to_vec();
        // Only between two messages, and not behind the upstream's end.
        if self.boundary.is_some_and(Boundary::is_reached) && !self.outbound.has_ended() {
            words.extend(goodbye(ending.reason));
        }
        Leave::shown_out(ending, self.client, words)
    }

    fn poll(&mut self, carried: &mut Carried, cx: &mut Context<'_>) -> Poll<Ending> {
        let before = *carried;
        match self.inbound.poll(&mut self.client, &mut self.upstream, &mut carried.inbound, cx) {
            Poll::Ready(Err(Broken::Reading(error))) => return Poll::Ready(client_lost(&error)),
            Poll::Ready(Err(Broken::Writing(_))) => {
                // The upstream takes no more, but what it has still to say is the client's.
                self.inbound.abandon();
                self.first_end.get_or_insert(Reason::UpstreamClosed);
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.inbound.has_ended() {
            self.first_end.get_or_insert(Reason::ClientClosed);
        }
        let mut upstream = Followed { upstream: &mut self.upstream, boundary: &mut self.boundary };
        match self.outbound.poll(&mut upstream, &mut self.client, &mut carried.outbound, cx) {
            Poll::Ready(Err(Broken::Reading(error))) => return Poll::Ready(upstream_lost(&error)),
            Poll::Ready(Err(Broken::Writing(error))) => return Poll::Ready(client_lost(&error)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.outbound.has_ended() {
            self.first_end.get_or_insert(Reason::UpstreamClosed);
        }
        match self.first_end {
            Some(reason) if self.inbound.is_done() && self.outbound.is_done() => Poll::Ready(reason.into()),
            first_end => {
                let ended = self.clock.poll(first_end.is_some(), *carried != before, cx);
                // Nobody has left, so that whoever is still there has to be told.
                self.shown_out |= ended == Poll::Ready(Reason::IdleTimeout);
                ended.map(Ending::from)
            }
        }
    }
}

/// An upstream that is read, and whose messages are followed. What has been read counts as said: what of it the client has
/// not taken yet goes before any last words.
struct Followed<'a> {
    upstream: &'a mut Socket,
    boundary: &'a mut Option<Boundary>,
}

impl AsyncRead for Followed<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { upstream, boundary } = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut **upstream).poll_read(cx, buffer))?;
        if let Some(boundary) = boundary {
            boundary.follow(buffer.filled().get(before..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
    }
}

fn client_lost(error: &io::Error) -> Ending {
    let reason = match error.kind() {
        kind if is_gone(kind) => Reason::ClientClosed,
        // rustls could not make sense of a record.
        io::ErrorKind::InvalidData => Reason::ProtocolViolation,
        _ => Reason::IoError,
    };
    Ending::new(reason, format_args!("client: {error}"))
}

fn upstream_lost(error: &io::Error) -> Ending {
    let reason = if is_gone(error.kind()) { Reason::UpstreamClosed } else { Reason::IoError };
    Ending::new(reason, format_args!("upstream: {error}"))
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

#[cfg(test)]
mod tests;
