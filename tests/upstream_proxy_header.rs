//! PROXY protocol headers that Portcullis sends to the upstream.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use rustls::version::{TLS12, TLS13};

use crate::harness::nginx::Nginx;
use crate::harness::program::run;
use crate::harness::proxy::{ReceivedHeader, v1, v2_between, vector};
use crate::harness::wire::{PROTOCOL_3_0, SSL_REQUEST, cancel, read_exactly, read_until_closed, startup};
use crate::harness::{
    Client, Connection, Haproxy, Listener, Portcullis, Postgres, Redis, Request, TestDir, Upstream, WAIT_TIMEOUT,
};
use crate::postgres::{conninfo, psql};
use crate::redis::cli;

const ALPN: u8 = 0x01;
const AUTHORITY: u8 = 0x02;
const UNIQUE_ID: u8 = 0x05;
const TLS_VERSION: u8 = 0x21;
const COMMON_NAME: u8 = 0x22;
const CIPHER: u8 = 0x23;

/// An upstream that reads a header, echoes the bytes after it, and sends the header to the test.
fn header_upstream() -> (Upstream, Receiver<ReceivedHeader>) {
    let (sender, receiver) = channel();
    let sender = Mutex::new(sender);
    let upstream = Upstream::new(move |mut stream| {
        let header = ReceivedHeader::read(&mut stream);
        let _ = sender.lock().unwrap().send(header);
        let mut back = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut stream, &mut back);
    });
    (upstream, receiver)
}

fn next(headers: &Receiver<ReceivedHeader>) -> ReceivedHeader {
    headers.recv_timeout(WAIT_TIMEOUT).expect("a connection reaches the upstream")
}

fn announcing(listener: Listener, version: &str) -> Listener {
    listener.upstream(&format!("proxy_protocol = {version:?}"))
}

/// Opens a session, and checks that the first bytes after the header are those of the client.
fn session(client: &Client) -> Connection {
    let mut connection = client.connect();
    connection.ask(b"hello", b"hello");
    connection
}

/// The addresses of both ends of the connection of a client of this program.
fn ends(portcullis: &Portcullis, connection: &Connection) -> (Option<SocketAddr>, Option<SocketAddr>) {
    (Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), connection.port())), Some(portcullis.address("main")))
}

/// A listener that verifies client certificates.
fn knowing(listener: Listener) -> Listener {
    listener.tls("client_auth = \"optional\"").tls("client_ca = \"ca.crt\"")
}

#[test]
fn version_1_header_has_both_addresses_only() {
    let (upstream, headers) = header_upstream();
    let portcullis = Portcullis::before(announcing(Listener::redis(&upstream), "v1"));
    let connection = session(&portcullis.client());
    let (from, to) = ends(&portcullis, &connection);
    assert_eq!(next(&headers), ReceivedHeader { kind: "TCP4".to_owned(), from, to, ..ReceivedHeader::default() });
}

#[test]
fn header_is_sent_only_if_configured() {
    let upstream = Upstream::echo();
    for off in [Listener::redis(&upstream), announcing(Listener::redis(&upstream), "off")] {
        session(&Portcullis::before(off).client());
    }
}

