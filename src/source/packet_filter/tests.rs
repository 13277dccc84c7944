//! The programs are run here, by the rules of linux/Documentation/networking/filter.rst, and have to agree with the lookup.

use std::net::IpAddr;

use ipnet::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use time::OffsetDateTime;

use super::*;
use crate::source::rule::{Origin, Rule, Source};
use crate::source::trusted::TrustedSources;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

/// What the kernel would do with a packet: whether it keeps all of it. A program that the kernel would not take fails.
fn lets_through(program: &PacketFilter, header: &[u8]) -> bool {
    let (mut at, mut registry) = (0, 0_u32);
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
                Some(bytes) => registry = u32::from_be_bytes(bytes.try_into().unwrap()),
                None => return false,
            },
            LOAD_BYTE => match load(1) {
                Some(bytes) => registry = bytes[0].into(),
                None => return false,
            },
            AND => registry &= k,
            JUMP => at += usize::try_from(k).unwrap(),
            IS_EQUAL => jump(registry == k),
            IS_AT_LEAST => jump(registry >= k),
            RETURN => {
                assert!(k == 0 || k == u32::MAX, "a packet is kept whole or not at all");
                assert!(steps < 200, "{steps} steps");
                return k != 0;
            }
            other => panic!("no such instruction: {other:#x}"),
        }
    }
}

/// The kernel's own look at a program before it takes it.
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

fn from(program: &PacketFilter, ip: &str) -> bool {
    lets_through(program, &header(ip.parse().unwrap()))
}

fn program(networks: &[&str]) -> PacketFilter {
    let program = PacketFilter::accepting(networks.iter().map(|text| text.parse().unwrap())).unwrap();
    check(&program);
    program
}

