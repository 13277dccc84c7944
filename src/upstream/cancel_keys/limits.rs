//! The limits for CancelRequests. docs/CONFIGURATION.md has the numbers.
//!
//! Each request costs the database a connection and a short-lived process, which its `max_connections` does not count.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::addr::SourceKey;
use crate::limit::gcra::{Gcra, GcraLimit};
use crate::limit::table::{SourceTable, TableEntry};
use crate::outcome::{Outcome, Reason};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) max_in_flight: u32,
    pub(crate) rate: GcraLimit,
}

/// For one open session. A client with a short statement timeout needs less.
pub(crate) const SESSION_LIMIT: Limit =
    Limit { max_in_flight: 4, rate: GcraLimit { burst: 20, interval: Duration::from_millis(100) } };

/// For the requests of one source with unknown keys. A pool may cancel a hundred queries at once whose sessions belong to
/// another replica of Portcullis.
pub(crate) const SOURCE_LIMIT: Limit =
    Limit { max_in_flight: 128, rate: GcraLimit { burst: 128, interval: Duration::from_millis(100) } };

/// For the requests of all sources with unknown keys. PostgreSQL needs 1 to 2 ms for each, so the rate costs it at most a
/// fifth of a core.
pub(crate) const LISTENER_LIMIT: Limit =
    Limit { max_in_flight: 256, rate: GcraLimit { burst: 512, interval: Duration::from_millis(10) } };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Session,
    Source,
    Listener,
}

impl Scope {
    fn limit(self) -> Limit {
        match self {
            Self::Session => SESSION_LIMIT,
            Self::Source => SOURCE_LIMIT,
            Self::Listener => LISTENER_LIMIT,
        }
    }
}

/// A CancelRequest that exceeds a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyCancels {
    scope: Scope,
    is_rate: bool,
}

impl TooManyCancels {
    pub(crate) fn in_flight(scope: Scope) -> Self {
        Self { scope, is_rate: false }
    }

    pub(crate) fn rate(scope: Scope) -> Self {
        Self { scope, is_rate: true }
    }
}

impl fmt::Display for TooManyCancels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limit { max_in_flight, rate: GcraLimit { burst, interval } } = self.scope.limit();
        f.write_str(match self.scope {
            Scope::Session => "too many CancelRequests for one session",
            Scope::Source => "too many CancelRequests with unknown keys from this source",
            Scope::Listener => "too many CancelRequests with unknown keys",
        })?;
        if self.is_rate {
            let per_second = Duration::from_secs(1).as_millis() / interval.as_millis().max(1);
            write!(f, " (limit {per_second} per second, burst {burst})")
        } else {
            write!(f, " (limit {max_in_flight} in flight)")
        }
    }
}

impl From<TooManyCancels> for Outcome {
    fn from(refused: TooManyCancels) -> Self {
        let reason = match refused {
            TooManyCancels { is_rate: true, .. } => Reason::RateLimited,
            TooManyCancels { scope: Scope::Session | Scope::Source, .. } => Reason::SourceConnectionLimit,
            TooManyCancels { scope: Scope::Listener, .. } => Reason::ConnectionLimit,
        };
        Self::new(reason, refused)
    }
}

/// Counts the requests with unknown keys.
#[derive(Debug, Default)]
pub(crate) struct UnknownKeys {
    in_flight: Mutex<InFlight>,
    rates: SourceTable<SourceRate>,
}

#[derive(Debug, Default)]
struct InFlight {
    all: u32,
    /// By source. Clients of Unix sockets share one entry.
    sources: HashMap<Option<SourceKey>, u32>,
    rate: Gcra,
}

#[derive(Debug, Default)]
struct SourceRate(Gcra);

impl TableEntry for SourceRate {
    fn score(&self) -> u64 {
        self.0.theoretical_arrival()
    }
}

/// Counts one request as in flight until it is dropped.
#[derive(Debug)]
pub(crate) struct UnknownKeySlot {
    keys: Arc<UnknownKeys>,
    source: Option<SourceKey>,
}

