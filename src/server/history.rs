//! The number of sessions and denied connections in each minute of the last hour.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::policy::{ListenerPolicy, Snapshot};
use crate::timestamp::seconds;

/// Samples of all listeners in force, in memory only.
#[derive(Debug)]
pub(crate) struct History {
    ticks: Interval,
    until: OffsetDateTime,
    listeners: BTreeMap<Arc<str>, Samples>,
}

/// One value a minute, oldest first.
#[derive(Debug, Default)]
struct Samples {
    sessions: VecDeque<u64>,
    denied: VecDeque<u64>,
    /// All denied connections at the time of the last sample.
    denied_total: u64,
}

impl History {
    /// Takes the first sample at once.
    pub(crate) fn new() -> Self {
        let mut ticks = interval(INTERVAL);
        // A sample is of its own time, so samples that were missed cannot be made up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, until: OffsetDateTime::now_utc(), listeners: BTreeMap::new() }
    }

    /// Returns when the next sample is due.
    pub(crate) async fn due(&mut self) {
        self.ticks.tick().await;
    }

    /// Takes a sample of every listener. Those of removed listeners are dropped.
    pub(crate) fn record(&mut self, current: &Snapshot, now: OffsetDateTime) {
        self.until = now;
        self.listeners.retain(|name, _| current.named(name).is_some());
        for policy in current.listeners() {
            let samples = self.listeners.entry(Arc::clone(&policy.name)).or_default();
            let denied = denied_total(policy);
            push(&mut samples.sessions, policy.metrics.active());
            // The first sample has nothing to compare with.
            let is_first = samples.denied.is_empty();
            let since_last = if is_first { 0 } else { denied.saturating_sub(samples.denied_total) };
            push(&mut samples.denied, since_last);
            samples.denied_total = denied;
        }
    }

    pub(crate) fn json(&self) -> Value {
        let listeners = self.listeners.iter().map(|(name, Samples { sessions, denied, denied_total: _ })| {
            json!({ "name": &**name, "sessions": sessions, "denied": denied })
        });
        json!({
            "interval_seconds": INTERVAL.as_secs(),
            "until": seconds(self.until),
            "listeners": listeners.collect::<Vec<_>>(),
        })
    }
}

fn denied_total(policy: &ListenerPolicy) -> u64 {
    policy.metrics.denied().map(|(_, count)| count).fold(0, u64::saturating_add)
}

fn push(samples: &mut VecDeque<u64>, value: u64) {
    if samples.len() == MAX_SAMPLES {
        samples.pop_front();
    }
    samples.push_back(value);
}

/// The name of this part in internal faults.
pub(crate) const PART: &str = "history";

const INTERVAL: Duration = Duration::from_secs(60);

/// An hour.
const MAX_SAMPLES: usize = 60;

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;
    use crate::outcome::Reason;
    use crate::policy::fixtures::{ConfigDir, listener};

    #[tokio::test]
    async fn last_sixty_samples_are_kept() {
        let dir = ConfigDir::new();
        for name in ["db", "cache"] {
            dir.install(name, OffsetDateTime::now_utc() + Duration::days(365));
        }
        let snapshot = dir.snapshot(listener("db", 1001, ""), None);
        let policy = snapshot.named("db").unwrap();
        let mut history = History::new();
        let now = OffsetDateTime::UNIX_EPOCH;

        policy.metrics.note_denied(Reason::UntrustedSource);
        history.record(&snapshot, now);
        policy.metrics.note_opened();
        (0..3).for_each(|_| policy.metrics.note_denied(Reason::UntrustedSource));
        history.record(&snapshot, now);
        history.record(&snapshot, now + Duration::minutes(1));
        let expected = json!({
            "interval_seconds": 60,
            "until": "1970-01-01T00:01:00Z",
            "listeners": [{ "name": "db", "sessions": [0, 1, 1], "denied": [0, 3, 0] }],
        });
        assert_eq!(history.json(), expected);

        (0..100).for_each(|_| history.record(&snapshot, now));
        assert_eq!(history.listeners["db"].sessions, [1; 60]);
        let other = dir.snapshot(listener("cache", 1002, ""), None);
        history.record(&other, now);
        assert_eq!(history.listeners.keys().map(|name| &**name).collect::<Vec<_>>(), ["cache"]);
    }
}
