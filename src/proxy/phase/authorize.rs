//! Who the client is, judged by the policy in force at this moment, after every handshake.
//!
//! rustls asks its verifier during a full handshake only; a resumed one brings back the stored chain unasked. So the
//! question is a room of its own.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::audit::event::Facts;
use crate::identity::verified::Credential;
use crate::outcome::Ending;
use crate::policy::authorize::{Permission, Refusal};
use crate::policy::usage::Reliance;
use crate::policy::{Current, Snapshot, Terms};
use crate::proxy::phase::close::{Leave, Startup};
use crate::proxy::phase::handshake::Secured;
use crate::transport::{ClientLeg, Leg};
use crate::x509::certificate::Certificate;

/// A client that may go on to the upstream, by these terms.
#[derive(Debug)]
pub(crate) struct Identified {
    pub(crate) client: ClientLeg,
    pub(crate) terms: Arc<Terms>,
    /// What it identified itself with.
    pub(crate) credential: Option<Arc<Credential>>,
    /// The certificate it was shown.
    pub(crate) shown: Option<Arc<Certificate>>,
}

impl Identified {
    /// What it relies on by this permission.
    pub(crate) fn reliance(&self, permission: &Permission) -> Reliance {
        match self.client {
            Leg::Tls(_) => Reliance::on(permission, self.shown.clone()),
            Leg::Plain(_) => Reliance::in_plaintext(permission),
        }
    }

    /// Turns away a client that has said what it wants.
    pub(crate) fn refused(self, ending: Ending) -> Leave {
        Leave::refused(ending, self.client, self.terms.protocol, Startup::Heard)
    }
}

/// Judges a client that has just finished its handshake.
pub(crate) fn identify(secured: Secured, current: &Current, facts: &mut Facts) -> Result<Identified, Leave> {
    let Secured { client, protocol, shown } = secured;
    let snapshot = Arc::clone(&current.borrow());
    match judge(&client, &snapshot, facts) {
        Ok(permission) => {
            let Permission { terms, credential, .. } = permission.clone();
            let identified = Identified { client, terms, credential, shown };
            // Also where there is no room for it, or no upstream: it will come again.
            permission.terms.usage.note(&identified.reliance(&permission), facts.client, OffsetDateTime::now_utc());
            Ok(identified)
        }
        Err(ending) => Err(Leave::refused(ending, client, protocol, Startup::Awaited)),
    }
}

/// Puts both questions, source and identity, to the policy of `snapshot`. A chain that this policy has verified before
/// costs little.
pub(crate) fn judge(client: &ClientLeg, snapshot: &Snapshot, facts: &mut Facts) -> Result<Permission, Ending> {
    let evidence = client.evidence();
    let judged = snapshot.judge(&facts.listener, facts.provenance(), evidence, OffsetDateTime::now_utc());
    note(judged.as_ref(), facts);
    if let Err(Refusal::Identity(_)) = &judged {
        // The source is trusted, and the audit says by which rule.
        let source = snapshot.judge_source(&facts.listener, facts.provenance(), OffsetDateTime::now_utc());
        facts.standing = source.ok().map(|permission| permission.standing);
    }
    if let (Err(Refusal::Identity(_)), Some(certificate)) = (&judged, evidence.leaf()) {
        // The audit names whom it turns away, too.
        facts.name(&certificate.subject, &certificate.sha256);
    }
    judged.map_err(Refusal::at_the_door)
}

/// Puts the source question to the policy of `snapshot`.
pub(crate) fn judge_source(snapshot: &Snapshot, facts: &mut Facts) -> Result<Permission, Ending> {
    let judged = snapshot.judge_source(&facts.listener, facts.provenance(), OffsetDateTime::now_utc());
    note(judged.as_ref(), facts);
    judged.map_err(Refusal::at_the_door)
}

/// Notes an answer for the audit. What the facts said of an earlier policy's answer is gone.
fn note(judged: Result<&Permission, &Refusal>, facts: &mut Facts) {
    facts.standing = None;
    let Ok(permission) = judged else { return };
    facts.standing = Some(permission.standing.clone());
    if let Some(credential) = &permission.credential {
        facts.name(&credential.certificate.subject, &credential.certificate.sha256);
    }
}
