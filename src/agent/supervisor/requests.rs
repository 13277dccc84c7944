//! Requests to the store: which are open, and what the agent may answer and report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};
use tokio::time::Instant;

use crate::fleet::settings::StoreSettings;
use crate::fleet::store::{
    Entry, Expected, MAX_KEY, MAX_KEYS, MAX_VALUE, Operation, Outcome, Request, SHARED, StoreEvent,
};
use crate::printable;
use crate::resolution::observation::MAX_TEXT;

/// The requests of the program, for the supervisor that runs. One that is started again takes them over.
#[derive(Clone, Debug)]
pub(crate) struct Requests(Arc<Mutex<mpsc::Receiver<Request>>>);

impl Requests {
    pub(crate) fn new(received: mpsc::Receiver<Request>) -> Self {
        Self(Arc::new(Mutex::new(received)))
    }

    /// The receiver. Another supervisor waits until it is released.
    pub(super) async fn acquire(&self) -> MutexGuard<'_, mpsc::Receiver<Request>> {
        self.0.lock().await
    }
}

/// What is expected of an agent concerning the store.
#[derive(Debug, Default)]
pub(super) struct StoreDialogue {
    /// The store of the task.
    settings: Option<Arc<StoreSettings>>,
    /// A listing has begun, and the store has not been reported as down since.
    is_listed: bool,
    last_number: u64,
    open: BTreeMap<u64, Open>,
}

/// A request that the agent has to answer.
#[derive(Debug)]
struct Open {
    expectation: Expectation,
    reply: oneshot::Sender<Outcome>,
    until: Instant,
}

/// Which answers fit a request.
#[derive(Debug)]
enum Expectation {
    Keys(BTreeSet<String>),
    Prefix { prefix: String, has_values: bool },
    Write { key: String, may_conflict: bool },
}

/// What the agent did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreViolation {
    #[error("a message about a store, which is not in its task")]
    NoStore,
    #[error("an answer to a request that is not open")]
    UnknownRequest,
    #[error("an answer that does not fit its request")]
    WrongAnswer,
    #[error("an invalid report of the store")]
    InvalidReport,
    #[error("a report of the store before its listing")]
    NotListed,
    #[error("no answer to a request within {ANSWER_TIMEOUT:?}")]
    NoAnswer,
}

impl StoreDialogue {
    pub(super) fn new(settings: Option<&StoreSettings>) -> Self {
        Self { settings: settings.cloned().map(Arc::new), ..Self::default() }
    }

    /// Whether the agent can continue with the store of this task. What it reports does not name its store, so another store
    /// needs another agent.
    pub(super) fn can_continue_with(&self, settings: Option<&StoreSettings>) -> bool {
        self.settings.is_none() || self.settings.as_deref() == settings
    }

    pub(super) fn replace(&mut self, settings: Option<&StoreSettings>) {
        if self.settings.as_deref() != settings {
            self.settings = settings.cloned().map(Arc::new);
        }
    }

    /// The store of the task, to which all reports belong.
    pub(super) const fn store(&self) -> Option<&Arc<StoreSettings>> {
        self.settings.as_ref()
    }

    pub(super) fn has_room(&self) -> bool {
        self.open.len() < MAX_OPEN
    }

    /// Opens a request. Returns its number and what to send; `None` if it has been answered here.
    pub(super) fn open(&mut self, request: Request) -> Option<(u64, Operation)> {
        let Request { operation, reply } = request;
        if reply.is_closed() {
            return None;
        }
        let failure = match () {
            () if self.settings.is_none() => Some("the configuration has no store"),
            () if !is_within_limits(&operation) => Some("a key or a value is too long for the store"),
            () => None,
        };
        if let Some(error) = failure {
            fail(reply, error);
            return None;
        }
        self.last_number = self.last_number.saturating_add(1);
        let open = Open { expectation: Expectation::of(&operation), reply, until: Instant::now() + ANSWER_TIMEOUT };
        self.open.insert(self.last_number, open);
        Some((self.last_number, operation))
    }

    /// Checks an answer and passes it on.
    ///
    /// # Errors
    /// If the agent may not send it.
    pub(super) fn answer(&mut self, number: u64, outcome: Outcome) -> Result<(), StoreViolation> {
        let open = self.open.remove(&number).ok_or(StoreViolation::UnknownRequest)?;
        if !open.expectation.is_met_by(&outcome) {
            return Err(StoreViolation::WrongAnswer);
        }
        // The caller may have stopped waiting.
        let _ = open.reply.send(outcome);
        Ok(())
    }

