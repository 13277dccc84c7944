//! Differences between the rules of two policies other than added and removed rules.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use ipnet::IpNet;
use time::OffsetDateTime;

use crate::audit::changes::{Difference, MAX_DIFFERENCES};
use crate::policy::diff::value;
use crate::source::group::SourceGroup;
use crate::source::rule::{Rule, Source};
use crate::source::rule_set::touched;
use crate::source::trusted::TrustedSources;
use crate::timestamp;

/// Compares the rules of a group.
pub(crate) fn compare_groups(
    owner: &str,
    groups: [&SourceGroup; 2],
    now: OffsetDateTime,
) -> std::vec::IntoIter<Difference> {
    let [old, new] = groups.map(TrustedSources::of_group);
    compare(owner, [&old, &new], now)
}

/// Returns rules with a changed description, refresh interval or expiry, and rules that trust more than before. `listener` is
/// the text of their owner.
pub(crate) fn compare(
    listener: &str,
    [old, new]: [&TrustedSources; 2],
    now: OffsetDateTime,
) -> std::vec::IntoIter<Difference> {
    let mut differences = Vec::new();
    let candidates = touched(new.rules(), old.rules());
    if candidates.is_empty() {
        return differences.into_iter();
    }
    let sources: HashSet<&Source> = candidates.iter().map(|rule| &rule.source).collect();
    let is_relevant = |rule: &&Arc<Rule>| sources.contains(&rule.source);
    let known: HashMap<_, _> =
        old.rules().iter().rev().filter(is_relevant).map(|rule| (identity(rule), rule)).collect();
    let kept: HashSet<_> = new.rules().iter().filter(is_relevant).map(|rule| identity(rule)).collect();
    // Removed rules by source: one of them may have returned with another expiry.
    let removed = old.rules().iter().filter(is_relevant).filter(|rule| !kept.contains(&identity(rule)));
    let removed: HashMap<_, _> = removed.map(|rule| (&rule.source, rule)).collect();
    let widest = WidestNetworks::of(old, now);
    for rule in candidates {
        if differences.len() > MAX_DIFFERENCES {
            break;
        }
        match known.get(&identity(rule)) {
            Some(before) => differences.extend(altered(listener, before, rule)),
            None => match removed.get(&rule.source) {
                Some(before) => differences.push(with_changed_expiry(listener, before, rule)),
                None => {
                    let wider = wider_networks(new, rule, now).find_map(|wider| widening(old, &widest, wider, now));
                    differences.extend(wider.map(|wider| wider.difference(listener, rule)));
                }
            },
        }
    }
    differences.into_iter()
}

/// The fields that identify a rule.
fn identity(rule: &Rule) -> (&Source, Option<OffsetDateTime>) {
    (&rule.source, rule.expires_at)
}

fn altered(listener: &str, old: &Arc<Rule>, new: &Arc<Rule>) -> Option<Difference> {
    let refresh = |rule: &Rule| rule.source.host().map(|host| host.refresh);
    let is_same = old.description == new.description && refresh(old) == refresh(new);
    (!is_same).then(|| Difference::new(Some(listener), KEY, Some(describe(old)), Some(describe(new))))
}

/// A rule that trusts the same source with another expiry. A later expiry weakens.
fn with_changed_expiry(listener: &str, old: &Arc<Rule>, new: &Arc<Rule>) -> Difference {
    let weakens = match (old.expires_at, new.expires_at) {
        (Some(old), Some(new)) => new > old,
        (Some(_), None) => true,
        (None, _) => false,
    };
    Difference { weakens, ..Difference::new(Some(listener), KEY, Some(describe(old)), Some(describe(new))) }
}

/// A new rule that trusts more than an old one.
struct Widening<'a> {
    rule: &'a Rule,
    /// The old networks that it exceeds.
    before: Vec<IpNet>,
}

impl Widening<'_> {
    /// `added` is the new rule of the owner: the widening one, or one that names its group.
    fn difference(&self, listener: &str, added: &Rule) -> Difference {
        let before: Vec<_> = self.before.iter().map(|network| format!("{}:{network}", Source::IP_ADDR)).collect();
        let before = Some(before.join(", ")).filter(|before| !before.is_empty());
        let after = if added.source.group().is_some() {
            format!("{} with {}", describe(added), describe(self.rule))
        } else {
            describe(added)
        };
        Difference { weakens: true, ..Difference::new(Some(listener), KEY, before, Some(after)) }
    }
}

/// The rules of networks that a new rule of the owner adds: itself, or those of the group that it names.
fn wider_networks<'a>(
    new: &'a TrustedSources,
    rule: &'a Arc<Rule>,
    now: OffsetDateTime,
) -> impl Iterator<Item = &'a Arc<Rule>> {
    let group = rule.source.group().filter(|_| rule.is_live(now)).and_then(|name| new.group(name));
    std::iter::once(rule).chain(group.into_iter().flat_map(|group| group.sources.rules()))
}

/// Whether a rule trusts more than an old one: every address, a network around a trusted one, or a larger network than any
/// before. Other new rules are reported as added and do not weaken, and so are hosts and cloud sources, whose addresses are
/// not known yet. A new kind of source with many known addresses must be compared here.
fn widening<'a>(
    old: &TrustedSources,
    widest: &WidestNetworks,
    rule: &'a Rule,
    now: OffsetDateTime,
) -> Option<Widening<'a>> {
    let network = rule.source.network()?.net();
    if !rule.is_live(now) || old.covers(network, now) {
        return None;
    }
    let within = old.within(network);
    let widest = widest.of_family(&network);
    let is_wider = widest.is_none_or(|widest| network.prefix_len() < widest.prefix_len());
    let is_single = network.prefix_len() == network.max_prefix_len();
    if within.is_empty() && (!is_wider || is_single) {
        return None;
    }
    let before = if within.is_empty() { Vec::from_iter(widest) } else { within };
    Some(Widening { rule, before })
}

/// The largest network of each address family that a rule trusts.
struct WidestNetworks {
    v4: Option<IpNet>,
    v6: Option<IpNet>,
}

impl WidestNetworks {
    fn of(sources: &TrustedSources, now: OffsetDateTime) -> Self {
        let mut result = Self { v4: None, v6: None };
        for network in sources.live_networks(now) {
            let widest = match network {
                IpNet::V4(_) => &mut result.v4,
                IpNet::V6(_) => &mut result.v6,
            };
            if widest.is_none_or(|widest| network.prefix_len() < widest.prefix_len()) {
                *widest = Some(network);
            }
        }
        result
    }

    fn of_family(&self, network: &IpNet) -> Option<IpNet> {
        match network {
            IpNet::V4(_) => self.v4,
            IpNet::V6(_) => self.v6,
        }
    }
}

fn describe(rule: &Rule) -> String {
    let mut text = rule.to_string();
    if let Some(host) = rule.source.host() {
        let _ = write!(text, " refresh {}", value::duration(host.refresh));
    }
    if let Some(end) = rule.expires_at {
        let _ = write!(text, " until {}", timestamp::seconds(end));
    }
    if let Some(description) = &rule.description {
        let _ = write!(text, " ({description})");
    }
    text
}

const KEY: &str = "trusted_sources";
