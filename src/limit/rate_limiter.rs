//! How fast the clients of one source may come (`connection_rate_per_source`).
//!
//! A connection above the rate is told so in its own protocol, which costs a handshake. So as many again are told; what comes
//! beyond those is closed unheard. The two are counted apart: who is turned away does not lose the connections it may have.

use std::fmt;
use std::time::{Duration, Instant};

use crate::addr::ClientAddr;
use crate::limit::gcra::{Gcra, GcraLimit};
use crate::limit::rate::Rate;
use crate::limit::table::{SourceTable, TableEntry};
use crate::outcome::{Outcome, Reason};

/// Whether a client comes slowly enough to be heard. One that does not even come slowly enough to be told gets none of these.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateDecision {
    /// It may come in.
    Free,
    /// It is to be told that its source connects too often.
    Refused(RateExceeded),
}

/// A source connects more often than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateExceeded {
    rate: Rate,
}

impl fmt::Display for RateExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its source connects more often than {} (connection_rate_per_source)", self.rate)
    }
}

impl From<RateExceeded> for Outcome {
    fn from(rate_exceeded: RateExceeded) -> Self {
        Self::new(Reason::RateLimited, rate_exceeded)
    }
}

/// Keeps the pace of every source of one listener. Goes on from one generation to the next while the rate is the same.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    rate: Rate,
    /// The moment its time is counted from.
    since: Instant,
    sources: SourceTable<Buckets>,
}

/// What one source has left.
#[derive(Debug, Default)]
struct Buckets {
    free: Gcra,
    told: Gcra,
}

impl TableEntry for Buckets {
    fn score(&self) -> u64 {
        self.free.theoretical_arrival()
    }
}

impl RateLimiter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, since: Instant::now(), sources: SourceTable::default() }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// Counts a connection. Clients of a Unix socket have no source, and come as they like.
    pub(crate) fn ask(&self, client: ClientAddr, now: Instant) -> Result<RateDecision, RateExceeded> {
        let Some(source) = client.source_key() else { return Ok(RateDecision::Free) };
        let now = now.saturating_duration_since(self.since);
        let (pace, _) = self.sources.of(Some(source), |buckets| self.take(buckets, now));
        pace
    }

    fn take(&self, buckets: &mut Buckets, now: Duration) -> Result<RateDecision, RateExceeded> {
        let allowance = GcraLimit::from(self.rate);
        let rate_exceeded = RateExceeded { rate: self.rate };
        if buckets.free.take(allowance, now) {
            Ok(RateDecision::Free)
        } else if buckets.told.take(allowance, now) {
            Ok(RateDecision::Refused(rate_exceeded))
        } else {
            Err(rate_exceeded)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(ip: &str) -> ClientAddr {
        ClientAddr::from_ip(ip.parse().unwrap())
    }

    fn rate_limiter(rate: &str) -> RateLimiter {
        RateLimiter::new(rate.parse().unwrap())
    }

    /// How many of so many connections at one moment are free, told and cut.
    fn crowd(rate_limiter: &RateLimiter, ip: &str, count: usize, after: Duration) -> [usize; 3] {
        let mut outcomes = [0; 3];
        for _ in 0..count {
            match rate_limiter.ask(client(ip), rate_limiter.since + after) {
                Ok(RateDecision::Free) => outcomes[0] += 1,
                Ok(RateDecision::Refused(_)) => outcomes[1] += 1,
                Err(_) => outcomes[2] += 1,
            }
        }
        outcomes
    }

    #[test]
    fn as_many_are_told_as_are_let_in_and_the_rest_is_cut() {
        let rate_limiter = rate_limiter("10/s");
        assert_eq!(crowd(&rate_limiter, "10.0.0.1", 100, Duration::ZERO), [10, 10, 80]);
        assert_eq!(crowd(&rate_limiter, "10.0.0.2", 5, Duration::ZERO), [5, 0, 0]);
    }

    #[test]
    fn who_never_stops_still_gets_what_the_rate_allows() {
        let rate_limiter = rate_limiter("10/s");
        crowd(&rate_limiter, "10.0.0.1", 100, Duration::ZERO);
        for second in 1..10 {
            assert_eq!(crowd(&rate_limiter, "10.0.0.1", 1000, Duration::from_secs(second)), [10, 10, 980]);
        }
    }

    #[test]
    fn all_of_an_ipv6_64_has_one_pace_and_a_unix_socket_has_none() {
        let rate_limiter = rate_limiter("4/m");
        let of = |ip| crowd(&rate_limiter, ip, 3, Duration::ZERO);
        assert_eq!([of("2001:db8::1"), of("2001:db8::2"), of("2001:db8:0:1::1")], [[3, 0, 0], [1, 2, 0], [3, 0, 0]]);
        assert!((0..100).all(|_| rate_limiter.ask(ClientAddr::UNIX, rate_limiter.since) == Ok(RateDecision::Free)));
    }

    #[test]
    fn a_whole_slash_eight_does_not_make_a_busy_source_be_forgotten() {
        let rate_limiter = rate_limiter("10/h");
        crowd(&rate_limiter, "192.0.2.1", 20, Duration::ZERO);
        for number in (0x0a00_0000_u32..0x0b00_0000).step_by(64) {
            let untrusted = ClientAddr::from_ip(std::net::Ipv4Addr::from(number).into());
            assert_eq!(rate_limiter.ask(untrusted, rate_limiter.since), Ok(RateDecision::Free));
        }
        assert_eq!(crowd(&rate_limiter, "192.0.2.1", 1, Duration::ZERO), [0, 0, 1]);
    }
}
