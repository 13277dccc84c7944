//! Who the client is, judged by the policy in force at this moment, after every handshake.
//!
//! rustls asks its verifier during a full handshake only; a resumed one brings back the stored chain unasked. So the
//! question is a room of its own.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::part::{Leave, Startup};
use super::secure::Secured;
use crate::addr::ClientAddr;
use crate::audit::Facts;
use crate::outcome::{Ending, Reason};
use crate::policy::Admitted;
use crate::protocol::Protocol;
use crate::snapshot::{Current, Snapshot, Terms};
use crate::tls::{Identity, ServerTls};

/// A client that may go on to the upstream, by the terms of one generation.
#[derive(Debug)]
pub(super) struct Identified {
    pub(super) stream: Box<TlsStream<TcpStream>>,
    pub(super) terms: Arc<Terms>,
    /// Of the policy that judged it.
    pub(super) generation: u64,
}

/// Judges a client that has just finished its handshake.
pub(super) fn identify(
    secured: Secured,
    admitted: &Admitted,
    current: &Current,
    facts: &mut Facts,
) -> Result<Identified, Leave> {
    let Secured { stream, tls, verified } = secured;
    let snapshot = Arc::clone(&current.borrow());
    let already = verified.then_some(&tls);
    match judge(&stream, admitted.client(), already, &snapshot, facts) {
        Ok(terms) => Ok(Identified { stream, terms, generation: snapshot.generation }),
        Err((ending, protocol)) => Err(Leave::refused(ending, stream, protocol, Startup::Awaited)),
    }
}

/// Puts both questions, source and identity, to the policy of `snapshot`. `already` is the TLS configuration that has
/// verified the client's certificate in a full handshake a moment ago, if one has.
pub(super) fn judge(
    stream: &TlsStream<TcpStream>,
    client: ClientAddr,
    already: Option<&Arc<ServerTls>>,
    snapshot: &Snapshot,
    facts: &mut Facts,
) -> Result<Arc<Terms>, (Ending, Protocol)> {
    let Some(terms) = snapshot.named(&facts.listener) else {
        return Err((Reason::ListenerRemoved.into(), Protocol::Tcp));
    };
    let refuse = |ending| (ending, terms.protocol);
    let now = OffsetDateTime::now_utc();
    let admitted = terms.sources.admit(client, now);
    let admitted = admitted.map_err(|stranger| refuse(Ending::new(Reason::UntrustedSource, stranger)))?;
    facts.rule = admitted.rule().cloned();
    facts.would_deny = admitted.rule().is_none();

    let (_, session) = stream.get_ref();
    let chain: &[CertificateDer<'_>] = session.peer_certificates().unwrap_or_default();
    let trust = terms.tls.trust();
    let identity = match already {
        Some(tls) if Arc::ptr_eq(tls, &terms.tls) => trust.identify(chain),
        Some(_) | None => trust.judge(chain, now),
    };
    if let Identity::Certified(certificate) = identity.map_err(refuse)? {
        facts.client_subject = Some(certificate.subject.clone());
        facts.client_sha256 = Some(certificate.sha256.clone());
    }
    Ok(Arc::clone(terms))
}
