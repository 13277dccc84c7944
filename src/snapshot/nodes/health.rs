//! Whether a place, or a name, answers; and when one that does not is asked again.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// Whether something answers, as far as sessions have found out.
#[derive(Debug, Default)]
pub(super) struct Health {
    ejection: Option<Ejection>,
    recovery: Option<Recovery>,
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
    /// Returns whether that is news.
    pub(super) fn answers(&mut self, now: Instant) -> bool {
        let former = self.ejection.take();
        if let Some(Ejection { failures, .. }) = &former {
            self.recovery = Some(Recovery { at: now, failures: *failures });
        }
        former.is_some()
    }

    /// A client found that it does not answer. Returns whether that is news.
    pub(super) fn eject(&mut self, words: &str, now: Instant) -> bool {
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
            due: Some(now + pause(failures)),
        });
        true
    }

    /// It was asked again, and still does not answer.
    pub(super) fn fail_again(&mut self, words: &str, now: Instant) {
        if let Some(ejection) = &mut self.ejection {
            ejection.failures = ejection.failures.saturating_add(1);
            ejection.due = Some(now + pause(ejection.failures));
            words.clone_into(&mut ejection.words);
        }
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejection.is_some()
    }

    /// Since when it does not answer, and in which words.
    pub(super) fn silent(&self) -> Option<(OffsetDateTime, String)> {
        self.ejection.as_ref().map(|ejection| (ejection.since, ejection.words.clone()))
    }

    /// When it is to be asked again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.ejection.as_ref()?.due
    }

    /// Whether it is to be asked again by `now`; whoever hears yes has to ask.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        self.ejection.as_mut().is_some_and(|ejection| ejection.due.take_if(|due| *due <= now).is_some())
    }
}

/// How long one is left alone that has failed so often in a row.
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
            assert!(health.answers(now));
        }
        assert_eq!(waits, [1, 2, 4, 8, 15].map(Duration::from_secs));
        let later = now + RELAPSE;
        health.eject("refused", later);
        assert_eq!(health.ejection.unwrap().due, Some(later + FIRST_PAUSE));
    }
}
