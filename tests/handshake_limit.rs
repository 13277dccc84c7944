//! The number of connections that may be in their handshake at once.

use std::io::Write;
use std::net::TcpStream;

use serde_json::Value;

use crate::harness::client::port;
use crate::harness::portcullis::{ADMIN, EXECUTABLE, executable};
use crate::harness::program::{command, run};
use crate::harness::proxy::v1;
use crate::harness::wire::{PROTOCOL_3_0, cancel, read_exactly, read_until_closed, startup};
use crate::harness::{Client, Listener, Portcullis, Request, TestDir, Upstream, eventually};
use crate::reload::ON_SIGHUP;

/// One listener that trusts all of 127.0.0.0/8, with the admin socket. A handshake may take longer than any of these tests.
fn limited(listener: Listener, limit: u32) -> Portcullis {
    let listener = listener.limit("handshake_timeout = \"10m\"");
    let listener = listener.trusting(&["127.0.0.0/8"]).limit(&format!("max_handshakes = {limit}"));
    Portcullis::start(TestDir::new(), format!("{ADMIN}{listener}"))
}

/// Clients that connect and send nothing.
fn stalled(client: &Client, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| client.dial()).collect()
}

/// A client that is closed before it sends a byte.
fn assert_refused(portcullis: &Portcullis, client: &Client) {
    let mut stream = client.dial();
    assert_eq!(read_until_closed(&mut stream), b"");
    let denied = portcullis.ending(port(&stream));
    assert!(denied.is("connection.denied"), "{}", denied.0);
    assert_eq!(denied.reason(), "handshake_limit");
    assert!(denied.text("detail").contains("max_handshakes"), "{}", denied.0);
    assert_eq!(denied.text("rule"), "ip_addr:127.0.0.0/8");
}

fn handshakes(portcullis: &Portcullis) -> (u64, u64) {
    let listener = portcullis.status();
    (listener["handshakes"].as_u64().unwrap(), listener["max_handshakes"].as_u64().unwrap())
}

fn has(portcullis: &Portcullis, count: u64) {
    eventually(&format!("{count} handshakes"), || (handshakes(portcullis).0 == count).then_some(()));
}

#[test]
fn connection_above_the_limit_is_closed_until_a_handshake_ends() {
    let upstream = Upstream::echo();
    let portcullis = limited(Listener::redis(&upstream), 3);
    let client = portcullis.client();
    let mut crowd = stalled(&client, 3);
    assert_refused(&portcullis, &client);
    assert_eq!(handshakes(&portcullis), (3, 3));
    drop(crowd.pop());
    has(&portcullis, 2);
    client.connect().ask(b"hello", b"hello");
    // The others were not touched.
    for stream in crowd {
        client.secure(stream).unwrap().ask(b"hello", b"hello");
    }
}

#[test]
fn authorized_clients_do_not_count_as_handshakes() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let listener = Listener::redis(&upstream).limit("max_handshakes = 1");
    let listener = listener.tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"");
    let app = site.ca.issue(Request::client("app"));
    let portcullis = Portcullis::start(site, format!("{ADMIN}{listener}"));
    let client = portcullis.client().showing(&app);
    let mut sessions = Vec::new();
    for _ in 0..5 {
        let mut session = client.connect();
        session.ask(b"hello", b"hello");
        sessions.push(session);
    }
    assert_eq!(handshakes(&portcullis), (0, 1));
}

