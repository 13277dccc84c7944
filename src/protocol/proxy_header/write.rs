//! Builds the PROXY header that announces a client to an upstream.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::addr::canonical;
use crate::protocol::proxy_header::{
    COMMAND_LOCAL, COMMAND_PROXY, PREFIX, SIGNATURE, TCP_OVER_IPV4, TCP_OVER_IPV6, UNSPECIFIED, VERSION_2,
};

/// The version of the PROXY protocol at an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text with the addresses only.
    V1,
    /// A binary header with the addresses, the TLS properties and the certificate name of the client.
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// The client that a header announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProxyHeader<'a> {
    /// The addresses of the client's connection. A client of a Unix socket has none.
    pub addresses: Option<Addresses>,
    /// The protocol negotiated by ALPN.
    pub alpn: Option<&'a [u8]>,
    /// The SNI of the client.
    pub server_name: Option<&'a str>,
    /// The session id in the audit log.
    pub session: Option<&'a [u8]>,
    /// The TLS properties of the client's connection, if it uses TLS.
    pub tls: Option<Tls<'a>>,
}

/// The two ends of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// The address that the client connected to: the listener, or the address that the load balancer announced.
    pub destination: SocketAddr,
}

/// The TLS properties of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tls<'a> {
    /// Such as "TLSv1.3".
    pub version: &'a str,
    /// The IANA name of the cipher suite.
    pub cipher: &'a str,
    /// The client certificate. An admitted client has a valid one or none, so it is announced as verified.
    pub certificate: Option<Certificate<'a>>,
}

/// The client certificate that the header describes (`PP2_TYPE_SSL`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Certificate<'a> {
    /// The common name of the subject.
    pub common_name: Option<&'a str>,
    pub shown: ShownIn,
}

/// The handshake in which a client presented its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShownIn {
    /// In the handshake of this connection.
    Now,
    /// In an earlier handshake, which this connection resumes.
    Before,
}

impl ProxyHeader<'_> {
    /// The bytes of the header. They come first on the connection.
    pub(crate) fn header(&self, version: Version) -> Vec<u8> {
        match version {
            Version::V1 => line(self.addresses),
            Version::V2 => {
                let (command, family, mut rest) = block(self.addresses);
                self.push_vectors(&mut rest);
                with_prefix(command, family, &rest)
            }
        }
    }

    /// Appends the TLVs in HAProxy's order, so that tests can compare the bytes.
    fn push_vectors(&self, out: &mut Vec<u8>) {
        push(out, ALPN, self.alpn, MAX_WORD);
        push(out, AUTHORITY, printable(self.server_name), MAX_NAME);
        push(out, UNIQUE_ID, self.session, MAX_UNIQUE_ID);
        if let Some(tls) = &self.tls {
            push(out, SSL, Some(&tls.value()), usize::MAX);
        }
    }
}

impl Tls<'_> {
    fn value(&self) -> Vec<u8> {
        let (client, verify) = match self.certificate.map(|certificate| certificate.shown) {
            Some(ShownIn::Now) => (CLIENT_SSL | CLIENT_CERT_CONN | CLIENT_CERT_SESS, VERIFIED),
            Some(ShownIn::Before) => (CLIENT_SSL | CLIENT_CERT_SESS, VERIFIED),
            None => (CLIENT_SSL, NOT_VERIFIED),
        };
        let mut value = vec![client];
        value.extend(verify.to_be_bytes());
        let common_name = self.certificate.and_then(|certificate| certificate.common_name);
        push(&mut value, SSL_VERSION, printable(Some(self.version)), MAX_WORD);
        push(&mut value, SSL_CN, printable(common_name), MAX_NAME);
        push(&mut value, SSL_CIPHER, printable(Some(self.cipher)), MAX_WORD);
        value
    }
}

