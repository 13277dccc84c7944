//! PROXY headers from load balancers: who must send one, who is ignored, and which address is authorized.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::Command;

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio_postgres::config::SslMode;

use crate::harness::client::port;
use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{Outcome, command, run};
use crate::harness::proxy::{v1, v2, v2_between, vector};
use crate::harness::wire::{PROTOCOL_3_0, SSL_REQUEST, cancel, read_exactly, read_until_closed, startup};
use crate::harness::{
    Client, Connection, Event, Haproxy, Listener, Portcullis, Postgres, Redis, TestDir, Upstream, eventually,
};
use crate::postgres::{connector, conninfo, psql};
use crate::preface::trickle;
use crate::reload::ON_SIGHUP;

/// The address of the load balancers of these tests. No rule trusts it.
const BALANCER: &str = "127.0.0.9";

/// HAProxy's ways to announce a client.
const WAYS: [&str; 4] = [
    "send-proxy",
    "send-proxy-v2",
    "send-proxy-v2-ssl-cn",
    "send-proxy-v2-ssl-cn proxy-v2-options crc32c,ssl,cert-cn,ssl-cipher,authority,unique-id",
];

/// HAProxy that announces in this way, from where load balancers are.
fn haproxy(portcullis: &Portcullis, way: &str) -> Haproxy {
    Haproxy::before(portcullis, &format!("source {BALANCER} {way}"))
}

/// A client at the address of a load balancer that can send any bytes.
fn balancer(portcullis: &Portcullis) -> Client {
    portcullis.client().from(BALANCER)
}

/// Sends a header, and in the same segment the beginning of TLS.
fn announced(client: &Client, header: &[u8]) -> Connection {
    let mut stream = client.dial();
    stream.write_all(header).unwrap();
    client.secure(stream).unwrap()
}

/// A session for this client, announced by a load balancer.
fn session(portcullis: &Portcullis, from: &str) -> Connection {
    let mut connection = announced(&balancer(portcullis), &v1(from, "192.0.2.1:6380"));
    connection.ask(b"hello", b"hello");
    connection
}

/// The end of a connection that came from this port of its load balancer.
fn ending(portcullis: &Portcullis, balancer_port: u16) -> Event {
    portcullis.event("the end of the connection", |event| {
        (event.is("connection.denied") || event.is("connection.closed")) && event.0["balancer_port"] == balancer_port
    })
}

/// The denial of these bytes from a load balancer. It gets no answer.
fn refusal(portcullis: &Portcullis, bytes: &[u8]) -> Event {
    let mut stream = balancer(portcullis).dial();
    stream.write_all(bytes).unwrap();
    assert_eq!(read_until_closed(&mut stream), b"", "{}", bytes.escape_ascii());
    let denied = ending(portcullis, port(&stream));
    assert!(denied.is("connection.denied"), "{}", denied.0);
    denied
}

fn cli(portcullis: &Portcullis, address: SocketAddr) -> Command {
    let mut cli = command("redis-cli");
    cli.args(["-h", "127.0.0.1", "-p", &address.port().to_string(), "--tls", "--cacert"]);
    cli.arg(portcullis.site.path("ca.crt"));
    cli
}

#[test]
fn redis_cli_works_through_haproxy_with_each_header_version() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis).behind(&[BALANCER]));
    for way in WAYS {
        let haproxy = haproxy(&portcullis, way);
        let seen = portcullis.seen();
        assert_eq!(run(cli(&portcullis, haproxy.address()).arg("PING")).success(), "PONG\n", "{way}");
        let opened = portcullis.event_after(seen, "an opening", |event| event.is("connection.opened"));
        assert_eq!((opened.text("source"), opened.text("balancer")), ("127.0.0.1", BALANCER), "{way}");
        assert_eq!(opened.text("rule"), "ip_addr:127.0.0.1");
    }
}

#[test]
fn psql_and_tokio_postgres_work_through_haproxy() {
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres).behind(&[BALANCER]));
    for way in WAYS {
        let haproxy = haproxy(&portcullis, way);
        let port = |address: SocketAddr| format!("port={}", address.port());
        let conninfo = conninfo(&portcullis).replace(&port(portcullis.address("main")), &port(haproxy.address()));
        assert_eq!(run(psql(&conninfo).args(["-c", "select 6 * 7"])).success(), "42\n", "{way}");
        let mut parameters = tokio_postgres::Config::new();
        parameters.host("localhost").hostaddr([127, 0, 0, 1].into()).port(haproxy.address().port());
        parameters.user("app").dbname("postgres").ssl_mode(SslMode::Require);
        portcullis.event("the end of psql's session", |event| event.is("connection.closed"));
        let seen = portcullis.seen();
        Runtime::new().unwrap().block_on(async {
            let (client, connection) = parameters.connect(connector(&portcullis)).await.unwrap();
            let asked = async {
                client.batch_execute("select 1").await.unwrap();
                drop(client);
            };
            let (ended, ()) = tokio::join!(connection, asked);
            ended.unwrap();
        });
        let reported = portcullis.event_after(seen, "an opening", |event| event.is("connection.opened"));
        assert_eq!((reported.text("source"), reported.text("balancer")), ("127.0.0.1", BALANCER), "{way}");
    }
}

