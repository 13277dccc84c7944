//! The store of a fleet as its members see it: a small key-value store with compare-and-swap, whatever engine is behind it.
//!
//! The agent speaks to the engine. Keys below [`SHARED`] are watched; all others are read on demand. Values are text.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Keys that every member watches: `shared/rules/LISTENER`, `shared/epoch`, `shared/tickets` and `shared/commands/ID`.
pub(crate) const SHARED: &str = "shared/";

/// The manifests of rules, by listener.
pub(crate) const RULES: &str = "shared/rules/";

/// How often an operator has accepted a store of this fleet, in decimal digits.
pub(crate) const EPOCH: &str = "shared/epoch";

/// The session ticket keys.
pub(crate) const TICKETS: &str = "shared/tickets";

/// Commands to all members, by ID. They are written with a limited life.
pub(crate) const COMMANDS: &str = "shared/commands/";

/// The answers to commands: `answers/ID/MEMBER`. They are written with a limited life.
pub(crate) const ANSWERS: &str = "answers/";

/// The chunks of long lists: `chunks/LISTENER/DIGEST`.
pub(crate) const CHUNKS: &str = "chunks/";

/// What members say about themselves: `members/MEMBER`. It stays when a member vanishes.
pub(crate) const MEMBERS: &str = "members/";

/// Who is heard of: `alive/MEMBER`, held with a limited life.
pub(crate) const ALIVE: &str = "alive/";

/// The maximum length of a key in bytes.
pub(crate) const MAX_KEY: usize = 256;

/// The maximum length of a value in bytes. etcd allows 1.5 MiB, Kubernetes about 1 MiB.
pub(crate) const MAX_VALUE: usize = 768 << 10;

/// The maximum number of keys in one [`Operation::Get`].
pub(crate) const MAX_KEYS: usize = 16;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub key: String,
    pub value: String,
    /// Another one after each write of the key. It has no order.
    pub version: String,
}

/// What the agent reports of the store.
///
/// After [`Self::Listing`], every shared key comes once as [`Self::Changed`]; with [`Self::Synced`] the listing is complete, and a
/// key that did not come is absent. Later changes come as they happen, and [`Self::Synced`] after each batch of them. A new
/// listing may begin at any time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum StoreEvent {
    /// The store answers, and its shared keys follow.
    Listing,
    /// A shared key has this value, or none any more.
    Changed { key: String, value: Option<String>, version: String },
    /// Everything up to this revision has been reported.
    Synced { cluster: String, revision: u64 },
    /// The store does not answer, or its answers are of no use. The agent tries again.
    Down { error: String },
}

/// Something to do in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Operation {
    /// Reads at most [`MAX_KEYS`] keys. Absent ones are left out.
    Get { keys: Vec<String> },
    /// Reads all keys that begin so, with their values.
    List { prefix: String },
    /// Reads the names and versions of all keys that begin so. The values are empty.
    Keys { prefix: String },
    /// Writes a key. With `seconds`, the store may remove it after this time.
    Put { key: String, value: String, expected: Expected, seconds: Option<u32> },
    /// Takes a key for this time, or extends it. The value says who has it; another holder is a conflict.
    Hold { key: String, value: String, seconds: u32 },
    /// Removes a key. An absent one is done.
    Delete { key: String, expected: Expected },
}

/// What a key must be for a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Expected {
    Absent,
    Version(String),
    Any,
}

/// The answer to an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Outcome {
    /// The answer to `Get`, `List` and `Keys`.
    Entries(Vec<Entry>),
    /// It is done. `version` is that of the written key.
    Done { version: String },
    /// The key is not as expected. It is like this instead.
    Conflict { current: Option<Entry> },
    /// It is unknown whether it was done, unless it only reads.
    Failed { error: String },
}

impl Outcome {
    /// What to tell of an outcome that is not the expected one.
    pub(crate) fn failure(&self) -> String {
        match self {
            Self::Failed { error } => error.clone(),
            Self::Conflict { .. } | Self::Done { .. } | Self::Entries(_) => {
                "the store gave an unexpected answer".to_owned()
            }
        }
    }
}

/// An operation and the place of its answer.
#[derive(Debug)]
pub(crate) struct Request {
    pub operation: Operation,
    pub reply: oneshot::Sender<Outcome>,
}

/// Sends operations to the agent.
#[derive(Clone, Debug)]
pub(crate) struct StoreClient {
    requests: mpsc::Sender<Request>,
}

impl StoreClient {
    /// Returns a client and the receiver of its requests.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, received) = mpsc::channel(MAX_REQUESTS);
        (Self { requests }, received)
    }

    /// Performs an operation. It fails when there is no answer in time, or no agent.
    pub(crate) async fn perform(&self, operation: Operation) -> Outcome {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.requests.send(Request { operation, reply }).await.ok()?;
            answer.await.ok()
        };
        match timeout(TIMEOUT, exchange).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Outcome::Failed { error: "the agent ended before it answered".to_owned() },
            Err(_) => Outcome::Failed { error: format!("no answer within {TIMEOUT:?}") },
        }
    }
}

/// Requests that wait for the agent. More wait at their caller, for a limited time.
const MAX_REQUESTS: usize = 64;

/// How long an operation may take.
const TIMEOUT: Duration = Duration::from_secs(5);
