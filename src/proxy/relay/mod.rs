//! The bytes, both ways, until both sides are done. The end of one direction is passed on and leaves the other running.

pub(crate) mod dead_peer;
pub(crate) mod flow;
pub(crate) mod idle;
pub(crate) mod outbound;
pub(crate) mod startup;
#[cfg(test)]
mod tests;
pub(crate) mod timing;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::limit::sessions::SessionPermit;
use crate::outcome::{ByteCounts, Outcome, Reason};
use crate::protocol::Protocol;
use crate::protocol::farewell::farewell_message;
use crate::proxy::phase::close::{Close, Farewell, StartupState};
use crate::proxy::phase::dial::Dialed;
use crate::proxy::phase::select::SelectedUpstream;
use crate::proxy::relay::dead_peer::{DeadPeers, Known, Sent, Side};
use crate::proxy::relay::flow::{Flow, FlowError};
use crate::proxy::relay::idle::IdleTimer;
use crate::proxy::relay::outbound::Outbound;
use crate::session::registry::ConnectionGuard;
use crate::session::registry::state::ClosedSide;
use crate::tls::upstream::UpstreamTls;
use crate::transport::ClientStream;

/// A session: a client and its upstream.
#[derive(Debug)]
pub(crate) struct Relay {
    client: ClientStream,
    upstream: Outbound,
    /// Has the words for what goes wrong in it.
    upstream_tls: Option<Arc<UpstreamTls>>,
    /// Whether the upstream was told of the client by a PROXY header.
    sends_proxy_header: bool,
    protocol: Protocol,
    /// From the client to the upstream.
    inbound: Flow,
    /// From the upstream to the client.
    outbound: Flow,
    /// Which side ended first.
    first_end: Option<Reason>,
    /// Whether the upstream was lost before the client has heard anything from it.
    is_unheard: bool,
    /// Whether it was told to end, by somebody or by its clock, and did not end by itself.
    terminated: bool,
    idle_timer: IdleTimer,
    dead_peers: DeadPeers,
    /// Its place among the sessions of its listener and its source.
    _permit: SessionPermit,
}

impl Relay {
    pub(crate) fn new(selected: SelectedUpstream, permit: SessionPermit) -> Self {
        let SelectedUpstream { dialed: Dialed { authorized, connected, first }, startup } = selected;
        Self {
            client: authorized.client,
            upstream: Outbound::new(connected.stream, authorized.policy.protocol, startup),
            upstream_tls: authorized.policy.upstream.tls().cloned(),
            sends_proxy_header: authorized.policy.upstream.settings.proxy_header.is_some(),
            protocol: authorized.policy.protocol,
            inbound: Flow::new(first),
            outbound: Flow::new(Vec::new()),
            first_end: None,
            is_unheard: false,
            terminated: false,
            idle_timer: IdleTimer::new(authorized.policy.limits),
            dead_peers: DeadPeers::new(authorized.policy.limits.dead_peer_timeout),
            _permit: permit,
        }
    }

    /// Runs to the end. `carried` is right at any moment, however the session ends.
    pub(crate) async fn run(&mut self, guard: &ConnectionGuard, carried: &mut ByteCounts) -> Outcome {
        let mut terminated = pin!(guard.terminated());
        // Not `select!`, which keeps state of its own for as long as the session lives.
        poll_fn(|cx| {
            // First, so that not another byte passes.
            if let Poll::Ready(ending) = terminated.as_mut().poll(cx) {
                self.terminated = true;
                return Poll::Ready(ending);
            }
            let was_whole = self.first_end.is_none();
            let ended = self.poll(carried, cx);
            if let Some(first) = self.first_end.filter(|_| was_whole) {
                guard.mark_half_closed(ClosedSide::of(first));
            }
            ended.map(|ending| match self.upstream_hint(&ending, *carried) {
                Some(words) => Outcome::new(ending.reason, words),
                None => ending,
            })
        })
        .await
    }

