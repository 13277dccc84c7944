//! Connections that send one PING and close. Each handshake has to be resumed or full, as the row requires.

use rustls::{HandshakeKind, NamedGroup};

use super::drive::{Lane, measure};
use super::{Outcome, Trial};
use crate::client::{Endpoint, Exchange, Session};
use crate::fault::Result;
use crate::route::Route;
use crate::tls::Offer;

/// Number of parallel clients, enough to keep the target busy.
const LANES: usize = 4;

#[derive(Debug, Clone, Copy)]
pub(super) struct Handshake {
    pub(super) route: Route,
    pub(super) offer: Offer,
}

impl Handshake {
    pub(super) const fn full(route: Route) -> Self {
        let certificate = matches!(route, Route::Mutual);
        Self { route, offer: Offer { certificate, hybrid: false, resume: false } }
    }

    pub(super) const fn resumed(route: Route) -> Self {
        let certificate = matches!(route, Route::Mutual);
        Self { route, offer: Offer { certificate, hybrid: false, resume: true } }
    }

    pub(super) const fn hybrid() -> Self {
        Self { route: Route::Redis, offer: Offer { certificate: false, hybrid: true, resume: false } }
    }

    pub(super) async fn sample(self, trial: Trial<'_>) -> Result<Outcome> {
        let client = |_| {
            // Each client has a separate ticket cache, because a ticket is used once.
            let endpoint = trial.instance.endpoint(trial.site, self.route, self.offer)?;
            Ok(ReconnectingClient { endpoint, offer: self.offer, has_ticket: false })
        };
        let clients = (0..LANES).map(client).collect::<Result<Vec<_>>>()?;
        let measured = measure(trial, clients, |_| ()).await?;
        Ok(measured.per(measured.steps, "µs/connection"))
    }
}

/// A client that reconnects repeatedly.
#[derive(Debug)]
struct ReconnectingClient {
    endpoint: Endpoint,
    offer: Offer,
    has_ticket: bool,
}

impl Lane for ReconnectingClient {
    async fn step(&mut self) -> Result<()> {
        let mut session = Session::open(&self.endpoint).await?;
        let handshake = session.handshake();
        session.exchange(&Exchange::ping(), &mut [0; 64]).await?;
        session.close().await?;
        let resumed = self.offer.resume && self.has_ticket;
        self.has_ticket = true;
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
