//! Waits for what all members have done, and asks them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::fleet::command::{Answer, Command, CommandTask};
use crate::fleet::roster::{Confirmation, Liveness};
use crate::fleet::store::{ANSWERS, COMMANDS, Expected, Operation, Outcome};
use crate::server::fleet::FleetService;
use crate::server::fleet::chunks::failure;
use crate::server::fleet::member::new_instance;

/// A member that has not done something, or of which that is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) member: String,
    pub(crate) liveness: Liveness,
}

/// What the members have answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) by_member: BTreeMap<String, Answer>,
    /// The members without an answer.
    pub(crate) missing: Vec<Missing>,
}

impl Answers {
    /// The sum of the numbers of sessions; `None` if a member is missing.
    pub(crate) fn sessions(&self) -> Option<u64> {
        let number = |answer: &Answer| match answer {
            Answer::Sessions(number) => Some(*number),
            Answer::Evidence(_) | Answer::Failed(_) => None,
        };
        let numbers = self.by_member.values().map(number);
        if self.missing.is_empty() { numbers.sum() } else { None }
    }
}

impl FleetService {
    /// Waits until all members have confirmed, and returns those that have not.
    ///
    /// # Errors
    /// If the store could not be asked at all.
    pub(crate) async fn wait_for(&self, what: &Confirmation<'_>, limit: Duration) -> Result<Vec<Missing>, String> {
        let deadline = Instant::now() + limit;
        loop {
            let missing = self.list_members().await.map(|roster| {
                let named = |(member, liveness): (&str, _)| Missing { member: member.to_owned(), liveness };
                roster.missing(what).into_iter().map(named).collect::<Vec<_>>()
            });
            let is_done = missing.as_ref().is_ok_and(Vec::is_empty);
            if is_done || Instant::now() + POLL_INTERVAL > deadline {
                return missing;
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends a command to all members, and waits for their answers.
    ///
    /// # Errors
    /// If the command cannot be sent.
    pub(crate) async fn ask(&self, by: &str, task: CommandTask, limit: Duration) -> Result<Answers, String> {
        let deadline = Instant::now() + limit;
        let id = new_instance();
        let (key, value) = (format!("{COMMANDS}{id}"), Command { by: by.to_owned(), task }.to_json());
        let put = Operation::Put { key, value, expected: Expected::Absent, seconds: Some(COMMAND_LIFE) };
        match self.store.perform(put).await {
            Outcome::Done { .. } => {}
            other => return Err(failure(&other)),
        }
        loop {
            let answers = self.answers(&id).await;
            let is_done = answers
                .as_ref()
                .is_ok_and(|answers| answers.missing.iter().all(|missing| missing.liveness == Liveness::Unknown));
            if is_done || Instant::now() + POLL_INTERVAL > deadline {
                return answers;
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn answers(&self, id: &str) -> Result<Answers, String> {
        let prefix = format!("{ANSWERS}{id}/");
        let entries = match self.store.perform(Operation::List { prefix: prefix.clone() }).await {
            Outcome::Entries(entries) => entries,
            other => return Err(failure(&other)),
        };
        let answer = |key: &str, value: &str| {
            Some((key.strip_prefix(&prefix)?.to_owned(), serde_json::from_str::<Answer>(value).ok()?))
        };
        let by_member: BTreeMap<_, _> = entries.iter().filter_map(|entry| answer(&entry.key, &entry.value)).collect();
        let roster = self.list_members().await?;
        let has_answered = |name: &str| by_member.get(name).is_some_and(|answer| !matches!(answer, Answer::Failed(_)));
        let missing = roster
            .members()
            .iter()
            .filter(|member| !has_answered(&member.name))
            .map(|member| Missing { member: member.name.clone(), liveness: member.liveness });
        Ok(Answers { missing: missing.collect(), by_member })
    }
}

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Seconds. A member that has lost the store for longer does not carry the command out.
const COMMAND_LIFE: u32 = 60;
