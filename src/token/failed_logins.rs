//! Limits how often a source may present an invalid token.
//!
//! A token cannot be guessed. The limit keeps a source that tries from filling the audit, and makes a client with an outdated
//! token visible: it receives 429. A failure is counted after authentication, so a valid token is accepted from a limited source
//! too. A valid token whose role does not suffice (403) is not a failure.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::addr::ClientAddr;
use crate::limit::gcra::{Gcra, GcraLimit};
use crate::limit::table::{SourceTable, TableEntry};

/// Whether a failure is within the limit of its source.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailedLogin {
    /// The answer is 401, and the failure is audited.
    Counted,
    /// The answer is 429. The failure is not audited.
    Limited {
        /// In seconds, for `Retry-After`: from then on the next failure is within the limit.
        retry_after: NonZeroU64,
    },
}

/// The failures of all sources: an IPv4 address, or the /64 of an IPv6 address. In bounded memory ([`SourceTable`]).
#[derive(Debug)]
pub(crate) struct FailedLogins {
    /// Origin of the times in `sources`.
    start: Instant,
    sources: SourceTable<Failures>,
}

/// The failures of one source.
#[derive(Debug, Default)]
struct Failures(Gcra);

impl TableEntry for Failures {
    fn score(&self) -> u64 {
        self.0.theoretical_arrival()
    }
}

impl Default for FailedLogins {
    fn default() -> Self {
        Self { start: Instant::now(), sources: SourceTable::default() }
    }
}

impl FailedLogins {
    /// Counts a request without a valid token. Clients of Unix sockets need none and have no limit.
    pub(crate) fn record(&self, client: ClientAddr, now: Instant) -> FailedLogin {
        let Some(source) = client.source_key() else { return FailedLogin::Counted };
        let now = now.saturating_duration_since(self.start);
        let (failed, _) = self.sources.of(Some(source), |Failures(bucket)| {
            if bucket.take(LIMIT, now) {
                FailedLogin::Counted
            } else {
                FailedLogin::Limited { retry_after: whole_seconds(bucket.wait(LIMIT, now)) }
            }
        });
        failed
    }
}

/// Rounds up, so that a client that obeys is not limited again.
fn whole_seconds(wait: Duration) -> NonZeroU64 {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    NonZeroU64::new(seconds).unwrap_or(NonZeroU64::MIN)
}

/// Enough at once for a script that uses an outdated token on every path; then one per second.
const LIMIT: GcraLimit = GcraLimit { burst: 60, interval: Duration::from_secs(1) };

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::token::authenticate::authenticate;
    use crate::token::fixtures::token;

    const ONE_SECOND: FailedLogin = FailedLogin::Limited { retry_after: NonZeroU64::MIN };

    fn client(ip: &str) -> ClientAddr {
        ClientAddr::from_ip(ip.parse().unwrap())
    }

    /// How many of `count` simultaneous failures are within the limit.
    fn counted(failed: &FailedLogins, ip: &str, count: usize, after: Duration) -> usize {
        let now = failed.start + after;
        (0..count).filter(|_| failed.record(client(ip), now) == FailedLogin::Counted).count()
    }

    #[test]
    fn source_that_fails_too_often_is_limited() {
        let failed = FailedLogins::default();
        assert_eq!(counted(&failed, "10.0.0.1", 100, Duration::ZERO), 60);
        assert_eq!(failed.record(client("10.0.0.1"), failed.start), ONE_SECOND);
        assert_eq!(counted(&failed, "10.0.0.2", 1, Duration::ZERO), 1);
        assert_eq!(counted(&failed, "10.0.0.1", 100, Duration::from_secs(1)), 1);
        assert_eq!(counted(&failed, "10.0.0.1", 100, Duration::from_secs(70)), 60);
    }

    #[test]
    fn client_that_waits_as_long_as_retry_after_is_within_the_limit() {
        let failed = FailedLogins::default();
        let _ = counted(&failed, "10.0.0.1", 60, Duration::from_millis(300));
        let half = Duration::from_millis(800);
        assert_eq!(failed.record(client("10.0.0.1"), failed.start + half), ONE_SECOND);
        assert_eq!(counted(&failed, "10.0.0.1", 1, half + Duration::from_secs(1)), 1);
    }

    #[test]
    fn valid_token_of_a_limited_source_is_accepted() {
        let (failed, tokens) = (FailedLogins::default(), [token("ci", "valid")]);
        let now = OffsetDateTime::UNIX_EPOCH;
        let source = client("10.0.0.1");
        let limited = (0..70).map(|_| {
            assert!(authenticate(&tokens, b"invalid", source.ip().unwrap(), now).is_err());
            failed.record(source, failed.start)
        });
        assert_eq!(limited.last(), Some(ONE_SECOND));
        assert_eq!(authenticate(&tokens, b"valid", source.ip().unwrap(), now), Ok(&tokens[0]));
    }

    #[test]
    fn ipv6_64_shares_one_limit_and_mapped_addresses_are_ipv4() {
        let failed = FailedLogins::default();
        let of = |ip| counted(&failed, ip, 40, Duration::ZERO);
        assert_eq!([of("2001:db8::1"), of("2001:db8::2"), of("2001:db8:0:1::1")], [40, 20, 40]);
        assert_eq!([of("10.0.0.1"), of("::ffff:10.0.0.1"), of("::ffff:10.0.0.2")], [40, 20, 40]);
        let unix = |_| failed.record(ClientAddr::UNIX, failed.start) == FailedLogin::Counted;
        assert!((0..100).all(unix));
    }

    #[test]
    fn wait_is_rounded_up_to_at_least_one_second() {
        let seconds = |millis| whole_seconds(Duration::from_millis(millis)).get();
        assert_eq!([0, 1, 1000, 1001].map(seconds), [1, 1, 1, 2]);
    }
}
