//! Sessions over every combination of TLS, TCP and Unix socket: how they end, what arrives, what they use.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, ServerConnection, StreamOwned};

use crate::harness::client::reset;
use crate::harness::portcullis::ADMIN;
use crate::harness::redis::ANY_CLIENT;
use crate::harness::upstream::showing;
use crate::harness::{Event, Portcullis, Redis, TestDir, WAIT_TIMEOUT, eventually, wire};

const MIB: usize = 1 << 20;

/// Bytes without a short period.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| place.to_le_bytes()[place % 3] ^ 0x5a).collect()
}

/// The listeners, one for each kind of client.
const CLIENTS: [&str; 3] = ["secured", "plain", "socket"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Unix,
    Tls,
}

const UPSTREAMS: [Kind; 3] = [Kind::Tcp, Kind::Unix, Kind::Tls];

/// The socket of a client or an upstream.
enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Wire {
    /// Ends its sending direction, and continues to receive.
    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Client(stream) => {
                stream.conn.send_close_notify();
                stream.flush()
            }
            Self::Server(stream) => {
                stream.conn.send_close_notify();
                stream.flush()?;
                stream.sock.shutdown(Shutdown::Write)
            }
        }
    }

    /// Ends with an RST; a Unix socket has none.
    fn reset(self) {
        match self {
            Self::Unix(_) => {}
            Self::Tcp(stream) => reset(stream),
            Self::Client(stream) => reset(stream.sock),
            Self::Server(stream) => reset(stream.sock),
        }
    }

    fn read_all(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).unwrap();
        bytes
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Client(stream) => stream.read(buffer),
            Self::Server(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
            Self::Client(stream) => stream.write(bytes),
            Self::Server(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
            Self::Client(stream) => stream.flush(),
            Self::Server(stream) => stream.flush(),
        }
    }
}

/// An upstream of this kind in a site, with a thread for each connection. Returns its lines of `[listener.upstream]`.
fn upstream(site: &TestDir, kind: Kind, serve: impl Fn(Wire) + Send + Sync + 'static) -> String {
    let serve = Arc::new(serve);
    if kind == Kind::Unix {
        let path = site.path("upstream.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(Wire::Unix(stream)));
            }
        });
        return format!("address = \"unix:{}\"", path.display());
    }
    let config = Arc::new(showing(&site.server()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("address = \"{}\"", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (serve, config) = (Arc::clone(&serve), Arc::clone(&config));
            thread::spawn(move || match kind {
                Kind::Tls => {
                    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
                    // The client may be gone already.
                    if stream.conn.complete_io(&mut stream.sock).is_ok() {
                        serve(Wire::Server(Box::new(stream)));
                    }
                }
                Kind::Tcp | Kind::Unix => serve(Wire::Tcp(stream)),
            });
        }
    });
    match kind {
        Kind::Tls => format!("{address}\ntls = \"verify-full\"\nca = \"ca.crt\""),
        Kind::Tcp | Kind::Unix => address,
    }
}

/// A listener for each kind of client, with this upstream.
fn listeners(protocol: &str, upstream: &str, limits: &str) -> String {
    let secured = "tls.certificates = [{ cert = \"server.crt\", key = \"server.key\" }]";
    let ways = [("127.0.0.1:0", secured), ("127.0.0.1:0", "tls = \"off\""), ("unix:portcullis.sock", "tls = \"off\"")];
    let listener = |(name, (listen, tls)): (&str, (&str, &str))| {
        let trusted = if listen.starts_with("unix") { "" } else { "trusted_sources = [\"127.0.0.1\"]" };
        format!(
            "[[listener]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\nlisten = \"{listen}\"\n{trusted}\n{tls}\n\
             [listener.upstream]\n{upstream}\n[listener.limits]\n{limits}\n"
        )
    };
    CLIENTS.into_iter().zip(ways).map(listener).collect()
}

