//! The set of trusted sources and the decision about a client address.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use time::OffsetDateTime;

use crate::addr::ClientAddr;
use crate::source::addresses::{AddressBook, Addresses, Resolvable};
use crate::source::group::{GroupName, SourceGroup};
use crate::source::rule::Rule;
use crate::source::rule_set::{Covering, MAX_WITHIN, RuleSet};
use crate::timestamp;

/// How a listener decides about client addresses.
#[derive(Clone, Debug)]
pub struct SourcePolicy {
    /// Shared, because a set can be large.
    pub trusted: Arc<TrustedSources>,
    pub enforcement: Enforcement,
}

/// What happens to a client from an untrusted source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// Its connection is closed before a byte is read.
    Enforce,
    /// It is admitted, and the audit event records that it would have been denied.
    Observe,
}

/// As written in the configuration.
impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        })
    }
}

impl SourcePolicy {
    /// Admits or rejects a client address. Clients of Unix sockets are admitted, because owner and mode of the file have already
    /// been checked.
    ///
    /// # Errors
    /// [`Untrusted`] if no rule trusts the address and enforcement is on.
    pub fn admit(&self, client: ClientAddr, now: OffsetDateTime) -> Result<Admitted, Untrusted> {
        let Some(ip) = client.ip() else { return Ok(Admitted { client, source_match: SourceMatch::SocketFile }) };
        match (self.trusted.lookup(ip, now), self.enforcement) {
            (Ok(found), _) => {
                let object = self.trusted.object_of(found.rule, ip);
                let matching = MatchingRule { object, ..found.to_matching() };
                Ok(Admitted { client, source_match: SourceMatch::Rule(matching) })
            }
            (Err(_), Enforcement::Observe) => Ok(Admitted { client, source_match: SourceMatch::Observed }),
            (Err(untrusted), Enforcement::Enforce) => Err(untrusted),
        }
    }
}

/// What admits a client address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceMatch {
    /// This rule trusts it.
    Rule(MatchingRule),
    /// No rule trusts it; `enforcement = "observe"` admits it.
    Observed,
    /// The client may open the Unix socket.
    SocketFile,
}

impl SourceMatch {
    pub fn rule(&self) -> Option<&MatchingRule> {
        match self {
            Self::Rule(rule) => Some(rule),
            Self::Observed | Self::SocketFile => None,
        }
    }
}

/// The rule that matches an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchingRule {
    pub rule: Arc<Rule>,
    /// The rule of the listener that names the group of `rule`; `None` if `rule` is one of the listener itself.
    pub through: Option<Arc<Rule>>,
    /// The object of a cloud source that had the address when it was admitted, such as `droplet web-1`.
    pub object: Option<Arc<str>>,
}

impl MatchingRule {
    /// The group of the rule.
    pub fn group(&self) -> Option<&GroupName> {
        self.through.as_ref().and_then(|rule| rule.source.group())
    }

    /// When the rule no longer admits through the group, or at all.
    pub fn expires_at(&self) -> Option<OffsetDateTime> {
        let through = self.through.as_ref().and_then(|rule| rule.expires_at);
        self.rule.expires_at.into_iter().chain(through).min()
    }
}

/// A rule of the listener itself.
impl From<Arc<Rule>> for MatchingRule {
    fn from(rule: Arc<Rule>) -> Self {
        Self { rule, through: None, object: None }
    }
}

/// `ip_addr:10.0.0.0/8`, or `ip_addr:10.0.0.0/8 of group web`.
impl fmt::Display for MatchingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rule.fmt(f)?;
        self.group().map_or(Ok(()), |group| write!(f, " of group {group}"))
    }
}

/// Proof that the address of a client is admitted.
#[must_use]
#[derive(Clone, Debug)]
pub struct Admitted {
    client: ClientAddr,
    source_match: SourceMatch,
}

