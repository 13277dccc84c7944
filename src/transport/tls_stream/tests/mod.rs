//! The stream over pipes in memory, with tokio-rustls at the other end.

pub(crate) mod calling;
pub(crate) mod pressure;
pub(crate) mod sessions;

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex, join, split};
use tokio::runtime::Builder;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client};

use crate::tls::engine::{Side, TlsEngine};
use crate::tls::fixtures::{TlsOptions, test_bytes};
use crate::transport::tls_stream::TlsStream;

const TLS_OPTIONS: TlsOptions = TlsOptions { suite: 0, record: None, client_auth: false };

/// Runs a test to its end. The time is far more than it takes: what hangs shall fail.
fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { timeout(Duration::from_secs(10), work).await.expect("nothing hangs") })
}

async fn call(options: TlsOptions, socket: DuplexStream) -> client::TlsStream<DuplexStream> {
    let connector = TlsConnector::from(options.client_config());
    connector.connect("db.test".try_into().unwrap(), socket).await.unwrap()
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(options: TlsOptions, socket: S) -> TlsStream<S> {
    let mut stream = TlsStream::new(socket, TlsEngine::new(options.server_config()).unwrap());
    while stream.engine().is_handshaking() {
        stream.next_flight().await.unwrap();
    }
    stream
}

/// A client and our side of it, past the handshake.
async fn pair(options: TlsOptions) -> (client::TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let (near, far) = duplex(16 << 10);
    tokio::join!(call(options, near), answer(options, far))
}

fn assert_owns_nothing<T, S: Side>(stream: &TlsStream<T, S>) {
    assert!(stream.unread.is_empty() && stream.unsent.is_empty());
    assert_eq!(stream.engine.unopened(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_read_does_not_depend_on_the_room_there_is(
        suite in 0_usize..6,
        lengths in prop::collection::vec(1_usize..30_000, 1..6),
        rooms in prop::collection::vec(prop_oneof![1_usize..100, 1_usize..40_000], 1..6),
    ) {
        let all = test_bytes(0, lengths.iter().sum());
        let heard = run(async {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            let say = async {
                let mut rest = all.as_slice();
                for length in &lengths {
                    let (now, later) = rest.split_at(*length);
                    client.write_all(now).await.unwrap();
                    client.flush().await.unwrap();
                    rest = later;
                }
                client.shutdown().await.unwrap();
            };
            let hear = async {
                let mut heard: Vec<u8> = Vec::new();
                for room in rooms.iter().cycle() {
                    let mut room = vec![0; *room];
                    match ours.read(&mut room).await.unwrap() {
                        0 => break,
                        count => heard.extend(&room[..count]),
                    }
                }
                heard
            };
            let ((), heard) = tokio::join!(say, hear);
            assert!(!ours.is_truncated(), "that was close_notify");
            assert_owns_nothing(&ours);
            heard
        });
        prop_assert!(heard == all);
    }
}

#[test]
fn a_session_that_has_nothing_to_do_owns_nothing() {
    run(async {
        for suite in 0..6 {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            assert_owns_nothing(&ours);
            let mut word = [0; 4];
            for _ in 0..3 {
                client.write_all(b"ping").await.unwrap();
                client.flush().await.unwrap();
                ours.read_exact(&mut word).await.unwrap();
                ours.write_all(b"pong").await.unwrap();
                client.read_exact(&mut word).await.unwrap();
                assert_eq!(&word, b"pong");
                assert_owns_nothing(&ours);
            }
        }
    });
}

#[test]
fn a_broken_record_is_an_error_behind_what_came_before_it_and_the_client_gets_the_alert() {
    run(async {
        for suite in 0..6 {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            client.write_all(b"before").await.unwrap();
            client.flush().await.unwrap();
            let record = b"\x17\x03\x03\x00\x20this is not what the keys would say";
            client.get_mut().0.write_all(record).await.unwrap();
            let mut word = [0; 4];
            ours.read_exact(&mut word).await.unwrap();
            ours.read_exact(&mut word[..2]).await.unwrap();
            assert_eq!(&word[..2], b"re");
            assert_eq!(ours.read(&mut word).await.unwrap_err().kind(), ErrorKind::InvalidData);
            // And it stays broken.
            assert!(ours.write_all(b"after").await.is_err());
            ours.shutdown().await.unwrap();
            let told = client.read(&mut word).await.unwrap_err();
            assert!(told.to_string().contains("BadRecordMac"), "{told}");
        }
    });
}

#[test]
fn the_end_of_tcp_ends_reading_and_leaves_writing_as_it_is() {
    run(async {
        // In the middle of nothing, of a record's head, of a record.
        for part in [&b""[..], b"\x17\x03", b"\x17\x03\x03\x00\x20this is"] {
            let (mut client, mut ours) = pair(TLS_OPTIONS).await;
            client.write_all(b"before").await.unwrap();
            client.flush().await.unwrap();
            client.get_mut().0.write_all(part).await.unwrap();
            client.get_mut().0.shutdown().await.unwrap();
            let mut heard = Vec::new();
            ours.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"before");
            assert!(ours.is_truncated());
            ours.write_all(b"after").await.unwrap();
            ours.shutdown().await.unwrap();
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            assert_eq!(told, b"after");
        }
    });
}

#[test]
fn a_handshake_that_fails_says_why_to_both_sides() {
    run(async {
        let (mut client, socket) = duplex(16 << 10);
        let mut ours = TlsStream::new(socket, TlsEngine::new(TLS_OPTIONS.server_config()).unwrap());
        // A record of a version that there is not.
        client.write_all(b"\x16\x09\x09\x00\x01\x01").await.unwrap();
        assert_eq!(ours.next_flight().await.unwrap_err().kind(), ErrorKind::InvalidData);
        let mut alert = [0; 7];
        client.read_exact(&mut alert).await.unwrap();
        assert_eq!(&alert, b"\x15\x03\x03\x00\x02\x02\x32", "a fatal alert: decode_error");

        let (mut client, socket) = duplex(16 << 10);
        let mut ours = TlsStream::new(socket, TlsEngine::new(TLS_OPTIONS.server_config()).unwrap());
        client.write_all(b"\x16\x03\x01").await.unwrap();
        ours.next_flight().await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(ours.next_flight().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_client_that_is_refused_and_does_not_wait_to_hear_it_hides_nothing() {
    run(async {
        let (mut client, socket) = duplex(16 << 10);
        let mut ours = TlsStream::new(socket, TlsEngine::new(TLS_OPTIONS.server_config()).unwrap());
        client.write_all(b"\x16\x09\x09\x00\x01\x01").await.unwrap();
        // Now the alert cannot be sent any more.
        drop(client);
        assert_eq!(ours.next_flight().await.unwrap_err().kind(), ErrorKind::InvalidData);
    });
}

#[test]
fn what_a_client_broke_is_the_reason_also_where_the_other_direction_notices_first() {
    run(async {
        let (mut client, mut ours) = pair(TLS_OPTIONS).await;
        let mut record = [0; 64];
        client.write_all(b"hello").await.unwrap();
        client.flush().await.unwrap();
        client.get_mut().0.write_all(b"\x17\x03\x03\x00\x20 no record was ever sealed like t").await.unwrap();
        // Together they are more than is read at once.
        assert_eq!(ours.read(&mut record).await.unwrap(), 5);
        assert_eq!(ours.write(b"words").await.unwrap_err().kind(), ErrorKind::InvalidData);
    });
}

/// A socket's writing side, and how often it was shut down.
struct Outcome<W>(W, u32);

impl<W: AsyncWrite + Unpin> AsyncWrite for Outcome<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.1 += 1;
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[test]
fn a_socket_is_shut_down_once_however_often_the_stream_is() {
    run(async {
        let (near, far) = duplex(16 << 10);
        let (from, to) = split(far);
        let (_client, mut ours) =
            tokio::join!(call(TLS_OPTIONS, near), answer(TLS_OPTIONS, join(from, Outcome(to, 0))));
        // The flow that ends does it, and so does the farewell.
        ours.shutdown().await.unwrap();
        ours.shutdown().await.unwrap();
        assert_eq!(ours.into_socket().writer().1, 1);
    });
}
