//! The TLS handshake.

use std::sync::Arc;

use super::greet::Greeted;
use super::part::Leave;
use super::stream::TlsStream;
use crate::audit::Facts;
use crate::outcome::{Ending, Reason};
use crate::protocol::{Protocol, postgres};
use crate::snapshot::Terms;
use crate::tls::Certificate;

/// A client inside TLS, whose identity has not been judged.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) stream: Box<TlsStream>,
    /// What it speaks inside TLS.
    pub(super) protocol: Protocol,
    /// The certificate it was shown.
    pub(super) shown: Option<Arc<Certificate>>,
}

pub(super) async fn secure(greeted: Greeted, terms: &Terms, facts: &mut Facts) -> Result<Secured, Leave> {
    let Greeted { stream: socket, needs_alpn } = greeted;
    let attempt = terms.tls.attempt();
    let records = attempt.records().map_err(|error| Ending::new(Reason::IoError, error))?;
    let mut stream = Box::new(TlsStream::new(socket, records));
    while stream.records().is_handshaking() {
        // Looked at after each flight: the deadline may drop this future, and the audit then still names the host.
        let shaken = stream.next_flight().await;
        if facts.sni.is_none() {
            facts.sni = attempt.sni().map(Into::into);
        }
        if let Err(error) = shaken {
            if let Some(certificate) = attempt.refused() {
                facts.name(&certificate.subject, &certificate.sha256);
            }
            let ending = terms.handshake_failure(&error, attempt.shown().map(|shown| &**shown), attempt.refused());
            return Err(Leave::plain(ending, stream.into_socket(), Vec::new()));
        }
    }
    facts.tls_version = stream.records().version();
    facts.cipher = stream.records().cipher();
    if needs_alpn && stream.records().alpn() != Some(postgres::ALPN) {
        // As PostgreSQL 17 does: without SSLRequest only ALPN tells that the client means PostgreSQL.
        let ending = Ending::new(Reason::ProtocolViolation, "direct TLS without the ALPN protocol \"postgresql\"");
        return Err(Leave::tls(ending, stream, Vec::new()));
    }
    Ok(Secured { stream, protocol: terms.protocol, shown: attempt.shown().cloned() })
}
