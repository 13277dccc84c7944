//! The second authorization, after dial. During startup and dial the policy may have changed, or a rule or a certificate
//! may have expired. In this phase a connection becomes a session.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::audit::event::ConnectionFields;
use crate::policy::Current;
use crate::proxy::phase::authorize::evaluate_with_login;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::dial::Dialed;
use crate::session::registry::ConnectionGuard;

/// Authorizes a dialed client again before any of its bytes reaches the upstream, and registers the session.
pub(crate) fn reauthorize(
    dialed: Dialed,
    current: &Current,
    guard: &ConnectionGuard,
    fields: &mut ConnectionFields,
) -> Result<Dialed, Close> {
    loop {
        let snapshot = Arc::clone(&current.borrow());
        let login = dialed.access.as_ref().map(|access| &access.login);
        match evaluate_with_login(&dialed.authorized.client, login, &snapshot, fields) {
            Ok(permit) => {
                let authorization = dialed.authorized.authorization(&permit);
                permit.policy.usage.note(&authorization, fields.client, OffsetDateTime::now_utc());
                guard.activate(authorization);
                // A reload from here on finds the session in the registry. A reload just before may have missed it, so
                // the loop runs again.
                if current.borrow().generation == snapshot.generation {
                    return Ok(dialed);
                }
            }
            Err(outcome) => return Err(dialed.authorized.refuse(outcome)),
        }
    }
}
