//! The states of all sources whose addresses change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::resolution::cloud::{CloudChange, CloudState};
use crate::resolution::host::{Answer, HostChange, HostState};
use crate::resolution::observation::Observation;
use crate::resolution::status::ResolutionStatus;
use crate::source::addresses::{AddressBook, Addresses, Resolvable};
use crate::source::cloud::CloudSource;
use crate::source::host::HostName;

/// The results of all lookups and observations.
#[derive(Debug, Default)]
pub struct ResolutionCache {
    states: Mutex<States>,
    moved: Notify,
    unsaved: Notify,
    /// Whether no lookups are made.
    is_offline: bool,
}

#[derive(Debug, Default)]
struct States {
    hosts: BTreeMap<HostName, HostState>,
    cloud: BTreeMap<CloudSource, CloudState>,
    /// The cloud sources that rules name. Observations of others are ignored.
    expected: BTreeSet<CloudSource>,
}

impl ResolutionCache {
    /// An empty cache that makes no lookups and uses the last good answers on disk.
    pub fn offline() -> Self {
        Self { is_offline: true, ..Self::default() }
    }

    pub(crate) fn is_offline(&self) -> bool {
        self.is_offline
    }

    /// Adds old answers for sources that have none.
    pub(crate) fn remember(&self, old: impl IntoIterator<Item = (Resolvable, (Addresses, OffsetDateTime))>) {
        let mut states = self.states();
        for (source, good) in old {
            match source {
                Resolvable::Host(name) => {
                    states.hosts.entry(name).or_default().good.get_or_insert(good);
                }
                Resolvable::Cloud(source) => {
                    states.cloud.entry(source).or_insert_with(|| CloudState::remembered(good.0, good.1));
                }
            }
        }
    }