    /// Checks a report of the store.
    ///
    /// # Errors
    /// If the agent may not send it.
    pub(super) fn report(&mut self, event: StoreEvent) -> Result<(Arc<StoreSettings>, StoreEvent), StoreViolation> {
        let store = self.settings.clone().ok_or(StoreViolation::NoStore)?;
        if !is_valid(&event) {
            return Err(StoreViolation::InvalidReport);
        }
        match &event {
            StoreEvent::Listing => self.is_listed = true,
            StoreEvent::Down { .. } => self.is_listed = false,
            StoreEvent::Changed { .. } | StoreEvent::Synced { .. } if !self.is_listed => {
                return Err(StoreViolation::NotListed);
            }
            StoreEvent::Changed { .. } | StoreEvent::Synced { .. } => {}
        }
        Ok((store, event))
    }

    /// When the oldest request has to be answered.
    pub(super) fn answer_due(&self) -> Option<Instant> {
        self.open.first_key_value().map(|(_, open)| open.until)
    }

    /// Answers all open requests.
    pub(super) fn fail(&mut self, error: &str) {
        for open in std::mem::take(&mut self.open).into_values() {
            fail(open.reply, error);
        }
    }
}

/// Answers a request that the agent does not get.
pub(super) fn fail(reply: oneshot::Sender<Outcome>, error: &str) {
    // The caller may have stopped waiting.
    let _ = reply.send(Outcome::Failed { error: error.to_owned() });
}

impl Expectation {
    fn of(operation: &Operation) -> Self {
        match operation {
            Operation::Get { keys } => Self::Keys(keys.iter().cloned().collect()),
            Operation::List { prefix } => Self::Prefix { prefix: prefix.clone(), has_values: true },
            Operation::Keys { prefix } => Self::Prefix { prefix: prefix.clone(), has_values: false },
            Operation::Put { key, expected, .. } | Operation::Delete { key, expected } => {
                Self::Write { key: key.clone(), may_conflict: *expected != Expected::Any }
            }
            Operation::Hold { key, .. } => Self::Write { key: key.clone(), may_conflict: true },
        }
    }

    fn is_met_by(&self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (_, Outcome::Failed { error }) => is_text(error),
            (Self::Keys(keys), Outcome::Entries(entries)) => are_valid(entries, |entry| keys.contains(&entry.key)),
            (Self::Prefix { prefix, has_values }, Outcome::Entries(entries)) => are_valid(entries, |entry| {
                entry.key.starts_with(prefix.as_str()) && (*has_values || entry.value.is_empty())
            }),
            (Self::Write { .. }, Outcome::Done { version }) => is_text(version),
            (Self::Write { key, may_conflict: true }, Outcome::Conflict { current }) => {
                current.as_ref().is_none_or(|entry| is_entry(entry) && entry.key == *key)
            }
            (Self::Write { .. }, Outcome::Entries(_) | Outcome::Conflict { .. })
            | (Self::Keys(_) | Self::Prefix { .. }, Outcome::Done { .. } | Outcome::Conflict { .. }) => false,
        }
    }
}

/// Whether all entries fit the request, each key once.
fn are_valid(entries: &[Entry], fits: impl Fn(&Entry) -> bool) -> bool {
    let mut keys = BTreeSet::new();
    entries.iter().all(|entry| is_entry(entry) && fits(entry) && keys.insert(entry.key.as_str()))
}

fn is_entry(entry: &Entry) -> bool {
    is_key(&entry.key) && entry.value.len() <= MAX_VALUE && is_text(&entry.version)
}

fn is_key(key: &str) -> bool {
    (1..=MAX_KEY).contains(&key.len()) && !key.chars().any(printable::is_hidden)
}

fn is_text(text: &str) -> bool {
    text.len() <= MAX_TEXT && !text.chars().any(printable::is_hidden)
}

fn is_valid(event: &StoreEvent) -> bool {
    match event {
        StoreEvent::Listing => true,
        StoreEvent::Changed { key, value, version } => {
            let has_valid_value = value.as_ref().is_none_or(|value| value.len() <= MAX_VALUE);
            is_key(key) && key.len() > SHARED.len() && key.starts_with(SHARED) && has_valid_value && is_text(version)
        }
        StoreEvent::Synced { cluster, .. } => is_text(cluster),
        StoreEvent::Down { error } => is_text(error),
    }
}

