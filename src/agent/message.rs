//! The messages between the program and its agent.
//!
//! A message is one JSON object, preceded by its length as 4 bytes in network byte order. The first message of the agent is
//! [`FromAgent::Hello`]; both are the same binary, so another version is an error.
//!
//! The name of a message is the key of its content. With a tag inside of the content, serde would first build a tree of the
//! whole message, which takes many times its length in memory.

use serde::{Deserialize, Serialize};

use crate::fleet::settings::StoreSettings;
use crate::fleet::store::{Operation, Outcome, StoreEvent};
use crate::resolution::observation::Observation;
use crate::resolution::settings::{DigitalOceanSettings, KubernetesSettings};
use crate::source::cloud::CloudSource;

/// The version of these messages.
pub(crate) const VERSION: u32 = 1;

/// The maximum length of a message in bytes: the largest set of addresses takes half of it.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// A message to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ToAgent {
    /// What to do from now on. It replaces the previous task.
    Task(Box<Task>),
    /// Asks for a sign of life.
    Ping { number: u64 },
    /// Something to do in the store. Numbers increase.
    Store { number: u64, operation: Operation },
}

/// A message from the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum FromAgent {
    /// The agent has started.
    Hello { version: u32, confinement: Confinement },
    /// The answer to [`ToAgent::Ping`].
    Pong { number: u64 },
    /// The result of an attempt to resolve a source of the task.
    Observed { source: CloudSource, observation: Observation },
    /// News of the store.
    StoreNews(StoreEvent),
    /// The answer to [`ToAgent::Store`].
    StoreReply { number: u64, outcome: Outcome },
}

/// How far the kernel confines the agent with Landlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Confinement {
    Full,
    /// The kernel knows a part of the restrictions.
    Partial,
    /// The kernel has no Landlock.
    None,
}

impl Confinement {
    /// The word in the log.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::None => "none",
        }
    }
}

/// The sources to resolve, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Task {
    pub digitalocean: Option<DigitalOceanSettings>,
    pub kubernetes: Option<KubernetesSettings>,
    pub sources: Vec<CloudSource>,
    /// The store of the fleet, if there is one.
    pub store: Option<StoreSettings>,
}

impl Task {
    /// Whether there is anything to do.
    pub(crate) fn is_needed(&self) -> bool {
        !self.sources.is_empty() || self.store.is_some()
    }
}
