//! Whole sessions over sockets whose buffers are small: how they end, above all where they are told to.

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
use crate::proxy::phase::close::Farewell;
use crate::session::registry::ConnectionRegistry;
use crate::session::registry::state::SessionState;
use crate::tls::engine::TlsEngine;
use crate::tls::fixtures::{TlsOptions, test_bytes};
use crate::transport::socket::Socket;
use crate::transport::tls_stream::TlsStream;
use crate::transport::{Stream, UpstreamStream};

const TLS_OPTIONS: TlsOptions = TlsOptions { suite: 0, record: None, client_auth: false };

/// Far more than anything here takes: what hangs shall fail.
const PATIENCE: Duration = Duration::from_secs(20);

/// More than the client's socket takes, and no more than is read at once.
const MUCH: usize = 60 << 10;

/// Far more than any test takes: what waits for it shall fail.
const LONG: Duration = Duration::from_secs(3600);

fn relay(protocol: Protocol, client: ClientStream, upstream: UpstreamStream, half_close_timeout: Duration) -> Relay {
    Relay {
        client,
        upstream: Outbound::new(upstream, protocol, None),
        upstream_tls: None,
        sends_proxy_header: false,
        protocol,
        inbound: Flow::new(Vec::new()),
        outbound: Flow::new(Vec::new()),
        first_end: None,
        is_unheard: false,
        terminated: false,
        idle_timer: IdleTimer::new(Limits { half_close_timeout, ..Limits::default() }),
        dead_peers: DeadPeers::new(LONG),
        _permit: SessionPermit::alone(),
    }
}

/// Both ends of a session, and what is between them.
struct Session {
    client: TlsClient,
    relay: Relay,
    upstream: UnixStream,
}

type TlsClient = client::TlsStream<TcpStream>;

impl Session {
    async fn of(protocol: Protocol) -> Self {
        let (client, ours) = secured().await;
        let (upstream, inner) = UnixStream::pair().unwrap();
        let relay = relay(protocol, ours, Stream::Plain(Socket::Unix(inner)), LONG);
        Self { client, relay, upstream }
    }

    /// The upstream says this, and all of it is on its way to the client.
    async fn says(&mut self, bytes: &[u8]) {
        let mut carried = ByteCounts::default();
        let relayed = poll_fn(|cx| {
            assert!(self.relay.poll(&mut carried, cx).is_pending());
            if carried.outbound == bytes.len() as u64 { Poll::Ready(()) } else { Poll::Pending }
        });
        let both = async { tokio::join!(self.upstream.write_all(bytes), relayed) };
        timeout(PATIENCE, both).await.unwrap().0.unwrap();
    }

    /// Whether some of that has not been taken by the client's socket yet.
    async fn stalls(&mut self) -> bool {
        poll_fn(|cx| Poll::Ready(Pin::new(&mut self.relay.client).poll_flush(cx).is_pending())).await
    }

    /// It is shown out. What remains are the client, the farewell to it, and the upstream.
    async fn terminated(mut self, reason: Reason) -> (TlsClient, Farewell, UnixStream) {
        let registry = Arc::new(ConnectionRegistry::default());
        let guard = enter(&registry);
        registry.terminate_all(reason);
        let ending = self.relay.run(&guard, &mut ByteCounts::default()).await;
        assert_eq!(ending.reason, reason);
        (self.client, self.relay.close(ending).farewell, self.upstream)
    }

    /// It is shown out, and this is all that the client hears from the beginning to close_notify.
    async fn heard_until_shown_out(self, reason: Reason) -> Vec<u8> {
        let (client, farewell, _) = self.terminated(reason).await;
        tokio::join!(heard_by(client), farewell.send()).0
    }
}

fn enter(registry: &Arc<ConnectionRegistry>) -> ConnectionGuard {
    registry.enter("db".into(), ClientAddr::new(([127, 0, 0, 1], 1).into()))
}

