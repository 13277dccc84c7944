//! Decides what a change means for each rule of the file. Pure.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use ipnet::IpNet;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::config::edit::sources::table::{Entry, Update};
use crate::config::edit::sources::{EditError, Field, NewRule, request};
use crate::source::cloud::CloudSource;
use crate::source::group::GroupName;
use crate::source::rule::{Origin, Rule, Source};

/// What happens to the rules of the file.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// For each rule, in the order of the file.
    pub(crate) fates: Vec<Fate<'a>>,
    /// New rules, for the end of the file.
    pub(crate) added: Vec<Entry<'a>>,
    /// UUIDs of the rules that the request names, in its order.
    pub(crate) affected: Vec<Uuid>,
}

/// What happens to one rule.
#[derive(Clone, Debug)]
pub(crate) enum Fate<'a> {
    Stay(Update<'a>),
    Remove,
}

/// The rules before a change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current<'a> {
    /// The rules of the file, in its order.
    pub(crate) rules: &'a [Arc<Rule>],
    /// All rules of the owner. Those of other origins than the configuration are ignored.
    pub(crate) configured: &'a [Arc<Rule>],
    pub(crate) now: OffsetDateTime,
}

/// A rule of the file with its position.
type Found<'a> = (usize, &'a Rule);

/// A rule of a request with its source.
pub(crate) type Given<'a> = (&'a NewRule, &'a Source);

impl Plan<'_> {
    pub(crate) fn changes_nothing(&self) -> bool {
        self.added.is_empty()
            && self.fates.iter().all(|fate| matches!(fate, Fate::Stay(update) if update.changes_nothing()))
    }
}

impl<'a> Current<'a> {
    /// Adds the rules that are neither in the file nor in force by the configuration. An expired rule of the file is renewed.
    pub(crate) fn append(&self, given: &[Given<'a>]) -> Plan<'a> {
        let mut plan = self.unchanged();
        let wanted = Wanted::of(given.iter().copied());
        // Of several rules with the same text, one that has not expired.
        let mut found: Vec<Option<Found<'_>>> = vec![None; wanted.rules.len()];
        for (index, rule) in self.numbered() {
            let Some(found) = wanted.slot_of(rule).and_then(|slot| found.get_mut(slot)) else { continue };
            if found.is_none_or(|(_, other)| !other.is_live(self.now) && rule.is_live(self.now)) {
                *found = Some((index, rule));
            }
        }
        let configured = self.live_configured_uuids();
        let mut uuids = Vec::with_capacity(wanted.rules.len());
        for ((new, _), found) in wanted.rules.iter().zip(found) {
            uuids.push(match (found, configured.get(&text_of(new))) {
                (Some(found), _) => plan.renew(found, new, self.now),
                (None, Some(uuid)) => *uuid,
                (None, None) => plan.add(new, self.now),
            });
        }
        let uuid_of = |(new, _): &Given<'_>| wanted.slots.get(&key(new)).and_then(|slot| uuids.get(*slot)).copied();
        plan.affected = given.iter().filter_map(uuid_of).collect();
        plan
    }

    /// Makes the rules of the file those of the request. A rule with the UUID of a configured one is skipped. One that only has
    /// the text of a configured rule is added: clients such as Terraform expect every rule that they send in the file.
    pub(crate) fn replace(&self, given: &[Given<'a>]) -> Plan<'a> {
        let mut plan = Plan { fates: vec![Fate::Remove; self.rules.len()], ..self.unchanged() };
        let of_configuration: HashSet<Uuid> = self.configured().map(|rule| rule.uuid).collect();
        let configured_uuid = |new: &NewRule| new.uuid.filter(|uuid| of_configuration.contains(uuid));
        let wanted = Wanted::of(given.iter().copied().filter(|(new, _)| configured_uuid(new).is_none()));
        let mut uuids = Vec::with_capacity(wanted.rules.len());
        for ((new, _), claim) in wanted.rules.iter().zip(self.claims(&wanted)) {
            uuids.push(match claim {
                Some(claim) => plan.keep(claim, new),
                None => plan.add(new, self.now),
            });
        }
        let wanted_uuid = |new: &NewRule| wanted.slots.get(&key(new)).and_then(|slot| uuids.get(*slot)).copied();
        plan.affected = given.iter().filter_map(|(new, _)| configured_uuid(new).or_else(|| wanted_uuid(new))).collect();
        plan
    }

    /// Removes the rules with these UUIDs.
    ///
    /// # Errors
    /// [`EditError::UnknownUuid`] or [`EditError::Configured`] for a UUID that no rule of the file has.
    pub(crate) fn remove(&self, uuids: &[Uuid]) -> Result<Plan<'a>, EditError> {
        let mut plan = self.unchanged();
        let positions = self.positions();
        for uuid in uuids {
            match positions.get(uuid).and_then(|index| plan.fates.get_mut(*index)) {
                Some(fate) => *fate = Fate::Remove,
                None if self.configured().any(|rule| rule.uuid == *uuid) => return Err(EditError::Configured(*uuid)),
                None => return Err(EditError::UnknownUuid(*uuid)),
            }
        }
        plan.affected = uuids.to_vec();
        Ok(plan)
    }

    /// The rules of the file with their positions.
    fn numbered(&self) -> impl Iterator<Item = Found<'a>> + use<'a> {
        self.rules.iter().map(|rule| &**rule).enumerate()
    }

    fn unchanged(&self) -> Plan<'a> {
        let fates = vec![Fate::Stay(Update::NOTHING); self.rules.len()];
        Plan { fates, added: Vec::new(), affected: Vec::new() }
    }

    fn configured(&self) -> impl Iterator<Item = &'a Rule> {
        self.configured.iter().map(|rule| &**rule).filter(|rule| rule.origin == Origin::Configuration)
    }

    /// The UUIDs of the configured rules that have not expired, by type and value.
    fn live_configured_uuids(&self) -> HashMap<(&'a str, Cow<'a, str>), Uuid> {
        let live = self.configured().filter(|rule| rule.is_live(self.now));
        live.map(|rule| ((rule.source.kind(), rule.written_value()), rule.uuid)).collect()
    }

    /// The rule of the file that each wanted rule continues: one with the same text, otherwise one with the same canonical value,
    /// preferably with the UUID in the request.
    fn claims(&self, wanted: &Wanted<'_>) -> Vec<Option<Found<'a>>> {
        let mut claims: Vec<Option<Found<'a>>> = vec![None; wanted.rules.len()];
        for (index, rule) in self.numbered() {
            let Some(slot) = wanted.slot_of(rule) else { continue };
            let has_uuid = wanted.rules.get(slot).is_some_and(|(new, _)| new.uuid == Some(rule.uuid));
            if let Some(claim) = claims.get_mut(slot).filter(|claim| claim.is_none() || has_uuid) {
                *claim = Some((index, rule));
            }
        }
        let claimed: HashSet<usize> = claims.iter().flatten().map(|(index, _)| *index).collect();
        let mut free: HashMap<Canonical<'_>, VecDeque<Found<'a>>> = HashMap::new();
        for found in self.numbered().filter(|(index, _)| !claimed.contains(index)) {
            free.entry(canonical(&found.1.source)).or_default().push_back(found);
        }
        let positions = self.positions();
        for ((new, source), claim) in wanted.rules.iter().zip(&mut claims).filter(|(_, claim)| claim.is_none()) {
            let Some(index) = new.uuid.and_then(|uuid| positions.get(&uuid)) else { continue };
            let free = free.get_mut(&canonical(source));
            *claim = free.and_then(|free| free.remove(free.binary_search_by_key(index, |(index, _)| *index).ok()?));
        }
        for ((_, source), claim) in wanted.rules.iter().zip(&mut claims).filter(|(_, claim)| claim.is_none()) {
            *claim = free.get_mut(&canonical(source)).and_then(VecDeque::pop_front);
        }
        claims
    }

    fn positions(&self) -> HashMap<Uuid, usize> {
        self.numbered().map(|(index, rule)| (rule.uuid, index)).collect()
    }
}

/// The rules of a request without byte-identical duplicates, of which the first counts.
struct Wanted<'a> {
    rules: Vec<Given<'a>>,
    /// Their positions by type and value.
    slots: HashMap<(&'a str, &'a str), usize>,
}

impl<'a> Wanted<'a> {
    fn of(given: impl Iterator<Item = Given<'a>>) -> Self {
        let mut wanted = Self { rules: Vec::new(), slots: HashMap::new() };
        for (new, source) in given {
            let slot = wanted.rules.len();
            if *wanted.slots.entry(key(new)).or_insert(slot) == slot {
                wanted.rules.push((new, source));
            }
        }
        wanted
    }