#[test]
fn announced_address_is_authorized_and_audited_instead_of_the_load_balancer() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).trusting(&["127.0.0.2"]).behind(&[BALANCER]);
    let portcullis = Portcullis::before(listener);
    for way in WAYS {
        let haproxy = haproxy(&portcullis, way);
        let trusted = haproxy.client(&portcullis).from("127.0.0.2");
        let mut connection = trusted.connect();
        connection.ask(b"hello", b"hello");
        let opened = portcullis.opened(connection.port());
        let client_port = connection.port();
        drop(connection);
        for event in [opened, portcullis.ending(client_port)] {
            assert_eq!((event.text("source"), event.text("balancer")), ("127.0.0.2", BALANCER), "{way}");
            assert_ne!(event.number("balancer_port"), u64::from(client_port));
            assert_eq!(event.text("rule"), "ip_addr:127.0.0.2");
        }
        let mut untrusted = haproxy.client(&portcullis).from("127.0.0.3").dial();
        assert_eq!(read_until_closed(&mut untrusted), b"");
        let denied = portcullis.ending(port(&untrusted));
        assert_eq!((denied.reason(), denied.text("source")), ("untrusted_source", "127.0.0.3"), "{way}");
        assert_eq!(denied.text("balancer"), BALANCER);
        assert_eq!(denied.text("detail"), "no rule trusts this address");
    }
    assert_eq!(upstream.connections(), WAYS.len());
}

#[test]
fn ipv4_and_ipv6_clients_on_a_dual_stack_socket_keep_their_addresses() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).on(&["[::]:0"]).trusting(&["127.0.0.2", "::1"]);
    // Its own address arrives at this socket as ::ffff:127.0.0.9.
    let portcullis = Portcullis::before(listener.behind(&[BALANCER]));
    let main = portcullis.address("main").port();
    for way in WAYS {
        let server = format!("server main 127.0.0.1:{main} source {BALANCER} {way}");
        let (six, both) = (Haproxy::on("[::1]:0", "", &server), Haproxy::on("[::]:0", "", &server));
        let at = |ip: &str, haproxy: &Haproxy| {
            portcullis.client().at(SocketAddr::new(ip.parse().unwrap(), haproxy.address().port()))
        };
        let clients = [
            (at("::1", &six), "::1"),
            (at("::1", &both), "::1"),
            (at("127.0.0.1", &both).from("127.0.0.2"), "127.0.0.2"),
        ];
        for (client, source) in clients {
            let mut connection = client.connect();
            connection.ask(b"hello", b"hello");
            let opened = portcullis.opened(connection.port());
            assert_eq!((opened.text("source"), opened.text("balancer")), (source, BALANCER), "{way}");
        }
        let mut untrusted = at("127.0.0.1", &both).from("127.0.0.3").dial();
        assert_eq!(read_until_closed(&mut untrusted), b"");
        assert_eq!(portcullis.ending(port(&untrusted)).text("source"), "127.0.0.3");
    }
}

#[test]
fn mapped_address_is_treated_as_ipv4_in_every_notation() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream).trusting(&["10.1.2.0/24"]).behind(&[BALANCER]));
    let to = "[::ffff:192.0.2.1]:6380";
    let headers = [
        b"PROXY TCP6 ::ffff:10.1.2.3 ::ffff:192.0.2.1 7001 6380\r\n".to_vec(),
        b"PROXY TCP6 ::ffff:a01:203 2001:db8::1 7001 6380\r\n".to_vec(),
        b"PROXY TCP6 0:0:0:0:0:FFFF:0A01:0203 ::1 7001 6380\r\n".to_vec(),
        v2_between("[::ffff:10.1.2.3]:7001", to, b""),
    ];
    for header in headers {
        let seen = portcullis.seen();
        let mut connection = announced(&balancer(&portcullis), &header);
        connection.ask(b"hello", b"hello");
        let opened = portcullis.event_after(seen, "an opening", |event| event.is("connection.opened"));
        assert_eq!((opened.text("source"), opened.number("source_port")), ("10.1.2.3", 7001));
    }
}

#[test]
fn header_and_tls_are_read_in_one_segment_or_byte_by_byte() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream).trusting(&["10.1.2.3"]).behind(&[BALANCER]));
    let crowded = vector(0xea, &[0x16; 4096 - 12 - 3]);
    let headers = [
        v1("10.1.2.3:7001", "192.0.2.1:6380"),
        v2_between("10.1.2.3:7001", "192.0.2.1:6380", b""),
        v2_between("10.1.2.3:7001", "192.0.2.1:6380", &vector(0x05, b"\x16\x03\x01")),
        v2_between("10.1.2.3:7001", "192.0.2.1:6380", &crowded),
    ];
    for header in headers {
        // If Portcullis read too far, the missing bytes are the first ones that the client sends.
        let client = balancer(&portcullis);
        let mut hello = client.tls();
        let mut together = header.clone();
        hello.write_tls(&mut together).unwrap();
        let mut stream = client.dial();
        stream.write_all(&together).unwrap();
        while hello.is_handshaking() {
            hello.complete_io(&mut stream).unwrap();
        }
        let mut tls = rustls::StreamOwned::new(hello, stream);
        tls.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        tls.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");

        let mut stream = client.dial();
        for byte in header.chunks(if header.len() > 1000 { 999 } else { 1 }) {
            stream.write_all(byte).unwrap();
        }
        client.secure(stream).unwrap().ask(b"hello", b"hello");
    }
}

