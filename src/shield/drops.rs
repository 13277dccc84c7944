//! Reads the number of packets that the kernel dropped at a listening socket, as `ss -m` shows it.

use std::io;
use std::net::TcpListener;

use crate::transport::tcp_diag;
use crate::transport::tcp_diag::Attribute;

/// Reads the count. It starts at 0 with the socket and wraps after 2³² packets. It includes packets dropped at a full queue.
///
/// # Errors
/// If netlink or its sock_diag part is not available, or if the reply is about another socket.
pub(crate) fn read(listener: &TcpListener) -> io::Result<u32> {
    let memory = tcp_diag::read(listener, listener.local_addr()?, None, Attribute::Memory)?;
    dropped(&memory).ok_or_else(|| io::Error::other("the kernel reports no count of dropped packets"))
}

/// The ninth number of SK_MEMINFO. Older kernels have eight.
fn dropped(memory: &[u8]) -> Option<u32> {
    tcp_diag::number(memory, DROPS).map(u32::from_ne_bytes)
}

const DROPS: usize = 8 * 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_read_for_sockets_of_both_families() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            assert_eq!(read(&listener).unwrap(), 0, "{address}");
        }
    }

    #[test]
    fn count_is_the_ninth_number() {
        let memory: Vec<u8> = (1..=9_u32).flat_map(u32::to_ne_bytes).collect();
        assert_eq!(dropped(&memory), Some(9));
        assert_eq!(dropped(&memory[..35]), None);
    }
}
