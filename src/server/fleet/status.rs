//! What this member knows of the fleet, for reports and for those who wait.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use crate::fleet::guard::Position;
use crate::fleet::roster::Roster;
use crate::fleet::ticket_ring::RingAge;

/// The state of this member in the fleet.
#[derive(Clone, Debug, Default)]
pub(crate) struct FleetStatus {
    pub(crate) store: StoreState,
    /// Since when the store is in this state.
    pub(crate) since: Option<OffsetDateTime>,
    /// How far the believed store has come.
    pub(crate) position: Option<Position>,
    pub(crate) rules: BTreeMap<String, RulesStatus>,
    /// The sequence of the ticket keys in use, 0 if there are none.
    pub(crate) tickets: u64,
    /// Why the ticket keys in the store are not in use.
    pub(crate) tickets_error: Option<String>,
    /// The age of the ticket keys that were last in use here.
    pub(crate) ticket_age: Option<RingAge>,
    /// Whether this process has the name of the member.
    pub(crate) has_name: bool,
    /// Another process that has it.
    pub(crate) duplicate: Option<String>,
    /// The members when they were last listed.
    pub(crate) roster: Roster,
}

/// The store, as this member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum StoreState {
    #[default]
    Connecting,
    Down {
        error: String,
    },
    /// It answers, and nothing of it is used.
    Refused {
        why: String,
    },
    Up,
}

/// The rules of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RulesStatus {
    pub(crate) state: RulesState,
    /// The number of the rules in force, 0 if there are none.
    pub(crate) sequence: u64,
    pub(crate) detail: Option<String>,
}

/// How the rules in force relate to those in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RulesState {
    /// The store has not been compared yet.
    #[default]
    Unknown,
    /// They are the same.
    InForce,
    /// The store never had rules of this listener, as far as is known.
    Unwritten,
    /// The store has lost the rules. The last good ones are in force.
    Missing,
    /// The rules in the store cannot be put in force. The last good ones are.
    Invalid,
}

impl StoreState {
    /// The word for it in the API.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Down { .. } => "down",
            Self::Refused { .. } => "refused",
            Self::Up => "up",
        }
    }

    /// Why the store is not in use.
    pub(crate) fn detail(&self) -> Option<&str> {
        match self {
            Self::Connecting | Self::Up => None,
            Self::Down { error } => Some(error),
            Self::Refused { why } => Some(why),
        }
    }
}

impl RulesState {
    /// The word for it in the API.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::InForce => "in_force",
            Self::Unwritten => "unwritten",
            Self::Missing => "missing",
            Self::Invalid => "invalid",
        }
    }
}
