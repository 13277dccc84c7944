//! Builds the groups of trusted sources, which listeners share.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::config::Config;
use crate::policy::builder::reader::Reader;
use crate::policy::builder::sources::warn_about_rules;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::source::addresses::AddressBook;
use crate::source::group::SourceGroup;
use crate::source::rule_set::RuleSet;

/// Builds all groups. One whose rules and addresses did not change stays the same value.
pub(crate) fn groups(config: &Config, previous: Option<&Snapshot>, book: &AddressBook) -> Vec<Arc<SourceGroup>> {
    let group = |configured: &crate::config::source_group::SourceGroup| {
        let before = previous.and_then(|previous| previous.group(configured.name.as_str()));
        let before = before.filter(|before| before.sources.has_rules(&configured.rules));
        let made =
            |sources: RuleSet| Arc::new(SourceGroup { name: configured.name.clone(), sources: Arc::new(sources) });
        if let Some(before) = before {
            return before.sources.with_addresses(book).map_or_else(|| Arc::clone(before), made);
        }
        let bare = RuleSet::new(Arc::clone(&configured.rules));
        made(bare.with_addresses(book).unwrap_or(bare))
    };
    config.source_groups.iter().map(group).collect()
}

/// Warns about rules of a group that match every client or no client, and about a group without listeners.
pub(crate) fn warn(
    group: &SourceGroup,
    policies: &[Arc<ListenerPolicy>],
    reader: &mut Reader<'_>,
    now: OffsetDateTime,
) {
    warn_about_rules(group.sources.rules(), reader, now);
    if policies.iter().all(|policy| policy.sources.trusted.group(&group.name).is_none()) {
        let owner = group.owner();
        reader.warn(format_args!(
            "no listener uses the group; add \"{owner}\" to trusted_sources of a listener, or remove the group"
        ));
    }
}
