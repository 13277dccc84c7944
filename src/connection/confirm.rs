//! The last look before the first byte: a policy that changed while the upstream was dialled is asked again.

use std::sync::Arc;

use super::dial::Dialled;
use super::identify::{Identified, judge};
use super::part::{Leave, Startup};
use crate::audit::Facts;
use crate::snapshot::Current;

/// Judges a client again whose upstream has been reached, before any of its bytes goes there.
pub(super) fn confirm(dialled: Dialled, current: &Current, facts: &mut Facts) -> Result<Dialled, Leave> {
    let snapshot = Arc::clone(&current.borrow());
    let identified = &dialled.identified;
    if snapshot.generation == identified.generation {
        return Ok(dialled);
    }
    match judge(&identified.stream, None, &snapshot, facts) {
        Ok(_) => Ok(dialled),
        Err(ending) => {
            let Identified { stream, terms, .. } = dialled.identified;
            Err(Leave::refused(ending, stream, terms.protocol, Startup::Heard))
        }
    }
}
