//! The state of one source, as the API, the commands and the metrics show it.

use time::OffsetDateTime;

/// Whether the addresses of a source are known and current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ResolutionState {
    /// The last answer is in force. It may have no address.
    Resolved,
    /// There is no answer, or the object does not exist. The rule admits no client.
    #[default]
    Unresolved,
    /// An earlier answer is in force, because there is no newer one.
    Stale,
}

impl ResolutionState {
    /// The word for it in the API.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Resolved => "resolved",
            Self::Unresolved => "unresolved",
            Self::Stale => "stale",
        }
    }
}

/// The state of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolutionStatus {
    pub state: ResolutionState,
    /// Why the source is not resolved, or has no address.
    pub detail: Option<String>,
    /// Whether the last attempt gave no answer that is in force.
    pub is_failing: bool,
    /// The time of the last good answer.
    pub resolved_at: Option<OffsetDateTime>,
    /// When the next lookup of a host is due, if it is scheduled.
    pub next_lookup: Option<OffsetDateTime>,
}
