//! Events about the fleet.

use crate::audit::Audit;
use crate::audit::event::{Event, Level};

/// Something that happened to the store of the fleet or to this member.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FleetEvent<'a> {
    /// The store does not answer. The last good rules stay in force.
    StoreDown { error: &'a str },
    /// The store is in use.
    StoreUp,
    /// The store is not believed until an operator accepts it.
    StoreRefused { error: &'a str },
    /// The rules of a listener are no longer in the store. The last good ones stay in force.
    RulesMissing { listener: &'a str },
    /// The rules of a listener in the store cannot be put in force. The last good ones stay.
    RulesInvalid { listener: &'a str, error: &'a str },
    /// The ticket keys in the store cannot be read with `key_file`.
    KeyWrong { error: &'a str },
    /// Another process has the name of this member.
    MemberDuplicate,
}

impl Audit {
    /// An event about a fleet, by its name and that of this member.
    pub(crate) fn fleet(&self, fleet: &str, member: &str, event: FleetEvent<'_>) {
        let named = |name| Event::new(name).with("fleet", fleet).with("member", member);
        let (event, level) = match event {
            FleetEvent::StoreDown { error } => (named("fleet.store_down").with_long("error", error), Level::Warn),
            FleetEvent::StoreUp => (named("fleet.store_up"), Level::Info),
            FleetEvent::StoreRefused { error } => {
                (named("fleet.store_refused").with_long("error", error), Level::Error)
            }
            FleetEvent::RulesMissing { listener } => {
                (named("fleet.rules_missing").with("listener", listener), Level::Error)
            }
            FleetEvent::RulesInvalid { listener, error } => {
                (named("fleet.rules_invalid").with("listener", listener).with_long("error", error), Level::Error)
            }
            FleetEvent::KeyWrong { error } => (named("fleet.key_wrong").with_long("error", error), Level::Error),
            FleetEvent::MemberDuplicate => (named("fleet.member_duplicate"), Level::Error),
        };
        self.write(&event, level);
    }
}
