//! PROXY headers, written and parsed according to the specification and without code of Portcullis.
#![allow(clippy::disallowed_methods, reason = "a header has the address that it has, folded or not")]

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};

use super::wire::read_exactly;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 1, between two addresses.
pub(crate) fn v1(from: &str, to: &str) -> Vec<u8> {
    let [from, to]: [SocketAddr; 2] = [from, to].map(|text| text.parse().expect("an address"));
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
}

/// Version 2: the 13th and 14th byte, and the rest.
pub(crate) fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("a length");
    [SIGNATURE, &[command, family], &length.to_be_bytes(), rest].concat()
}

/// Version 2, between two addresses of one family, with what follows them.
pub(crate) fn v2_between(from: &str, to: &str, vectors: &[u8]) -> Vec<u8> {
    let ends: [SocketAddr; 2] = [from, to].map(|text| text.parse().expect("an address"));
    let mut rest = Vec::new();
    for end in ends {
        match end.ip() {
            IpAddr::V4(ip) => rest.extend(ip.octets()),
            IpAddr::V6(ip) => rest.extend(ip.octets()),
        }
    }
    rest.extend(ends.iter().flat_map(|end| end.port().to_be_bytes()));
    rest.extend(vectors);
    v2(0x21, if ends[0].is_ipv4() { 0x11 } else { 0x21 }, &rest)
}

pub(crate) fn vector(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("a length");
    [&[kind], &length.to_be_bytes()[..], value].concat()
}

/// The content of a header.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ReceivedHeader {
    /// `LOCAL`, `TCP4`, `TCP6`, or the family of version 1.
    pub(crate) kind: String,
    pub(crate) from: Option<SocketAddr>,
    pub(crate) to: Option<SocketAddr>,
    pub(crate) vectors: BTreeMap<u8, Vec<u8>>,
}

impl ReceivedHeader {
    /// Reads exactly one header.
    pub(crate) fn read(stream: &mut impl Read) -> Self {
        let beginning = read_exactly(stream, 13);
        if beginning.starts_with(SIGNATURE) {
            assert_eq!(beginning[12] >> 4, 2, "the version");
            return Self::read_block(beginning[12] & 0xf, stream);
        }
        let mut line = beginning;
        while !line.ends_with(b"\r\n") {
            line.extend(read_exactly(stream, 1));
            assert!(line.len() <= 107, "no line of version 1: {}", line.escape_ascii());
        }
        let line = String::from_utf8(line).expect("a line of text");
        let words: Vec<&str> = line.trim_end().split(' ').collect();
        let end = |ip: usize, port: usize| {
            let ip = words.get(ip)?.parse().expect("an address");
            Some(SocketAddr::new(ip, words[port].parse().expect("a port")))
        };
        assert_eq!(words[0], "PROXY");
        Self { kind: words[1].to_owned(), from: end(2, 4), to: end(3, 5), ..Self::default() }
    }

    fn read_block(command: u8, stream: &mut impl Read) -> Self {
        let head = read_exactly(stream, 3);
        let rest = read_exactly(stream, usize::from(u16::from_be_bytes([head[1], head[2]])));
        let size = match (command, head[0]) {
            (0, 0) => return Self { kind: "LOCAL".to_owned(), vectors: vectors(&rest), ..Self::default() },
            (1, 0x11) => 4,
            (1, 0x21) => 16,
            other => panic!("no client of TCP: {other:x?}"),
        };
        let ip = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
            Ok(four) => IpAddr::from(four),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).expect("sixteen bytes")),
        };
        let end = |index: usize| {
            let port = &rest[2 * size + 2 * index..][..2];
            Some(SocketAddr::new(ip(&rest[index * size..][..size]), u16::from_be_bytes([port[0], port[1]])))
        };
        let kind = if size == 4 { "TCP4" } else { "TCP6" };
        Self { kind: kind.to_owned(), from: end(0), to: end(1), vectors: vectors(&rest[2 * size + 4..]) }
    }

    /// A type-length-value as text.
    pub(crate) fn text(&self, kind: u8) -> Option<String> {
        self.vectors.get(&kind).map(|value| String::from_utf8(value.clone()).expect("UTF-8"))
    }

    /// The client's TLS in the header: the bits, the verification result of its certificate, and the rest.
    pub(crate) fn tls(&self) -> Option<(u8, u32, Self)> {
        let value = self.vectors.get(&0x20)?;
        let verdict = u32::from_be_bytes(value[1..5].try_into().expect("four bytes"));
        Some((value[0], verdict, Self { vectors: vectors(&value[5..]), ..Self::default() }))
    }
}

fn vectors(mut bytes: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    let mut all = BTreeMap::new();
    while let [kind, high, low, rest @ ..] = bytes {
        let (value, behind) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        assert!(all.insert(*kind, value.to_vec()).is_none(), "type {kind:#x} comes twice");
        bytes = behind;
    }
    assert!(bytes.is_empty(), "a header that ends within a TLV");
    all
}