impl Admitted {
    pub fn client(&self) -> ClientAddr {
        self.client
    }

    pub fn source_match(&self) -> &SourceMatch {
        &self.source_match
    }
}

/// No rule trusts the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untrusted {
    /// The expired rule with the longest prefix that covers the address.
    pub expired: Option<MatchingRule>,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expired = self.expired.as_ref().and_then(|expired| Some((expired, expired.rule.expires_at?)));
        match expired {
            Some((expired, end)) => write!(f, "the rule {expired} expired at {}", timestamp::seconds(end)),
            None => f.write_str("no rule trusts this address"),
        }
    }
}

/// The rules that a listener trusts: its own, and those of the groups that they name.
///
/// A group is stored once, whatever the number of its listeners.
#[derive(Debug, Default)]
pub struct TrustedSources {
    own: Arc<RuleSet>,
    /// Each group once, in the order of the rules that name them.
    groups: Vec<UsedGroup>,
}

/// A group that rules of a listener name.
#[derive(Clone, Debug)]
struct UsedGroup {
    group: Arc<SourceGroup>,
    /// The rules that name the group. At least one.
    named_by: Vec<Arc<Rule>>,
}

/// The rule that matches an address, as [`MatchingRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundRule<'a> {
    pub rule: &'a Arc<Rule>,
    pub through: Option<&'a Arc<Rule>>,
}

impl FoundRule<'_> {
    fn to_matching(self) -> MatchingRule {
        MatchingRule { rule: Arc::clone(self.rule), through: self.through.cloned(), object: None }
    }
}

