//! How many CancelRequests may pass. docs/CONFIGURATION.md has the numbers.
//!
//! Each costs the database a connection and a short-lived process, which its own `max_connections` does not count.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::addr::SourceKey;
use crate::limit::gcra::{Gcra, GcraLimit};
use crate::limit::table::{SourceTable, TableEntry};
use crate::outcome::{Outcome, Reason};

/// How many requests may be under way, and how fast they may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) at_once: u32,
    pub(crate) rate: GcraLimit,
}

/// For one open session. A client with a short timeout for each statement needs less.
pub(crate) const OF_SESSION: Limit =
    Limit { at_once: 4, rate: GcraLimit { burst: 20, interval: Duration::from_millis(100) } };

/// For one source, of requests that name no open session. A pool may cancel a hundred queries at once whose sessions are
/// at another replica.
pub(crate) const OF_SOURCE: Limit =
    Limit { at_once: 128, rate: GcraLimit { burst: 128, interval: Duration::from_millis(100) } };

/// For all sources together, of requests that name no open session. PostgreSQL needs a millisecond or two for each, so the
/// rate is at most a fifth of a core there.
pub(crate) const OF_LISTENER: Limit =
    Limit { at_once: 256, rate: GcraLimit { burst: 512, interval: Duration::from_millis(10) } };

/// What a limit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Session,
    Source,
    Listener,
}

impl Scope {
    fn limit(self) -> Limit {
        match self {
            Self::Session => OF_SESSION,
            Self::Source => OF_SOURCE,
            Self::Listener => OF_LISTENER,
        }
    }
}

/// A CancelRequest that must not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyCancels {
    scope: Scope,
    is_too_fast: bool,
}

impl TooManyCancels {
    pub(crate) fn at_once(scope: Scope) -> Self {
        Self { scope, is_too_fast: false }
    }

    pub(crate) fn in_a_short_time(scope: Scope) -> Self {
        Self { scope, is_too_fast: true }
    }
}

impl fmt::Display for TooManyCancels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limit { at_once, rate: GcraLimit { burst, interval } } = self.scope.limit();
        f.write_str(match self.scope {
            Scope::Session => "too many CancelRequests for one session",
            Scope::Source => "too many CancelRequests from its source that name no open session",
            Scope::Listener => "too many CancelRequests that name no open session",
        })?;
        if self.is_too_fast {
            let each_second = Duration::from_secs(1).as_millis() / interval.as_millis().max(1);
            write!(f, ": {burst} may come at once, and then {each_second} a second")
        } else {
            write!(f, ": {at_once} may be under way")
        }
    }
}

impl From<TooManyCancels> for Outcome {
    fn from(refused: TooManyCancels) -> Self {
        let reason = match refused {
            TooManyCancels { is_too_fast: true, .. } => Reason::RateLimited,
            TooManyCancels { scope: Scope::Session | Scope::Source, .. } => Reason::SourceConnectionLimit,
            TooManyCancels { scope: Scope::Listener, .. } => Reason::ConnectionLimit,
        };
        Self::new(reason, refused)
    }
}

/// Requests that name no open session.
#[derive(Debug, Default)]
pub(crate) struct UnknownKeys {
    under_way: Mutex<InFlight>,
    rates: SourceTable<SourceRate>,
}

#[derive(Debug, Default)]
struct InFlight {
    all: u32,
    /// Sources that have some, and how many. Clients of Unix sockets share one entry.
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

/// One of them, counted for as long as this lives.
#[derive(Debug)]
pub(crate) struct UnknownKeySlot {
    unnamed: Arc<UnknownKeys>,
    source: Option<SourceKey>,
}

impl UnknownKeys {
    /// Counts one more. A source above its own limits uses up nothing of the listener's.
    pub(crate) fn take(
        self: &Arc<Self>,
        source: Option<SourceKey>,
        now: Duration,
    ) -> Result<UnknownKeySlot, TooManyCancels> {
        let mut under_way = self.under_way();
        let of_source = under_way.sources.get(&source).copied().unwrap_or_default();
        if of_source >= OF_SOURCE.at_once {
            return Err(TooManyCancels::at_once(Scope::Source));
        }
        if under_way.all >= OF_LISTENER.at_once {
            return Err(TooManyCancels::at_once(Scope::Listener));
        }
        if !self.rates.of(source, |rate| rate.0.take(OF_SOURCE.rate, now)).0 {
            return Err(TooManyCancels::in_a_short_time(Scope::Source));
        }
        if !under_way.rate.take(OF_LISTENER.rate, now) {
            return Err(TooManyCancels::in_a_short_time(Scope::Listener));
        }
        under_way.all += 1;
        under_way.sources.insert(source, of_source + 1);
        Ok(UnknownKeySlot { unnamed: Arc::clone(self), source })
    }

