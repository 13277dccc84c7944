//! Relays bytes in both directions until both are done. The end of one direction is passed on, and the other continues.

pub(crate) mod dead_peer;
pub(crate) mod flow;
pub(crate) mod idle;
pub(crate) mod inbound;
pub(crate) mod outbound;
pub(crate) mod reauthenticate;
pub(crate) mod span;
pub(crate) mod startup;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use zeroize::Zeroizing;

use crate::limit::sessions::SessionPermit;
use crate::metrics::relayed::ByteMeter;
use crate::outcome::{ByteCounts, Outcome, Reason};
use crate::protocol::Protocol;
use crate::protocol::farewell::farewell_message;
use crate::proxy::phase::authenticate::{Access, Opening};
use crate::proxy::phase::authorize::AuthorizedClient;
use crate::proxy::phase::close::{Close, Farewell, StartupState};
use crate::proxy::phase::dial::Dialed;
use crate::proxy::phase::select::SelectedUpstream;
use crate::proxy::relay::dead_peer::{DeadPeers, PeerInfo, Side, TcpInfo};
use crate::proxy::relay::flow::{Flow, FlowError};
use crate::proxy::relay::idle::IdleTimer;
use crate::proxy::relay::inbound::{Inbound, PasswordTranslation};
use crate::proxy::relay::outbound::Outbound;
use crate::proxy::relay::reauthenticate::{Account, Start};
use crate::session::registry::ConnectionGuard;
use crate::session::registry::state::ClosedSide;
use crate::tls::upstream::UpstreamTls;

/// A session: a client and its upstream.
#[derive(Debug)]
pub(crate) struct Relay {
    client: Inbound,
    upstream: Outbound,
    /// Explains TLS errors.
    upstream_tls: Option<Arc<UpstreamTls>>,
    /// The connection to the upstream started with a PROXY header.
    sends_proxy_header: bool,
    protocol: Protocol,
    /// From the client to the upstream.
    inbound: Flow,
    /// From the upstream to the client.
    outbound: Flow,
    /// The side that ended first.
    first_end: Option<Reason>,
    /// The upstream was lost before the client received a byte from it.
    lost_before_response: bool,
    /// The session was terminated by an administrator, a reload, a shutdown or `idle_timeout`.
    is_terminated: bool,
    idle_timer: IdleTimer,
    dead_peers: DeadPeers,
    _permit: SessionPermit,
}

impl Relay {
    /// `account` builds what is needed if the client may authenticate again.
    pub(crate) fn new(
        selected: SelectedUpstream,
        permit: SessionPermit,
        account: impl FnOnce(Start) -> Account,
    ) -> Self {
        let SelectedUpstream { dialed: Dialed { authorized, connected, buffered, access }, startup } = selected;
        let AuthorizedClient { client, policy, .. } = authorized;
        let (mut passwords, mut reply, mut buffered) = (None, &b""[..], buffered);
        if let Some((access, server)) = access.zip(connected.redis) {
            let Access { opening, credentials, .. } = *access;
            let first = match opening {
                Opening::Redis(Some(attempt)) => {
                    let opening = attempt.into_opening();
                    reply = opening.reply;
                    opening.command
                }
                // A client with a certificate has sent none. PostgreSQL has no passwords to translate.
                Opening::Redis(None) | Opening::Postgres(_) => Zeroizing::default(),
            };
            let start = Start { policy: Arc::clone(&policy), credentials, endpoint: connected.endpoint };
            let account = account(start);
            let waiting = mem::take(&mut buffered);
            passwords = Some(Box::new(PasswordTranslation::new(server, account, first, waiting)));
        }
        Self {
            client: Inbound::new(client, passwords),
            upstream: Outbound::new(connected.stream, policy.protocol, startup),
            upstream_tls: policy.upstream.tls().cloned(),
            sends_proxy_header: policy.upstream.settings.proxy_header.is_some(),
            protocol: policy.protocol,
            inbound: Flow::new(buffered),
            outbound: Flow::new(reply.to_vec()),
            first_end: None,
            lost_before_response: false,
            is_terminated: false,
            idle_timer: IdleTimer::new(policy.limits),
            dead_peers: DeadPeers::new(policy.limits.dead_peer_timeout),
            _permit: permit,
        }
    }

    /// Relays until the session ends. The counts of `meter` are correct at any time, even if the future is dropped.
    pub(crate) async fn run(&mut self, guard: &ConnectionGuard, meter: ByteMeter<'_>) -> Outcome {
        let mut terminated = pin!(guard.terminated());
        // Not `select!`, which would add state for the lifetime of the session.
        poll_fn(|cx| {
            // Polled first, so that no byte is relayed after termination.
            if let Poll::Ready(outcome) = terminated.as_mut().poll(cx) {
                self.is_terminated = true;
                return Poll::Ready(outcome);
            }
            let was_open = self.first_end.is_none();
            let before = *meter.counts;
            let ended = self.poll(meter.counts, cx);
            meter.publish(before);
            if let Some(first) = self.first_end.filter(|_| was_open) {
                guard.mark_half_closed(ClosedSide::of(first));
            }
            ended.map(|outcome| match self.upstream_hint(&outcome, *meter.counts) {
                Some(hint) => Outcome::new(outcome.reason, hint),
                None => outcome,
            })
        })
        .await
    }

