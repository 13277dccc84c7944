//! Rules, found by the longest prefix that covers an address.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use time::OffsetDateTime;

use crate::source::addresses::{AddressBook, Addresses, Resolvable};
use crate::source::host::Host;
use crate::source::rule::{Rule, Source};

/// The rules of a listener or a group. A host or a cloud source is stored under each of its addresses. A rule that names a
/// group covers no address here.
///
/// A lookup walks one binary trie per address family. Its cost grows with the length of the matching prefix, not with the
/// number of rules. An empty set covers no address.
#[derive(Default)]
pub struct RuleSet {
    rules: Arc<[Arc<Rule>]>,
    /// The known addresses of the hosts and cloud sources in `rules`.
    book: AddressBook,
    v4: PrefixMap<Ipv4Net, Vec<Arc<Rule>>>,
    v6: PrefixMap<Ipv6Net, Vec<Arc<Rule>>>,
}

/// The rules with the longest prefixes that cover an address, each with its prefix length.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Covering<'a> {
    /// One that has not expired.
    pub(crate) live: Option<(u8, &'a Arc<Rule>)>,
    /// One that has expired.
    pub(crate) expired: Option<(u8, &'a Arc<Rule>)>,
}

impl RuleSet {
    /// Builds the set. Hosts and cloud sources have no addresses yet. If several rules name the same network or address, the
    /// first that has not expired matches.
    pub(crate) fn new(rules: Arc<[Arc<Rule>]>) -> Self {
        Self::with_book(rules, AddressBook::new())
    }

    /// Returns the same rules with the addresses in `book`; `None` if no address changed.
    #[must_use]
    pub(crate) fn with_addresses(&self, book: &AddressBook) -> Option<Self> {
        let entry = |source: Resolvable| book.get(&source).cloned().map(|known| (source, known));
        let own: AddressBook = self.resolvables().filter_map(entry).collect();
        (own != self.book).then(|| Self::with_book(Arc::clone(&self.rules), own))
    }

    fn with_book(rules: Arc<[Arc<Rule>]>, book: AddressBook) -> Self {
        let mut set = Self { book, ..Self::default() };
        for rule in &*rules {
            match &rule.source {
                Source::Network(network) => set.insert(network.net(), rule),
                Source::Host(_) | Source::Cloud(_) => {
                    let known = rule.source.resolvable().and_then(|source| set.book.get(&source).cloned());
                    let known = known.unwrap_or_default();
                    known.all().iter().for_each(|ip| set.insert((*ip).into(), rule));
                }
                Source::Group(_) => {}
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

    /// All rules in configuration order, including expired ones.
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// Whether the set has exactly these rules, with the same texts.
    pub(crate) fn has_rules(&self, rules: &[Arc<Rule>]) -> bool {
        // Two spellings of a tag are equal, and are shown as written.
        let is_equal = |one: &Rule, other: &Rule| one == other && one.written_value() == other.written_value();
        let is_same = |(one, other): (&Arc<Rule>, &Arc<Rule>)| Arc::ptr_eq(one, other) || is_equal(one, other);
        self.rules.len() == rules.len() && self.rules.iter().zip(rules).all(is_same)
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

    /// The rules that cover `ip` at `now`.
    pub(crate) fn covering(&self, ip: IpAddr, now: OffsetDateTime) -> Covering<'_> {
        match ip {
            IpAddr::V4(ip) => {
                let all = self.v4.cover(&Ipv4Net::from(ip));
                narrowest(all.map(|(net, rules)| (net.prefix_len(), rules)), now)
            }
            IpAddr::V6(ip) => {
                let all = self.v6.cover(&Ipv6Net::from(ip));
                narrowest(all.map(|(net, rules)| (net.prefix_len(), rules)), now)
            }
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
    pub(crate) fn within(&self, network: IpNet) -> Vec<IpNet> {
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

/// Maximum number of networks that [`RuleSet::within`] returns.
pub(crate) const MAX_WITHIN: usize = 8;

impl fmt::Debug for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&*self.rules).finish()
    }
}

/// Picks the rules with the longest prefixes from those that cover an address, given in order of increasing prefix length.
fn narrowest<'a>(all: impl Iterator<Item = (u8, &'a Vec<Arc<Rule>>)>, now: OffsetDateTime) -> Covering<'a> {
    let mut covering = Covering::default();
    for (length, same_network) in all {
        let with_length = |rule: &'a Arc<Rule>| (length, rule);
        let find = |is_live| same_network.iter().find(|rule| rule.is_live(now) == is_live).map(with_length);
        covering.live = find(true).or(covering.live);
        covering.expired = find(false).or(covering.expired);
    }
    covering
}
