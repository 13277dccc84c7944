//! Commands to all members, and their answers.
//!
//! A command is a shared key with a limited life. Each member writes its answer to a key of its own. A command that changes
//! something is carried out at most once by a member: before, it writes [`Answer::Started`], which tells a new process of the
//! member not to do it again.

use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// Answers how many sessions rules would end. `manifest` is one as in the store, which has the chunks.
    Plan { listener: String, manifest: String },
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
    /// Reads an answer to this task, the value of a key. `None` if it is none, or too long, or says that the command has only
    /// begun.
    pub(crate) fn answer(&self, value: &str) -> Option<Answer> {
        let limit = match self {
            Self::Evidence => MAX_EVIDENCE + MAX_FRAME,
            Self::Close(_) | Self::Plan { .. } => MAX_FRAME,
        };
        let answer = serde_json::from_str(value).ok().filter(|_| value.len() <= limit)?;
        match (self, &answer) {
            (_, Answer::Failed(_)) | (Self::Close(_) | Self::Plan { .. }, Answer::Sessions(_)) => Some(answer),
            (Self::Evidence, Answer::Evidence { items, .. }) => items.iter().all(Value::is_object).then_some(answer),
            (_, Answer::Started(_) | Answer::Sessions(_) | Answer::Evidence { .. }) => None,
        }
    }

    /// Whether it changes nothing, so that it may be carried out again, or not at all.
    pub(crate) fn only_reads(&self) -> bool {
        match self {
            Self::Close(_) => false,
            Self::Evidence | Self::Plan { .. } => true,
        }
    }
}

impl Command {
    pub(crate) fn is_plan(&self) -> bool {
        matches!(self.task, CommandTask::Plan { .. })
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

impl Answer {
    pub(crate) fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// Bytes of the items in an answer with evidence.
pub(crate) const MAX_EVIDENCE: usize = 256 << 10;

/// Bytes of anything else in an answer.
const MAX_FRAME: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_that_does_not_fit_its_command_is_none() {
        let close = CommandTask::Close(CloseFilter::default());
        let evidence = CommandTask::Evidence;
        let sessions = Answer::Sessions(3).to_json();
        let items = |items| Answer::Evidence { items, is_complete: true }.to_json();
        assert_eq!(close.answer(&sessions), Some(Answer::Sessions(3)));
        assert!(evidence.answer(&items(vec![serde_json::json!({ "name": "a" })])).is_some());
        let long = Answer::Failed("x".repeat(MAX_FRAME)).to_json();
        let started = Answer::Started("p".to_owned()).to_json();
        for value in [&long, &started, &items(Vec::new()), "", "3"] {
            assert_eq!(close.answer(value), None, "{value:.40}");
        }
        let many = items(vec!["x".repeat(1000).into(); 300]);
        for value in [&sessions, &started, &many, &items(vec![0.into()])] {
            assert_eq!(evidence.answer(value), None, "{value:.40}");
        }
    }
}
