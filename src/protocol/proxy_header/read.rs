//! Parses the PROXY header that a load balancer sends at the start of a connection.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::protocol::proxy_header::crc32c::crc32c;
use crate::protocol::proxy_header::{
    COMMAND_LOCAL, COMMAND_PROXY, PREFIX, SIGNATURE, TCP_OVER_IPV4, TCP_OVER_IPV6, VERSION_2,
};

/// Maximum size of a header in bytes.
///
/// Version 1 is limited to 107 bytes by the specification. Version 2 allows 64 KiB, but the longest addresses (216 bytes) and
/// the TLVs of known load balancers take a few hundred, and the client is not trusted yet.
#[cfg(test)]
pub(crate) const MAX_HEADER: usize = PREFIX + MAX_BLOCK;

/// The client that a load balancer announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnnouncedAddress {
    /// The connection is for this client.
    Client {
        /// The announced client address. [`ClientAddr`](crate::addr::ClientAddr) converts IPv4-mapped ones.
        source: SocketAddr,
        /// The address that the client connected to.
        destination: SocketAddr,
    },
    /// The header announces no address, so the address of the load balancer counts. This is version 2 LOCAL (a health check)
    /// and UNSPEC, version 1 UNKNOWN, and a client of a Unix socket.
    Proxy,
}

/// The state of the header in the bytes received so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The header is incomplete, or nothing was received yet.
    ///
    /// All bytes received so far belong to the header, and the header has at least `at_least` bytes. A caller that reads only
    /// up to `at_least` therefore consumes no byte of the client. More may be needed after that.
    More {
        /// Number of bytes from the start of the connection: more than received so far, and at most the size of the header.
        at_least: usize,
    },
    /// The header is complete.
    Done {
        /// Size of the header in bytes. The bytes after it are the client's.
        length: usize,
        announced: AnnouncedAddress,
    },
    /// The stream does not begin with a PROXY header.
    Missing,
    /// The stream begins like a PROXY header, but the header is invalid.
    Invalid(HeaderError),
}

/// Why a PROXY header is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// Version 1: the line does not follow the specification.
    Line,
    /// Version 1: CR without LF, or LF without CR.
    LineEnd,
    /// Version 1: the line exceeds the maximum length.
    LineTooLong,
    /// Version 2: the 13th byte is an unknown version or command.
    VersionOrCommand(u8),
    /// Version 2: the 14th byte is an unknown family or transport, or datagrams.
    Family(u8),
    /// Version 2: the length is too short for the addresses of the family.
    AddressesCut(usize),
    /// Version 2: the length exceeds the maximum.
    BlockTooLong(usize),
    /// Version 2: the TLVs do not fit the length.
    Vectors,
    /// Version 2: the checksum is wrong or malformed.
    Checksum,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line => f.write_str("PROXY v1 header: invalid line"),
            Self::LineEnd => f.write_str("PROXY v1 header: line does not end with CR LF"),
            Self::LineTooLong => write!(f, "PROXY v1 header: line exceeds {MAX_LINE} bytes"),
            Self::VersionOrCommand(byte) => write!(f, "PROXY v2 header: unknown version or command {byte:#04x}"),
            Self::Family(byte) => write!(f, "PROXY v2 header: unsupported address family or transport {byte:#04x}"),
            Self::AddressesCut(length) => write!(f, "PROXY v2 header: {length} bytes are too few for its addresses"),
            Self::BlockTooLong(length) => {
                write!(f, "PROXY v2 header: length {length} exceeds {MAX_BLOCK} bytes")
            }
            Self::Vectors => f.write_str("PROXY v2 header: ends within a TLV"),
            Self::Checksum => f.write_str("PROXY v2 header: checksum mismatch"),
        }
    }
}

/// Parses the header at the start of `bytes`, which start at the beginning of the connection.
pub(crate) fn read(bytes: &[u8]) -> Progress {
    let read = if begins_like(bytes, &SIGNATURE) && !bytes.is_empty() {
        read_block(bytes)
    } else if begins_like(bytes, NAME) {
        read_line(bytes)
    } else {
        return Progress::Missing;
    };
    read.unwrap_or_else(Progress::Invalid)
}