fn before(kind: Kind, limits: &str, serve: impl Fn(Wire) + Send + Sync + 'static) -> Portcullis {
    let site = TestDir::new();
    let upstream = upstream(&site, kind, serve);
    let portcullis = Portcullis::start(site, format!("{ADMIN}{}", listeners("tcp", &upstream, limits)));
    portcullis.event("ready", |event| event.is("ready") && event.0["listener"] == "socket");
    portcullis
}

fn client(portcullis: &Portcullis, name: &str) -> Wire {
    match name {
        "socket" => {
            let stream = UnixStream::connect(portcullis.site.path("portcullis.sock")).unwrap();
            stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
            stream.set_write_timeout(Some(WAIT_TIMEOUT)).unwrap();
            Wire::Unix(stream)
        }
        "plain" => Wire::Tcp(portcullis.client_of(name).dial()),
        _ => Wire::Client(Box::new(portcullis.client_of(name).connect().stream)),
    }
}

/// The last event of the only session since then.
fn closed(portcullis: &Portcullis, seen: usize) -> Event {
    portcullis.event_after(seen, "the end of the session", |event| event.is("connection.closed"))
}

/// Runs a test for every combination of transports.
fn for_all(
    limits: &str,
    serve: impl Fn(Wire) + Send + Sync + Clone + 'static,
    test: impl Fn(&Portcullis, Kind, &str) + Sync,
) {
    thread::scope(|scope| {
        for kind in UPSTREAMS {
            let (serve, test) = (serve.clone(), &test);
            scope.spawn(move || {
                let portcullis = before(kind, limits, serve);
                for name in CLIENTS {
                    eprintln!("{name} client, {kind:?} upstream");
                    test(&portcullis, kind, name);
                }
            });
        }
    });
}

#[test]
fn half_closed_client_receives_the_whole_answer_over_all_transports() {
    let answer = Arc::new(pattern(64 * MIB));
    let output = Arc::clone(&answer);
    let serve = move |mut stream: Wire| {
        let question = stream.read_all();
        let size: usize = String::from_utf8(question).unwrap().parse().unwrap();
        stream.write_all(&output[..size]).unwrap();
        stream.finish().unwrap();
    };
    for_all("", serve, |portcullis, kind, name| {
        let size = if (kind, name) == (Kind::Tls, "secured") { 64 * MIB } else { 4 * MIB };
        let seen = portcullis.seen();
        let mut client = client(portcullis, name);
        let question = size.to_string();
        client.write_all(question.as_bytes()).unwrap();
        client.finish().unwrap();
        assert!(client.read_all() == answer[..size], "not the answer");
        drop(client);
        let closed = closed(portcullis, seen);
        assert_eq!(closed.reason(), "client_closed");
        assert_eq!((closed.number("bytes_in"), closed.number("bytes_out")), (question.len() as u64, size as u64));
    });
}

#[test]
fn half_closed_upstream_receives_all_client_bytes_over_all_transports() {
    let serve = |mut stream: Wire| {
        stream.write_all(b"again").unwrap();
        stream.finish().unwrap();
        // The byte count shows an error here.
        stream.read_all();
    };
    for_all("", serve, |portcullis, _, name| {
        let seen = portcullis.seen();
        let mut client = client(portcullis, name);
        assert_eq!(client.read_all(), b"again");
        client.write_all(&pattern(2 * MIB)).unwrap();
        client.finish().unwrap();
        let closed = closed(portcullis, seen);
        assert_eq!(closed.reason(), "upstream_closed");
        assert_eq!((closed.number("bytes_in"), closed.number("bytes_out")), (2 * MIB as u64, 5));
    });
}

#[test]
fn half_close_timeout_counts_from_the_last_byte_over_all_transports() {
    let serve = |mut stream: Wire| {
        stream.read_all();
        // Longer in total than the timeout.
        for _ in 0..12 {
            thread::sleep(Duration::from_millis(200));
            stream.write_all(b"more").unwrap();
        }
        // Sends no more, and stays open for longer than any timeout.
        thread::sleep(WAIT_TIMEOUT);
    };
    for_all("half_close_timeout = \"2s\"", serve, |portcullis, _, name| {
        let seen = portcullis.seen();
        let begun = Instant::now();
        let mut client = client(portcullis, name);
        client.finish().unwrap();
        let mut received = vec![0; 48];
        client.read_exact(&mut received).unwrap();
        assert_eq!(received, b"more".repeat(12));
        let closed = closed(portcullis, seen);
        assert_eq!(closed.reason(), "half_close_timeout");
        assert!(begun.elapsed() >= Duration::from_millis(4_400), "{:?}", begun.elapsed());
    });
}

