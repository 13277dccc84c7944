//! What a connection costs before it has an upstream, and while it is idle.

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

/// There may be `max_handshakes` of them, and their clients need no credential.
#[test]
fn unidentified_client_reserves_little() {
    let size = size_of_handshake(open_upstream);
    assert!(size <= 2000, "{size} bytes");
}

/// What a future may need at any time it reserves all the time, so one careless buffer costs every idle session.
#[test]
fn an_idle_session_reserves_little() {
    let parts =
        [("task", size_of_future(run_connection)), ("relay", size_of::<Relay>()), ("TLS", size_of::<TlsStream>())];
    for ((part, size), most) in parts.into_iter().zip([368, 288, 1240]) {
        assert!(size <= most, "{part}: {size} bytes");
    }
}
