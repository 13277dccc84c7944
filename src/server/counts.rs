//! The number of sessions by listener.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::policy::Snapshot;
use crate::session::registry::ConnectionRegistry;

#[derive(Debug)]
pub(crate) struct Counts(BTreeMap<Arc<str>, Count>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Open or half-closed.
    pub(crate) relaying: u64,
    pub(crate) closing: u64,
}

impl Counts {
    pub(crate) fn from_registry(registry: &ConnectionRegistry) -> Self {
        let mut all = BTreeMap::<_, Count>::new();
        for live in registry.all() {
            let Some(state) = live.state() else { continue };
            let count = all.entry(Arc::clone(live.listener())).or_default();
            *if state.is_relaying() { &mut count.relaying } else { &mut count.closing } += 1;
        }
        Self(all)
    }

    pub(crate) fn of_listener(&self, listener: &str) -> Count {
        self.0.get(listener).copied().unwrap_or_default()
    }

    /// The sessions of listeners that are no longer in the configuration, which `revoke = "keep"` leaves open.
    pub(crate) fn of_removed_listeners(&self, snapshot: &Snapshot) -> Vec<Value> {
        let gone = self.0.iter().filter(|(listener, _)| snapshot.named(listener).is_none());
        gone.map(|(listener, Count { relaying, closing })| {
            json!({ "name": &**listener, "sessions": relaying, "sessions_closing": closing })
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::addr::ClientAddr;
    use crate::policy::fixtures::{ConfigDir, listener};
    use crate::policy::usage::Authorization;

    #[test]
    fn sessions_are_counted_by_listener_and_state() {
        let registry = Arc::new(ConnectionRegistry::default());
        let enter = |listener: &str| {
            let guard = registry.enter(listener.into(), ClientAddr::UNIX);
            guard.activate(Authorization::default());
            guard
        };
        let (_arriving, open, closing, removed_session) = (enter("db"), enter("db"), enter("db"), enter("old"));
        for session in [&open, &closing, &removed_session] {
            session.mark_open();
        }
        closing.mark_closing();
        let counts = Counts::from_registry(&registry);
        assert_eq!(counts.of_listener("db"), Count { relaying: 1, closing: 1 });
        assert_eq!(counts.of_listener("cache"), Count::default());

        let dir = ConfigDir::new();
        dir.install("db", OffsetDateTime::now_utc() + Duration::days(365));
        let snapshot = dir.snapshot(listener("db", 1001, ""), None);
        let removed = json!({ "name": "old", "sessions": 1, "sessions_closing": 0 });
        assert_eq!(counts.of_removed_listeners(&snapshot), [removed]);
    }
}