    /// The likely cause if the upstream closes the connection without a response.
    fn upstream_hint(&self, outcome: &Outcome, byte_counts: ByteCounts) -> Option<&'static str> {
        let no_response =
            outcome.reason == Reason::UpstreamClosed && byte_counts.inbound > 0 && byte_counts.outbound == 0;
        match (&self.upstream_tls, self.sends_proxy_header) {
            _ if !no_response => None,
            (_, true) => Some(
                "upstream: closed the connection without a response; upstream.proxy_protocol is set, but Redis and PostgreSQL \
                 do not accept PROXY headers",
            ),
            (None, false) => {
                Some("upstream: closed the connection without a response; if this port expects TLS, set upstream.tls")
            }
            (Some(_), false) => None,
        }
    }

    /// Closes the upstream and returns the farewell for the client.
    pub(crate) fn close(self, outcome: Outcome) -> Close {
        let mut message = self.outbound.pending().to_vec();
        if self.is_terminated {
            // Only between two messages, and not after the upstream's end.
            if self.upstream.is_between_messages() && !self.outbound.has_ended() {
                message.extend(farewell_message(outcome.reason));
            }
            return Close::terminated(outcome, self.client.into_stream(), message);
        }
        if outcome.reason == Reason::UpstreamTlsFailed && self.lost_before_response {
            return Close::refused(outcome, self.client.into_stream(), self.protocol, StartupState::Received);
        }
        if self.outbound.has_ended() {
            return Close::with_message(outcome, self.client.into_stream(), message);
        }
        // The upstream's data may be incomplete, and close_notify would hide that.
        Close { outcome, farewell: Farewell::Truncated(self.client.into_stream(), message) }
    }

    fn upstream_lost(&self, error: &io::Error) -> Outcome {
        if let Some(detail) = self.upstream_tls.as_ref().and_then(|tls| tls.explain(error)) {
            return Outcome::new(Reason::UpstreamTlsFailed, detail);
        }
        let reason = match error.kind() {
            kind if is_closed_by_peer(kind) || kind == io::ErrorKind::UnexpectedEof => {
                self.ended_by(Reason::UpstreamClosed)
            }
            _ => Reason::IoError,
        };
        if error.kind() == io::ErrorKind::UnexpectedEof && reason == Reason::ClientClosed {
            // Harmless: Redis ends every session this way after its client has ended.
            return Outcome::new(reason, "upstream: closed without close_notify after the client had ended");
        }
        Outcome::new(reason, format_args!("upstream: {error}"))
    }

    fn client_lost(&self, error: &io::Error) -> Outcome {
        let reason = match error.kind() {
            kind if is_closed_by_peer(kind) => self.ended_by(Reason::ClientClosed),
            // rustls rejected a record.
            io::ErrorKind::InvalidData => Reason::ProtocolViolation,
            _ => Reason::IoError,
        };
        Outcome::new(reason, format_args!("client: {error}"))
    }

    /// The side that ended first, or `side` if it is the first.
    fn ended_by(&self, side: Reason) -> Reason {
        self.first_end.unwrap_or(side)
    }

    fn poll(&mut self, byte_counts: &mut ByteCounts, cx: &mut Context<'_>) -> Poll<Outcome> {
        let before = *byte_counts;
        match self.inbound.poll(&mut self.client, self.upstream.writer(), &mut byte_counts.inbound, cx) {
            Poll::Ready(Err(FlowError::Reading(error))) => return Poll::Ready(self.client_lost(&error)),
            Poll::Ready(Err(FlowError::Writing(error))) => {
                // The upstream accepts no more bytes, but its remaining response still goes to the client.
                self.inbound.abandon();
                self.upstream.note_write_error(error);
                self.first_end.get_or_insert(Reason::UpstreamClosed);
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.inbound.has_ended() {
            self.first_end.get_or_insert(Reason::ClientClosed);
        }
        match self.outbound.poll(&mut self.upstream, self.client.writer(), &mut byte_counts.outbound, cx) {
            Poll::Ready(Err(FlowError::Reading(error))) => {
                self.lost_before_response = byte_counts.outbound == 0;
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
                let has_progress = *byte_counts != before;
                if let Poll::Ready(side) = self.poll_dead_peers(has_progress, cx) {
                    return Poll::Ready(Outcome::new(Reason::IoError, self.dead_peers.describe(side)));
                }
                let ended = self.idle_timer.poll(first_end.is_some(), has_progress, cx);
                // Both sides are still connected, so the client gets a farewell message.
                self.is_terminated |= ended == Poll::Ready(Reason::IdleTimeout);
                ended.map(Outcome::from)
            }
        }
    }
}

impl Relay {
    fn poll_dead_peers(&mut self, has_progress: bool, cx: &mut Context<'_>) -> Poll<Side> {
        let Self { client, upstream, dead_peers, .. } = self;
        let peer_info = |side| match side {
            Side::Client => client.stream().tcp().map_or(PeerInfo::Unavailable, TcpInfo::read),
            Side::Upstream => upstream.stream().tcp().map_or(PeerInfo::Unavailable, TcpInfo::read),
        };
        dead_peers.poll(has_progress, peer_info, cx)
    }
}

/// Whether the other side has closed or reset the connection.
fn is_closed_by_peer(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
    )
}