#[test]
fn postgres_client_may_send_its_first_packet_with_the_header() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::postgres(&upstream).trusting(&["10.1.2.3"]).behind(&[BALANCER]));
    let client = balancer(&portcullis);
    let mut stream = client.dial();
    stream.write_all(&[v1("10.1.2.3:7001", "192.0.2.1:5432"), SSL_REQUEST.to_vec()].concat()).unwrap();
    assert_eq!(read_exactly(&mut stream, 1), b"S");
    let mut connection = client.secure(stream).unwrap();
    let hello = startup(PROTOCOL_3_0, &[("user", "app")]);
    connection.ask(&hello, &hello);
    // Plaintext after SSLRequest is an injection behind a load balancer, too.
    let header = v1("10.1.2.3:7002", "192.0.2.1:5432");
    let mut stream = client.dial();
    stream.write_all(&[&header[..], &SSL_REQUEST, b"\x16\x03\x01"].concat()).unwrap();
    assert!(!read_until_closed(&mut stream).starts_with(b"S"));
    assert_eq!(portcullis.ending(7002).reason(), "protocol_violation");
}

#[test]
fn load_balancer_without_a_header_is_denied_with_proxy_header_missing() {
    let upstream = Upstream::silent();
    for listener in [Listener::redis(&upstream), Listener::postgres(&upstream), Listener::tcp(&upstream)] {
        // Also where a rule trusts its own address.
        let portcullis = Portcullis::before(listener.trusting(&["127.0.0.0/8"]).behind(&[BALANCER]));
        let mut hello = Vec::new();
        portcullis.client().tls().write_tls(&mut hello).unwrap();
        let startup = startup(PROTOCOL_3_0, &[("user", "app")]);
        for bytes in [&hello[..], &SSL_REQUEST, &startup, b"PING\r\n", b"*1\r\n$4\r\nPING\r\n", b"\0", b"proxy TCP4 "] {
            let denied = refusal(&portcullis, bytes);
            assert_eq!(denied.reason(), "proxy_header_missing", "{}", bytes.escape_ascii());
            assert_eq!((denied.text("source"), denied.text("balancer")), (BALANCER, BALANCER));
            assert!(!denied.has("rule"), "nobody was judged: {}", denied.0);
        }
    }
    upstream.assert_untouched();
}

#[test]
fn broken_header_is_denied_with_proxy_header_invalid() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::redis(&upstream).trusting(&["0.0.0.0/0"]).behind(&[BALANCER]));
    let ends = ("10.1.2.3:7001", "192.0.2.1:6380");
    let broken: [(Vec<u8>, &str); 12] = [
        (b"PROXY TCP4 10.1.2.3 192.0.2.1 7001\r\n".to_vec(), "invalid line"),
        (b"PROXY TCP4 010.1.2.3 192.0.2.1 7001 6380\r\n".to_vec(), "invalid line"),
        (b"PROXY TCP4 10.1.2.3 192.0.2.1 7001 6380\n".to_vec(), "CR LF"),
        (format!("PROXY UNKNOWN {}\r\n", "f".repeat(92)).into_bytes(), "107"),
        (b"PROXY HTTP/1.1\r\n".to_vec(), "invalid line"),
        (v2(0x11, 0x11, &[0; 12]), "version or command"),
        (v2(0x22, 0x11, &[0; 12]), "version or command"),
        (v2(0x21, 0x12, &[0; 12]), "family or transport"),
        (v2(0x21, 0x11, &[0; 11]), "too few"),
        (v2(0x21, 0x11, &[0; 4097]), "exceeds 4096"),
        (v2_between(ends.0, ends.1, b"\x04\0\x09short"), "TLV"),
        (v2_between(ends.0, ends.1, &vector(0x03, b"\0\0\0\0")), "checksum"),
    ];
    for (bytes, why) in broken {
        let denied = refusal(&portcullis, &bytes);
        assert_eq!(denied.reason(), "proxy_header_invalid", "{}", bytes.escape_ascii());
        assert!(denied.text("detail").contains(why), "{}: {}", bytes.escape_ascii(), denied.0);
        assert_eq!(denied.text("source"), BALANCER);
    }
    // A header that ends in the middle.
    let mut stream = balancer(&portcullis).dial();
    stream.write_all(b"PROXY TCP4 10.1.2").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_until_closed(&mut stream), b"");
    assert_eq!(ending(&portcullis, port(&stream)).reason(), "proxy_header_invalid");
    upstream.assert_untouched();
}

