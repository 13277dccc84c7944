//! The health of one endpoint or name: ejection, the result of the last dial, and the time of the next probe.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// The passive health of an endpoint, as found by dials.
#[derive(Debug, Default)]
pub(crate) struct Health {
    ejection: Option<Ejection>,
    recovery: Option<Recovery>,
    /// A dial has succeeded at least once.
    has_connected: bool,
    last_dial: Option<Dial>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamHealth {
    /// Not dialed yet.
    Unknown,
    /// The last dial succeeded. Local shortages do not count.
    Healthy,
    /// The last dial failed.
    Unhealthy,
}

/// One dial of an upstream, by a client or a health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// When the dial ended.
    pub at: OffsetDateTime,
    pub outcome: DialOutcome,
}

/// The result of a dial. The text is the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialOutcome {
    Connected,
    /// The upstream responded, but has the wrong role or is not ready.
    Unsuitable(String),
    Failed(String),
    /// This host lacked a descriptor, memory or a local port, which shows nothing about the upstream.
    LocalShortage(String),
}

#[derive(Debug)]
struct Ejection {
    since: OffsetDateTime,
    error: String,
    /// Failures in a row.
    failures: u32,
    /// When the next probe may start. `None` while a probe runs.
    due: Option<Instant>,
}

/// The last recovery. A relapse soon after it continues with the former probe interval.
#[derive(Clone, Copy, Debug)]
struct Recovery {
    at: Instant,
    failures: u32,
}

impl Health {
    /// Ends an ejection after a dial that succeeded. `unsuitable` is the reason if the endpoint was not used. Returns whether
    /// the endpoint was ejected before.
    pub(crate) fn mark_healthy(&mut self, unsuitable: Option<&str>, now: Instant) -> bool {
        self.has_connected = true;
        self.note(unsuitable.map_or(DialOutcome::Connected, |error| DialOutcome::Unsuitable(error.to_owned())));
        let former = self.ejection.take();
        if let Some(Ejection { failures, .. }) = &former {
            self.recovery = Some(Recovery { at: now, failures: *failures });
        }
        former.is_some()
    }

    /// Ejects the endpoint after a failed dial. A failed probe of an ejected endpoint is recorded by
    /// [`record_probe_failure`](Self::record_probe_failure). Returns whether it was not ejected before.
    pub(crate) fn eject(&mut self, error: &str, now: Instant) -> bool {
        self.note(DialOutcome::Failed(error.to_owned()));
        if let Some(ejection) = &mut self.ejection {
            // Failing clients do not change the time of the next probe. Many of them could postpone it for ever.
            error.clone_into(&mut ejection.error);
            return false;
        }
        let relapse = self.recovery.filter(|recovery| now.saturating_duration_since(recovery.at) < RELAPSE);
        let failures = relapse.map_or(0, |recovery| recovery.failures).saturating_add(1);
        self.ejection = Some(Ejection {
            since: OffsetDateTime::now_utc(),
            error: error.to_owned(),
            failures,
            due: Some(now + probe_interval(failures)),
        });
        true
    }

    /// Records a failed probe and sets the time of the next one.
    pub(crate) fn record_probe_failure(&mut self, error: &str, now: Instant) {
        self.note(DialOutcome::Failed(error.to_owned()));
        if let Some(ejection) = &mut self.ejection {
            ejection.failures = ejection.failures.saturating_add(1);
            ejection.due = Some(now + probe_interval(ejection.failures));
            error.clone_into(&mut ejection.error);
        }
    }

    /// Records a dial that failed because of a local shortage. The health does not change.
    pub(crate) fn record_local_failure(&mut self, error: &str) {
        self.note(DialOutcome::LocalShortage(error.to_owned()));
    }

    /// Records a probe that failed because of a local shortage, and sets the time of the next one.
    pub(crate) fn record_local_probe_failure(&mut self, error: &str, now: Instant) {
        self.record_local_failure(error);
        if let Some(ejection) = &mut self.ejection {
            ejection.due = Some(now + probe_interval(ejection.failures));
        }
    }

    fn note(&mut self, outcome: DialOutcome) {
        self.last_dial = Some(Dial { at: OffsetDateTime::now_utc(), outcome });
    }

    pub(crate) fn last_dial(&self) -> Option<&Dial> {
        self.last_dial.as_ref()
    }

    pub(crate) fn state(&self) -> UpstreamHealth {
        match (&self.ejection, self.has_connected) {
            (Some(_), _) => UpstreamHealth::Unhealthy,
            (None, true) => UpstreamHealth::Healthy,
            (None, false) => UpstreamHealth::Unknown,
        }
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.ejection.is_some()
    }

    /// The start and the last error of the ejection.
    pub(crate) fn ejection(&self) -> Option<(OffsetDateTime, String)> {
        self.ejection.as_ref().map(|ejection| (ejection.since, ejection.error.clone()))
    }