impl TrustedSources {
    /// Builds the set without groups. Hosts and cloud sources have no addresses yet. If several rules name the same network or
    /// address, the first that has not expired matches.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self::shared(rules.into_iter().map(Arc::new).collect())
    }

    /// The same as [`Self::new`] with rules that other sets may share.
    pub(crate) fn shared(rules: Arc<[Arc<Rule>]>) -> Self {
        Self { own: Arc::new(RuleSet::new(rules)), groups: Vec::new() }
    }

    /// The rules of a group alone.
    pub(crate) fn of_group(group: &SourceGroup) -> Self {
        Self { own: Arc::clone(&group.sources), groups: Vec::new() }
    }

    /// Returns the same rules with the addresses in `book` and those of the `groups` that they name; `None` if no address and
    /// no group changed.
    #[must_use]
    pub fn updated(&self, book: &AddressBook, groups: &[Arc<SourceGroup>]) -> Option<Self> {
        let own = self.own.with_addresses(book);
        let used = used_groups(self.own.rules(), groups);
        let is_same = |(one, other): (&UsedGroup, &UsedGroup)| Arc::ptr_eq(&one.group, &other.group);
        let has_same_groups = used.len() == self.groups.len() && used.iter().zip(&self.groups).all(is_same);
        let is_changed = own.is_some() || !has_same_groups;
        is_changed.then(|| Self { own: own.map_or_else(|| Arc::clone(&self.own), Arc::new), groups: used })
    }

    /// The rules of the listener itself.
    pub fn own(&self) -> &RuleSet {
        &self.own
    }

    /// The rules of the listener itself in configuration order, including expired ones and those that name groups.
    pub fn rules(&self) -> &[Arc<Rule>] {
        self.own.rules()
    }

    /// The groups that the rules name.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<SourceGroup>> {
        self.groups.iter().map(|used| &used.group)
    }

    /// The group with this name, if the rules name it.
    pub fn group(&self, name: &GroupName) -> Option<&Arc<SourceGroup>> {
        self.groups().find(|group| group.name == *name)
    }

    /// The rules of the listener itself and those of its groups.
    pub fn all_rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.sets().flat_map(RuleSet::rules)
    }

    /// The rules of all of them that admit clients at `now`.
    pub fn live_rules(&self, now: OffsetDateTime) -> impl Iterator<Item = &Arc<Rule>> {
        self.live_sets(now).flat_map(RuleSet::rules).filter(move |rule| rule.is_live(now))
    }

    /// The number of rules that can match an address. A rule that names a group counts as the rules of the group.
    pub fn count(&self) -> usize {
        self.sets().map(|set| set.rules().len()).sum::<usize>().saturating_sub(self.naming_groups())
    }

    fn naming_groups(&self) -> usize {
        self.groups.iter().map(|used| used.named_by.len()).sum()
    }

    fn sets(&self) -> impl Iterator<Item = &RuleSet> {
        std::iter::once(&*self.own).chain(self.groups.iter().map(|used| &*used.group.sources))
    }

    /// The hosts and cloud sources in all rules, once for each rule that names them.
    pub fn resolvables(&self) -> impl Iterator<Item = Resolvable> {
        self.sets().flat_map(RuleSet::resolvables)
    }

    /// The known addresses of a host or a cloud source; `None` if it has never been resolved.
    pub fn known(&self, source: &Resolvable) -> Option<&Addresses> {
        self.sets().find_map(|set| set.known(source))
    }

    /// The known addresses of a host or a cloud source, sorted.
    pub fn addresses_of(&self, source: &Resolvable) -> &[IpAddr] {
        self.known(source).map_or(&[], Addresses::all)
    }

    /// The object of a cloud source that has an address.
    fn object_of(&self, rule: &Rule, ip: IpAddr) -> Option<Arc<str>> {
        let source = rule.source.cloud()?.clone();
        self.known(&Resolvable::Cloud(source))?.object_of(ip).cloned()
    }

    /// Returns the rule with the longest prefix that covers `ip` and has not expired at `now`. Of equal prefixes, a rule of the
    /// listener itself matches, then one of the group that is named first.
    ///
    /// # Errors
    /// [`Untrusted`] if no rule covers it.
    pub fn lookup(&self, ip: IpAddr, now: OffsetDateTime) -> Result<FoundRule<'_>, Untrusted> {
        let Covering { live, expired } = self.own.covering(ip, now);
        let of_listener = |(length, rule)| (length, FoundRule { rule, through: None });
        let (mut live, mut expired) = (live.map(of_listener), expired.map(of_listener));
        for used in &self.groups {
            let [its_live, its_expired] = used.covering(ip, now);
            live = narrower(live, its_live);
            expired = narrower(expired, its_expired);
        }
        match live {
            Some((_, found)) => Ok(found),
            None => Err(Untrusted { expired: expired.map(|(_, found)| found.to_matching()) }),
        }
    }

    /// The networks and addresses that are trusted at `now`, in no particular order.
    pub fn live_networks(&self, now: OffsetDateTime) -> impl Iterator<Item = IpNet> {
        self.live_sets(now).flat_map(move |set| set.live_networks(now))
    }

    /// Whether a rule that has not expired at `now` trusts every address of a network.
    pub fn covers(&self, network: IpNet, now: OffsetDateTime) -> bool {
        self.live_sets(now).any(|set| set.covers(network, now))
    }

    /// The networks and addresses of rules that lie within `network`, whether the rules have expired or not.
    pub fn within(&self, network: IpNet) -> Vec<IpNet> {
        self.sets().flat_map(|set| set.within(network)).take(MAX_WITHIN).collect()
    }

    /// The earliest expiry after `now`.
    pub fn next_expiry(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.sets().filter_map(|set| set.next_expiry(now)).min()
    }

    /// The own rules, and those of each group that a rule names which has not expired at `now`.
    fn live_sets(&self, now: OffsetDateTime) -> impl Iterator<Item = &RuleSet> {
        let groups = self.groups.iter().filter(move |used| used.live_rule(now).is_some());
        std::iter::once(&*self.own).chain(groups.map(|used| &*used.group.sources))
    }
}

