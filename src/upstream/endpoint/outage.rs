//! The state that waiting clients share while an upstream refuses connections. Only one of them dials.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::outcome::Outcome;

/// The shared state of the waiting clients of one listener. It outlives reloads.
#[derive(Debug)]
pub struct Outage {
    /// One permit, for the client that dials.
    dial_permit: Arc<Semaphore>,
    /// The last failure and its time.
    failure: Mutex<Option<(Instant, Outcome)>>,
    /// Notified when the upstream has accepted a connection.
    over: Notify,
}

impl Default for Outage {
    fn default() -> Self {
        Self { dial_permit: Arc::new(Semaphore::new(1)), failure: Mutex::default(), over: Notify::new() }
    }
}

impl Outage {
    /// Records that the upstream refuses connections.
    pub fn note(&self, outcome: &Outcome, now: Instant) {
        *self.failure() = Some((now, outcome.clone()));
    }

    /// The last failure, if another client dials now and the failure is recent. A new client then need not dial.
    pub fn known(&self, now: Instant) -> Option<Outcome> {
        if self.dial_permit.available_permits() > 0 {
            return None;
        }
        let failure = self.failure();
        let (at, outcome) = failure.as_ref()?;
        (now.saturating_duration_since(*at) < MAX_AGE).then(|| outcome.clone())
    }

    /// Records that the upstream has accepted a connection, and wakes all waiting clients.
    pub fn end(&self) {
        // Without a recorded failure, no client waits. This is the usual case.
        if self.failure().take().is_some() {
            self.over.notify_waiters();
        }
    }

    /// Returns when the upstream has accepted another client's connection.
    pub async fn over(&self) {
        self.over.notified().await;
    }

    /// Waits until this client is the one that dials.
    pub async fn acquire_dial_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.dial_permit).acquire_owned().await.ok()
    }

    fn failure(&self) -> MutexGuard<'_, Option<(Instant, Outcome)>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longer than the pause between two dials of the waiting client.
const MAX_AGE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Reason;

    fn refused() -> Outcome {
        Outcome::new(Reason::UpstreamUnreachable, "refused")
    }

    #[tokio::test]
    async fn failure_is_known_while_another_client_dials_and_for_at_most_max_age() {
        let (outage, now) = (Outage::default(), Instant::now());
        outage.note(&refused(), now);
        assert_eq!(outage.known(now), None, "no client would notice the end of the outage");
        let permit = outage.acquire_dial_permit().await.unwrap();
        assert_eq!(outage.known(now), Some(refused()));
        assert_eq!(outage.known(now + MAX_AGE), None, "the dial hangs");
        drop(permit);
        assert_eq!(outage.known(now), None);
        let _permit = outage.acquire_dial_permit().await.unwrap();
        outage.end();
        assert_eq!(outage.known(now), None);
    }

    #[tokio::test]
    async fn end_of_an_outage_wakes_all_waiting_clients() {
        let outage = Outage::default();
        outage.note(&refused(), Instant::now());
        let end = async { outage.end() };
        tokio::join!(outage.over(), outage.over(), end);
    }
}