/// The header for a health check, which has no client: LOCAL in version 2, UNKNOWN in version 1. Both make the receiver use
/// the address of the connection.
pub(crate) fn own_header(version: Version) -> Vec<u8> {
    match version {
        Version::V1 => line(None),
        Version::V2 => with_prefix(COMMAND_LOCAL, UNSPECIFIED, &[]),
    }
}

/// Version 1.
fn line(addresses: Option<Addresses>) -> Vec<u8> {
    let text = match addresses.map(Pair::from) {
        None => "PROXY UNKNOWN\r\n".to_owned(),
        Some(Pair { source, destination, ports: [from, to] }) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {} {} {from} {to}\r\n", to_hex_text(source), to_hex_text(destination))
        }
    };
    text.into_bytes()
}

/// An address in version 1 format. The specification allows hexadecimal groups only, but the standard library writes the end
/// of an IPv4-mapped address as an IPv4 address.
fn to_hex_text(address: IpAddr) -> String {
    match address {
        IpAddr::V6(mapped) if mapped.to_ipv4_mapped().is_some() => {
            let [.., high, low] = mapped.segments();
            format!("::ffff:{high:x}:{low:x}")
        }
        address => address.to_string(),
    }
}

/// Version 2: command, family, and the addresses in the format of the family.
///
/// A client without addresses is announced as LOCAL, with its TLVs. The specification also allows PROXY with an unspecified
/// family, but a receiver may reject that, and HAProxy does. Every receiver has to accept LOCAL.
fn block(addresses: Option<Addresses>) -> (u8, u8, Vec<u8>) {
    let Some(Pair { source, destination, ports }) = addresses.map(Pair::from) else {
        return (COMMAND_LOCAL, UNSPECIFIED, Vec::new());
    };
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    (COMMAND_PROXY, if source.is_ipv4() { TCP_OVER_IPV4 } else { TCP_OVER_IPV6 }, bytes)
}

/// Two addresses of one family.
///
/// A header has one address family. Behind a load balancer that converts between families, the client's address and the
/// destination may differ in it. Then both are written as IPv6, with the IPv4 address mapped (RFC 4291 §2.5.5.2), as HAProxy
/// does. UNKNOWN would lose the client's address.
struct Pair {
    source: IpAddr,
    destination: IpAddr,
    ports: [u16; 2],
}

