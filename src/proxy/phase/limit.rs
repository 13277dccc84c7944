//! Whether there is room for one more session. Asked of who wants one, and before the upstream is: a CancelRequest is none.

use crate::addr::ClientAddr;
use crate::limit::sessions::Counted;
use crate::proxy::phase::close::Leave;
use crate::proxy::phase::startup::Ready;

/// Counts a session in, for as long as the value beside it lives.
pub(crate) fn count(ready: Ready, client: ClientAddr) -> Result<(Counted, Ready), Leave> {
    match ready.identified.terms.count(client) {
        Ok(counted) => Ok((counted, ready)),
        Err(full) => Err(ready.identified.refused(full.into())),
    }
}