#[test]
fn version_2_header_describes_client_and_tls() {
    let (upstream, headers) = header_upstream();
    let site = TestDir::new();
    let identity = site.ca.issue(Request::client("app-ü"));
    let portcullis = Portcullis::start(site, announcing(knowing(Listener::postgres(&upstream)), "v2"));
    let hello = startup(PROTOCOL_3_0, &[("user", "app")]);
    for (version, name) in [(&TLS13, "TLSv1.3"), (&TLS12, "TLSv1.2")] {
        let client = portcullis.client().alpn(&["postgresql"]).showing(&identity).speaking(version);
        let mut connection = client.connect();
        connection.ask(&hello, &hello);
        let header = next(&headers);
        let (from, to) = ends(&portcullis, &connection);
        assert_eq!((header.kind.as_str(), header.from, header.to), ("TCP4", from, to));
        assert_eq!(header.text(ALPN).as_deref(), Some("postgresql"));
        assert_eq!(header.text(AUTHORITY).as_deref(), Some("localhost"));
        let opened = portcullis.opened(connection.port());
        assert_eq!(header.text(UNIQUE_ID), Some(opened.number("session").to_string()));
        let (bits, verdict, tls) = header.tls().expect("it has TLS");
        assert_eq!((bits, verdict), (0b111, 0), "TLS, with a certificate that is good");
        assert_eq!(tls.text(TLS_VERSION).as_deref(), Some(name));
        assert_eq!(tls.text(COMMON_NAME).as_deref(), Some("app-ü"));
        assert_eq!(tls.text(CIPHER).as_deref(), Some(opened.text("cipher")));
        assert_eq!(tls.vectors.len(), 3);
        assert_eq!(header.vectors.len(), 4);
    }
}

#[test]
fn client_without_a_certificate_is_announced_as_unverified() {
    let (upstream, headers) = header_upstream();
    let portcullis = Portcullis::before(announcing(knowing(Listener::redis(&upstream)), "v2"));
    session(&portcullis.client());
    let (bits, verdict, tls) = next(&headers).tls().expect("it has TLS");
    assert_eq!((bits, verdict), (0b001, 1));
    assert_eq!(tls.text(COMMON_NAME), None);
}

#[test]
fn resumed_session_announces_the_name_of_the_earlier_certificate() {
    let (upstream, headers) = header_upstream();
    let site = TestDir::new();
    let identity = site.ca.issue(Request::client("app"));
    let portcullis = Portcullis::start(site, announcing(knowing(Listener::redis(&upstream)), "v2"));
    let client = portcullis.client().showing(&identity);
    session(&client);
    let resumed = session(&client);
    assert_eq!(resumed.tls().handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    let output = [next(&headers), next(&headers)].map(|header| {
        let (bits, verdict, tls) = header.tls().expect("it has TLS");
        (bits, verdict, tls.text(COMMON_NAME))
    });
    let app = Some("app".to_owned());
    assert_eq!(output, [(0b111, 0, app.clone()), (0b101, 0, app)]);
}

#[test]
fn load_balancer_header_is_rebuilt_from_its_addresses() {
    let (upstream, headers) = header_upstream();
    for version in ["v1", "v2"] {
        let listener = Listener::redis(&upstream).trusting(&["10.1.2.3", "2001:db8::/32"]).behind(&["127.0.0.9"]);
        let portcullis = Portcullis::before(announcing(listener, version));
        let client = portcullis.client().from("127.0.0.9");
        // The load balancer verified the certificate that its header describes.
        let tls = vector(0x20, &[&[7, 0, 0, 0, 0][..], &vector(COMMON_NAME, b"admin")].concat());
        let claims = [tls, vector(UNIQUE_ID, b"forged"), vector(AUTHORITY, b"forged")].concat();
        let cases = [
            (v1("10.1.2.3:7001", "192.0.2.1:6380"), "TCP4", "10.1.2.3:7001", "192.0.2.1:6380"),
            (v2_between("10.1.2.3:7002", "192.0.2.1:6380", &claims), "TCP4", "10.1.2.3:7002", "192.0.2.1:6380"),
            (v1("[2001:db8::7]:7003", "[2001:db8::1]:1"), "TCP6", "[2001:db8::7]:7003", "[2001:db8::1]:1"),
            (v2_between("[::ffff:10.1.2.3]:7004", "[::ffff:192.0.2.1]:1", b""), "TCP4", "10.1.2.3:7004", "192.0.2.1:1"),
        ];
        for (header, kind, from, to) in cases {
            let mut stream = client.dial();
            stream.write_all(&header).unwrap();
            client.secure(stream).unwrap().ask(b"hello", b"hello");
            let header = next(&headers);
            let expected = (kind, Some(from.parse().unwrap()), Some(to.parse().unwrap()));
            assert_eq!((header.kind.as_str(), header.from, header.to), expected, "{version}");
            let output = format!(
                "{:?}",
                header.vectors.values().map(|value| value.escape_ascii().to_string()).collect::<Vec<_>>()
            );
            assert!(!output.contains("admin") && !output.contains("forged"), "{output}");
        }
    }
}

#[test]
fn load_balancer_local_connection_is_announced_with_its_address() {
    let (upstream, headers) = header_upstream();
    let listener = Listener::redis(&upstream).trusting(&["127.0.0.9"]).behind(&["127.0.0.9"]);
    let portcullis = Portcullis::before(announcing(listener, "v2"));
    let client = portcullis.client().from("127.0.0.9");
    let mut stream = client.dial();
    stream.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    let connection = client.secure(stream).unwrap();
    let from = SocketAddr::new("127.0.0.9".parse().unwrap(), connection.port());
    let header = next(&headers);
    assert_eq!((header.from, header.to), (Some(from), Some(portcullis.address("main"))));
}

#[test]
fn unix_socket_client_is_announced_without_an_address() {
    let (upstream, headers) = header_upstream();
    for (version, kind) in [("v1", "UNKNOWN"), ("v2", "LOCAL")] {
        let site = TestDir::new();
        let listener = announcing(Listener::redis(&upstream).without_tls().on(&["unix:client.sock"]), version);
        let path = site.path("client.sock");
        let portcullis = Portcullis::start(site, listener);
        portcullis.event("ready", |event| event.is("ready"));
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&mut stream, 5), b"hello");
        let header = next(&headers);
        assert_eq!((header.kind.as_str(), header.from, header.to), (kind, None, None));
        assert!(header.tls().is_none());
    }
}

