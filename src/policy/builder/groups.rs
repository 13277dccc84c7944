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

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::config::files::Files;
    use crate::policy::fixtures::{ConfigDir, listener};
    use crate::source::addresses::{Addresses, Resolvable};

    fn config_dir() -> ConfigDir {
        let dir = ConfigDir::new();
        for name in ["cache", "db"] {
            dir.install(name, OffsetDateTime::now_utc() + Duration::days(365));
        }
        dir
    }

    fn config(web: &str, office: &str) -> String {
        let group =
            |name: &str, sources: &str| format!("[[source_group]]\nname = \"{name}\"\ntrusted_sources = [{sources}]\n");
        let listeners = [listener("cache", 1001, "\"group:web\""), listener("db", 1002, "\"10.0.0.1\", \"group:web\"")];
        [group("web", web), group("office", office), listeners.concat()].concat()
    }

    fn group<'s>(snapshot: &'s Snapshot, listener: &str) -> &'s Arc<SourceGroup> {
        snapshot.named(listener).unwrap().sources.trusted.groups().next().unwrap()
    }

    #[test]
    fn unchanged_group_stays_the_same_value_at_every_listener() {
        let dir = config_dir();
        let before = dir.snapshot(config("\"10.0.0.0/8\"", "\"192.0.2.1\""), None);
        let after = dir.snapshot(config("\"10.0.0.0/8\"", "\"192.0.2.2\""), Some(&before));
        for (one, other) in [("cache", "db"), ("cache", "cache")] {
            assert!(Arc::ptr_eq(group(&before, one), group(&after, other)));
        }
        assert!(!Arc::ptr_eq(before.group("office").unwrap(), after.group("office").unwrap()));
        let users: Vec<_> = after.users_of(after.group("web").unwrap()).map(|policy| policy.name.to_string()).collect();
        assert_eq!(users, ["cache", "db"]);
    }

    #[test]
    fn new_addresses_reach_all_listeners_of_the_group_and_are_one_change() {
        let dir = config_dir();
        let before = dir.snapshot(config("\"dns:app.internal\"", "\"192.0.2.1\""), None);
        let source = Resolvable::Host("app.internal".parse().unwrap());
        let ip = [192, 0, 2, 9].into();
        let book = AddressBook::from([(source, Addresses::of([ip]).unwrap().0)]);
        let after = before.with_addresses(&book).unwrap();
        assert!(Arc::ptr_eq(group(&after, "cache"), group(&after, "db")));
        assert!(Arc::ptr_eq(before.group("office").unwrap(), after.group("office").unwrap()));
        let now = OffsetDateTime::now_utc();
        for name in ["cache", "db"] {
            let [before, after] = [&before, &after].map(|snapshot| snapshot.named(name).unwrap());
            assert!(before.sources.trusted.lookup(ip, now).is_err() && after.sources.trusted.lookup(ip, now).is_ok());
        }
        let changes = after.address_changes_since(&before);
        assert_eq!(changes.iter().map(|change| change.owner.to_string()).collect::<Vec<_>>(), ["group:web"]);
        assert!(after.with_addresses(&book).is_none());
    }

    #[test]
    fn changed_rules_of_a_group_are_one_change_and_change_the_hash() {
        let dir = config_dir();
        let before = dir.snapshot(config("\"10.0.0.0/8\"", "\"192.0.2.1\""), None);
        let after = dir.snapshot(config("\"10.0.0.0/8\", \"192.0.2.7\"", "\"192.0.2.1\""), Some(&before));
        let changes = after.source_changes_since(&before);
        let added: Vec<_> =
            changes.iter().flat_map(|changes| changes.added()).map(|(owner, rule)| format!("{owner} {rule}")).collect();
        assert_eq!(added, ["group:web ip_addr:192.0.2.7"]);
        assert_ne!(before.config_hash(), after.config_hash());
        let same = dir.snapshot(config("\"10.0.0.0/8\"", "\"192.0.2.1\""), None);
        assert_eq!(before.config_hash(), same.config_hash());
    }

    #[test]
    fn group_without_listener_and_its_wide_rule_are_warned_about_once() {
        let dir = config_dir();
        let file = dir.path("portcullis.toml");
        std::fs::write(&file, config("\"0.0.0.0/0\"", "\"192.0.2.1\"")).unwrap();
        let mut files = Files::default();
        let loaded = Config::load(&file, &mut files).unwrap();
        let built = Snapshot::build(loaded, &mut files, None, &AddressBook::new()).unwrap();
        let about = |name: &str| {
            let mut warnings = built.warnings.iter().filter(|warning| warning.contains(name));
            (warnings.next().unwrap().clone(), warnings.count())
        };
        let (wide, more) = about("source_group web");
        assert!(wide.contains("ip_addr:0.0.0.0/0 trusts every address") && more == 0, "{wide}");
        let (unused, more) = about("source_group office");
        assert!(unused.contains("add \"group:office\" to trusted_sources") && more == 0, "{unused}");
    }
}
