//! The set of trusted sources and the decision about a client address.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use time::OffsetDateTime;

use crate::addr::ClientAddr;
use crate::source::addresses::{AddressBook, Addresses, Resolvable};
use crate::source::host::Host;
use crate::source::rule::{Rule, Source};
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
            (Ok(rule), _) => Ok(Admitted { client, source_match: SourceMatch::Rule(Arc::clone(rule)) }),
            (Err(_), Enforcement::Observe) => Ok(Admitted { client, source_match: SourceMatch::Observed }),
            (Err(untrusted), Enforcement::Enforce) => Err(untrusted),
        }
    }
}

/// What admits a client address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceMatch {
    /// This rule trusts it.
    Rule(Arc<Rule>),
    /// No rule trusts it; `enforcement = "observe"` admits it.
    Observed,
    /// The client may open the Unix socket.
    SocketFile,
}

impl SourceMatch {
    pub fn rule(&self) -> Option<&Arc<Rule>> {
        match self {
            Self::Rule(rule) => Some(rule),
            Self::Observed | Self::SocketFile => None,
        }
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
    pub expired: Option<Arc<Rule>>,
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.expired.as_deref() {
            Some(rule @ Rule { expires_at: Some(end), .. }) => {
                write!(f, "the rule {rule} expired at {}", timestamp::seconds(*end))
            }
            Some(_) | None => f.write_str("no rule trusts this address"),
        }
    }
}

/// Rules, found by the longest prefix that covers an address. A host or a cloud source is stored under each of its
/// addresses.
///
/// A lookup walks one binary trie per address family. Its cost grows with the length of the matching prefix, not with the
/// number of rules. An empty set trusts no address.
#[derive(Default)]
pub struct TrustedSources {
    rules: Vec<Arc<Rule>>,
    /// The known addresses of the hosts and cloud sources in `rules`.
    book: AddressBook,
    v4: PrefixMap<Ipv4Net, Vec<Arc<Rule>>>,
    v6: PrefixMap<Ipv6Net, Vec<Arc<Rule>>>,
}

impl TrustedSources {
    /// Builds the set. Hosts and cloud sources have no addresses yet. If several rules name the same network or address, the first that has not
    /// expired matches.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self::of(rules.into_iter().map(Arc::new).collect(), AddressBook::new())
    }

    /// The same as [`Self::new`] with rules that other sets may share.
    pub(crate) fn shared(rules: Vec<Arc<Rule>>) -> Self {
        Self::of(rules, AddressBook::new())
    }

    /// Returns the same rules with the addresses in `book`; `None` if no address changed.
    #[must_use]
    pub fn with_addresses(&self, book: &AddressBook) -> Option<Self> {
        let entry = |source: Resolvable| book.get(&source).cloned().map(|known| (source, known));
        let own: AddressBook = self.resolvables().filter_map(entry).collect();
        (own != self.book).then(|| Self::of(self.rules.clone(), own))
    }

    fn of(rules: Vec<Arc<Rule>>, book: AddressBook) -> Self {
        let mut set = Self { rules: Vec::new(), book, ..Self::default() };
        for rule in &rules {
            match &rule.source {
                Source::Network(network) => set.insert(network.net(), rule),
                Source::Host(_) | Source::Cloud(_) => {
                    let known = rule.source.resolvable().and_then(|source| set.book.get(&source).cloned());
                    let known = known.unwrap_or_default();
                    known.all().iter().for_each(|ip| set.insert((*ip).into(), rule));
                }
            }
        }
        Self { rules, ..set }
    }

    fn insert(&mut self, net: IpNet, rule: &Arc<Rule>) {
        match net {
            IpNet::V4(net) => self.v4.entry(net).or_default().push(Arc::clone(rule)),
            IpNet::V6(net) => self.v6.entry(net).or_default().push(Arc::clone(rule)),
        }
    }

    /// The hosts in the rules, once for each rule that names them.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.rules.iter().filter_map(|rule| rule.source.host())
    }

    /// The hosts and cloud sources in the rules, once for each rule that names them.
    pub fn resolvables(&self) -> impl Iterator<Item = Resolvable> {
        self.rules.iter().filter_map(|rule| rule.source.resolvable())
    }

    /// The known addresses of a host or a cloud source of this set; `None` if it has never been resolved.
    pub fn known(&self, source: &Resolvable) -> Option<&Addresses> {
        self.book.get(source)
    }

    /// The known addresses of a host or a cloud source of this set, sorted.
    pub fn addresses_of(&self, source: &Resolvable) -> &[IpAddr] {
        self.known(source).map_or(&[], Addresses::all)
    }

    /// All rules in configuration order, including expired ones.
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// Returns the rule with the longest prefix that covers `ip` and has not expired at `now`.
    ///
    /// # Errors
    /// [`Untrusted`] if no rule covers it.
    pub fn lookup(&self, ip: IpAddr, now: OffsetDateTime) -> Result<&Arc<Rule>, Untrusted> {
        match ip {
            IpAddr::V4(ip) => narrowest(self.v4.cover_values(&Ipv4Net::from(ip)), now),
            IpAddr::V6(ip) => narrowest(self.v6.cover_values(&Ipv6Net::from(ip)), now),
        }
    }

    /// The networks and addresses that are trusted at `now`, in no particular order.
    pub fn live_networks(&self, now: OffsetDateTime) -> impl Iterator<Item = IpNet> {
        let is_live = move |rules: &[Arc<Rule>]| rules.iter().any(|rule| rule.is_live(now));
        let v4 = self.v4.iter().filter(move |(_, rules)| is_live(rules)).map(|(net, _)| IpNet::V4(net));
        v4.chain(self.v6.iter().filter(move |(_, rules)| is_live(rules)).map(|(net, _)| IpNet::V6(net)))
    }

    /// Whether a rule that has not expired at `now` trusts every address of a network.
    pub fn covers(&self, network: IpNet, now: OffsetDateTime) -> bool {
        let is_live = |rules: &Vec<Arc<Rule>>| rules.iter().any(|rule| rule.is_live(now));
        match network {
            IpNet::V4(net) => self.v4.cover_values(&net).any(is_live),
            IpNet::V6(net) => self.v6.cover_values(&net).any(is_live),
        }
    }

    /// The networks and addresses of rules that lie within `network`, whether the rules have expired or not.
    pub fn within(&self, network: IpNet) -> Vec<IpNet> {
        match network {
            IpNet::V4(net) => self.v4.children(&net).map(|(net, _)| IpNet::V4(net)).take(MAX_WITHIN).collect(),
            IpNet::V6(net) => self.v6.children(&net).map(|(net, _)| IpNet::V6(net)).take(MAX_WITHIN).collect(),
        }
    }

    /// The earliest expiry after `now`.
    pub fn next_expiry(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        self.rules.iter().filter_map(|rule| rule.expires_at).filter(|end| *end > now).min()
    }
}

