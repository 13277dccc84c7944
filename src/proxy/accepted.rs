//! An accepted connection, what admits it, and what every connection shares.

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

/// By what a connection comes in.
#[derive(Debug)]
pub(crate) enum Admission {
    /// Its source has been let in, and comes as fast as this.
    Direct(Admitted, RateDecision),
    /// It is a load balancer's, which has to say first where its client comes from.
    Proxied(ClientAddr),
}

impl Admission {
    /// Whose socket it is.
    pub(crate) fn from(&self) -> ClientAddr {
        match self {
            Self::Direct(admitted, _) => admitted.client(),
            Self::Proxied(via) => *via,
        }
    }

    /// What is known of the connection that comes in by it.
    pub(crate) fn fields(&self, session: Option<u64>, listener: &Arc<str>) -> ConnectionFields {
        let fields = ConnectionFields::new(session, Arc::clone(listener), self.from());
        match self {
            Self::Direct(admitted, _) => {
                ConnectionFields { source_match: Some(admitted.source_match().clone()), ..fields }
            }
            Self::Proxied(via) => ConnectionFields { via: Some(*via), ..fields },
        }
    }
}

/// A client whose source has been let in or is still to be asked for, and nothing more.
#[derive(Debug)]
pub(crate) struct AcceptedConnection {
    /// Its socket, from which nothing has been read.
    pub stream: AcceptedSocket,
    /// By what it comes in.
    pub admission: Admission,
    /// The listener it came to.
    pub policy: Arc<ListenerPolicy>,
    /// Its entry in the register.
    pub guard: ConnectionGuard,
    /// Its place among the handshakes.
    pub handshake: HandshakePermit,
    /// When it was accepted; deadlines count from here.
    pub accepted_at: Instant,
    /// The descriptors it may use.
    pub descriptor_permit: DescriptorPermit,
}

/// What every connection needs around it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    /// The policy in force.
    pub current: Current,
    /// Who is in.
    pub registry: Arc<ConnectionRegistry>,
    /// Who is told.
    pub audit: Audit,
    /// How many connections there is room for.
    pub descriptors: Descriptors,
}

/// Somebody of whom nothing has been read.
pub(crate) struct NewConnection {
    pub(crate) stream: AcceptedSocket,
    pub(crate) policy: Arc<ListenerPolicy>,
    /// Not known of a load balancer's client.
    pub(crate) rate: Option<RateDecision>,
}

/// Returns when the connection has lost its place among the handshakes.
pub(crate) async fn displaced(guard: &ConnectionGuard) {
    if guard.terminated().await.reason != Reason::HandshakeLimit {
        std::future::pending().await
    }
}

/// Gives back the place among the handshakes.
pub(crate) fn finish(handshake: &mut Option<HandshakePermit>) -> Result<(), Outcome> {
    handshake.take().map_or(Ok(()), HandshakePermit::finish).map_err(Outcome::from)
}
