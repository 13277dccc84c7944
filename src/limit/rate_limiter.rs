//! Limits the rate of new connections from each source (`connection_rate_per_source`).
//!
//! A connection above the rate is rejected with an error in its protocol, which costs a handshake. The limiter rejects as
//! many connections this way as the rate admits. It closes all further ones immediately. The two are counted separately, so
//! rejected connections do not reduce the number of admitted ones.

use std::fmt;
use std::time::{Duration, Instant};

use crate::addr::ClientAddr;
use crate::limit::gcra::{Gcra, GcraLimit};
use crate::limit::rate::Rate;
use crate::limit::table::{SourceTable, TableEntry};
use crate::outcome::{Outcome, Reason};

/// What happens to a connection that is not closed immediately.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateDecision {
    /// The connection is within the rate.
    Free,
    /// The connection is rejected with an error in its protocol.
    Refused(RateExceeded),
}

/// A source exceeds its connection rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateExceeded {
    rate: Rate,
}

impl fmt::Display for RateExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the source connects more often than {} (connection_rate_per_source)", self.rate)
    }
}

impl From<RateExceeded> for Outcome {
    fn from(rate_exceeded: RateExceeded) -> Self {
        Self::new(Reason::RateLimited, rate_exceeded)
    }
}

/// The connection rates of all sources of one listener. Kept across generations while the configured rate is the same.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    rate: Rate,
    /// Origin of the times in `sources`.
    start: Instant,
    sources: SourceTable<Buckets>,
}

/// The state of one source.
#[derive(Debug, Default)]
struct Buckets {
    free: Gcra,
    rejected: Gcra,
}

impl TableEntry for Buckets {
    fn score(&self) -> u64 {
        self.free.theoretical_arrival()
    }
}

impl RateLimiter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, start: Instant::now(), sources: SourceTable::default() }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// Counts a connection. Clients of Unix sockets have no source and no limit.
    pub(crate) fn check(&self, client: ClientAddr, now: Instant) -> Result<RateDecision, RateExceeded> {
        let Some(source) = client.source_key() else { return Ok(RateDecision::Free) };
        let now = now.saturating_duration_since(self.start);
        let (decision, _) = self.sources.of(Some(source), |buckets| self.take(buckets, now));
        decision
    }

    fn take(&self, buckets: &mut Buckets, now: Duration) -> Result<RateDecision, RateExceeded> {
        let limit = GcraLimit::from(self.rate);
        let rate_exceeded = RateExceeded { rate: self.rate };
        if buckets.free.take(limit, now) {
            Ok(RateDecision::Free)
        } else if buckets.rejected.take(limit, now) {
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

    /// How many of `count` simultaneous connections are admitted, rejected and closed.
    fn connect(rate_limiter: &RateLimiter, ip: &str, count: usize, after: Duration) -> [usize; 3] {
        let mut outcomes = [0; 3];
        for _ in 0..count {
            match rate_limiter.check(client(ip), rate_limiter.start + after) {
                Ok(RateDecision::Free) => outcomes[0] += 1,
                Ok(RateDecision::Refused(_)) => outcomes[1] += 1,
                Err(_) => outcomes[2] += 1,
            }
        }
        outcomes
    }

    #[test]
    fn connections_above_the_rate_are_rejected_then_closed() {
        let rate_limiter = rate_limiter("10/s");
        assert_eq!(connect(&rate_limiter, "10.0.0.1", 100, Duration::ZERO), [10, 10, 80]);
        assert_eq!(connect(&rate_limiter, "10.0.0.2", 5, Duration::ZERO), [5, 0, 0]);
    }

    #[test]
    fn source_that_never_pauses_still_gets_its_rate() {
        let rate_limiter = rate_limiter("10/s");
        connect(&rate_limiter, "10.0.0.1", 100, Duration::ZERO);
        for second in 1..10 {
            assert_eq!(connect(&rate_limiter, "10.0.0.1", 1000, Duration::from_secs(second)), [10, 10, 980]);
        }
    }

    #[test]
    fn ipv6_64_shares_one_rate_and_unix_socket_has_none() {
        let rate_limiter = rate_limiter("4/m");
        let of = |ip| connect(&rate_limiter, ip, 3, Duration::ZERO);
        assert_eq!([of("2001:db8::1"), of("2001:db8::2"), of("2001:db8:0:1::1")], [[3, 0, 0], [1, 2, 0], [3, 0, 0]]);
        assert!((0..100).all(|_| rate_limiter.check(ClientAddr::UNIX, rate_limiter.start) == Ok(RateDecision::Free)));
    }

    #[test]
    fn busy_source_is_kept_during_a_flood_from_a_slash_eight() {
        let rate_limiter = rate_limiter("10/h");
        connect(&rate_limiter, "192.0.2.1", 20, Duration::ZERO);
        for number in (0x0a00_0000_u32..0x0b00_0000).step_by(64) {
            let untrusted = ClientAddr::from_ip(std::net::Ipv4Addr::from(number).into());
            assert_eq!(rate_limiter.check(untrusted, rate_limiter.start), Ok(RateDecision::Free));
        }
        assert_eq!(connect(&rate_limiter, "192.0.2.1", 1, Duration::ZERO), [0, 0, 1]);
    }
}
