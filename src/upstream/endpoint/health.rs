//! Whether a place, or a name, answers; what its last dial brought; and when one that does not answer is asked again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// Whether something answers, as far as sessions have found out.
#[derive(Debug, Default)]
pub(crate) struct Health {
    ejection: Option<Ejection>,
    recovery: Option<Recovery>,
    /// Whether it answered when it was dialled last, or before.
    has_answered: bool,
    last_dial: Option<Dial>,
}

/// Whether an upstream answers, as far as dials have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamHealth {
    /// It has not been dialled yet.
    Unknown,
    /// It answered the last dial that reached it.
    Healthy,
    /// It did not.
    Unhealthy,
}

/// One attempt to reach an upstream, by a client or a health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// When it ended.
    pub at: OffsetDateTime,
    /// What came of it.
    pub outcome: DialOutcome,
}

/// What came of an attempt to reach an upstream. The text says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialOutcome {
    /// It answered.
    Connected,
    /// It answered, and has not the role that is wanted, or is not ready.
    Unsuitable(String),
    /// It did not answer.
    Failed(String),
    /// This machine had no descriptor, memory or local port for the attempt, which tells nothing of the upstream.
    LocalShortage(String),
}

/// That something does not answer.
#[derive(Debug)]
struct Ejection {
    since: OffsetDateTime,
    words: String,
    /// How often it has failed in a row.
    failures: u32,
    /// When it may be asked again whether it is back; nothing while it is being asked.
    due: Option<Instant>,
}

/// That something answers again. If it does not for long it is left alone longer.
#[derive(Clone, Copy, Debug)]
struct Recovery {
    at: Instant,
    failures: u32,
}

impl Health {
    /// It answered; where it is not what was wanted, `unsuitable` says why. Returns whether that is news.
    pub(crate) fn mark_healthy(&mut self, unsuitable: Option<&str>, now: Instant) -> bool {
        self.has_answered = true;
        self.note(unsuitable.map_or(DialOutcome::Connected, |words| DialOutcome::Unsuitable(words.to_owned())));
        let former = self.ejection.take();
        if let Some(Ejection { failures, .. }) = &former {
            self.recovery = Some(Recovery { at: now, failures: *failures });
        }
        former.is_some()
    }

    /// A client found that it does not answer. Returns whether that is news.
    pub(crate) fn eject(&mut self, words: &str, now: Instant) -> bool {
        self.note(DialOutcome::Failed(words.to_owned()));
        if let Some(ejection) = &mut self.ejection {
            // When it is asked again is not for those to say who find it dead.
            words.clone_into(&mut ejection.words);
            return false;
        }
        let relapse = self.recovery.filter(|recovery| now.saturating_duration_since(recovery.at) < RELAPSE);
        let failures = relapse.map_or(0, |recovery| recovery.failures).saturating_add(1);
        self.ejection = Some(Ejection {
            since: OffsetDateTime::now_utc(),
            words: words.to_owned(),
            failures,
            due: Some(now + wait(failures)),
        });
        true
    }

    /// It was asked again, and still does not answer.
    pub(crate) fn record_probe_failure(&mut self, words: &str, now: Instant) {
        self.note(DialOutcome::Failed(words.to_owned()));
        if let Some(ejection) = &mut self.ejection {
            ejection.failures = ejection.failures.saturating_add(1);
            ejection.due = Some(now + wait(ejection.failures));
            words.clone_into(&mut ejection.words);
        }
    }

    /// It could not be dialled for want of something on this machine. Whether it answers is as unknown as before.
    pub(crate) fn record_local_failure(&mut self, words: &str) {
        self.note(DialOutcome::LocalShortage(words.to_owned()));
    }

    /// A health check could not dial it for want of something on this machine.
    pub(crate) fn record_local_probe_failure(&mut self, words: &str, now: Instant) {
        self.record_local_failure(words);
        if let Some(ejection) = &mut self.ejection {
            ejection.due = Some(now + wait(ejection.failures));
        }
    }

