//! How many packets the kernel has dropped at a listening socket, as `ss -m` shows it.

use std::io;
use std::net::TcpListener;

use crate::transport::tcp_diag;
use crate::transport::tcp_diag::Attribute;

/// Reads the count. It begins with the socket and starts again at 0 after 2³² packets. A full queue counts, too.
///
/// # Errors
/// Where netlink, or this part of it, is not to be had; or when the answer is about something else.
pub(crate) fn read(listener: &TcpListener) -> io::Result<u32> {
    let memory = tcp_diag::read(listener, listener.local_addr()?, None, Attribute::Memory)?;
    dropped(&memory).ok_or_else(|| io::Error::other("the kernel's answer has no count"))
}

/// The ninth number; an older kernel has eight.
fn dropped(memory: &[u8]) -> Option<u32> {
    tcp_diag::number(memory, DROPS).map(u32::from_ne_bytes)
}

const DROPS: usize = 8 * 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_for_ports_of_either_family() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            assert_eq!(read(&listener).unwrap(), 0, "{address}");
        }
    }

    #[test]
    fn the_count_is_the_ninth_number() {
        let memory: Vec<u8> = (1..=9_u32).flat_map(u32::to_ne_bytes).collect();
        assert_eq!(dropped(&memory), Some(9));
        assert_eq!(dropped(&memory[..35]), None);
    }
}