/// Version 1: a line of text.
fn read_line(bytes: &[u8]) -> Result<Progress, HeaderError> {
    // An address could be incomplete before the end of the line, so nothing is parsed until then.
    let Some(end) = bytes.iter().take(MAX_LINE - 1).position(|byte| matches!(byte, b'\r' | b'\n')) else {
        let shortest = shortest_line(bytes).ok_or(HeaderError::Line)?;
        let at_least = shortest.max(bytes.len().saturating_add(2));
        return if at_least > MAX_LINE { Err(HeaderError::LineTooLong) } else { Ok(Progress::More { at_least }) };
    };
    match bytes.get(end..).unwrap_or_default() {
        [b'\r'] => Ok(Progress::More { at_least: end + 2 }),
        [b'\r', b'\n', ..] => {
            let announced = bytes.get(..end).and_then(line).ok_or(HeaderError::Line)?;
            Ok(Progress::Done { length: end + 2, announced })
        }
        _ => Err(HeaderError::LineEnd),
    }
}

/// The size of the shortest line that begins like this one.
fn shortest_line(bytes: &[u8]) -> Option<usize> {
    [
        (UNKNOWN, UNKNOWN.len() + 2),
        (TCP6, TCP6.len() + ":: :: 0 0\r\n".len()),
        (TCP4, TCP4.len() + "0.0.0.0 0.0.0.0 0 0\r\n".len()),
    ]
    .into_iter()
    .find_map(|(beginning, shortest)| begins_like(bytes, beginning).then_some(shortest))
}

/// Parses a line without its end.
fn line(line: &[u8]) -> Option<AnnouncedAddress> {
    if let Some(rest) = line.strip_prefix(UNKNOWN) {
        // The specification requires that addresses here are ignored.
        return (rest.is_empty() || rest.starts_with(b" ")).then_some(AnnouncedAddress::Proxy);
    }
    if let Some(addresses) = line.strip_prefix(TCP4) {
        return client::<Ipv4Addr>(addresses);
    }
    client::<Ipv6Addr>(line.strip_prefix(TCP6)?)
}

/// Parses two addresses and two ports. The standard library is as strict as the specification: no leading zeros, no zone.
fn client<A: FromStr + Into<IpAddr>>(addresses: &[u8]) -> Option<AnnouncedAddress> {
    let mut fields = str::from_utf8(addresses).ok()?.split(' ');
    let mut address = || fields.next()?.parse::<A>().ok().map(Into::into);
    let (source, destination) = (address()?, address()?);
    let mut port = || port(fields.next()?);
    let (source_port, destination_port) = (port()?, port()?);
    let announced = AnnouncedAddress::Client {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    };
    fields.next().is_none().then_some(announced)
}

fn port(text: &str) -> Option<u16> {
    let plain = text == "0" || text.starts_with(|first| matches!(first, '1'..='9'));
    if plain { text.parse().ok() } else { None }
}

/// Version 2: a block of bytes with a length.
fn read_block(bytes: &[u8]) -> Result<Progress, HeaderError> {
    if let Some(&byte) = bytes.get(SIGNATURE.len())
        && ![VERSION_2 | COMMAND_LOCAL, VERSION_2 | COMMAND_PROXY].contains(&byte)
    {
        return Err(HeaderError::VersionOrCommand(byte));
    }
    let Some(&[.., high, low]) = bytes.first_chunk::<PREFIX>() else {
        return Ok(Progress::More { at_least: PREFIX });
    };
    let rest = usize::from(u16::from_be_bytes([high, low]));
    if rest > MAX_BLOCK {
        return Err(HeaderError::BlockTooLong(rest));
    }
    let length = PREFIX + rest;
    let Some(header) = bytes.get(..length) else { return Ok(Progress::More { at_least: length }) };
    Ok(Progress::Done { length, announced: block(header)? })
}

