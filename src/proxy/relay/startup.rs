//! The beginning of a PostgreSQL session on its way from the upstream to the client.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tracing::warn;

use crate::policy::Terms;
use crate::protocol::postgres::startup::{Hold, Overture, Stage, Wants};
use crate::proxy::phase::dial::Dialled;
use crate::proxy::relay::outbound::Wire;
use crate::transport::Leg;
use crate::upstream::cancel_keys::{CancelKeys, Cancellable};
use crate::upstream::endpoint::Whereabouts;

/// Follows the beginning of a session, and has what the client is to hear of it. Gone as soon as the session has begun.
#[derive(Debug)]
pub(crate) struct Opening {
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
    pub(crate) fn of(dialled: &Dialled, hold: Hold) -> Self {
        let terms = &dialled.identified.terms;
        let client_has_tls = matches!(dialled.identified.client, Leg::Tls(_));
        let upstream_leaf = match &dialled.reached.leg {
            Leg::Tls(stream) => stream.records().server_chain().first(),
            Leg::Plain(_) => None,
        };
        let same = |leaf| {
            dialled.identified.shown.as_ref().is_some_and(|shown| shown.sha256 == crate::x509::crypto::sha256_hex(leaf))
        };
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
    pub(crate) fn follow(&mut self, chunk: &[u8]) -> Stage {
        let stage = self.overture.follow(chunk, &mut self.due);
        self.look(stage)
    }

    /// Reads for the client: what it is to receive of the start-up by now. Ready without a byte once the start-up is over.
    pub(crate) fn poll_read(
        &mut self,
        wire: &mut Wire,
        buffer: &mut ReadBuf<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if self.listens_only {
            ready!(wire.poll_read(buffer, cx))?;
            self.follow(buffer.filled().get(before..).unwrap_or_default());
            self.due.clear();
            return Poll::Ready(Ok(()));
        }
        loop {
            let count = self.due.len().min(buffer.remaining());
            buffer.put_slice(self.due.drain(..count).as_slice());
            if buffer.filled().len() > before || (self.over && self.due.is_empty()) {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; READ_SIZE];
            let mut chunk = ReadBuf::new(&mut bytes);
            ready!(wire.poll_read(&mut chunk, cx))?;
            if chunk.filled().is_empty() {
                self.end();
            } else {
                self.follow(chunk.filled());
            }
        }
    }

    /// Lets the client have what was held back.
    pub(crate) fn release(&mut self) {
        let stage = self.overture.release(&mut self.due);
        self.look(stage);
    }

    /// The upstream has ended: what is left is the client's.
    fn end(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            std::mem::replace(&mut self.overture, Overture::new(Wants::default())).end(&mut self.due);
        }
    }

    /// Whether the session has begun, and nothing more need come here.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// How long the client is shown nothing.
    pub(crate) fn hold(&self) -> Hold {
        self.hold
    }

    /// Whether the client is to hear something by now.
    pub(crate) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// What that is.
    pub(crate) fn take_due(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.due)
    }

    /// Whether the client has been asked for a password or the like.
    pub(crate) fn asks_client(&self) -> bool {
        self.overture.asks_client()
    }

    /// Whether the server is only not ready yet.
    pub(crate) fn is_not_ready(&self) -> bool {
        self.overture.refusal().is_some_and(|refusal| refusal.is_not_ready())
    }

    /// Lets the session be found by its key, once that is known.
    pub(crate) fn cancellable(&mut self) -> Option<Cancellable> {
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
                listener = %terms.name,
                "SCRAM channel binding failed, the client and the upstream see different certificates; use the same \
                 certificate on both legs, set channel_binding=disable in the client, or reach the upstream by a Unix socket \
                 or without TLS"
            );
        }
        stage
    }
}

/// Bytes. A start-up is short, and most of it comes at once.
const READ_SIZE: usize = 4096;