impl From<Addresses> for Pair {
    fn from(addresses: Addresses) -> Self {
        let [(source, from), (destination, to)] = [addresses.source, addresses.destination].map(canonical);
        let ports = [from, to];
        if source.is_ipv4() == destination.is_ipv4() {
            return Self { source, destination, ports };
        }
        Self { source: mapped(source).into(), destination: mapped(destination).into(), ports }
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn with_prefix(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap_or(u16::MAX);
    let mut header = Vec::with_capacity(PREFIX + rest.len());
    header.extend(SIGNATURE);
    header.extend([VERSION_2 | command, family]);
    header.extend(length.to_be_bytes());
    header.extend(rest);
    header
}

/// Appends a TLV unless its value is empty. A value that is too long is omitted and not cut, because a cut name is another
/// name.
fn push(out: &mut Vec<u8>, kind: u8, value: Option<&[u8]>, max: usize) {
    let value = value.unwrap_or_default();
    let Ok(length) = u16::try_from(value.len()) else { return };
    if !value.is_empty() && value.len() <= max {
        out.push(kind);
        out.extend(length.to_be_bytes());
        out.extend(value);
    }
}

/// A text from a certificate or a ClientHello, if it has no control characters. A receiver in C would read a text with a NUL as
/// a shorter name.
fn printable(text: Option<&str>) -> Option<&[u8]> {
    text.filter(|text| !text.contains(char::is_control)).map(str::as_bytes)
}

const ALPN: u8 = 0x01;
const AUTHORITY: u8 = 0x02;
const UNIQUE_ID: u8 = 0x05;
const SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_CN: u8 = 0x22;
const SSL_CIPHER: u8 = 0x23;

const CLIENT_SSL: u8 = 0x01;
const CLIENT_CERT_CONN: u8 = 0x02;
const CLIENT_CERT_SESS: u8 = 0x04;

const VERIFIED: u32 = 0;
const NOT_VERIFIED: u32 = 1;

/// Maximum size in bytes, from the specification.
const MAX_UNIQUE_ID: usize = 128;

/// Maximum size of protocol and cipher suite names in bytes. Receivers read a header at once, so all of it has to fit the
/// smallest TCP segment, which carries 1,220 bytes.
const MAX_WORD: usize = 64;

/// Maximum size of a name in bytes. DNS names are not longer, nor are common names in practice.
const MAX_NAME: usize = 255;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::proxy_header::read::{AnnouncedAddress, Progress, read};

    fn between(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    fn header_for(addresses: Option<Addresses>) -> ProxyHeader<'static> {
        ProxyHeader { addresses, ..ProxyHeader::default() }
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    /// Recorded from `haproxy` 2.6 with `send-proxy-v2-ssl-cn` and the options `authority,ssl-cipher,unique-id`.
    const FROM_HAPROXY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x66\x7f\0\0\x01\x7f\0\0\x01\x9b\xbc\x46\x52\
        \x01\0\x0apostgresql\x02\0\x0adb.example\x05\0\x09sess-0001\
        \x20\0\x31\x07\0\0\0\0\x21\0\x07TLSv1.3\x22\0\x06app-\xc3\xbc\x23\0\x16TLS_AES_256_GCM_SHA384";

    fn haproxy_header() -> ProxyHeader<'static> {
        ProxyHeader {
            addresses: between("127.0.0.1:39868", "127.0.0.1:18002"),
            alpn: Some(b"postgresql"),
            server_name: Some("db.example"),
            session: Some(b"sess-0001"),
            tls: Some(Tls {
                version: "TLSv1.3",
                cipher: "TLS_AES_256_GCM_SHA384",
                certificate: Some(Certificate { common_name: Some("app-ü"), shown: ShownIn::Now }),
            }),
        }
    }

    #[test]
    fn v2_header_equals_that_of_haproxy() {
        assert_eq!(haproxy_header().header(Version::V2), FROM_HAPROXY);
        let plain = header_for(between("[::1]:59278", "[::1]:18006")).header(Version::V2);
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
        expected.extend([&[0; 15][..], b"\x01", &[0; 15], b"\x01\xe7\x8e\x46\x56"].concat());
        assert_eq!(plain, expected);
    }

    #[test]
    fn v1_header_is_the_line_of_the_specification() {
        let v1 = |addresses| text(header_for(addresses).header(Version::V1));
        let line = v1(between("192.168.0.1:56324", "192.168.0.11:443"));
        assert_eq!(line, "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
        assert_eq!(v1(between("[::1]:54502", "[::1]:18004")), "PROXY TCP6 ::1 ::1 54502 18004\r\n");
        assert_eq!(v1(None), "PROXY UNKNOWN\r\n");
        let longest = "[1111:2222:3333:4444:5555:6666:7777:8888]:65535";
        assert_eq!(v1(between(longest, longest)).len(), 104);
    }

    #[test]
    fn addresses_of_two_families_are_written_as_ipv6() {
        let mixed = header_for(between("10.1.2.3:1", "[2001:db8::1]:2"));
        assert_eq!(text(mixed.header(Version::V1)), "PROXY TCP6 ::ffff:a01:203 2001:db8::1 1 2\r\n");
        let mixed = header_for(between("[2001:db8::1]:2", "10.1.2.3:1"));
        assert_eq!(text(mixed.header(Version::V1)), "PROXY TCP6 2001:db8::1 ::ffff:a01:203 2 1\r\n");
        // From a dual-stack socket.
        let mapped = header_for(between("[::ffff:10.1.2.3]:1", "[::ffff:10.0.0.1]:2"));
        assert_eq!(text(mapped.header(Version::V1)), "PROXY TCP4 10.1.2.3 10.0.0.1 1 2\r\n");
    }

    #[test]
    fn health_check_header_is_local_or_unknown() {
        assert_eq!(own_header(Version::V2), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
        assert_eq!(text(own_header(Version::V1)), "PROXY UNKNOWN\r\n");
    }

    #[test]
    fn client_without_addresses_is_local_with_its_tlvs() {
        let header = ProxyHeader { session: Some(b"7"), ..header_for(None) }.header(Version::V2);
        assert_eq!(header, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x04\x05\0\x017");
    }

    #[test]
    fn resumed_certificate_and_no_certificate_have_different_flags() {
        let tls = |certificate| Tls { version: "TLSv1.2", cipher: "X", certificate }.value();
        let before = Certificate { common_name: None, shown: ShownIn::Before };
        assert_eq!(tls(Some(before)), b"\x05\0\0\0\0\x21\0\x07TLSv1.2\x23\0\x01X");
        assert_eq!(tls(None), b"\x01\0\0\0\x01\x21\0\x07TLSv1.2\x23\0\x01X");
    }

    #[test]
    fn name_that_is_too_long_or_not_printable_is_omitted() {
        for name in ["admin\0x", "a\r\nb", &"x".repeat(256), ""] {
            let certificate = Some(Certificate { common_name: Some(name), shown: ShownIn::Now });
            let tls = Some(Tls { version: "TLSv1.3", cipher: "X", certificate });
            let header = ProxyHeader { server_name: Some(name), tls, ..header_for(None) }.header(Version::V2);
            let expected = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x16\x20\0\x13\x07\0\0\0\0\x21\0\x07TLSv1.3\x23\0\x01X";
            assert_eq!(header, expected, "{name:?}");
        }
    }

    fn any_socket() -> impl Strategy<Value = SocketAddr> {
        let mapped = any::<[u8; 4]>().prop_map(|octets| IpAddr::from(octets).to_canonical());
        (prop_oneof![any::<IpAddr>(), mapped], any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    proptest! {
        #[test]
        fn any_header_fits_a_segment_and_is_read_back_from_any_chunks(
            ends in prop::option::of((any_socket(), any_socket())),
            alpn in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
            names in prop::collection::vec(prop_oneof![".{0,300}", "[a-z]{1,64}", "[a-z]{250,260}"], 4),
            session in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
            shown in prop::option::of(prop_oneof![Just(ShownIn::Now), Just(ShownIn::Before)]),
            version in prop_oneof![Just(Version::V1), Just(Version::V2)],
            behind in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let [server_name, common_name, tls_version, cipher] = &names[..] else { unreachable!() };
            let certificate = shown.map(|shown| Certificate { common_name: Some(common_name), shown });
            let header_for = ProxyHeader {
                addresses: ends.map(|(from, destination)| Addresses { source: from, destination }),
                alpn: alpn.as_deref(),
                server_name: Some(server_name),
                session: session.as_deref(),
                tls: Some(Tls { version: tls_version, cipher, certificate }),
            };
            let header = header_for.header(version);
            prop_assert!(header.len() <= 1220);
            for cut in 0..header.len() {
                let Progress::More { at_least } = read(&header[..cut]) else {
                    return Err(TestCaseError::fail(format!("{cut} bytes: {:?}", read(&header[..cut]))));
                };
                prop_assert!(cut < at_least && at_least <= header.len(), "{} bytes: {}", cut, at_least);
            }
            let Progress::Done { length, announced } = read(&[&header[..], &behind].concat()) else {
                return Err(TestCaseError::fail("a whole header is not read"));
            };
            prop_assert_eq!(length, header.len());
            let read = match announced {
                AnnouncedAddress::Client { source, destination } => Some((canonical(source), canonical(destination))),
                AnnouncedAddress::Proxy => None,
            };
            prop_assert_eq!(read, ends.map(|(from, to)| (canonical(from), canonical(to))));
        }
    }
}
