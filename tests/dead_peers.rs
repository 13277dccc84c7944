//! `dead_peer_timeout`: a peer that stops acknowledging is closed, and a peer that only stops reading is not.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::client::port;
use crate::harness::dns::alone;
use crate::harness::program::{command, run};
use crate::harness::{Listener, Portcullis, TestDir, Upstream, WAIT_TIMEOUT, eventually};

const LIMIT: &str = "dead_peer_timeout = \"2s\"";

/// Of the tests that cut the wire: on a busy machine keepalive must not end a session before it has written.
const CUT_TIMEOUT: Duration = Duration::from_secs(6);
const CUT_LIMIT: &str = "dead_peer_timeout = \"6s\"";

/// Much longer than 2 s, and until the probes of a closed window are farther apart than it.
const PAUSE: Duration = Duration::from_secs(14);

/// More than the buffers of all sockets on the way hold.
const MUCH: usize = 32 << 20;

/// More than a small receive buffer holds, and less than the buffers on the way: the proxy is done with it at once.
const SOME: usize = 200 << 10;

/// A client or a server with a small receive buffer.
fn narrow(address: Option<SocketAddr>) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    if let Some(address) = address {
        socket.connect(&address.into()).unwrap();
    }
    socket
}

fn before(upstream: impl std::fmt::Display) -> Portcullis {
    Portcullis::start(TestDir::new(), Listener::tcp(upstream).without_tls().on(&["127.0.0.1:0"]).limit(LIMIT))
}

#[test]
fn client_that_acknowledges_without_reading_is_never_closed() {
    thread::scope(|scope| {
        for length in [SOME, MUCH] {
            scope.spawn(move || {
                let upstream = Upstream::new(move |mut stream| {
                    let _ = stream.write_all(&vec![7; length]);
                    let _ = std::io::copy(&mut stream, &mut std::io::sink());
                });
                let portcullis = before(&upstream);
                let mut client = TcpStream::from(narrow(Some(portcullis.address("main"))));
                client.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
                thread::sleep(PAUSE);
                // With a small buffer this would take long.
                SockRef::from(&client).set_recv_buffer_size(1 << 20).unwrap();
                let mut received = vec![0; length];
                client.read_exact(&mut received).unwrap_or_else(|error| panic!("of {length} bytes: {error}"));
                assert!(received.iter().all(|byte| *byte == 7));
            });
        }
    });
}

#[test]
fn upstream_that_acknowledges_without_reading_is_never_closed() {
    let narrow = narrow(None);
    narrow.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    narrow.listen(8).unwrap();
    let listener = TcpListener::from(narrow);
    let portcullis = before(listener.local_addr().unwrap());
    thread::scope(|scope| {
        for _ in 0..2 {
            let listener = &listener;
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
                thread::sleep(PAUSE);
                SockRef::from(&stream).set_recv_buffer_size(1 << 20).unwrap();
                let mut length = [0; 8];
                stream.read_exact(&mut length).unwrap();
                let mut received = vec![0; usize::try_from(u64::from_be_bytes(length)).unwrap()];
                stream.read_exact(&mut received).unwrap();
                stream.write_all(b"done").unwrap();
            });
        }
        for length in [SOME, MUCH] {
            let address = portcullis.address("main");
            scope.spawn(move || {
                let mut client = TcpStream::connect(address).unwrap();
                client.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
                client.write_all(&(length as u64).to_be_bytes()).unwrap();
                client.write_all(&vec![7; length]).unwrap();
                let mut answer = [0; 4];
                client.read_exact(&mut answer).unwrap_or_else(|error| panic!("of {length} bytes: {error}"));
            });
        }
    });
}

/// While it lives, no packet reaches 127.0.0.1, and no side gets an error.
#[derive(Debug)]
struct CutWire {
    since: Instant,
}

impl CutWire {
    fn cut() -> Self {
        run(command("tc").args("qdisc add dev lo root blackhole".split(' '))).success();
        Self { since: Instant::now() }
    }
}

