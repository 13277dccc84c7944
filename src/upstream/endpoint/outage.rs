//! While an upstream refuses connections: one of the clients that wait for it dials, and tells the others what it finds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::outcome::Outcome;

/// What the waiting clients of one listener share. Goes on from one generation to the next.
#[derive(Debug)]
pub struct Outage {
    /// Taken by the client that dials for all.
    dialler: Arc<Semaphore>,
    /// What the last dial failed with, and when.
    failure: Mutex<Option<(Instant, Outcome)>>,
    /// Told when a connection was accepted.
    over: Notify,
}

impl Default for Outage {
    fn default() -> Self {
        Self { dialler: Arc::new(Semaphore::new(1)), failure: Mutex::default(), over: Notify::new() }
    }
}

impl Outage {
    /// Notes that the upstream refuses connections.
    pub fn note(&self, ending: &Outcome, now: Instant) {
        *self.failure() = Some((now, ending.clone()));
    }

    /// What the upstream refuses connections with, as long as a client dials for all and found it so a moment ago. Whoever
    /// comes then has no need to find out by itself.
    pub fn known(&self, now: Instant) -> Option<Outcome> {
        if self.dialler.available_permits() > 0 {
            return None;
        }
        let failure = self.failure();
        let (at, ending) = failure.as_ref()?;
        (now.saturating_duration_since(*at) < MAX_AGE).then(|| ending.clone())
    }

    /// Notes that the upstream has accepted a connection. All that wait dial now.
    pub fn end(&self) {
        // Nearly always there is none, and then nobody waits.
        if self.failure().take().is_some() {
            self.over.notify_waiters();
        }
    }

    /// Returns when the upstream has accepted another client's connection.
    pub async fn over(&self) {
        self.over.notified().await;
    }

    /// Waits for the right to dial for all that wait, which ends with the permit.
    pub async fn dialler(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.dialler).acquire_owned().await.ok()
    }

    fn failure(&self) -> MutexGuard<'_, Option<(Instant, Outcome)>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longer than the pause between two dials.
const MAX_AGE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Reason;

    fn refused() -> Outcome {
        Outcome::new(Reason::UpstreamUnreachable, "refused")
    }

    #[tokio::test]
    async fn failure_is_known_to_others_only_while_one_dials_and_for_a_moment() {
        let (outage, now) = (Outage::default(), Instant::now());
        outage.note(&refused(), now);
        assert_eq!(outage.known(now), None, "nobody would notice that it is over");
        let dialler = outage.dialler().await.unwrap();
        assert_eq!(outage.known(now), Some(refused()));
        assert_eq!(outage.known(now + MAX_AGE), None, "the one that dials hangs");
        drop(dialler);
        assert_eq!(outage.known(now), None);
        let _dialler = outage.dialler().await.unwrap();
        outage.end();
        assert_eq!(outage.known(now), None);
    }

    #[tokio::test]
    async fn end_of_an_outage_wakes_all_that_wait() {
        let outage = Outage::default();
        outage.note(&refused(), Instant::now());
        let end = async { outage.end() };
        tokio::join!(outage.over(), outage.over(), end);
    }
}
