//! How long something has not changed, by the clock of this machine. The clocks of other machines are never compared with it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// When things were last seen to change, by name. What is seen for the first time counts as changed.
#[derive(Debug, Default)]
pub(super) struct Lifetimes(BTreeMap<String, (String, Instant)>);

impl Lifetimes {
    /// Notes the state of a thing. Returns whether it has changed within this time.
    pub(super) fn note(&mut self, name: &str, state: String, time: Duration) -> bool {
        let now = Instant::now();
        if self.0.len() >= MAX_NAMES && !self.0.contains_key(name) {
            return true;
        }
        let seen = self.0.entry(name.to_owned()).or_insert_with(|| (state.clone(), now));
        if seen.0 != state {
            *seen = (state, now);
        }
        now.saturating_duration_since(seen.1) <= time
    }

    /// Forgets what no longer exists.
    pub(super) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| exists(name));
    }
}

/// More things are never found to be old.
const MAX_NAMES: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn thing_is_old_when_it_has_not_changed_for_its_time() {
        let mut lifetimes = Lifetimes::default();
        let time = Duration::from_secs(10);
        let mut is_within = |state: &str| lifetimes.note("a", state.to_owned(), time);
        assert!(is_within("1"), "seen for the first time");
        tokio::time::advance(time).await;
        assert!(is_within("1"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!is_within("1"));
        assert!(is_within("2"), "renewed");
        tokio::time::advance(time * 2).await;
        assert!(!is_within("2"));
        lifetimes.retain(|name| name != "a");
        assert!(lifetimes.note("a", "2".to_owned(), time), "seen for the first time again");
    }
}
