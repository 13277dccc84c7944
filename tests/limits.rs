//! The number of sessions at once, and the rate of new connections.

use std::io::Write;
use std::process::Stdio;
use std::sync::Barrier;
use std::thread;

use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;

use crate::harness::client::port;
use crate::harness::program::{Running, run};
use crate::harness::wire::{cancel, error_response, read_until_closed};
use crate::harness::{Client, Connection, Event, Listener, Portcullis, Postgres, Redis, TestDir, Upstream, eventually};
use crate::postgres::{connector, conninfo, parameters, psql};
use crate::redis::cli;
use crate::reload::ON_SIGHUP;

/// The line of Redis itself, for every limit. The audit distinguishes the limits.
const TOO_MANY: &str = "-ERR max number of clients reached\r\n";

/// An admitted session.
fn session(client: &Client) -> Connection {
    let mut connection = client.connect();
    connection.ask(b"hello", b"hello");
    connection
}

/// What a client receives that is denied after its handshake, and the reason.
fn refused(portcullis: &Portcullis, client: &Client) -> (String, String) {
    let mut connection = client.connect();
    let words = connection.rest().expect("the end comes with close_notify");
    (String::from_utf8(words).unwrap(), portcullis.refusal(connection.port()))
}

fn is_refused(portcullis: &Portcullis, client: &Client, words: &str, reason: &str) {
    assert_eq!(refused(portcullis, client), (words.to_owned(), reason.to_owned()));
}

/// Ends a session, and waits for its event.
fn leave(portcullis: &Portcullis, connection: Connection) {
    let port = connection.port();
    drop(connection);
    assert!(portcullis.ending(port).is("connection.closed"));
}

/// The reason for which a connection is closed before its handshake.
fn cut(portcullis: &Portcullis, client: &Client) -> Event {
    let mut stream = client.dial();
    assert_eq!(read_until_closed(&mut stream), b"");
    portcullis.ending(port(&stream))
}

#[test]
fn redis_cli_above_the_limit_is_denied_until_a_session_ends() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis).limit("max_connections = 1"));
    let mut inside = portcullis.client().connect();
    inside.ask(b"PING\r\n", b"+PONG\r\n");
    let output = run(cli(&portcullis).arg("PING"));
    assert!((output.text() + &output.stderr).contains("ERR max number of clients reached"), "{output:?}");
    let denied = portcullis.event("a denial", |event| event.is("connection.denied"));
    assert_eq!(denied.reason(), "connection_limit");
    assert!(denied.text("detail").contains("max_connections"), "{}", denied.0);
    leave(&portcullis, inside);
    assert_eq!(run(cli(&portcullis).arg("PING")).success(), "PONG\n");
}

#[test]
fn connection_limit_is_reported_with_sqlstate_53300() {
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres).limit("max_connections_per_source = 1"));
    Runtime::new().unwrap().block_on(async {
        let (client, connection) = parameters(&portcullis).connect(connector(&portcullis)).await.unwrap();
        let used = async {
            client.batch_execute("select 1").await.unwrap();
            let error = parameters(&portcullis).connect(connector(&portcullis)).await.err().unwrap();
            assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{error}");
            let refused = run(psql(&conninfo(&portcullis)).args(["-c", "select 1"]));
            assert!(refused.stderr.contains("FATAL:  too many connections from this address"), "{}", refused.stderr);
            assert!(refused.stderr.contains("Close connections that are not needed"), "{}", refused.stderr);
            drop(client);
        };
        let (ended, ()) = tokio::join!(connection, used);
        ended.unwrap();
    });
    portcullis.event("the end of the first", |event| event.is("connection.closed"));
    assert_eq!(run(psql(&conninfo(&portcullis)).args(["-c", "select 6 * 7"])).success(), "42\n");
    let denied: Vec<_> = portcullis.events().into_iter().filter(|event| event.is("connection.denied")).collect();
    assert!(denied.iter().all(|event| event.reason() == "source_connection_limit"), "{denied:?}");
    assert_eq!(denied.len(), 2);
}

#[test]
fn query_is_cancelled_at_the_connection_limit() {
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres).limit("max_connections = 1"));
    let mut psql = psql(&conninfo(&portcullis));
    psql.args(["-c", "select pg_sleep(1000)"]).stderr(Stdio::piped());
    let mut psql = Running::start(&mut psql);
    crate::cancel::wait_for_the_query(&postgres);
    psql.signal("INT");
    psql.exit_code();
    let output = std::io::read_to_string(psql.0.stderr.take().unwrap()).unwrap();
    assert!(output.contains("canceling statement due to user request"), "{output}");
    portcullis.event("a cancellation", |event| event.is("cancel.forwarded"));
}

