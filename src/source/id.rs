//! UUIDs of listeners and rules.
//!
//! Programs that manage sources refer to rules by UUID. A rule without a UUID of its own has one that is derived from its text,
//! so that it is the same after every reload and on every replica.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

/// The UUID of a listener (version 5, RFC 9562 section 5.5).
pub(crate) fn listener_uuid(name: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

/// Where a rule without a UUID of its own is configured. A rule of one place never has the UUID of a rule of the other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Configuration,
    SourcesFile,
}

/// Derives UUIDs for the rules of one listener in one place.
#[derive(Debug)]
pub(crate) struct DerivedUuids {
    listener: Uuid,
    place: &'static str,
    /// UUIDs that other rules have.
    taken: HashSet<Uuid>,
    /// The first unused ordinal of each type and value, by the UUID with ordinal 0.
    next: HashMap<Uuid, usize>,
}

impl DerivedUuids {
    pub(crate) fn new(listener: &str, place: Place, taken: HashSet<Uuid>) -> Self {
        let place = match place {
            Place::Configuration => "config",
            Place::SourcesFile => "file",
        };
        Self { listener: listener_uuid(listener), place, taken, next: HashMap::new() }
    }

    /// The UUID of the next rule with this type and value as written. Identical rules have different UUIDs.
    pub(crate) fn next(&mut self, kind: &str, value: &str) -> Uuid {
        let (listener, place) = (self.listener, self.place);
        let with_ordinal = |ordinal: usize| {
            // No type contains a null byte, so the parts cannot be confused.
            Uuid::new_v5(&listener, format!("{place}\0{kind}\0{ordinal}\0{value}").as_bytes())
        };
        let first = with_ordinal(0);
        let ordinal = self.next.entry(first).or_default();
        loop {
            let uuid = if *ordinal == 0 { first } else { with_ordinal(*ordinal) };
            *ordinal = ordinal.saturating_add(1);
            if !self.taken.contains(&uuid) {
                return uuid;
            }
        }
    }
}

/// The namespace of listener names. Changing it changes the UUIDs of all listeners and rules.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f1c_5f0a_2b7e_4d0c_9a53_8e4d_1c7b_90e2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_of_a_listener_never_changes() {
        let uuid = listener_uuid("cache");
        assert_eq!(uuid.get_version_num(), 5);
        assert_eq!(uuid.to_string(), "152a7257-cf97-5c01-9de7-ac9de2d39d8c");
        assert_ne!(uuid, listener_uuid("orders"));
    }

    #[test]
    fn identical_rules_have_different_uuids_that_no_other_rule_has() {
        let derive = |listener: &str, place, taken: &[Uuid], count| {
            let mut uuids = DerivedUuids::new(listener, place, taken.iter().copied().collect());
            (0..count).map(|_| uuids.next("ip_addr", "10.0.0.1")).collect::<Vec<_>>()
        };
        let all = derive("cache", Place::SourcesFile, &[], 3);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 3);
        assert_eq!(derive("cache", Place::SourcesFile, &[], 3), all);
        assert_eq!(derive("cache", Place::SourcesFile, &all[..1], 2), all[1..]);
        for other in [derive("cache", Place::Configuration, &[], 1), derive("orders", Place::SourcesFile, &[], 1)] {
            assert!(!all.contains(&other[0]));
        }
        let mut uuids = DerivedUuids::new("cache", Place::SourcesFile, HashSet::new());
        assert!(!all.contains(&uuids.next("dns", "10.0.0.1")));
    }
}
