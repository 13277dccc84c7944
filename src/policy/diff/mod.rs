//! Compares two policies key by key: what a plan announces and `reload.applied` reports.
//!
//! Both policies are flattened to the same keys with their effective values ([`settings`]), and the two lists are compared. The
//! flattening destructures every configuration type by name, so a new field does not compile until it has a key.

pub(crate) mod credentials;
pub(crate) mod fleet;
pub(crate) mod hash;
pub(crate) mod resolvers;
pub(crate) mod setting;
pub(crate) mod settings;
pub(crate) mod sources;
#[cfg(test)]
mod tests;
pub(crate) mod value;

use std::sync::Arc;

use time::OffsetDateTime;

use crate::audit::changes::Difference;
use crate::config::Listener;
use crate::policy::diff::setting::Setting;
use crate::policy::{ListenerPolicy, Snapshot};

impl Snapshot {
    /// Returns every key whose effective value differs from `previous`: settings of the process first, then by listener. A
    /// listener that takes over an address under a new name is compared with the previous owner of the address.
    pub fn differences_since(&self, previous: &Self, now: OffsetDateTime) -> Vec<Difference> {
        let process = [previous, self].map(|snapshot| settings::of_process(&snapshot.config));
        let mut differences = compare(None, &process);
        for policy in &self.policies {
            let Some(before) = self.predecessor(policy, previous) else { continue };
            let sides = [previous.listener(before), self.listener(policy)];
            let [Some(old), Some(new)] = sides else { continue };
            let sides = [settings::of_listener(old, before), settings::of_listener(new, policy)];
            differences.extend(compare(Some(&*policy.name), &sides));
            differences.extend(credentials::compare(&policy.name, [&before.credentials, &policy.credentials]));
            differences.extend(sources::compare(
                &policy.name,
                [before, policy].map(|policy| &*policy.sources.trusted),
                now,
            ));
        }
        for group in &self.groups {
            let Some(before) = previous.group(group.name.as_str()) else { continue };
            let owner = group.owner().to_string();
            let files = [previous, self].map(|snapshot| settings::of_group(&snapshot.config, group.owner()));
            differences.extend(compare(Some(&owner), &files));
            differences.extend(sources::compare_groups(&owner, [before, group], now));
        }
        differences
    }

    /// Whether a snapshot built from the files of `previous` admits the same clients to the same upstreams in the same way.
    ///
    /// The builder keeps the TLS of `previous` if all its inputs are equal, so a comparison of pointers covers certificates, trust
    /// anchors, CRLs and the roots of the system.
    pub fn is_same_policy(&self, previous: &Self) -> bool {
        self.policies.len() == previous.policies.len()
            && self.policies.iter().zip(&previous.policies).all(|(policy, before)| policy.is_same(before))
            && self.address_changes_since(previous).is_empty()
            && self.differences_since(previous, OffsetDateTime::now_utc()).is_empty()
    }

    /// The policy in `previous` that `policy` replaces.
    fn predecessor<'a>(&self, policy: &ListenerPolicy, previous: &'a Self) -> Option<&'a Arc<ListenerPolicy>> {
        let renamed = || {
            let same_address = policy.bind_addrs.iter().find_map(|bind_addr| previous.at_address(bind_addr));
            same_address.filter(|before| self.named(&before.name).is_none())
        };
        previous.named(&policy.name).or_else(renamed)
    }

    fn listener(&self, policy: &ListenerPolicy) -> Option<&Listener> {
        self.config.listeners.iter().find(|listener| *listener.name == *policy.name)
    }
}

impl ListenerPolicy {
    /// Whether the parts that no setting names are the same.
    fn is_same(&self, before: &Self) -> bool {
        let is_same_upstream = match (self.upstream.tls(), before.upstream.tls()) {
            (Some(tls), Some(before)) => Arc::ptr_eq(tls, before),
            (tls, before) => tls.is_none() && before.is_none(),
        };
        let is_same_tls = match (&self.tls, &before.tls) {
            (Some(tls), Some(before)) => Arc::ptr_eq(tls, before),
            (tls, before) => tls.is_none() && before.is_none(),
        };
        let is_same_credentials = match (&self.credentials, &before.credentials) {
            (Some(credentials), Some(before)) => Arc::ptr_eq(credentials, before),
            (credentials, before) => credentials.is_none() && before.is_none(),
        };
        self.name == before.name
            && is_same_credentials
            && is_same_tls
            && is_same_upstream
            && self.bind_addrs == before.bind_addrs
            && self.socket_files == before.socket_files
            && self.max_handshakes == before.max_handshakes
    }
}

/// The settings that differ, in the order of the newer side.
fn compare(listener: Option<&str>, [old, new]: &[Vec<Setting>; 2]) -> Vec<Difference> {
    let find = |settings: &'_ [Setting], key: &str| settings.iter().position(|setting| setting.key == key);
    let differs = |key, old: Option<&Setting>, new: Option<&Setting>| {
        let [old_value, new_value] = [old, new].map(|setting| setting.map(|setting| &setting.value));
        if old_value == new_value {
            return None;
        }
        let (old_text, new_text) = value::to_text(old_value, new_value);
        let weakens = old.zip(new).is_some_and(|(old, new)| new.exposure.exceeds(&old.exposure));
        Some(Difference { weakens, ..Difference::new(listener, key, old_text, new_text) })
    };
    let in_both = new.iter().filter_map(|setting| {
        let before = find(old, setting.key).and_then(|index| old.get(index));
        differs(setting.key, before, Some(setting))
    });
    let removed = old.iter().filter(|setting| find(new, setting.key).is_none());
    in_both.chain(removed.filter_map(|setting| differs(setting.key, Some(setting), None))).collect()
}
