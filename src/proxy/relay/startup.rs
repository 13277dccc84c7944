//! The startup of a PostgreSQL session, from the upstream to the client.

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
use crate::x509::fingerprint::CertificateFingerprint;

/// Parses the startup messages of the upstream and holds those that the client is to receive. It is dropped when the session
/// is ready.
#[derive(Debug)]
pub(crate) struct StartupRelay {
    parser: StartupParser,
    withhold: Withhold,
    /// Bytes pass to the client unchanged.
    is_passive: bool,
    /// Bytes for the client.
    pending: Vec<u8>,
    /// Present if client and upstream see different certificates, so that SCRAM channel binding fails.
    binding_mismatch: Option<Arc<ListenerPolicy>>,
    /// The endpoint, until the cancel key of the session is known.
    endpoint: Option<(Arc<CancelKeys>, Endpoint)>,
    is_over: bool,
}

impl StartupRelay {
    pub(crate) fn new(dialed: &Dialed, withhold: Withhold) -> Self {
        let policy = &dialed.authorized.policy;
        let client_has_tls = matches!(dialed.authorized.client, Stream::Tls(_));
        let upstream_leaf = match &dialed.connected.stream {
            Stream::Tls(stream) => stream.engine().server_chain().first(),
            Stream::Plain(_) => None,
        };
        let client_sees = |leaf| {
            let certificate = dialed.authorized.server_certificate.as_ref();
            certificate.is_some_and(|certificate| certificate.sha256 == CertificateFingerprint::from_der(leaf))
        };
        let hide_channel_binding = dialed.access.is_none() && !client_has_tls && upstream_leaf.is_some();
        let is_authenticated = dialed.access.is_some();
        let options = StartupOptions { hide_channel_binding, is_authenticated, withhold };
        Self {
            parser: StartupParser::new(options),
            withhold,
            is_passive: options == StartupOptions::default() && dialed.connected.greeting.is_empty(),
            pending: Vec::new(),
            binding_mismatch: upstream_leaf
                .filter(|leaf| dialed.access.is_none() && client_has_tls && !client_sees(leaf))
                .map(|_| Arc::clone(policy)),
            endpoint: Some((Arc::clone(&policy.upstream.cancel_keys), dialed.connected.endpoint.clone())),
            is_over: false,
        }
    }

    /// Parses the next bytes of the upstream.
    pub(crate) fn follow(&mut self, chunk: &[u8]) -> StartupStep {
        let step = self.parser.follow(chunk, &mut self.pending);
        self.finish_step(step)
    }

    /// Reads the bytes that the client is to receive now. Ready without a byte when the startup is over.
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
            if buffer.filled().len() > before || (self.is_over && self.pending.is_empty()) {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; READ_SIZE];
            let mut chunk = ReadBuf::new(&mut bytes);
            ready!(wire.poll_read(&mut chunk, cx))?;
            if chunk.filled().is_empty() {
                self.end();
            } else if self.follow(chunk.filled()) == StartupStep::Aborted {
                return Poll::Ready(Err(io::Error::other(ASKS_CLIENT)));
            }
        }
    }

    /// Moves the withheld bytes to the pending ones.
    pub(crate) fn release(&mut self) {
        let step = self.parser.release(&mut self.pending);
        self.finish_step(step);
    }

    /// Ends the startup after the upstream has ended. The remaining bytes become pending.
    fn end(&mut self) {
        if !std::mem::replace(&mut self.is_over, true) {
            std::mem::replace(&mut self.parser, StartupParser::new(StartupOptions::default())).end(&mut self.pending);
        }
    }

    /// Whether no more bytes need to be parsed.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Until when replies are withheld from the client.
    pub(crate) fn withhold(&self) -> Withhold {
        self.withhold
    }

    /// Whether bytes are pending for the client.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn take_pending(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Whether the server has asked the client to authenticate.
    pub(crate) fn asks_client(&self) -> bool {
        self.parser.asks_client()
    }

    /// Whether the server has refused the session because it is starting or stopping (57P03).
    pub(crate) fn is_not_ready(&self) -> bool {
        self.parser.refusal().is_some_and(|refusal| refusal.is_not_ready())
    }

    /// Registers the session for CancelRequests, if its key is known.
    pub(crate) fn register_cancel_key(&mut self) -> Option<CancelRegistration> {
        let key = self.parser.cancel_key()?;
        let (keys, endpoint) = self.endpoint.take()?;
        Some(keys.register(key, endpoint))
    }

    fn finish_step(&mut self, step: StartupStep) -> StartupStep {
        self.is_over = matches!(step, StartupStep::Done | StartupStep::Lost);
        if self.parser.refusal().is_some_and(|refusal| refusal.is_channel_binding())
            && let Some(policy) = self.binding_mismatch.take()
        {
            warn!(
                listener = %policy.name,
                "SCRAM channel binding failed, client and upstream use different server certificates; use the same \
                 certificate for both, set channel_binding=disable in the client, or connect to the upstream without TLS \
                 or by Unix socket"
            );
        }
        step
    }
}

const ASKS_CLIENT: &str = "asked a client for a password that Portcullis has authenticated";

/// In bytes. A startup is short, and most of it arrives at once.
const READ_SIZE: usize = 4096;