#[test]
fn truncated_upstream_stream_is_delivered_and_marked_as_truncated_over_all_transports() {
    let serve = |mut stream: Wire| {
        wire::read_exactly(&mut stream, 1);
        stream.write_all(&pattern(3 * MIB)).unwrap();
        // No close_notify.
    };
    let portcullis = before(Kind::Tls, "", serve);
    for name in CLIENTS {
        let seen = portcullis.seen();
        let mut client = client(&portcullis, name);
        client.write_all(b"?").unwrap();
        let mut received = Vec::new();
        let end = client.read_to_end(&mut received);
        assert!(received == pattern(3 * MIB), "{name}: {} bytes", received.len());
        match name {
            "secured" => assert_eq!(end.unwrap_err().kind(), ErrorKind::UnexpectedEof),
            _ => drop(end.unwrap()),
        }
        drop(client);
        let closed = closed(&portcullis, seen);
        assert_eq!((closed.reason(), closed.number("bytes_out")), ("upstream_closed", 3 * MIB as u64));
        assert!(closed.text("detail").contains("close_notify"), "{}", closed.0);
    }
}

#[test]
fn ended_session_leaves_nothing_however_either_side_closes() {
    // The upstream executes commands. Either side may find that the other one has closed already.
    let serve = |mut stream: Wire| {
        let mut word = [0];
        while stream.read_exact(&mut word).is_ok() {
            match &word {
                b"r" => return stream.reset(),
                b"c" => return,
                b"f" => drop(stream.finish()),
                b"m" => drop(stream.write_all(&pattern(100_000))),
                _ => drop(stream.write_all(&word)),
            }
        }
    };
    for_all("", serve, |portcullis, kind, name| {
        let mut warm = client(portcullis, name);
        warm.write_all(b"e").unwrap();
        wire::read_exactly(&mut warm, 1);
        portcullis.event("it is in", |event| event.is("connection.opened") && event.0["listener"] == name);
        let (files, seen) = (portcullis.open_files(), portcullis.seen());
        let orders: [&[u8]; 8] = [b"e", b"r", b"c", b"f", b"mr", b"mc", b"mfr", b"mfc"];
        for orders in orders {
            for way in 0..4 {
                let mut client = client(portcullis, name);
                let _ = client.write_all(orders);
                match way {
                    0 => client.reset(),
                    1 => drop(client),
                    2 => {
                        let _ = client.finish();
                        client.reset();
                    }
                    _ => {
                        let _ = client.finish();
                        let _ = client.read_to_end(&mut Vec::new());
                    }
                }
            }
        }
        // The last listener's session may end only now.
        let own = |event: &&Event| event.0["listener"] == name;
        let of = |what: &str| portcullis.events()[seen..].iter().filter(own).filter(|event| event.is(what)).count();
        eventually("every session ends", || (of("connection.closed") + of("connection.denied") == 32).then_some(()));
        eventually("its files are closed", || (portcullis.open_files() <= files).then_some(()));
        for event in portcullis.events()[seen..].iter().filter(own).filter(|event| event.is("connection.closed")) {
            assert!(matches!(event.reason(), "client_closed" | "upstream_closed"), "{name} {kind:?}: {}", event.0);
        }
        assert_eq!(of("connection.opened"), of("connection.closed"));
        warm.write_all(b"e").unwrap();
        wire::read_exactly(&mut warm, 1);
    });
}