#[test]
fn slow_header_is_closed_at_the_handshake_timeout() {
    let upstream = Upstream::silent();
    let listener = Listener::redis(&upstream).trusting(&["0.0.0.0/0"]).behind(&[BALANCER]);
    let portcullis = Portcullis::before(listener.limit("handshake_timeout = \"2s\""));
    let headers = [v1("10.1.2.3:7001", "192.0.2.1:6380"), v2_between("10.1.2.3:7001", "192.0.2.1:6380", &[0; 40])];
    for header in headers {
        let mut stream = balancer(&portcullis).dial();
        assert!(trickle(&mut stream, &header) < header.len(), "it could send everything");
        assert_eq!(ending(&portcullis, port(&stream)).reason(), "handshake_timeout");
        // The time for it and for TLS is one.
        let mut stream = balancer(&portcullis).dial();
        stream.write_all(&v1("10.1.2.3:7009", "192.0.2.1:6380")).unwrap();
        assert_eq!(read_until_closed(&mut stream), b"");
        let denied = ending(&portcullis, port(&stream));
        assert_eq!((denied.reason(), denied.text("source")), ("handshake_timeout", "10.1.2.3"));
    }
    let mut silent = balancer(&portcullis).dial();
    assert_eq!(read_until_closed(&mut silent), b"");
    assert_eq!(ending(&portcullis, port(&silent)).reason(), "handshake_timeout");
    upstream.assert_untouched();
}

#[test]
fn header_of_an_untrusted_proxy_is_ignored() {
    let upstream = Upstream::silent();
    let headers = [
        v1("10.1.2.3:7001", "192.0.2.1:6380"),
        v2_between("10.1.2.3:7001", "192.0.2.1:6380", b""),
        v2(0x20, 0, b""),
        b"PROXY UNKNOWN\r\n".to_vec(),
    ];
    for behind in [&[BALANCER][..], &[]] {
        for (listener, reason) in [
            (Listener::redis(&upstream), "plaintext_refused"),
            (Listener::tcp(&upstream), "plaintext_refused"),
            (Listener::postgres(&upstream), "protocol_violation"),
        ] {
            let listener = listener.trusting(&["127.0.0.1", "10.1.2.3"]).behind(behind);
            let portcullis = Portcullis::before(listener.limit("handshake_timeout = \"2s\""));
            for header in &headers {
                let mut hello = header.clone();
                portcullis.client().tls().write_tls(&mut hello).unwrap();
                let mut stream = portcullis.client().dial();
                stream.write_all(&hello).unwrap();
                let words = read_until_closed(&mut stream);
                assert!(!words.starts_with(b"\x16"), "it was admitted: {}", words.escape_ascii());
                let denied = portcullis.ending(port(&stream));
                assert_eq!((denied.reason(), denied.text("source")), (reason, "127.0.0.1"));
                assert!(denied.text("detail").contains("the client sent a PROXY header"), "{}", denied.0);
                assert!(!denied.has("balancer"), "{}", denied.0);
            }
            // An untrusted source stays untrusted, whatever header it sends.
            let mut untrusted = portcullis.client().from("127.0.0.3").dial();
            let _ = untrusted.write_all(&v1("127.0.0.1:7001", "192.0.2.1:6380"));
            assert_eq!(read_until_closed(&mut untrusted), b"");
            let denied = portcullis.ending(port(&untrusted));
            assert_eq!((denied.reason(), denied.text("source")), ("untrusted_source", "127.0.0.3"));
        }
    }
    upstream.assert_untouched();
}

#[test]
fn second_header_does_not_change_the_client_address() {
    let upstream = Upstream::silent();
    for (listener, reason) in
        [(Listener::redis(&upstream), "plaintext_refused"), (Listener::postgres(&upstream), "protocol_violation")]
    {
        let listener = listener.trusting(&["10.0.0.0/8"]).behind(&[BALANCER, "10.1.2.3"]);
        let portcullis = Portcullis::before(listener);
        // The announced address is that of a client, even if a load balancer has the same address.
        let header = [v1("10.1.2.3:7001", "192.0.2.1:1"), v1("10.6.6.6:7002", "192.0.2.1:1")].concat();
        let mut stream = balancer(&portcullis).dial();
        stream.write_all(&header).unwrap();
        read_until_closed(&mut stream);
        let denied = ending(&portcullis, port(&stream));
        assert_eq!((denied.reason(), denied.text("source")), (reason, "10.1.2.3"));
    }
    upstream.assert_untouched();
}

