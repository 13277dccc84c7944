//! The session limits of the listener and of the source. They do not apply to a CancelRequest, which is not a session.

use crate::addr::ClientAddr;
use crate::limit::sessions::SessionPermit;
use crate::proxy::phase::close::Close;
use crate::proxy::phase::startup::SessionRequest;

/// Counts the session for as long as the returned permit lives.
pub(crate) fn acquire_session(
    request: SessionRequest,
    client: ClientAddr,
) -> Result<(SessionPermit, SessionRequest), Close> {
    match request.authorized.policy.acquire_session(client) {
        Ok(permit) => Ok((permit, request)),
        Err(limit_reached) => Err(request.authorized.refuse(limit_reached.into())),
    }
}