#[test]
fn source_limit_counts_each_source_separately() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).on(&["[::]:0"]).trusting(&["127.0.0.0/8", "::1"]);
    let portcullis = Portcullis::before(listener.limit("max_connections_per_source = 1"));
    let mut address = portcullis.address("main");
    address.set_ip("127.0.0.1".parse().unwrap());
    let v4 = |source| portcullis.client().at(address).from(source);
    let mut v6 = address;
    v6.set_ip("::1".parse().unwrap());
    let v6 = portcullis.client().at(v6);
    let clients = [v4("127.0.0.1"), v4("127.0.0.2"), v6];
    let inside: Vec<_> = clients.iter().map(session).collect();
    for client in &clients {
        is_refused(&portcullis, client, TOO_MANY, "source_connection_limit");
    }
    for (client, connection) in clients.iter().zip(inside) {
        leave(&portcullis, connection);
        session(client);
    }
}

#[test]
fn simultaneous_clients_are_admitted_up_to_the_limit() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream).limit("max_connections = 5"));
    let client = || portcullis.client();
    client().config();
    let start = Barrier::new(20);
    let inside: Vec<_> = thread::scope(|scope| {
        let come = || {
            let client = client();
            start.wait();
            client.attempt()
        };
        let all: Vec<_> = (0..20).map(|_| scope.spawn(come)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let (admitted, rejected): (Vec<_>, Vec<_>) = inside.iter().partition(|(_, connection)| connection.is_ok());
    assert_eq!(admitted.len(), 5);
    for (port, _) in rejected {
        assert_eq!(portcullis.refusal(*port), "connection_limit");
    }
    assert_eq!(upstream.connections(), 5, "who is refused does not reach the upstream");
}

#[test]
fn failed_connection_does_not_count_as_a_session() {
    let unused = crate::harness::program::free_address();
    let portcullis = Portcullis::before(Listener::redis(unused).limit("max_connections = 1"));
    for _ in 0..5 {
        let (words, reason) = refused(&portcullis, &portcullis.client());
        assert!(words.starts_with("-LOADING "), "{words}");
        assert_eq!(reason, "upstream_unreachable");
    }
}

#[test]
fn denied_tcp_client_receives_close_notify() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::tcp(&upstream).limit("max_connections = 1"));
    let _inside = session(&portcullis.client());
    is_refused(&portcullis, &portcullis.client(), "", "connection_limit");
}

#[test]
fn reload_changes_the_limits_and_keeps_the_counts() {
    let upstream = Upstream::echo();
    let config = |limit: &str| format!("{ON_SIGHUP}{}", Listener::redis(&upstream).limit(limit));
    let applies = |portcullis: &Portcullis, limit| {
        let applied = portcullis.reconfigure(config(limit));
        assert!(applied.is("reload.applied"), "{}", applied.0);
    };
    // Without a limit, the first session is counted too.
    let portcullis = Portcullis::start(TestDir::new(), config(""));
    let client = portcullis.client();
    let mut first = session(&client);
    applies(&portcullis, "max_connections = 1");
    is_refused(&portcullis, &client, TOO_MANY, "connection_limit");
    applies(&portcullis, "max_connections = 2");
    let mut second = session(&client);
    is_refused(&portcullis, &client, TOO_MANY, "connection_limit");
    applies(&portcullis, "max_connections_per_source = 1");
    first.ask(b"still", b"still");
    second.ask(b"here", b"here");
    is_refused(&portcullis, &client, TOO_MANY, "source_connection_limit");
    leave(&portcullis, first);
    is_refused(&portcullis, &client, TOO_MANY, "source_connection_limit");
    leave(&portcullis, second);
    session(&client);
}

#[test]
fn source_above_the_rate_is_denied_and_then_closed() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).trusting(&["127.0.0.0/8"]);
    let portcullis = Portcullis::before(listener.limit("connection_rate_per_source = \"3/h\""));
    let client = portcullis.client();
    for _ in 0..3 {
        drop(session(&client));
    }
    for _ in 0..3 {
        is_refused(&portcullis, &client, TOO_MANY, "rate_limited");
    }
    for _ in 0..3 {
        let denied = cut(&portcullis, &client);
        assert!(denied.is("connection.denied"), "{}", denied.0);
        assert_eq!(denied.reason(), "rate_limited");
        assert_eq!(denied.text("rule"), "ip_addr:127.0.0.0/8");
        assert!(denied.text("detail").contains("3/h (connection_rate_per_source)"), "{}", denied.0);
        assert!(!denied.has("tls_version"), "it has sent a ClientHello: {}", denied.0);
    }
    session(&portcullis.client().from("127.0.0.2"));
    assert_eq!(upstream.connections(), 4, "who is refused does not reach the upstream");
}