#[test]
fn load_balancer_local_connection_is_authorized_by_its_own_address() {
    let upstream = Upstream::echo();
    let own =
        [b"PROXY UNKNOWN\r\n".to_vec(), b"PROXY UNKNOWN 10.1.2.3 x\r\n".to_vec(), v2(0x20, 0, b""), v2(0x21, 0, b"")];
    let listener = |trusting| Listener::redis(&upstream).trusting(&[trusting]).behind(&[BALANCER]);
    let portcullis = Portcullis::before(listener("10.1.2.3"));
    for header in &own {
        let denied = refusal(&portcullis, header);
        assert_eq!((denied.reason(), denied.text("source")), ("untrusted_source", BALANCER));
        assert!(denied.text("detail").contains("for example as a health check"), "{}", denied.0);
    }
    let portcullis = Portcullis::before(listener(BALANCER));
    for header in &own {
        let mut connection = announced(&balancer(&portcullis), header);
        connection.ask(b"hello", b"hello");
        let opened = portcullis.opened(connection.port());
        assert_eq!((opened.text("source"), opened.text("balancer")), (BALANCER, BALANCER));
        assert_eq!(opened.number("balancer_port"), u64::from(connection.port()));
    }
}

#[test]
fn load_balancer_health_checks_pass_and_reach_no_upstream() {
    let upstream = Upstream::echo();
    let start = || Portcullis::before(Listener::redis(&upstream).behind(&[BALANCER]));
    // Checks are announced as clients are: by the balancer's own addresses in version 1, and LOCAL in version 2.
    for check in ["send-proxy", "send-proxy-v2"] {
        let portcullis = start();
        let haproxy = checking(&portcullis, check);
        let checks = || {
            let denied = |event: &Event| event.is("connection.denied");
            Some(portcullis.events().into_iter().filter(denied).collect::<Vec<_>>()).filter(|checks| checks.len() >= 3)
        };
        for denied in eventually("three health checks", checks) {
            assert_eq!((denied.reason(), denied.text("source")), ("untrusted_source", BALANCER), "{check}");
            assert_eq!(denied.0["source_port"], denied.0["balancer_port"]);
            assert!(denied.text("detail").contains("for example as a health check"), "{check}: {}", denied.0);
        }
        haproxy.client(&portcullis).connect().ask(b"hello", b"hello");
    }
    // Checks with a separate address have no header. HAProxy closes them before the kernel completes the connection.
    let portcullis = start();
    let address = portcullis.address("main");
    let haproxy = checking(&portcullis, &format!("send-proxy-v2 addr 127.0.0.1 port {}", address.port()));
    haproxy.client(&portcullis).connect().ask(b"hello", b"hello");
    portcullis.event("an opening", |event| event.is("connection.opened"));
    assert!(!portcullis.events().iter().any(|event| event.is("connection.denied")));
    assert_eq!(upstream.connections(), 3, "a health check reached the upstream");
    // Others connect and close.
    let probe = balancer(&portcullis).dial();
    let balancer_port = port(&probe);
    drop(probe);
    let denied = ending(&portcullis, balancer_port);
    assert_eq!((denied.reason(), denied.text("balancer")), ("client_closed", BALANCER));
}

#[test]
fn repeated_health_checks_are_counted_and_not_logged() {
    let upstream = Upstream::echo();
    // One kind is rejected when it is accepted, one by its header, and one sends nothing.
    for (checks, from) in [("true", BALANCER), ("[\"127.0.0.0/28\"]", BALANCER), ("[\"127.0.0.7\"]", "127.0.0.7")] {
        let listener = Listener::redis(&upstream).trusting(&["10.1.2.3"]);
        let behind = format!("proxy_protocol = {{ trusted = [\"{BALANCER}\"], health_checks = {checks} }}");
        let mut portcullis = Portcullis::before(listener.key(&behind));
        let checker = portcullis.client().from(from);
        for header in [b"".to_vec(), b"PROXY UNKNOWN\r\n".to_vec(), v2(0x20, 0, b""), b"".to_vec()] {
            let mut stream = checker.dial();
            let _ = stream.write_all(&header);
            let _ = stream.shutdown(Shutdown::Write);
            read_until_closed(&mut stream);
        }
        // A header for a client, or other bytes, are no health check.
        let mut untrusted = balancer(&portcullis).dial();
        untrusted.write_all(&v1("10.6.6.6:7001", "192.0.2.1:6380")).unwrap();
        read_until_closed(&mut untrusted);
        assert_eq!(ending(&portcullis, port(&untrusted)).text("source"), "10.6.6.6");
        assert_eq!(refusal(&portcullis, b"*1\r\n$4\r\nPING\r\n").reason(), "proxy_header_missing");
        portcullis.stop();
        let events = portcullis.events();
        let logged: Vec<_> = events.iter().filter(|event| event.is("connection.denied")).collect();
        assert_eq!(logged.len(), 3, "{logged:?}");
        let first = logged.iter().find(|event| event.text("source") == from).unwrap();
        assert_eq!((first.text("level"), first.has("detail")), ("INFO", true), "{}", first.0);
        let rest = events.iter().find(|event| event.is("denials.suppressed")).unwrap();
        assert_eq!((rest.number("suppressed"), rest.text("level")), (3, "INFO"), "{}", rest.0);
    }
    upstream.assert_untouched();
}

/// HAProxy whose first health check of the listener has succeeded.
fn checking(portcullis: &Portcullis, options: &str) -> Haproxy {
    let server = format!("server main {} source {BALANCER} check inter 20ms {options}", portcullis.address("main"));
    let haproxy = Haproxy::on("127.0.0.1:0", "", &format!("option log-health-checks\n    {server}"));
    haproxy.line("main/main succeeded");
    haproxy
}

