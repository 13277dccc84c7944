//! Cancelling a running query: a separate connection with one packet and no answer.

use std::fmt::Display;
use std::io::Write;
use std::process::Stdio;

use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;

use crate::harness::client::port;
use crate::harness::portcullis::ADMIN;
use crate::harness::program::Running;
use crate::harness::wire::{GSSENC_REQUEST, PROTOCOL_3_0, cancel, read_exactly, read_until_closed, startup};
use crate::harness::{Connection, Listener, Portcullis, Postgres, Request, TestDir, Upstream, eventually};
use crate::postgres::{connector, conninfo, parameters, psql};
use crate::reload::ON_SIGHUP;
use crate::upstream_selection::{addresses, config};

const RUNNING: &str = "select count(*) from pg_stat_activity where query like 'select pg_sleep%'";

/// Waits until the server reports that the query runs.
pub(crate) fn wait_for_the_query(postgres: &Postgres) {
    eventually("the query runs", || (postgres.direct(RUNNING) == "1").then_some(()));
}

/// The only event that a cancelling connection has.
fn forwarded(portcullis: &Portcullis, port: u16) {
    let event = portcullis.event("cancel.forwarded", |event| event.0["source_port"] == port);
    assert!(event.is("cancel.forwarded"), "{}", event.0);
}

#[test]
fn tokio_postgres_cancels_its_query_over_tls() {
    let postgres = Postgres::start();
    let mut portcullis = Portcullis::before(Listener::postgres(&postgres));
    Runtime::new().unwrap().block_on(async {
        let connected = parameters(&portcullis).connect(connector(&portcullis)).await;
        let (client, connection) = connected.unwrap();
        let cancel = client.cancel_token();
        let query = async move {
            let error = client.batch_execute("select pg_sleep(1000)").await.unwrap_err();
            assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
        };
        let stop = async {
            let waiting = tokio::task::spawn_blocking(move || {
                wait_for_the_query(&postgres);
                postgres
            });
            let postgres = waiting.await.unwrap();
            cancel.cancel_query(connector(&portcullis)).await.unwrap();
            postgres
        };
        let (ended, (), _postgres) = tokio::join!(connection, query, stop);
        ended.unwrap();
    });
    // The client does not wait for the end of the connection that cancels.
    portcullis.event("a cancellation", |event| event.is("cancel.forwarded"));
    let (_, events) = portcullis.stop();
    let count = |name: &str| events.iter().filter(|event| event.is(name)).count();
    assert_eq!(count("cancel.forwarded"), 1);
    // The session itself, and nothing for the cancelling connection.
    assert_eq!((count("connection.opened"), count("connection.closed")), (1, 1));
    assert_eq!(count("connection.denied"), 0);
}

#[test]
fn psql_cancels_its_query_when_interrupted() {
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres));
    let mut psql = psql(&conninfo(&portcullis));
    psql.args(["-c", "select pg_sleep(1000)"]).stderr(Stdio::piped());
    let mut psql = Running::start(&mut psql);
    wait_for_the_query(&postgres);
    psql.signal("INT");
    let code = psql.exit_code();
    let output = std::io::read_to_string(psql.0.stderr.take().unwrap()).unwrap();
    assert!(output.contains("canceling statement due to user request"), "{code:?} {output}");
    portcullis.event("a cancellation", |event| event.is("cancel.forwarded"));
}

#[test]
fn cancel_request_is_forwarded_verbatim_and_not_answered() {
    let short = cancel(77, &[1, 2, 3, 4]);
    // Protocol 3.2 has longer keys, up to 256 bytes.
    let long = cancel(77, &[9; 256]);
    for packet in [short, long] {
        for in_tls in [true, false] {
            let upstream = Upstream::brief();
            let portcullis = Portcullis::before(Listener::postgres(&upstream));
            let client = portcullis.client().with_ssl_request();
            let port = if in_tls {
                let mut connection = client.connect();
                connection.send(&packet);
                assert_eq!(connection.rest().unwrap(), b"");
                connection.port()
            } else {
                let mut stream = client.dial();
                stream.write_all(&packet).unwrap();
                assert_eq!(read_until_closed(&mut stream), b"");
                port(&stream)
            };
            forwarded(&portcullis, port);
            assert_eq!(upstream.receives(packet.len()), packet);
            assert_eq!(upstream.connections(), 1);
        }
    }
}

#[test]
fn plaintext_cancel_after_a_declined_gssenc_request_is_forwarded() {
    let upstream = Upstream::brief();
    let portcullis = Portcullis::before(Listener::postgres(&upstream));
    let mut stream = portcullis.client().dial();
    stream.write_all(&GSSENC_REQUEST).unwrap();
    assert_eq!(read_exactly(&mut stream, 1), b"N");
    let packet = cancel(77, &[1, 2, 3, 4]);
    stream.write_all(&packet).unwrap();
    assert_eq!(read_until_closed(&mut stream), b"");
    assert_eq!(upstream.receives(packet.len()), packet);
}

