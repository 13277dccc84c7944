//! Our client side, with the server side of tokio-rustls or our own.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server};

use crate::tls::engine::{Client, TlsEngine};
use crate::tls::fixtures::{TlsOptions, test_bytes};
use crate::transport::tls_stream::TlsStream;
use crate::transport::tls_stream::tests::{TLS_OPTIONS, accept, assert_owns_no_bytes, run};

type OurClient = TlsStream<DuplexStream, Client>;

fn our_client(options: TlsOptions, socket: DuplexStream) -> OurClient {
    TlsStream::new(socket, TlsEngine::connect(options.client_config(), "db.test".try_into().unwrap()).unwrap())
}

async fn connect(options: TlsOptions, socket: DuplexStream) -> OurClient {
    let mut stream = our_client(options, socket);
    while stream.engine().is_handshaking() {
        stream.next_flight().await.unwrap();
    }
    stream
}

/// Our client and a server of tokio-rustls, after the handshake.
async fn pair(options: TlsOptions) -> (OurClient, server::TlsStream<DuplexStream>) {
    let (near, far) = duplex(16 << 10);
    let acceptor = TlsAcceptor::from(options.server_config());
    let (ours, server) = tokio::join!(connect(options, near), acceptor.accept(far));
    (ours, server.unwrap())
}

#[test]
fn our_client_and_a_rustls_server_exchange_data_in_every_suite() {
    run(async {
        for suite in 0..6 {
            for client_auth in [false, true] {
                let (mut ours, mut server) = pair(TlsOptions { suite, client_auth, ..TLS_OPTIONS }).await;
                assert_eq!(ours.engine().server_chain().len(), 1);
                let (request, response) = (test_bytes(0, 100_000), test_bytes(7, 200_000));
                let client_side = async {
                    ours.write_all(&request).await.unwrap();
                    ours.shutdown().await.unwrap();
                    let mut received = Vec::new();
                    ours.read_to_end(&mut received).await.unwrap();
                    received
                };
                let server_side = async {
                    let mut received = Vec::new();
                    server.read_to_end(&mut received).await.unwrap();
                    server.write_all(&response).await.unwrap();
                    server.shutdown().await.unwrap();
                    received
                };
                let (at_client, at_server) = tokio::join!(client_side, server_side);
                assert!(at_client == response && at_server == request, "not the bytes that were sent");
                assert!(!ours.is_truncated());
                assert_owns_no_bytes(&ours);
            }
        }
    });
}

#[test]
fn our_client_and_our_server_exchange_data_in_every_suite() {
    run(async {
        for suite in 0..6 {
            let options = TlsOptions { suite, client_auth: true, ..TLS_OPTIONS };
            let (near, far) = duplex(16 << 10);
            let (mut client, mut server) = tokio::join!(connect(options, near), accept(options, far));
            assert_eq!(server.engine().client_chain().len(), 1);
            let mut word = [0; 4];
            for _ in 0..3 {
                client.write_all(b"ping").await.unwrap();
                server.read_exact(&mut word).await.unwrap();
                server.write_all(b"pong").await.unwrap();
                client.read_exact(&mut word).await.unwrap();
                assert_eq!(&word, b"pong");
                // TLS 1.3 sends session tickets after the handshake, which the reader does not see.
                assert_owns_no_bytes(&client);
                assert_owns_no_bytes(&server);
            }
        }
    });
}

#[test]
fn upstream_that_ends_without_close_notify_is_truncated() {
    run(async {
        for part in [&b""[..], b"\x17\x03", b"\x17\x03\x03\x00\x20this is"] {
            let (mut ours, mut server) = pair(TLS_OPTIONS).await;
            server.write_all(b"half a res").await.unwrap();
            server.flush().await.unwrap();
            server.get_mut().0.write_all(part).await.unwrap();
            server.get_mut().0.shutdown().await.unwrap();
            let mut received = Vec::new();
            ours.read_to_end(&mut received).await.unwrap();
            assert_eq!(received, b"half a res");
            assert!(ours.is_truncated());
        }
    });
}

#[test]
fn handshake_with_a_server_that_closes_or_does_not_speak_tls_fails() {
    run(async {
        let (near, mut far) = duplex(16 << 10);
        let mut ours = our_client(TLS_OPTIONS, near);
        far.write_all(b"-ERR this is no TLS\r\n").await.unwrap();
        let error = ours.next_flight().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
        // The ClientHello was sent, then an alert.
        let mut first = [0; 3];
        far.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"\x16\x03\x01");

        let (near, mut far) = duplex(16 << 10);
        let mut ours = our_client(TLS_OPTIONS, near);
        far.shutdown().await.unwrap();
        assert_eq!(ours.next_flight().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn upstream_tls_stream_has_at_most_1280_bytes() {
    let size = size_of::<TlsStream<TcpStream, Client>>();
    assert!(size <= 1280, "{size} bytes");
}