#[test]
fn removed_announced_source_or_load_balancer_ends_sessions() {
    let upstream = Upstream::echo();
    let config = |trusting: &[&str], behind: &[&str]| {
        format!("{ON_SIGHUP}{}", Listener::redis(&upstream).trusting(trusting).behind(behind))
    };
    let portcullis = Portcullis::start(TestDir::new(), config(&["10.1.0.0/16", "10.2.0.0/16"], &[BALANCER]));
    let mut kept = session(&portcullis, "10.1.0.1:7001");
    let gone = session(&portcullis, "10.2.0.1:7002");
    assert!(portcullis.reconfigure(config(&["10.1.0.0/16"], &[BALANCER])).is("reload.applied"));
    let closed = portcullis.ending(7002);
    assert_eq!((closed.reason(), closed.text("source")), ("source_revoked", "10.2.0.1"));
    kept.ask(b"still here", b"still here");
    drop(gone);
    // Another way to write the same balancers.
    assert!(portcullis.reconfigure(config(&["10.1.0.0/16"], &["127.0.0.8/31"])).is("reload.applied"));
    kept.ask(b"still here", b"still here");
    // This session was admitted only because of this load balancer.
    assert!(portcullis.reconfigure(config(&["10.1.0.0/16"], &["127.0.0.8"])).is("reload.applied"));
    let revoked =
        portcullis.event("a revocation", |event| event.is("session.revoked") && event.0["source_port"] == 7001);
    assert_eq!((revoked.reason(), revoked.text("balancer")), ("source_revoked", BALANCER));
    assert!(revoked.text("detail").contains("no longer listed in proxy_protocol.trusted"), "{}", revoked.0);
    assert!(portcullis.ending(7001).is("connection.closed"));
}

#[test]
fn load_balancer_removed_during_the_handshake_denies_its_client() {
    let upstream = Upstream::silent();
    let config = |behind: &str| {
        format!("{ON_SIGHUP}{}", Listener::redis(&upstream).trusting(&["10.1.0.0/16"]).behind(&[behind]))
    };
    let portcullis = Portcullis::start(TestDir::new(), config(BALANCER));
    let client = balancer(&portcullis);
    let (mut waiting, mut tls) = (client.dial(), client.tls());
    waiting.write_all(&v1("10.1.0.1:7001", "192.0.2.1:1")).unwrap();
    // The answer to its hello shows that its header has been read.
    tls.write_tls(&mut waiting).unwrap();
    tls.read_tls(&mut waiting).unwrap();
    let mut silent = client.dial();
    // It is accepted once the next client is admitted.
    drop(announced(&client, &v1("10.1.0.1:7002", "192.0.2.1:1")));
    portcullis.ending(7002);
    assert!(portcullis.reconfigure(config("127.0.0.8")).is("reload.applied"));
    tls.process_new_packets().unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut waiting).unwrap();
    }
    let mut words = Vec::new();
    rustls::StreamOwned::new(tls, waiting).read_to_end(&mut words).unwrap();
    assert!(words.starts_with(b"-DENIED"), "{}", words.escape_ascii());
    assert_eq!(portcullis.refusal(7001), "untrusted_source");
    silent.write_all(&v1("10.1.0.1:7003", "192.0.2.1:1")).unwrap();
    assert_eq!(read_until_closed(&mut silent), b"");
    assert_eq!(portcullis.refusal(7003), "untrusted_source");
}

#[test]
fn limits_count_the_announced_address() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).trusting(&["10.0.0.0/8"]).behind(&[BALANCER]);
    let listener = listener.limit("max_connections_per_source = 1").limit("connection_rate_per_source = \"3/h\"");
    let portcullis = Portcullis::before(listener);
    let refused = |from: &str| {
        let mut connection = announced(&balancer(&portcullis), &v1(from, "192.0.2.1:1"));
        connection.rest().unwrap();
        let port = from.rsplit_once(':').unwrap().1.parse().unwrap();
        portcullis.refusal(port)
    };
    let inside: Vec<_> =
        (1..=20_u16).map(|host| session(&portcullis, &format!("10.0.0.{host}:{}", 7000 + host))).collect();
    assert_eq!(refused("10.0.0.1:8001"), "source_connection_limit");
    assert_eq!(refused("10.0.0.1:8002"), "source_connection_limit");
    assert_eq!(refused("10.0.0.1:8003"), "rate_limited");
    assert_eq!(refused("10.0.0.2:8004"), "source_connection_limit");
    drop(inside);
}

#[test]
fn observe_mode_checks_the_announced_address() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).trusting(&["10.1.2.3"]).behind(&[BALANCER]);
    let portcullis = Portcullis::before(listener.key("enforcement = \"observe\""));
    let _sessions = [session(&portcullis, "10.1.2.3:7001"), session(&portcullis, "10.1.2.4:7002")];
    assert!(!portcullis.opened(7001).has("would_deny"));
    let opened = portcullis.opened(7002);
    assert_eq!((opened.text("would_deny"), opened.text("balancer")), ("untrusted_source", BALANCER));
    // A missing header is denied in observe mode, too.
    assert_eq!(refusal(&portcullis, b"PING\r\n").reason(), "proxy_header_missing");
}

