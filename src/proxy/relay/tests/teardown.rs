//! Sessions that end in any order of events, over every combination of stream kinds.
//!
//! Two peers exchange bytes through a session by a random script: they send, stop reading, end with close_notify or with TCP
//! only, close, reset, and the session may be terminated. Then the remaining peer reads to the end and ends too. The received
//! bytes of both peers and the outcome of the session are compared with the script.

use std::net::Shutdown;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::runtime::Builder;
use tokio::task::{JoinSet, yield_now};
use tokio::time::sleep;
use tokio_rustls::{TlsAcceptor, TlsStream as PeerTls};

use super::*;
use crate::metrics::relayed::ByteMeter;
use crate::tls::engine::{Client, MAX_UNOPENED};
use crate::transport::scratch::READ;

/// Offsets into the test data. Each peer sends different bytes, so they cannot be confused.
const CLIENT_OFFSET: usize = 0;
const UPSTREAM_OFFSET: usize = 1 << 20;

static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| test_bytes(0, 2 << 20));

/// The most bytes that one peer sends.
const MAX_SENT: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Unix,
    Tls12,
    Tls13,
}

impl Kind {
    fn options(self) -> Option<TlsOptions> {
        match self {
            Self::Tcp | Self::Unix => None,
            Self::Tls13 => Some(TLS_OPTIONS),
            Self::Tls12 => Some(TlsOptions { suite: 3, ..TLS_OPTIONS }),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

/// How a peer ends its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    /// With close_notify inside TLS, then TCP.
    Graceful,
    TcpOnly,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Act(Side, Act),
    /// Both peers get this many turns.
    Turns(usize),
    Terminate,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Send(usize),
    SetReading(bool),
    Finish(Finish),
    Close,
    Reset,
}

type PeerStream = Stream<PeerTls<TcpStream>>;

impl PeerStream {
    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Plain(Socket::Tcp(stream)) => SockRef::from(stream),
            Self::Plain(Socket::Unix(stream)) => SockRef::from(stream),
            Self::Tls(stream) => SockRef::from(stream.get_ref().0),
        }
    }
}

/// How reading ended for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadEnd {
    End,
    /// The end of TCP without close_notify.
    Truncated,
    Error,
}

struct Peer {
    stream: Option<PeerStream>,
    /// The offset of its bytes in the test data.
    offset: usize,
    /// Bytes that its stream has accepted.
    sent: usize,
    unsent: usize,
    is_reading: bool,
    received: usize,
    read_end: Option<ReadEnd>,
    finishing: Option<Finish>,
    finished: Option<Finish>,
    /// Writing has failed.
    write_failed: bool,
    /// The peer has closed its socket before the end of the test.
    has_closed: bool,
    /// The peer has reset its connection.
    is_reset: bool,
}

impl Peer {
    fn new(stream: PeerStream, offset: usize) -> Self {
        Self {
            stream: Some(stream),
            offset,
            sent: 0,
            unsent: 0,
            is_reading: true,
            received: 0,
            read_end: None,
            finishing: None,
            finished: None,
            write_failed: false,
            has_closed: false,
            is_reset: false,
        }
    }

    /// Whether the peer has ended its direction or closed its socket.
    fn has_ended(&self) -> bool {
        self.finished.is_some() || self.has_closed
    }

    /// Whether the peer is an upstream that ended TLS without close_notify. For a client, this is allowed.
    fn is_truncated_upstream(&self, kind: Kind) -> bool {
        self.offset == UPSTREAM_OFFSET && kind.options().is_some() && self.finished == Some(Finish::TcpOnly)
    }

    fn act(&mut self, act: Act) {
        match act {
            // After its end, a peer sends nothing.
            Act::Send(_) if self.finishing.is_some() => {}
            Act::Send(length) => self.unsent = (self.unsent + length).min(MAX_SENT - self.sent),
            Act::SetReading(is_reading) => self.is_reading = is_reading,
            Act::Finish(how) => self.finishing = self.finishing.or(Some(how)),
            Act::Close => self.close(),
            Act::Reset => {
                if let Some(stream) = &self.stream {
                    // A Unix socket ignores this.
                    stream.socket().set_linger(Some(Duration::ZERO)).unwrap();
                    self.is_reset = !matches!(stream, Stream::Plain(Socket::Unix(_)));
                }
                self.close();
            }
        }
    }

    fn close(&mut self) {
        self.has_closed |= self.stream.take().is_some();
    }