#[test]
fn plaintext_client_is_announced_without_tls() {
    let (upstream, headers) = header_upstream();
    let portcullis = Portcullis::before(announcing(Listener::redis(&upstream).without_tls(), "v2"));
    let mut stream = portcullis.client().dial();
    stream.write_all(b"hello").unwrap();
    let header = next(&headers);
    assert_eq!(header.from, Some(stream.local_addr().unwrap()));
    assert!(header.tls().is_none() && header.text(AUTHORITY).is_none(), "{header:?}");
}

#[test]
fn cancel_request_is_announced_too() {
    let (sender, received) = channel();
    let sender = Mutex::new(sender);
    let upstream = Upstream::new(move |mut stream| {
        let header = ReceivedHeader::read(&mut stream);
        let _ = sender.lock().unwrap().send((header, read_exactly(&mut stream, 16)));
    });
    let packet = cancel(77, &[1, 2, 3, 4]);
    for version in ["v1", "v2"] {
        let portcullis = Portcullis::before(announcing(Listener::postgres(&upstream), version));
        let mut stream = portcullis.client().dial();
        stream.write_all(&packet).unwrap();
        assert_eq!(read_until_closed(&mut stream), b"");
        let (header, rest) = received.recv_timeout(WAIT_TIMEOUT).unwrap();
        assert_eq!((header.from, rest), (Some(stream.local_addr().unwrap()), packet.clone()));
        let mut connection = portcullis.client().with_ssl_request().connect();
        connection.send(&packet);
        assert_eq!(connection.rest().unwrap(), b"");
        let (header, rest) = received.recv_timeout(WAIT_TIMEOUT).unwrap();
        assert_eq!((header.from, header.to), ends(&portcullis, &connection));
        assert_eq!(rest, packet);
    }
}