/// The rules of `all` that may differ from those of `others`. A reload leaves rules that it does not concern the same values,
/// usually at both ends of a list, which may be long.
pub(crate) fn touched<'a>(all: &'a [Arc<Rule>], others: &[Arc<Rule>]) -> &'a [Arc<Rule>] {
    let is_same = |(one, other): &(&Arc<Rule>, &Arc<Rule>)| Arc::ptr_eq(one, other);
    let before = all.iter().zip(others).take_while(is_same).count();
    let shorter = all.len().min(others.len()).saturating_sub(before);
    let after = all.iter().rev().zip(others.iter().rev()).take(shorter).take_while(is_same).count();
    all.get(before..all.len().saturating_sub(after)).unwrap_or_default()
}

/// Maximum number of networks that [`TrustedSources::within`] returns.
const MAX_WITHIN: usize = 8;

impl fmt::Debug for TrustedSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.rules).finish()
    }
}

/// Picks the matching rule from those that cover an address, given in order of increasing prefix length.
fn narrowest<'a>(
    covering: impl Iterator<Item = &'a Vec<Arc<Rule>>>,
    now: OffsetDateTime,
) -> Result<&'a Arc<Rule>, Untrusted> {
    let mut live = None;
    let mut expired = None;
    for same_network in covering {
        live = same_network.iter().find(|rule| rule.is_live(now)).or(live);
        expired = same_network.iter().find(|rule| !rule.is_live(now)).or(expired);
    }
    live.ok_or_else(|| Untrusted { expired: expired.cloned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::Duration;

    use super::*;
    use crate::source::cloud::CloudSource;
    use crate::source::rule::Origin;

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

    fn sources(networks: &[&str]) -> TrustedSources {
        TrustedSources::new(networks.iter().map(|network| rule(network, None)))
    }

    fn matched(set: &TrustedSources, ip: &str) -> Option<String> {
        let client = ClientAddr::from_ip(ip.parse().unwrap());
        set.lookup(client.ip().unwrap(), NOW).ok().map(ToString::to_string)
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
        let set = set.with_addresses(&known).unwrap();
        for address in ["192.0.2.1", "::ffff:192.0.2.1", "10.1.2.3", "2001:db8::1"] {
            assert_eq!(matched(&set, address).as_deref(), Some("dns:app-internal"), "{address}");
        }
        assert_eq!(matched(&set, "10.1.2.4").as_deref(), Some("ip_addr:10.0.0.0/8"));
        for address in ["192.0.2.2", "2001:db8::2", "::1"] {
            assert_eq!(matched(&set, address), None, "{address}");
        }
        assert!(set.with_addresses(&known).is_none(), "no address changed");
        let fewer = set.with_addresses(&book(&[("app-internal", &[ip("192.0.2.9")])])).unwrap();
        assert_eq!(matched(&fewer, "192.0.2.1"), None);
        assert_eq!(matched(&fewer, "10.1.2.3").as_deref(), Some("ip_addr:10.0.0.0/8"));
        assert_eq!(fewer.rules().len(), 3);
    }

    #[test]
    fn expired_host_rule_is_named_in_the_rejection() {
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let set = TrustedSources::new([host("app-internal", Some(NOW))]);
        let set = set.with_addresses(&book(&[("app-internal", &[ip])])).unwrap();
        let untrusted = set.lookup(ip, NOW).unwrap_err();
        assert!(untrusted.to_string().contains("dns:app-internal expired"), "{untrusted}");
        assert!(set.lookup(ip, NOW - Duration::SECOND).is_ok());
    }

    /// The expected result of a lookup, by a scan of all rules.
    fn by_scanning<'a>(rules: &'a [Rule], book: &AddressBook, ip: IpAddr) -> Option<&'a Rule> {
        let prefix = |rule: &Rule| match &rule.source {
            Source::Network(network) => network.net().contains(&ip).then(|| network.net().prefix_len()),
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
            let set = bare.with_addresses(&book).unwrap_or(bare);
            for ip in addresses {
                prop_assert_eq!(set.lookup(ip, NOW).ok().map(|rule| &**rule), by_scanning(&rules, &book, ip));
            }
        }
    }
}
