//! What is in force of the fleet's rules, and how they are changed: as files, by the reloader.

use tokio::sync::oneshot;

use crate::control::error::ErrorKind;
use crate::control::response::{AdminResponse, Content};
use crate::fleet::manifest::Manifest;
use crate::policy::Snapshot;
use crate::server::admin_handler::action::Action;
use crate::server::fleet::FleetService;
use crate::server::reload::ReloadRequest;
use crate::server::reload::change::{Affected, ChangeReply, ChangeResult, FileChange};

/// Rules that this member has written to the store.
#[derive(Debug)]
pub(crate) struct Apply {
    pub(crate) listener: String,
    pub(crate) manifest: Manifest,
    pub(crate) text: String,
    /// For the audit.
    pub(crate) action: Action,
    pub(crate) affected: Affected,
    pub(crate) reply: ChangeReply,
}

/// Sends a change to the reloader and waits for its result.
pub(crate) async fn change_file(service: &FleetService, change: FileChange) -> Result<ChangeResult, AdminResponse> {
    let (sender, reply) = oneshot::channel();
    let stopping = || AdminResponse::error(ErrorKind::ServiceUnavailable, "the program is stopping");
    let request = ReloadRequest::Change(Box::new(change), sender);
    service.reload_requests.send(request).await.map_err(|_| stopping())?;
    reply.await.unwrap_or_else(|_| Err(stopping()))
}

/// The listeners whose rules are in the store.
pub(crate) fn fleet_listeners(policy: &Snapshot) -> Vec<String> {
    let listeners = policy.config.listeners.iter().filter(|listener| listener.fleet_rules.is_some());
    listeners.map(|listener| listener.name.clone()).collect()
}

/// The digest of the fleet's rules of a listener in force; `None` if there are none yet.
pub(crate) fn in_force(policy: &Snapshot, listener: &str) -> Option<String> {
    let listener = policy.config.listeners.iter().find(|configured| configured.name == listener)?;
    listener.fleet_rules.as_ref()?.copy.clone()
}

pub(crate) fn message_of(response: &AdminResponse) -> String {
    match &response.content {
        Content::Error { message, .. } => message.clone(),
        _ => response.status.to_string(),
    }
}