    /// What to say of an upstream that was spoken to and hung up without a word: most likely it was not spoken to as it expects.
    fn upstream_hint(&self, ending: &Outcome, carried: ByteCounts) -> Option<&'static str> {
        let is_speechless = ending.reason == Reason::UpstreamClosed && carried.inbound > 0 && carried.outbound == 0;
        match (&self.upstream_tls, self.sends_proxy_header) {
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
    pub(crate) fn close(self, ending: Outcome) -> Close {
        let mut words = self.outbound.pending().to_vec();
        if self.terminated {
            // Only between two messages, and not behind the upstream's end.
            if self.upstream.is_between_messages() && !self.outbound.has_ended() {
                words.extend(farewell_message(ending.reason));
            }
            return Close::terminated(ending, self.client, words);
        }
        if ending.reason == Reason::UpstreamTlsFailed && self.is_unheard {
            return Close::refused(ending, self.client, self.protocol, StartupState::Heard);
        }
        if self.outbound.has_ended() {
            return Close::with_words(ending, self.client, words);
        }
        // The upstream may have had more to say, and close_notify would say that it had not.
        Close { ending, farewell: Farewell::Cut(self.client, words) }
    }

    fn upstream_lost(&self, error: &io::Error) -> Outcome {
        if let Some(words) = self.upstream_tls.as_ref().and_then(|tls| tls.explain(error)) {
            return Outcome::new(Reason::UpstreamTlsFailed, words);
        }
        let reason = match error.kind() {
            kind if is_gone(kind) || kind == io::ErrorKind::UnexpectedEof => self.ended_by(Reason::UpstreamClosed),
            _ => Reason::IoError,
        };
        if error.kind() == io::ErrorKind::UnexpectedEof && reason == Reason::ClientClosed {
            // As redis ends every session that its client ends: nothing to be alarmed at.
            return Outcome::new(reason, "upstream: it ended without close_notify after the client had ended");
        }
        Outcome::new(reason, format_args!("upstream: {error}"))
    }

    fn client_lost(&self, error: &io::Error) -> Outcome {
        let reason = match error.kind() {
            kind if is_gone(kind) => self.ended_by(Reason::ClientClosed),
            // rustls could not make sense of a record.
            io::ErrorKind::InvalidData => Reason::ProtocolViolation,
            _ => Reason::IoError,
        };
        Outcome::new(reason, format_args!("client: {error}"))
    }

    /// Which side ended the session, now that this one has gone: not who did so because the other had ended.
    fn ended_by(&self, now: Reason) -> Reason {
        self.first_end.unwrap_or(now)
    }

    fn poll(&mut self, carried: &mut ByteCounts, cx: &mut Context<'_>) -> Poll<Outcome> {
        let before = *carried;
        match self.inbound.poll(&mut self.client, self.upstream.writer(), &mut carried.inbound, cx) {
            Poll::Ready(Err(FlowError::Reading(error))) => return Poll::Ready(self.client_lost(&error)),
            Poll::Ready(Err(FlowError::Writing(error))) => {
                // The upstream takes no more, but what it has still to say is the client's.
                self.inbound.abandon();
                self.upstream.note_write_error(error);
                self.first_end.get_or_insert(Reason::UpstreamClosed);
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.inbound.has_ended() {
            self.first_end.get_or_insert(Reason::ClientClosed);
        }
        match self.outbound.poll(&mut self.upstream, &mut self.client, &mut carried.outbound, cx) {
            Poll::Ready(Err(FlowError::Reading(error))) => {
                self.is_unheard = carried.outbound == 0;
                return Poll::Ready(self.upstream_lost(&error));
            }
            Poll::Ready(Err(FlowError::Writing(error))) => return Poll::Ready(self.client_lost(&error)),
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
                    return Poll::Ready(Outcome::new(Reason::IoError, self.dead_peers.words(side)));
                }
                let ended = self.idle_timer.poll(first_end.is_some(), has_carried, cx);
                // Nobody has left, so that whoever is still there has to be told.
                self.terminated |= ended == Poll::Ready(Reason::IdleTimeout);
                ended.map(Outcome::from)
            }
        }
    }
}

impl Relay {
    fn poll_dead_peers(&mut self, has_carried: bool, cx: &mut Context<'_>) -> Poll<Side> {
        let Self { client, upstream, dead_peers, .. } = self;
        let sent = |side| match side {
            Side::Client => client.tcp().map_or(Known::Nothing, Sent::over),
            Side::Upstream => upstream.stream().tcp().map_or(Known::Nothing, Sent::over),
        };
        dead_peers.poll(has_carried, sent, cx)
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
