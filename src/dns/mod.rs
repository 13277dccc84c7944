//! Host names in trusted sources: lookups, the last good answer of each name, and its age.
//!
//! A failed lookup removes no address. The system's resolver reports the same error for a name that was deleted, a name that
//! is misspelt in a search domain, and a name whose server is down.

pub(crate) mod cache_file;
pub(crate) mod lookup;
pub(crate) mod refresher;
pub(crate) mod resolv_conf;
pub(crate) mod ttl;
pub(crate) mod wire;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::dns::cache_file::CacheFile;
use crate::dns::lookup::Answer;
use crate::source::host::{AddressBook, Addresses, HostName, OmittedAddresses};
use crate::timestamp;

/// The names to refresh, and the file that keeps their answers.
#[derive(Debug)]
pub(crate) struct Watched {
    /// The maximum time between two lookups of each name.
    pub refresh: BTreeMap<HostName, Duration>,
    pub cache_file: CacheFile,
}

/// The results of all lookups.
#[derive(Debug, Default)]
pub struct HostCache {
    states: Mutex<BTreeMap<HostName, HostState>>,
    moved: Notify,
    /// Whether no lookups are made.
    offline: bool,
}

/// The state of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// The last good answer, and its time.
    pub good: Option<(Addresses, OffsetDateTime)>,
    /// Addresses of that answer that are not trusted.
    omitted: Option<OmittedAddresses>,
    /// Why the last lookup failed.
    pub failure: Option<String>,
    /// When the next lookup is due, if it is scheduled.
    pub next_lookup: Option<OffsetDateTime>,
}

/// A change of a name's state that is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostChange {
    /// Needs attention.
    Degraded(String),
    /// Is resolved.
    Recovered(String),
}

/// The answers for a policy that is being built.
#[derive(Debug)]
pub struct Lookup {
    pub book: AddressBook,
    /// Messages for the operator.
    pub warnings: Vec<String>,
}

impl HostCache {
    /// An empty cache that makes no lookups and uses the last good answers on disk.
    pub fn offline() -> Self {
        Self { offline: true, ..Self::default() }
    }

    /// The addresses of `names`. Names that are not `watched` yet are looked up now, which takes a few seconds at most. A name
    /// without any answer gets the last one from `cache_file`.
    pub fn find(&self, names: &BTreeSet<HostName>, watched: &HashSet<&HostName>, cache_file: &CacheFile) -> Lookup {
        let fresh = names.iter().filter(|name| !watched.contains(name) || self.state(name).is_none());
        let fresh: Vec<HostName> = fresh.cloned().collect();
        let mut warnings = Vec::new();
        if self.offline {
            self.remember(cache_file.read().into_iter().flatten().filter(|(name, _)| names.contains(name)));
            return Lookup { book: self.book(names), warnings };
        }
        let answers = lookup::lookup_all(&fresh);
        if answers.values().any(Result::is_err) {
            match cache_file.read() {
                Ok(old) => {
                    self.remember(old.into_iter().filter(|(name, _)| answers.get(name).is_some_and(Result::is_err)))
                }
                Err(error) => warnings.push(error),
            }
        }
        for (name, answer) in answers {
            if let Some(HostChange::Degraded(message)) = self.note(&name, answer, OffsetDateTime::now_utc()) {
                warnings.push(message);
            }
        }
        Lookup { book: self.book(names), warnings }
    }

    /// Adds old answers for names that have none.
    fn remember(&self, old: impl Iterator<Item = (HostName, (Addresses, OffsetDateTime))>) {
        let mut states = self.states();
        for (name, good) in old {
            states.entry(name).or_default().good.get_or_insert(good);
        }
    }

