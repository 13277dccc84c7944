//! A rate limit as GCRA (generic cell rate algorithm): a token bucket in eight bytes.

use std::time::Duration;

use crate::limit::rate::Rate;

/// Burst and interval of a rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GcraLimit {
    /// Maximum number of events at once after a pause.
    pub burst: u32,
    /// Time until one more event is allowed.
    pub interval: Duration,
}

impl From<Rate> for GcraLimit {
    fn from(rate: Rate) -> Self {
        Self { burst: rate.burst(), interval: rate.interval() }
    }
}

/// The state of one [`GcraLimit`]. Times are measured from an arbitrary fixed instant.
///
/// Stores the time at which the bucket is full again, which needs no update as time passes. The default is a full bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Gcra {
    /// In nanoseconds.
    theoretical_arrival: u64,
}

impl Gcra {
    /// The time at which the bucket is full again, in nanoseconds.
    pub(crate) fn theoretical_arrival(self) -> u64 {
        self.theoretical_arrival
    }

    /// Takes one token if one is left. Returns whether it did.
    pub(crate) fn take(&mut self, limit: GcraLimit, now: Duration) -> bool {
        let now = nanoseconds(now);
        let interval = nanoseconds(limit.interval);
        let theoretical_arrival = self.theoretical_arrival.max(now).saturating_add(interval);
        let taken = theoretical_arrival - now <= interval.saturating_mul(limit.burst.into());
        if taken {
            self.theoretical_arrival = theoretical_arrival;
        }
        taken
    }

    /// Time until [`Self::take`] succeeds; zero if it would now.
    pub(crate) fn wait(self, limit: GcraLimit, now: Duration) -> Duration {
        let interval = nanoseconds(limit.interval);
        // With `take`: the new arrival, less what the bucket holds.
        let theoretical_arrival = self.theoretical_arrival.max(nanoseconds(now)).saturating_add(interval);
        let allowed_from = theoretical_arrival.saturating_sub(interval.saturating_mul(limit.burst.into()));
        Duration::from_nanos(allowed_from.saturating_sub(nanoseconds(now)))
    }

    /// Takes `more` tokens even if fewer are left. The bucket then grants none until the debt is repaid.
    pub(crate) fn overdraw(&mut self, limit: GcraLimit, more: u32, now: Duration) {
        let used = nanoseconds(limit.interval).saturating_mul(more.into());
        self.theoretical_arrival = self.theoretical_arrival.max(nanoseconds(now)).saturating_add(used);
    }

    /// Returns one token.
    pub(crate) fn give_back(&mut self, limit: GcraLimit) {
        self.theoretical_arrival = self.theoretical_arrival.saturating_sub(nanoseconds(limit.interval));
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A token bucket with fractional tokens.
    struct Model {
        limit: GcraLimit,
        /// In fractions of a token: `interval` nanoseconds make one.
        left: u128,
        at: u128,
    }

    impl Model {
        fn take(&mut self, now: Duration) -> bool {
            let one = self.limit.interval.as_nanos();
            self.left = (self.left + now.as_nanos() - self.at).min(one * u128::from(self.limit.burst));
            self.at = now.as_nanos();
            let enough = self.left >= one;
            if enough {
                self.left -= one;
            }
            enough
        }
    }

    proptest! {
        #[test]
        fn gcra_agrees_with_a_token_bucket(
            burst in 1_u32..50,
            interval in 1_u64..2_000_000_000,
            pauses in prop::collection::vec(prop_oneof![Just(0), 0_u64..3_000_000, 0_u64..5_000_000_000], 1..400),
        ) {
            let limit = GcraLimit { burst, interval: Duration::from_nanos(interval) };
            let full = u128::from(interval) * u128::from(burst);
            let mut model = Model { limit, left: full, at: 0 };
            let mut gcra = Gcra::default();
            let mut now = Duration::ZERO;
            for pause in pauses {
                now += Duration::from_nanos(pause);
                prop_assert_eq!(gcra.take(limit, now), model.take(now));
            }
        }

        #[test]
        fn token_is_granted_exactly_after_the_wait(
            burst in 1_u32..20,
            interval in 1_u64..1000,
            pauses in prop::collection::vec(0_u64..1000, 1..100),
        ) {
            let limit = GcraLimit { burst, interval: Duration::from_nanos(interval) };
            let mut gcra = Gcra::default();
            let mut now = Duration::ZERO;
            for pause in pauses {
                now += Duration::from_nanos(pause);
                let wait = gcra.wait(limit, now);
                let taken = |after| Gcra::take(&mut gcra.clone(), limit, after);
                prop_assert!(taken(now + wait));
                prop_assert!(wait.is_zero() || !taken(now + wait - Duration::from_nanos(1)));
                gcra.take(limit, now);
            }
        }

        #[test]
        fn gcra_never_exceeds_burst_plus_rate_in_any_interval(
            burst in 1_u32..20,
            interval in 1_u64..1000,
            pauses in prop::collection::vec(0_u64..2000, 1..300),
        ) {
            let limit = GcraLimit { burst, interval: Duration::from_nanos(interval) };
            let mut gcra = Gcra::default();
            let mut now = 0;
            let mut taken = Vec::new();
            for pause in pauses {
                now += pause;
                if gcra.take(limit, Duration::from_nanos(now)) {
                    taken.push(now);
                }
            }
            for (first, from) in taken.iter().enumerate() {
                for (last, to) in taken.iter().enumerate().skip(first) {
                    let most = u64::from(burst) + (to - from) / interval;
                    prop_assert!(u64::try_from(last - first).unwrap() < most);
                }
            }
        }
    }

    #[test]
    fn overdrawn_bucket_grants_nothing_until_the_debt_is_repaid() {
        let limit = GcraLimit { burst: 3, interval: Duration::from_secs(1) };
        let mut gcra = Gcra::default();
        let at = Duration::from_secs;
        assert!(gcra.take(limit, at(0)));
        gcra.overdraw(limit, 5, at(0));
        let taken = [0, 3, 4, 4].map(|seconds| gcra.take(limit, at(seconds)));
        assert_eq!(taken, [false, false, true, false]);
        gcra.overdraw(limit, u32::MAX, at(u64::MAX));
        assert!(!gcra.take(limit, at(5)));
    }

    #[test]
    fn rate_grants_its_burst_and_then_one_per_interval() {
        let limit = GcraLimit::from("3/s".parse::<Rate>().unwrap());
        let mut gcra = Gcra::default();
        let take = |milliseconds| gcra.take(limit, Duration::from_millis(milliseconds));
        let taken = [0, 0, 0, 0, 333, 334, 667, 667, 5000].map(take);
        assert_eq!(taken, [true, true, true, false, false, true, true, false, true]);
    }
}
