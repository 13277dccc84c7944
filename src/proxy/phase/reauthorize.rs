//! The last look before the first byte: while the client was heard and the upstream dialled the policy may have changed,
//! or a rule or a certificate have run out. Here a connection becomes a session.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::audit::event::Facts;
use crate::policy::Current;
use crate::proxy::phase::authorize::judge;
use crate::proxy::phase::close::Leave;
use crate::proxy::phase::dial::Dialled;
use crate::session::registry::Presence;

/// Judges a client again whose upstream has been reached, before any of its bytes goes there, and enters it as a session.
pub(crate) fn confirm(
    dialled: Dialled,
    current: &Current,
    presence: &Presence,
    facts: &mut Facts,
) -> Result<Dialled, Leave> {
    loop {
        let snapshot = Arc::clone(&current.borrow());
        match judge(&dialled.identified.client, &snapshot, facts) {
            Ok(permission) => {
                let reliance = dialled.identified.reliance(&permission);
                permission.terms.usage.note(&reliance, facts.client, OffsetDateTime::now_utc());
                presence.stands(reliance);
                // A policy that comes from here on finds the session in the register. One that came just before may have
                // looked there too early.
                if current.borrow().generation == snapshot.generation {
                    return Ok(dialled);
                }
            }
            Err(ending) => return Err(dialled.identified.refused(ending)),
        }
    }
}
