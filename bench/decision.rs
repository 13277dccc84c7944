//! The cost of one source decision by the number of rules. `lookup` prints it, and `peers` includes it in its report.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use portcullis::internals::{Origin, Rule, Source, TrustedSources};
use time::OffsetDateTime;

/// The medians for one number of rules.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decision {
    pub(crate) trusted_ns: f64,
    pub(crate) untrusted_ns: f64,
    pub(crate) build_ms: f64,
}

impl Decision {
    /// Looks up `samples` clients in each of `rounds` rounds.
    pub(crate) fn measure(rules: u32, samples: u32, rounds: u32) -> Self {
        let (set, build) = timed(|| TrustedSources::new((0..rules).map(rule)));
        let trusted: Vec<_> = (0..samples).map(|n| client(n % rules)).collect();
        let untrusted: Vec<_> = (0..samples).map(|n| client(UNTRUSTED + n)).collect();
        Self {
            trusted_ns: median(&set, &trusted, rounds, true),
            untrusted_ns: median(&set, &untrusted, rounds, false),
            build_ms: build * 1e3,
        }
    }
}

/// Networks of mixed length all over IPv4, in no particular order.
fn rule(number: u32) -> Rule {
    let length = 24 + 4 * (number % 3);
    let address = u32::from(first_address(number)) & (u32::MAX << (32 - length));
    let network = format!("{}/{length}", Ipv4Addr::from(address));
    let network = network.parse().unwrap_or_else(|error| unreachable!("{network}: {error}"));
    Rule::of(Source::Network(network), Origin::Configuration)
}

fn client(number: u32) -> IpAddr {
    IpAddr::V4(first_address(number))
}

/// Spreads numbers over addresses without repeating one (a multiplication by an odd number is one-to-one).
pub(crate) fn first_address(number: u32) -> Ipv4Addr {
    let spread = number.wrapping_mul(2_654_435_761) >> 8 << 8;
    spread.into()
}

/// Nanoseconds of one lookup: the median of all rounds.
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

/// The first number that no rule uses.
const UNTRUSTED: u32 = 1_000_000;