    /// The known addresses of these sources.
    pub fn book<'a>(&self, sources: impl IntoIterator<Item = &'a Resolvable>) -> AddressBook {
        let states = self.states();
        sources.into_iter().filter_map(|source| Some((source.clone(), states.addresses(source)?))).collect()
    }

    /// The last good answers of these sources, with their times.
    pub(crate) fn good_answers<'a>(
        &self,
        sources: impl IntoIterator<Item = &'a Resolvable>,
    ) -> BTreeMap<Resolvable, (Addresses, OffsetDateTime)> {
        let states = self.states();
        let good = |source: &Resolvable| match source {
            Resolvable::Host(name) => states.hosts.get(name)?.good.clone(),
            Resolvable::Cloud(source) => states.cloud.get(source)?.good(),
        };
        sources.into_iter().filter_map(|source| Some((source.clone(), good(source)?))).collect()
    }

    /// Whether there was an answer, an error or an observation.
    pub(crate) fn has_state(&self, source: &Resolvable) -> bool {
        let states = self.states();
        match source {
            Resolvable::Host(name) => states.hosts.contains_key(name),
            Resolvable::Cloud(source) => states.cloud.contains_key(source),
        }
    }

    /// The state of a name, if it was ever looked up.
    pub(crate) fn host(&self, name: &HostName) -> Option<HostState> {
        self.states().hosts.get(name).cloned()
    }

    /// The state of a source as it is shown.
    pub(crate) fn status(&self, source: &Resolvable) -> ResolutionStatus {
        let states = self.states();
        match source {
            Resolvable::Host(name) => states.hosts.get(name).map(HostState::status).unwrap_or_default(),
            Resolvable::Cloud(source) => states.cloud.get(source).unwrap_or(&CloudState::default()).status(),
        }
    }

    /// Records the result of a lookup. Returns a change to log, if there is one.
    pub(crate) fn note(&self, name: &HostName, answer: Answer, now: OffsetDateTime) -> Option<HostChange> {
        let mut states = self.states();
        let before = states.hosts.get(name);
        let after = HostState::after(before, answer, now);
        let change = after.change_since(before, name);
        let addresses = |state: &HostState| state.good.as_ref().map(|(addresses, _)| addresses.clone());
        let has_moved = before.and_then(addresses) != addresses(&after);
        states.hosts.insert(name.clone(), after);
        self.notify_if(has_moved);
        change
    }

    /// Records when the next lookup of a name is due.
    pub(crate) fn plan(&self, name: &HostName, next_lookup: OffsetDateTime) {
        if let Some(state) = self.states().hosts.get_mut(name) {
            state.next_lookup = Some(next_lookup);
        }
    }

    /// Records an observation of a cloud source. Returns the changes to log and to audit. An observation of a source that no
    /// rule names is ignored.
    pub(crate) fn observe(
        &self,
        source: &CloudSource,
        observation: Observation,
        now: OffsetDateTime,
    ) -> Vec<CloudChange> {
        let mut states = self.states();
        if !states.expected.contains(source) {
            return Vec::new();
        }
        let before = states.cloud.get(source).cloned().unwrap_or_default();
        let after = before.after(observation, now);
        let changes = after.changes_since(&before);
        let has_moved = before.addresses() != after.addresses();
        states.cloud.insert(source.clone(), after);
        self.notify_if(has_moved);
        changes
    }

    fn notify_if(&self, has_moved: bool) {
        if has_moved {
            self.moved.notify_one();
            self.unsaved.notify_one();
        }
    }

    /// Returns when the addresses of a source have changed since the last call.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// The same as [`Self::moved`], for the task that writes them to disk.
    pub(crate) async fn unsaved(&self) {
        self.unsaved.notified().await;
    }

    /// Accepts observations of these sources and of no other.
    pub(crate) fn expect(&self, sources: BTreeSet<CloudSource>) {
        self.states().expected = sources;
    }

    /// Forgets all other sources.
    pub(crate) fn keep_only(&self, sources: &BTreeSet<Resolvable>) {
        let mut states = self.states();
        states.hosts.retain(|name, _| sources.contains(&Resolvable::Host(name.clone())));
        states.cloud.retain(|source, _| sources.contains(&Resolvable::Cloud(source.clone())));
    }

    fn states(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl States {
    fn addresses(&self, source: &Resolvable) -> Option<Addresses> {
        match source {
            Resolvable::Host(name) => Some(self.hosts.get(name)?.good.clone()?.0),
            Resolvable::Cloud(source) => self.cloud.get(source)?.addresses(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::resolution::observation::{Evidence, ObjectAddress};
    use crate::resolution::status::ResolutionState;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn name() -> HostName {
        "app.internal".parse().unwrap()
    }

    fn answer(last: &[u8]) -> Answer {
        let ips = last.iter().map(|last| IpAddr::from([10, 0, 0, *last]));
        Addresses::of(ips).map_err(|error| error.to_string())
    }

    fn known(cache: &ResolutionCache) -> String {
        let source = Resolvable::Host(name());
        cache.book([&source]).get(&source).map(ToString::to_string).unwrap_or_default()
    }

    fn tag(name: &str) -> CloudSource {
        CloudSource::parse("tag", name).unwrap().unwrap()
    }

    fn observed(last: u8) -> Observation {
        let address = ObjectAddress { ip: IpAddr::from([10, 0, 0, last]), object: "droplet".into() };
        Observation::Addresses { addresses: vec![address], evidence: Evidence::List }
    }

    #[test]
    fn failed_lookup_keeps_the_last_good_answer_and_is_reported_once() {
        let cache = ResolutionCache::default();
        let failed = || Err("no such name".to_owned());
        let message = |change: Option<HostChange>| match change {
            Some(HostChange::Degraded(message) | HostChange::Recovered(message)) => message,
            None => String::new(),
        };
        assert!(
            message(cache.note(&name(), failed(), NOW))
                .ends_with("no such name; the rule admits no client until it can be resolved")
        );
        assert_eq!(cache.note(&name(), failed(), NOW), None);
        assert!(message(cache.note(&name(), answer(&[1, 2]), NOW)).ends_with("can be resolved again"));
        assert_eq!(known(&cache), "10.0.0.1, 10.0.0.2");
        let text = message(cache.note(&name(), failed(), NOW));
        assert!(text.ends_with("from 1970-01-01T00:00:00Z: 10.0.0.1, 10.0.0.2"), "{text}");
        assert_eq!(cache.note(&name(), answer(&[]), NOW), None, "an empty answer is a failure, too");
        assert_eq!(known(&cache), "10.0.0.1, 10.0.0.2");
        assert!(cache.note(&name(), answer(&[2]), NOW).is_some());
        assert_eq!(known(&cache), "10.0.0.2");
    }

    #[test]
    fn remembered_answer_is_used_only_for_a_source_without_one() {
        let cache = ResolutionCache::default();
        let old = || [(Resolvable::Host(name()), (answer(&[9]).unwrap().0, NOW))];
        cache.remember(old());
        assert_eq!(known(&cache), "10.0.0.9");
        let _ = cache.note(&name(), answer(&[1]), NOW);
        cache.remember(old());
        assert_eq!(known(&cache), "10.0.0.1");
        cache.keep_only(&BTreeSet::new());
        assert_eq!(known(&cache), "");
    }

    #[test]
    fn observation_of_a_source_that_no_rule_names_is_ignored() {
        let cache = ResolutionCache::default();
        let source = Resolvable::Cloud(tag("web"));
        assert_eq!(cache.observe(&tag("web"), observed(1), NOW), []);
        assert_eq!(cache.book([&source]), AddressBook::new());
        cache.expect(BTreeSet::from([tag("web")]));
        let _ = cache.observe(&tag("web"), observed(1), NOW);
        let _ = cache.observe(&tag("other"), observed(2), NOW);
        assert_eq!(cache.book([&source])[&source].to_string(), "10.0.0.1");
        assert!(!cache.has_state(&Resolvable::Cloud(tag("other"))));
        assert_eq!(cache.status(&source).state, ResolutionState::Resolved);
        cache.keep_only(&BTreeSet::from([Resolvable::Host(name())]));
        assert_eq!(cache.status(&source).state, ResolutionState::Unresolved);
    }

    proptest! {
        #[test]
        fn known_addresses_are_those_of_the_last_good_answer(
            answers in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4), 1..20),
        ) {
            let cache = ResolutionCache::default();
            let mut last = String::new();
            for given in answers {
                if let Ok((addresses, _)) = answer(&given) {
                    last = addresses.to_string();
                }
                let _ = cache.note(&name(), answer(&given), NOW);
                prop_assert_eq!(&known(&cache), &last);
            }
        }
    }
}