impl Drop for CutWire {
    /// Otherwise the server of the test would wait for its last connection.
    fn drop(&mut self) {
        run(command("tc").args("qdisc del dev lo root".split(' '))).success();
    }
}

/// The answer of a server at a Unix socket, before or after the network is cut, depending on the question.
fn serve(mut stream: UnixStream, is_cut: &AtomicBool) {
    let mut question = [0];
    stream.read_exact(&mut question).unwrap();
    stream.write_all(&question).unwrap();
    let (length, later) = match question {
        [b'i'] => (0, false),
        [b'c'] => (SOME, false),
        [b's'] => (10, true),
        _ => (MUCH, true),
    };
    while later && !is_cut.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(10));
    }
    let _ = stream.write_all(&vec![7; length]);
    let _ = stream.read(&mut question);
}

#[test]
fn client_that_stops_acknowledging_is_closed() {
    alone(|| {
        let site = TestDir::new();
        let path = site.path("database.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let is_cut = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&is_cut);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let is_cut = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &is_cut));
            }
        });
        let upstream = format!("unix:{}", path.display());
        let listener = Listener::tcp(upstream).without_tls().on(&["127.0.0.1:0"]).limit(CUT_LIMIT);
        let portcullis = Portcullis::start(site, listener);
        // Idle, with a closed window, with few bytes in flight, and with more than the buffers hold.
        let clients = [b"i", b"c", b"s", b"l"].map(|question| {
            let mut client = TcpStream::from(narrow(Some(portcullis.address("main"))));
            client.write_all(question).unwrap();
            client.read_exact(&mut [0]).unwrap();
            client
        });
        let cut = CutWire::cut();
        is_cut.store(true, Ordering::SeqCst);
        for (client, what) in clients.iter().zip(["idle", "closed window", "little", "much"]) {
            let closed = portcullis.ending(port(client));
            assert_eq!(closed.reason(), "io_error", "{what}: {}", closed.0);
            let words = if what == "idle" { "client: " } else { "client: acknowledged nothing for 6s" };
            assert!(closed.text("detail").starts_with(words), "{what}: {}", closed.0);
        }
        let taken = cut.since.elapsed();
        assert!(taken >= CUT_TIMEOUT, "{taken:?}");
    });
}

#[test]
fn upstream_that_stops_acknowledging_is_closed() {
    alone(|| {
        let upstream = Upstream::echo();
        let site = TestDir::new();
        let path = site.path("proxy.sock");
        let listener = Listener::tcp(&upstream).without_tls().on(&[&format!("unix:{}", path.display())]);
        let portcullis = Portcullis::start(site, listener.limit(CUT_LIMIT));
        portcullis.event("its socket", |event| event.is("ready"));
        let clients = ["idle", "little", "much"].map(|what| {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
            (client, what)
        });
        let cut = CutWire::cut();
        let clients = clients.map(|(mut client, what)| {
            thread::spawn(move || {
                let length = match what {
                    "idle" => 0,
                    "little" => 10,
                    _ => MUCH,
                };
                // The session is closed in the middle of the write.
                let _ = client.write_all(&vec![7; length]);
                client.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
                match client.read(&mut [0]) {
                    Ok(0) => {}
                    // Part of what was written is unread.
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                    other => panic!("{what}: {other:?}"),
                }
            })
        });
        for client in clients {
            client.join().unwrap();
        }
        assert!(cut.since.elapsed() >= CUT_TIMEOUT, "{cut:?}");
        let closed = eventually("all have ended", || {
            let closed = portcullis.events().into_iter().filter(|event| event.is("connection.closed"));
            Some(closed.collect::<Vec<_>>()).filter(|closed| closed.len() == 3)
        });
        assert!(closed.iter().all(|event| event.reason() == "io_error"), "{closed:?}");
        let words = "upstream: acknowledged nothing for 6s (dead_peer_timeout)";
        assert_eq!(closed.iter().filter(|event| event.text("detail") == words).count(), 2, "{closed:?}");
    });
}
