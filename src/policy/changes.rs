//! The changes between two snapshots, as reported by `reload.applied` and plans.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::audit::changes::Changes;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::source::addresses::{Addresses, Resolvable};
use crate::source::group::RuleOwner;
use crate::source::rule::Rule;
use crate::source::rule_set::{RuleSet, touched};

impl Snapshot {
    /// Returns the changes since `previous`. `sources` are the changes of the rules, whose comparison is expensive.
    pub fn changes_since(&self, previous: &Self, sources: &[SourceChanges<'_>]) -> Changes {
        let names =
            |snapshot: &Self| snapshot.policies.iter().map(|policy| policy.name.to_string()).collect::<Vec<_>>();
        let moved = |policy: &&Arc<ListenerPolicy>| {
            previous.named(&policy.name).is_some_and(|before| before.bind_addrs != policy.bind_addrs)
        };
        let (old, new) = (names(previous), names(self));
        let (old_prints, new_prints) = (previous.fingerprints(), self.fingerprints());
        Changes {
            generation: self.generation,
            listeners_added: without(&new, &old),
            listeners_removed: without(&old, &new),
            listeners_moved: self.policies.iter().filter(moved).map(|policy| policy.name.to_string()).collect(),
            certificates_in: without(&new_prints, &old_prints),
            certificates_out: without(&old_prints, &new_prints),
            sources_added: sources.iter().map(|changes| changes.added.len()).sum(),
            sources_removed: sources.iter().map(|changes| changes.removed.len()).sum(),
            differences: self.differences_since(previous, OffsetDateTime::now_utc()),
        }
    }

    /// Returns the added and removed rules of each listener and each group.
    pub fn source_changes_since<'a>(&'a self, previous: &'a Self) -> Vec<SourceChanges<'a>> {
        let mut owners: Vec<_> = self.rule_sets().chain(previous.rule_sets()).map(|(owner, _)| owner).collect();
        owners.sort_unstable();
        owners.dedup();
        let rules = |snapshot: &'a Self, owner| snapshot.rule_set(owner).map_or(&[][..], RuleSet::rules);
        let changes = |owner: RuleOwner<'a>| {
            let (old, new) = (rules(previous, owner), rules(self, owner));
            SourceChanges { owner, added: rules_without(new, old), removed: rules_without(old, new) }
        };
        owners.into_iter().map(changes).collect()
    }

    /// Returns the hosts and cloud sources whose addresses changed, by listener or group. One that no rule of a snapshot names
    /// has no addresses there.
    pub fn address_changes_since<'a>(&'a self, previous: &'a Self) -> Vec<AddressChange<'a>> {
        let named = |snapshot: &'a Self| {
            let of = |(owner, set): (RuleOwner<'a>, &'a RuleSet)| set.resolvables().map(move |source| (owner, source));
            snapshot.rule_sets().flat_map(of)
        };
        let known = |snapshot: &'a Self, owner: RuleOwner<'_>, source: &Resolvable| {
            snapshot.rule_set(owner).and_then(|set| set.known(source)).cloned().unwrap_or_default()
        };
        let all: BTreeSet<_> = named(previous).chain(named(self)).collect();
        let change = |(owner, source): (RuleOwner<'a>, Resolvable)| {
            let (old, new) = (known(previous, owner, &source), known(self, owner, &source));
            let without = |all: &Addresses, others: &Addresses| all.without(others).collect::<Vec<_>>();
            let (added, removed) = (without(&new, &old), without(&old, &new));
            AddressChange { owner, source, added, removed, count: new.all().len() }
        };
        all.into_iter().map(change).filter(|change| !change.added.is_empty() || !change.removed.is_empty()).collect()
    }

    /// The fingerprints of all certificates.
    fn fingerprints(&self) -> Vec<String> {
        let of = |policy: &Arc<ListenerPolicy>| {
            policy.certificates().map(|(_, certificate)| certificate.sha256.to_string()).collect::<Vec<_>>()
        };
        let of_admin = self.admin_certificates().map(|(_, certificate)| certificate.sha256.to_string());
        self.policies.iter().flat_map(of).chain(of_admin).collect()
    }
}

/// The changed addresses of a host or a cloud source in the rules of a listener or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressChange<'a> {
    pub owner: RuleOwner<'a>,
    pub source: Resolvable,
    pub added: Vec<IpAddr>,
    /// Addresses that the source no longer has. Another rule may still trust them.
    pub removed: Vec<IpAddr>,
    /// The number of addresses after the change.
    pub count: usize,
}

/// The added and removed rules of a listener or a group.
#[derive(Clone, Debug)]
pub struct SourceChanges<'a> {
    owner: RuleOwner<'a>,
    added: Vec<&'a Rule>,
    removed: Vec<&'a Rule>,
}