#[test]
fn postgres_client_without_a_certificate_counts_until_its_startup_message() {
    let upstream = Upstream::silent();
    let site = TestDir::new();
    let app = site.ca.issue(Request::client("app"));
    let listener = Listener::postgres(&upstream).limit("max_handshakes = 5");
    let listener = listener.tls("client_auth = \"optional\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, format!("{ADMIN}{listener}"));
    let anonymous = portcullis.client().with_ssl_request();
    let mut silent = [anonymous.connect(), anonymous.connect()];
    let _known = portcullis.client().with_ssl_request().showing(&app).connect();
    has(&portcullis, 2);
    let packet = startup(PROTOCOL_3_0, &[("user", "app")]);
    silent[0].send(&packet);
    assert_eq!(upstream.receives(packet.len()), packet);
    assert_eq!(handshakes(&portcullis).0, 1);
}

#[test]
fn slow_handshakes_of_one_source_do_not_block_other_sources() {
    let upstream = Upstream::echo();
    let portcullis = limited(Listener::redis(&upstream), 4);
    let (slow, other) = (portcullis.client().from("127.0.0.2"), portcullis.client().from("127.0.0.3"));
    let mut crowd = stalled(&slow, 4);
    assert_refused(&portcullis, &slow);
    let mut session = other.connect();
    session.ask(b"hello", b"hello");
    // The oldest handshakes were closed.
    let displaced = portcullis.ending(port(&crowd[0]));
    assert!(displaced.is("connection.denied"), "{}", displaced.0);
    assert_eq!(displaced.reason(), "handshake_limit");
    assert!(displaced.text("detail").contains("the source with the most"), "{}", displaced.0);
    assert_eq!(read_until_closed(&mut crowd[0]), b"");
    for stream in crowd.drain(1..) {
        slow.secure(stream).unwrap().ask(b"hello", b"hello");
    }
    session.ask(b"still", b"still");
}

#[test]
fn source_is_accepted_again_once_its_handshakes_time_out() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).limit("handshake_timeout = \"2s\"").limit("max_handshakes = 2");
    let portcullis = Portcullis::start(TestDir::new(), format!("{ADMIN}{listener}"));
    let client = portcullis.client();
    let crowd = stalled(&client, 2);
    for stream in &crowd {
        assert_eq!(portcullis.refusal(port(stream)), "handshake_timeout");
    }
    has(&portcullis, 0);
    client.connect().ask(b"hello", b"hello");
}

#[test]
fn denied_client_counts_until_it_is_closed() {
    let upstream = Upstream::silent();
    let portcullis = limited(Listener::redis(&upstream), 2);
    let client = portcullis.client();
    let mut plain = client.dial();
    plain.write_all(b"PING\r\n").unwrap();
    assert_eq!(portcullis.refusal(port(&plain)), "plaintext_refused");
    assert_eq!(handshakes(&portcullis).0, 1, "it may still receive its error");
    // Its place is free for another source at once.
    let _crowd = stalled(&client, 1);
    has(&portcullis, 2);
    let other = portcullis.client().from("127.0.0.2").dial();
    eventually("its socket is closed", || {
        let places = handshakes(&portcullis).0;
        assert_eq!(places, 2);
        plain.write_all(b"PING\r\n").is_err().then_some(())
    });
    drop(other);
}

#[test]
fn announced_clients_count_for_their_announced_source() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).trusting(&["10.0.0.0/8"]).behind(&["127.0.0.9"]);
    let portcullis = Portcullis::before(listener.limit("max_handshakes = 3"));
    let balancer = portcullis.client().from("127.0.0.9");
    let announced = |from: &str| {
        let mut stream = balancer.dial();
        stream.write_all(&v1(from, "192.0.2.1:1")).unwrap();
        stream
    };
    let crowd: Vec<_> = (7001..=7003)
        .map(|port| {
            let mut stream = announced(&format!("10.0.0.1:{port}"));
            balancer.tls().write_tls(&mut stream).unwrap();
            // The answer to its hello shows that its header has been read.
            read_exactly(&mut stream, 1);
            stream
        })
        .collect();
    let other = announced("10.0.0.2:7004");
    assert_eq!(portcullis.refusal(7001), "handshake_limit");
    balancer.secure(other).unwrap().ask(b"hello", b"hello");
    drop(crowd);
}

#[test]
fn reload_changes_the_limit_and_keeps_the_count() {
    let upstream = Upstream::echo();
    let config = |limit: u32| {
        let listener = Listener::redis(&upstream).trusting(&["127.0.0.0/8"]);
        format!("{ADMIN}{ON_SIGHUP}{}", listener.limit(&format!("max_handshakes = {limit}")))
    };
    let portcullis = Portcullis::start(TestDir::new(), config(4));
    let client = portcullis.client();
    let crowd = stalled(&client, 3);
    has(&portcullis, 3);
    assert!(portcullis.reconfigure(config(2)).is("reload.applied"));
    assert_eq!(handshakes(&portcullis), (3, 2));
    assert_refused(&portcullis, &client);
    for stream in crowd {
        client.secure(stream).unwrap().ask(b"hello", b"hello");
    }
    has(&portcullis, 0);
    client.connect().ask(b"hello", b"hello");
}

