//! Whole sessions over sockets with small buffers: how they end, above all when they are terminated.

pub(crate) mod teardown;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::{Instant, advance, pause, timeout};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::addr::ClientAddr;
use crate::config::Limits;
use crate::metrics::relayed::ByteMeter;
use crate::proxy::phase::close::Farewell;
use crate::session::registry::ConnectionRegistry;
use crate::session::registry::state::SessionState;
use crate::tls::engine::TlsEngine;
use crate::tls::fixtures::{TlsOptions, test_bytes};
use crate::transport::socket::Socket;
use crate::transport::tls_stream::TlsStream;
use crate::transport::{ClientStream, Stream, UpstreamStream};

const TLS_OPTIONS: TlsOptions = TlsOptions { suite: 0, record: None, client_auth: false };

/// Far more than any test takes, so only a hanging test fails.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// More than the client's socket buffers, and not more than one read.
const MUCH: usize = 60 << 10;

/// Far more than any test takes, so a test that waits for it fails.
const LONG: Duration = Duration::from_secs(3600);

fn relay(protocol: Protocol, client: ClientStream, upstream: UpstreamStream, half_close_timeout: Duration) -> Relay {
    Relay {
        client: Inbound::new(client, None),
        upstream: Outbound::new(upstream, protocol, None),
        upstream_tls: None,
        sends_proxy_header: false,
        protocol,
        inbound: Flow::new(Vec::new()),
        outbound: Flow::new(Vec::new()),
        first_end: None,
        lost_before_response: false,
        is_terminated: false,
        idle_timer: IdleTimer::new(Limits { half_close_timeout, ..Limits::default() }),
        dead_peers: DeadPeers::new(LONG),
        _permit: SessionPermit::unlimited(),
    }
}

/// Both ends of a session, and the relay between them.
struct Session {
    client: TlsClient,
    relay: Relay,
    upstream: UnixStream,
}

type TlsClient = client::TlsStream<TcpStream>;

impl Session {
    async fn new(protocol: Protocol) -> Self {
        let (client, ours) = secured().await;
        let (upstream, inner) = UnixStream::pair().unwrap();
        let relay = relay(protocol, ours, Stream::Plain(Socket::Unix(inner)), LONG);
        Self { client, relay, upstream }
    }

    /// The upstream sends `bytes`, and the relay forwards all of them towards the client.
    async fn upstream_sends(&mut self, bytes: &[u8]) {
        let mut byte_counts = ByteCounts::default();
        let relayed = poll_fn(|cx| {
            assert!(self.relay.poll(&mut byte_counts, cx).is_pending());
            if byte_counts.outbound == bytes.len() as u64 { Poll::Ready(()) } else { Poll::Pending }
        });
        let both = async { tokio::join!(self.upstream.write_all(bytes), relayed) };
        timeout(TEST_TIMEOUT, both).await.unwrap().0.unwrap();
    }

    /// Whether the client's socket has not accepted all bytes yet.
    async fn stalls(&mut self) -> bool {
        poll_fn(|cx| Poll::Ready(Pin::new(self.relay.client.writer()).poll_flush(cx).is_pending())).await
    }

    /// Terminates the session. Returns the client, its farewell, and the upstream.
    async fn terminate(mut self, reason: Reason) -> (TlsClient, Farewell, UnixStream) {
        let registry = Arc::new(ConnectionRegistry::default());
        let guard = enter(&registry);
        registry.terminate_all(reason);
        let outcome = self.relay.run(&guard, ByteMeter::unpublished(&mut ByteCounts::default())).await;
        assert_eq!(outcome.reason, reason);
        (self.client, self.relay.close(outcome).farewell, self.upstream)
    }

    /// Terminates the session. Returns all bytes that the client receives before close_notify.
    async fn terminate_and_read(self, reason: Reason) -> Vec<u8> {
        let (client, farewell, _) = self.terminate(reason).await;
        tokio::join!(read_to_close_notify(client), farewell.send()).0
    }
}