/// All that a client hears to close_notify; an end without it is an error. Then it hangs up.
async fn heard_by(mut client: TlsClient) -> Vec<u8> {
    let mut words = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut words)).await.unwrap().unwrap();
    words
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// A client and our side of it, past the handshake.
async fn secured() -> (TlsClient, ClientStream) {
    let (near, far) = tcp_pair().await;
    // The kernel takes this for "as small as you have it".
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

/// A message of so many bytes, header included.
fn message(length: usize) -> Vec<u8> {
    let header = u32::try_from(length - 1).unwrap().to_be_bytes();
    [b"D", &header[..], &test_bytes(0, length - 5)].concat()
}

#[tokio::test]
async fn what_is_on_its_way_comes_first_and_then_the_goodbye() {
    let mut session = Session::of(Protocol::Postgres).await;
    let said = [message(100), message(MUCH - 100)].concat();
    session.says(&said).await;
    assert!(session.stalls().await);
    let heard = session.heard_until_shown_out(Reason::SourceRevoked).await;
    assert!(heard == [said, farewell_message(Reason::SourceRevoked)].concat(), "{} bytes", heard.len());
}

#[tokio::test]
async fn what_the_flow_holds_itself_is_on_its_way_too() {
    let mut session = Session::of(Protocol::Postgres).await;
    (session.relay.outbound, session.relay.terminated) = (Flow::new(message(100)), true);
    let farewell = session.relay.close(Reason::Shutdown.into()).farewell;
    let (heard, ()) = tokio::join!(heard_by(session.client), farewell.send());
    assert!(heard == [message(100), farewell_message(Reason::Shutdown)].concat());
}

#[tokio::test]
async fn in_the_middle_of_a_message_nothing_is_said() {
    for missing in [1, 99, 100, 101, 102, 103, 104] {
        let mut session = Session::of(Protocol::Postgres).await;
        let whole = [message(MUCH - 105), message(105)].concat();
        let said = &whole[..whole.len() - missing];
        session.says(said).await;
        assert!(session.stalls().await);
        let heard = session.heard_until_shown_out(Reason::ClosedByAdmin).await;
        assert!(heard == said, "{} bytes without the last {missing}", heard.len());
    }
}

#[tokio::test]
async fn a_protocol_without_words_for_it_hears_close_notify_and_nothing_else() {
    for protocol in [Protocol::Redis, Protocol::Tcp] {
        let mut session = Session::of(protocol).await;
        let said = message(MUCH);
        session.says(&said).await;
        assert!(session.heard_until_shown_out(Reason::RuleExpired).await == said);
    }
}

#[tokio::test]
async fn behind_the_upstreams_end_nothing_is_said() {
    let mut session = Session::of(Protocol::Postgres).await;
    session.says(&message(100)).await;
    session.upstream.shutdown().await.unwrap();
    let ended = poll_fn(|cx| {
        assert!(session.relay.poll(&mut ByteCounts::default(), cx).is_pending());
        if session.relay.outbound.has_ended() { Poll::Ready(()) } else { Poll::Pending }
    });
    timeout(PATIENCE, ended).await.unwrap();
    assert!(session.heard_until_shown_out(Reason::Shutdown).await == message(100));
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_gone_within_a_second_and_its_upstream_at_once() {
    let mut session = Session::of(Protocol::Postgres).await;
    session.says(&message(MUCH)).await;
    assert!(session.stalls().await);
    let (_client, farewell, mut upstream) = session.terminated(Reason::CredentialRevoked).await;
    assert_eq!(timeout(PATIENCE, upstream.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    // From here on time passes only where there is nothing else to do.
    pause();
    let begun = Instant::now();
    farewell.send().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// What a client hears of an upstream that ended like this, and whether close_notify was behind it.
async fn heard_of(end: impl AsyncFnOnce(TcpStream)) -> (Vec<u8>, io::Result<usize>, Outcome) {
    let (mut client, ours) = secured().await;
    let (near, far) = tcp_pair().await;
    let mut relay = relay(Protocol::Redis, ours, Stream::Plain(Socket::Tcp(near)), LONG);
    let guard = enter(&Arc::new(ConnectionRegistry::default()));
    let session = async {
        let ending = relay.run(&guard, &mut ByteCounts::default()).await;
        relay.close(ending.clone()).farewell.send().await;
        ending
    };
    let talk = async {
        // Something is on its way to the upstream all the time.
        client.write_all(&[7; 4]).await.unwrap();
        end(far).await;
        let mut words = Vec::new();
        let _ = client.write_all(&[7; 4]).await;
        let read = client.read_to_end(&mut words).await;
        drop(client);
        (words, read)
    };
    let (ending, (words, read)) = timeout(PATIENCE, async { tokio::join!(session, talk) }).await.unwrap();
    (words, read, ending)
}

#[tokio::test]
async fn what_an_upstream_said_before_it_reset_is_heard_and_no_close_notify() {
    let (words, read, ending) = heard_of(async |mut upstream| {
        upstream.write_all(b"half an ans").await.unwrap();
        upstream.read_exact(&mut [0; 4]).await.unwrap();
        SockRef::from(&upstream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    assert_eq!(words, b"half an ans");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(ending.reason, Reason::UpstreamClosed);
    assert!(ending.detail.contains("reset"), "{}", ending.detail);
}

#[tokio::test]
async fn an_upstream_that_ended_and_takes_no_more_has_ended() {
    let (words, read, ending) = heard_of(async |mut upstream| {
        upstream.write_all(b"+OK\r\n").await.unwrap();
        upstream.shutdown().await.unwrap();
        upstream.read_exact(&mut [0; 4]).await.unwrap();
    })
    .await;
    assert_eq!((words.as_slice(), read.unwrap()), (&b"+OK\r\n"[..], 5));
    assert_eq!(ending.reason, Reason::UpstreamClosed);
}

#[tokio::test]
async fn a_reset_that_the_writer_hears_of_first_is_no_end() {
    let (mut client, ours) = secured().await;
    let (near, mut far) = tcp_pair().await;
    let mut relay = relay(Protocol::Redis, ours, Stream::Plain(Socket::Tcp(near)), LONG);
    far.write_all(b"half an ans").await.unwrap();
    SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    drop(far);
    client.write_all(b"PING\r\n").await.unwrap();
    client.flush().await.unwrap();
    // The inbound flow is polled first, and takes the kernel's error with it.
    let guard = enter(&Arc::new(ConnectionRegistry::default()));
    let mut carried = ByteCounts::default();
    let ending = timeout(PATIENCE, relay.run(&guard, &mut carried)).await.unwrap();
    assert_eq!((ending.reason, carried.outbound), (Reason::UpstreamClosed, 11));
    let farewell = relay.close(ending).farewell;
    assert!(matches!(farewell, Farewell::Cut(..)), "{farewell:?}");
}

#[tokio::test]
async fn a_client_that_heard_a_part_of_the_answer_until_the_half_close_ran_out_is_not_told_that_it_was_all() {
    let (mut client, ours) = secured().await;
    let (near, mut far) = tcp_pair().await;
    let mut relay = relay(Protocol::Redis, ours, Stream::Plain(Socket::Tcp(near)), Duration::from_millis(50));
    let guard = enter(&Arc::new(ConnectionRegistry::default()));
    let session = async {
        let ending = relay.run(&guard, &mut ByteCounts::default()).await;
        let reason = ending.reason;
        relay.close(ending).farewell.send().await;
        reason
    };
    let talk = async {
        client.shutdown().await.unwrap();
        far.write_all(b"half an ans").await.unwrap();
        let mut words = Vec::new();
        let read = client.read_to_end(&mut words).await;
        drop(client);
        (words, read.unwrap_err().kind())
    };
    let (reason, (words, error)) = timeout(PATIENCE, async { tokio::join!(session, talk) }).await.unwrap();
    assert_eq!((words.as_slice(), error), (&b"half an ans"[..], io::ErrorKind::UnexpectedEof));
    assert_eq!(reason, Reason::HalfCloseTimeout);
}

/// The state of a session once one side has ended, and whether the other is still heard.
async fn state_behind_the_end_of(side: ClosedSide) -> Option<SessionState> {
    let Session { mut client, relay: mut between, mut upstream } = Session::of(Protocol::Redis).await;
    let registry = Arc::new(ConnectionRegistry::default());
    let guard = enter(&registry);
    guard.mark_open();
    let mut carried = ByteCounts::default();
    let talk = async {
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
        ending = between.run(&guard, &mut carried) => panic!("it ended: {ending:?}"),
        told = timeout(PATIENCE, talk) => told.unwrap(),
    }
    registry.find(guard.id()).unwrap().state()
}

#[tokio::test]
async fn side_that_ended_is_noted_while_the_other_goes_on() {
    for side in [ClosedSide::Client, ClosedSide::Upstream] {
        assert_eq!(state_behind_the_end_of(side).await, Some(SessionState::HalfClosed(side)));
    }
}

#[tokio::test]
async fn nothing_ends_a_session_that_is_silent_for_days_and_then_each_side_is_heard() {
    let Session { mut client, relay: mut between, mut upstream } = Session::of(Protocol::Redis).await;
    pause();
    let guard = enter(&Arc::new(ConnectionRegistry::default()));
    let mut carried = ByteCounts::default();
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
        ending = between.run(&guard, &mut carried) => panic!("it ended: {ending:?}"),
        () = wait => {}
    }
    assert_eq!((carried.inbound, carried.outbound), (30, 30));
    assert!(between.outbound.pending().is_empty() && between.inbound.pending().is_empty());
}
