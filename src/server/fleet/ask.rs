//! Waits for what all members have done, and asks them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

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
        let (key, value) = (format!("{COMMANDS}{id}"), Command { by: by.to_owned(), task: task.clone() }.to_json());
        let put = Operation::Put { key: key.clone(), value, expected: Expected::Absent, seconds: Some(COMMAND_LIFE) };
        match self.store.perform(put).await {
            Outcome::Done { .. } => {}
            other => return Err(other.failure()),
        }
        let mut gathered = Gathered { task: &task, bytes: 0, by_member: BTreeMap::new() };
        let mut pause = POLL_INTERVAL;
        let missing = loop {
            let missing = timeout_at(deadline + GRACE, self.gather(&id, &mut gathered)).await;
            let missing = missing.unwrap_or_else(|_| Err("the answers could not be read in time".to_owned()));
            let is_done =
                missing.as_ref().is_ok_and(|missing| missing.iter().all(|one| one.liveness == Liveness::Unknown));
            if is_done || Instant::now() + pause > deadline {
                break missing;
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_POLL_INTERVAL);
        };
        if gathered.task.only_reads() {
            // Nobody waits for further answers.
            let _ = self.store.perform(Operation::Delete { key, expected: Expected::Any }).await;
        }
        Ok(Answers { missing: missing?, by_member: gathered.by_member })
    }

    /// Reads the answers that have come since the last time. Returns the members without one.
    async fn gather(&self, id: &str, gathered: &mut Gathered<'_>) -> Result<Vec<Missing>, String> {
        let prefix = format!("{ANSWERS}{id}/");
        let roster = self.list_members().await?;
        let listed = match self.store.perform(Operation::Keys { prefix: prefix.clone() }).await {
            Outcome::Entries(entries) => entries,
            other => return Err(other.failure()),
        };
        let is_new = |member: &str| !gathered.by_member.contains_key(member) && roster.has(member);
        let new: Vec<String> = listed
            .into_iter()
            .map(|entry| entry.key)
            .filter(|key| key.strip_prefix(&prefix).is_some_and(is_new))
            .collect();
        for keys in new.chunks(MAX_KEYS) {
            match self.store.perform(Operation::Get { keys: keys.to_vec() }).await {
                Outcome::Entries(entries) => entries.iter().for_each(|entry| gathered.take(entry, &prefix)),
                other => return Err(other.failure()),
            }
        }
        let mut missing: Vec<_> = roster
            .members()
            .iter()
            .filter(|member| !gathered.has(&member.name))
            .map(|member| Missing { member: member.name.clone(), liveness: member.liveness })
            .collect();
        // A process without the name of its member has not answered for itself.
        let own = self.policy().config.fleet.as_ref().map(|fleet| fleet.member.clone()).unwrap_or_default();
        let is_unnamed = !self.status().has_name && missing.iter().all(|one| one.member != own);
        if is_unnamed || !(roster.has(&own) || gathered.has(&own)) {
            missing.push(Missing { member: own, liveness: Liveness::Live });
        }
        Ok(missing)
    }
}

/// The answers to one command so far.
struct Gathered<'t> {
    task: &'t CommandTask,
    bytes: usize,
    by_member: BTreeMap<String, Answer>,
}

impl Gathered<'_> {
    /// Takes an answer over, if it is one to the command and fits into the memory for all of them.
    fn take(&mut self, entry: &Entry, prefix: &str) {
        let bytes = self.bytes.saturating_add(entry.value.len());
        let Some(member) = entry.key.strip_prefix(prefix).filter(|_| bytes <= MAX_ANSWERS) else { return };
        if let Some(answer) = self.task.answer(&entry.value) {
            self.bytes = bytes;
            self.by_member.insert(member.to_owned(), answer);
        }
    }

    fn has(&self, member: &str) -> bool {
        self.by_member.get(member).is_some_and(|answer| !matches!(answer, Answer::Failed(_)))
    }
}

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Answers that are late cost the store less.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Time to read the answers that came at the last moment.
const GRACE: Duration = Duration::from_secs(2);

/// Bytes of all answers to one command. Members whose answers do not fit are missing.
const MAX_ANSWERS: usize = 16 << 20;

/// Seconds. A member that has lost the store for longer does not carry the command out.
const COMMAND_LIFE: u32 = 60;