    /// Writes, ends and reads as far as possible without waiting.
    fn turn(&mut self, other: usize, cx: &mut Context<'_>) {
        let Some(stream) = &mut self.stream else { return };
        let mut all_flushed = false;
        while !self.write_failed {
            if self.unsent == 0 {
                match Pin::new(&mut *stream).poll_flush(cx) {
                    Poll::Ready(flushed) => (all_flushed, self.write_failed) = (flushed.is_ok(), flushed.is_err()),
                    Poll::Pending => {}
                }
                break;
            }
            let bytes = &DATA[self.offset + self.sent..][..self.unsent.min(16 << 10)];
            match Pin::new(&mut *stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(count)) => (self.sent, self.unsent) = (self.sent + count, self.unsent - count),
                Poll::Ready(Err(_)) => self.write_failed = true,
                Poll::Pending => break,
            }
        }
        if let (Some(how), None, true) = (self.finishing, self.finished, all_flushed || self.write_failed) {
            let done = match how {
                Finish::Graceful => Pin::new(&mut *stream).poll_shutdown(cx),
                Finish::TcpOnly => Poll::Ready(stream.socket().shutdown(Shutdown::Write)),
            };
            if let Poll::Ready(done) = done {
                self.finished = Some(how);
                self.write_failed |= done.is_err();
            }
        }
        if self.is_reading && self.read_end.is_none() {
            self.read(other, cx);
        }
    }

    fn read(&mut self, other: usize, cx: &mut Context<'_>) {
        let Some(stream) = &mut self.stream else { return };
        let mut buffer = [0; 20_000];
        let mut buffer = ReadBuf::new(&mut buffer);
        match Pin::new(stream).poll_read(cx, &mut buffer) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => {
                let bytes = buffer.filled();
                assert!(DATA[other + self.received..].starts_with(bytes), "other bytes after {}", self.received);
                self.received += bytes.len();
                self.read_end = bytes.is_empty().then_some(ReadEnd::End);
            }
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.read_end = Some(ReadEnd::Truncated)
            }
            Poll::Ready(Err(_)) => self.read_end = Some(ReadEnd::Error),
        }
    }
}

/// How the session has ended.
struct SessionEnd {
    reason: Reason,
    byte_counts: ByteCounts,
    /// The bytes that the farewell still had to send.
    farewell: usize,
}

struct Scenario {
    client: Peer,
    upstream: Peer,
    /// One task.
    session: JoinSet<SessionEnd>,
    registry: Arc<ConnectionRegistry>,
    terminated: bool,
}

impl Scenario {
    async fn new(client: Kind, upstream: Kind) -> Self {
        let (near, ours) = connect_client(client).await;
        let (far, theirs) = connect_upstream(upstream).await;
        let mut relay = relay(Protocol::Tcp, ours, theirs, LONG);
        let registry = Arc::new(ConnectionRegistry::default());
        let guard = enter(&registry);
        let mut session = JoinSet::new();
        session.spawn(async move {
            let mut byte_counts = ByteCounts::default();
            let outcome = relay.run(&guard, ByteMeter::unpublished(&mut byte_counts)).await;
            let (reason, farewell) = (outcome.reason, relay.outbound.pending().len());
            relay.close(outcome).farewell.send().await;
            SessionEnd { reason, byte_counts, farewell }
        });
        let (client, upstream) = (Peer::new(near, CLIENT_OFFSET), Peer::new(far, UPSTREAM_OFFSET));
        Self { client, upstream, session, registry, terminated: false }
    }

    async fn run(&mut self, script: &[Step]) {
        for &step in script {
            match step {
                Step::Act(Side::Client, act) => self.client.act(act),
                Step::Act(Side::Upstream, act) => self.upstream.act(act),
                Step::Turns(count) => {
                    for _ in 0..count {
                        self.turn().await;
                    }
                }
                Step::Terminate => {
                    self.terminated = true;
                    self.registry.terminate_all(Reason::SourceRevoked);
                }
            }
        }
    }

    async fn turn(&mut self) {
        poll_fn(|cx| {
            self.client.turn(UPSTREAM_OFFSET, cx);
            self.upstream.turn(CLIENT_OFFSET, cx);
            Poll::Ready(())
        })
        .await;
        // A peer that does not read stops its sender. Only a farewell reads without forwarding.
        let is_over = self.terminated || self.upstream.has_ended();
        for (sender, receiver) in [(&self.upstream, &self.client), (&self.client, &self.upstream)] {
            let discarded = if is_over { 256 << 10 } else { 0 };
            let (sent, received) = (sender.sent, receiver.received);
            assert!(sent <= received + MAX_IN_FLIGHT + discarded, "{sent} sent, {received} received");
        }
        yield_now().await;
    }