#[test]
fn header_precedes_tls_to_the_upstream() {
    let (sender, received) = channel();
    let sender = Mutex::new(sender);
    let upstream = Upstream::new(move |mut stream| {
        let header = ReceivedHeader::read(&mut stream);
        let _ = sender.lock().unwrap().send((header, read_exactly(&mut stream, 8)));
    });
    let site = TestDir::new();
    let tls = |listener: Listener| announcing(listener, "v2").upstream("tls = \"require\"");
    let configuration = format!(
        "{}{}",
        tls(Listener::postgres(&upstream)),
        tls(Listener::redis(&upstream)).named("cache").on(&["127.0.0.1:0"])
    );
    let portcullis = Portcullis::start(site, configuration);
    let mut postgres = portcullis.client().with_ssl_request().connect();
    postgres.send(&startup(PROTOCOL_3_0, &[("user", "app")]));
    let (header, next) = received.recv_timeout(WAIT_TIMEOUT).unwrap();
    assert_eq!((header.from, next), (ends(&portcullis, &postgres).0, SSL_REQUEST.to_vec()));
    let redis = portcullis.client_of("cache").connect();
    let (header, next) = received.recv_timeout(WAIT_TIMEOUT).unwrap();
    assert_eq!(header.from, ends(&portcullis, &redis).0);
    assert_eq!(next[..2], [0x16, 0x03], "the beginning of TLS");
}

#[test]
fn haproxy_before_redis_receives_the_client_address() {
    let redis = Redis::start();
    for version in ["v1", "v2"] {
        let format = "log-format \"from %ci:%cp to %fi:%fp for %[fc_pp_authority] as %[fc_pp_unique_id].\"";
        let haproxy = Haproxy::on("127.0.0.1:0", "accept-proxy", &format!("{format}\n    server redis {redis}"));
        let portcullis = Portcullis::before(announcing(Listener::redis(&haproxy), version));
        assert_eq!(run(cli(&portcullis).args(["--sni", "localhost", "PING"])).success(), "PONG\n");
        let opened = portcullis.event("an opening", |event| event.is("connection.opened"));
        let (from, to) = (opened.number("source_port"), portcullis.address("main"));
        let known = match version {
            "v1" => "for - as -.".to_owned(),
            _ => format!("for localhost as {}.", opened.number("session")),
        };
        assert_eq!(haproxy.line("from "), format!("from 127.0.0.1:{from} to {to} {known}"));
    }
}

#[test]
fn haproxy_before_postgres_receives_the_address_of_a_client_behind_haproxy() {
    let postgres = Postgres::start();
    let format = "log-format \"from %ci:%cp.\"";
    let behind = Haproxy::on("127.0.0.1:0", "accept-proxy", &format!("{format}\n    server postgres {postgres}"));
    let listener = Listener::postgres(&behind).behind(&["127.0.0.9"]);
    let portcullis = Portcullis::before(announcing(listener, "v2"));
    let before = Haproxy::before(&portcullis, "source 127.0.0.9 send-proxy-v2");
    let port = |address: SocketAddr| format!("port={}", address.port());
    let conninfo = conninfo(&portcullis).replace(&port(portcullis.address("main")), &port(before.address()));
    assert_eq!(run(psql(&conninfo).args(["-c", "select 6 * 7"])).success(), "42\n");
    let opened = portcullis.event("an opening", |event| event.is("connection.opened"));
    behind.line(&format!("from 127.0.0.1:{}.", opened.number("source_port")));
}

#[test]
fn nginx_receives_the_client_address() {
    let redis = Redis::start();
    for version in ["v1", "v2"] {
        let nginx = Nginx::before(&redis);
        let portcullis = Portcullis::before(announcing(Listener::redis(&nginx), version));
        assert_eq!(run(cli(&portcullis).arg("PING")).success(), "PONG\n");
        let opened = portcullis.event("an opening", |event| event.is("connection.opened"));
        let to = portcullis.address("main");
        assert_eq!(nginx.first_client(), format!("127.0.0.1:{} {to}", opened.number("source_port")));
    }
}