    fn note(&mut self, outcome: DialOutcome) {
        self.last_dial = Some(Dial { at: OffsetDateTime::now_utc(), outcome });
    }

    pub(crate) fn last_dial(&self) -> Option<&Dial> {
        self.last_dial.as_ref()
    }

    pub(crate) fn state(&self) -> UpstreamHealth {
        match (&self.ejection, self.has_answered) {
            (Some(_), _) => UpstreamHealth::Unhealthy,
            (None, true) => UpstreamHealth::Healthy,
            (None, false) => UpstreamHealth::Unknown,
        }
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.ejection.is_some()
    }

    /// Since when it does not answer, and in which words.
    pub(crate) fn unhealthy(&self) -> Option<(OffsetDateTime, String)> {
        self.ejection.as_ref().map(|ejection| (ejection.since, ejection.words.clone()))
    }

    /// When it is to be asked again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.ejection.as_ref()?.due
    }

    /// Whether it is to be asked again by `now`; whoever hears yes has to ask.
    pub(crate) fn take_pending(&mut self, now: Instant) -> bool {
        self.ejection.as_mut().is_some_and(|ejection| ejection.due.take_if(|due| *due <= now).is_some())
    }
}

impl UpstreamHealth {
    /// As `status` has it.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl DialOutcome {
    /// As `status` has it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Unsuitable(_) => "unsuitable",
            Self::Failed(_) => "failed",
            Self::LocalShortage(_) => "local_shortage",
        }
    }

    /// Why it was not taken.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Connected => None,
            Self::Unsuitable(words) | Self::Failed(words) | Self::LocalShortage(words) => Some(words),
        }
    }
}

/// The same less up to a quarter, so that many proxies do not come to an upstream that is back all at once.
fn wait(failures: u32) -> Duration {
    let whole = pause(failures);
    let random = u32::try_from(RandomState::new().hash_one(()) % 256).unwrap_or_default();
    whole.saturating_sub(whole / 1024 * random)
}

/// How long one is left alone that has failed so often in a row, at most.
fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(MOST_DOUBLINGS)).min(LONGEST_PAUSE)
}

/// How long one that has failed for the first time is left alone; twice as long after each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const MOST_DOUBLINGS: u32 = 8;

/// One that does not answer again so soon after it did has not come back.
const RELAPSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_left_alone_longer_each_time_but_never_for_long() {
        let mut last = Duration::ZERO;
        for failures in 1..100 {
            assert!(pause(failures) >= last && pause(failures) <= LONGEST_PAUSE, "{failures}");
            last = pause(failures);
        }
        assert_eq!((pause(1), last), (FIRST_PAUSE, LONGEST_PAUSE));
    }

    #[test]
    fn one_that_answers_and_fails_in_turns_is_left_alone_longer_each_time() {
        let now = Instant::now();
        let mut health = Health::default();
        let mut waits = vec![];
        for _ in 0..5 {
            assert!(health.eject("refused", now));
            waits.push(health.ejection.as_ref().unwrap().due.unwrap() - now);
            assert!(health.mark_healthy(None, now));
        }
        for (wait, longest) in waits.into_iter().zip([1, 2, 4, 8, 15].map(Duration::from_secs)) {
            assert!(wait <= longest && wait >= longest * 3 / 4, "{wait:?} of {longest:?}");
        }
        let later = now + RELAPSE;
        health.eject("refused", later);
        assert!(health.ejection.unwrap().due.unwrap() <= later + FIRST_PAUSE);
    }

    #[test]
    fn waits_of_several_that_fail_together_differ() {
        let waits: std::collections::HashSet<_> = (0..50).map(|_| wait(8)).collect();
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
        assert!(health.take_pending(now + FIRST_PAUSE) && health.due().is_none());
        health.record_local_probe_failure("EMFILE", now);
        assert!(health.due().is_some(), "it is asked again");
        assert_eq!(health.unhealthy().unwrap().1, "refused");
    }
}
