use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::addr::ClientAddr;
use crate::source::rule::{Origin, Rule, Source};

fn fields(listener: &str, address: &str) -> ConnectionFields {
    ConnectionFields::new(None, listener.into(), ClientAddr::from_ip(address.parse().unwrap()))
}

fn v4(number: u32) -> ConnectionFields {
    fields("main", &Ipv4Addr::from(number).to_string())
}

/// From a source that a rule trusts.
fn trusted(address: &str) -> ConnectionFields {
    let source = Source::Network("10.0.0.0/8".parse().unwrap());
    let rule = Rule::of(source, Origin::Configuration);
    ConnectionFields { source_match: Some(SourceMatch::Rule(Arc::new(rule).into())), ..fields("main", address) }
}

fn at(second: u64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(second)
}

fn count(denials: &Denials, second: u64, fields: &ConnectionFields, reason: Reason) {
    denials.count_at(Duration::from_secs(second), at(second), fields, reason);
}

fn untrusted(denials: &Denials, second: u64, fields: &ConnectionFields) {
    count(denials, second, fields, Reason::UntrustedSource);
}

fn list(denials: &Denials, second: u64) -> Vec<DeniedGroup> {
    denials.list_at(Duration::from_secs(second), None, None)
}

fn has(denials: &Denials, second: u64, address: &str) -> bool {
    list(denials, second).iter().any(|group| group.last_address == address.parse().ok())
}

#[test]
fn denials_are_grouped_by_listener_source_and_reason() {
    let denials = Denials::default();
    untrusted(&denials, 1, &fields("main", "192.0.2.1"));
    untrusted(&denials, 5, &fields("main", "192.0.2.1"));
    count(&denials, 2, &fields("main", "192.0.2.1"), Reason::RateLimited);
    untrusted(&denials, 3, &fields("db", "192.0.2.1"));
    untrusted(&denials, 4, &fields("main", "192.0.2.2"));
    let groups: Vec<_> = list(&denials, 9)
        .into_iter()
        .map(|group| (group.listener.to_string(), group.source.unwrap().to_string(), group.reason, group.count))
        .collect();
    let group = |listener: &str, source: &str, reason, count| (listener.to_owned(), source.to_owned(), reason, count);
    assert_eq!(
        groups,
        [
            group("main", "192.0.2.1", Reason::UntrustedSource, 2),
            group("main", "192.0.2.2", Reason::UntrustedSource, 1),
            group("db", "192.0.2.1", Reason::UntrustedSource, 1),
            group("main", "192.0.2.1", Reason::RateLimited, 1),
        ],
        "newest first"
    );
}

#[test]
fn ipv6_64_is_one_group_with_the_last_address_and_both_times() {
    let denials = Denials::default();
    untrusted(&denials, 1, &fields("main", "2001:db8::1"));
    untrusted(&denials, 7, &fields("main", "2001:db8::2"));
    let groups = list(&denials, 9);
    let [group] = groups.as_slice() else { panic!("{groups:?}") };
    assert_eq!((group.count, group.first, group.last), (2, at(1), at(7)));
    assert_eq!(group.source.unwrap().to_string(), "2001:db8::/64");
    assert_eq!(group.last_address, Some("2001:db8::2".parse().unwrap()));
}

#[test]
fn clients_of_unix_sockets_are_a_group_without_an_address() {
    let denials = Denials::default();
    let client = ConnectionFields::new(None, "main".into(), ClientAddr::UNIX);
    count(&denials, 1, &client, Reason::ConnectionLimit);
    let groups = list(&denials, 1);
    assert_eq!((groups[0].source, groups[0].last_address, groups[0].count), (None, None, 1));
}

#[test]
fn list_selects_a_listener_and_a_time() {
    let denials = Denials::default();
    untrusted(&denials, 1, &fields("main", "192.0.2.1"));
    untrusted(&denials, 5, &fields("db", "192.0.2.2"));
    let of = |listener, since: Option<u64>| denials.list_at(Duration::from_secs(9), listener, since.map(at)).len();
    assert_eq!((of(None, None), of(Some("main"), None), of(Some("other"), None)), (2, 1, 0));
    assert_eq!((of(None, Some(5)), of(None, Some(6)), of(Some("main"), Some(5))), (1, 0, 0));
}

