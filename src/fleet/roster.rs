//! The members of a fleet: what each has in force, and who has not confirmed a change.
//!
//! A member that is not heard of is unknown. Nothing is concluded from its silence: it may still serve clients.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::timestamp;

/// What a member writes about itself, the value of a key `members/MEMBER`. It stays when the member vanishes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemberState {
    /// The process: another one under the same name is another member.
    pub(crate) instance: String,
    /// When it wrote this, in RFC 3339.
    pub(crate) at: String,
    /// How often it has seen an operator accept a store.
    pub(crate) epoch: u64,
    /// How far the store had come when it was last heard.
    pub(crate) revision: u64,
    /// The sequence of the rules in force, by listener.
    pub(crate) applied: BTreeMap<String, u64>,
    /// The sequence of the ticket keys in use.
    pub(crate) tickets: u64,
    /// The hash of rules and trust; equal at equal replicas.
    pub(crate) policy_hash: String,
    /// Open sessions.
    pub(crate) sessions: u64,
}

/// A member as the fleet shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) liveness: Liveness,
    /// What it last wrote; `None` if that cannot be read.
    pub(crate) state: Option<MemberState>,
}

/// Whether a member is heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// Its lease is held.
    Live,
    /// Its lease has expired.
    Unknown,
}

impl Liveness {
    /// The word for it in the API.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Unknown => "unknown",
        }
    }
}

/// A fleet has tens of members. Whoever can write to the store could invent many more.
const MAX_MEMBERS: usize = 1_000;

/// All members, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roster(Vec<Member>);

/// Something that members confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Confirmation<'a> {
    /// They have the rules of a listener in force, at this sequence or a later one.
    Rules { listener: &'a str, epoch: u64, sequence: u64 },
    /// They use the ticket keys with this sequence or a later one.
    Tickets { sequence: u64 },
}

impl Roster {
    /// Reads the keys `members/…`, by the name of the member, and the holders of the leases `alive/…`.
    pub(crate) fn of<'a>(
        states: impl IntoIterator<Item = (&'a str, &'a str)>,
        alive: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut members = BTreeMap::<&str, Member>::new();
        for (name, value) in states.into_iter().take(MAX_MEMBERS) {
            let state = serde_json::from_str(value).ok();
            members.insert(name, Member { name: name.to_owned(), liveness: Liveness::Unknown, state });
        }
        for (name, instance) in alive.into_iter().take(MAX_MEMBERS) {
            let unwritten = || Member { name: name.to_owned(), liveness: Liveness::Live, state: None };
            let member = members.entry(name).or_insert_with(unwritten);
            member.liveness = Liveness::Live;
            // A new process has taken the name over and has not written yet: what the old one wrote is not true of it.
            if member.state.as_ref().is_some_and(|state| state.instance != instance) {
                member.state = None;
            }
        }
        Self(members.into_values().collect())
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.0
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|member| member.name == name)
    }

    /// The members that have not confirmed, with what is known of them. Empty if all have.
    pub(crate) fn missing(&self, confirmation: &Confirmation<'_>) -> Vec<(&str, Liveness)> {
        let has_confirmed = |member: &Member| {
            member.liveness == Liveness::Live
                && member.state.as_ref().is_some_and(|state| confirmation.is_confirmed_by(state))
        };
        self.0
            .iter()
            .filter(|member| !has_confirmed(member))
            .map(|member| (member.name.as_str(), member.liveness))
            .collect()
    }

    /// The number of members in each state: live, unknown.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let live = self.0.iter().filter(|member| member.liveness == Liveness::Live).count();
        (live, self.0.len().saturating_sub(live))
    }
}

impl Member {
    /// When it last wrote.
    pub(crate) fn last_seen(&self) -> Option<OffsetDateTime> {
        timestamp::parse(&self.state.as_ref()?.at)
    }
}

impl Confirmation<'_> {
    fn is_confirmed_by(&self, state: &MemberState) -> bool {
        match self {
            Self::Rules { listener, epoch, sequence } => {
                // After an acceptance sequences may start again at a lower number.
                let applied = state.applied.get(*listener).copied().unwrap_or_default();
                (state.epoch, applied) >= (*epoch, *sequence)
            }
            Self::Tickets { sequence } => state.tickets >= *sequence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(instance: &str, sequence: u64) -> String {
        let applied = BTreeMap::from([("cache".to_owned(), sequence)]);
        let state = MemberState {
            instance: instance.to_owned(),
            at: "2026-11-30T00:00:00Z".to_owned(),
            applied,
            sessions: 7,
            ..MemberState::default()
        };
        serde_json::json!(state).to_string()
    }

    #[test]
    fn silent_member_is_unknown() {
        let (a, b) = (state("1", 5), state("2", 5));
        let all = Roster::of([("a", &*a), ("b", &*b)], [("a", "1"), ("b", "2")]);
        assert_eq!(all.counts(), (2, 0));
        let one = Roster::of([("a", &*a), ("b", &*b)], [("a", "1")]);
        assert_eq!(one.counts(), (1, 1));
        assert_eq!(
            one.missing(&Confirmation::Rules { listener: "cache", epoch: 0, sequence: 5 }),
            [("b", Liveness::Unknown)]
        );
        assert!(one.members()[1].last_seen().is_some(), "it is remembered");
    }

    #[test]
    fn change_is_confirmed_when_every_member_has_it_in_force() {
        let (a, b) = (state("1", 5), state("2", 4));
        let roster = Roster::of([("a", &*a), ("b", &*b)], [("a", "1"), ("b", "2")]);
        let rules = |sequence| Confirmation::Rules { listener: "cache", epoch: 0, sequence };
        assert_eq!(roster.missing(&rules(4)), []);
        assert_eq!(roster.missing(&rules(5)), [("b", Liveness::Live)]);
        assert_eq!(roster.missing(&Confirmation::Rules { listener: "other", epoch: 0, sequence: 1 }).len(), 2);
        assert_eq!(roster.missing(&Confirmation::Rules { listener: "cache", epoch: 1, sequence: 1 }).len(), 2);
    }

    #[test]
    fn state_of_an_earlier_process_or_an_unreadable_one_confirms_nothing() {
        let (a, rules) = (state("1", 5), Confirmation::Rules { listener: "cache", epoch: 0, sequence: 1 });
        for roster in [
            Roster::of([("a", &*a)], [("a", "2")]),
            Roster::of([("a", "{}x")], [("a", "1")]),
            Roster::of([], [("a", "1")]),
        ] {
            assert_eq!(roster.missing(&rules), [("a", Liveness::Live)]);
        }
    }
}