    fn slot_of(&self, rule: &Rule) -> Option<usize> {
        self.slots.get(&(rule.source.kind(), &*rule.written_value())).copied()
    }
}

impl<'a> Plan<'a> {
    /// Adds a rule and returns its UUID.
    fn add(&mut self, new: &'a NewRule, now: OffsetDateTime) -> Uuid {
        let uuid = Uuid::new_v4();
        self.added.push(Entry { identity: Some((uuid, now)), ..request::entry(new) });
        uuid
    }

    /// Keeps a rule of the file with what the request states, and returns its UUID.
    fn keep(&mut self, (index, rule): Found<'a>, new: &'a NewRule) -> Uuid {
        let value = (rule.written_value() != new.value).then_some(new.value.as_str());
        self.update(
            index,
            Update {
                value,
                description: request::description(new).unless(rule.description.as_deref()),
                expires_at: request::expiry(new).unless(rule.expires_at),
                // A derived UUID depends on the spelling.
                uuid: value.map(|_| rule.uuid),
            },
        );
        rule.uuid
    }

    /// Gives an expired rule the expiry of the request, and returns the UUID. A rule that has not expired is left as it is.
    fn renew(&mut self, (index, rule): Found<'a>, new: &'a NewRule, now: OffsetDateTime) -> Uuid {
        if !rule.is_live(now) {
            let expires_at = request::expiry(new).value().map_or(Field::Clear, Field::Set);
            let description = request::description(new).unless(rule.description.as_deref());
            self.update(index, Update { description, expires_at, ..Update::NOTHING });
        }
        rule.uuid
    }

    fn update(&mut self, index: usize, update: Update<'a>) {
        if let Some(fate) = self.fates.get_mut(index) {
            *fate = Fate::Stay(update);
        }
    }
}

fn key(new: &NewRule) -> (&str, &str) {
    (&new.kind, &new.value)
}

fn text_of(new: &NewRule) -> (&str, Cow<'_, str>) {
    (&new.kind, Cow::from(&new.value))
}

/// What a rule trusts, whatever its spelling: `10.0.0.1` and `10.0.0.1/32` are the same.
#[derive(PartialEq, Eq, Hash)]
enum Canonical<'a> {
    Network(IpNet),
    Host(&'a str),
    Cloud(&'a CloudSource),
    Group(&'a GroupName),
}

fn canonical(source: &Source) -> Canonical<'_> {
    match source {
        Source::Network(network) => Canonical::Network(network.net()),
        Source::Host(host) => Canonical::Host(host.name.as_str()),
        Source::Cloud(source) => Canonical::Cloud(source),
        Source::Group(name) => Canonical::Group(name),
    }
}
