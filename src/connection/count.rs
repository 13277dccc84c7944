//! Whether there is room for one more session. Asked of who wants one, and before the upstream is: a CancelRequest is none.

use super::hear::Ready;
use super::part::Leave;
use crate::addr::ClientAddr;
use crate::snapshot::Counted;

/// Counts a session in, for as long as the value beside it lives.
pub(super) fn count(ready: Ready, client: ClientAddr) -> Result<(Counted, Ready), Leave> {
    match ready.identified.terms.count(client) {
        Ok(counted) => Ok((counted, ready)),
        Err(full) => Err(ready.identified.refused(full.into())),
    }
}