    /// Gives both peers turns until `condition` holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        for turn in 0.. {
            if condition(self) {
                return;
            }
            assert!(Instant::now() < deadline, "timeout: {what}");
            self.turn().await;
            if turn > 500 {
                // The kernel may wait for one of its timers.
                sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn peers(&mut self) -> [&mut Peer; 2] {
        [&mut self.client, &mut self.upstream]
    }
}

/// The kernel's buffers, one read, and the buffers of the peers.
const MAX_IN_FLIGHT: usize = 2 * MAX_KERNEL_BUFFERS + READ + MAX_UNOPENED + (64 << 10);

/// Of both ends of one connection.
const MAX_KERNEL_BUFFERS: usize = 128 << 10;

async fn narrow_pair() -> (TcpStream, TcpStream) {
    let (near, far) = tcp_pair().await;
    for stream in [&near, &far] {
        let socket = SockRef::from(stream);
        socket.set_recv_buffer_size(32 << 10).unwrap();
        socket.set_send_buffer_size(32 << 10).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
    }
    (near, far)
}

fn unix_pair() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    for stream in [&near, &far] {
        SockRef::from(stream).set_send_buffer_size(16 << 10).unwrap();
    }
    (near, far)
}

async fn connect_client(kind: Kind) -> (PeerStream, ClientStream) {
    let Some(options) = kind.options() else { return connect_plain(kind).await };
    let (near, far) = narrow_pair().await;
    let mut ours = Box::new(TlsStream::new(far, TlsEngine::new(options.server_config()).unwrap()));
    let answer = async {
        while ours.engine().is_handshaking() {
            ours.next_flight().await.unwrap();
        }
    };
    let connector = TlsConnector::from(options.client_config());
    let (client, ()) = tokio::join!(connector.connect("db.test".try_into().unwrap(), near), answer);
    (Stream::Tls(Box::new(client.unwrap().into())), Stream::Tls(ours))
}

async fn connect_upstream(kind: Kind) -> (PeerStream, UpstreamStream) {
    let Some(options) = kind.options() else { return connect_plain(kind).await };
    let (near, far) = narrow_pair().await;
    let engine = TlsEngine::<Client>::connect(options.client_config(), "db.test".try_into().unwrap()).unwrap();
    let mut ours = Box::new(TlsStream::new(near, engine));
    let call = async {
        while ours.engine().is_handshaking() {
            ours.next_flight().await.unwrap();
        }
    };
    let acceptor = TlsAcceptor::from(options.server_config());
    let (server, ()) = tokio::join!(acceptor.accept(far), call);
    (Stream::Tls(Box::new(server.unwrap().into())), Stream::Tls(ours))
}

async fn connect_plain<T>(kind: Kind) -> (PeerStream, Stream<T>) {
    if kind == Kind::Unix {
        let (near, far) = unix_pair();
        return (Stream::Plain(Socket::Unix(near)), Stream::Plain(Socket::Unix(far)));
    }
    let (near, far) = narrow_pair().await;
    (Stream::Plain(Socket::Tcp(near)), Stream::Plain(Socket::Tcp(far)))
}

/// Runs a script and compares the received bytes and the outcome with it.
async fn check_script(client: Kind, upstream: Kind, script: &[Step]) {
    let mut scenario = Scenario::new(client, upstream).await;
    scenario.run(script).await;
    // The remaining peers read to the end. If no peer has ended, the client does.
    scenario.peers().into_iter().for_each(|peer| peer.is_reading = true);
    let none_ended = scenario.peers().iter().all(|peer| !peer.has_closed && peer.finishing.is_none());
    if none_ended && !scenario.terminated {
        scenario.client.finishing = Some(Finish::Graceful);
    }
    scenario
        .until("the end of the first peer is passed on", |Scenario { client, upstream, terminated, .. }| {
            let knows = |peer: &Peer, other: &Peer| {
                peer.stream.is_none() || peer.read_end.is_some() || !(*terminated || other.has_ended())
            };
            let is_through = |peer: &Peer| peer.stream.is_none() || peer.finishing.is_none() || peer.finished.is_some();
            knows(client, upstream) && knows(upstream, client) && is_through(client) && is_through(upstream)
        })
        .await;
    let ended = (scenario.client.has_ended(), scenario.upstream.has_ended());
    scenario.peers().into_iter().for_each(|peer| peer.finishing = peer.finishing.or(Some(Finish::Graceful)));
    scenario
        .until("both peers read to the end", |Scenario { client, upstream, .. }| {
            [client, upstream].iter().all(|peer| peer.stream.is_none() || peer.read_end.is_some())
        })
        .await;
    // The farewell waits for the client's end.
    scenario.peers().into_iter().for_each(|peer| peer.stream = None);
    let ended_session = timeout(TEST_TIMEOUT, scenario.session.join_next()).await.expect("the session ends");
    let session_end = ended_session.unwrap().expect("no panic");
    assert_eq!(scenario.registry.count(), 0, "the session is still registered");
    assert_session_end(&scenario, ended, &session_end);
    if !scenario.terminated {
        assert_received((&scenario.client, client), (&scenario.upstream, upstream));
        assert_received((&scenario.upstream, upstream), (&scenario.client, client));
    }
}

