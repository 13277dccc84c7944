//! When the next request may be sent: a small part of the token's rate limit, which other programs use too.

use std::time::Duration;

use hyper::header::HeaderMap;
use tokio::time::Instant;

use crate::agent::digitalocean::answer::{Retry, number};
use crate::jitter;

/// The requests that this resolver may send (the generic cell rate algorithm). They cost time, which passes.
#[derive(Debug)]
pub(super) struct Budget {
    /// `ratelimit-limit`: requests an hour.
    limit: u64,
    /// `ratelimit-remaining`
    remaining: Option<u64>,
    /// Until when the requests so far use their share of the limit.
    used_until: Instant,
    /// All requests so far.
    requests: u64,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { limit: DEFAULT_LIMIT, remaining: None, used_until: now, requests: 0 }
    }

    /// All requests so far.
    pub(super) const fn requests(&self) -> u64 {
        self.requests
    }

    /// Counts a request.
    pub(super) fn spend(&mut self, now: Instant) {
        self.requests = self.requests.saturating_add(1);
        self.used_until = self.used_until.max(now) + interval(self.limit, self.remaining);
    }

    /// Takes over what the API reports of the limit.
    pub(super) fn note(&mut self, headers: &HeaderMap) {
        self.limit = number(headers, "ratelimit-limit").filter(|limit| *limit > 0).unwrap_or(self.limit);
        self.remaining = number(headers, "ratelimit-remaining").or(self.remaining);
    }

    /// The wait before this many requests.
    pub(super) fn wait(&self, requests: u64, now: Instant) -> Duration {
        let spare = (self.limit * BURST_PERCENT / 100).saturating_sub(requests);
        let spare = interval(self.limit, self.remaining).saturating_mul(u32::try_from(spare).unwrap_or(u32::MAX));
        self.used_until.saturating_duration_since(now).saturating_sub(spare)
    }
}

/// The time that a request costs. It grows when others use the limit, too.
fn interval(limit: u64, remaining: Option<u64>) -> Duration {
    let hourly = (limit * STEADY_PERCENT / 100).max(1);
    let interval = Duration::from_secs(3600).div_f64(f64::from(u32::try_from(hourly).unwrap_or(u32::MAX)));
    // Below a half: in proportion to it, at most MAX_SLOWDOWN.
    let slowdown = remaining.map_or(1, |remaining| limit.div_ceil(remaining.saturating_mul(2).max(1)));
    interval.saturating_mul(u32::try_from(slowdown.clamp(1, MAX_SLOWDOWN)).unwrap_or(1))
}

/// The wait before a regular poll: the refresh time less up to 10 %, or longer if the budget demands it.
pub(super) fn refresh_wait(refresh: Duration, budget: Duration, random: u64) -> Duration {
    jitter::less(refresh, JITTER_PERCENT, random).max(budget)
}

/// The wait after a number of failures in a row. Only `Retry-After` makes it longer than four refresh times or a minute.
pub(super) fn retry_wait(refresh: Duration, failures: u32, retry: Retry, budget: Duration, random: u64) -> Duration {
    if let Some(after) = retry.after {
        let after = after.clamp(MIN_RETRY, MAX_RETRY_AFTER);
        // Later by the random part, never earlier.
        return after + (after - jitter::less(after, JITTER_PERCENT, random));
    }
    let most = refresh.saturating_mul(4).min(MAX_RETRY);
    let doubled = (most / 8).saturating_mul(1 << failures.saturating_sub(1).min(3));
    let wait = retry.reset.unwrap_or(doubled).max(budget).max(MIN_RETRY).min(most);
    jitter::less(wait, JITTER_PERCENT, random)
}

/// The largest random part of a wait.
const JITTER_PERCENT: u32 = 10;

/// The documented limit of a token: requests an hour.
const DEFAULT_LIMIT: u64 = 5_000;

/// The shares of the limit that this resolver uses: steadily, and once on top. Together they are 20 %.
const STEADY_PERCENT: u64 = 18;
const BURST_PERCENT: u64 = 2;

const MAX_SLOWDOWN: u64 = 10;

const MIN_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);

