//! Real Redis clients with a real Redis server.

use std::process::Command;
use std::thread;
use std::time::Duration;

use redis::{Commands, Connection, TlsCertificates};

use crate::harness::pki::sha256;
use crate::harness::program::{command, run};
use crate::harness::{Listener, Portcullis, Redis, eventually};

/// `redis-cli` that goes through Portcullis and verifies it.
pub(crate) fn cli(portcullis: &Portcullis) -> Command {
    let mut cli = command("redis-cli");
    let port = portcullis.address("main").port().to_string();
    cli.args(["-h", "127.0.0.1", "-p", &port, "--tls", "--cacert"]);
    cli.arg(portcullis.site.path("ca.crt"));
    cli
}

/// The `redis` crate's client, by the same way.
fn client(portcullis: &Portcullis) -> redis::Client {
    let url = format!("rediss://{}", portcullis.address("main"));
    let root_cert = Some(portcullis.site.ca.pem().into_bytes());
    let certificates = TlsCertificates { client_tls: None, root_cert };
    redis::Client::build_with_tls(url, certificates).unwrap()
}

fn connect(portcullis: &Portcullis) -> Connection {
    client(portcullis).get_connection().unwrap()
}

#[test]
fn redis_cli_works() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis));
    assert_eq!(run(cli(&portcullis).arg("PING")).success(), "PONG\n");
    run(cli(&portcullis).args(["SET", "key", "value"])).success();
    assert_eq!(run(redis.cli().args(["GET", "key"])).success(), "value\n");
}

#[test]
fn redis_is_reached_over_its_unix_socket() {
    let redis = Redis::start();
    let socket = format!("unix:{}", redis.socket().display());
    let portcullis = Portcullis::before(Listener::redis(&socket));
    assert_eq!(run(cli(&portcullis).arg("PING")).success(), "PONG\n");
    let opened = portcullis.event("an opening", |event| event.is("connection.opened"));
    assert_eq!(opened.text("upstream"), socket);
}

#[test]
fn value_of_64_mib_is_relayed_unchanged_both_ways() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis));
    let mut connection = connect(&portcullis);
    // The value has no repetition, so the comparison detects lost, doubled and swapped bytes.
    let value: Vec<u8> =
        (0..16 * 1024 * 1024_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let () = connection.set("big", &value).unwrap();
    let back: Vec<u8> = connection.get("big").unwrap();
    assert_eq!(back.len(), value.len());
    assert_eq!(sha256(&back), sha256(&value));
    drop(connection);
    let closed = portcullis.event("the end", |event| event.is("connection.closed"));
    let size = u64::try_from(value.len()).unwrap();
    assert!(closed.number("bytes_in") > size && closed.number("bytes_out") > size);
    assert!(closed.number("bytes_in") < size + 1024 && closed.number("bytes_out") < size + 1024);
}

#[test]
fn long_pipeline_is_answered_in_order() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis));
    let mut pipeline = redis::pipe();
    for number in 0..20_000_u32 {
        pipeline.cmd("ECHO").arg(number);
    }
    let answers: Vec<u32> = pipeline.query(&mut connect(&portcullis)).unwrap();
    assert!(answers.into_iter().eq(0..20_000));
}

#[test]
fn published_messages_reach_a_subscriber() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis));
    let (mut listening, mut talking) = (connect(&portcullis), connect(&portcullis));
    let mut subscription = listening.as_pubsub();
    subscription.subscribe("news").unwrap();
    for number in 0..100 {
        let receivers: u32 = talking.publish("news", number).unwrap();
        assert_eq!(receivers, 1);
        assert_eq!(subscription.get_message().unwrap().get_payload::<u32>().unwrap(), number);
    }
}

#[test]
fn three_hundred_connections_are_served_at_once() {
    let redis = Redis::start();
    let mut portcullis = Portcullis::before(Listener::redis(&redis));
    let client = client(&portcullis);
    let mut connections: Vec<Connection> = (0..300).map(|_| client.get_connection().unwrap()).collect();
    for (number, connection) in connections.iter_mut().enumerate() {
        let () = connection.set(number, number).unwrap();
    }
    for (number, connection) in connections.iter_mut().rev().enumerate() {
        assert_eq!(connection.get::<_, usize>(number).unwrap(), number);
    }
    drop(connections);
    let (code, events) = portcullis.stop();
    assert_eq!(code, Some(0));
    for name in ["connection.opened", "connection.closed"] {
        assert_eq!(events.iter().filter(|event| event.is(name)).count(), 300, "{name}");
    }
}

#[test]
fn many_handshakes_at_once_all_succeed() {
    let redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis));
    let port = portcullis.address("main").port().to_string();
    let mut benchmark = command("redis-benchmark");
    benchmark.args(["-h", "127.0.0.1", "-p", &port, "--tls", "--cacert"]);
    benchmark.arg(portcullis.site.path("ca.crt"));
    let output = run(benchmark.args(["-c", "200", "-n", "10000", "-t", "get", "--csv"])).success();
    assert!(output.contains("\"GET\""), "{output}");
}

#[test]
fn unreachable_upstream_is_reported_to_the_client() {
    let mut redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis));
    redis.kill();
    let mut connection = portcullis.client().connect();
    connection.send(b"PING\r\n");
    let words = String::from_utf8(connection.rest().unwrap()).unwrap();
    assert!(words.starts_with("-LOADING ") && words.ends_with("\r\n"), "{words:?}");
    assert_eq!(words.lines().count(), 1, "{words:?}");
    assert!(!words.contains(&redis.to_string()), "the error contains the address: {words:?}");
    assert_eq!(portcullis.refusal(connection.port()), "upstream_unreachable");

    let output = run(cli(&portcullis).arg("PING")).text();
    assert!(output.contains("LOADING"), "{output}");
}

#[test]
fn restarted_redis_is_used_again() {
    let mut redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis));
    let mut before = portcullis.client().connect();
    before.ask(b"PING\r\n", b"+PONG\r\n");
    redis.kill();
    // The client gets the error at once and may still send. Whether it closes is up to the client.
    before.rest().unwrap();
    let port = before.port();
    drop(before);
    assert_eq!(portcullis.ending(port).reason(), "upstream_closed");

    redis.start_again();
    portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
}

#[test]
fn blocked_client_is_not_timed_out() {
    let redis = Redis::start();
    let listener = Listener::redis(&redis).limit("handshake_timeout = \"3s\"");
    let portcullis = Portcullis::before(listener);
    let mut waiting = portcullis.client().connect();
    waiting.send(b"BLPOP queue 0\r\n");
    // Longer than every timeout of this listener.
    thread::sleep(Duration::from_secs(4));
    eventually("Redis has a blocked client", || {
        run(redis.cli().args(["INFO", "clients"])).text().contains("blocked_clients:1").then_some(())
    });
    run(redis.cli().args(["RPUSH", "queue", "work"])).success();
    assert_eq!(waiting.receive(4), b"*2\r\n");
}
