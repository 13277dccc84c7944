//! Connections that come, say PING once, and go. Each is held to be resumed, or full, as the row says.

use rustls::{HandshakeKind, NamedGroup};

use super::drive::{Lane, measure};
use super::{Outcome, Trial};
use crate::client::{Exchange, Session, Way};
use crate::door::Door;
use crate::fault::Result;
use crate::tls::Offer;

/// Clients at a time: enough that the target always has one to serve.
const LANES: usize = 4;

#[derive(Debug, Clone, Copy)]
pub(super) struct Handshake {
    pub(super) door: Door,
    pub(super) offer: Offer,
}

impl Handshake {
    pub(super) const fn full(door: Door) -> Self {
        let certificate = matches!(door, Door::Mutual);
        Self { door, offer: Offer { certificate, hybrid: false, resume: false } }
    }

    pub(super) const fn resumed(door: Door) -> Self {
        let certificate = matches!(door, Door::Mutual);
        Self { door, offer: Offer { certificate, hybrid: false, resume: true } }
    }

    pub(super) const fn hybrid() -> Self {
        Self { door: Door::Redis, offer: Offer { certificate: false, hybrid: true, resume: false } }
    }

    pub(super) async fn sample(self, trial: Trial<'_>) -> Result<Outcome> {
        let visitor = |_| {
            // Each with a memory of its own: a ticket is good once, and nobody takes another's.
            let way = trial.instance.way(trial.site, self.door, self.offer)?;
            Ok(Visitor { way, offer: self.offer, known: false })
        };
        let visitors = (0..LANES).map(visitor).collect::<Result<Vec<_>>>()?;
        let measured = measure(trial, visitors, |_| ()).await?;
        Ok(measured.per(measured.steps, "µs/connection"))
    }
}

/// A client that keeps coming back.
#[derive(Debug)]
struct Visitor {
    way: Way,
    offer: Offer,
    /// Has been there, and was given a ticket.
    known: bool,
}

impl Lane for Visitor {
    async fn step(&mut self) -> Result<()> {
        let mut session = Session::open(&self.way).await?;
        let handshake = session.handshake();
        session.exchange(&Exchange::ping(), &mut [0; 64]).await?;
        session.close().await?;
        let resumed = self.offer.resume && self.known;
        self.known = true;
        let Some((kind, group)) = handshake else { return Ok(()) };
        let wanted = if resumed { HandshakeKind::Resumed } else { HandshakeKind::Full };
        if kind != wanted {
            return Err(format!("the handshake was {kind:?} and should be {wanted:?}").into());
        }
        let wanted = if self.offer.hybrid { NamedGroup::X25519MLKEM768 } else { NamedGroup::X25519 };
        if group != wanted {
            return Err(format!("the key exchange was {group:?} and should be {wanted:?}").into());
        }
        Ok(())
    }
}