#[test]
fn source_above_the_rate_is_admitted_again_later() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).limit("connection_rate_per_source = \"5/s\"");
    let portcullis = Portcullis::before(listener);
    let client = portcullis.client();
    let crowd: Vec<_> = (0..50).map(|_| client.dial()).collect();
    let crowd: Vec<_> = crowd.iter().map(port).collect();
    let is_cut = |event: &Event| event.is("connection.denied") && event.reason() == "rate_limited";
    let cut = portcullis.event("one of them is cut", is_cut);
    assert!(crowd.iter().any(|port| cut.0["source_port"] == *port), "{}", cut.0);
    eventually("it gets in", || client.attempt().1.ok());
}

#[test]
fn psql_above_the_rate_is_denied_once_and_then_closed() {
    let postgres = Postgres::start();
    let listener = Listener::postgres(&postgres).limit("connection_rate_per_source = \"1/h\"");
    let portcullis = Portcullis::before(listener);
    let ask = || run(psql(&conninfo(&portcullis)).args(["-c", "select 6 * 7"]));
    assert_eq!(ask().success(), "42\n");
    let denial = ask();
    assert!(denial.stderr.contains("FATAL:  too many connections in a short time"), "{}", denial.stderr);
    let cut = ask();
    assert_eq!(cut.code, Some(2), "{}", cut.stderr);
    assert!(!cut.stderr.contains("FATAL"), "{}", cut.stderr);
}

#[test]
fn cancel_request_counts_towards_the_rate() {
    let upstream = Upstream::brief();
    let listener = Listener::postgres(&upstream).limit("connection_rate_per_source = \"2/h\"");
    let portcullis = Portcullis::before(listener);
    let packet = cancel(77, &[1, 2, 3, 4]);
    let mut output = Vec::new();
    for _ in 0..5 {
        let mut stream = portcullis.client().dial();
        // It may be closed already.
        let _ = stream.write_all(&packet);
        assert_eq!(read_until_closed(&mut stream), b"");
        let port = port(&stream);
        let event = portcullis.event("its only event", |event| event.0["source_port"] == port);
        output.push(event.text("event").to_owned());
    }
    assert_eq!(output[..2], ["cancel.forwarded"; 2]);
    assert_eq!(output[2..], ["connection.denied"; 3]);
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn tls_cancel_request_above_the_rate_is_not_forwarded() {
    let upstream = Upstream::brief();
    let listener = Listener::postgres(&upstream).limit("connection_rate_per_source = \"1/h\"");
    let portcullis = Portcullis::before(listener);
    let client = portcullis.client().with_ssl_request();
    let packet = cancel(77, &[1, 2, 3, 4]);
    let mut first = client.connect();
    first.send(&packet);
    assert_eq!(first.rest().unwrap(), b"");
    let mut second = client.connect();
    second.send(&packet);
    let fields = error_response(&second.rest().unwrap());
    assert_eq!(fields[&'C'], "53300");
    assert_eq!(portcullis.refusal(second.port()), "rate_limited");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn reload_keeps_the_rates_that_it_does_not_change() {
    let upstream = Upstream::echo();
    let config = |rate: &str, sources: &[&str]| {
        let rate = format!("connection_rate_per_source = \"{rate}\"");
        format!("{ON_SIGHUP}{}", Listener::redis(&upstream).trusting(sources).limit(&rate))
    };
    let portcullis = Portcullis::start(TestDir::new(), config("2/h", &["127.0.0.1"]));
    let client = portcullis.client();
    session(&client);
    session(&client);
    assert!(portcullis.reconfigure(config("2/h", &["127.0.0.1", "127.0.0.2"])).is("reload.applied"));
    is_refused(&portcullis, &client, TOO_MANY, "rate_limited");
    assert!(portcullis.reconfigure(config("1/h", &["127.0.0.1"])).is("reload.applied"));
    session(&client);
    is_refused(&portcullis, &client, TOO_MANY, "rate_limited");
    assert_eq!(cut(&portcullis, &client).reason(), "rate_limited");
}
