//! The beginning of a PostgreSQL session on its way from the upstream to the client.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tracing::warn;

use crate::policy::ListenerPolicy;
use crate::protocol::postgres::startup::{StartupOptions, StartupParser, StartupStep, Withhold};
use crate::proxy::phase::dial::Dialed;
use crate::proxy::relay::outbound::Wire;
use crate::transport::Stream;
use crate::upstream::cancel_keys::{CancelKeys, CancelRegistration};
use crate::upstream::endpoint::Endpoint;

/// Follows the beginning of a session, and has what the client is to hear of it. Gone as soon as the session has begun.
#[derive(Debug)]
pub(crate) struct StartupRelay {
    parser: StartupParser,
    withhold: Withhold,
    /// Whether what the upstream says goes to the client as it is, whatever is found in it.
    is_passive: bool,
    /// What the client is to hear.
    pending: Vec<u8>,
    /// TLS on both sides, by which libpq's channel binding fails.
    binding_mismatch: Option<Arc<ListenerPolicy>>,
    /// Where the session is, until its key is known.
    endpoint: Option<(Arc<CancelKeys>, Endpoint)>,
    over: bool,
}

impl StartupRelay {
    pub(crate) fn of(dialed: &Dialed, withhold: Withhold) -> Self {
        let policy = &dialed.authorized.policy;
        let client_has_tls = matches!(dialed.authorized.client, Stream::Tls(_));
        let upstream_leaf = match &dialed.connected.stream {
            Stream::Tls(stream) => stream.engine().server_chain().first(),
            Stream::Plain(_) => None,
        };
        let same = |leaf| {
            dialed.authorized.shown.as_ref().is_some_and(|shown| shown.sha256 == crate::x509::crypto::sha256_hex(leaf))
        };
        let wants = StartupOptions { hide_channel_binding: !client_has_tls && upstream_leaf.is_some(), withhold };
        Self {
            parser: StartupParser::new(wants),
            withhold,
            is_passive: wants == StartupOptions::default(),
            pending: Vec::new(),
            binding_mismatch: upstream_leaf.filter(|leaf| client_has_tls && !same(leaf)).map(|_| Arc::clone(policy)),
            endpoint: Some((Arc::clone(&policy.upstream.cancel_keys), dialed.connected.endpoint.clone())),
            over: false,
        }
    }

    /// Goes on over what the upstream said.
    pub(crate) fn follow(&mut self, chunk: &[u8]) -> StartupStep {
        let step = self.parser.follow(chunk, &mut self.pending);
        self.look(step)
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
        let step = self.parser.release(&mut self.pending);
        self.look(step);
    }

    /// The upstream has ended: what is left is the client's.
    fn end(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            std::mem::replace(&mut self.parser, StartupParser::new(StartupOptions::default())).end(&mut self.pending);
        }
    }

    /// Whether the session has begun, and nothing more need come here.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// How long the client is shown nothing.
    pub(crate) fn withhold(&self) -> Withhold {
        self.withhold
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

    fn look(&mut self, step: StartupStep) -> StartupStep {
        self.over = matches!(step, StartupStep::Done | StartupStep::Lost);
        if self.parser.refusal().is_some_and(|refusal| refusal.is_channel_binding())
            && let Some(policy) = self.binding_mismatch.take()
        {
            warn!(
                listener = %policy.name,
                "SCRAM channel binding failed, the client and the upstream see different certificates; use the same \
                 certificate on both legs, set channel_binding=disable in the client, or reach the upstream by a Unix socket \
                 or without TLS"
            );
        }
        step
    }
}

/// Bytes. A start-up is short, and most of it comes at once.
const READ_SIZE: usize = 4096;