#[test]
fn group_without_a_denial_for_a_day_is_forgotten_and_starts_again() {
    let denials = Denials::default();
    for second in 0..5 {
        untrusted(&denials, second, &v4(1));
    }
    let day = MAX_AGE.as_secs();
    assert_eq!(list(&denials, day + 3)[0].count, 5);
    assert_eq!(list(&denials, day + 4), []);
    untrusted(&denials, day + 4, &v4(1));
    let groups = list(&denials, day + 4);
    assert_eq!((groups[0].count, groups[0].first), (1, at(day + 4)));
    assert_eq!(denials.replaced(), 0);
}

#[test]
fn flood_of_single_denials_is_bounded_and_keeps_repeated_and_trusted_sources() {
    let denials = Denials::default();
    for second in 0..30 {
        untrusted(&denials, second, &fields("main", "198.51.100.7"));
    }
    count(&denials, 29, &trusted("10.0.0.1"), Reason::HandshakeFailed);
    for number in 0..200_000 {
        untrusted(&denials, 30, &v4(0x0a00_0000 + number));
    }
    assert!(list(&denials, 30).len() <= 4_096);
    assert!(denials.replaced() > 190_000, "{}", denials.replaced());
    assert!(has(&denials, 30, "198.51.100.7"), "it was denied 30 times");
    assert!(has(&denials, 30, "10.0.0.1"), "its source is trusted");
}

#[test]
fn flood_of_repeated_denials_does_not_replace_trusted_sources() {
    let denials = Denials::default();
    count(&denials, 0, &trusted("10.0.0.1"), Reason::HandshakeFailed);
    // An hour later, each source often enough for the longest time.
    for number in 0..8_000 {
        for _ in 0..61 {
            untrusted(&denials, 3_600, &v4(0x0b00_0000 + number));
        }
    }
    assert!(has(&denials, 3_600, "10.0.0.1"));
}

#[test]
fn sources_of_a_past_flood_make_room() {
    let denials = Denials::default();
    for number in 0..8_000 {
        for _ in 0..61 {
            untrusted(&denials, 0, &v4(number));
        }
    }
    let later = 2 * 3_600;
    untrusted(&denials, later, &fields("main", "198.51.100.7"));
    assert!(has(&denials, later, "198.51.100.7"));
    // 1,000 more come once. They replace sources of the flood, which are older.
    for number in 0..1_000 {
        untrusted(&denials, later, &v4(0x0c00_0000 + number));
    }
    assert!(has(&denials, later, "198.51.100.7"));
}

#[test]
fn cleared_groups_are_forgotten() {
    let denials = Denials::default();
    untrusted(&denials, 0, &v4(1));
    denials.clear();
    assert_eq!((list(&denials, 0), denials.replaced()), (vec![], 0));
}

proptest! {
    #[test]
    fn counts_of_few_groups_are_exact(
        crowd in prop::collection::vec((0_u16..6, 0_u64..4, prop::bool::ANY), 0..200),
    ) {
        let denials = Denials::default();
        let mut model = std::collections::HashMap::<(u16, Reason), (u64, u64, u64)>::new();
        let mut now = 0;
        for (network, pause, limited) in crowd {
            now += pause;
            let address = Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, 1);
            let reason = if limited { Reason::RateLimited } else { Reason::UntrustedSource };
            count(&denials, now, &fields("main", &address.to_string()), reason);
            let (count, _, last) = model.entry((network, reason)).or_insert((0, now, now));
            (*count, *last) = (*count + 1, now);
        }
        let groups = list(&denials, now);
        prop_assert!(groups.is_sorted_by(|one, next| one.last >= next.last));
        prop_assert_eq!(groups.len(), model.len());
        for DeniedGroup { source, reason, count, first, last, .. } in groups {
            let Some(SourceKey::V6([.., network])) = source else { panic!("{source:?}") };
            let (expected, from, to) = model[&(network, reason)];
            prop_assert_eq!((count, first, last), (expected, at(from), at(to)));
        }
    }
}

/// The cost of a denial: `cargo test --release --lib denials -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_denial() {
    let denials = Denials::default();
    let sources: Vec<_> = (0..100_000).map(v4).collect();
    for (name, sources) in [("one source", &sources[..1]), ("100,000 sources", &sources[..])] {
        let start = Instant::now();
        for number in 0..1_000_000 {
            denials.count(&sources[number % sources.len()], Reason::UntrustedSource);
        }
        println!("{name}: {} ns each", start.elapsed().as_nanos() / 1_000_000);
    }
    let start = Instant::now();
    println!("list of {}: {:?}", denials.list(None, None).len(), start.elapsed());
}
