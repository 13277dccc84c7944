//! The TLS handshake.

use std::sync::Arc;

use rustls::HandshakeKind;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::greet::Greeted;
use super::part::Leave;
use crate::audit::Facts;
use crate::outcome::{Ending, Reason};
use crate::protocol::{Protocol, postgres};
use crate::snapshot::Terms;
use crate::tls::{ServerTls, cipher_name, handshake_failure, version_name};

/// A client inside TLS, whose identity has not been judged.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) stream: Box<TlsStream<TcpStream>>,
    /// What it speaks inside TLS.
    pub(super) protocol: Protocol,
    /// The TLS terms of the handshake.
    pub(super) tls: Arc<ServerTls>,
    /// Whether rustls has asked its verifier in this handshake; in a resumed one it has not.
    pub(super) verified: bool,
}

pub(super) async fn secure(greeted: Greeted, terms: &Terms, facts: &mut Facts) -> Result<Secured, Leave> {
    let Greeted { stream, needs_alpn } = greeted;
    let tls = Arc::clone(&terms.tls);
    let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let start = match (&mut acceptor).await {
        Ok(start) => start,
        Err(error) => {
            let ending = handshake_failure(&error, None);
            return Err(match acceptor.take_io() {
                Some(stream) => Leave::plain(ending, stream, Vec::new()),
                None => ending.into(),
            });
        }
    };
    let hello = start.client_hello();
    facts.sni = hello.server_name().map(str::to_owned);
    let shown = tls.certificate_for(&hello).cloned();

    let stream = match start.into_stream(tls.config()).into_fallible().await {
        Ok(stream) => Box::new(stream),
        Err((error, stream)) => {
            return Err(Leave::plain(handshake_failure(&error, shown.as_ref()), stream, Vec::new()));
        }
    };
    let (_, session) = stream.get_ref();
    facts.tls_version = session.protocol_version().map(version_name);
    facts.cipher = session.negotiated_cipher_suite().map(cipher_name);
    if needs_alpn && session.alpn_protocol() != Some(postgres::ALPN) {
        // As PostgreSQL 17 does: without SSLRequest only ALPN tells that the client means PostgreSQL.
        let ending = Ending::new(Reason::ProtocolViolation, "direct TLS without the ALPN protocol \"postgresql\"");
        return Err(Leave::tls(ending, stream, Vec::new()));
    }
    let verified = session.handshake_kind() != Some(HandshakeKind::Resumed);
    Ok(Secured { stream, protocol: terms.protocol, tls, verified })
}