/// Parses a complete version 2 header.
fn block(header: &[u8]) -> Result<AnnouncedAddress, HeaderError> {
    let Some((&[.., command, family, _, _], rest)) = header.split_first_chunk::<PREFIX>() else {
        return Err(HeaderError::Vectors);
    };
    if command == VERSION_2 | COMMAND_LOCAL {
        // The specification requires that the rest is ignored, including the family.
        return Ok(AnnouncedAddress::Proxy);
    }
    let cut = HeaderError::AddressesCut(rest.len());
    let (announced, addresses) = match family {
        TCP_OVER_IPV4 => (ipv4(rest).ok_or(cut)?, 12),
        TCP_OVER_IPV6 => (ipv6(rest).ok_or(cut)?, 36),
        STREAM_OVER_UNIX if rest.len() >= 216 => (AnnouncedAddress::Proxy, 216),
        STREAM_OVER_UNIX => return Err(cut),
        // Without a family it is unknown where the addresses end.
        _ if is_unspecified(family) => return Ok(AnnouncedAddress::Proxy),
        _ => return Err(HeaderError::Family(family)),
    };
    check_vectors(header, PREFIX + addresses)?;
    Ok(announced)
}

/// Whether the family or the transport is unspecified and the other one is valid. Datagrams cannot arrive at a TCP port.
fn is_unspecified(family: u8) -> bool {
    matches!((family >> 4, family & 0x0f), (0, 0 | 1) | (1..=3, 0))
}

fn ipv4(bytes: &[u8]) -> Option<AnnouncedAddress> {
    let (source, rest) = bytes.split_first_chunk::<4>()?;
    let (destination, ports) = rest.split_first_chunk::<4>()?;
    from_parts(Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination).into(), ports)
}

fn ipv6(bytes: &[u8]) -> Option<AnnouncedAddress> {
    let (source, rest) = bytes.split_first_chunk::<16>()?;
    let (destination, ports) = rest.split_first_chunk::<16>()?;
    from_parts(Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), ports)
}

fn from_parts(source: IpAddr, destination: IpAddr, ports: &[u8]) -> Option<AnnouncedAddress> {
    let &[s0, s1, d0, d1] = ports.first_chunk::<4>()?;
    Some(AnnouncedAddress::Client {
        source: SocketAddr::new(source, u16::from_be_bytes([s0, s1])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([d0, d1])),
    })
}

/// Checks the lengths of the TLVs after the addresses, and the checksum of the header if present. Other TLVs are ignored.
fn check_vectors(header: &[u8], mut at: usize) -> Result<(), HeaderError> {
    let mut checked = false;
    while at < header.len() {
        let (before, from_here) = header.split_at_checked(at).ok_or(HeaderError::Vectors)?;
        let (&[kind, high, low], rest) = from_here.split_first_chunk::<3>().ok_or(HeaderError::Vectors)?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, behind) = rest.split_at_checked(length).ok_or(HeaderError::Vectors)?;
        if kind == CHECKSUM {
            let expected = <[u8; 4]>::try_from(value).map_err(|_| HeaderError::Checksum)?;
            // The checksum is computed with its own field set to zero.
            let zeroed = [kind, high, low, 0, 0, 0, 0];
            if checked || crc32c([before, &zeroed, behind]) != u32::from_be_bytes(expected) {
                return Err(HeaderError::Checksum);
            }
            checked = true;
        }
        at += 3 + length;
    }
    Ok(())
}

/// Whether either is a prefix of the other.
fn begins_like(bytes: &[u8], beginning: &[u8]) -> bool {
    bytes.iter().zip(beginning).all(|(byte, expected)| byte == expected)
}

/// The start of every version 1 line.
const NAME: &[u8] = b"PROXY";
const UNKNOWN: &[u8] = b"PROXY UNKNOWN";
const TCP4: &[u8] = b"PROXY TCP4 ";
const TCP6: &[u8] = b"PROXY TCP6 ";

/// Maximum size of a version 1 line in bytes, with CR LF.
const MAX_LINE: usize = 107;

/// Maximum size in bytes after the prefix of version 2.
const MAX_BLOCK: usize = 4096;

const STREAM_OVER_UNIX: u8 = 0x31;

