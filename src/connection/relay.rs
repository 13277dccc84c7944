//! The bytes, both ways, until both sides are done. The end of one direction is passed on and leaves the other running.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use super::clock::Clock;
use super::dial::{Dialled, UpstreamStream};
use super::flow::{Broken, Flow};
use super::part::Leave;
use super::stream::TlsStream;
use crate::outcome::{Carried, Ending, Reason};
use crate::sessions::Presence;

/// A session: a client and its upstream.
#[derive(Debug)]
pub(super) struct Relay {
    client: Box<TlsStream>,
    upstream: UpstreamStream,
    /// From the client to the upstream.
    inbound: Flow,
    /// From the upstream to the client.
    outbound: Flow,
    /// Which side ended first.
    first_end: Option<Reason>,
    clock: Clock,
}

impl Relay {
    pub(super) fn new(dialled: Dialled) -> Self {
        let Dialled { identified, upstream, first } = dialled;
        Self {
            client: identified.stream,
            upstream,
            inbound: Flow::new(first),
            outbound: Flow::new(Vec::new()),
            first_end: None,
            clock: Clock::new(identified.terms.limits),
        }
    }

    /// Runs to the end. `carried` is right at any moment, however the session ends.
    pub(super) async fn run(&mut self, presence: &Presence, carried: &mut Carried) -> Ending {
        tokio::select! {
            biased;
            ending = poll_fn(|cx| self.poll(carried, cx)) => ending,
            ending = presence.shown_out() => ending,
        }
    }

    /// What is still to be said to the client. The upstream is let go of.
    pub(super) fn leave(self, ending: Ending) -> Leave {
        Leave::tls(ending, self.client, Vec::new())
    }

    fn poll(&mut self, carried: &mut Carried, cx: &mut Context<'_>) -> Poll<Ending> {
        let before = *carried;
        match self.inbound.poll(&mut *self.client, &mut self.upstream, &mut carried.inbound, cx) {
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
        match self.outbound.poll(&mut self.upstream, &mut *self.client, &mut carried.outbound, cx) {
            Poll::Ready(Err(Broken::Reading(error))) => return Poll::Ready(upstream_lost(&error)),
            Poll::Ready(Err(Broken::Writing(error))) => return Poll::Ready(client_lost(&error)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.outbound.has_ended() {
            self.first_end.get_or_insert(Reason::UpstreamClosed);
        }
        match self.first_end {
            Some(reason) if self.inbound.is_done() && self.outbound.is_done() => Poll::Ready(reason.into()),
            first_end => self.clock.poll(first_end.is_some(), *carried != before, cx).map(Ending::from),
        }
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
