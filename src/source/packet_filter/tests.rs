//! Runs the programs as specified in linux/Documentation/networking/filter.rst and compares them with the lookup.

use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use time::OffsetDateTime;

use super::*;
use crate::source::rule::{Origin, Rule, Source};
use crate::source::trusted::TrustedSources;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

/// Runs a program on a packet, and returns whether the kernel would keep it. Panics on an invalid program.
fn accepts(program: &PacketFilter, header: &[u8]) -> bool {
    let (mut at, mut accumulator) = (0, 0_u32);
    let mut steps = 0;
    loop {
        steps += 1;
        let Instruction { code, jt, jf, k } = program.instructions()[at];
        at += 1;
        let load = |bytes: usize| {
            let from = usize::try_from(k.checked_sub(NETWORK_HEADER).expect("a load from the network header")).unwrap();
            header.get(from..from + bytes)
        };
        let mut jump = |holds: bool| at += usize::from(if holds { jt } else { jf });
        match code {
            LOAD_WORD => match load(4) {
                Some(bytes) => accumulator = u32::from_be_bytes(bytes.try_into().unwrap()),
                None => return false,
            },
            LOAD_BYTE => match load(1) {
                Some(bytes) => accumulator = bytes[0].into(),
                None => return false,
            },
            AND => accumulator &= k,
            JUMP => at += usize::try_from(k).unwrap(),
            IS_EQUAL => jump(accumulator == k),
            IS_AT_LEAST => jump(accumulator >= k),
            RETURN => {
                assert!(k == 0 || k == u32::MAX, "a packet is kept whole or not at all");
                assert!(steps < 200, "{steps} steps");
                return k != 0;
            }
            other => panic!("no such instruction: {other:#x}"),
        }
    }
}

/// Validates a program as the kernel does.
fn check(program: &PacketFilter) {
    let instructions = program.instructions();
    assert!((1..=4096).contains(&instructions.len()));
    for (at, Instruction { code, jt, jf, k }) in instructions.iter().enumerate() {
        let farthest = match *code {
            IS_EQUAL | IS_AT_LEAST => usize::from(*jt.max(jf)),
            JUMP => usize::try_from(*k).unwrap(),
            _ => 0,
        };
        assert!(at + 1 + farthest < instructions.len() || *code == RETURN, "{at}: {code:#x} leaves the program");
    }
    assert_eq!(instructions.last().unwrap().code, RETURN);
}

fn header(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => [&[0x45; 12][..], &ip.octets(), &[9; 4]].concat(),
        IpAddr::V6(ip) => [&[0x6f; 8][..], &ip.octets(), &[9; 16]].concat(),
    }
}

fn accepts_ip(program: &PacketFilter, ip: &str) -> bool {
    accepts(program, &header(ip.parse().unwrap()))
}

fn program(networks: &[&str]) -> PacketFilter {
    let program = PacketFilter::accepting(networks.iter().map(|text| text.parse().unwrap())).unwrap();
    check(&program);
    program
}

#[test]
fn empty_and_full_source_sets_drop_and_accept_everything() {
    let none = program(&[]);
    let all = program(&["0.0.0.0/0", "::/0"]);
    for ip in ["0.0.0.0", "10.1.2.3", "255.255.255.255", "::", "2001:db8::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
    {
        assert!(!accepts_ip(&none, ip) && accepts_ip(&all, ip), "{ip}");
    }
    let v4 = program(&["0.0.0.0/0"]);
    assert!(accepts_ip(&v4, "1.2.3.4") && !accepts_ip(&v4, "::1"));
}

#[test]
fn first_and_last_address_of_a_network_are_accepted() {
    let filter = program(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8:0:1::/64", "fe80::/10", "2001:db8::5/128"]);
    for inside in ["10.0.0.0", "10.255.255.255", "192.0.2.7", "2001:db8:0:1::", "2001:db8:0:1:ffff:ffff:ffff:ffff"] {
        assert!(accepts_ip(&filter, inside), "{inside}");
    }
    for outside in
        ["9.255.255.255", "11.0.0.0", "192.0.2.6", "192.0.2.8", "2001:db8:0:2::", "2001:db8::ffff:ffff:ffff:ffff"]
    {
        assert!(!accepts_ip(&filter, outside), "{outside}");
    }
    for (ip, inside) in [("fe80::", true), ("febf::1", true), ("fec0::", false), ("fe7f::", false)] {
        assert_eq!(accepts_ip(&filter, ip), inside, "{ip}");
    }
    assert!(
        accepts_ip(&filter, "2001:db8::5")
            && !accepts_ip(&filter, "2001:db8::4")
            && !accepts_ip(&filter, "2001:db8::6")
    );
    assert!(!accepts_ip(&filter, "::ffff:10.1.2.3"), "on the wire this is an IPv6 packet");
}

#[test]
fn adjacent_and_overlapping_networks_are_merged() {
    let halves = program(&["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "10.1.2.3/32"]);
    assert_eq!(halves, program(&["10.0.0.0/8"]));
    let halves = program(&["2001:db8::/33", "2001:db8:8000::/33"]);
    assert_eq!(halves, program(&["2001:db8::/32"]));
    assert_eq!(program(&["::/1", "8000::/1"]), program(&["::/0"]));
}

#[test]
fn packet_of_another_ip_version_is_accepted() {
    let none = program(&[]);
    for version in [0x00, 0x15, 0x55, 0x75, 0xf5] {
        assert!(accepts(&none, &[version]), "{version:#x}");
        assert!(accepts(&none, &[version; 40]), "{version:#x}");
    }
}

#[test]
fn common_source_sets_make_short_programs() {
    assert!(program(&["10.0.0.0/8"]).instructions().len() <= 9);
    assert!(program(&["10.0.0.0/8", "2001:db8::/32"]).instructions().len() <= 12);
    assert!(program(&["2001:db8::1/128"]).instructions().len() <= 16);
}

fn hosts(count: u32) -> impl Iterator<Item = IpNet> {
    // Not adjacent, so that they are not merged.
    (0..count).map(|number| IpNet::V4(Ipv4Net::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + 2 * number))))
}

#[test]
fn program_above_the_kernel_limit_is_rejected() {
    let longest = PacketFilter::accepting(hosts(1_900)).unwrap();
    check(&longest);
    for number in 0..1_900 {
        let ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + 2 * number);
        assert!(accepts(&longest, &header(ip.into())));
        assert!(!accepts(&longest, &header(std::net::Ipv4Addr::from_bits(ip.to_bits() + 1).into())));
    }
    assert_eq!(PacketFilter::accepting(hosts(2_200)), Err(ProgramTooLong));
    assert_eq!(PacketFilter::accepting(hosts(100_000)), Err(ProgramTooLong));
}

fn rule(net: IpNet, expires_at: Option<OffsetDateTime>) -> Rule {
    let source = Source::Network(net.to_string().parse().unwrap());
    Rule { expires_at, ..Rule::of(source, Origin::Configuration) }
}

/// Words that are often equal, adjacent or at an end of the range.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(u32::MAX), Just(u32::MAX - 1), Just(0x8000_0000), 0_u32..6, any::<u32>()]
}

