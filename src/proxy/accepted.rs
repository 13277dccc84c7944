//! An accepted connection, its admission, and the state that all connections share.

use std::sync::Arc;
use std::time::Instant;

use crate::addr::ClientAddr;
use crate::audit::Audit;
use crate::audit::event::ConnectionFields;
use crate::descriptors::{DescriptorPermit, Descriptors};
use crate::limit::handshakes::HandshakePermit;
use crate::limit::rate_limiter::RateDecision;
use crate::outcome::{Outcome, Reason};
use crate::policy::{Current, ListenerPolicy};
use crate::session::registry::{ConnectionGuard, ConnectionRegistry};
use crate::source::trusted::Admitted;
use crate::transport::socket::AcceptedSocket;

/// Why a connection was accepted.
#[derive(Debug)]
pub(crate) enum Admission {
    /// Its source is trusted. The decision is that of the source's rate limit.
    Direct(Admitted, RateDecision),
    /// It comes from a trusted load balancer, which must announce the client's address first.
    Proxied(ClientAddr),
}

impl Admission {
    /// The peer address of the socket.
    pub(crate) fn peer(&self) -> ClientAddr {
        match self {
            Self::Direct(admitted, _) => admitted.client(),
            Self::Proxied(via) => *via,
        }
    }

    /// The audit fields that are known at accept.
    pub(crate) fn fields(&self, session: Option<u64>, listener: &Arc<str>) -> ConnectionFields {
        let fields = ConnectionFields::new(session, Arc::clone(listener), self.peer());
        match self {
            Self::Direct(admitted, _) => {
                ConnectionFields { source_match: Some(admitted.source_match().clone()), ..fields }
            }
            Self::Proxied(via) => ConnectionFields { via: Some(*via), ..fields },
        }
    }
}

/// A connection from a trusted source or a trusted load balancer, with all that was acquired for it at accept.
#[derive(Debug)]
pub(crate) struct AcceptedConnection {
    pub stream: AcceptedSocket,
    pub admission: Admission,
    pub policy: Arc<ListenerPolicy>,
    pub guard: ConnectionGuard,
    pub handshake: HandshakePermit,
    /// The handshake deadline counts from here.
    pub accepted_at: Instant,
    pub descriptor_permit: DescriptorPermit,
}

/// The state that all connections share. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub current: Current,
    pub registry: Arc<ConnectionRegistry>,
    pub audit: Audit,
    pub descriptors: Descriptors,
    /// The number of the worker that runs the connections.
    pub worker: usize,
}

/// A connection from which no byte has been read.
pub(crate) struct NewConnection {
    pub(crate) stream: AcceptedSocket,
    pub(crate) policy: Arc<ListenerPolicy>,
    /// `None` until the load balancer has announced the client.
    pub(crate) rate: Option<RateDecision>,
}

/// Returns when another connection has displaced this one from `max_handshakes`.
pub(crate) async fn handshake_displaced(guard: &ConnectionGuard) {
    if guard.terminated().await.reason != Reason::HandshakeLimit {
        std::future::pending().await
    }
}

/// Releases the handshake permit. Fails when the connection has been displaced.
pub(crate) fn finish_handshake(handshake: &mut Option<HandshakePermit>) -> Result<(), Outcome> {
    handshake.take().map_or(Ok(()), HandshakePermit::finish).map_err(Outcome::from)
}
