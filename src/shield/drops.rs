//! How many packets the kernel has dropped at a listening socket: asked over netlink, as `ss -m` does (sock_diag(7)).

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Reads the count. It begins with the socket and starts again at 0 after 2³² packets. A full queue counts, too.
///
/// # Errors
/// Where netlink, or this part of it, is not to be had; or when the answer is about something else.
pub(super) fn read(listener: &TcpListener) -> io::Result<u32> {
    let cookie = SockRef::from(listener).cookie()?;
    let question = question(listener.local_addr()?, cookie);
    let netlink = Socket::new(Domain::from(libc::AF_NETLINK), Type::DGRAM, Some(Protocol::from(SOCK_DIAG)))?;
    // What the kernel answers is there when the question has been sent.
    netlink.set_nonblocking(true)?;
    netlink.send(&question)?;
    let mut answer = [0; LONGEST_ANSWER];
    let length = (&netlink).read(&mut answer)?;
    dropped(answer.get(..length).unwrap_or_default())
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn question(local: SocketAddr, cookie: u64) -> Vec<u8> {
    let (family, address, scope) = match local {
        SocketAddr::V4(v4) => (libc::AF_INET, [&v4.ip().octets()[..], &[0; 12]].concat(), 0),
        SocketAddr::V6(v6) => (libc::AF_INET6, v6.ip().octets().to_vec(), v6.scope_id()),
    };
    let mut bytes = Vec::with_capacity(usize::from(QUESTION_LENGTH));
    bytes.extend(u32::from(QUESTION_LENGTH).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence and sender
    bytes.extend([u8::try_from(family).unwrap_or_default(), TCP, 1 << (MEMORY - 1), 0]);
    bytes.extend(LISTENING.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(address);
    bytes.extend([0; 16]);
    bytes.extend(scope.to_ne_bytes());
    // The halves stand in this order on every machine.
    bytes.extend(
        [cookie & u64::from(u32::MAX), cookie >> 32]
            .into_iter()
            .flat_map(|half| u32::try_from(half).unwrap_or_default().to_ne_bytes()),
    );
    bytes
}

/// Finds the count in an answer: a header, `struct inet_diag_msg`, and attributes.
fn dropped(answer: &[u8]) -> io::Result<u32> {
    let kind = number::<2>(answer, 4).map(u16::from_ne_bytes);
    if kind == Some(ERROR) {
        let code = number::<4>(answer, HEADER_LENGTH).map(i32::from_ne_bytes).unwrap_or_default();
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    let mut attributes = answer.get(HEADER_LENGTH + MESSAGE_LENGTH..).unwrap_or_default();
    while kind == Some(SOCK_DIAG_BY_FAMILY)
        && let Some(length) = number::<2>(attributes, 0).map(u16::from_ne_bytes).map(usize::from)
        && length >= ATTRIBUTE_HEADER
        && let Some(attribute) = attributes.get(..length)
    {
        if number::<2>(attribute, 2).map(u16::from_ne_bytes) == Some(MEMORY)
            && let Some(count) = number::<4>(attribute, ATTRIBUTE_HEADER + DROPS)
        {
            return Ok(u32::from_ne_bytes(count));
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(io::Error::other("the kernel's answer has no count"))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

// linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const TCP: u8 = 6;
/// `INET_DIAG_SKMEMINFO`; the ninth of its numbers is the count.
const MEMORY: u16 = 7;
const DROPS: usize = 8 * 4;
/// The state, as a bit.
const LISTENING: u32 = 1 << 10;
const HEADER_LENGTH: usize = 16;
const MESSAGE_LENGTH: usize = 72;
const ATTRIBUTE_HEADER: usize = 4;
const QUESTION_LENGTH: u16 = 72;

/// An answer has about 170 bytes.
const LONGEST_ANSWER: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer with these attributes.
    fn answer(attributes: &[(u16, &[u8])]) -> Vec<u8> {
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
    fn the_kernel_answers_for_ports_of_either_family() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            assert_eq!(read(&listener).unwrap(), 0, "{address}");
        }
    }

    #[test]
    fn the_count_is_the_ninth_number_of_its_attribute() {
        let memory: Vec<u8> = (1..=9_u32).flat_map(u32::to_ne_bytes).collect();
        assert_eq!(dropped(&answer(&[(8, &[0]), (15, &[0; 4]), (MEMORY, &memory)])).unwrap(), 9);
        assert!(dropped(&answer(&[(8, &[0])])).is_err());
        assert!(dropped(&answer(&[(MEMORY, &memory[..35])])).is_err(), "an older kernel has eight");
    }

    #[test]
    fn a_refusal_is_told_as_the_error_it_is() {
        let mut refusal = vec![0; HEADER_LENGTH];
        refusal[4..6].copy_from_slice(&ERROR.to_ne_bytes());
        refusal.extend((-libc::ENOENT).to_ne_bytes());
        assert_eq!(dropped(&refusal).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    proptest! {
        #[test]
        fn no_answer_leads_astray(mut bytes: Vec<u8>, kind in prop_oneof![Just(ERROR), Just(SOCK_DIAG_BY_FAMILY)]) {
            let mut all = answer(&[]);
            all[4..6].copy_from_slice(&kind.to_ne_bytes());
            all.append(&mut bytes);
            let _ = dropped(&all);
            let _ = dropped(all.get(..all.len().min(10)).unwrap());
        }
    }
}