#[test]
fn sessions_list_shows_the_client_and_its_load_balancer() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).trusting(&["10.1.2.3", "127.0.0.1"]).behind(&[BALANCER]);
    let portcullis = Portcullis::start(TestDir::new(), format!("{ADMIN}{listener}"));
    let behind = session(&portcullis, "10.1.2.3:7001");
    let mut direct = portcullis.client().connect();
    direct.ask(b"hello", b"hello");
    let list = |options: &[&str]| {
        let mut command = executable();
        command.args(["sessions", "list", "-c"]).arg(portcullis.site.path("portcullis.toml")).args(options);
        run(&mut command).success()
    };
    let all: Value = serde_json::from_str(&list(&["--json"])).unwrap();
    assert_eq!((&all["sessions"][0]["source"], &all["sessions"][0]["source_port"]), (&"10.1.2.3".into(), &7001.into()));
    assert_eq!(all["sessions"][0]["balancer"], BALANCER);
    assert_eq!(all["sessions"][0]["balancer_port"], behind.port());
    assert_eq!((&all["sessions"][1]["source"], &all["sessions"][1]["balancer"]), (&"127.0.0.1".into(), &Value::Null));
    let words = list(&[]);
    assert!(words.contains(&format!("10.1.2.3:7001 via {BALANCER}")), "{words}");
}

#[test]
fn plaintext_listener_accepts_a_header_and_relays_the_rest() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis).without_tls().behind(&[BALANCER]));
    for way in WAYS {
        let haproxy = haproxy(&portcullis, way);
        let mut cli = command("redis-cli");
        cli.args(["-h", "127.0.0.1", "-p", &haproxy.address().port().to_string(), "PING"]);
        assert_eq!(run(&mut cli).success(), "PONG\n", "{way}");
    }
    let mut stream = balancer(&portcullis).dial();
    stream.write_all(&[&v1("127.0.0.1:7001", "192.0.2.1:1")[..], b"PING\r\n"].concat()).unwrap();
    assert_eq!(read_exactly(&mut stream, 7), b"+PONG\r\n");
    drop(stream);
    let closed = portcullis.ending(7001);
    assert_eq!(closed.number("bytes_in"), 6, "the header is not the client's: {}", closed.0);
    assert_eq!(refusal(&portcullis, b"PING\r\n").reason(), "proxy_header_missing");
}

#[test]
fn query_is_cancelled_through_a_load_balancer() {
    let upstream = Upstream::brief();
    let portcullis = Portcullis::before(Listener::postgres(&upstream).trusting(&["10.1.2.3"]).behind(&[BALANCER]));
    let packet = cancel(77, &[1, 2, 3, 4]);
    let mut stream = balancer(&portcullis).dial();
    stream.write_all(&[v1("10.1.2.3:7001", "192.0.2.1:1"), packet.clone()].concat()).unwrap();
    assert_eq!(read_until_closed(&mut stream), b"");
    let forwarded = portcullis.event("a cancellation", |event| event.is("cancel.forwarded"));
    assert_eq!((forwarded.text("source"), forwarded.text("balancer")), ("10.1.2.3", BALANCER));
    assert_eq!(upstream.received(), packet);
    stream = balancer(&portcullis).dial();
    stream.write_all(&[v1("10.6.6.6:7002", "192.0.2.1:1"), packet].concat()).unwrap();
    assert_eq!(read_until_closed(&mut stream), b"");
    assert_eq!(portcullis.refusal(7002), "untrusted_source");
    assert_eq!(upstream.connections(), 1);
}

