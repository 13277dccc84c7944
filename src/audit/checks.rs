//! Suppresses the events of load balancer health checks, which come every few seconds. For each listener, the first one is
//! logged, and later ones are counted and summarised.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::ClientAddr;
use crate::audit::event::{ConnectionFields, Event};
use crate::outcome::Reason;

/// The health checks of all listeners.
#[derive(Debug, Default)]
pub(crate) struct HealthChecks {
    listeners: Mutex<HashMap<Arc<str>, Suppressed>>,
}

/// The health checks of one listener that were not logged.
#[derive(Debug)]
struct Suppressed {
    /// When the first check or the last summary was logged.
    logged: Instant,
    count: u64,
    /// The source of the last check.
    from: ClientAddr,
    reason: Reason,
}

impl HealthChecks {
    /// Counts a health check. Returns whether it is the first of its listener, which is logged.
    pub(crate) fn count(&self, fields: &ConnectionFields, reason: Reason) -> bool {
        let mut listeners = self.listeners();
        match listeners.get_mut(&fields.listener) {
            Some(suppressed) => {
                suppressed.count += 1;
                suppressed.from = fields.client;
                suppressed.reason = reason;
                false
            }
            None => {
                let first = Suppressed { logged: Instant::now(), count: 0, from: fields.client, reason };
                listeners.insert(Arc::clone(&fields.listener), first);
                true
            }
        }
    }

    /// The summaries that are due; all of them if `at_once`.
    pub(crate) fn summaries(&self, at_once: bool) -> Vec<Event> {
        let mut listeners = self.listeners();
        let due = listeners.iter_mut().filter(|(_, suppressed)| {
            suppressed.count > 0 && (at_once || suppressed.logged.elapsed() >= SUMMARY_INTERVAL)
        });
        due.map(|(listener, suppressed)| suppressed.summary(listener)).collect()
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<Arc<str>, Suppressed>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Suppressed {
    fn summary(&mut self, listener: &str) -> Event {
        self.logged = Instant::now();
        let count = std::mem::take(&mut self.count);
        Event::new("denials.suppressed")
            .with("listener", listener)
            .with("source", self.from.source())
            .with("reason", self.reason.code())
            .with("suppressed", count)
            .with("detail", format!("{count} health checks; source and reason are those of the last one"))
    }
}

/// The detail of the health check that is logged.
pub(crate) const FIRST: &str = "health check of a load balancer; further ones at this listener are only counted";

const SUMMARY_INTERVAL: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_after_the_first_of_a_listener_are_counted() {
        let checks = HealthChecks::default();
        let fields = |listener: &str| {
            ConnectionFields::new(None, listener.into(), ClientAddr::new("10.9.0.5:1".parse().unwrap()))
        };
        assert!(checks.count(&fields("cache"), Reason::ClientClosed));
        assert!(checks.count(&fields("db"), Reason::ClientClosed));
        assert!(checks.summaries(true).is_empty());
        assert!((0..7).all(|_| !checks.count(&fields("cache"), Reason::UntrustedSource)));
        assert!(checks.summaries(false).is_empty(), "an hour has not passed");
        let summaries: Vec<_> = checks.summaries(true).iter().map(|event| event.json(None)).collect();
        assert!(
            matches!(summaries.as_slice(), [one] if one.contains(r#""suppressed":7"#) && one.contains(r#""cache""#))
        );
        assert!(checks.summaries(true).is_empty());
    }
}
