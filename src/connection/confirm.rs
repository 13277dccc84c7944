//! The last look before the first byte: while the client was heard and the upstream dialled the policy may have changed,
//! or a rule or a certificate have run out.

use std::sync::Arc;

use super::dial::Dialled;
use super::identify::{Identified, judge};
use super::part::{Leave, Startup};
use crate::audit::Facts;
use crate::snapshot::Current;

/// Judges a client again whose upstream has been reached, before any of its bytes goes there.
pub(super) fn confirm(dialled: Dialled, current: &Current, facts: &mut Facts) -> Result<Dialled, Leave> {
    let snapshot = Arc::clone(&current.borrow());
    match judge(&dialled.identified.stream, &snapshot, facts) {
        Ok(_) => Ok(dialled),
        Err(ending) => {
            let Identified { stream, terms } = dialled.identified;
            Err(Leave::refused(ending, stream, terms.protocol, Startup::Heard))
        }
    }
}
