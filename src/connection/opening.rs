//! The beginning of a PostgreSQL session on its way from the upstream to the client.

use std::sync::Arc;

use tracing::warn;

use super::dial::Dialled;
use super::leg::Leg;
use crate::protocol::overture::{Hold, Overture, Stage, Wants};
use crate::snapshot::{CancelKeys, Cancellable, Terms, Whereabouts};

/// Follows the beginning of a session, and has what the client is to hear of it. Gone as soon as the session has begun.
#[derive(Debug)]
pub(super) struct Opening {
    overture: Overture,
    hold: Hold,
    /// Whether what the upstream says goes to the client as it is, whatever is found in it.
    listens_only: bool,
    /// What the client is to hear.
    due: Vec<u8>,
    /// TLS on both sides, by which libpq's channel binding fails.
    two_certificates: Option<Arc<Terms>>,
    /// Where the session is, until its key is known.
    whereabouts: Option<(Arc<CancelKeys>, Whereabouts)>,
    over: bool,
}

impl Opening {
    pub(super) fn of(dialled: &Dialled, hold: Hold) -> Self {
        let terms = &dialled.identified.terms;
        let client_has_tls = matches!(dialled.identified.client, Leg::Tls(_));
        let upstream_leaf = match &dialled.reached.leg {
            Leg::Tls(stream) => stream.records().server_chain().first(),
            Leg::Plain(_) => None,
        };
        let same =
            |leaf| dialled.identified.shown.as_ref().is_some_and(|shown| shown.sha256 == crate::tls::sha256_hex(leaf));
        let wants = Wants { hide_channel_binding: !client_has_tls && upstream_leaf.is_some(), hold };
        Self {
            overture: Overture::new(wants),
            hold,
            listens_only: wants == Wants::default(),
            due: Vec::new(),
            two_certificates: upstream_leaf.filter(|leaf| client_has_tls && !same(leaf)).map(|_| Arc::clone(terms)),
            whereabouts: Some((Arc::clone(&terms.upstream.cancels), dialled.reached.place.clone())),
            over: false,
        }
    }

    /// Goes on over what the upstream said.
    pub(super) fn follow(&mut self, chunk: &[u8]) -> Stage {
        let stage = self.overture.follow(chunk, &mut self.due);
        self.look(stage)
    }

    /// Whether what the upstream says goes to the client by itself, and is only to be [heard](Self::hear) here.
    pub(super) fn listens_only(&self) -> bool {
        self.listens_only
    }

    /// Goes on over what the upstream said and the client hears anyway.
    pub(super) fn hear(&mut self, chunk: &[u8]) {
        self.follow(chunk);
        self.due.clear();
    }

    /// Lets the client have what was held back.
    pub(super) fn release(&mut self) {
        let stage = self.overture.release(&mut self.due);
        self.look(stage);
    }

    /// The upstream has ended: what is left is the client's.
    pub(super) fn end(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            std::mem::replace(&mut self.overture, Overture::new(Wants::default())).end(&mut self.due);
        }
    }

    /// Whether the session has begun, and nothing more need come here.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// How long the client is shown nothing.
    pub(super) fn hold(&self) -> Hold {
        self.hold
    }

    /// Whether the client is to hear something by now.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// What that is.
    pub(super) fn take_due(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.due)
    }

    /// What the client is to hear by now, and takes in pieces.
    pub(super) fn due(&mut self) -> &mut Vec<u8> {
        &mut self.due
    }

    /// Whether the client has been asked for a password or the like.
    pub(super) fn asks_client(&self) -> bool {
        self.overture.asks_client()
    }

    /// Whether the server is only not ready yet.
    pub(super) fn is_not_ready(&self) -> bool {
        self.overture.refusal().is_some_and(|refusal| refusal.is_not_ready())
    }

    /// Lets the session be found by its key, once that is known.
    pub(super) fn cancellable(&mut self) -> Option<Cancellable> {
        let key = self.overture.cancel_key()?;
        let (keys, whereabouts) = self.whereabouts.take()?;
        Some(keys.note(key, whereabouts))
    }

    fn look(&mut self, stage: Stage) -> Stage {
        self.over = matches!(stage, Stage::Done | Stage::Lost);
        if self.overture.refusal().is_some_and(|refusal| refusal.is_channel_binding())
            && let Some(terms) = self.two_certificates.take()
        {
            warn!(
                "listener {}: a client failed at SCRAM channel binding: it bound its password to our certificate, and the upstream shows \
                 another one; give both the same certificate, or have clients set channel_binding=disable, or reach the upstream \
                 by a Unix socket or without TLS",
                terms.name
            );
        }
        stage
    }
}