impl UsedGroup {
    /// A rule that names the group and has not expired at `now`.
    fn live_rule(&self, now: OffsetDateTime) -> Option<&Arc<Rule>> {
        self.named_by.iter().find(|rule| rule.is_live(now))
    }

    /// The rules that cover `ip`: one that has not expired at `now`, and one that has. If the group no longer admits anyone,
    /// that is the rule that names it.
    fn covering(&self, ip: IpAddr, now: OffsetDateTime) -> [Option<(u8, FoundRule<'_>)>; 2] {
        let Covering { live, expired } = self.group.sources.covering(ip, now);
        let through = self.live_rule(now);
        if through.is_some() {
            let of_group = |(length, rule)| (length, FoundRule { rule, through });
            return [live.map(of_group), expired.map(of_group)];
        }
        let naming = live.or(expired).zip(self.named_by.first());
        [None, naming.map(|((length, _), rule)| (length, FoundRule { rule, through: None }))]
    }
}

/// The one with the longer prefix; the first of equal ones.
fn narrower<'a>(one: Option<(u8, FoundRule<'a>)>, other: Option<(u8, FoundRule<'a>)>) -> Option<(u8, FoundRule<'a>)> {
    match (one, other) {
        (Some(one), Some(other)) if other.0 > one.0 => Some(other),
        (None, other) => other,
        (one, _) => one,
    }
}

