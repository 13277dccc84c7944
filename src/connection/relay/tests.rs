//! Whole sessions over sockets whose buffers are small: how they end, above all where they are told to.

use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::{Instant, pause, timeout};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::addr::ClientAddr;
use crate::config::Limits;
use crate::connection::leg::Leg;
use crate::connection::part::Parting;
use crate::connection::socket::Socket;
use crate::connection::stream::TlsStream;
use crate::sessions::Register;
use crate::tls::Records;
use crate::tls::specimen::{Accent, speech};

const ACCENT: Accent = Accent { suite: 0, record: None, known: false };

/// Far more than anything here takes: what hangs shall fail.
const PATIENCE: Duration = Duration::from_secs(20);

/// More than the client's socket takes, and no more than is read at once.
const MUCH: usize = 60 << 10;

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
        let never = Duration::from_secs(3600);
        let limits = Limits { handshake_timeout: never, half_close_timeout: never, ..Limits::default() };
        let relay = Relay {
            client: ours,
            upstream: Leg::Plain(Socket::Unix(inner)),
            upstream_tls: None,
            protocol,
            inbound: Flow::new(Vec::new()),
            outbound: Flow::new(Vec::new()),
            boundary: (protocol == Protocol::Postgres).then(Boundary::default),
            opening: None,
            cancellable: None,
            first_end: None,
            is_unheard: false,
            shown_out: false,
            clock: Clock::new(limits),
            _counted: Counted::alone(),
        };
        Self { client, relay, upstream }
    }

    /// The upstream says this, and all of it is on its way to the client.
    async fn says(&mut self, bytes: &[u8]) {
        let mut carried = Carried::default();
        let relayed = poll_fn(|cx| {
            assert!(self.relay.poll(&mut carried, cx).is_pending());
            if carried.outbound == bytes.len() as u64 { Poll::Ready(()) } else { Poll::Pending }
        });
        let both = async { tokio::join!(self.upstream.write_all(bytes), relayed) };
        timeout(PATIENCE, both).await.unwrap().0.unwrap();
    }

    /// Whether some of that has not been taken by the client's socket yet.
    async fn is_held_up(&mut self) -> bool {
        poll_fn(|cx| Poll::Ready(Pin::new(&mut self.relay.client).poll_flush(cx).is_pending())).await
    }

    /// It is shown out. What remains are the client, the farewell to it, and the upstream.
    async fn shown_out(mut self, reason: Reason) -> (TlsClient, Parting, UnixStream) {
        let register = Arc::new(Register::default());
        let presence = enter(&register);
        register.end_all(reason);
        let ending = self.relay.run(&presence, &mut Carried::default()).await;
        assert_eq!(ending.reason, reason);
        (self.client, self.relay.leave(ending).parting, self.upstream)
    }

    /// It is shown out, and this is all that the client hears from the beginning to close_notify.
    async fn heard_until_shown_out(self, reason: Reason) -> Vec<u8> {
        let (client, parting, _) = self.shown_out(reason).await;
        tokio::join!(heard_by(client), parting.say()).0
    }
}

fn enter(register: &Arc<Register>) -> Presence {
    register.enter("db".into(), ClientAddr::new(([127, 0, 0, 1], 1).into()))
}

/// All that a client hears to close_notify; an end without it is an error. Then it hangs up.
async fn heard_by(mut client: TlsClient) -> Vec<u8> {
    let mut words = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut words)).await.unwrap().unwrap();
    words
}

/// A client and our side of it, past the handshake.
async fn secured() -> (TlsClient, ClientLeg) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    // The kernel takes this for "as small as you have it".
    SockRef::from(&near).set_recv_buffer_size(1).unwrap();
    SockRef::from(&far).set_send_buffer_size(1).unwrap();
    let mut ours = Box::new(TlsStream::new(far, Records::new(ACCENT.server_config()).unwrap()));
    let answer = async {
        while ours.records().is_handshaking() {
            ours.next_flight().await.unwrap();
        }
    };
    let connector = TlsConnector::from(ACCENT.client_config());
    let (client, ()) = tokio::join!(connector.connect("db.test".try_into().unwrap(), near), answer);
    (client.unwrap(), Leg::Tls(ours))
}

/// A message of so many bytes, header included.
fn message(length: usize) -> Vec<u8> {
    let header = u32::try_from(length - 1).unwrap().to_be_bytes();
    [b"D", &header[..], &speech(0, length - 5)].concat()
}

#[tokio::test]
async fn what_is_on_its_way_comes_first_and_then_the_goodbye() {
    let mut session = Session::of(Protocol::Postgres).await;
    let said = [message(100), message(MUCH - 100)].concat();
    session.says(&said).await;
    assert!(session.is_held_up().await);
    let heard = session.heard_until_shown_out(Reason::SourceRevoked).await;
    assert!(heard == [said, goodbye(Reason::SourceRevoked)].concat(), "{} bytes", heard.len());
}

#[tokio::test]
async fn what_the_flow_holds_itself_is_on_its_way_too() {
    let mut session = Session::of(Protocol::Postgres).await;
    (session.relay.outbound, session.relay.shown_out) = (Flow::new(message(100)), true);
    let parting = session.relay.leave(Reason::Shutdown.into()).parting;
    let (heard, ()) = tokio::join!(heard_by(session.client), parting.say());
    assert!(heard == [message(100), goodbye(Reason::Shutdown)].concat());
}

#[tokio::test]
async fn in_the_middle_of_a_message_nothing_is_said() {
    for missing in [1, 99, 100, 101, 102, 103, 104] {
        let mut session = Session::of(Protocol::Postgres).await;
        let whole = [message(MUCH - 105), message(105)].concat();
        let said = &whole[..whole.len() - missing];
        session.says(said).await;
        assert!(session.is_held_up().await);
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
        assert!(session.relay.poll(&mut Carried::default(), cx).is_pending());
        if session.relay.outbound.has_ended() { Poll::Ready(()) } else { Poll::Pending }
    });
    timeout(PATIENCE, ended).await.unwrap();
    assert!(session.heard_until_shown_out(Reason::Shutdown).await == message(100));
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_gone_within_a_second_and_its_upstream_at_once() {
    let mut session = Session::of(Protocol::Postgres).await;
    session.says(&message(MUCH)).await;
    assert!(session.is_held_up().await);
    let (_client, parting, mut upstream) = session.shown_out(Reason::CredentialRevoked).await;
    assert_eq!(timeout(PATIENCE, upstream.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    // From here on time passes only where there is nothing else to do.
    pause();
    let begun = Instant::now();
    parting.say().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}
