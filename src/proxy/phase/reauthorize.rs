//! The last look before the first byte: while the client was heard and the upstream dialled the policy may have changed,
//! or a rule or a certificate have run out. Here a connection becomes a session.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::audit::event::ConnectionFields;
use crate::policy::Current;
use crate::proxy::phase::authorize::judge;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::dial::Dialed;
use crate::session::registry::ConnectionGuard;

/// Judges a client again whose upstream has been reached, before any of its bytes goes there, and enters it as a session.
pub(crate) fn reauthorize(
    dialed: Dialed,
    current: &Current,
    guard: &ConnectionGuard,
    fields: &mut ConnectionFields,
) -> Result<Dialed, Close> {
    loop {
        let snapshot = Arc::clone(&current.borrow());
        match judge(&dialed.authorized.client, &snapshot, fields) {
            Ok(permit) => {
                let authorization = dialed.authorized.authorization(&permit);
                permit.policy.usage.note(&authorization, fields.client, OffsetDateTime::now_utc());
                guard.activate(authorization);
                // A policy that comes from here on finds the session in the register. One that came just before may have
                // looked there too early.
                if current.borrow().generation == snapshot.generation {
                    return Ok(dialed);
                }
            }
            Err(ending) => return Err(dialed.authorized.refused(ending)),
        }
    }
}