impl UnknownKeys {
    /// Counts one request. A request above a limit of its source does not count against the limits of the listener.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        source: Option<SourceKey>,
        now: Duration,
    ) -> Result<UnknownKeySlot, TooManyCancels> {
        let mut in_flight = self.in_flight();
        let of_source = in_flight.sources.get(&source).copied().unwrap_or_default();
        if of_source >= SOURCE_LIMIT.max_in_flight {
            return Err(TooManyCancels::in_flight(Scope::Source));
        }
        if in_flight.all >= LISTENER_LIMIT.max_in_flight {
            return Err(TooManyCancels::in_flight(Scope::Listener));
        }
        if !self.rates.of(source, |rate| rate.0.take(SOURCE_LIMIT.rate, now)).0 {
            return Err(TooManyCancels::rate(Scope::Source));
        }
        if !in_flight.rate.take(LISTENER_LIMIT.rate, now) {
            return Err(TooManyCancels::rate(Scope::Listener));
        }
        in_flight.all += 1;
        in_flight.sources.insert(source, of_source + 1);
        Ok(UnknownKeySlot { keys: Arc::clone(self), source })
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnknownKeySlot {
    fn drop(&mut self) {
        let mut in_flight = self.keys.in_flight();
        in_flight.all = in_flight.all.saturating_sub(1);
        if let Entry::Occupied(mut of_source) = in_flight.sources.entry(self.source) {
            *of_source.get_mut() = of_source.get().saturating_sub(1);
            if *of_source.get() == 0 {
                of_source.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn source(number: u32) -> Option<SourceKey> {
        Some(SourceKey::V4(Ipv4Addr::from(number)))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Sends `count` requests one after the other. Returns how many were admitted, and the reason of the last refusal.
    fn send(keys: &Arc<UnknownKeys>, source: Option<SourceKey>, count: usize, at: Duration) -> (usize, Option<Reason>) {
        let mut reason = None;
        let admitted = (0..count).filter(|_| match keys.acquire(source, at) {
            Ok(_) => true,
            Err(refused) => {
                reason = Some(Outcome::from(refused).reason);
                false
            }
        });
        (admitted.count(), reason)
    }

    #[test]
    fn source_is_limited_to_its_burst_and_then_ten_per_second() {
        let keys = Arc::new(UnknownKeys::default());
        assert_eq!(send(&keys, source(1), 100, seconds(0)), (100, None));
        assert_eq!(send(&keys, source(1), 5_000, seconds(0)), (28, Some(Reason::RateLimited)));
        for second in 1..9 {
            assert_eq!(send(&keys, source(1), 600, seconds(second)).0, 10);
        }
        assert_eq!(send(&keys, source(2), 100, seconds(8)), (100, None));
        assert_eq!(send(&keys, None, 100, seconds(8)), (100, None), "clients of a Unix socket are one source");
    }

    #[test]
    fn requests_of_many_sources_are_limited_to_the_rate_of_the_listener() {
        let keys = Arc::new(UnknownKeys::default());
        let all: usize = (0..100).map(|number| send(&keys, source(number), 200, seconds(0)).0).sum();
        assert_eq!(all, 512);
        let all: usize = (0..100).map(|number| send(&keys, source(number), 200, seconds(1)).0).sum();
        assert_eq!(all, 100);
    }

    #[test]
    fn requests_in_flight_are_counted_until_they_end() {
        let keys = Arc::new(UnknownKeys::default());
        let acquire = |number: u32, at| keys.acquire(source(number), seconds(at));
        let mut in_flight: Vec<_> = (0..128).map(|_| acquire(1, 0).unwrap()).collect();
        let reason = |refused: Result<UnknownKeySlot, TooManyCancels>| Outcome::from(refused.unwrap_err()).reason;
        // The rate would allow more by now.
        assert_eq!(reason(acquire(1, 60)), Reason::SourceConnectionLimit);
        in_flight.extend((0..128).map(|_| acquire(2, 60).unwrap()));
        assert_eq!(reason(acquire(3, 60)), Reason::ConnectionLimit);
        in_flight.truncate(127);
        assert!(acquire(1, 60).is_ok() && acquire(3, 60).is_ok());
        in_flight.clear();
        let left = keys.in_flight();
        assert_eq!((left.all, left.sources.len()), (0, 0));
    }

    #[test]
    fn error_names_the_limit() {
        let error = TooManyCancels::rate(Scope::Source).to_string();
        assert_eq!(
            error,
            "too many CancelRequests with unknown keys from this source (limit 10 per second, burst 128)"
        );
        let error = TooManyCancels::in_flight(Scope::Session).to_string();
        assert_eq!(error, "too many CancelRequests for one session (limit 4 in flight)");
    }
}
