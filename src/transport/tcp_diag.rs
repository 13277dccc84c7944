//! Queries `TCP_INFO` and other attributes of a TCP socket over netlink, as `ss` does (sock_diag(7)). This needs no unsafe
//! code, unlike getsockopt.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// An attribute of a response (linux/inet_diag.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attribute {
    /// `INET_DIAG_INFO`: `struct tcp_info`.
    Info,
    /// `INET_DIAG_SKMEMINFO`: nine numbers about memory. The last is the number of dropped packets.
    Memory,
}

impl Attribute {
    const fn number(self) -> u16 {
        match self {
            Self::Info => 2,
            Self::Memory => 7,
        }
    }
}

/// Reads one attribute of a socket at `local`, connected to `peer` or listening.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] if the socket is no longer connected. Other errors if the kernel does not support netlink or
/// sock_diag, or if the response lacks the attribute.
pub(crate) fn read(
    socket: &impl AsFd,
    local: SocketAddr,
    peer: Option<SocketAddr>,
    attribute: Attribute,
) -> io::Result<Vec<u8>> {
    let cookie = SockRef::from(socket).cookie()?;
    let request = build_request(local, peer, cookie, attribute);
    let netlink = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(Protocol::from(SOCK_DIAG)))?;
    // The kernel responds synchronously, so the response is there after the send.
    netlink.set_nonblocking(true)?;
    netlink.send(&request)?;
    let mut response = [0; MAX_RESPONSE_LENGTH];
    let length = (&netlink).read(&mut response)?;
    find_attribute(response.get(..length).unwrap_or_default(), attribute).map(<[u8]>::to_vec)
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn build_request(local: SocketAddr, peer: Option<SocketAddr>, cookie: u64, attribute: Attribute) -> Vec<u8> {
    let (family, scope) = match local {
        SocketAddr::V4(_) => (libc::AF_INET, 0),
        SocketAddr::V6(v6) => (libc::AF_INET6, v6.scope_id()),
    };
    let mut bytes = Vec::with_capacity(usize::from(REQUEST_LENGTH));
    bytes.extend(u32::from(REQUEST_LENGTH).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence and sender
    let extensions = 1 << attribute.number().saturating_sub(1);
    bytes.extend([u8::try_from(family).unwrap_or_default(), TCP, extensions, 0]);
    bytes.extend(ALL_STATES.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(peer.map_or(0, |peer| peer.port()).to_be_bytes());
    bytes.extend(octets(local));
    bytes.extend(peer.map_or([0; 16], octets));
    bytes.extend(scope.to_ne_bytes());
    // The low half comes first on every architecture.
    bytes.extend(
        [cookie & u64::from(u32::MAX), cookie >> 32]
            .into_iter()
            .flat_map(|half| u32::try_from(half).unwrap_or_default().to_ne_bytes()),
    );
    bytes
}

/// An address of either family, padded to 16 bytes.
fn octets(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(v4) => {
            let mut padded = [0; 16];
            padded.iter_mut().zip(v4.ip().octets()).for_each(|(byte, octet)| *byte = octet);
            padded
        }
        SocketAddr::V6(v6) => v6.ip().octets(),
    }
}

/// Finds an attribute in a response, which is a header, `struct inet_diag_msg`, and attributes.
fn find_attribute(response: &[u8], attribute: Attribute) -> io::Result<&[u8]> {
    let kind = number::<2>(response, 4).map(u16::from_ne_bytes);
    if kind == Some(ERROR) {
        let code = number::<4>(response, HEADER_LENGTH).map(i32::from_ne_bytes).unwrap_or_default();
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    let mut attributes = response.get(HEADER_LENGTH + MESSAGE_LENGTH..).unwrap_or_default();
    while kind == Some(SOCK_DIAG_BY_FAMILY)
        && let Some(length) = number::<2>(attributes, 0).map(u16::from_ne_bytes).map(usize::from)
        && length >= ATTRIBUTE_HEADER
        && let Some(one) = attributes.get(..length)
    {
        if number::<2>(one, 2).map(u16::from_ne_bytes) == Some(attribute.number()) {
            return Ok(one.get(ATTRIBUTE_HEADER..).unwrap_or_default());
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(io::Error::other("the netlink response lacks the requested attribute"))
}

/// The bytes of a number at an offset of a kernel structure.
pub(crate) fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

// linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const TCP: u8 = 6;
/// A bit mask of TCP states.
const ALL_STATES: u32 = u32::MAX;
const HEADER_LENGTH: usize = 16;
const MESSAGE_LENGTH: usize = 72;
const ATTRIBUTE_HEADER: usize = 4;
const REQUEST_LENGTH: u16 = 72;

/// A response has about 400 bytes.
const MAX_RESPONSE_LENGTH: usize = 4096;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    /// A response with these attributes.
    fn response(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LENGTH + MESSAGE_LENGTH];
        bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        for (kind, payload) in attributes {
            let length = u16::try_from(ATTRIBUTE_HEADER + payload.len()).unwrap();
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*payload);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn connected_socket_of_either_family_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let target = if address == "[::1]:0" { "::1" } else { "127.0.0.1" };
            let client = TcpStream::connect((target, port)).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            for (socket, peer) in [(&accepted, peer), (&client, client.peer_addr().unwrap())] {
                let info = read(socket, socket.local_addr().unwrap(), Some(peer), Attribute::Info).unwrap();
                assert_eq!(info[0], 1, "{address}: TCP_ESTABLISHED");
            }
        }
    }

    #[test]
    fn attribute_is_found_among_others() {
        let bytes = response(&[(8, &[0]), (7, &[1, 2, 3]), (2, &[4; 5])]);
        assert_eq!(find_attribute(&bytes, Attribute::Memory).unwrap(), [1, 2, 3]);
        assert_eq!(find_attribute(&bytes, Attribute::Info).unwrap(), [4; 5]);
        assert!(find_attribute(&response(&[(8, &[0]), (15, &[0; 4])]), Attribute::Memory).is_err());
    }

    #[test]
    fn error_response_is_returned_as_its_io_error() {
        let mut error = vec![0; HEADER_LENGTH];
        error[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        error.extend((-libc::ENOENT).to_ne_bytes());
        assert_eq!(find_attribute(&error, Attribute::Info).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    proptest! {
        #[test]
        fn any_response_is_parsed_without_a_panic(mut bytes: Vec<u8>, kind in prop_oneof![Just(ERROR), Just(SOCK_DIAG_BY_FAMILY)]) {
            let mut all = response(&[]);
            all[4..6].copy_from_slice(&kind.to_ne_bytes());
            all.append(&mut bytes);
            let _ = find_attribute(&all, Attribute::Info);
            let _ = find_attribute(all.get(..all.len().min(10)).unwrap(), Attribute::Info);
        }
    }
}