/// Whether a request of the program can be sent.
fn is_within_limits(operation: &Operation) -> bool {
    match operation {
        Operation::Get { keys } => keys.len() <= MAX_KEYS && keys.iter().all(|key| is_key(key)),
        Operation::List { prefix } | Operation::Keys { prefix } => prefix.len() <= MAX_KEY,
        Operation::Put { key, value, .. } | Operation::Hold { key, value, .. } => {
            is_key(key) && value.len() <= MAX_VALUE
        }
        Operation::Delete { key, .. } => is_key(key),
    }
}

/// Open requests. More wait in their channel.
const MAX_OPEN: usize = 64;

/// The agent answers each request within 4 seconds, also when the store does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::settings::{Engine, EtcdSettings};

    fn settings(fleet: &str) -> StoreSettings {
        let endpoints = vec!["http://127.0.0.1:1".to_owned()];
        let etcd = EtcdSettings { endpoints, ca: None, identity: None, login: None, prefix: "/portcullis".to_owned() };
        StoreSettings { fleet: fleet.to_owned(), engine: Engine::Etcd(etcd) }
    }

    fn entry(key: &str, value: &str) -> Entry {
        Entry { key: key.to_owned(), value: value.to_owned(), version: "7".to_owned() }
    }

    fn dialogue() -> StoreDialogue {
        StoreDialogue::new(Some(&settings("prod")))
    }

    /// What the answer to an operation does.
    fn answered(operation: Operation, outcome: Outcome) -> Result<(), StoreViolation> {
        let mut dialogue = dialogue();
        let (reply, mut answer) = oneshot::channel();
        let (number, _) = dialogue.open(Request { operation, reply }).unwrap();
        let result = dialogue.answer(number, outcome.clone());
        assert_eq!(answer.try_recv().ok(), result.is_ok().then_some(outcome));
        result
    }

    fn put(expected: Expected) -> Operation {
        Operation::Put { key: "shared/epoch".to_owned(), value: "1".to_owned(), expected, seconds: None }
    }

    #[test]
    fn answer_that_fits_its_request_is_passed_on() {
        let keys = || vec!["shared/epoch".to_owned(), "shared/tickets".to_owned()];
        let prefix = || "members/".to_owned();
        let conflict = |key: &str| Outcome::Conflict { current: Some(entry(key, "2")) };
        let done = || Outcome::Done { version: "8".to_owned() };
        for (operation, outcome, fits) in [
            (Operation::Get { keys: keys() }, Outcome::Entries(vec![entry("shared/epoch", "1")]), true),
            (Operation::Get { keys: keys() }, Outcome::Entries(Vec::new()), true),
            (Operation::Get { keys: keys() }, Outcome::Entries(vec![entry("shared/other", "1")]), false),
            (Operation::Get { keys: keys() }, Outcome::Entries(vec![entry("shared/epoch", "1"); 2]), false),
            (Operation::Get { keys: keys() }, done(), false),
            (Operation::List { prefix: prefix() }, Outcome::Entries(vec![entry("members/a", "1")]), true),
            (Operation::List { prefix: prefix() }, Outcome::Entries(vec![entry("member/a", "1")]), false),
            (Operation::Keys { prefix: prefix() }, Outcome::Entries(vec![entry("members/a", "")]), true),
            (Operation::Keys { prefix: prefix() }, Outcome::Entries(vec![entry("members/a", "1")]), false),
            (Operation::List { prefix: prefix() }, Outcome::Conflict { current: None }, false),
            (put(Expected::Absent), done(), true),
            (put(Expected::Absent), conflict("shared/epoch"), true),
            (put(Expected::Absent), Outcome::Conflict { current: None }, true),
            (put(Expected::Absent), conflict("shared/tickets"), false),
            (put(Expected::Any), conflict("shared/epoch"), false),
            (put(Expected::Any), Outcome::Entries(Vec::new()), false),
            (put(Expected::Any), Outcome::Failed { error: "down".to_owned() }, true),
            (put(Expected::Any), Outcome::Failed { error: "a\nb".to_owned() }, false),
            (put(Expected::Any), Outcome::Done { version: "x".repeat(MAX_TEXT + 1) }, false),
        ] {
            let shown = format!("{operation:?} {outcome:?}");
            assert_eq!(answered(operation, outcome).is_ok(), fits, "{shown}");
        }
        let long =
            [entry(&format!("members/{}", "x".repeat(MAX_KEY)), ""), entry("members/a", &"x".repeat(MAX_VALUE + 1))];
        for entry in long {
            let operation = Operation::List { prefix: prefix() };
            assert_eq!(answered(operation, Outcome::Entries(vec![entry])), Err(StoreViolation::WrongAnswer));
        }
    }

    #[test]
    fn answer_without_an_open_request_is_a_violation() {
        let mut dialogue = dialogue();
        let outcome = || Outcome::Done { version: String::new() };
        assert_eq!(dialogue.answer(1, outcome()), Err(StoreViolation::UnknownRequest));
        let (reply, _answer) = oneshot::channel();
        let (number, _) = dialogue.open(Request { operation: put(Expected::Any), reply }).unwrap();
        assert_eq!(number, 1);
        dialogue.answer(1, outcome()).unwrap();
        assert_eq!(dialogue.answer(1, outcome()), Err(StoreViolation::UnknownRequest));
    }

    #[test]
    fn invalid_report_is_a_violation() {
        let changed = |key: &str, value: &str| StoreEvent::Changed {
            key: key.to_owned(),
            value: Some(value.to_owned()),
            version: "1".to_owned(),
        };
        let mut listed = dialogue();
        assert_eq!(listed.report(changed("shared/epoch", "1")), Err(StoreViolation::NotListed));
        listed.report(StoreEvent::Listing).unwrap();
        listed.report(changed("shared/epoch", "1")).unwrap();
        for event in [
            changed("shared/", "1"),
            changed("members/a", "1"),
            changed("", "1"),
            changed("shared/a\u{202e}", "1"),
            changed(&format!("shared/{}", "x".repeat(MAX_KEY)), "1"),
            changed("shared/a", &"x".repeat(MAX_VALUE + 1)),
            StoreEvent::Synced { cluster: "x".repeat(MAX_TEXT + 1), revision: 1 },
            StoreEvent::Down { error: "a\0".to_owned() },
        ] {
            assert_eq!(listed.report(event.clone()), Err(StoreViolation::InvalidReport), "{event:?}");
        }
        listed.report(StoreEvent::Down { error: "x".to_owned() }).unwrap();
        let synced = StoreEvent::Synced { cluster: "1".to_owned(), revision: 1 };
        assert_eq!(listed.report(synced), Err(StoreViolation::NotListed));
        assert_eq!(StoreDialogue::new(None).report(StoreEvent::Listing), Err(StoreViolation::NoStore));
    }

    #[test]
    fn request_that_cannot_be_sent_is_answered_at_once() {
        let mut limited = dialogue();
        let open = |dialogue: &mut StoreDialogue, operation| {
            let (reply, mut answer) = oneshot::channel();
            assert!(dialogue.open(Request { operation, reply }).is_none());
            assert!(matches!(answer.try_recv(), Ok(Outcome::Failed { .. })));
        };
        open(&mut StoreDialogue::new(None), put(Expected::Any));
        open(&mut limited, Operation::Get { keys: vec!["a".to_owned(); MAX_KEYS + 1] });
        open(&mut limited, Operation::Get { keys: vec![String::new()] });
        open(&mut limited, Operation::Hold { key: "x".repeat(MAX_KEY + 1), value: String::new(), seconds: 1 });
        let value = "x".repeat(MAX_VALUE + 1);
        open(&mut limited, Operation::Put { key: "a".to_owned(), value, expected: Expected::Any, seconds: None });
    }

    #[test]
    fn number_of_open_requests_is_bounded() {
        let mut dialogue = dialogue();
        let mut answers = Vec::new();
        while dialogue.has_room() {
            let (reply, answer) = oneshot::channel();
            dialogue.open(Request { operation: put(Expected::Any), reply }).unwrap();
            answers.push(answer);
        }
        assert_eq!(answers.len(), MAX_OPEN);
        dialogue.fail("ended");
        assert!(dialogue.has_room());
        for mut answer in answers {
            assert_eq!(answer.try_recv(), Ok(Outcome::Failed { error: "ended".to_owned() }));
        }
    }

    #[test]
    fn another_store_needs_another_agent() {
        let mut dialogue = StoreDialogue::new(None);
        assert!(dialogue.can_continue_with(Some(&settings("prod"))));
        dialogue.replace(Some(&settings("prod")));
        assert!(dialogue.can_continue_with(Some(&settings("prod"))));
        assert!(!dialogue.can_continue_with(Some(&settings("test"))) && !dialogue.can_continue_with(None));
    }
}
