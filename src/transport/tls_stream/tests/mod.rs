//! The stream over in-memory pipes, with tokio-rustls as the peer.

pub(crate) mod client_side;
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

/// Runs a test. The timeout is far more than any test takes, so only a hanging test fails.
fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { timeout(Duration::from_secs(10), work).await.expect("the test hangs") })
}

async fn connect(options: TlsOptions, socket: DuplexStream) -> client::TlsStream<DuplexStream> {
    let connector = TlsConnector::from(options.client_config());
    connector.connect("db.test".try_into().unwrap(), socket).await.unwrap()
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin>(options: TlsOptions, socket: S) -> TlsStream<S> {
    let mut stream = TlsStream::new(socket, TlsEngine::new(options.server_config()).unwrap());
    while stream.engine().is_handshaking() {
        stream.next_flight().await.unwrap();
    }
    stream
}

/// A client and our server side, after the handshake.
async fn pair(options: TlsOptions) -> (client::TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let (near, far) = duplex(16 << 10);
    tokio::join!(connect(options, near), accept(options, far))
}

fn assert_owns_no_bytes<T, S: Side>(stream: &TlsStream<T, S>) {
    assert!(stream.unread.is_empty() && stream.unsent.is_empty());
    assert_eq!(stream.engine.unopened(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn read_bytes_do_not_depend_on_the_size_of_the_buffer(
        suite in 0_usize..6,
        lengths in prop::collection::vec(1_usize..30_000, 1..6),
        sizes in prop::collection::vec(prop_oneof![1_usize..100, 1_usize..40_000], 1..6),
    ) {
        let all = test_bytes(0, lengths.iter().sum());
        let received = run(async {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            let send = async {
                let mut rest = all.as_slice();
                for length in &lengths {
                    let (now, later) = rest.split_at(*length);
                    client.write_all(now).await.unwrap();
                    client.flush().await.unwrap();
                    rest = later;
                }
                client.shutdown().await.unwrap();
            };
            let receive = async {
                let mut received: Vec<u8> = Vec::new();
                for size in sizes.iter().cycle() {
                    let mut buffer = vec![0; *size];
                    match ours.read(&mut buffer).await.unwrap() {
                        0 => break,
                        count => received.extend(&buffer[..count]),
                    }
                }
                received
            };
            let ((), received) = tokio::join!(send, receive);
            assert!(!ours.is_truncated(), "the client sent close_notify");
            assert_owns_no_bytes(&ours);
            received
        });
        prop_assert!(received == all);
    }
}

#[test]
fn idle_stream_owns_no_bytes() {
    run(async {
        for suite in 0..6 {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            assert_owns_no_bytes(&ours);
            let mut word = [0; 4];
            for _ in 0..3 {
                client.write_all(b"ping").await.unwrap();
                client.flush().await.unwrap();
                ours.read_exact(&mut word).await.unwrap();
                ours.write_all(b"pong").await.unwrap();
                client.read_exact(&mut word).await.unwrap();
                assert_eq!(&word, b"pong");
                assert_owns_no_bytes(&ours);
            }
        }
    });
}

#[test]
fn invalid_record_is_an_error_after_the_bytes_before_it_and_sends_an_alert() {
    run(async {
        for suite in 0..6 {
            let (mut client, mut ours) = pair(TlsOptions { suite, ..TLS_OPTIONS }).await;
            client.write_all(b"before").await.unwrap();
            client.flush().await.unwrap();
            let record = b"\x17\x03\x03\x00\x20these bytes were not sealed by a key";
            client.get_mut().0.write_all(record).await.unwrap();
            let mut word = [0; 4];
            ours.read_exact(&mut word).await.unwrap();
            ours.read_exact(&mut word[..2]).await.unwrap();
            assert_eq!(&word[..2], b"re");
            assert_eq!(ours.read(&mut word).await.unwrap_err().kind(), ErrorKind::InvalidData);
            // The stream stays unusable.
            assert!(ours.write_all(b"after").await.is_err());
            ours.shutdown().await.unwrap();
            let alert = client.read(&mut word).await.unwrap_err();
            assert!(alert.to_string().contains("BadRecordMac"), "{alert}");
        }
    });
}

#[test]
fn end_of_tcp_ends_reading_but_not_writing() {
    run(async {
        // Between records, within a record header, within a record.
        for part in [&b""[..], b"\x17\x03", b"\x17\x03\x03\x00\x20this is"] {
            let (mut client, mut ours) = pair(TLS_OPTIONS).await;
            client.write_all(b"before").await.unwrap();
            client.flush().await.unwrap();
            client.get_mut().0.write_all(part).await.unwrap();
            client.get_mut().0.shutdown().await.unwrap();
            let mut received = Vec::new();
            ours.read_to_end(&mut received).await.unwrap();
            assert_eq!(received, b"before");
            assert!(ours.is_truncated());
            ours.write_all(b"after").await.unwrap();
            ours.shutdown().await.unwrap();
            let mut response = Vec::new();
            client.read_to_end(&mut response).await.unwrap();
            assert_eq!(response, b"after");
        }
    });
}

#[test]
fn failed_handshake_returns_an_error_and_sends_an_alert() {
    run(async {
        let (mut client, socket) = duplex(16 << 10);
        let mut ours = TlsStream::new(socket, TlsEngine::new(TLS_OPTIONS.server_config()).unwrap());
        // A record of an unknown version.
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
fn tls_error_of_a_client_that_has_disconnected_is_returned() {
    run(async {
        let (mut client, socket) = duplex(16 << 10);
        let mut ours = TlsStream::new(socket, TlsEngine::new(TLS_OPTIONS.server_config()).unwrap());
        client.write_all(b"\x16\x09\x09\x00\x01\x01").await.unwrap();
        // The alert can no longer be sent.
        drop(client);
        assert_eq!(ours.next_flight().await.unwrap_err().kind(), ErrorKind::InvalidData);
    });
}

#[test]
fn write_after_an_invalid_record_returns_the_record_error() {
    run(async {
        let (mut client, mut ours) = pair(TLS_OPTIONS).await;
        let mut record = [0; 64];
        client.write_all(b"hello").await.unwrap();
        client.flush().await.unwrap();
        client.get_mut().0.write_all(b"\x17\x03\x03\x00\x20 no record was ever sealed like t").await.unwrap();
        // Together they exceed one read.
        assert_eq!(ours.read(&mut record).await.unwrap(), 5);
        assert_eq!(ours.write(b"bytes").await.unwrap_err().kind(), ErrorKind::InvalidData);
    });
}

/// The writing side of a socket, and the number of its shutdowns.
struct CountShutdowns<W>(W, u32);

impl<W: AsyncWrite + Unpin> AsyncWrite for CountShutdowns<W> {
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
fn socket_is_shut_down_once_if_the_stream_is_shut_down_twice() {
    run(async {
        let (near, far) = duplex(16 << 10);
        let (from, to) = split(far);
        let (_client, mut ours) =
            tokio::join!(connect(TLS_OPTIONS, near), accept(TLS_OPTIONS, join(from, CountShutdowns(to, 0))));
        // The flow shuts it down at its end, and the farewell does so again.
        ours.shutdown().await.unwrap();
        ours.shutdown().await.unwrap();
        assert_eq!(ours.into_socket().writer().1, 1);
    });
}
