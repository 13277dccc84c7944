//! Commands to all members, and their answers.
//!
//! A command is a shared key with a limited life. Each member writes its answer to a key of its own. A command that changes
//! something is carried out at most once by a member: before, it writes [`Answer::Started`], which tells a new process of the
//! member not to do it again.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fleet::manifest::Manifest;

/// The value of a key `shared/commands/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Command {
    /// The member that asks, for people.
    pub(crate) by: String,
    pub(crate) task: CommandTask,
}

/// What every member does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum CommandTask {
    /// Closes sessions. Answers their number.
    Close(CloseFilter),
    /// Answers the use of certificates and rules.
    Evidence,
    /// Answers how many sessions rules would end. The chunks of the rules are in the store.
    Plan { listener: String, rules: Box<Manifest> },
}

/// Which sessions to close: those that have all that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CloseFilter {
    pub(crate) listener: Option<String>,
    /// An address or a network.
    pub(crate) source: Option<String>,
    /// The subject of the client certificate, as `sessions list` shows it.
    pub(crate) client: Option<String>,
}

/// The value of a key `answers/ID/MEMBER`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Answer {
    /// The process with this ID carries the command out.
    Started(String),
    /// A number of sessions.
    Sessions(u64),
    /// Items with their use; `is_complete` unless some are left out.
    Evidence { items: Vec<Value>, is_complete: bool },
    /// It cannot be carried out.
    Failed(String),
}

impl CommandTask {
    /// Whether it changes nothing, so that it may be carried out again, or not at all.
    pub(crate) fn only_reads(&self) -> bool {
        match self {
            Self::Close(_) => false,
            Self::Evidence | Self::Plan { .. } => true,
        }
    }
}

impl Command {
    pub(crate) fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

impl Answer {
    /// Whether the command has been carried out.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, Self::Started(_))
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}