/// Pseudo-random bytes, the same in every run.
fn noise(seed: u32, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn hostile_headers_are_denied_and_reach_no_upstream() {
    let upstream = Upstream::silent();
    let listener = Listener::redis(&upstream).trusting(&["0.0.0.0/0", "::/0"]).behind(&[BALANCER]);
    let portcullis = Portcullis::before(listener.limit("handshake_timeout = \"500ms\""));
    let client = balancer(&portcullis);
    drop(announced(&client, &v2(0x20, 0, b"")));
    portcullis.event("the end of the first", |event| event.is("connection.closed"));
    let files = portcullis.open_files();
    let good = [
        v1("10.1.2.3:7001", "192.0.2.1:1"),
        v1("[2001:db8::1]:7001", "[::1]:1"),
        v2_between("10.1.2.3:7001", "192.0.2.1:1", &vector(0x20, &[7; 60])),
        v2_between("[2001:db8::1]:7001", "[::1]:1", &vector(0x04, b"")),
        v2(0x21, 0x31, &[0; 216]),
    ];
    let mut ports = Vec::new();
    for seed in 0..400_u32 {
        let random = noise(seed, 64);
        let mut bytes = good[usize::from(random[0]) % good.len()].clone();
        for change in random[1..].chunks(3).take(1 + usize::from(random[60] % 4)) {
            let place = (usize::from(change[0]) << 2 | usize::from(change[1] & 3)) % bytes.len();
            match change[1] >> 6 {
                0 => bytes[place] = change[2],
                1 => bytes[place] ^= 1 << (change[2] & 7),
                2 => bytes.truncate(place),
                _ => drop(bytes.splice(place..place, noise(u32::from(change[2]), 300))),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let mut stream = client.dial();
        // It may be closed while it still sends.
        let _ = stream.write_all(&bytes);
        let _ = stream.write_all(&noise(seed, 40));
        let _ = stream.shutdown(Shutdown::Write);
        ports.push(port(&stream));
        drop(stream);
    }
    // Many are only counted.
    let reported = |event: &Event| match event.is("denials.suppressed") {
        true => event.number("suppressed"),
        false => u64::from(event.is("connection.denied")),
    };
    eventually("all are refused", || {
        let reported: u64 = portcullis.events().iter().map(reported).sum();
        (reported >= 400).then_some(())
    });
    for denied in portcullis.events().iter().filter(|event| event.is("connection.denied")) {
        let known = [
            "proxy_header_invalid",
            "proxy_header_missing",
            "plaintext_refused",
            "client_closed",
            "handshake_failed",
            "handshake_timeout",
            "protocol_violation",
        ];
        assert!(known.contains(&denied.reason()), "{}", denied.0);
    }
    eventually("all sockets are closed", || (portcullis.open_files() <= files).then_some(()));
    assert_eq!(portcullis.errors(), "");
    assert_eq!(upstream.connections(), 1, "a client reached the upstream");
    announced(&client, &v1("10.1.2.3:7777", "192.0.2.1:1")).send(b"hello");
    portcullis.opened(7777);
}

fn asked(site: &TestDir, arguments: &[&str]) -> Outcome {
    run(executable().args(arguments).args(["-c", "portcullis.toml"]).current_dir(site.directory()))
}

#[test]
fn explain_reports_that_rules_do_not_apply_to_a_load_balancer() {
    let site = TestDir::new();
    let listener = Listener::redis("127.0.0.1:6379").trusting(&["10.0.0.0/16"]);
    site.write("portcullis.toml", listener.behind(&["10.0.0.5", "192.0.2.0/28"]));
    let explain = |source| asked(&site, &["explain", "--listener", "main", "--source", source]);
    for source in ["10.0.0.5", "::ffff:10.0.0.5"] {
        let of_both = explain(source);
        assert!(
            of_both.text().contains("load balancer listed in proxy_protocol.trusted (10.0.0.5)"),
            "{}",
            of_both.text()
        );
        assert!(of_both.success().contains("trusted by ip_addr:10.0.0.0/16"));
    }
    let balancer = explain("192.0.2.3");
    assert_eq!(balancer.code, Some(3));
    let words = balancer.text();
    assert!(words.contains("(192.0.2.0/28)") && words.contains("must send a PROXY header first"), "{words}");
    assert!(
        words.contains("without an announced client (LOCAL, UNKNOWN)") && words.contains("is not trusted"),
        "{words}"
    );
    assert!(!explain("10.0.0.6").success().contains("balancer"));
}

#[test]
fn check_shows_load_balancers_and_warns_if_they_are_also_sources() {
    let site = TestDir::new();
    let check = |trusting: &[&str], behind: &[&str]| {
        let listener = Listener::redis("127.0.0.1:6379").trusting(trusting).behind(behind);
        site.write("portcullis.toml", listener.upstream("proxy_protocol = \"v2\""));
        (asked(&site, &["check", "--offline"]).success(), asked(&site, &["check", "--offline", "--json"]).success())
    };
    let (words, json) = check(&["10.0.0.0/16"], &["10.0.0.5", "192.0.2.0/28", "2001:db8::/64"]);
    assert!(words.contains("PROXY protocol v2 is sent to the upstream"), "{words}");
    assert!(words.contains("must send a PROXY header (3)"), "{words}");
    assert!(words.contains("10.0.0.5  (health checks from this address are admitted by ip_addr:10.0.0.0/16)"));
    assert!(words.contains("192.0.2.0/28  (health checks from this address are refused"), "{words}");
    assert!(!words.contains("warning"), "{words}");
    let report: Value = serde_json::from_str(&json).unwrap();
    let reported = &report["listeners"][0]["proxy_protocol"];
    assert_eq!(reported["trusted"], serde_json::json!(["10.0.0.5", "192.0.2.0/28", "2001:db8::/64"]));
    assert_eq!(reported["upstream"], "v2");

    let (wide, _) = check(&["192.0.2.0/24"], &["10.0.0.0/15", "2001:db8::/47", "10.0.0.0/16"]);
    assert_eq!(wide.matches("can announce any client address").count(), 2, "{wide}");
    let (among, _) = check(&["10.0.0.0/24", "10.0.1.7"], &["10.0.0.0/16"]);
    assert!(among.contains("the rule ip_addr:10.0.0.0/24 is within 10.0.0.0/16 of proxy_protocol.trusted"), "{among}");
}
