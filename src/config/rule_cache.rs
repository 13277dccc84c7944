//! Rules that were parsed before, by the text they were parsed from.
//!
//! A list of sources may have 100,000 rules, of which a change concerns one. Text that has not changed is not parsed again, and
//! its rules are the same values as before, which makes them cheap to compare.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::resolver::WrittenResolvers;
use crate::digest::{Sha256, sha256};
use crate::source::rule::Rule;

/// The rules of the parts of all `sources_file`s, by the digest of each part.
#[derive(Debug, Default)]
pub(crate) struct KnownRules(HashMap<PartDigest, Arc<[Arc<Rule>]>>);

/// The digest of a part of a file and of what its rules depend on besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PartDigest(Sha256);

/// The known rules of the previous load, and those of the present one.
#[derive(Debug, Default)]
pub(crate) struct RuleCache {
    previous: Arc<KnownRules>,
    present: KnownRules,
}

impl PartDigest {
    /// The digest of a part of a `sources_file`. The derived UUIDs of its rules depend on their owner, and which rules are
    /// valid on the resolvers.
    pub(crate) fn of(owner: &str, resolvers: WrittenResolvers, part: &str) -> Self {
        // No name contains a null byte.
        let mut bytes = Vec::with_capacity(owner.len().saturating_add(part.len()).saturating_add(2));
        bytes.extend_from_slice(owner.as_bytes());
        bytes.extend_from_slice(&[0, resolvers.as_byte()]);
        bytes.extend_from_slice(part.as_bytes());
        Self(sha256(&bytes))
    }
}

impl RuleCache {
    /// A cache that knows the rules of an earlier load.
    pub(crate) fn knowing(previous: Arc<KnownRules>) -> Self {
        Self { previous, present: KnownRules::default() }
    }

    /// The rules of a part, if it was parsed before.
    pub(crate) fn get(&mut self, part: PartDigest) -> Option<Arc<[Arc<Rule>]>> {
        let known = self.present.0.get(&part).or_else(|| self.previous.0.get(&part)).cloned()?;
        self.present.0.insert(part, Arc::clone(&known));
        Some(known)
    }

    pub(crate) fn insert(&mut self, part: PartDigest, rules: &[Arc<Rule>]) {
        self.present.0.insert(part, rules.into());
    }

    /// Begins a load that may use what this cache has read already.
    #[must_use]
    pub(crate) fn begin_load(mut self) -> Self {
        let previous = self.previous.0.iter().map(|(part, rules)| (*part, Arc::clone(rules)));
        self.present.0.extend(previous.collect::<Vec<_>>());
        Self::knowing(Arc::new(self.present))
    }

    /// What was read in this load, for the next one.
    pub(crate) fn into_known(self) -> KnownRules {
        self.present
    }
}
