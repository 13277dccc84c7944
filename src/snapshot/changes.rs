//! What is different between two snapshots.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Snapshot, Terms};
use crate::audit::Changes;
use crate::policy::Rule;

impl Snapshot {
    /// What is different from `previous`.
    pub fn changes_since(&self, previous: &Self) -> Changes {
        let names = |snapshot: &Self| snapshot.terms.iter().map(|terms| terms.name.to_string()).collect::<Vec<_>>();
        let moved = |terms: &&Arc<Terms>| previous.named(&terms.name).is_some_and(|before| before.doors != terms.doors);
        let (old, new) = (names(previous), names(self));
        let (old_prints, new_prints) = (previous.fingerprints(), self.fingerprints());
        let mut changes = Changes {
            listeners_added: without(&new, &old),
            listeners_removed: without(&old, &new),
            listeners_moved: self.terms.iter().filter(moved).map(|terms| terms.name.to_string()).collect(),
            certificates_in: without(&new_prints, &old_prints),
            certificates_out: without(&old_prints, &new_prints),
            ..Changes::default()
        };
        for sources in self.source_changes_since(previous) {
            changes.sources_added += sources.added.len();
            changes.sources_removed += sources.removed.len();
        }
        changes
    }

    /// For each listener the rules that are new and those that are gone.
    pub fn source_changes_since<'a>(&'a self, previous: &'a Self) -> Vec<SourceChanges<'a>> {
        let names = self.terms.iter().chain(&previous.terms).map(|terms| &terms.name);
        let mut names: Vec<&Arc<str>> = names.collect();
        names.sort_unstable();
        names.dedup();
        let rules = |snapshot: &'a Self, name: &str| {
            snapshot.named(name).map_or(&[][..], |terms| terms.sources.trusted.rules())
        };
        let changes = |name: &'a Arc<str>| {
            let (old, new) = (rules(previous, name), rules(self, name));
            SourceChanges { listener: name, added: rules_without(new, old), removed: rules_without(old, new) }
        };
        names.into_iter().map(changes).collect()
    }

    /// Fingerprints of all server certificates and trust anchors.
    fn fingerprints(&self) -> Vec<String> {
        let of = |terms: &Arc<Terms>| {
            terms.certificates().map(|(_, certificate)| certificate.sha256.clone()).collect::<Vec<_>>()
        };
        self.terms.iter().flat_map(of).collect()
    }
}

/// What is different about the rules of one listener.
#[derive(Clone, Debug)]
pub struct SourceChanges<'a> {
    /// The listener's name.
    pub listener: &'a str,
    /// Rules that are new.
    pub added: Vec<&'a Rule>,
    /// Rules that are gone.
    pub removed: Vec<&'a Rule>,
}

/// What is in `all` and not in `others`.
fn without(all: &[String], others: &[String]) -> Vec<String> {
    let others: HashSet<&String> = others.iter().collect();
    let mut rest: Vec<String> = all.iter().filter(|name| !others.contains(name)).cloned().collect();
    rest.sort_unstable();
    rest.dedup();
    rest
}

fn rules_without<'a>(all: &'a [Arc<Rule>], others: &[Arc<Rule>]) -> Vec<&'a Rule> {
    let others: HashSet<_> = others.iter().map(|rule| (rule.network, rule.expires_at)).collect();
    all.iter().map(|rule| &**rule).filter(|rule| !others.contains(&(rule.network, rule.expires_at))).collect()
}
