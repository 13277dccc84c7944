//! The shared keys of the store, as the agent has reported them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fleet::settings::StoreSettings;
use crate::fleet::store::{COMMANDS, EPOCH, MAX_KEY, MAX_VALUE, RULES, StoreEvent, TICKETS};

/// The value of a shared key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) value: Arc<str>,
    pub(crate) version: String,
}

/// Whether the store answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Nothing has been heard of it yet.
    #[default]
    Unheard,
    Down {
        error: String,
    },
    Up {
        cluster: String,
        revision: u64,
    },
}

/// The shared keys at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The store that was seen.
    store: Option<Arc<StoreSettings>>,
    pub(crate) reach: Reach,
    keys: Arc<BTreeMap<String, Shared>>,
}

impl View {
    /// A store of which nothing has been heard yet.
    pub(crate) fn unheard(store: Arc<StoreSettings>) -> Self {
        Self { store: Some(store), ..Self::default() }
    }

    /// Whether this is a view of that store. A view of another one says nothing about it.
    pub(crate) fn is_of(&self, store: &StoreSettings) -> bool {
        self.store.as_deref() == Some(store)
    }

    fn with(&self, reach: Reach, keys: Arc<BTreeMap<String, Shared>>) -> Self {
        Self { store: self.store.clone(), reach, keys }
    }

    /// The manifest of a listener's rules.
    pub(crate) fn rules(&self, listener: &str) -> Option<&Shared> {
        self.keys.get(&format!("{RULES}{listener}"))
    }

    /// How often an operator has accepted a store of this fleet.
    pub(crate) fn epoch(&self) -> u64 {
        self.keys.get(EPOCH).and_then(|shared| shared.value.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn epoch_key(&self) -> Option<&Shared> {
        self.keys.get(EPOCH)
    }

    pub(crate) fn tickets(&self) -> Option<&Shared> {
        self.keys.get(TICKETS)
    }

    pub(crate) fn has_same_keys(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.keys, &other.keys) || self.keys == other.keys
    }

    pub(crate) fn has_command(&self, id: &str) -> bool {
        self.keys.contains_key(&format!("{COMMANDS}{id}"))
    }

    /// The commands by their IDs.
    pub(crate) fn commands(&self) -> impl Iterator<Item = (&str, &Shared)> {
        self.keys.iter().filter_map(|(key, shared)| Some((key.strip_prefix(COMMANDS)?, shared)))
    }
}

#[cfg(test)]
impl View {
    pub(crate) fn with_commands<'a>(commands: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let shared = |value: String| Shared { value: value.into(), version: "1".to_owned() };
        let keys = commands.into_iter().map(|(id, value)| (format!("{COMMANDS}{id}"), shared(value))).collect();
        Self { keys: Arc::new(keys), ..Self::default() }
    }
}

/// Makes a [`View`] of the events of the agent.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    keys: BTreeMap<String, Shared>,
    bytes: usize,
    has_listing: bool,
    /// Whether the keys are too many to be used.
    is_full: bool,
}

impl Collector {
    /// Takes an event over. Returns the view after an event that completes one; `known` is the one before.
    pub(crate) fn apply(&mut self, event: StoreEvent, known: &View) -> Option<View> {
        match event {
            StoreEvent::Listing => {
                *self = Self { has_listing: true, ..Self::default() };
                None
            }
            StoreEvent::Changed { key, value, version } => {
                self.change(key, value, version);
                None
            }
            StoreEvent::Synced { .. } if self.is_full => {
                let error =
                    format!("the store has more than {MAX_KEYS} shared keys or {} MiB of them", MAX_BYTES >> 20);
                Some(known.with(Reach::Down { error }, Arc::clone(&known.keys)))
            }
            // What was reported before the first listing is not complete.
            StoreEvent::Synced { .. } if !self.has_listing => None,
            StoreEvent::Synced { cluster, revision } => {
                let is_same = *known.keys == self.keys;
                let keys = if is_same { Arc::clone(&known.keys) } else { Arc::new(self.keys.clone()) };
                Some(known.with(Reach::Up { cluster, revision }, keys))
            }
            StoreEvent::Down { error } => Some(known.with(Reach::Down { error }, Arc::clone(&known.keys))),
        }
    }