/// The reason names the peer that ended first, and the counts are between the sent and the received bytes.
fn assert_session_end(scenario: &Scenario, ended: (bool, bool), session_end: &SessionEnd) {
    let Scenario { client, upstream, terminated, .. } = scenario;
    let inbound = usize::try_from(session_end.byte_counts.inbound).unwrap();
    let outbound = usize::try_from(session_end.byte_counts.outbound).unwrap();
    assert!(upstream.received <= inbound && inbound <= client.sent, "{} {inbound} {}", upstream.received, client.sent);
    assert!(
        client.received <= outbound + session_end.farewell && outbound <= upstream.sent,
        "{} {outbound}",
        client.received
    );
    let reasons: &[Reason] = match (terminated, ended) {
        (true, _) => &[Reason::SourceRevoked, Reason::ClientClosed, Reason::UpstreamClosed],
        (false, (true, false)) => &[Reason::ClientClosed],
        (false, (false, true)) => &[Reason::UpstreamClosed],
        (false, _) => &[Reason::ClientClosed, Reason::UpstreamClosed],
    };
    assert!(reasons.contains(&session_end.reason), "{:?} is none of {reasons:?}", session_end.reason);
}

/// A peer that stays receives all bytes of a peer that stays. close_notify never follows incomplete data.
fn assert_received((receiver, receiver_kind): (&Peer, Kind), (sender, sender_kind): (&Peer, Kind)) {
    let (received_all, has_tls) = (receiver.received == sender.sent, receiver_kind.options().is_some());
    let context = format!("{} of {} received, then {:?}", receiver.received, sender.sent, receiver.read_end);
    let sender_is_truncated = sender.is_truncated_upstream(sender_kind);
    // A truncated upstream is lost in both directions, so the bytes of its client may be lost too.
    if !receiver.has_closed && !sender.has_closed && !receiver.is_truncated_upstream(receiver_kind) {
        assert!(received_all, "{context}");
        let expected = if sender_is_truncated && has_tls { ReadEnd::Truncated } else { ReadEnd::End };
        assert_eq!(receiver.read_end, Some(expected), "{context}");
    }
    // A peer that closes may discard bytes that its socket never accepted.
    let ends_with_close_notify = has_tls && receiver.read_end == Some(ReadEnd::End);
    if ends_with_close_notify && (sender.offset == UPSTREAM_OFFSET || sender.finished.is_some()) {
        assert!(received_all && !sender_is_truncated, "{context}");
        assert!(!sender.is_reset || sender.finished.is_some(), "close_notify after a reset: {context}");
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Tcp), Just(Kind::Unix), Just(Kind::Tls12), Just(Kind::Tls13)]
}

fn act() -> impl Strategy<Value = Act> {
    let length = prop_oneof![1_usize..100, 1_usize..30_000, 100_000_usize..400_000];
    prop_oneof![
        8 => length.prop_map(Act::Send),
        4 => any::<bool>().prop_map(Act::SetReading),
        3 => Just(Act::Finish(Finish::Graceful)),
        1 => Just(Act::Finish(Finish::TcpOnly)),
        1 => Just(Act::Close),
        1 => Just(Act::Reset),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let side = prop_oneof![Just(Side::Client), Just(Side::Upstream)];
    prop_oneof![
        18 => (side, act()).prop_map(|(side, act)| Step::Act(side, act)),
        6 => (1_usize..30).prop_map(Step::Turns),
        1 => Just(Step::Terminate),
    ]
}

/// The scripts are the same in each run. PROPTEST_RNG_SEED selects others, PROPTEST_CASES their number.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    match config.rng_seed {
        RngSeed::Random => ProptestConfig { rng_seed: RngSeed::Fixed(22), ..config },
        RngSeed::Fixed(_) => config,
    }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn session_with_any_order_of_events_ends_without_lost_bytes(
        client in kind(),
        upstream in kind(),
        script in prop::collection::vec(step(), 0..16),
    ) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check_script(client, upstream, &script));
    }
}
