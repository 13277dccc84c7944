//! The memory of a connection before it has an upstream, and while it is idle.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::Instant;

use super::*;
use crate::addr::ClientAddr;
use crate::session::registry::ConnectionRegistry;
use crate::transport::Stream;
use crate::transport::socket::Socket;
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
    for ((part, size), max) in parts.into_iter().zip([368, 296, 1240]) {
        assert!(size <= max, "{part}: {size} bytes");
    }
}

/// The close of a session whose client neither reads nor closes.
async fn close_time(is_revoked: bool) -> Duration {
    let registry = Arc::new(ConnectionRegistry::default());
    let guard = registry.enter("db".into(), ClientAddr::UNIX);
    let (client, _peer) = UnixStream::pair().unwrap();
    let farewell = Farewell::Message(Stream::Plain(Socket::Unix(client)), vec![0; 1 << 20]);
    let start = Instant::now();
    if is_revoked {
        registry.find(guard.id()).unwrap().end(Reason::SourceRevoked.into());
    }
    unless_terminated(&guard, farewell.send()).await;
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn revoked_session_that_closes_ends_within_a_second() {
    assert!(close_time(true).await < Duration::from_secs(1));
    assert!(close_time(false).await > Duration::from_secs(1), "the farewell was cut short without a reason");
}
