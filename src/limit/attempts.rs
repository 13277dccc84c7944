//! Slows down the attempts to authenticate of a source that fails often.
//!
//! Only failures count, so any number of clients with the right password connect at once. After 20 failures in a second, each
//! further attempt waits for its turn before it is judged, 20 turns a second. A turn is at most [`MAX_DELAY`] away: however
//! often others at the same address fail, a client with the right password is admitted.

use std::time::{Duration, Instant};

use crate::addr::ClientAddr;
use crate::limit::gcra::{Gcra, GcraLimit};
use crate::limit::table::{SourceTable, TableEntry};

/// The failures of all sources of one listener. Clients of Unix sockets are one source.
#[derive(Debug)]
pub(crate) struct AttemptLimiter {
    /// Origin of the times in `sources`.
    start: Instant,
    sources: SourceTable<Failures>,
}

/// The state of one source.
#[derive(Debug, Default)]
struct Failures(Gcra);

/// The turn of one attempt.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// How long to wait before the attempt is judged.
    pub(crate) delay: Duration,
    /// The turn is counted like a failure until the attempt succeeds.
    is_counted: bool,
}

impl TableEntry for Failures {
    fn score(&self) -> u64 {
        self.0.theoretical_arrival()
    }
}

impl Default for AttemptLimiter {
    fn default() -> Self {
        Self { start: Instant::now(), sources: SourceTable::default() }
    }
}

impl AttemptLimiter {
    /// Returns the turn of an attempt.
    pub(crate) fn turn(&self, client: ClientAddr, now: Instant) -> Turn {
        self.with(client, now, |gcra, now| match gcra.wait(LIMIT, now) {
            Duration::ZERO => Turn { delay: Duration::ZERO, is_counted: false },
            delay if delay > MAX_DELAY => Turn { delay: MAX_DELAY, is_counted: false },
            delay => {
                gcra.overdraw(LIMIT, 1, now);
                Turn { delay, is_counted: true }
            }
        })
    }

    /// Counts an attempt that has failed.
    pub(crate) fn failed(&self, client: ClientAddr, turn: Turn, now: Instant) {
        if !turn.is_counted {
            self.with(client, now, |gcra, now| {
                // A debt beyond the last turn would only be waited for by nobody.
                if gcra.wait(LIMIT, now) <= MAX_DELAY {
                    gcra.overdraw(LIMIT, 1, now);
                }
            });
        }
    }

    /// Gives the turn of an attempt that has succeeded to the next one.
    pub(crate) fn succeeded(&self, client: ClientAddr, turn: Turn, now: Instant) {
        if turn.is_counted {
            self.with(client, now, |gcra, _| gcra.give_back(LIMIT));
        }
    }

    fn with<R>(&self, client: ClientAddr, now: Instant, work: impl FnOnce(&mut Gcra, Duration) -> R) -> R {
        let now = now.saturating_duration_since(self.start);
        self.sources.of(client.source_key(), |failures| work(&mut failures.0, now)).0
    }
}

/// Failures of one source: 20 at once, then 20 a second.
const LIMIT: GcraLimit = GcraLimit { burst: 20, interval: Duration::from_millis(50) };

/// The longest wait for a turn. Shorter than half of the default of `handshake_timeout`.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    fn client(ip: &str) -> ClientAddr {
        ClientAddr::from_ip(ip.parse().unwrap())
    }

    /// The delays of attempts that arrive at once and fail.
    fn fail(limiter: &AttemptLimiter, ip: &str, count: usize, now: Instant) -> Vec<Duration> {
        let mut delays = Vec::new();
        for _ in 0..count {
            let turn = limiter.turn(client(ip), now);
            limiter.failed(client(ip), turn, now);
            delays.push(turn.delay);
        }
        delays
    }

    #[test]
    fn failures_above_the_limit_wait_for_their_turn_and_never_longer_than_the_maximum() {
        let limiter = AttemptLimiter::default();
        let delays = fail(&limiter, "10.0.0.1", 1000, limiter.start);
        assert!(delays.iter().take(20).all(Duration::is_zero));
        assert_eq!(delays[20], Duration::from_millis(50));
        assert_eq!(delays[59], Duration::from_secs(2));
        assert_eq!(delays[999], MAX_DELAY);
        assert_eq!(fail(&limiter, "10.0.0.2", 1, limiter.start), [Duration::ZERO]);
        let later = limiter.start + MAX_DELAY + Duration::from_secs(2);
        assert_eq!(fail(&limiter, "10.0.0.1", 1, later), [Duration::ZERO], "the debt is bounded");
    }

    #[test]
    fn successes_do_not_count() {
        let limiter = AttemptLimiter::default();
        let now = limiter.start;
        for _ in 0..1000 {
            let turn = limiter.turn(client("10.0.0.1"), now);
            assert_eq!(turn.delay, Duration::ZERO);
            limiter.succeeded(client("10.0.0.1"), turn, now);
        }
        fail(&limiter, "10.0.0.1", 20, now);
        for _ in 0..1000 {
            let turn = limiter.turn(client("10.0.0.1"), now);
            assert_eq!(turn.delay, Duration::from_millis(50));
            limiter.succeeded(client("10.0.0.1"), turn, now);
        }
    }
}
