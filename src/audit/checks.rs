//! Health checks of load balancers: one every few seconds for years. Of those of a listener the first is logged, and of
//! the others how many they were.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::ClientAddr;
use crate::audit::event::{ConnectionFields, Event};
use crate::outcome::Reason;

/// The health checks of every listener.
#[derive(Debug, Default)]
pub(crate) struct HealthChecks {
    listeners: Mutex<HashMap<Arc<str>, Suppressed>>,
}

/// Those of one listener that were not logged.
#[derive(Debug)]
struct Suppressed {
    /// When the first, or a summary, was logged.
    logged: Instant,
    count: u64,
    /// Of the last.
    from: ClientAddr,
    reason: Reason,
}

impl HealthChecks {
    /// Whether this one is to be logged. If not, it has been counted.
    pub(crate) fn is_first(&self, fields: &ConnectionFields, reason: Reason) -> bool {
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

    /// What is to be said of the others by now; of all of them, if `at_once`.
    pub(crate) fn reports(&self, at_once: bool) -> Vec<Event> {
        let mut listeners = self.listeners();
        let due = listeners
            .iter_mut()
            .filter(|(_, suppressed)| suppressed.count > 0 && (at_once || suppressed.logged.elapsed() >= REPORT_EVERY));
        due.map(|(listener, suppressed)| suppressed.report(listener)).collect()
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<Arc<str>, Suppressed>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Suppressed {
    fn report(&mut self, listener: &str) -> Event {
        self.logged = Instant::now();
        let count = std::mem::take(&mut self.count);
        Event::new("denials.suppressed")
            .with("listener", listener)
            .with("source", self.from.source())
            .with("reason", self.reason.code())
            .with("suppressed", count)
            .with("detail", format!("{count} health checks; the source and the reason are those of the last"))
    }
}

/// Behind the detail of the health check that is logged.
pub(crate) const FIRST: &str = "a health check of a load balancer; further ones of this listener are only counted";

const REPORT_EVERY: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_after_the_first_are_counted_for_each_listener() {
        let checks = HealthChecks::default();
        let fields = |listener: &str| {
            ConnectionFields::new(None, listener.into(), ClientAddr::new("10.9.0.5:1".parse().unwrap()))
        };
        assert!(checks.is_first(&fields("cache"), Reason::ClientClosed));
        assert!(checks.is_first(&fields("db"), Reason::ClientClosed));
        assert!(checks.reports(true).is_empty());
        assert!((0..7).all(|_| !checks.is_first(&fields("cache"), Reason::UntrustedSource)));
        assert!(checks.reports(false).is_empty(), "an hour has not passed");
        let reports: Vec<_> = checks.reports(true).iter().map(|event| event.json(None)).collect();
        assert!(matches!(reports.as_slice(), [one] if one.contains(r#""suppressed":7"#) && one.contains(r#""cache""#)));
        assert!(checks.reports(true).is_empty());
    }
}