fn enter(registry: &Arc<ConnectionRegistry>) -> ConnectionGuard {
    registry.enter("db".into(), ClientAddr::new(([127, 0, 0, 1], 1).into()))
}

/// Reads all bytes before close_notify, without which it panics. Then the client disconnects.
async fn read_to_close_notify(mut client: TlsClient) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(TEST_TIMEOUT, client.read_to_end(&mut bytes)).await.unwrap().unwrap();
    bytes
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// A client and our side of it, after the handshake.
async fn secured() -> (TlsClient, ClientStream) {
    let (near, far) = tcp_pair().await;
    // The kernel raises this to its minimum.
    SockRef::from(&near).set_recv_buffer_size(1).unwrap();
    SockRef::from(&far).set_send_buffer_size(1).unwrap();
    let mut ours = Box::new(TlsStream::new(far, TlsEngine::new(TLS_OPTIONS.server_config()).unwrap()));
    let answer = async {
        while ours.engine().is_handshaking() {
            ours.next_flight().await.unwrap();
        }
    };
    let connector = TlsConnector::from(TLS_OPTIONS.client_config());
    let (client, ()) = tokio::join!(connector.connect("db.test".try_into().unwrap(), near), answer);
    (client.unwrap(), Stream::Tls(ours))
}

/// A PostgreSQL message of `length` bytes, including its header.
fn message(length: usize) -> Vec<u8> {
    let header = u32::try_from(length - 1).unwrap().to_be_bytes();
    [b"D", &header[..], &test_bytes(0, length - 5)].concat()
}

#[tokio::test]
async fn terminated_session_sends_buffered_bytes_before_the_farewell() {
    let mut session = Session::new(Protocol::Postgres).await;
    let sent = [message(100), message(MUCH - 100)].concat();
    session.upstream_sends(&sent).await;
    assert!(session.stalls().await);
    let received = session.terminate_and_read(Reason::SourceRevoked).await;
    assert!(received == [sent, farewell_message(Reason::SourceRevoked)].concat(), "{} bytes", received.len());
}

#[tokio::test]
async fn terminated_session_sends_pending_bytes_of_the_flow_before_the_farewell() {
    let mut session = Session::new(Protocol::Postgres).await;
    (session.relay.outbound, session.relay.is_terminated) = (Flow::new(message(100)), true);
    let farewell = session.relay.close(Reason::Shutdown.into()).farewell;
    let (received, ()) = tokio::join!(read_to_close_notify(session.client), farewell.send());
    assert!(received == [message(100), farewell_message(Reason::Shutdown)].concat());
}

#[tokio::test]
async fn session_terminated_within_a_message_sends_no_farewell() {
    for missing in [1, 99, 100, 101, 102, 103, 104] {
        let mut session = Session::new(Protocol::Postgres).await;
        let whole = [message(MUCH - 105), message(105)].concat();
        let sent = &whole[..whole.len() - missing];
        session.upstream_sends(sent).await;
        assert!(session.stalls().await);
        let received = session.terminate_and_read(Reason::ClosedByAdmin).await;
        assert!(received == sent, "{} bytes without the last {missing}", received.len());
    }
}

#[tokio::test]
async fn terminated_redis_or_tcp_session_sends_only_close_notify() {
    for protocol in [Protocol::Redis, Protocol::Tcp] {
        let mut session = Session::new(protocol).await;
        let sent = message(MUCH);
        session.upstream_sends(&sent).await;
        assert!(session.terminate_and_read(Reason::RuleExpired).await == sent);
    }
}

#[tokio::test]
async fn session_terminated_after_the_upstream_ended_sends_no_farewell() {
    let mut session = Session::new(Protocol::Postgres).await;
    session.upstream_sends(&message(100)).await;
    session.upstream.shutdown().await.unwrap();
    let ended = poll_fn(|cx| {
        assert!(session.relay.poll(&mut ByteCounts::default(), cx).is_pending());
        if session.relay.outbound.has_ended() { Poll::Ready(()) } else { Poll::Pending }
    });
    timeout(TEST_TIMEOUT, ended).await.unwrap();
    assert!(session.terminate_and_read(Reason::Shutdown).await == message(100));
}

