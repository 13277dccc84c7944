//! Who the client is, judged by the policy in force at this moment, after every handshake.
//!
//! rustls asks its verifier during a full handshake only; a resumed one brings back the stored chain unasked. So the
//! question is a room of its own.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::audit::event::ConnectionFields;
use crate::identity::verified::Credential;
use crate::outcome::Outcome;
use crate::policy::authorize::{Permission, Refusal};
use crate::policy::usage::Authorization;
use crate::policy::{Current, Snapshot, Terms};
use crate::proxy::phase::close::{Close, StartupState};
use crate::proxy::phase::handshake::SecuredClient;
use crate::transport::{ClientLeg, Leg};
use crate::x509::certificate::Certificate;

/// A client that may go on to the upstream, by these terms.
#[derive(Debug)]
pub(crate) struct AuthorizedClient {
    pub(crate) client: ClientLeg,
    pub(crate) terms: Arc<Terms>,
    /// What it identified itself with.
    pub(crate) credential: Option<Arc<Credential>>,
    /// The certificate it was shown.
    pub(crate) shown: Option<Arc<Certificate>>,
}

impl AuthorizedClient {
    /// What it relies on by this permission.
    pub(crate) fn authorization(&self, permission: &Permission) -> Authorization {
        match self.client {
            Leg::Tls(_) => Authorization::on(permission, self.shown.clone()),
            Leg::Plain(_) => Authorization::in_plaintext(permission),
        }
    }

    /// Turns away a client that has said what it wants.
    pub(crate) fn refused(self, ending: Outcome) -> Close {
        Close::refused(ending, self.client, self.terms.protocol, StartupState::Heard)
    }
}

/// Judges a client that has just finished its handshake.
pub(crate) fn authorize(
    secured: SecuredClient,
    current: &Current,
    fields: &mut ConnectionFields,
) -> Result<AuthorizedClient, Close> {
    let SecuredClient { client, protocol, shown } = secured;
    let snapshot = Arc::clone(&current.borrow());
    match judge(&client, &snapshot, fields) {
        Ok(permission) => {
            let Permission { terms, credential, .. } = permission.clone();
            let authorized = AuthorizedClient { client, terms, credential, shown };
            // Also where there is no room for it, or no upstream: it will come again.
            permission.terms.usage.note(
                &authorized.authorization(&permission),
                fields.client,
                OffsetDateTime::now_utc(),
            );
            Ok(authorized)
        }
        Err(ending) => Err(Close::refused(ending, client, protocol, StartupState::Awaited)),
    }
}

/// Puts both questions, source and identity, to the policy of `snapshot`. A chain that this policy has verified before
/// costs little.
pub(crate) fn judge(
    client: &ClientLeg,
    snapshot: &Snapshot,
    fields: &mut ConnectionFields,
) -> Result<Permission, Outcome> {
    let evidence = client.evidence();
    let judged = snapshot.judge(&fields.listener, fields.origin(), evidence, OffsetDateTime::now_utc());
    note(judged.as_ref(), fields);
    if let Err(Refusal::Identity(_)) = &judged {
        // The source is trusted, and the audit says by which rule.
        let source = snapshot.judge_source(&fields.listener, fields.origin(), OffsetDateTime::now_utc());
        fields.standing = source.ok().map(|permission| permission.standing);
    }
    if let (Err(Refusal::Identity(_)), Some(certificate)) = (&judged, evidence.leaf()) {
        // The audit names whom it turns away, too.
        fields.name(&certificate.subject, &certificate.sha256);
    }
    judged.map_err(Refusal::at_the_door)
}

/// Puts the source question to the policy of `snapshot`.
pub(crate) fn judge_source(snapshot: &Snapshot, fields: &mut ConnectionFields) -> Result<Permission, Outcome> {
    let judged = snapshot.judge_source(&fields.listener, fields.origin(), OffsetDateTime::now_utc());
    note(judged.as_ref(), fields);
    judged.map_err(Refusal::at_the_door)
}

/// Notes an answer for the audit. What the facts said of an earlier policy's answer is gone.
fn note(judged: Result<&Permission, &Refusal>, fields: &mut ConnectionFields) {
    fields.standing = None;
    let Ok(permission) = judged else { return };
    fields.standing = Some(permission.standing.clone());
    if let Some(credential) = &permission.credential {
        fields.name(&credential.certificate.subject, &credential.certificate.sha256);
    }
}
