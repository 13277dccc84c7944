//! The TLS handshake.

use std::sync::Arc;

use crate::audit::event::ConnectionFields;
use crate::outcome::{Outcome, Reason};
use crate::policy::ListenerPolicy;
use crate::protocol::{Protocol, postgres};
use crate::proxy::phase::close::Close;
use crate::proxy::phase::preface::TlsStart;
use crate::tls::server::ServerTls;
use crate::transport::socket::Socket;
use crate::transport::tls_stream::TlsStream;
use crate::transport::{ClientStream, Stream};
use crate::x509::certificate::Certificate;

/// A client inside TLS, or where none is needed, whose identity has not been judged.
#[derive(Debug)]
pub(crate) struct SecuredClient {
    pub(crate) client: ClientStream,
    /// What it speaks inside TLS.
    pub(crate) protocol: Protocol,
    /// The certificate it was shown.
    pub(crate) shown: Option<Arc<Certificate>>,
}

impl SecuredClient {
    /// A client of a listener where TLS is off.
    pub(crate) fn plain(socket: Socket, policy: &ListenerPolicy) -> Self {
        Self { client: Stream::Plain(socket), protocol: policy.protocol, shown: None }
    }
}

pub(crate) async fn perform(
    start: TlsStart,
    policy: &ListenerPolicy,
    tls: &Arc<ServerTls>,
    fields: &mut ConnectionFields,
) -> Result<SecuredClient, Close> {
    let TlsStart { stream: socket, needs_alpn } = start;
    let handshake = tls.handshake();
    let engine = handshake.engine().map_err(|error| Outcome::new(Reason::IoError, error))?;
    let mut stream = Box::new(TlsStream::new(socket, engine));
    let mut received = 0;
    while stream.engine().is_handshaking() {
        // Looked at after each flight: the deadline may drop this future, and the audit then still names the host.
        let shaken = stream.next_flight().await;
        if fields.sni.is_none() {
            fields.sni = handshake.sni().map(Into::into);
        }
        received += shaken.as_ref().map_or(0, |count| *count);
        if stream.engine().is_handshaking() && received > MAX_RECEIVED {
            let detail =
                format!("the client sent more than {} KiB before the TLS handshake was over", MAX_RECEIVED >> 10);
            let ending = Outcome::new(Reason::HandshakeFailed, detail);
            return Err(Close::plain(ending, stream.into_socket(), Vec::new()));
        }
        if let Err(error) = shaken {
            if let Some(certificate) = handshake.refused().and_then(|refused| refused.certificate.as_ref()) {
                fields.name(&certificate.subject, &certificate.sha256);
            }
            let ending = policy.handshake_failure(&error, handshake.shown().map(|shown| &**shown), handshake.refused());
            return Err(Close::plain(ending, stream.into_socket(), Vec::new()));
        }
    }
    handshake.remember_client();
    fields.tls_version = stream.engine().version();
    fields.cipher = stream.engine().cipher();
    if needs_alpn && stream.engine().alpn() != Some(postgres::ALPN) {
        // As PostgreSQL 17 does: without SSLRequest only ALPN tells that the client means PostgreSQL.
        let ending = Outcome::new(Reason::ProtocolViolation, "direct TLS without the ALPN protocol \"postgresql\"");
        return Err(Close::with_words(ending, Stream::Tls(stream), Vec::new()));
    }
    Ok(SecuredClient { client: Stream::Tls(stream), protocol: policy.protocol, shown: handshake.shown().cloned() })
}

/// The most that a client may send before its handshake is over, and so the most that is kept of it: rustls keeps the
/// messages of TLS 1.2 for the signature at the end. There is room for one message of the largest size that rustls takes,
/// 64 KiB, and for an ordinary rest. Seven certificates with RSA-4096 keys are below 16 KiB, and so is a session ticket with
/// such a chain in it.
const MAX_RECEIVED: usize = 72 << 10;