/// The TLV type of the CRC32C checksum.
const CHECKSUM: u8 = 0x03;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: AnnouncedAddress = AnnouncedAddress::Client {
        source: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)), 4),
        destination: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 5432),
    };

    /// The addresses and ports of [`CLIENT`] in version 2.
    const ADDRESSES: &[u8] = &[10, 1, 2, 3, 10, 0, 0, 1, 0, 4, 0x15, 0x38];

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    fn v2_with(vectors: &[u8]) -> Vec<u8> {
        v2(0x21, 0x11, &[ADDRESSES, vectors].concat())
    }

    fn done(bytes: &[u8], announced: AnnouncedAddress) -> Progress {
        Progress::Done { length: bytes.len(), announced }
    }

    fn client(source: &str, destination: &str) -> AnnouncedAddress {
        AnnouncedAddress::Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn v1_header_is_read_to_its_end_and_no_further() {
        let cases = [
            ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443", client("192.168.0.1:56324", "192.168.0.11:443")),
            ("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0", client("255.255.255.255:65535", "0.0.0.0:0")),
            ("PROXY TCP6 ::1 2001:DB8::0001 54502 18004", client("[::1]:54502", "[2001:db8::1]:18004")),
            ("PROXY TCP6 :: :: 0 0", client("[::]:0", "[::]:0")),
            // HAProxy from a dual-stack socket.
            ("PROXY TCP6 ::ffff:127.0.0.1 ::ffff:127.0.0.1 1 2", client("[::ffff:127.0.0.1]:1", "[::ffff:7f00:1]:2")),
            ("PROXY UNKNOWN", AnnouncedAddress::Proxy),
            ("PROXY UNKNOWN ffff::1 what ever", AnnouncedAddress::Proxy),
        ];
        for (line, announced) in cases {
            let header = format!("{line}\r\n");
            let followed = format!("{header}GET / HTTP/1.1\r\n");
            assert_eq!(read(followed.as_bytes()), done(header.as_bytes(), announced), "{line}");
        }
    }

    #[test]
    fn v1_header_above_the_maximum_length_is_invalid() {
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
        assert_eq!(longest.len(), MAX_LINE);
        assert_eq!(read(longest.as_bytes()), done(longest.as_bytes(), AnnouncedAddress::Proxy));
        let longer = format!("PROXY UNKNOWN {}\r\n", "f".repeat(92));
        assert_eq!(read(longer.as_bytes()), Progress::Invalid(HeaderError::LineTooLong));
        assert_eq!(read(&longer.as_bytes()[..105]), Progress::More { at_least: 107 });
        assert_eq!(read(&longer.as_bytes()[..106]), Progress::Invalid(HeaderError::LineTooLong));
    }

    #[test]
    fn malformed_v1_header_is_invalid() {
        for line in [
            "PROXY",
            "PROXY ",
            "PROXY TCP4",
            "PROXY TCP5 10.1.2.3 10.0.0.1 4 5432",
            "PROXY tcp4 10.1.2.3 10.0.0.1 4 5432",
            "PROXY  TCP4 10.1.2.3 10.0.0.1 4 5432",
            "PROXY TCP4  10.1.2.3 10.0.0.1 4 5432",
            "PROXY TCP4 10.1.2.3  10.0.0.1 4 5432",
            "PROXY TCP4 10.1.2.3 10.0.0.1 4 5432 ",
            "PROXY TCP4 10.1.2.3 10.0.0.1 4 5432 x",
            "PROXY TCP4 10.1.2.3\t10.0.0.1 4 5432",
            "PROXY TCP4 10.1.2.3 10.0.0.1 4",
            "PROXY TCP4 10.1.2.03 10.0.0.1 4 5432",
            "PROXY TCP4 10.1.2.256 10.0.0.1 4 5432",
            "PROXY TCP4 10.1.2 10.0.0.1 4 5432",
            "PROXY TCP4 ::1 ::1 4 5432",
            "PROXY TCP4 10.1.2.3 ::1 4 5432",
            "PROXY TCP6 10.1.2.3 10.0.0.1 4 5432",
            "PROXY TCP6 ::1%eth0 ::1 4 5432",
            "PROXY TCP6 [::1] ::1 4 5432",
            "PROXY TCP6 ::00001 ::1 4 5432",
            "PROXY TCP6 1:2:3:4:5:6:7 ::1 4 5432",
            "PROXY TCP6 ::1::2 ::1 4 5432",
            "PROXY TCP4 10.1.2.3 10.0.0.1 04 5432",
            "PROXY TCP4 10.1.2.3 10.0.0.1 +4 5432",
            "PROXY TCP4 10.1.2.3 10.0.0.1 -4 5432",
            "PROXY TCP4 10.1.2.3 10.0.0.1 4 65536",
            "PROXY TCP4 10.1.2.3 10.0.0.1 4 5432\0",
            "PROXY UNKNOWNX",
            "PROXY UNKNOW",
        ] {
            let header = format!("{line}\r\nPROXY TCP4 10.1.2.3 10.0.0.1 4 5432\r\n");
            assert_eq!(read(header.as_bytes()), Progress::Invalid(HeaderError::Line), "{line}");
        }
        for end in ["\n", "\r", "\rX", "\n\r\n"] {
            let header = format!("PROXY TCP4 10.1.2.3 10.0.0.1 4 5432{end} and so on\r\n");
            assert_eq!(read(header.as_bytes()), Progress::Invalid(HeaderError::LineEnd), "{end:?}");
        }
        assert_eq!(read(b"PROXY TCP4 \xff\xff 10.0.0.1 4 5432\r\n"), Progress::Invalid(HeaderError::Line));
        // Invalid even before the end of the line.
        assert_eq!(read(b"PROXY HTTP/1.1"), Progress::Invalid(HeaderError::Line));
    }

    #[test]
    fn stream_that_does_not_begin_like_a_header_has_none() {
        for bytes in [
            &b"\x16\x03\x01\x02\x00"[..],
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"PING\r\n",
            b"*1\r\n",
            b"\r\n\r\nX",
            b"proxy TCP4",
        ] {
            assert_eq!(read(bytes), Progress::Missing, "{bytes:?}");
        }
        assert_eq!(read(b""), Progress::More { at_least: 15 });
        assert_eq!(read(b"P"), Progress::More { at_least: 15 });
        assert_eq!(read(b"\r"), Progress::More { at_least: 16 });
    }

    #[test]
    fn v2_header_is_read_to_its_length_and_no_further() {
        let ipv6 = [&[0; 15][..], &[1, 0x20, 1, 0x0d, 0xb8], &[0; 11], &[2, 0, 4, 0x15, 0x38]].concat();
        let cases = [
            (v2_with(b""), CLIENT),
            (v2_with(b"\x04\0\x03abc\xea\0\x00"), CLIENT),
            (v2(0x21, 0x21, &ipv6), client("[::1]:4", "[2001:db8::2]:5432")),
            (v2(0x21, 0x31, &[0; 216]), AnnouncedAddress::Proxy),
            (v2(0x21, 0x00, b""), AnnouncedAddress::Proxy),
            (v2(0x21, 0x00, b"to be ignored"), AnnouncedAddress::Proxy),
            (v2(0x21, 0x10, b"to be ignored"), AnnouncedAddress::Proxy),
            (v2(0x20, 0x00, b""), AnnouncedAddress::Proxy),
            // LOCAL with a client's address is LOCAL.
            (v2(0x20, 0x11, ADDRESSES), AnnouncedAddress::Proxy),
            (v2(0x20, 0xff, b"\x03\0\x04none"), AnnouncedAddress::Proxy),
        ];
        for (header, announced) in cases {
            let followed = [&header[..], b"\x16\x03\x01"].concat();
            assert_eq!(read(&followed), done(&header, announced), "{header:x?}");
        }
        let longest = v2(0x20, 0, &[0; MAX_BLOCK]);
        assert_eq!(longest.len(), MAX_HEADER);
        assert_eq!(read(&longest), done(&longest, AnnouncedAddress::Proxy));
    }

    #[test]
    fn malformed_v2_header_is_invalid() {
        let cases = [
            (v2(0x11, 0x11, ADDRESSES), HeaderError::VersionOrCommand(0x11)),
            (v2(0x31, 0x11, ADDRESSES), HeaderError::VersionOrCommand(0x31)),
            (v2(0x22, 0x11, ADDRESSES), HeaderError::VersionOrCommand(0x22)),
            (v2(0x21, 0x12, ADDRESSES), HeaderError::Family(0x12)),
            (v2(0x21, 0x02, b""), HeaderError::Family(0x02)),
            (v2(0x21, 0x13, ADDRESSES), HeaderError::Family(0x13)),
            (v2(0x21, 0x41, &[0; 216]), HeaderError::Family(0x41)),
            (v2(0x21, 0x40, b""), HeaderError::Family(0x40)),
            (v2(0x21, 0x32, &[0; 216]), HeaderError::Family(0x32)),
            (v2(0x21, 0x11, &ADDRESSES[..11]), HeaderError::AddressesCut(11)),
            (v2(0x21, 0x21, &[0; 35]), HeaderError::AddressesCut(35)),
            (v2(0x21, 0x31, &[0; 215]), HeaderError::AddressesCut(215)),
            (v2(0x21, 0x11, &[0; MAX_BLOCK + 1]), HeaderError::BlockTooLong(MAX_BLOCK + 1)),
            (v2_with(b"\x04"), HeaderError::Vectors),
            (v2_with(b"\x04\0"), HeaderError::Vectors),
            (v2_with(b"\x04\0\x04abc"), HeaderError::Vectors),
            (v2_with(b"\x04\0\x02abc"), HeaderError::Vectors),
            (v2_with(b"\x04\xff\xffabc"), HeaderError::Vectors),
            (v2_with(b"\x03\0\x04\0\0\0\0"), HeaderError::Checksum),
            (v2_with(b"\x03\0\x03\0\0\0"), HeaderError::Checksum),
        ];
        for (header, why) in cases {
            assert_eq!(read(&header), Progress::Invalid(why), "{header:x?}");
        }
        // A length above the maximum is rejected at once.
        let begun = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        assert_eq!(read(&begun), Progress::Invalid(HeaderError::BlockTooLong(0xffff)));
        assert_eq!(read(&begun[..13]), Progress::More { at_least: 16 });
        assert_eq!(read(b"\r\n\r\n\0\r\nQUIT\n\x11"), Progress::Invalid(HeaderError::VersionOrCommand(0x11)));
    }

    /// Recorded from `haproxy` 2.6 with the option `crc32c`.
    const CHECKED: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x6d\x7f\0\0\x01\x7f\0\0\x01\xe2\x6e\x46\x51\
        \x03\0\x04\x31\xc7\x52\x33\x01\0\x0apostgresql\x02\0\x0adb.example\x05\0\x09sess-0001\
        \x20\0\x31\x07\0\0\0\0\x21\0\x07TLSv1.3\x22\0\x06app-\xc3\xbc\x23\0\x16TLS_AES_256_GCM_SHA384";

    #[test]
    fn checksum_of_haproxy_is_valid_and_detects_any_changed_bit() {
        assert_eq!(read(CHECKED), done(CHECKED, client("127.0.0.1:57966", "127.0.0.1:18001")));
        // Excluded are the length and the TLV header of the checksum: changing them removes the checksum.
        for index in (PREFIX..28).chain(31..CHECKED.len()) {
            for bit in 0..8 {
                let mut changed = CHECKED.to_vec();
                changed[index] ^= 1 << bit;
                assert!(matches!(read(&changed), Progress::Invalid(_)), "byte {index}, bit {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_within_their_length_and_more_bytes_do_not_change_the_result(
            beginning in prop_oneof![
                Just(b"".to_vec()),
                Just(b"PROXY ".to_vec()),
                Just(b"PROXY TCP4 1.2.3.4 ".to_vec()),
                Just(b"PROXY TCP6 ".to_vec()),
                Just(SIGNATURE.to_vec()),
                Just(v2_with(b"")[..14].to_vec()),
                Just(v2(0x21, 0x21, b"")[..14].to_vec()),
                Just(CHECKED.to_vec()),
            ],
            rest in prop::collection::vec(prop_oneof![0_u8..4, Just(b' '), Just(b'1'), Just(b':'), Just(b'\r'), Just(b'\n'), any::<u8>()], 0..200),
        ) {
            let bytes = [beginning, rest].concat();
            match read(&bytes) {
                Progress::Done { length, .. } => prop_assert!(length <= bytes.len()),
                Progress::More { at_least } => prop_assert!(bytes.len() < at_least && at_least <= MAX_HEADER),
                Progress::Missing | Progress::Invalid(_) => {}
            }
            // More bytes change neither an invalid nor a complete header.
            let more = [&bytes[..], b"\r\n\r\n"].concat();
            if !matches!(read(&bytes), Progress::More { .. }) {
                prop_assert_eq!(read(&more), read(&bytes));
            }
        }
    }
}