#[test]
fn bytes_after_a_cancel_request_are_not_forwarded() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::postgres(&upstream));
    let packet = cancel(77, &[1, 2, 3, 4]);
    let mut stream = portcullis.client().dial();
    stream.write_all(&[packet.as_slice(), b"and more"].concat()).unwrap();
    assert_eq!(read_until_closed(&mut stream), b"");
    let event = portcullis.event("an end", |event| event.0["source_port"] == port(&stream));
    if event.is("cancel.forwarded") {
        assert_eq!(upstream.receives(packet.len()), packet);
    } else {
        assert_eq!(event.reason(), "protocol_violation");
        upstream.assert_untouched();
    }
}

#[test]
fn plaintext_cancel_is_denied_if_disabled() {
    let upstream = Upstream::silent();
    let listener = Listener::postgres(&upstream).postgres_key("plaintext_cancel = false");
    let portcullis = Portcullis::before(listener);
    let mut stream = portcullis.client().dial();
    stream.write_all(&cancel(77, &[1, 2, 3, 4])).unwrap();
    read_until_closed(&mut stream);
    assert_eq!(portcullis.refusal(port(&stream)), "plaintext_refused");
    upstream.assert_untouched();
}

#[test]
fn cancel_from_an_untrusted_source_is_denied() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::postgres(&upstream));
    let mut stream = portcullis.client().from("127.0.0.2").dial();
    // The connection may be gone already.
    let _ = stream.write_all(&cancel(77, &[1, 2, 3, 4]));
    assert_eq!(read_until_closed(&mut stream), b"");
    assert_eq!(portcullis.refusal(port(&stream)), "untrusted_source");
    upstream.assert_untouched();
}

#[test]
fn plaintext_cancel_is_forwarded_if_client_certificates_are_required() {
    let upstream = Upstream::brief();
    let site = TestDir::new();
    site.install("client", &site.ca.issue(Request::client("app")));
    let listener = Listener::postgres(&upstream).tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, listener);
    let packet = cancel(77, &[1, 2, 3, 4]);
    let mut stream = portcullis.client().dial();
    stream.write_all(&packet).unwrap();
    assert_eq!(read_until_closed(&mut stream), b"");
    forwarded(&portcullis, port(&stream));
    assert_eq!(upstream.receives(packet.len()), packet);
}

#[test]
fn plaintext_cancel_during_a_reload_is_authorized_by_the_new_policy() {
    for (reason, change) in [
        ("untrusted_source", (|listener| listener.trusting(&["127.0.0.2"])) as fn(Listener) -> Listener),
        ("plaintext_refused", |listener| listener.postgres_key("plaintext_cancel = false")),
    ] {
        let upstream = Upstream::silent();
        let listener = Listener::postgres(&upstream);
        let portcullis = Portcullis::start(TestDir::new(), format!("{ON_SIGHUP}{listener}"));
        let mut stream = portcullis.client().dial();
        // The answer shows that the client was accepted.
        stream.write_all(&GSSENC_REQUEST).unwrap();
        assert_eq!(read_exactly(&mut stream, 1), b"N");
        let packet = cancel(77, &[1, 2, 3, 4]);
        let (half, rest) = packet.split_at(packet.len() / 2);
        stream.write_all(half).unwrap();
        let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{}", change(listener)));
        assert!(applied.is("reload.applied"), "{}", applied.0);
        stream.write_all(rest).unwrap();
        assert_eq!(read_until_closed(&mut stream), b"");
        assert_eq!(portcullis.refusal(port(&stream)), reason);
        upstream.assert_received_nothing();
    }
}

#[test]
fn tls_cancel_during_a_reload_is_authorized_by_the_new_policy() {
    let (upstream, site) = (Upstream::silent(), TestDir::new());
    let app = site.ca.issue(Request::client("app"));
    let listener = Listener::postgres(&upstream).tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, format!("{ADMIN}{ON_SIGHUP}{listener}"));
    let mut client = portcullis.client().with_ssl_request().showing(&app).connect();
    // A client with a certificate counts as a handshake until it is authorized.
    eventually("it is authorized", || (portcullis.status()["handshakes"] == 0).then_some(()));
    let packet = cancel(77, &[1, 2, 3, 4]);
    let (half, rest) = packet.split_at(packet.len() / 2);
    client.send(half);
    let applied = portcullis.reconfigure(format!("{ADMIN}{ON_SIGHUP}{}", listener.trusting(&["127.0.0.2"])));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    client.send(rest);
    assert_eq!(client.rest().unwrap(), b"");
    assert_eq!(portcullis.refusal(client.port()), "untrusted_source");
    upstream.assert_received_nothing();
}