#[test]
fn flood_above_the_limit_is_summed_up_and_leaves_nothing_behind() {
    let upstream = Upstream::echo();
    let portcullis = limited(Listener::redis(&upstream), 2);
    let slow = portcullis.client().from("127.0.0.2");
    let crowd = stalled(&slow, 2);
    has(&portcullis, 2);
    let files = portcullis.open_files();
    for _ in 0..1_500 {
        assert_eq!(read_until_closed(&mut slow.dial()), b"");
    }
    eventually("every file is closed", || (portcullis.open_files() <= files).then_some(()));
    let counted = || {
        let events = portcullis.events();
        let denied = events.iter().filter(|event| event.is("connection.denied")).count() as u64;
        let summed = events.iter().filter(|event| event.is("denials.suppressed"));
        let suppressed: u64 = summed.map(|event| event.number("suppressed")).sum();
        (denied + suppressed == 1_500).then_some(suppressed)
    };
    assert!(eventually("all are logged or summed up", counted) > 900);
    for stream in crowd {
        slow.secure(stream).unwrap().ask(b"hello", b"hello");
    }
}

#[test]
fn cancel_request_counts_as_a_handshake_until_it_is_forwarded() {
    let upstream = Upstream::silent();
    let portcullis = limited(Listener::postgres(&upstream), 1);
    let client = portcullis.client();
    let packet = cancel(77, &[1, 2, 3, 4]);
    let mut half = client.dial();
    half.write_all(&packet[..8]).unwrap();
    has(&portcullis, 1);
    assert_refused(&portcullis, &client);
    half.write_all(&packet[8..]).unwrap();
    assert_eq!(upstream.receives(packet.len()), packet);
    // The upstream has it and does not close.
    assert_eq!(handshakes(&portcullis), (0, 1));
    client.with_ssl_request().connect();
}

#[test]
fn default_limit_equals_that_of_check() {
    let upstream = Upstream::echo();
    let mut limited = command("prlimit");
    // The program raises the first of these to the second.
    limited.args(["--nofile=512:1024", "--", EXECUTABLE]);
    let portcullis = Portcullis::start_by(limited, TestDir::new(), format!("{ADMIN}{}", Listener::redis(&upstream)));
    assert_eq!(handshakes(&portcullis), (0, 256));
}

#[test]
fn check_prints_the_limit_in_force() {
    let site = TestDir::new();
    let check = |listener: Listener, files: u32| {
        site.write("portcullis.toml", listener);
        let checked = |options: &[&str]| {
            let mut check = command("prlimit");
            check.args([&format!("--nofile={files}:{files}"), "--", EXECUTABLE, "check", "-c"]);
            run(check.arg(site.path("portcullis.toml")).args(options)).success()
        };
        let report: Value = serde_json::from_str(&checked(&["--json"])).unwrap();
        (checked(&[]), report["listeners"][0]["limits"]["max_handshakes"].clone())
    };
    let listener = || Listener::redis("127.0.0.1:6379");
    // A quarter of the open files.
    let (words, number) = check(listener(), 2048);
    assert!(words.contains("handshakes    512 concurrent (default)\n"), "{words}");
    assert_eq!(number, 512);
    assert_eq!(check(listener().limit("max_handshakes = 0"), 1024).1, 256);
    let (words, number) = check(listener().limit("max_handshakes = 5000"), 1024);
    assert!(words.contains("handshakes    5000 concurrent\n"), "{words}");
    assert_eq!(number, 5000);
    site.write("portcullis.toml", listener().limit("max_handshakes = -1"));
    let refused = run(executable().args(["check", "-c"]).arg(site.path("portcullis.toml")));
    assert_eq!(refused.code, Some(78));
    assert!(refused.stderr.contains("max_handshakes"), "{}", refused.stderr);
}
