//! What the agent may send.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use crate::agent::message::Task;
use crate::printable;
use crate::resolution::observation::{MAX_ADDRESSES, MAX_TEXT, Observation};
use crate::source::cloud::CloudSource;

/// The sources that the agent may report.
#[derive(Debug)]
pub(super) struct KnownSources {
    current: BTreeSet<CloudSource>,
    /// Sources of previous tasks, which it may report until it has read the current one.
    former: BTreeSet<CloudSource>,
    /// The first ping behind the current task.
    read_at: u64,
}

/// How a source stands to the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Knowledge {
    Current,
    /// It was in a task that the agent may still work on.
    Former,
    Unknown,
}

impl KnownSources {
    pub(super) fn new(task: &Task) -> Self {
        Self { current: task.sources.iter().cloned().collect(), former: BTreeSet::new(), read_at: 0 }
    }

    /// Takes over a task that is sent after the ping with this number.
    pub(super) fn replace(&mut self, task: &Task, last_ping: u64) {
        self.former.append(&mut self.current);
        self.current = task.sources.iter().cloned().collect();
        self.read_at = last_ping.saturating_add(1);
    }

    /// Notes the answer to a ping.
    pub(super) fn answered(&mut self, ping: u64) {
        if ping >= self.read_at {
            self.former.clear();
        }
    }

    pub(super) fn judge(&self, source: &CloudSource) -> Knowledge {
        if self.current.contains(source) {
            Knowledge::Current
        } else if self.former.contains(source) {
            Knowledge::Former
        } else {
            Knowledge::Unknown
        }
    }

    /// How many messages the agent may send a second: a few for each source, because sources are resolved once a second at most.
    pub(super) fn max_messages(&self) -> usize {
        MIN_MESSAGES.saturating_add(4 * self.current.len().saturating_add(self.former.len()))
    }
}

/// Counts the messages of each second.
#[derive(Debug)]
pub(super) struct MessageRate {
    since: Instant,
    messages: usize,
    bytes: usize,
}

impl MessageRate {
    pub(super) const fn new(now: Instant) -> Self {
        Self { since: now, messages: 0, bytes: 0 }
    }

    /// Counts a message. Returns whether it is within the limits.
    pub(super) fn allows(&mut self, length: usize, max_messages: usize, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        self.messages = self.messages.saturating_add(1);
        self.bytes = self.bytes.saturating_add(length);
        self.messages <= max_messages && self.bytes <= MAX_BYTES
    }
}

/// Whether an observation has at most the size that it may have, and only text that can be shown.
pub(super) fn is_within_limits(observation: &Observation) -> bool {
    let is_text = |text: &str| text.len() <= MAX_TEXT && !text.chars().any(printable::is_hidden);
    match observation {
        Observation::Addresses { addresses, .. } => {
            addresses.len() <= MAX_ADDRESSES && addresses.iter().all(|address| is_text(&address.object))
        }
        Observation::Gone { detail, .. } | Observation::Unresolvable { detail } => is_text(detail),
        Observation::Failed { error } => is_text(error),
    }
}

/// Messages a second, without those for sources.
const MIN_MESSAGES: usize = 100;

/// Messages about a store a second, in addition: a listing of some thousand keys.
pub(super) const MAX_STORE_MESSAGES: usize = 10_000;

/// Bytes of messages a second.
pub(super) const MAX_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::resolution::observation::{Evidence, ObjectAddress};

    fn droplet(number: u64) -> CloudSource {
        CloudSource::Droplet(number)
    }

    fn task(numbers: &[u64]) -> Task {
        Task { sources: numbers.iter().copied().map(droplet).collect(), ..Task::default() }
    }

    #[test]
    fn former_source_is_known_until_the_agent_has_read_the_new_task() {
        let mut known = KnownSources::new(&task(&[1, 2]));
        assert_eq!(
            [1, 2, 3].map(|number| known.judge(&droplet(number))),
            [Knowledge::Current, Knowledge::Current, Knowledge::Unknown]
        );
        known.replace(&task(&[2, 3]), 7);
        known.answered(7);
        assert_eq!(
            [1, 2, 3].map(|number| known.judge(&droplet(number))),
            [Knowledge::Former, Knowledge::Current, Knowledge::Current]
        );
        known.replace(&task(&[3]), 7);
        assert_eq!([1, 2].map(|number| known.judge(&droplet(number))), [Knowledge::Former; 2]);
        known.answered(8);
        assert_eq!([1, 2].map(|number| known.judge(&droplet(number))), [Knowledge::Unknown; 2]);
    }

    #[test]
    fn messages_of_each_second_are_counted() {
        let start = Instant::now();
        let mut rate = MessageRate::new(start);
        assert!((0..5).all(|_| rate.allows(10, 5, start)));
        assert!(!rate.allows(10, 5, start + Duration::from_millis(999)));
        assert!(rate.allows(MAX_BYTES, 5, start + Duration::from_secs(1)));
        assert!(!rate.allows(1, 5, start + Duration::from_secs(1)), "too many bytes");
    }

    #[test]
    fn observation_with_hidden_or_long_text_is_out_of_limits() {
        let named = |object: &str| Observation::Addresses {
            addresses: vec![ObjectAddress { ip: IpAddr::from([10, 0, 0, 1]), object: object.into() }],
            evidence: Evidence::List,
        };
        assert!(is_within_limits(&named("droplet web-1")));
        for text in ["a\nb", "a\u{202e}b", "a\0", &"a".repeat(MAX_TEXT + 1)] {
            assert!(!is_within_limits(&named(text)), "{text:?}");
            assert!(!is_within_limits(&Observation::Failed { error: text.to_owned() }));
            assert!(!is_within_limits(&Observation::Unresolvable { detail: text.to_owned() }));
        }
    }
}