#[test]
fn nothing_trusted_lets_nothing_through_and_everything_everything() {
    let none = program(&[]);
    let all = program(&["0.0.0.0/0", "::/0"]);
    for ip in ["0.0.0.0", "10.1.2.3", "255.255.255.255", "::", "2001:db8::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
    {
        assert!(!from(&none, ip) && from(&all, ip), "{ip}");
    }
    let v4 = program(&["0.0.0.0/0"]);
    assert!(from(&v4, "1.2.3.4") && !from(&v4, "::1"));
}

#[test]
fn the_edges_of_a_network_are_where_they_are() {
    let filter = program(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8:0:1::/64", "fe80::/10", "2001:db8::5/128"]);
    for inside in ["10.0.0.0", "10.255.255.255", "192.0.2.7", "2001:db8:0:1::", "2001:db8:0:1:ffff:ffff:ffff:ffff"] {
        assert!(from(&filter, inside), "{inside}");
    }
    for outside in
        ["9.255.255.255", "11.0.0.0", "192.0.2.6", "192.0.2.8", "2001:db8:0:2::", "2001:db8::ffff:ffff:ffff:ffff"]
    {
        assert!(!from(&filter, outside), "{outside}");
    }
    for (ip, inside) in [("fe80::", true), ("febf::1", true), ("fec0::", false), ("fe7f::", false)] {
        assert_eq!(from(&filter, ip), inside, "{ip}");
    }
    assert!(from(&filter, "2001:db8::5") && !from(&filter, "2001:db8::4") && !from(&filter, "2001:db8::6"));
    assert!(!from(&filter, "::ffff:10.1.2.3"), "on the wire that is no IPv4 packet");
}

#[test]
fn networks_that_touch_or_overlap_are_one() {
    let halves = program(&["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "10.1.2.3/32"]);
    assert_eq!(halves, program(&["10.0.0.0/8"]));
    let halves = program(&["2001:db8::/33", "2001:db8:8000::/33"]);
    assert_eq!(halves, program(&["2001:db8::/32"]));
    assert_eq!(program(&["::/1", "8000::/1"]), program(&["::/0"]));
}

#[test]
fn a_packet_of_another_kind_is_let_through() {
    let none = program(&[]);
    for version in [0x00, 0x15, 0x55, 0x75, 0xf5] {
        assert!(lets_through(&none, &[version]), "{version:#x}");
        assert!(lets_through(&none, &[version; 40]), "{version:#x}");
    }
}

#[test]
fn common_lists_make_short_programs() {
    assert!(program(&["10.0.0.0/8"]).instructions().len() <= 9);
    assert!(program(&["10.0.0.0/8", "2001:db8::/32"]).instructions().len() <= 12);
    assert!(program(&["2001:db8::1/128"]).instructions().len() <= 16);
}

fn hosts(count: u32) -> impl Iterator<Item = IpNet> {
    // Apart from each other, so that nothing can be merged.
    (0..count).map(|number| IpNet::V4(Ipv4Net::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + 2 * number))))
}

#[test]
fn what_is_too_long_for_the_kernel_is_refused() {
    let longest = PacketFilter::accepting(hosts(1_900)).unwrap();
    check(&longest);
    for number in 0..1_900 {
        let ip = std::net::Ipv4Addr::from_bits(0x0a00_0000 + 2 * number);
        assert!(lets_through(&longest, &header(ip.into())));
        assert!(!lets_through(&longest, &header(std::net::Ipv4Addr::from_bits(ip.to_bits() + 1).into())));
    }
    assert_eq!(PacketFilter::accepting(hosts(2_200)), Err(ProgramTooLong));
    assert_eq!(PacketFilter::accepting(hosts(100_000)), Err(ProgramTooLong));
}

fn rule(net: IpNet, expires_at: Option<OffsetDateTime>) -> Rule {
    let source = Source::Network(net.to_string().parse().unwrap());
    Rule { source, description: None, expires_at, origin: Origin::Configuration }
}

/// Words that are often the same, or next to each other, or at an end.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1), Just(u32::MAX), Just(u32::MAX - 1), Just(0x8000_0000), 0_u32..6, any::<u32>()]
}

fn address() -> impl Strategy<Value = IpAddr> {
    let v6 = |[a, b, c, d]: [u32; 4]| {
        let bits = [a, b, c, d].into_iter().fold(0_u128, |bits, word| bits << 32 | u128::from(word));
        // A network written as an IPv4-mapped one is the IPv4 one.
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

/// The addresses at the edges of a network, on both sides.
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
    fn the_program_answers_as_the_lookup_does(
        rules in proptest::collection::vec((network(), prop_oneof![Just(None), Just(Some(NOW))]), 0..60),
        mut addresses in proptest::collection::vec(address(), 1..40),
    ) {
        let set = TrustedSources::new(rules.iter().map(|(net, end)| rule(*net, *end)));
        let program = PacketFilter::accepting(set.live_networks(NOW)).unwrap();
        check(&program);
        addresses.extend(rules.iter().flat_map(|(net, _)| edges(net)));
        for ip in addresses {
            // A v6 packet from a mapped address does not exist; the kernel throws it away itself.
            if ip == ip.to_canonical() {
                prop_assert_eq!(lets_through(&program, &header(ip)), set.lookup(ip, NOW).is_ok(), "{}", ip);
            }
        }
    }

    #[test]
    fn no_header_however_short_is_more_than_refused(rules in proptest::collection::vec(network(), 0..20), bytes: Vec<u8>) {
        let program = PacketFilter::accepting(rules).unwrap();
        let through = lets_through(&program, &bytes);
        // The kernel has seen a whole header before it asks; this is about not going astray.
        if bytes.first().is_some_and(|byte| byte >> 4 != 4 && byte >> 4 != 6) {
            prop_assert!(through);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_long_list_is_answered_like_a_short_one(seed in any::<u32>(), count in 200_u32..1_200) {
        let at = |number: u32| std::net::Ipv4Addr::from_bits(number.wrapping_mul(2_654_435_769) ^ seed);
        let nets: Vec<_> = (0..count).map(|number| IpNet::V4(Ipv4Net::new(at(number), 20 + (number % 13) as u8).unwrap().trunc())).collect();
        let set = TrustedSources::new(nets.iter().map(|net| rule(*net, None)));
        let program = PacketFilter::accepting(set.live_networks(NOW)).unwrap();
        check(&program);
        for ip in nets.iter().flat_map(edges) {
            prop_assert_eq!(lets_through(&program, &header(ip)), set.lookup(ip, NOW).is_ok(), "{}", ip);
        }
    }
}