#[test]
fn observe_mode_forwards_an_untrusted_cancel_and_logs_would_deny() {
    let upstream = Upstream::brief();
    let listener = Listener::postgres(&upstream).key("enforcement = \"observe\"");
    let portcullis = Portcullis::before(listener);
    let packet = cancel(77, &[1, 2, 3, 4]);
    for (source, would_deny) in [("127.0.0.2", Some("untrusted_source")), ("127.0.0.1", None)] {
        let client = portcullis.client().with_ssl_request().from(source);
        let mut plain = client.dial();
        plain.write_all(&packet).unwrap();
        assert_eq!(read_until_closed(&mut plain), b"");
        let mut secure = client.connect();
        secure.send(&packet);
        assert_eq!(secure.rest().unwrap(), b"");
        for port in [port(&plain), secure.port()] {
            let event = portcullis.event("its only event", |event| event.0["source_port"] == port);
            assert!(event.is("cancel.forwarded"), "{}", event.0);
            assert_eq!(event.0["would_deny"].as_str(), would_deny, "{}", event.0);
        }
    }
}

/// A `psql` that sleeps until it is cancelled, at the server that the listener prefers now.
fn sleeper(portcullis: &Portcullis, postgres: &Postgres) -> Running {
    let mut psql = psql(&conninfo(portcullis));
    psql.args(["-c", "select pg_sleep(1000)"]).stderr(Stdio::piped());
    let psql = Running::start(&mut psql);
    wait_for_the_query(postgres);
    psql
}

fn assert_cancelled(mut psql: Running) {
    psql.exit_code();
    let output = std::io::read_to_string(psql.0.stderr.take().unwrap()).unwrap();
    assert!(output.contains("canceling statement due to user request"), "{output}");
}

#[test]
fn cancel_request_goes_to_the_server_of_its_session() {
    let (one, other) = (Postgres::start(), Postgres::start());
    let prefer = |servers: &[&dyn Display]| config(&Listener::postgres("UPSTREAM"), &addresses(servers));
    let portcullis = Portcullis::start(TestDir::new(), prefer(&[&one]));
    let at_one = sleeper(&portcullis, &one);
    assert!(portcullis.reconfigure(prefer(&[&other, &one])).is("reload.applied"));
    let at_other = sleeper(&portcullis, &other);
    let cancelled_at = |seen: usize| {
        let event = portcullis.event_after(seen, "a cancellation", |event| event.is("cancel.forwarded"));
        event.text("upstream").to_owned()
    };

    let seen = portcullis.seen();
    at_one.signal("INT");
    assert_cancelled(at_one);
    assert_eq!(cancelled_at(seen), one.to_string());
    assert_eq!(other.direct(RUNNING), "1", "the other one sleeps on");

    // A server that new sessions no longer use.
    assert!(portcullis.reconfigure(prefer(&[&one])).is("reload.applied"));
    let seen = portcullis.seen();
    at_other.signal("INT");
    assert_cancelled(at_other);
    assert_eq!(cancelled_at(seen), other.to_string());
}

#[test]
fn cancel_key_routes_to_its_session_and_then_to_the_first_server() {
    let (one, other) = (Postgres::start(), Postgres::start());
    let prefer = |servers: &[&dyn Display]| config(&Listener::postgres("UPSTREAM"), &addresses(servers));
    let portcullis = Portcullis::start(TestDir::new(), prefer(&[&one, &other]));
    let server = |port: u16| {
        let event = portcullis
            .event("cancel.forwarded", |event| event.is("cancel.forwarded") && event.0["source_port"] == port);
        event.text("upstream").to_owned()
    };
    let (session, key) = session(&portcullis);
    assert!(portcullis.reconfigure(prefer(&[&other, &one])).is("reload.applied"));
    let in_tls = || {
        let mut canceller = portcullis.client().with_ssl_request().connect();
        canceller.send(&key);
        assert_eq!(canceller.rest().unwrap(), b"");
        canceller.port()
    };
    let in_clear = || {
        let mut canceller = portcullis.client().dial();
        canceller.write_all(&key).unwrap();
        assert_eq!(read_until_closed(&mut canceller), b"");
        port(&canceller)
    };
    assert_eq!((server(in_tls()), server(in_clear())), (one.to_string(), one.to_string()));
    let gone = session.port();
    drop(session);
    portcullis.ending(gone);
    assert_eq!((server(in_tls()), server(in_clear())), (other.to_string(), other.to_string()));
}

/// A session, and the request that cancels its queries.
pub(crate) fn session(portcullis: &Portcullis) -> (Connection, Vec<u8>) {
    let mut session = portcullis.client().with_ssl_request().connect();
    session.send(&startup(PROTOCOL_3_0, &[("user", "app"), ("database", "postgres")]));
    let mut key = None;
    loop {
        let header = session.receive(5);
        let length = u32::from_be_bytes(header[1..].try_into().unwrap());
        let body = session.receive(usize::try_from(length).unwrap() - 4);
        match header[0] {
            b'K' => key = Some(body),
            b'Z' => break,
            _ => {}
        }
    }
    let key = key.unwrap();
    let process = u32::from_be_bytes(key[..4].try_into().unwrap());
    (session, cancel(process, &key[4..]))
}
