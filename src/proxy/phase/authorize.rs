//! Authorization of source and identity by the policy in force now, after every handshake.
//!
//! rustls calls its verifier only during a full handshake. A resumed handshake restores the stored chain without a check, so
//! authorization is a separate phase.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::audit::event::ConnectionFields;
use crate::credential::login::Login;
use crate::identity::verified::VerifiedIdentity;
use crate::outcome::{Outcome, Reason};
use crate::policy::authorize::{Denial, Permit};
use crate::policy::usage::Authorization;
use crate::policy::{Current, ListenerPolicy, Snapshot};
use crate::proxy::phase::close::{Close, StartupState};
use crate::proxy::phase::handshake::SecuredClient;
use crate::transport::{ClientStream, Stream};
use crate::x509::certificate::Certificate;

/// A client that `policy` admits to the upstream.
#[derive(Debug)]
pub(crate) struct AuthorizedClient {
    pub(crate) client: ClientStream,
    pub(crate) policy: Arc<ListenerPolicy>,
    pub(crate) identity: Option<Arc<VerifiedIdentity>>,
    /// The leaf certificate that Portcullis presented.
    pub(crate) server_certificate: Option<Arc<Certificate>>,
}

impl AuthorizedClient {
    /// The rule and the certificates that the session depends on.
    pub(crate) fn authorization(&self, permit: &Permit) -> Authorization {
        match self.client {
            Stream::Tls(_) => Authorization::on(permit, self.server_certificate.clone()),
            Stream::Plain(_) => Authorization::in_plaintext(permit),
        }
    }

    /// Refuses a client that has sent its StartupMessage, or whose protocol has none.
    pub(crate) fn refuse(self, outcome: Outcome) -> Close {
        Close::refused(outcome, self.client, self.policy.protocol, StartupState::Received)
    }
}

/// Authorizes a client that has completed its handshake.
pub(crate) fn authorize(
    secured: SecuredClient,
    current: &Current,
    fields: &mut ConnectionFields,
) -> Result<AuthorizedClient, Close> {
    let SecuredClient { client, protocol, server_certificate } = secured;
    let snapshot = Arc::clone(&current.borrow());
    match evaluate(&client, &snapshot, fields) {
        Ok(permit) => {
            let Permit { policy, identity, .. } = permit.clone();
            let authorized = AuthorizedClient { client, policy, identity, server_certificate };
            // Noted even if a limit or the upstream refuses the client later: its certificate is in use.
            permit.policy.usage.note(&authorized.authorization(&permit), fields.client, OffsetDateTime::now_utc());
            Ok(authorized)
        }
        Err(outcome) => Err(Close::refused(outcome, client, protocol, StartupState::Awaited)),
    }
}

/// Evaluates source and identity against `snapshot`. A chain that this policy has verified before is cheap.
pub(crate) fn evaluate(
    client: &ClientStream,
    snapshot: &Snapshot,
    fields: &mut ConnectionFields,
) -> Result<Permit, Outcome> {
    let presented = client.presented();
    let decision = snapshot.authorize(&fields.listener, fields.origin(), presented, OffsetDateTime::now_utc());
    note(decision.as_ref(), fields);
    if let Err(Denial::Identity(_)) = &decision {
        // The source is trusted; the audit names the matching rule.
        let source = snapshot.authorize_source(&fields.listener, fields.origin(), OffsetDateTime::now_utc());
        fields.source_match = source.ok().map(|permit| permit.source_match);
    }
    if let (Err(Denial::Identity(_)), Some(certificate)) = (&decision, presented.leaf()) {
        // The audit also names the subject of a rejected certificate.
        fields.name(&certificate.subject, certificate.sha256.as_str());
    }
    decision.map_err(Denial::into_connection_outcome)
}

/// The same with the login of a client that has authenticated. One that has to authenticate and has not is denied.
pub(crate) fn evaluate_with_login(
    client: &ClientStream,
    login: Option<&Login>,
    snapshot: &Snapshot,
    fields: &mut ConnectionFields,
) -> Result<Permit, Outcome> {
    let permit = evaluate(client, snapshot, fields)?;
    let permit = permit.with_login(login, OffsetDateTime::now_utc()).map_err(Denial::into_connection_outcome)?;
    if permit.policy.credentials.is_some() && permit.login.is_none() {
        return Err(Outcome::new(Reason::AuthenticationFailed, "the listener requires authentication since a reload"));
    }
    Ok(permit)
}

/// Evaluates the source against `snapshot`.
pub(crate) fn authorize_source(snapshot: &Snapshot, fields: &mut ConnectionFields) -> Result<Permit, Outcome> {
    let decision = snapshot.authorize_source(&fields.listener, fields.origin(), OffsetDateTime::now_utc());
    note(decision.as_ref(), fields);
    decision.map_err(Denial::into_connection_outcome)
}

/// Writes the decision to the audit fields, in place of the decision of an earlier policy.
fn note(decision: Result<&Permit, &Denial>, fields: &mut ConnectionFields) {
    fields.source_match = None;
    let Ok(permit) = decision else { return };
    fields.source_match = Some(permit.source_match.clone());
    if let Some(identity) = &permit.identity {
        fields.name(&identity.certificate.subject, identity.certificate.sha256.as_str());
    }
}