    fn under_way(&self) -> MutexGuard<'_, InFlight> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnknownKeySlot {
    fn drop(&mut self) {
        let mut under_way = self.unnamed.under_way();
        under_way.all = under_way.all.saturating_sub(1);
        if let Entry::Occupied(mut of_source) = under_way.sources.entry(self.source) {
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

    /// How many of so many pass, each of which is done before the next comes, and why the last one did not.
    fn pass(
        unnamed: &Arc<UnknownKeys>,
        source: Option<SourceKey>,
        count: usize,
        at: Duration,
    ) -> (usize, Option<Reason>) {
        let mut reason = None;
        let passed = (0..count).filter(|_| match unnamed.take(source, at) {
            Ok(_) => true,
            Err(refused) => {
                reason = Some(Outcome::from(refused).reason);
                false
            }
        });
        (passed.count(), reason)
    }

    #[test]
    fn source_gets_its_burst_and_then_ten_a_second() {
        let unnamed = Arc::new(UnknownKeys::default());
        assert_eq!(pass(&unnamed, source(1), 100, seconds(0)), (100, None));
        assert_eq!(pass(&unnamed, source(1), 5_000, seconds(0)), (28, Some(Reason::RateLimited)));
        for second in 1..9 {
            assert_eq!(pass(&unnamed, source(1), 600, seconds(second)).0, 10);
        }
        assert_eq!(pass(&unnamed, source(2), 100, seconds(8)), (100, None));
        assert_eq!(pass(&unnamed, None, 100, seconds(8)), (100, None), "clients of a Unix socket are one source");
    }

    #[test]
    fn many_sources_share_the_rate_of_the_listener() {
        let unnamed = Arc::new(UnknownKeys::default());
        let all: usize = (0..100).map(|number| pass(&unnamed, source(number), 200, seconds(0)).0).sum();
        assert_eq!(all, 512);
        let all: usize = (0..100).map(|number| pass(&unnamed, source(number), 200, seconds(1)).0).sum();
        assert_eq!(all, 100);
    }

    #[test]
    fn requests_under_way_are_counted_until_they_are_done() {
        let unnamed = Arc::new(UnknownKeys::default());
        let take = |number: u32, at| unnamed.take(source(number), seconds(at));
        let mut under_way: Vec<_> = (0..128).map(|_| take(1, 0).unwrap()).collect();
        let reason = |refused: Result<UnknownKeySlot, TooManyCancels>| Outcome::from(refused.unwrap_err()).reason;
        // Though the rate allows more by now.
        assert_eq!(reason(take(1, 60)), Reason::SourceConnectionLimit);
        under_way.extend((0..128).map(|_| take(2, 60).unwrap()));
        assert_eq!(reason(take(3, 60)), Reason::ConnectionLimit);
        under_way.truncate(127);
        assert!(take(1, 60).is_ok() && take(3, 60).is_ok());
        under_way.clear();
        let left = unnamed.under_way();
        assert_eq!((left.all, left.sources.len()), (0, 0));
    }

    #[test]
    fn refusal_names_the_limit() {
        let words = TooManyCancels::in_a_short_time(Scope::Source).to_string();
        assert!(words.ends_with("name no open session: 128 may come at once, and then 10 a second"), "{words}");
        let words = TooManyCancels::at_once(Scope::Session).to_string();
        assert_eq!(words, "too many CancelRequests for one session: 4 may be under way");
    }
}
