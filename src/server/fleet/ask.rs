//! Waits for what all members have done, and asks them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::fleet::command::{Answer, Command, CommandTask};
use crate::fleet::roster::{Confirmation, Liveness};
use crate::fleet::store::{ANSWERS, COMMANDS, Entry, Expected, MAX_KEYS, Operation, Outcome};
use crate::server::fleet::FleetService;
use crate::server::fleet::member::random_id;

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
            Answer::Evidence { .. } | Answer::Failed(_) | Answer::Started(_) => None,
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
        let id = random_id();
        let only_reads = task.only_reads();
        let (key, value) = (format!("{COMMANDS}{id}"), Command { by: by.to_owned(), task }.to_json());
        let put = Operation::Put { key: key.clone(), value, expected: Expected::Absent, seconds: Some(COMMAND_LIFE) };
        match self.store.perform(put).await {
            Outcome::Done { .. } => {}
            other => return Err(other.failure()),
        }
        let mut by_member = BTreeMap::new();
        let missing = loop {
            let missing = self.gather(&id, &mut by_member).await;
            let is_done =
                missing.as_ref().is_ok_and(|missing| missing.iter().all(|one| one.liveness == Liveness::Unknown));
            if is_done || Instant::now() + POLL_INTERVAL > deadline {
                break missing;
            }
            sleep(POLL_INTERVAL).await;
        };
        if only_reads {
            // Nobody waits for further answers.
            let _ = self.store.perform(Operation::Delete { key, expected: Expected::Any }).await;
        }
        Ok(Answers { missing: missing?, by_member })
    }

    /// Reads the answers that have come since the last time. Returns the members without one.
    async fn gather(&self, id: &str, answers: &mut BTreeMap<String, Answer>) -> Result<Vec<Missing>, String> {
        let prefix = format!("{ANSWERS}{id}/");
        let roster = self.list_members().await?;
        let listed = match self.store.perform(Operation::Keys { prefix: prefix.clone() }).await {
            Outcome::Entries(entries) => entries,
            other => return Err(other.failure()),
        };
        let is_new = |member: &str| !answers.contains_key(member) && roster.has(member);
        let new: Vec<String> = listed
            .into_iter()
            .map(|entry| entry.key)
            .filter(|key| key.strip_prefix(&prefix).is_some_and(is_new))
            .collect();
        for keys in new.chunks(MAX_KEYS) {
            let entries = match self.store.perform(Operation::Get { keys: keys.to_vec() }).await {
                Outcome::Entries(entries) => entries,
                other => return Err(other.failure()),
            };
            for Entry { key, value, .. } in entries {
                let answer = serde_json::from_str(&value).ok().filter(Answer::is_final);
                if let (Some(member), Some(answer)) = (key.strip_prefix(&prefix), answer) {
                    answers.insert(member.to_owned(), answer);
                }
            }
        }
        let has_answered = |name: &str| answers.get(name).is_some_and(|answer| !matches!(answer, Answer::Failed(_)));
        let missing = roster
            .members()
            .iter()
            .filter(|member| !has_answered(&member.name))
            .map(|member| Missing { member: member.name.clone(), liveness: member.liveness });
        Ok(missing.collect())
    }
}

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Seconds. A member that has lost the store for longer does not carry the command out.
const COMMAND_LIFE: u32 = 60;