/// The groups that `rules` name. The configuration names no unknown group.
fn used_groups(rules: &[Arc<Rule>], groups: &[Arc<SourceGroup>]) -> Vec<UsedGroup> {
    let mut used: Vec<UsedGroup> = Vec::new();
    if groups.is_empty() {
        return used;
    }
    for rule in rules {
        let Some(name) = rule.source.group() else { continue };
        if let Some(known) = used.iter_mut().find(|used| used.group.name == *name) {
            known.named_by.push(Arc::clone(rule));
        } else if let Some(group) = groups.iter().find(|group| group.name == *name) {
            used.push(UsedGroup { group: Arc::clone(group), named_by: vec![Arc::clone(rule)] });
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::Duration;

    use std::collections::BTreeSet;

    use ipnet::{Ipv4Net, Ipv6Net};

    use super::*;
    use crate::source::cloud::CloudSource;
    use crate::source::host::Host;
    use crate::source::rule::{Origin, Source};

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn rule(network: &str, expires_at: Option<OffsetDateTime>) -> Rule {
        let source = Source::Network(network.parse().unwrap());
        Rule { expires_at, ..Rule::of(source, Origin::Configuration) }
    }

    fn host(name: &str, expires_at: Option<OffsetDateTime>) -> Rule {
        let host = Host { name: name.parse().unwrap(), refresh: std::time::Duration::from_secs(30) };
        Rule { expires_at, ..Rule::of(Source::Host(host), Origin::Configuration) }
    }

    fn tag(name: &str) -> CloudSource {
        CloudSource::parse("tag", name).unwrap().unwrap()
    }

    fn book(entries: &[(&str, &[IpAddr])]) -> AddressBook {
        let entry = |(name, ips): &(&str, &[IpAddr])| {
            let (known, _) = Addresses::of(ips.iter().copied()).ok()?;
            Some([(Resolvable::Host(name.parse().unwrap()), known.clone()), (Resolvable::Cloud(tag(name)), known)])
        };
        entries.iter().filter_map(entry).flatten().collect()
    }

    fn naming(group: &str, expires_at: Option<OffsetDateTime>) -> Rule {
        Rule { expires_at, ..Rule::of(Source::Group(group.parse().unwrap()), Origin::Configuration) }
    }

    fn group(name: &str, rules: Vec<Rule>) -> Arc<SourceGroup> {
        let sources = Arc::new(RuleSet::new(rules.into_iter().map(Arc::new).collect()));
        Arc::new(SourceGroup { name: name.parse().unwrap(), sources })
    }

    fn with_groups(rules: Vec<Rule>, groups: &[Arc<SourceGroup>]) -> TrustedSources {
        TrustedSources::new(rules).updated(&AddressBook::new(), groups).unwrap()
    }

    fn found(set: &TrustedSources, ip: &str) -> Result<String, String> {
        let found = set.lookup(ip.parse().unwrap(), NOW).map(|found| found.to_matching().to_string());
        found.map_err(|untrusted| untrusted.to_string())
    }

    fn sources(networks: &[&str]) -> TrustedSources {
        TrustedSources::new(networks.iter().map(|network| rule(network, None)))
    }

    fn matched(set: &TrustedSources, ip: &str) -> Option<String> {
        let client = ClientAddr::from_ip(ip.parse().unwrap());
        set.lookup(client.ip().unwrap(), NOW).ok().map(|found| found.rule.to_string())
    }

    #[test]
    fn empty_set_trusts_no_address() {
        assert_eq!(matched(&sources(&[]), "127.0.0.1"), None);
        assert_eq!(matched(&sources(&[]), "::1"), None);
    }

    #[test]
    fn rule_with_the_longest_prefix_matches() {
        let set = sources(&["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3", "10.1.0.0/16"]);
        assert_eq!(matched(&set, "10.1.2.3").as_deref(), Some("ip_addr:10.1.2.3"));
        assert_eq!(matched(&set, "10.1.2.4").as_deref(), Some("ip_addr:10.1.0.0/16"));
        assert_eq!(matched(&set, "10.2.0.1").as_deref(), Some("ip_addr:10.0.0.0/8"));
        assert_eq!(matched(&set, "11.0.0.1").as_deref(), Some("ip_addr:0.0.0.0/0"));
    }

    #[test]
    fn rule_matches_its_address_family_and_mapped_addresses_only() {
        assert_eq!(matched(&sources(&["::/0"]), "10.1.2.3"), None);
        assert_eq!(matched(&sources(&["::/0"]), "::ffff:10.1.2.3"), None);
        assert_eq!(matched(&sources(&["0.0.0.0/0"]), "::1"), None);
        assert_eq!(matched(&sources(&["10.0.0.0/8"]), "::ffff:10.1.2.3").as_deref(), Some("ip_addr:10.0.0.0/8"));
        assert_eq!(matched(&sources(&["::ffff:10.1.2.3"]), "10.1.2.3").as_deref(), Some("ip_addr:10.1.2.3"));
    }

    #[test]
    fn expired_rule_yields_to_a_wider_or_later_one() {
        let past = NOW - Duration::SECOND;
        let set = TrustedSources::new([
            rule("10.1.0.0/16", Some(past)),
            rule("10.0.0.0/8", None),
            rule("192.0.2.1", Some(past)),
            rule("192.0.2.1", Some(NOW + Duration::SECOND)),
            rule("198.51.100.1", Some(NOW)),
        ]);
        assert_eq!(matched(&set, "10.1.2.3").as_deref(), Some("ip_addr:10.0.0.0/8"));
        assert_eq!(matched(&set, "192.0.2.1").as_deref(), Some("ip_addr:192.0.2.1"));
        let untrusted = set.lookup("198.51.100.1".parse().unwrap(), NOW).unwrap_err();
        assert!(untrusted.to_string().contains("ip_addr:198.51.100.1 expired"), "{untrusted}");
    }

    #[test]
    fn observe_admits_an_untrusted_source_without_a_rule() {
        let client = ClientAddr::from_ip("10.1.2.3".parse().unwrap());
        let policy = |enforcement| SourcePolicy { trusted: Arc::new(sources(&["192.0.2.0/24"])), enforcement };
        assert!(policy(Enforcement::Enforce).admit(client, NOW).is_err());
        assert_eq!(*policy(Enforcement::Observe).admit(client, NOW).unwrap().source_match(), SourceMatch::Observed);
    }

    #[test]
    fn host_rule_trusts_its_known_addresses_only() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let set = TrustedSources::new([rule("10.0.0.0/8", None), host("app-internal", None), host("gone", None)]);
        assert_eq!(matched(&set, "192.0.2.1"), None, "the host has no addresses yet");
        let known =
            book(&[("app-internal", &[ip("192.0.2.1"), ip("10.1.2.3"), ip("2001:db8::1")]), ("else", &[ip("::1")])]);
        let set = set.updated(&known, &[]).unwrap();
        for address in ["192.0.2.1", "::ffff:192.0.2.1", "10.1.2.3", "2001:db8::1"] {
            assert_eq!(matched(&set, address).as_deref(), Some("dns:app-internal"), "{address}");
        }
        assert_eq!(matched(&set, "10.1.2.4").as_deref(), Some("ip_addr:10.0.0.0/8"));
        for address in ["192.0.2.2", "2001:db8::2", "::1"] {
            assert_eq!(matched(&set, address), None, "{address}");
        }
        assert!(set.updated(&known, &[]).is_none(), "no address changed");
        let fewer = set.updated(&book(&[("app-internal", &[ip("192.0.2.9")])]), &[]).unwrap();
        assert_eq!(matched(&fewer, "192.0.2.1"), None);
        assert_eq!(matched(&fewer, "10.1.2.3").as_deref(), Some("ip_addr:10.0.0.0/8"));
        assert_eq!(fewer.rules().len(), 3);
    }

    #[test]
    fn expired_host_rule_is_named_in_the_rejection() {
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let set = TrustedSources::new([host("app-internal", Some(NOW))]);
        let set = set.updated(&book(&[("app-internal", &[ip])]), &[]).unwrap();
        let untrusted = set.lookup(ip, NOW).unwrap_err();
        assert!(untrusted.to_string().contains("dns:app-internal expired"), "{untrusted}");
        assert!(set.lookup(ip, NOW - Duration::SECOND).is_ok());
    }

    #[test]
    fn rule_of_a_group_matches_by_its_prefix_and_yields_to_an_equal_one_of_the_listener() {
        let web = group("web", vec![rule("10.0.0.0/8", None), rule("10.1.0.0/16", None), rule("192.0.2.1", None)]);
        let own = vec![naming("web", None), rule("10.0.0.0/8", None), rule("192.0.2.0/24", None)];
        let set = with_groups(own, &[web, group("other", vec![rule("0.0.0.0/0", None)])]);
        assert_eq!(found(&set, "10.2.0.1").as_deref(), Ok("ip_addr:10.0.0.0/8"));
        assert_eq!(found(&set, "10.1.0.1").as_deref(), Ok("ip_addr:10.1.0.0/16 of group web"));
        assert_eq!(found(&set, "192.0.2.1").as_deref(), Ok("ip_addr:192.0.2.1 of group web"));
        assert_eq!(found(&set, "192.0.2.2").as_deref(), Ok("ip_addr:192.0.2.0/24"));
        assert!(found(&set, "11.0.0.1").is_err(), "a group that no rule names admits no one");
        assert_eq!((set.rules().len(), set.count(), set.groups().count()), (3, 5, 1));
    }

    #[test]
    fn expired_rule_that_names_a_group_admits_no_one_through_it() {
        let web = group("web", vec![rule("10.0.0.1", None), rule("10.0.0.2", Some(NOW))]);
        let set = |rules: Vec<Rule>| with_groups(rules, std::slice::from_ref(&web));
        let expired = set(vec![naming("web", Some(NOW))]);
        assert!(found(&expired, "10.0.0.1").unwrap_err().starts_with("the rule group:web expired at "));
        assert_eq!(
            (expired.live_networks(NOW).count(), expired.covers("10.0.0.1/32".parse().unwrap(), NOW)),
            (0, false)
        );
        let soon = NOW + Duration::SECOND;
        let later = set(vec![naming("web", Some(NOW)), naming("web", Some(soon))]);
        let trusted = later.lookup("10.0.0.1".parse().unwrap(), NOW).unwrap().to_matching();
        assert_eq!((trusted.group().unwrap().as_str(), trusted.expires_at()), ("web", Some(soon)));
        assert_eq!(later.next_expiry(NOW), Some(soon));
        assert!(
            found(&later, "10.0.0.2").unwrap_err().starts_with("the rule ip_addr:10.0.0.2 of group web expired at ")
        );
    }

    #[test]
    fn group_that_did_not_change_is_shared() {
        let web = group("web", vec![rule("10.0.0.1", None)]);
        let one = with_groups(vec![naming("web", None)], std::slice::from_ref(&web));
        let other = with_groups(vec![naming("web", None)], std::slice::from_ref(&web));
        assert!(Arc::ptr_eq(one.groups().next().unwrap(), other.groups().next().unwrap()));
        assert!(one.updated(&AddressBook::new(), std::slice::from_ref(&web)).is_none());
        let changed = group("web", vec![rule("10.0.0.2", None)]);
        let next = one.updated(&AddressBook::new(), &[changed]).unwrap();
        assert!(found(&next, "10.0.0.2").is_ok() && found(&next, "10.0.0.1").is_err());
    }

    /// The expected result of a lookup, by a scan of all rules.
    fn by_scanning<'a>(rules: &'a [Rule], book: &AddressBook, ip: IpAddr) -> Option<&'a Rule> {
        let prefix = |rule: &Rule| match &rule.source {
            Source::Network(network) => network.net().contains(&ip).then(|| network.net().prefix_len()),
            Source::Group(_) => None,
            Source::Host(_) | Source::Cloud(_) => {
                let longest = if ip.is_ipv4() { 32 } else { 128 };
                let known = rule.source.resolvable().and_then(|source| book.get(&source));
                known.is_some_and(|known| known.all().contains(&ip)).then_some(longest)
            }
        };
        let covering = rules.iter().filter(|rule| rule.is_live(NOW)).filter_map(|rule| Some((prefix(rule)?, rule)));
        let narrower = |best: Option<(u8, &'a Rule)>, rule: (u8, &'a Rule)| match best {
            Some(best) if best.0 >= rule.0 => Some(best),
            _ => Some(rule),
        };
        covering.fold(None, narrower).map(|(_, rule)| rule)
    }

    /// Networks within few addresses, so that they nest and repeat.
    fn crowded_network() -> impl Strategy<Value = String> {
        prop_oneof![
            (any::<[u8; 2]>(), 0_u8..=32).prop_map(|([a, b], length)| {
                let address = u32::from_be_bytes([10, 0, a & 3, b & 15]);
                let net = Ipv4Net::new(address.into(), length).unwrap().trunc();
                net.to_string()
            }),
            (any::<[u8; 2]>(), 0_u8..=128).prop_map(|([a, b], length)| {
                let address = 0x2001_0db8_u128 << 96 | u128::from(a & 3) << 64 | u128::from(b & 15);
                let net = Ipv6Net::new(address.into(), length).unwrap().trunc();
                net.to_string()
            }),
        ]
    }

    fn crowded_rule() -> impl Strategy<Value = Rule> {
        let source = prop_oneof![
            crowded_network().prop_map(|network| rule(&network, None)),
            "[a-d]".prop_map(|name| host(&name, None)),
            "[a-d]".prop_map(|name| Rule::of(Source::Cloud(tag(&name)), Origin::Configuration)),
        ];
        (source, prop_oneof![Just(None), Just(Some(NOW)), Just(Some(NOW + Duration::HOUR))])
            .prop_map(|(rule, expires_at)| Rule { expires_at, ..rule })
    }

    fn crowded_address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 2]>().prop_map(|[a, b]| IpAddr::from([10, 0, a & 3, b & 15])),
            any::<[u8; 2]>().prop_map(|[a, b]| {
                IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(a & 3) << 64 | u128::from(b & 15)).to_be_bytes())
            }),
        ]
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_a_scan_of_all_rules(
            rules in proptest::collection::vec(crowded_rule(), 0..40),
            known in proptest::collection::vec(proptest::collection::vec(crowded_address(), 0..6), 4),
            addresses in proptest::collection::vec(crowded_address(), 1..20),
        ) {
            let entries: Vec<_> = ["a", "b", "c", "d"].into_iter().zip(known.iter().map(Vec::as_slice)).collect();
            let book = book(&entries);
            let bare = TrustedSources::new(rules.clone());
            let set = bare.updated(&book, &[]).unwrap_or(bare);
            for ip in addresses {
                prop_assert_eq!(set.lookup(ip, NOW).ok().map(|found| &**found.rule), by_scanning(&rules, &book, ip));
            }
        }

        #[test]
        fn rules_in_groups_decide_as_the_same_rules_of_the_listener(
            own in proptest::collection::vec(crowded_rule(), 0..15),
            web in proptest::collection::vec(crowded_rule(), 0..15),
            office in proptest::collection::vec(crowded_rule(), 0..15),
            ends in proptest::collection::vec(prop_oneof![Just(None), Just(Some(NOW)), Just(Some(NOW + Duration::HOUR))], 2),
            known in proptest::collection::vec(proptest::collection::vec(crowded_address(), 0..6), 4),
            addresses in proptest::collection::vec(crowded_address(), 1..20),
        ) {
            let entries: Vec<_> = ["a", "b", "c", "d"].into_iter().zip(known.iter().map(Vec::as_slice)).collect();
            let book = book(&entries);
            let groups = [("web", &web), ("office", &office)].map(|(name, rules)| {
                let sources = RuleSet::new(rules.iter().cloned().map(Arc::new).collect());
                let sources = sources.with_addresses(&book).unwrap_or(sources);
                Arc::new(SourceGroup { name: name.parse().unwrap(), sources: Arc::new(sources) })
            });
            let named = [naming("web", ends[0]), naming("office", ends[1])];
            let live = |rules: &[Rule], end: Option<OffsetDateTime>| {
                if end.is_none_or(|end| NOW < end) { rules.to_vec() } else { Vec::new() }
            };
            let flat: Vec<Rule> = [own.clone(), live(&web, ends[0]), live(&office, ends[1])].concat();
            let set = TrustedSources::new(named.into_iter().chain(own)).updated(&book, &groups).unwrap();
            let flat_set = TrustedSources::new(flat.clone());
            let flat_set = flat_set.updated(&book, &[]).unwrap_or(flat_set);
            for ip in &addresses {
                let matching = set.lookup(*ip, NOW).ok();
                prop_assert_eq!(matching.map(|found| &**found.rule), by_scanning(&flat, &book, *ip));
                let network = IpNet::from(*ip);
                prop_assert_eq!(set.covers(network, NOW), flat_set.covers(network, NOW));
            }
            let networks = |set: &TrustedSources| set.live_networks(NOW).collect::<BTreeSet<_>>();
            prop_assert_eq!(networks(&set), networks(&flat_set));
            let expiry = |rules: &[Rule]| rules.iter().filter_map(|rule| rule.expires_at).filter(|end| *end > NOW).min();
            prop_assert!(expiry(&flat).is_none_or(|end| set.next_expiry(NOW).is_some_and(|next| next <= end)));
            let resolvables = |set: &TrustedSources| set.resolvables().collect::<BTreeSet<_>>();
            prop_assert!(resolvables(&set).is_superset(&resolvables(&flat_set)));
            for source in resolvables(&flat_set) {
                prop_assert_eq!(set.known(&source), flat_set.known(&source));
            }
        }
    }
}
