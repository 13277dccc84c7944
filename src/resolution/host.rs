//! The state of one host name after each lookup. Pure.
//!
//! A failed lookup removes no address. The system's resolver reports the same error for a name that was deleted, a name that
//! is misspelt in a search domain, and a name whose server is down.

use time::OffsetDateTime;

use crate::resolution::status::{ResolutionState, ResolutionStatus};
use crate::source::addresses::{Addresses, OmittedAddresses};
use crate::source::host::HostName;
use crate::timestamp;

/// The result of a lookup: addresses and the omitted ones, or an error.
pub(crate) type Answer = Result<(Addresses, Option<OmittedAddresses>), String>;

/// What is known of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostState {
    /// The last good answer, and its time.
    pub good: Option<(Addresses, OffsetDateTime)>,
    /// Addresses of that answer that are not trusted.
    omitted: Option<OmittedAddresses>,
    /// Why the last lookup failed.
    pub failure: Option<String>,
    /// When the next lookup is due, if it is scheduled.
    pub next_lookup: Option<OffsetDateTime>,
}

/// A change of a name's state that is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostChange {
    /// Needs attention.
    Degraded(String),
    /// Is resolved.
    Recovered(String),
}

impl HostState {
    /// The state after a lookup with this result.
    pub(crate) fn after(before: Option<&Self>, answer: Answer, now: OffsetDateTime) -> Self {
        match answer {
            Ok((addresses, omitted)) => {
                Self { good: Some((addresses, now)), omitted, failure: None, next_lookup: None }
            }
            Err(failure) => Self { failure: Some(failure), ..before.cloned().unwrap_or_default() },
        }
    }

    /// The change to log, if there is one.
    pub(crate) fn change_since(&self, before: Option<&Self>, name: &HostName) -> Option<HostChange> {
        let failed_before = before.is_some_and(|before| before.failure.is_some());
        match (&self.failure, &self.good) {
            (Some(_), _) if failed_before => None,
            (Some(failure), Some((addresses, at))) => Some(HostChange::Degraded(format!(
                "dns:{name} cannot be resolved: {failure}; using the last good answer, from {}: {addresses}",
                timestamp::seconds(*at)
            ))),
            (Some(failure), None) => Some(HostChange::Degraded(format!(
                "dns:{name} cannot be resolved: {failure}; the rule admits no client until it can be resolved"
            ))),
            (None, _) => match self.omitted {
                Some(omitted) if before.and_then(|before| before.omitted) != Some(omitted) => {
                    Some(HostChange::Degraded(format!("dns:{name}: {omitted}")))
                }
                Some(_) | None => {
                    failed_before.then(|| HostChange::Recovered(format!("dns:{name} can be resolved again")))
                }
            },
        }
    }

    pub(crate) fn status(&self) -> ResolutionStatus {
        let state = match (&self.good, &self.failure) {
            (None, _) => ResolutionState::Unresolved,
            (Some(_), Some(_)) => ResolutionState::Stale,
            (Some(_), None) => ResolutionState::Resolved,
        };
        ResolutionStatus {
            state,
            detail: self.failure.clone(),
            is_failing: self.failure.is_some(),
            resolved_at: self.good.as_ref().map(|(_, at)| *at),
            next_lookup: self.next_lookup,
        }
    }
}