impl<'a> SourceChanges<'a> {
    /// The added rules, each with its owner.
    pub fn added(&self) -> impl Iterator<Item = (RuleOwner<'a>, &'a Rule)> {
        self.added.iter().map(|rule| (self.owner, *rule))
    }

    /// The removed rules, each with its owner.
    pub fn removed(&self) -> impl Iterator<Item = (RuleOwner<'a>, &'a Rule)> {
        self.removed.iter().map(|rule| (self.owner, *rule))
    }
}

/// The elements of `all` that are not in `others`, sorted.
fn without(all: &[String], others: &[String]) -> Vec<String> {
    let others: HashSet<&String> = others.iter().collect();
    let mut rest: Vec<String> = all.iter().filter(|name| !others.contains(name)).cloned().collect();
    rest.sort_unstable();
    rest.dedup();
    rest
}

fn rules_without<'a>(all: &'a [Arc<Rule>], others: &[Arc<Rule>]) -> Vec<&'a Rule> {
    let candidates = touched(all, others);
    if candidates.is_empty() {
        return Vec::new();
    }
    let others: HashSet<_> = others.iter().map(|rule| (&rule.source, rule.expires_at)).collect();
    candidates.iter().map(|rule| &**rule).filter(|rule| !others.contains(&(&rule.source, rule.expires_at))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::Duration;

    use super::*;

    fn changes(after: &Snapshot, before: &Snapshot) -> Changes {
        after.changes_since(before, &after.source_changes_since(before))
    }
    use crate::audit::changes::Difference;
    use crate::policy::fixtures::{ConfigDir, listener};
    use crate::source::addresses::AddressBook;
    use crate::source::rule::{Origin, Source};

    #[test]
    fn replaced_certificates_of_the_admin_addresses_are_listed() {
        let dir = ConfigDir::new();
        let year = OffsetDateTime::now_utc() + Duration::days(365);
        let config = "[admin]\nlisten = \"127.0.0.1:9642\"\ntokens_file = \"tokens\"\n\
                      [admin.tls]\ncertificates = [{ cert = \"admin.crt\", key = \"admin.key\" }]\nclient_ca = \"ca.crt\"\n";
        let install = || ["kept", "admin", "ca"].map(|name| dir.install(name, year));
        let config = format!("{config}{}", listener("kept", 1001, r#""10.0.0.0/8""#));
        let [kept, old, old_ca] = install();
        let before = dir.snapshot(&config, None);
        let [new_kept, new, new_ca] = install();
        let after = dir.snapshot(&config, Some(&before));
        let changes = changes(&after, &before);
        let set = |prints: Vec<String>| BTreeSet::from_iter(prints);
        assert_eq!(set(changes.certificates_out), set(vec![kept, old, old_ca]));
        assert_eq!(set(changes.certificates_in), set(vec![new_kept, new, new_ca.clone()]));
        let roles: Vec<_> = after.admin_certificates().map(|(role, _)| role).collect();
        assert_eq!(roles, ["admin", "admin_client_ca"]);
        assert_ne!(before.config_hash(), after.config_hash(), "another CA of admin clients is trusted");
    }

    #[test]
    fn added_removed_and_moved_listeners_are_distinguished() {
        let dir = ConfigDir::new();
        let year = OffsetDateTime::now_utc() + Duration::days(365);
        let [_kept, old, gone, fresh] = ["kept", "turned", "gone", "fresh"].map(|name| dir.install(name, year));
        let before = dir.snapshot(
            [
                listener("kept", 1001, r#""10.0.0.0/8""#),
                listener("turned", 1002, r#""10.0.0.0/8", "192.0.2.1""#),
                listener("gone", 1003, r#""192.0.2.2""#),
            ]
            .concat(),
            None,
        );
        let new = dir.install("turned", year);
        let after = dir.snapshot(
            [
                listener("kept", 1001, r#""10.0.0.0/8""#),
                listener("turned", 1004, r#""192.0.2.1", "192.0.2.3", "192.0.2.4""#),
                listener("fresh", 1005, r#""192.0.2.2""#),
            ]
            .concat(),
            Some(&before),
        );
        let sorted = |mut names: Vec<String>| {
            names.sort_unstable();
            names
        };
        let expected = Changes {
            generation: 2,
            listeners_added: vec!["fresh".to_owned()],
            listeners_removed: vec!["gone".to_owned()],
            listeners_moved: vec!["turned".to_owned()],
            sources_added: 3,
            sources_removed: 2,
            certificates_in: sorted(vec![new, fresh]),
            certificates_out: sorted(vec![old, gone]),
            differences: vec![Difference::new(
                Some("turned"),
                "listen",
                Some("127.0.0.1:1002".to_owned()),
                Some("127.0.0.1:1004".to_owned()),
            )],
        };
        assert_eq!(changes(&after, &before), expected);
        assert_eq!((before.generation, after.generation), (1, 2));
        assert_eq!(changes(&after, &after), Changes { generation: 2, ..Changes::default() });
    }

    #[test]
    fn changed_expiry_makes_another_rule_and_changed_description_does_not() {
        let dir = ConfigDir::new();
        dir.install("db", OffsetDateTime::now_utc() + Duration::days(365));
        let rule = |rest: &str| format!(r#"{{ type = "ip_addr", value = "192.0.2.1"{rest} }}"#);
        let snapshot = |rest: &str| dir.snapshot(listener("db", 1001, &rule(rest)), None);
        let plain = snapshot("");
        let unchanged = Changes { generation: 1, ..Changes::default() };
        let described = changes(&snapshot(r#", description = "office""#), &plain);
        assert_eq!(Changes { differences: Vec::new(), ..described }, unchanged);
        let ending = snapshot(", expires_at = 2999-01-31T00:00:00Z");
        let changes = ending.source_changes_since(&plain);
        let [SourceChanges { owner: RuleOwner::Listener("db"), added, removed }] = changes.as_slice() else {
            unreachable!("one listener: {changes:?}")
        };
        assert!(matches!(added.as_slice(), [rule] if rule.expires_at.is_some()), "{added:?}");
        assert!(matches!(removed.as_slice(), [rule] if rule.expires_at.is_none()), "{removed:?}");
    }

    #[test]
    fn changed_addresses_make_a_new_generation_that_keeps_everything_else() {
        let dir = ConfigDir::new();
        let year = OffsetDateTime::now_utc() + Duration::days(365);
        for name in ["named", "plain"] {
            dir.install(name, year);
        }
        let (named, plain) =
            (listener("named", 1001, r#""dns:app.internal""#), listener("plain", 1002, r#""10.0.0.1""#));
        let before = dir.snapshot([named, plain].concat(), None);
        let source = Resolvable::Host("app.internal".parse().unwrap());
        let book = |last: &[u8]| {
            let ips = last.iter().map(|last| IpAddr::from([192, 0, 2, *last]));
            AddressBook::from([(source.clone(), Addresses::of(ips).unwrap().0)])
        };
        assert!(before.with_addresses(&AddressBook::new()).is_none());
        let one = before.with_addresses(&book(&[1, 2])).unwrap();
        assert!(one.with_addresses(&book(&[1, 2])).is_none());
        let two = one.with_addresses(&book(&[2, 3])).unwrap();
        assert_eq!((one.generation, two.generation), (2, 3));
        let ip = |last| IpAddr::from([192, 0, 2, last]);
        let (added, removed) = (vec![ip(3)], vec![ip(1)]);
        let change =
            AddressChange { owner: RuleOwner::Listener("named"), source: source.clone(), added, removed, count: 2 };
        assert_eq!(two.address_changes_since(&one), [change]);
        assert_eq!(before.address_changes_since(&one)[0].removed, [ip(1), ip(2)]);
        assert_eq!(changes(&two, &before), Changes { generation: 3, ..Changes::default() });
        let policy = |snapshot: &Snapshot, name: &str| Arc::clone(snapshot.named(name).unwrap());
        assert!(Arc::ptr_eq(&policy(&before, "plain"), &policy(&two, "plain")));
        let (old, new) = (policy(&before, "named"), policy(&two, "named"));
        assert!(
            old.tls.iter().zip(&new.tls).all(|(old, new)| Arc::ptr_eq(old, new)) && Arc::ptr_eq(&old.usage, &new.usage)
        );
        assert_eq!(two.address_changes_since(&two), []);
    }

    proptest! {
        #[test]
        fn shared_rules_are_compared_as_any_others(
            pool in prop::collection::vec(0_u8..6, 1..12),
            old in prop::collection::vec(0_usize..12, 0..12),
            new in prop::collection::vec(0_usize..12, 0..12),
        ) {
            let rule = |last: &u8| Arc::new(Rule::of(Source::Network(format!("10.0.0.{last}").parse().unwrap()), Origin::Configuration));
            let pool: Vec<_> = pool.iter().map(rule).collect();
            let pick = |indices: &[usize]| indices.iter().map(|index| Arc::clone(&pool[index % pool.len()])).collect::<Vec<_>>();
            let (old, new) = (pick(&old), pick(&new));
            let expected: Vec<&Rule> =
                new.iter().map(|rule| &**rule).filter(|rule| !old.iter().any(|other| other.source == rule.source)).collect();
            prop_assert_eq!(rules_without(&new, &old), expected);
        }
    }
}
