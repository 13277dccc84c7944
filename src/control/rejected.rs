//! Requests that are answered before their route is taken.

use crate::audit::admin::AdminDenialReason;
use crate::control::response::AdminResponse;

/// A request that is not handled.
#[derive(Debug)]
pub(crate) struct Rejected {
    /// The reason in the audit. `None` for a request that was not denied: it failed, or asks for something that is not there.
    pub(crate) reason: Option<AdminDenialReason>,
    /// The name of the token, if it is known.
    pub(crate) token: Option<String>,
    pub(crate) response: AdminResponse,
}

impl Rejected {
    /// A request that is denied whoever sends it.
    pub(crate) fn denied(reason: AdminDenialReason, response: AdminResponse) -> Box<Self> {
        Box::new(Self { reason: Some(reason), token: None, response })
    }

    /// A request that fails for another reason.
    pub(crate) fn failed(response: AdminResponse) -> Box<Self> {
        Box::new(Self { reason: None, token: None, response })
    }
}
