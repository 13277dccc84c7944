//! Who the client is, judged by the policy in force at this moment, after every handshake.
//!
//! rustls asks its verifier during a full handshake only; a resumed one brings back the stored chain unasked. So the
//! question is a room of its own.

use std::sync::Arc;

use time::OffsetDateTime;

use super::part::{Leave, Startup};
use super::secure::Secured;
use super::stream::TlsStream;
use crate::audit::Facts;
use crate::outcome::{Ending, Reason};
use crate::snapshot::{Current, Snapshot, Terms};
use crate::tls::{Certificate, Identity};

/// A client that may go on to the upstream, by these terms.
#[derive(Debug)]
pub(super) struct Identified {
    pub(super) stream: Box<TlsStream>,
    pub(super) terms: Arc<Terms>,
}

/// Judges a client that has just finished its handshake.
pub(super) fn identify(secured: Secured, current: &Current, facts: &mut Facts) -> Result<Identified, Leave> {
    let Secured { stream, protocol } = secured;
    let snapshot = Arc::clone(&current.borrow());
    match judge(&stream, &snapshot, facts) {
        Ok(terms) => Ok(Identified { stream, terms }),
        Err(ending) => Err(Leave::refused(ending, stream, protocol, Startup::Awaited)),
    }
}

/// Puts both questions, source and identity, to the policy of `snapshot`. A chain that this policy has verified before
/// costs little.
pub(super) fn judge(stream: &TlsStream, snapshot: &Snapshot, facts: &mut Facts) -> Result<Arc<Terms>, Ending> {
    let terms = judge_source(snapshot, facts)?;
    let chain = stream.records().client_chain();
    match terms.tls.trust().judge(chain, OffsetDateTime::now_utc()) {
        Ok(Identity::Certified(certificate)) => facts.name(&certificate.subject, &certificate.sha256),
        Ok(Identity::Anonymous) => {}
        Err(ending) => {
            // The audit names whom it turns away, too.
            if let Some(Ok(certificate)) = chain.first().map(Certificate::parse) {
                facts.name(&certificate.subject, &certificate.sha256);
            }
            return Err(ending);
        }
    }
    Ok(terms)
}

/// Puts the source question to the policy of `snapshot`. What the facts said of an earlier policy's answer is gone.
pub(super) fn judge_source(snapshot: &Snapshot, facts: &mut Facts) -> Result<Arc<Terms>, Ending> {
    facts.rule = None;
    let terms = snapshot.named(&facts.listener).ok_or(Reason::ListenerRemoved)?;
    let admitted = terms.sources.admit(facts.client, OffsetDateTime::now_utc());
    let admitted = admitted.map_err(|stranger| Ending::new(Reason::UntrustedSource, stranger))?;
    facts.rule = admitted.rule().cloned();
    facts.would_deny = admitted.rule().is_none();
    facts.upstream = Some(Arc::clone(&terms.upstream_name));
    Ok(Arc::clone(terms))
}
