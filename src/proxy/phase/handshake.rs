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

/// A client that has completed TLS, or that needs none, before authorization.
#[derive(Debug)]
pub(crate) struct SecuredClient {
    pub(crate) client: ClientStream,
    /// The protocol inside TLS.
    pub(crate) protocol: Protocol,
    /// The leaf certificate that Portcullis presented.
    pub(crate) server_certificate: Option<Arc<Certificate>>,
}

impl SecuredClient {
    /// A client of a listener without TLS.
    pub(crate) fn plain(socket: Socket, policy: &ListenerPolicy) -> Self {
        Self { client: Stream::Plain(socket), protocol: policy.protocol, server_certificate: None }
    }

    /// Whether the TLS handshake resumed an earlier session.
    pub(crate) fn is_resumed(&self) -> bool {
        match &self.client {
            Stream::Tls(stream) => stream.engine().is_resumed(),
            Stream::Plain(_) => false,
        }
    }
}

/// Performs the TLS handshake. The caller sets the deadline.
pub(crate) async fn perform_handshake(
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
        // Read after each flight: the deadline may drop this future, and the audit then still has the SNI.
        let flight = stream.next_flight().await;
        if fields.sni.is_none() {
            fields.sni = handshake.sni().map(Into::into);
        }
        received += flight.as_ref().map_or(0, |count| *count);
        if stream.engine().is_handshaking() && received > MAX_RECEIVED {
            let detail =
                format!("the client sent more than {} KiB before it completed the TLS handshake", MAX_RECEIVED >> 10);
            let outcome = Outcome::new(Reason::HandshakeFailed, detail);
            return Err(Close::plain(outcome, stream.into_socket(), Vec::new()));
        }
        if let Err(error) = flight {
            if let Some(certificate) = handshake.refused().and_then(|refused| refused.certificate.as_ref()) {
                fields.name(&certificate.subject, certificate.sha256.as_str());
            }
            let outcome =
                policy.handshake_failure(&error, handshake.shown().map(|shown| &**shown), handshake.refused());
            return Err(Close::plain(outcome, stream.into_socket(), Vec::new()));
        }
    }
    handshake.remember_client();
    fields.tls_version = stream.engine().version();
    fields.cipher = stream.engine().cipher();
    if needs_alpn && stream.engine().alpn() != Some(postgres::ALPN) {
        // As in PostgreSQL 17: without SSLRequest, only ALPN shows that the client speaks PostgreSQL.
        let outcome = Outcome::new(Reason::ProtocolViolation, "direct TLS without the ALPN protocol \"postgresql\"");
        return Err(Close::with_message(outcome, Stream::Tls(stream), Vec::new()));
    }
    let server_certificate = handshake.shown().cloned();
    Ok(SecuredClient { client: Stream::Tls(stream), protocol: policy.protocol, server_certificate })
}

/// The most bytes that a client may send before it completes the handshake. It bounds memory, because rustls keeps the
/// messages of TLS 1.2 for the final signature.
///
/// The limit allows one message of 64 KiB, the maximum of rustls, and the other messages. Seven certificates with RSA-4096
/// keys have less than 16 KiB, and so has a session ticket with such a chain.
const MAX_RECEIVED: usize = 72 << 10;
