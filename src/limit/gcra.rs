//! A token bucket, in eight bytes.

use std::time::Duration;

use crate::limit::rate::Rate;

/// How many at once, and how soon again one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GcraLimit {
    /// How many may come at once, when none came for a while.
    pub burst: u32,
    /// After how long there is room for one more.
    pub interval: Duration,
}

impl From<Rate> for GcraLimit {
    fn from(rate: Rate) -> Self {
        Self { burst: rate.burst(), interval: rate.interval() }
    }
}

/// What is left of an [`GcraLimit`]. Time is counted from any moment, always the same one.
///
/// Kept is not how many are left but when the bucket will be full again, which need not be brought up to date as time goes
/// by. The one that never was used is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Gcra {
    theoretical_arrival: u64,
}

impl Gcra {
    /// When it will be full again, in nanoseconds.
    pub(crate) fn theoretical_arrival(self) -> u64 {
        self.theoretical_arrival
    }

    /// Takes one, if one is left.
    pub(crate) fn take(&mut self, allowance: GcraLimit, now: Duration) -> bool {
        let now = nanoseconds(now);
        let interval = nanoseconds(allowance.interval);
        let theoretical_arrival = self.theoretical_arrival.max(now).saturating_add(interval);
        let taken = theoretical_arrival - now <= interval.saturating_mul(allowance.burst.into());
        if taken {
            self.theoretical_arrival = theoretical_arrival;
        }
        taken
    }

    /// Takes `more`, even if fewer are left. The bucket then gives nothing until the debt is paid.
    pub(crate) fn overdraw(&mut self, allowance: GcraLimit, more: u32, now: Duration) {
        let used = nanoseconds(allowance.interval).saturating_mul(more.into());
        self.theoretical_arrival = self.theoretical_arrival.max(nanoseconds(now)).saturating_add(used);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bucket as one would explain it: tokens that drip in one by one, counted in parts of a token.
    struct Model {
        allowance: GcraLimit,
        /// In units of which `interval` make one.
        left: u128,
        at: u128,
    }

    impl Model {
        fn take(&mut self, now: Duration) -> bool {
            let one = self.allowance.interval.as_nanos();
            self.left = (self.left + now.as_nanos() - self.at).min(one * u128::from(self.allowance.burst));
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
        fn it_does_what_the_model_does(
            burst in 1_u32..50,
            interval in 1_u64..2_000_000_000,
            pauses in prop::collection::vec(prop_oneof![Just(0), 0_u64..3_000_000, 0_u64..5_000_000_000], 1..400),
        ) {
            let allowance = GcraLimit { burst, interval: Duration::from_nanos(interval) };
            let full = u128::from(interval) * u128::from(burst);
            let mut model = Model { allowance, left: full, at: 0 };
            let mut gcra = Gcra::default();
            let mut now = Duration::ZERO;
            for pause in pauses {
                now += Duration::from_nanos(pause);
                prop_assert_eq!(gcra.take(allowance, now), model.take(now));
            }
        }

        #[test]
        fn in_no_stretch_of_time_it_gives_more_than_the_burst_and_what_drips_in(
            burst in 1_u32..20,
            interval in 1_u64..1000,
            pauses in prop::collection::vec(0_u64..2000, 1..300),
        ) {
            let allowance = GcraLimit { burst, interval: Duration::from_nanos(interval) };
            let mut gcra = Gcra::default();
            let mut now = 0;
            let mut taken = Vec::new();
            for pause in pauses {
                now += pause;
                if gcra.take(allowance, Duration::from_nanos(now)) {
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
    fn overdrawn_bucket_gives_nothing_until_the_debt_is_paid() {
        let allowance = GcraLimit { burst: 3, interval: Duration::from_secs(1) };
        let mut gcra = Gcra::default();
        let at = Duration::from_secs;
        assert!(gcra.take(allowance, at(0)));
        gcra.overdraw(allowance, 5, at(0));
        let taken = [0, 3, 4, 4].map(|seconds| gcra.take(allowance, at(seconds)));
        assert_eq!(taken, [false, false, true, false]);
        gcra.overdraw(allowance, u32::MAX, at(u64::MAX));
        assert!(!gcra.take(allowance, at(5)));
    }

    #[test]
    fn a_rate_gives_its_burst_and_then_one_at_a_time() {
        let allowance = GcraLimit::from("3/s".parse::<Rate>().unwrap());
        let mut gcra = Gcra::default();
        let take = |milliseconds| gcra.take(allowance, Duration::from_millis(milliseconds));
        let taken = [0, 0, 0, 0, 333, 334, 667, 667, 5000].map(take);
        assert_eq!(taken, [true, true, true, false, false, true, true, false, true]);
    }
}
