//! An accepted connection, what admits it, and what every connection shares.

use std::sync::Arc;
use std::time::Instant;

use crate::addr::ClientAddr;
use crate::audit::Audit;
use crate::audit::event::Facts;
use crate::descriptors::{Descriptors, Share};
use crate::limit::handshakes::Handshake;
use crate::limit::rate_limiter::Pace;
use crate::outcome::{Ending, Reason};
use crate::policy::{Current, Terms};
use crate::session::registry::{Presence, Register};
use crate::source::trusted::Admitted;
use crate::transport::socket::Accepted;

/// By what a connection comes in.
#[derive(Debug)]
pub enum Entrance {
    /// Its source has been let in, and comes as fast as this.
    Admitted(Admitted, Pace),
    /// It is a load balancer's, which has to say first where its client comes from.
    Balancer(ClientAddr),
}

impl Entrance {
    /// Whose socket it is.
    pub fn from(&self) -> ClientAddr {
        match self {
            Self::Admitted(admitted, _) => admitted.client(),
            Self::Balancer(balancer) => *balancer,
        }
    }

    /// What is known of the connection that comes in by it.
    pub fn facts(&self, session: Option<u64>, listener: &Arc<str>) -> Facts {
        let facts = Facts::new(session, Arc::clone(listener), self.from());
        match self {
            Self::Admitted(admitted, _) => Facts { standing: Some(admitted.standing().clone()), ..facts },
            Self::Balancer(balancer) => Facts { balancer: Some(*balancer), ..facts },
        }
    }
}

/// A client whose source has been let in or is still to be asked for, and nothing more.
#[derive(Debug)]
pub struct Arrival {
    /// Its socket, from which nothing has been read.
    pub stream: Accepted,
    /// By what it comes in.
    pub entrance: Entrance,
    /// The listener it came to.
    pub terms: Arc<Terms>,
    /// Its entry in the register.
    pub presence: Presence,
    /// Its place among the handshakes.
    pub handshake: Handshake,
    /// When it was accepted; deadlines count from here.
    pub accepted_at: Instant,
    /// The descriptors it may use.
    pub share: Share,
}

/// What every connection needs around it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct House {
    /// The policy in force.
    pub current: Current,
    /// Who is in.
    pub register: Arc<Register>,
    /// Who is told.
    pub audit: Audit,
    /// How many connections there is room for.
    pub descriptors: Descriptors,
}

/// Somebody of whom nothing has been read.
pub(crate) struct Newcomer {
    pub(crate) stream: Accepted,
    pub(crate) terms: Arc<Terms>,
    /// Not known of a load balancer's client.
    pub(crate) pace: Option<Pace>,
}

/// Returns when the connection has lost its place among the handshakes.
pub(crate) async fn displaced(presence: &Presence) {
    if presence.shown_out().await.reason != Reason::HandshakeLimit {
        std::future::pending().await
    }
}

/// Gives back the place among the handshakes.
pub(crate) fn finish(handshake: &mut Option<Handshake>) -> Result<(), Ending> {
    handshake.take().map_or(Ok(()), Handshake::finish).map_err(Ending::from)
}
