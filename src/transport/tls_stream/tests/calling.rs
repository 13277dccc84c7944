//! The other side: ours is the client, and tokio-rustls, or our own, answers.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server};

use crate::tls::engine::{Client, TlsEngine};
use crate::tls::fixtures::{TlsOptions, test_bytes};
use crate::transport::tls_stream::TlsStream;
use crate::transport::tls_stream::tests::{TLS_OPTIONS, answer, assert_owns_nothing, run};

type Caller = TlsStream<DuplexStream, Client>;

fn caller(options: TlsOptions, socket: DuplexStream) -> Caller {
    TlsStream::new(socket, TlsEngine::connect(options.client_config(), "db.test".try_into().unwrap()).unwrap())
}

async fn call(options: TlsOptions, socket: DuplexStream) -> Caller {
    let mut stream = caller(options, socket);
    while stream.engine().is_handshaking() {
        stream.next_flight().await.unwrap();
    }
    stream
}

/// Our client and a server of tokio-rustls, past the handshake.
async fn pair(options: TlsOptions) -> (Caller, server::TlsStream<DuplexStream>) {
    let (near, far) = duplex(16 << 10);
    let acceptor = TlsAcceptor::from(options.server_config());
    let (ours, server) = tokio::join!(call(options, near), acceptor.accept(far));
    (ours, server.unwrap())
}

#[test]
fn a_server_of_rustls_answers_our_client_in_every_suite() {
    run(async {
        for suite in 0..6 {
            for client_auth in [false, true] {
                let (mut ours, mut server) = pair(TlsOptions { suite, client_auth, ..TLS_OPTIONS }).await;
                assert_eq!(ours.engine().server_chain().len(), 1);
                let (asked, told) = (test_bytes(0, 100_000), test_bytes(7, 200_000));
                let ask = async {
                    ours.write_all(&asked).await.unwrap();
                    ours.shutdown().await.unwrap();
                    let mut heard = Vec::new();
                    ours.read_to_end(&mut heard).await.unwrap();
                    heard
                };
                let tell = async {
                    let mut heard = Vec::new();
                    server.read_to_end(&mut heard).await.unwrap();
                    server.write_all(&told).await.unwrap();
                    server.shutdown().await.unwrap();
                    heard
                };
                let (at_client, at_server) = tokio::join!(ask, tell);
                assert!(at_client == told && at_server == asked, "not what was said");
                assert!(!ours.is_truncated());
                assert_owns_nothing(&ours);
            }
        }
    });
}

#[test]
fn our_client_and_our_server_understand_each_other() {
    run(async {
        for suite in 0..6 {
            let options = TlsOptions { suite, client_auth: true, ..TLS_OPTIONS };
            let (near, far) = duplex(16 << 10);
            let (mut client, mut server) = tokio::join!(call(options, near), answer(options, far));
            assert_eq!(server.engine().client_chain().len(), 1);
            let mut word = [0; 4];
            for _ in 0..3 {
                client.write_all(b"ping").await.unwrap();
                server.read_exact(&mut word).await.unwrap();
                server.write_all(b"pong").await.unwrap();
                client.read_exact(&mut word).await.unwrap();
                assert_eq!(&word, b"pong");
                // The tickets that TLS 1.3 sends behind the handshake are nothing for the reader.
                assert_owns_nothing(&client);
                assert_owns_nothing(&server);
            }
        }
    });
}

#[test]
fn an_upstream_that_is_cut_off_is_told_from_one_that_ended() {
    run(async {
        for part in [&b""[..], b"\x17\x03", b"\x17\x03\x03\x00\x20this is"] {
            let (mut ours, mut server) = pair(TLS_OPTIONS).await;
            server.write_all(b"half a res").await.unwrap();
            server.flush().await.unwrap();
            server.get_mut().0.write_all(part).await.unwrap();
            server.get_mut().0.shutdown().await.unwrap();
            let mut heard = Vec::new();
            ours.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"half a res");
            assert!(ours.is_truncated());
        }
    });
}

#[test]
fn a_server_that_hangs_up_or_speaks_something_else_ends_the_handshake() {
    run(async {
        let (near, mut far) = duplex(16 << 10);
        let mut ours = caller(TLS_OPTIONS, near);
        far.write_all(b"-ERR this is no TLS\r\n").await.unwrap();
        let error = ours.next_flight().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
        // The hello is out, and an alert behind it.
        let mut first = [0; 3];
        far.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"\x16\x03\x01");

        let (near, mut far) = duplex(16 << 10);
        let mut ours = caller(TLS_OPTIONS, near);
        far.shutdown().await.unwrap();
        assert_eq!(ours.next_flight().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn an_upstream_costs_an_idle_session_no_more_than_a_client() {
    let size = size_of::<TlsStream<TcpStream, Client>>();
    assert!(size <= 1280, "{size} bytes");
}
