//! The beginning of a PostgreSQL session on its way from the upstream to the client.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tracing::warn;

use crate::policy::Terms;
use crate::protocol::postgres::startup::{Hold, Overture, Stage, Wants};
use crate::proxy::phase::dial::Dialed;
use crate::proxy::relay::outbound::Wire;
use crate::transport::Leg;
use crate::upstream::cancel_keys::{CancelKeys, CancelRegistration};
use crate::upstream::endpoint::Whereabouts;

/// Follows the beginning of a session, and has what the client is to hear of it. Gone as soon as the session has begun.
#[derive(Debug)]
pub(crate) struct StartupRelay {
    parser: Overture,
    hold: Hold,
    /// Whether what the upstream says goes to the client as it is, whatever is found in it.
    is_passive: bool,
    /// What the client is to hear.
    pending: Vec<u8>,
    /// TLS on both sides, by which libpq's channel binding fails.
    binding_mismatch: Option<Arc<Terms>>,
    /// Where the session is, until its key is known.
    endpoint: Option<(Arc<CancelKeys>, Whereabouts)>,
    over: bool,
}

impl StartupRelay {
    pub(crate) fn of(dialed: &Dialed, hold: Hold) -> Self {
        let terms = &dialed.authorized.terms;
        let client_has_tls = matches!(dialed.authorized.client, Leg::Tls(_));
        let upstream_leaf = match &dialed.connected.leg {
            Leg::Tls(stream) => stream.records().server_chain().first(),
            Leg::Plain(_) => None,
        };
        let same = |leaf| {
            dialed.authorized.shown.as_ref().is_some_and(|shown| shown.sha256 == crate::x509::crypto::sha256_hex(leaf))
        };
        let wants = Wants { hide_channel_binding: !client_has_tls && upstream_leaf.is_some(), hold };
        Self {
            parser: Overture::new(wants),
            hold,
            is_passive: wants == Wants::default(),
            pending: Vec::new(),
            binding_mismatch: upstream_leaf.filter(|leaf| client_has_tls && !same(leaf)).map(|_| Arc::clone(terms)),
            endpoint: Some((Arc::clone(&terms.upstream.cancels), dialed.connected.place.clone())),
            over: false,
        }
    }

    /// Goes on over what the upstream said.
    pub(crate) fn follow(&mut self, chunk: &[u8]) -> Stage {
        let stage = self.parser.follow(chunk, &mut self.pending);
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
        if self.is_passive {
            ready!(wire.poll_read(buffer, cx))?;
            self.follow(buffer.filled().get(before..).unwrap_or_default());
            self.pending.clear();
            return Poll::Ready(Ok(()));
        }
        loop {
            let count = self.pending.len().min(buffer.remaining());
            buffer.put_slice(self.pending.drain(..count).as_slice());
            if buffer.filled().len() > before || (self.over && self.pending.is_empty()) {
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
        let stage = self.parser.release(&mut self.pending);
        self.look(stage);
    }

    /// The upstream has ended: what is left is the client's.
    fn end(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            std::mem::replace(&mut self.parser, Overture::new(Wants::default())).end(&mut self.pending);
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
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What that is.
    pub(crate) fn take_pending(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Whether the client has been asked for a password or the like.
    pub(crate) fn asks_client(&self) -> bool {
        self.parser.asks_client()
    }

    /// Whether the server is only not ready yet.
    pub(crate) fn is_not_ready(&self) -> bool {
        self.parser.refusal().is_some_and(|refusal| refusal.is_not_ready())
    }

    /// Lets the session be found by its key, once that is known.
    pub(crate) fn register_cancel_key(&mut self) -> Option<CancelRegistration> {
        let key = self.parser.cancel_key()?;
        let (keys, endpoint) = self.endpoint.take()?;
        Some(keys.note(key, endpoint))
    }

    fn look(&mut self, stage: Stage) -> Stage {
        self.over = matches!(stage, Stage::Done | Stage::Lost);
        if self.parser.refusal().is_some_and(|refusal| refusal.is_channel_binding())
            && let Some(terms) = self.binding_mismatch.take()
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