    /// The known addresses of these names.
    pub fn book<'a>(&self, names: impl IntoIterator<Item = &'a HostName>) -> AddressBook {
        let states = self.states();
        let known = |name: &HostName| Some((name.clone(), states.get(name)?.good.clone()?.0));
        names.into_iter().filter_map(known).collect()
    }

    /// The state of a name, if it was ever looked up.
    pub fn state(&self, name: &HostName) -> Option<HostState> {
        self.states().get(name).cloned()
    }

    /// Records the result of a lookup. Returns a change to log, if there is one.
    pub fn note(&self, name: &HostName, answer: Answer, now: OffsetDateTime) -> Option<HostChange> {
        let mut states = self.states();
        let before = states.get(name);
        let after = HostState::after(before, answer, now);
        let change = after.change_since(before, name);
        let addresses = |state: &HostState| state.good.as_ref().map(|(addresses, _)| addresses.clone());
        let moved = before.and_then(addresses) != addresses(&after);
        states.insert(name.clone(), after);
        if moved {
            self.moved.notify_one();
        }
        change
    }

    /// Records when the next lookup of a name is due.
    pub fn plan(&self, name: &HostName, next_lookup: OffsetDateTime) {
        if let Some(state) = self.states().get_mut(name) {
            state.next_lookup = Some(next_lookup);
        }
    }

    /// Returns when the addresses of a name have changed since the last call.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Forgets all other names.
    pub fn keep_only(&self, names: &BTreeSet<HostName>) {
        self.states().retain(|name, _| names.contains(name));
    }

    fn states(&self) -> MutexGuard<'_, BTreeMap<HostName, HostState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostState {
    fn after(before: Option<&Self>, answer: Answer, now: OffsetDateTime) -> Self {
        match answer {
            Ok((addresses, omitted)) => {
                Self { good: Some((addresses, now)), omitted, failure: None, next_lookup: None }
            }
            Err(failure) => Self { failure: Some(failure), ..before.cloned().unwrap_or_default() },
        }
    }

    fn change_since(&self, before: Option<&Self>, name: &HostName) -> Option<HostChange> {
        let failed_before = before.is_some_and(|before| before.failure.is_some());
        match (&self.failure, &self.good) {
            (Some(_), _) if failed_before => None,
            (Some(failure), Some((addresses, at))) => Some(HostChange::Degraded(format!(
                "dns:{name} cannot be resolved: {failure}; using the last good answer, from {}: {addresses}",
                timestamp::seconds(*at)
            ))),
            (Some(failure), None) => Some(HostChange::Degraded(format!(
                "dns:{name} cannot be resolved: {failure}; the rule admits no client until it can be resolved"
            ))),
            (None, _) => match self.omitted {
                Some(omitted) if before.and_then(|before| before.omitted) != Some(omitted) => {
                    Some(HostChange::Degraded(format!("dns:{name}: {omitted}")))
                }
                Some(_) | None => {
                    failed_before.then(|| HostChange::Recovered(format!("dns:{name} can be resolved again")))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn name() -> HostName {
        "app.internal".parse().unwrap()
    }

    fn answer(last: &[u8]) -> Answer {
        let ips = last.iter().map(|last| IpAddr::from([10, 0, 0, *last]));
        Addresses::of(ips).map_err(|error| error.to_string())
    }

    fn known(names: &HostCache) -> String {
        names.book([&name()]).get(&name()).map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn failed_lookup_keeps_the_last_good_answer_and_is_reported_once() {
        let names = HostCache::default();
        let failed = || Err("no such name".to_owned());
        let message = |change: Option<HostChange>| match change {
            Some(HostChange::Degraded(message) | HostChange::Recovered(message)) => message,
            None => String::new(),
        };
        assert!(
            message(names.note(&name(), failed(), NOW))
                .ends_with("no such name; the rule admits no client until it can be resolved")
        );
        assert_eq!(names.note(&name(), failed(), NOW), None);
        assert!(message(names.note(&name(), answer(&[1, 2]), NOW)).ends_with("can be resolved again"));
        assert_eq!(known(&names), "10.0.0.1, 10.0.0.2");
        let text = message(names.note(&name(), failed(), NOW));
        assert!(text.ends_with("from 1970-01-01T00:00:00Z: 10.0.0.1, 10.0.0.2"), "{text}");
        assert_eq!(names.note(&name(), answer(&[]), NOW), None, "an empty answer is a failure, too");
        assert_eq!(known(&names), "10.0.0.1, 10.0.0.2");
        assert!(names.note(&name(), answer(&[2]), NOW).is_some());
        assert_eq!(known(&names), "10.0.0.2");
    }

    #[test]
    fn remembered_answer_is_used_only_for_a_name_without_one() {
        let names = HostCache::default();
        let old = || std::iter::once((name(), (answer(&[9]).unwrap().0, NOW)));
        names.remember(old());
        assert_eq!(known(&names), "10.0.0.9");
        let _ = names.note(&name(), answer(&[1]), NOW);
        names.remember(old());
        assert_eq!(known(&names), "10.0.0.1");
        names.keep_only(&BTreeSet::new());
        assert_eq!(known(&names), "");
    }

    proptest! {
        #[test]
        fn known_addresses_are_those_of_the_last_good_answer(
            answers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4), 1..20),
        ) {
            let names = HostCache::default();
            let mut last = String::new();
            for given in answers {
                if let Ok((addresses, _)) = answer(&given) {
                    last = addresses.to_string();
                }
                let _ = names.note(&name(), answer(&given), NOW);
                prop_assert_eq!(&known(&names), &last);
            }
        }
    }
}
