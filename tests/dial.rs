//! Connections to the upstream, and their failures.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use rustls::version::TLS12;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::harness::wire::{PROTOCOL_3_0, error_response, startup};
use crate::harness::{Connection, Listener, Portcullis, TestDir, Upstream, eventually};

#[test]
fn upstream_host_name_is_resolved() {
    let upstream = Upstream::sending(b"hello");
    // The name may have an IPv6 address too, where no server listens.
    let named = upstream.to_string().replace("127.0.0.1", "localhost");
    let portcullis = Portcullis::before(Listener::tcp(&named));
    let mut client = portcullis.client().connect();
    assert_eq!(client.receive(5), b"hello");
    assert_eq!(portcullis.opened(client.port()).text("upstream"), named);
}

#[test]
fn upstream_ipv6_address_is_dialled() {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
    let portcullis = Portcullis::before(Listener::tcp(address));
    assert_eq!(portcullis.client().connect().receive(5), b"hello");
}

/// Connects, and expects an error in the Redis protocol because the upstream is unreachable.
fn assert_unreachable(upstream: &str) {
    let listener = Listener::redis(upstream).to_string().replace(
        &format!("upstream = \"{upstream}\""),
        &format!("upstream = {{ address = \"{upstream}\", connect_timeout = \"500ms\" }}"),
    );
    let portcullis = Portcullis::start(TestDir::new(), listener);
    let mut client = portcullis.client().connect();
    client.send(b"PING\r\n");
    let words = client.rest().unwrap();
    assert!(words.starts_with(b"-LOADING "), "{}", words.escape_ascii());
    let denied = portcullis.ending(client.port());
    assert_eq!(denied.reason(), "upstream_unreachable");
    assert_eq!(denied.text("upstream"), upstream);
}

/// An upstream whose queue is full, so that a connection to it is neither taken nor refused.
pub(crate) fn clogged() -> (Socket, Vec<TcpStream>, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    (socket, waiting, address)
}

#[test]
fn upstream_that_does_not_answer_times_out() {
    let (_socket, _waiting, address) = clogged();
    assert_unreachable(&address.to_string());
}

#[test]
fn name_that_does_not_resolve_is_an_unreachable_upstream() {
    assert_unreachable("nowhere.invalid:6379");
}

#[test]
fn missing_socket_is_an_unreachable_upstream() {
    assert_unreachable("unix:/nowhere/redis.sock");
}

#[test]
fn postgres_client_is_answered_after_its_startup_message_and_not_before() {
    let portcullis = Portcullis::before(Listener::postgres("unix:/nowhere/.s.PGSQL.5432"));
    let mut client = portcullis.client().with_ssl_request().connect();
    let hello = startup(PROTOCOL_3_0, &[("user", "app"), ("database", "app")]);
    let (first, rest) = hello.split_at(5);
    client.send(first);
    client.send(rest);
    let fields = error_response(&client.rest().unwrap());
    assert_eq!((fields[&'S'].as_str(), fields[&'C'].as_str()), ("FATAL", "57P03"));
    // The client must not learn the address of the upstream.
    assert!(!fields[&'M'].contains("nowhere"), "{fields:?}");
}

/// Whether the connection between these ports has keepalive.
fn kept_alive(is_it: impl Fn(u16, u16) -> bool) -> Option<()> {
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let timer_is_keepalive = fields[5].starts_with("02:");
        (is_it(port(fields[1])?, port(fields[2])?) && timer_is_keepalive).then_some(())
    })
}

#[test]
fn client_and_upstream_sockets_use_keepalive() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::tcp(&upstream));
    let mut client = portcullis.client().connect();
    client.ask(b"hello", b"hello");
    let (own, theirs) = (portcullis.address("main").port(), client.port());
    let database: SocketAddr = upstream.to_string().parse().unwrap();
    eventually("the client's socket has keepalive", || kept_alive(|local, remote| (local, remote) == (own, theirs)));
    eventually("the upstream's socket has keepalive", || kept_alive(|_, remote| remote == database.port()));
}

#[test]
fn unix_socket_with_a_full_backlog_is_retried() {
    let site = TestDir::new();
    let path = site.path("database.sock");
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(1).unwrap();
    let portcullis = Portcullis::start(site, Listener::tcp(format!("unix:{}", path.display())));
    // In TLS 1.2 the server completes its handshake with that of the client, and dials at once.
    let client = portcullis.client().speaking(&TLS12);
    let crowd: Vec<Connection> = (0..20).map(|_| client.connect()).collect();
    portcullis.event("a connection is in the queue", |event| event.is("connection.opened"));
    let listener = UnixListener::from(socket);
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    for mut client in crowd {
        client.ask(b"hello", b"hello");
    }
    assert!(!portcullis.events().iter().any(|event| event.is("connection.denied")));
}