    fn change(&mut self, key: String, value: Option<String>, version: String) {
        if let Some(former) = self.keys.remove(&key) {
            self.bytes = self.bytes.saturating_sub(former.value.len());
        }
        let Some(value) = value else { return };
        if key.starts_with(COMMANDS) && (value.len() > MAX_COMMAND || self.commands() >= MAX_COMMANDS) {
            // Whoever has sent it learns that this member does not answer. Rules and keys do not suffer from it.
            return;
        }
        let is_within = key.len() <= MAX_KEY && value.len() <= MAX_VALUE && self.keys.len() < MAX_KEYS;
        if !is_within || self.bytes.saturating_add(value.len()) > MAX_BYTES {
            self.is_full = true;
            return;
        }
        self.bytes = self.bytes.saturating_add(value.len());
        self.keys.insert(key, Shared { value: value.into(), version });
    }
}

impl Collector {
    fn commands(&self) -> usize {
        self.keys.range(COMMANDS.to_owned()..).take_while(|(key, _)| key.starts_with(COMMANDS)).count()
    }
}

/// The maximum number of commands, which live for a minute.
const MAX_COMMANDS: usize = 256;

/// The maximum length of a command in bytes. A plan of 100,000 rules has about 6 KiB.
const MAX_COMMAND: usize = 64 << 10;

/// A fleet has a key for each listener, and a few others.
const MAX_KEYS: usize = 4096;
const MAX_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(key: &str, value: Option<&str>, version: &str) -> StoreEvent {
        StoreEvent::Changed { key: key.to_owned(), value: value.map(str::to_owned), version: version.to_owned() }
    }

    fn synced(revision: u64) -> StoreEvent {
        StoreEvent::Synced { cluster: "a".to_owned(), revision }
    }

    fn after(collector: &mut Collector, known: &View, events: Vec<StoreEvent>) -> View {
        events.into_iter().fold(known.clone(), |known, event| collector.apply(event, &known).unwrap_or(known))
    }

    #[test]
    fn view_changes_when_a_batch_is_complete() {
        let (mut collector, none) = (Collector::default(), View::default());
        let listed = vec![StoreEvent::Listing, changed("shared/rules/cache", Some("1"), "v1"), synced(5)];
        let known = after(&mut collector, &none, listed);
        assert_eq!(known.rules("cache").map(|shared| &*shared.value), Some("1"));
        assert_eq!(collector.apply(changed("shared/rules/cache", None, ""), &known), None);
        let known = after(&mut collector, &known, vec![synced(6)]);
        assert_eq!((known.rules("cache"), &known.reach), (None, &Reach::Up { cluster: "a".to_owned(), revision: 6 }));
    }

    #[test]
    fn new_listing_forgets_keys_that_did_not_come_again() {
        let (mut collector, none) = (Collector::default(), View::default());
        let listed = |key| vec![StoreEvent::Listing, changed(key, Some("3"), "v1"), synced(5)];
        let known = after(&mut collector, &none, listed("shared/epoch"));
        assert_eq!(known.epoch(), 3);
        let known = after(&mut collector, &known, listed("shared/tickets"));
        assert_eq!((known.epoch(), known.tickets().is_some()), (0, true));
    }

    #[test]
    fn store_that_is_down_leaves_the_last_view() {
        let (mut collector, none) = (Collector::default(), View::default());
        let known =
            after(&mut collector, &none, vec![StoreEvent::Listing, changed("shared/epoch", Some("1"), "v"), synced(1)]);
        let down = after(&mut collector, &known, vec![StoreEvent::Down { error: "x".to_owned() }]);
        assert_eq!((down.epoch(), &down.reach), (1, &Reach::Down { error: "x".to_owned() }));
    }

    #[test]
    fn too_many_and_too_long_commands_cost_no_other_key() {
        let (mut collector, none) = (Collector::default(), View::default());
        let mut events = vec![StoreEvent::Listing, changed("shared/commands/long", Some(&"x".repeat(70_000)), "v")];
        events.extend((0..MAX_KEYS * 2).map(|number| changed(&format!("shared/commands/{number}"), Some("{}"), "v")));
        events.extend([changed("shared/rules/cache", Some("1"), "v"), synced(2)]);
        let known = after(&mut collector, &none, events);
        assert_eq!((known.commands().count(), known.rules("cache").is_some()), (MAX_COMMANDS, true));
        assert!(matches!(known.reach, Reach::Up { .. }));
    }

    #[test]
    fn incomplete_and_oversized_listings_are_not_used() {
        let (mut collector, none) = (Collector::default(), View::default());
        assert_eq!(collector.apply(synced(1), &none), None);
        let mut events = vec![StoreEvent::Listing];
        events.extend((0..=MAX_KEYS).map(|number| changed(&format!("shared/x{number}"), Some(""), "v")));
        events.push(synced(2));
        assert!(matches!(after(&mut collector, &none, events).reach, Reach::Down { .. }));
    }
}
