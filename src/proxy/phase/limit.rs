//! Whether there is room for one more session. Asked of who wants one, and before the upstream is: a CancelRequest is none.

use crate::addr::ClientAddr;
use crate::limit::sessions::SessionPermit;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::SessionRequest;

/// Counts a session in, for as long as the value beside it lives.
pub(crate) fn acquire_session(
    ready: SessionRequest,
    client: ClientAddr,
) -> Result<(SessionPermit, SessionRequest), Close> {
    match ready.authorized.policy.acquire_session(client) {
        Ok(permit) => Ok((permit, ready)),
        Err(full) => Err(ready.authorized.refused(full.into())),
    }
}
