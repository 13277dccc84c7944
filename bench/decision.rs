//! What one source decision costs, by the number of rules. `lookup` prints it, and `peers` puts it into its report.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use portcullis::internals::{Origin, Rule, Source, TrustedSources};
use time::OffsetDateTime;

/// The medians for one number of rules.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decision {
    pub(crate) trusted_ns: f64,
    pub(crate) stranger_ns: f64,
    pub(crate) build_ms: f64,
}

impl Decision {
    /// Looks up so many clients, so many times.
    pub(crate) fn measure(rules: u32, samples: u32, rounds: u32) -> Self {
        let (set, build) = timed(|| TrustedSources::new((0..rules).map(rule)));
        let trusted: Vec<_> = (0..samples).map(|n| client(n % rules)).collect();
        let strangers: Vec<_> = (0..samples).map(|n| client(STRANGERS + n)).collect();
        Self {
            trusted_ns: median(&set, &trusted, rounds, true),
            stranger_ns: median(&set, &strangers, rounds, false),
            build_ms: build * 1e3,
        }
    }
}

/// Networks of mixed length all over IPv4, in no order.
fn rule(number: u32) -> Rule {
    let length = 24 + 4 * (number % 3);
    let address = u32::from(first_address(number)) & (u32::MAX << (32 - length));
    let network = format!("{}/{length}", Ipv4Addr::from(address));
    Rule {
        source: Source::Network(network.parse().unwrap_or_else(|error| unreachable!("{network}: {error}"))),
        description: None,
        expires_at: None,
        origin: Origin::Configuration,
    }
}

fn client(number: u32) -> IpAddr {
    IpAddr::V4(first_address(number))
}

/// Spreads numbers over addresses without repeating one (a multiplication by an odd number is one-to-one).
pub(crate) fn first_address(number: u32) -> Ipv4Addr {
    let spread = number.wrapping_mul(2_654_435_761) >> 8 << 8;
    spread.into()
}

/// Nanoseconds of one lookup: the median of many rounds.
fn median(set: &TrustedSources, clients: &[IpAddr], rounds: u32, expected: bool) -> f64 {
    let now = OffsetDateTime::now_utc();
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let ((), seconds) = timed(|| {
                for client in clients {
                    let found = set.lookup(black_box(*client), now).is_ok();
                    assert!(found || !expected, "{client} is trusted");
                }
            });
            seconds * 1e9 / clients.len() as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let value = work();
    (value, start.elapsed().as_secs_f64())
}

/// Numbers no rule has.
const STRANGERS: u32 = 1_000_000;
