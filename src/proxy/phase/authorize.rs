//! Who the client is, judged by the policy in force at this moment, after every handshake.
//!
//! rustls asks its verifier during a full handshake only; a resumed one brings back the stored chain unasked. So the
//! question is a room of its own.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::audit::event::ConnectionFields;
use crate::identity::verified::VerifiedIdentity;
use crate::outcome::Outcome;
use crate::policy::authorize::{Denial, Permit};
use crate::policy::usage::Authorization;
use crate::policy::{Current, ListenerPolicy, Snapshot};
use crate::proxy::phase::close::{Close, StartupState};
use crate::proxy::phase::handshake::SecuredClient;
use crate::transport::{ClientStream, Stream};
use crate::x509::certificate::Certificate;

/// A client that may go on to the upstream, by these terms.
#[derive(Debug)]
pub(crate) struct AuthorizedClient {
    pub(crate) client: ClientStream,
    pub(crate) policy: Arc<ListenerPolicy>,
    /// What it identified itself with.
    pub(crate) identity: Option<Arc<VerifiedIdentity>>,
    /// The certificate it was shown.
    pub(crate) shown: Option<Arc<Certificate>>,
}

impl AuthorizedClient {
    /// What it relies on by this permission.
    pub(crate) fn authorization(&self, permit: &Permit) -> Authorization {
        match self.client {
            Stream::Tls(_) => Authorization::on(permit, self.shown.clone()),
            Stream::Plain(_) => Authorization::in_plaintext(permit),
        }
    }

    /// Turns away a client that has said what it wants.
    pub(crate) fn refused(self, ending: Outcome) -> Close {
        Close::refused(ending, self.client, self.policy.protocol, StartupState::Heard)
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
        Ok(permit) => {
            let Permit { policy, identity, .. } = permit.clone();
            let authorized = AuthorizedClient { client, policy, identity, shown };
            // Also where there is no room for it, or no upstream: it will come again.
            permit.policy.usage.note(&authorized.authorization(&permit), fields.client, OffsetDateTime::now_utc());
            Ok(authorized)
        }
        Err(ending) => Err(Close::refused(ending, client, protocol, StartupState::Awaited)),
    }
}

/// Puts both questions, source and identity, to the policy of `snapshot`. A chain that this policy has verified before
/// costs little.
pub(crate) fn judge(
    client: &ClientStream,
    snapshot: &Snapshot,
    fields: &mut ConnectionFields,
) -> Result<Permit, Outcome> {
    let presented = client.presented();
    let judged = snapshot.authorize(&fields.listener, fields.origin(), presented, OffsetDateTime::now_utc());
    note(judged.as_ref(), fields);
    if let Err(Denial::Identity(_)) = &judged {
        // The source is trusted, and the audit says by which rule.
        let source = snapshot.authorize_source(&fields.listener, fields.origin(), OffsetDateTime::now_utc());
        fields.source_match = source.ok().map(|permit| permit.source_match);
    }
    if let (Err(Denial::Identity(_)), Some(certificate)) = (&judged, presented.leaf()) {
        // The audit names whom it turns away, too.
        fields.name(&certificate.subject, &certificate.sha256);
    }
    judged.map_err(Denial::into_connection_outcome)
}

/// Puts the source question to the policy of `snapshot`.
pub(crate) fn authorize_source(snapshot: &Snapshot, fields: &mut ConnectionFields) -> Result<Permit, Outcome> {
    let judged = snapshot.authorize_source(&fields.listener, fields.origin(), OffsetDateTime::now_utc());
    note(judged.as_ref(), fields);
    judged.map_err(Denial::into_connection_outcome)
}

/// Notes an answer for the audit. What the facts said of an earlier policy's answer is gone.
fn note(judged: Result<&Permit, &Denial>, fields: &mut ConnectionFields) {
    fields.source_match = None;
    let Ok(permit) = judged else { return };
    fields.source_match = Some(permit.source_match.clone());
    if let Some(identity) = &permit.identity {
        fields.name(&identity.certificate.subject, &identity.certificate.sha256);
    }
}