fn address() -> impl Strategy<Value = IpAddr> {
    let v6 = |[a, b, c, d]: [u32; 4]| {
        let bits = [a, b, c, d].into_iter().fold(0_u128, |bits, word| bits << 32 | u128::from(word));
        // IPv4-mapped networks are stored as IPv4.
        std::net::Ipv6Addr::from_bits(bits).to_canonical()
    };
    prop_oneof![word().prop_map(|word| IpAddr::V4(word.into())), [word(), word(), word(), word()].prop_map(v6),]
}

fn network() -> impl Strategy<Value = IpNet> {
    (address(), any::<u8>()).prop_filter_map("mapped", |(ip, length)| match ip {
        IpAddr::V4(ip) => Some(IpNet::V4(Ipv4Net::new(ip, length % 33).unwrap().trunc())),
        IpAddr::V6(ip) => {
            let net = Ipv6Net::new(ip, length % 129).unwrap().trunc();
            let mapped = net.contains(&"::ffff:0:0".parse::<std::net::Ipv6Addr>().unwrap()) && net.prefix_len() > 0;
            (!mapped).then_some(IpNet::V6(net))
        }
    })
}

/// The first and last address of a network, and their neighbours outside.
fn edges(net: &IpNet) -> Vec<IpAddr> {
    match net {
        IpNet::V4(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            let all = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
            all.map(|bits| IpAddr::V4(bits.into())).to_vec()
        }
        IpNet::V6(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            let all = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
            all.map(|bits| IpAddr::V6(bits.into())).to_vec()
        }
    }
}

proptest! {
    #[test]
    fn program_agrees_with_the_lookup(
        rules in proptest::collection::vec((network(), prop_oneof![Just(None), Just(Some(NOW))]), 0..60),
        mut addresses in proptest::collection::vec(address(), 1..40),
    ) {
        let set = TrustedSources::new(rules.iter().map(|(net, end)| rule(*net, *end)));
        let program = PacketFilter::accepting(set.live_networks(NOW)).unwrap();
        check(&program);
        addresses.extend(rules.iter().flat_map(|(net, _)| edges(net)));
        for ip in addresses {
            // The kernel drops IPv6 packets from mapped addresses.
            if ip == ip.to_canonical() {
                prop_assert_eq!(accepts(&program, &header(ip)), set.lookup(ip, NOW).is_ok(), "{}", ip);
            }
        }
    }

    #[test]
    fn short_header_never_causes_a_panic(rules in proptest::collection::vec(network(), 0..20), bytes: Vec<u8>) {
        let program = PacketFilter::accepting(rules).unwrap();
        let through = accepts(&program, &bytes);
        // The kernel runs the program on complete headers only. This test covers out-of-range loads.
        if bytes.first().is_some_and(|byte| byte >> 4 != 4 && byte >> 4 != 6) {
            prop_assert!(through);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn long_list_agrees_with_the_lookup(seed in any::<u32>(), count in 200_u32..1_200) {
        let at = |number: u32| std::net::Ipv4Addr::from_bits(number.wrapping_mul(2_654_435_769) ^ seed);
        let nets: Vec<_> = (0..count).map(|number| IpNet::V4(Ipv4Net::new(at(number), 20 + (number % 13) as u8).unwrap().trunc())).collect();
        let set = TrustedSources::new(nets.iter().map(|net| rule(*net, None)));
        let program = PacketFilter::accepting(set.live_networks(NOW)).unwrap();
        check(&program);
        for ip in nets.iter().flat_map(edges) {
            prop_assert_eq!(accepts(&program, &header(ip)), set.lookup(ip, NOW).is_ok(), "{}", ip);
        }
    }
}
