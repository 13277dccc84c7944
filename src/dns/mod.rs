//! What is known of the host names that rules trust: the last good answer of each, and how old it is.
//!
//! A look that fails takes nothing away. It cannot be told what a failure means: the system's resolver says the same of a
//! name that was deleted, one that is misspelt in a search domain, and one whose server is down.

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

/// The names to look after, and where what is known of them is kept.
#[derive(Debug)]
pub(crate) struct Watched {
    /// How long after an answer each is asked for again, at the latest.
    pub refresh: BTreeMap<HostName, Duration>,
    /// The file.
    pub cache_file: CacheFile,
}

/// The names that are looked after, or were asked for once. Whoever looks one up notes here what came of it.
#[derive(Debug, Default)]
pub struct HostCache {
    states: Mutex<BTreeMap<HostName, HostState>>,
    moved: Notify,
    /// Whether nobody is to be asked.
    offline: bool,
}

/// How it stands with one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// Its last good answer, and when that was given.
    pub good: Option<(Addresses, OffsetDateTime)>,
    /// What of that answer is not trusted.
    omitted: Option<OmittedAddresses>,
    /// Why the last look has brought no answer.
    pub failure: Option<String>,
    /// When the next look is due, if that was planned already.
    pub next_look: Option<OffsetDateTime>,
}

/// What a look has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostChange {
    /// Something to look after.
    Bad(String),
    /// That is over.
    Good(String),
}

/// What is known for a policy that is being built.
#[derive(Debug)]
pub struct Lookup {
    /// The addresses of its names.
    pub book: AddressBook,
    /// What deserves a look, in words for the operator.
    pub warnings: Vec<String>,
}

impl HostCache {
    /// Nothing yet, and nobody is ever asked: names have the last good answers that are kept on disk.
    pub fn offline() -> Self {
        Self { offline: true, ..Self::default() }
    }

    /// What is known of `names`. Those that nobody looks after are asked for now, which takes a few seconds at most; one
    /// that nobody has an answer for, and never had, has the last one that `cache_file` has.
    pub fn find(
        &self,
        names: &BTreeSet<HostName>,
        looked_after: &HashSet<&HostName>,
        cache_file: &CacheFile,
    ) -> Lookup {
        let fresh = names.iter().filter(|name| !looked_after.contains(name) || self.state(name).is_none());
        let fresh: Vec<HostName> = fresh.cloned().collect();
        let mut warnings = Vec::new();
        if self.offline {
            self.remember(cache_file.read().into_iter().flatten().filter(|(name, _)| names.contains(name)));
            return Lookup { book: self.book(names), warnings };
        }
        let answers = lookup::ask_all(&fresh);
        if answers.values().any(Result::is_err) {
            match cache_file.read() {
                Ok(old) => {
                    self.remember(old.into_iter().filter(|(name, _)| answers.get(name).is_some_and(Result::is_err)))
                }
                Err(error) => warnings.push(error),
            }
        }
        for (name, answer) in answers {
            if let Some(HostChange::Bad(words)) = self.note(&name, answer, OffsetDateTime::now_utc()) {
                warnings.push(words);
            }
        }
        Lookup { book: self.book(names), warnings }
    }

    /// Takes old answers for names that have none.
    fn remember(&self, old: impl Iterator<Item = (HostName, (Addresses, OffsetDateTime))>) {
        let mut states = self.states();
        for (name, good) in old {
            states.entry(name).or_default().good.get_or_insert(good);
        }
    }

    /// The addresses known of these names.
    pub fn book<'a>(&self, names: impl IntoIterator<Item = &'a HostName>) -> AddressBook {
        let states = self.states();
        let known = |name: &HostName| Some((name.clone(), states.get(name)?.good.clone()?.0));
        names.into_iter().filter_map(known).collect()
    }

    /// How it stands with a name, if it was ever asked for.
    pub fn state(&self, name: &HostName) -> Option<HostState> {
        self.states().get(name).cloned()
    }

    /// Notes what a look has brought. Returns what there is to tell; the same again is no news.
    pub fn note(&self, name: &HostName, answer: Answer, now: OffsetDateTime) -> Option<HostChange> {
        let mut states = self.states();
        let before = states.get(name);
        let after = HostState::after(before, answer, now);
        let news = after.news_since(before, name);
        let addresses = |state: &HostState| state.good.as_ref().map(|(addresses, _)| addresses.clone());
        let moved = before.and_then(addresses) != addresses(&after);
        states.insert(name.clone(), after);
        if moved {
            self.moved.notify_one();
        }
        news
    }

    /// Notes when the next look at a name is due.
    pub fn plan(&self, name: &HostName, next_look: OffsetDateTime) {
        if let Some(state) = self.states().get_mut(name) {
            state.next_look = Some(next_look);
        }
    }

    /// Returns when the addresses of a name are others than at the last time.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Forgets the names that are none of these.
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
            Ok((addresses, omitted)) => Self { good: Some((addresses, now)), omitted, failure: None, next_look: None },
            Err(failure) => Self { failure: Some(failure), ..before.cloned().unwrap_or_default() },
        }
    }

    fn news_since(&self, before: Option<&Self>, name: &HostName) -> Option<HostChange> {
        let failed_before = before.is_some_and(|before| before.failure.is_some());
        match (&self.failure, &self.good) {
            (Some(_), _) if failed_before => None,
            (Some(failure), Some((addresses, at))) => Some(HostChange::Bad(format!(
                "dns:{name} cannot be resolved: {failure}; its last good answer, of {}, goes on to count: {addresses}",
                timestamp::seconds(*at)
            ))),
            (Some(failure), None) => Some(HostChange::Bad(format!(
                "dns:{name} cannot be resolved: {failure}; until it can, it lets nobody in"
            ))),
            (None, _) => match self.omitted {
                Some(omitted) if before.and_then(|before| before.omitted) != Some(omitted) => {
                    Some(HostChange::Bad(format!("dns:{name}: {omitted}")))
                }
                Some(_) | None => failed_before.then(|| HostChange::Good(format!("dns:{name} can be resolved again"))),
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
    fn a_failure_takes_nothing_away_and_is_told_once() {
        let names = HostCache::default();
        let failed = || Err("no such name".to_owned());
        let told = |news: Option<HostChange>| match news {
            Some(HostChange::Bad(words) | HostChange::Good(words)) => words,
            None => String::new(),
        };
        assert!(told(names.note(&name(), failed(), NOW)).ends_with("no such name; until it can, it lets nobody in"));
        assert_eq!(names.note(&name(), failed(), NOW), None);
        assert!(told(names.note(&name(), answer(&[1, 2]), NOW)).ends_with("can be resolved again"));
        assert_eq!(known(&names), "10.0.0.1, 10.0.0.2");
        let words = told(names.note(&name(), failed(), NOW));
        assert!(words.ends_with("of 1970-01-01T00:00:00Z, goes on to count: 10.0.0.1, 10.0.0.2"), "{words}");
        assert_eq!(names.note(&name(), answer(&[]), NOW), None, "an empty answer is a failure, too");
        assert_eq!(known(&names), "10.0.0.1, 10.0.0.2");
        assert!(names.note(&name(), answer(&[2]), NOW).is_some());
        assert_eq!(known(&names), "10.0.0.2");
    }

    #[test]
    fn an_old_answer_counts_only_where_there_is_none() {
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
        fn what_is_known_is_the_last_answer_that_was_one(
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
