//! What one source decision costs, by the number of rules: `cargo bench --bench lookup`.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::Instant;

use portcullis::addr::ClientAddr;
use portcullis::policy::{Origin, Rule, TrustedSources};
use time::OffsetDateTime;

fn main() {
    println!("{:>8}  {:>12}  {:>12}  {:>10}", "rules", "trusted, ns", "stranger, ns", "build, ms");
    for rules in [10, 1_000, 100_000] {
        let (set, build) = timed(|| TrustedSources::new((0..rules).map(rule)));
        let trusted: Vec<_> = (0..SAMPLES).map(|n| client(n % rules)).collect();
        let strangers: Vec<_> = (0..SAMPLES).map(|n| client(STRANGERS + n)).collect();
        println!(
            "{rules:>8}  {:>12.0}  {:>12.0}  {:>10.1}",
            median(&set, &trusted, true),
            median(&set, &strangers, false),
            build * 1e3
        );
    }
}

/// Networks of mixed length all over IPv4, in no order.
fn rule(number: u32) -> Rule {
    let length = 24 + 4 * (number % 3);
    let address = u32::from(first_address(number)) & (u32::MAX << (32 - length));
    let network = format!("{}/{length}", std::net::Ipv4Addr::from(address));
    Rule {
        network: network.parse().unwrap_or_else(|error| unreachable!("{network}: {error}")),
        description: None,
        expires_at: None,
        origin: Origin::Configuration,
    }
}

fn client(number: u32) -> ClientAddr {
    ClientAddr::from_ip(IpAddr::V4(first_address(number)))
}

/// Spreads numbers over addresses without repeating one (a multiplication by an odd number is one-to-one).
fn first_address(number: u32) -> std::net::Ipv4Addr {
    let spread = number.wrapping_mul(2_654_435_761) >> 8 << 8;
    spread.into()
}

/// Nanoseconds of one lookup: the median of many rounds.
fn median(set: &TrustedSources, clients: &[ClientAddr], expected: bool) -> f64 {
    let now = OffsetDateTime::now_utc();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let ((), seconds) = timed(|| {
                for client in clients {
                    let found = set.lookup(black_box(client.ip()), now).is_ok();
                    assert!(found || !expected, "{client} is trusted");
                }
            });
            seconds * 1e9 / clients.len() as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds.get(rounds.len() / 2).copied().unwrap_or(f64::NAN)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let value = work();
    (value, start.elapsed().as_secs_f64())
}

const SAMPLES: u32 = 100_000;
const ROUNDS: u32 = 21;
/// Numbers no rule has.
const STRANGERS: u32 = 1_000_000;