    /// When the next probe is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.ejection.as_ref()?.due
    }

    /// Starts a probe if one is due. After `true`, the caller must record a result.
    pub(crate) fn start_probe(&mut self, now: Instant) -> bool {
        self.ejection.as_mut().is_some_and(|ejection| ejection.due.take_if(|due| *due <= now).is_some())
    }
}

impl UpstreamHealth {
    /// The name in JSON.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl DialOutcome {
    /// The name in JSON.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Unsuitable(_) => "unsuitable",
            Self::Failed(_) => "failed",
            Self::LocalShortage(_) => "local_shortage",
        }
    }

    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Connected => None,
            Self::Unsuitable(error) | Self::Failed(error) | Self::LocalShortage(error) => Some(error),
        }
    }
}

/// The time until the next probe: `full_interval` less up to a quarter, so that many proxies do not dial a recovered
/// upstream at the same moment.
fn probe_interval(failures: u32) -> Duration {
    let whole = full_interval(failures);
    let random = u32::try_from(RandomState::new().hash_one(()) % 256).unwrap_or_default();
    whole.saturating_sub(whole / 1024 * random)
}

/// Doubles with each failure in a row.
fn full_interval(failures: u32) -> Duration {
    FIRST_INTERVAL.saturating_mul(1 << failures.saturating_sub(1).min(MAX_DOUBLINGS)).min(MAX_INTERVAL)
}

const FIRST_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(15);
/// More than enough to reach [`MAX_INTERVAL`], and few enough for the shift not to overflow.
const MAX_DOUBLINGS: u32 = 8;

/// An endpoint that fails so soon after its recovery keeps its former probe interval.
const RELAPSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_interval_grows_with_each_failure_up_to_the_maximum() {
        let mut last = Duration::ZERO;
        for failures in 1..100 {
            assert!(full_interval(failures) >= last && full_interval(failures) <= MAX_INTERVAL, "{failures}");
            last = full_interval(failures);
        }
        assert_eq!((full_interval(1), last), (FIRST_INTERVAL, MAX_INTERVAL));
    }

    #[test]
    fn probe_interval_of_a_flapping_endpoint_grows_with_each_relapse() {
        let now = Instant::now();
        let mut health = Health::default();
        let mut waits = vec![];
        for _ in 0..5 {
            assert!(health.eject("refused", now));
            waits.push(health.ejection.as_ref().unwrap().due.unwrap() - now);
            assert!(health.mark_healthy(None, now));
        }
        for (wait, max) in waits.into_iter().zip([1, 2, 4, 8, 15].map(Duration::from_secs)) {
            assert!(wait <= max && wait >= max * 3 / 4, "{wait:?} of {max:?}");
        }
        let later = now + RELAPSE;
        health.eject("refused", later);
        assert!(health.ejection.unwrap().due.unwrap() <= later + FIRST_INTERVAL);
    }

    #[test]
    fn probe_intervals_of_endpoints_that_fail_together_differ() {
        let waits: std::collections::HashSet<_> = (0..50).map(|_| probe_interval(8)).collect();
        assert!(waits.len() > 10, "{waits:?}");
    }

    #[test]
    fn last_dial_is_kept_with_its_outcome() {
        let now = Instant::now();
        let mut health = Health::default();
        let outcome = |health: &Health| health.last_dial().map(|dial| dial.outcome.clone());
        assert_eq!((health.state(), outcome(&health)), (UpstreamHealth::Unknown, None));
        health.mark_healthy(None, now);
        assert_eq!((health.state(), outcome(&health)), (UpstreamHealth::Healthy, Some(DialOutcome::Connected)));
        health.eject("refused", now);
        let refused = Some(DialOutcome::Failed("refused".to_owned()));
        assert_eq!((health.state(), outcome(&health)), (UpstreamHealth::Unhealthy, refused));
        health.mark_healthy(Some("a replica"), now);
        let unsuitable = Some(DialOutcome::Unsuitable("a replica".to_owned()));
        assert_eq!((health.state(), outcome(&health)), (UpstreamHealth::Healthy, unsuitable));
    }

    #[test]
    fn local_shortage_leaves_the_health_as_it_was() {
        let now = Instant::now();
        let mut health = Health::default();
        health.record_local_failure("EMFILE");
        assert_eq!(health.state(), UpstreamHealth::Unknown);
        health.mark_healthy(None, now);
        health.record_local_failure("EMFILE");
        assert_eq!(health.state(), UpstreamHealth::Healthy);
        assert_eq!(health.last_dial().unwrap().outcome, DialOutcome::LocalShortage("EMFILE".to_owned()));
        health.eject("refused", now);
        assert!(health.start_probe(now + FIRST_INTERVAL) && health.due().is_none());
        health.record_local_probe_failure("EMFILE", now);
        assert!(health.due().is_some(), "the next probe is scheduled");
        assert_eq!(health.ejection().unwrap().1, "refused");
    }
}