#[tokio::test]
async fn terminated_client_that_does_not_read_is_closed_within_a_second_and_its_upstream_at_once() {
    let mut session = Session::new(Protocol::Postgres).await;
    session.upstream_sends(&message(MUCH)).await;
    assert!(session.stalls().await);
    let (_client, farewell, mut upstream) = session.terminate(Reason::CredentialRevoked).await;
    assert_eq!(timeout(TEST_TIMEOUT, upstream.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    // From here on time advances only while all tasks are idle.
    pause();
    let start = Instant::now();
    farewell.send().await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

/// Ends the upstream with `end`. Returns the bytes that the client receives, the result of its last read, and the outcome.
async fn end_upstream(end: impl AsyncFnOnce(TcpStream)) -> (Vec<u8>, io::Result<usize>, Outcome) {
    let (mut client, ours) = secured().await;
    let (near, far) = tcp_pair().await;
    let mut relay = relay(Protocol::Redis, ours, Stream::Plain(Socket::Tcp(near)), LONG);
    let guard = enter(&Arc::new(ConnectionRegistry::default()));
    let session = async {
        let outcome = relay.run(&guard, ByteMeter::unpublished(&mut ByteCounts::default())).await;
        relay.close(outcome.clone()).farewell.send().await;
        outcome
    };
    let exchange = async {
        // Bytes to the upstream are always in flight.
        client.write_all(&[7; 4]).await.unwrap();
        end(far).await;
        let mut bytes = Vec::new();
        let _ = client.write_all(&[7; 4]).await;
        let read = client.read_to_end(&mut bytes).await;
        drop(client);
        (bytes, read)
    };
    let (outcome, (bytes, read)) = timeout(TEST_TIMEOUT, async { tokio::join!(session, exchange) }).await.unwrap();
    (bytes, read, outcome)
}

#[tokio::test]
async fn reset_of_the_upstream_delivers_its_bytes_without_close_notify() {
    let (bytes, read, outcome) = end_upstream(async |mut upstream| {
        upstream.write_all(b"half an ans").await.unwrap();
        upstream.read_exact(&mut [0; 4]).await.unwrap();
        SockRef::from(&upstream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    assert_eq!(bytes, b"half an ans");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(outcome.reason, Reason::UpstreamClosed);
    assert!(outcome.detail.contains("reset"), "{}", outcome.detail);
}

#[tokio::test]
async fn upstream_that_ended_and_rejects_writes_counts_as_closed() {
    let (bytes, read, outcome) = end_upstream(async |mut upstream| {
        upstream.write_all(b"+OK\r\n").await.unwrap();
        upstream.shutdown().await.unwrap();
        upstream.read_exact(&mut [0; 4]).await.unwrap();
    })
    .await;
    assert_eq!((bytes.as_slice(), read.unwrap()), (&b"+OK\r\n"[..], 5));
    assert_eq!(outcome.reason, Reason::UpstreamClosed);
}

#[tokio::test]
async fn reset_that_the_writer_receives_first_is_not_an_end_of_stream() {
    let (mut client, ours) = secured().await;
    let (near, mut far) = tcp_pair().await;
    let mut relay = relay(Protocol::Redis, ours, Stream::Plain(Socket::Tcp(near)), LONG);
    far.write_all(b"half an ans").await.unwrap();
    SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    drop(far);
    client.write_all(b"PING\r\n").await.unwrap();
    client.flush().await.unwrap();
    // The inbound flow is polled first, and consumes the socket error of the kernel.
    let guard = enter(&Arc::new(ConnectionRegistry::default()));
    let mut byte_counts = ByteCounts::default();
    let outcome = timeout(TEST_TIMEOUT, relay.run(&guard, ByteMeter::unpublished(&mut byte_counts))).await.unwrap();
    assert_eq!((outcome.reason, byte_counts.outbound), (Reason::UpstreamClosed, 11));
    let farewell = relay.close(outcome).farewell;
    assert!(matches!(farewell, Farewell::Truncated(..)), "{farewell:?}");
}

#[tokio::test]
async fn half_close_timeout_ends_a_partial_response_without_close_notify() {
    let (mut client, ours) = secured().await;
    let (near, mut far) = tcp_pair().await;
    let mut relay = relay(Protocol::Redis, ours, Stream::Plain(Socket::Tcp(near)), Duration::from_millis(50));
    let guard = enter(&Arc::new(ConnectionRegistry::default()));
    let session = async {
        let outcome = relay.run(&guard, ByteMeter::unpublished(&mut ByteCounts::default())).await;
        let reason = outcome.reason;
        relay.close(outcome).farewell.send().await;
        reason
    };
    let exchange = async {
        client.shutdown().await.unwrap();
        far.write_all(b"half an ans").await.unwrap();
        let mut bytes = Vec::new();
        let read = client.read_to_end(&mut bytes).await;
        drop(client);
        (bytes, read.unwrap_err().kind())
    };
    let (reason, (bytes, error)) = timeout(TEST_TIMEOUT, async { tokio::join!(session, exchange) }).await.unwrap();
    assert_eq!((bytes.as_slice(), error), (&b"half an ans"[..], io::ErrorKind::UnexpectedEof));
    assert_eq!(reason, Reason::HalfCloseTimeout);
}

/// Ends one side and checks that the other direction still works. Returns the state of the session.
async fn state_after_end_of(side: ClosedSide) -> Option<SessionState> {
    let Session { mut client, relay: mut between, mut upstream } = Session::new(Protocol::Redis).await;
    let registry = Arc::new(ConnectionRegistry::default());
    let guard = enter(&registry);
    guard.mark_open();
    let mut byte_counts = ByteCounts::default();
    let exchange = async {
        let mut byte = [0];
        match side {
            ClosedSide::Client => {
                client.shutdown().await.unwrap();
                assert_eq!(upstream.read(&mut byte).await.unwrap(), 0);
                upstream.write_all(&[7]).await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), 7);
            }
            ClosedSide::Upstream => {
                upstream.shutdown().await.unwrap();
                assert_eq!(client.read(&mut byte).await.unwrap(), 0);
                client.write_all(&[7]).await.unwrap();
                client.flush().await.unwrap();
                assert_eq!(upstream.read_u8().await.unwrap(), 7);
            }
        }
    };
    tokio::select! {
        outcome = between.run(&guard, ByteMeter::unpublished(&mut byte_counts)) => panic!("the session ended: {outcome:?}"),
        finished = timeout(TEST_TIMEOUT, exchange) => finished.unwrap(),
    }
    registry.find(guard.id()).unwrap().state()
}

#[tokio::test]
async fn session_with_one_ended_side_is_half_closed() {
    for side in [ClosedSide::Client, ClosedSide::Upstream] {
        assert_eq!(state_after_end_of(side).await, Some(SessionState::HalfClosed(side)));
    }
}

#[tokio::test]
async fn session_without_idle_timeout_stays_open_for_days() {
    let Session { mut client, relay: mut between, mut upstream } = Session::new(Protocol::Redis).await;
    // The kernel acknowledges in real time, in which a day of this test is shorter than a delayed ACK.
    between.dead_peers = DeadPeers::new(Duration::from_secs(60 * 86_400));
    pause();
    let guard = enter(&Arc::new(ConnectionRegistry::default()));
    let mut byte_counts = ByteCounts::default();
    let wait = async {
        for day in 0..30_u8 {
            advance(Duration::from_secs(86_400)).await;
            upstream.write_all(&[day]).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), day);
            client.write_all(&[day]).await.unwrap();
            client.flush().await.unwrap();
            assert_eq!(upstream.read_u8().await.unwrap(), day);
        }
    };
    tokio::select! {
        outcome = between.run(&guard, ByteMeter::unpublished(&mut byte_counts)) => panic!("the session ended: {outcome:?}"),
        () = wait => {}
    }
    assert_eq!((byte_counts.inbound, byte_counts.outbound), (30, 30));
    assert!(between.outbound.pending().is_empty() && between.inbound.pending().is_empty());
}
