//! Who changes what, for the audit.

use crate::audit::Audit;
use crate::audit::admin::{AdminAction, AdminActionKind};
use crate::control::access::Caller;

/// A change by a caller of the admin API. Written to the audit when it takes effect.
#[derive(Clone, Debug)]
pub(crate) struct Action {
    pub(crate) kind: AdminActionKind,
    pub(crate) caller: Caller,
    /// The name of a listener or token, or the number of a session.
    pub(crate) target: Option<String>,
    pub(crate) request_id: String,
    /// What changes, in short.
    pub(crate) detail: Option<String>,
}

impl Action {
    /// Adds the ID of a password, which is known when the file is edited.
    pub(crate) fn with_password(mut self, id: &str) -> Self {
        self.target = self.target.map(|target| format!("{target}/{id}"));
        self
    }

    /// Adds the listeners besides `own` that the action changes.
    pub(crate) fn with_other_listeners(mut self, own: &str, changed: &[String]) -> Self {
        let others: Vec<&str> = changed.iter().map(String::as_str).filter(|name| *name != own).collect();
        if !others.is_empty() {
            let also = format!("also changes {}", others.join(", "));
            self.detail = Some(self.detail.map_or(also.clone(), |detail| format!("{detail}; {also}")));
        }
        self
    }

    pub(crate) fn write(&self, audit: &Audit) {
        let Self { kind, caller, target, request_id, detail } = self;
        audit.admin_action(&AdminAction {
            caller: caller.audited(),
            kind: *kind,
            target: target.as_deref(),
            request_id: Some(request_id),
            detail: detail.as_deref(),
        });
    }
}