#[test]
fn slow_reader_uses_little_memory_over_all_transports() {
    /// In KiB. One reading of 64 KiB, held or sealed; the rest is for the allocator and the log.
    const MAX_GROWTH: u64 = 384;
    let serve = |mut stream: Wire| {
        wire::read_exactly(&mut stream, 1);
        let piece = pattern(MIB);
        while stream.write_all(&piece).is_ok() {}
    };
    for_all("", serve, |portcullis, kind, name| {
        // An earlier client has read such an answer, so that code and buffers are already loaded.
        let mut earlier = client(portcullis, name);
        earlier.write_all(b"?").unwrap();
        wire::read_exactly(&mut earlier, 8 * MIB);
        earlier.reset();
        portcullis.wait_until_idle();
        let before = portcullis.anonymous_memory();
        let mut client = client(portcullis, name);
        client.write_all(b"?").unwrap();
        wire::read_exactly(&mut client, 1);
        // The transfer has stopped when the process uses no CPU for a while.
        let mut last = portcullis.cpu_ticks();
        eventually("both sides wait", || {
            thread::sleep(Duration::from_millis(100));
            let now = portcullis.cpu_ticks();
            (std::mem::replace(&mut last, now) == now).then_some(())
        });
        let grown = portcullis.anonymous_memory().saturating_sub(before);
        assert!(grown <= MAX_GROWTH, "{name} client, {kind:?} upstream: {grown} KiB more");
    });
}

#[test]
fn blocked_redis_clients_survive_reloads_over_all_transports() {
    let site = TestDir::new();
    let redis = Redis::with_tls(&site, &site.server(), ANY_CLIENT);
    let upstream = format!("address = \"{redis}\"\ntls = \"verify-full\"\nca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, listeners("redis", &upstream, ""));
    portcullis.event("ready", |event| event.is("ready") && event.0["listener"] == "socket");
    for name in CLIENTS {
        let ask = |question: &[u8], answer: &[u8]| {
            let mut client = client(&portcullis, name);
            client.write_all(question).unwrap();
            assert_eq!(
                wire::read_exactly(&mut client, answer.len()).escape_ascii().to_string(),
                answer.escape_ascii().to_string()
            );
            client
        };
        let mut blocked = ask(b"PING\r\nBLPOP queue 0\r\n", b"+PONG\r\n");
        let mut subscribed = ask(b"SUBSCRIBE news\r\n", b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
        let mut monitoring = ask(b"MONITOR\r\n", b"+OK\r\n");
        for round in 0..2 {
            let level = if round == 0 { "debug" } else { "info" };
            let config = format!("[log]\nlevel = \"{level}\"\n{}", listeners("redis", &upstream, ""));
            assert!(portcullis.reconfigure(config).is("reload.applied"));
        }
        drop(ask(b"PUBLISH news hello\r\n", b":1\r\n"));
        let message = b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n";
        assert_eq!(wire::read_exactly(&mut subscribed, message.len()), message);
        drop(ask(b"RPUSH queue job\r\n", b":1\r\n"));
        let popped = b"*2\r\n$5\r\nqueue\r\n$3\r\njob\r\n";
        assert_eq!(wire::read_exactly(&mut blocked, popped.len()), popped);
        let seen = String::from_utf8(wire::read_exactly(&mut monitoring, 20)).unwrap();
        assert!(seen.starts_with('+'), "{seen}");
    }
    assert!(!portcullis.events().iter().any(|event| event.is("session.revoked")));
}

#[test]
fn pipeline_before_a_half_close_is_answered_completely() {
    let redis = Redis::start();
    for upstream in [format!("address = \"{redis}\""), format!("address = \"unix:{}\"", redis.socket().display())] {
        let portcullis = Portcullis::start(TestDir::new(), listeners("redis", &upstream, ""));
        portcullis.event("ready", |event| event.is("ready") && event.0["listener"] == "socket");
        for name in CLIENTS {
            let mut client = client(&portcullis, name);
            client.write_all(&b"PING\r\n".repeat(100)).unwrap();
            client.write_all(b"QUIT\r\n").unwrap();
            client.finish().unwrap();
            let answers = client.read_all();
            assert_eq!(answers, [b"+PONG\r\n".repeat(100), b"+OK\r\n".to_vec()].concat(), "{name}");
        }
    }
}