/// The rate limit is counted over an hour.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(limit: &'static str, remaining: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", HeaderValue::from_static(limit));
        headers.insert("ratelimit-remaining", HeaderValue::from_static(remaining));
        headers
    }

    #[test]
    fn poll_every_minute_never_waits_for_the_budget() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for minute in 0..600 {
            let now = start + Duration::from_secs(60 * minute);
            assert_eq!(budget.wait(2, now), Duration::ZERO);
            (0..2).for_each(|_| budget.spend(now));
        }
    }

    #[test]
    fn interval_grows_when_little_of_the_limit_remains() {
        let seconds = |remaining| interval(5_000, remaining).as_secs();
        assert_eq!(
            [None, Some(4_999), Some(2_500), Some(1_250), Some(500), Some(0)].map(seconds),
            [4, 4, 4, 8, 20, 40]
        );
        assert_eq!(interval(1, Some(1)).as_secs(), 3_600);
    }

    #[test]
    fn invalid_headers_change_nothing() {
        let mut budget = Budget::new(Instant::now());
        budget.note(&headers("0", "x"));
        assert_eq!((budget.limit, budget.remaining), (DEFAULT_LIMIT, None));
        budget.note(&headers("600", "7"));
        budget.note(&HeaderMap::new());
        assert_eq!((budget.limit, budget.remaining), (600, Some(7)));
    }

    #[test]
    fn failed_poll_is_retried_soon_and_then_more_slowly() {
        let wait = |refresh, failures| {
            retry_wait(Duration::from_secs(refresh), failures, Retry::default(), Duration::ZERO, 0).as_millis()
        };
        assert_eq!(
            [1, 2, 3, 4, 5, u32::MAX].map(|failures| wait(60, failures)),
            [7_500, 15_000, 30_000, 60_000, 60_000, 60_000]
        );
        assert_eq!([1, 2, 3, 4, 9].map(|failures| wait(1, failures)), [1_000, 1_000, 2_000, 4_000, 4_000]);
    }

    #[test]
    fn service_decides_when_it_is_asked_again() {
        let seconds = |after: Option<u64>, reset: Option<u64>, random| {
            let retry = Retry { after: after.map(Duration::from_secs), reset: reset.map(Duration::from_secs) };
            retry_wait(Duration::from_secs(10), 1, retry, Duration::ZERO, random).as_secs()
        };
        assert_eq!(seconds(Some(120), Some(5), 0), 120);
        assert_eq!(seconds(Some(100), None, 999), 109, "never earlier");
        assert_eq!(seconds(Some(u64::MAX), None, 0), 3_600);
        assert_eq!(seconds(Some(0), None, 0), 1);
        assert_eq!(seconds(None, Some(20), 0), 20);
        assert_eq!(seconds(None, Some(3_000), 0), 40, "at the latest after four refresh times");
    }

    proptest! {
        #[test]
        fn at_most_a_fifth_of_the_limit_is_used_in_any_hour(
            limit in 100_u64..20_000, cost in 1_u64..20, refresh in 1_u64..120, remaining in proptest::option::of(0_u64..5_000),
        ) {
            let start = Instant::now();
            let mut budget = Budget { limit, remaining, ..Budget::new(start) };
            let (mut now, mut requests) = (start, 0);
            loop {
                now += refresh_wait(Duration::from_secs(refresh), budget.wait(cost, now), 0);
                if now - start > Duration::from_secs(3600) {
                    break;
                }
                (0..cost).for_each(|_| budget.spend(now));
                requests += cost;
            }
            prop_assert!(requests <= limit / 5 + cost, "{requests} of {limit}");
        }

        #[test]
        fn retry_without_a_wish_of_the_service_comes_in_time(
            refresh in 1_000_u64..1_000_000, failures: u32, budget in 0_u64..10_000, reset in proptest::option::of(any::<u64>()), random: u64,
        ) {
            let refresh = Duration::from_millis(refresh);
            let retry = Retry { after: None, reset: reset.map(Duration::from_secs) };
            let wait = retry_wait(refresh, failures, retry, Duration::from_secs(budget), random);
            prop_assert!(wait <= (refresh * 4).min(MAX_RETRY) && wait >= Duration::from_millis(900), "{wait:?}");
        }
    }
}
