//! The memory of a connection before it has an upstream, and while it is idle.

use super::*;
use crate::transport::tls_stream::TlsStream;

fn size_of_future<F>(
    _: impl FnOnce(Box<(NewConnection, HandshakePermit)>, ConnectionGuard, ConnectionRecord) -> F,
) -> usize {
    size_of::<F>()
}

fn size_of_handshake<F>(
    _: impl FnOnce(Box<(NewConnection, HandshakePermit)>, &'static ConnectionGuard, &'static mut ConnectionRecord) -> F,
) -> usize {
    size_of::<F>()
}

/// Up to `max_handshakes` of these futures exist, and their clients need no credential.
#[test]
fn unidentified_client_reserves_at_most_2000_bytes() {
    let size = size_of_handshake(establish);
    assert!(size <= 2000, "{size} bytes");
}

/// A future always reserves its largest state, so one buffer in it costs every idle session.
#[test]
fn idle_session_reserves_bounded_memory() {
    let parts =
        [("task", size_of_future(run_connection)), ("relay", size_of::<Relay>()), ("TLS", size_of::<TlsStream>())];
    for ((part, size), max) in parts.into_iter().zip([368, 288, 1240]) {
        assert!(size <= max, "{part}: {size} bytes");
    }
}
