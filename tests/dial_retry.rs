//! `dial_retry`: while an upstream refuses connections its clients are held. The error they get then makes them retry.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::postgres::client;
use crate::harness::program::{Running, free_address, run, tied};
use crate::harness::{Listener, Portcullis, Postgres, Redis, TestDir, Upstream, eventually};
use crate::postgres::{conninfo, psql};
use crate::reload::ON_SIGHUP;

/// Longer than any test here takes.
const LONG: &str = "dial_retry = \"10m\"";

/// The time in which a database restarts.
const OUTAGE: Duration = Duration::from_millis(1500);

#[test]
fn client_waits_while_the_upstream_restarts() {
    let mut redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis).upstream(LONG));
    redis.kill();
    // One has sent a command, one has sent nothing, and one has sent a command and closed its side.
    let mut asking = portcullis.client().connect();
    asking.send(b"PING\r\n");
    let mut silent = portcullis.client().connect();
    let mut ending = portcullis.client().connect();
    ending.send(b"PING\r\n");
    ending.finish_sending();
    thread::sleep(OUTAGE);
    redis.start_again();
    asking.ask(b"PING\r\n", b"+PONG\r\n+PONG\r\n");
    silent.ask(b"PING\r\n", b"+PONG\r\n");
    assert_eq!(ending.rest().unwrap(), b"+PONG\r\n");
    assert!(!portcullis.events().iter().any(|event| event.is("connection.denied")));
}

#[test]
fn postgres_client_of_an_upstream_that_restarts_waits_and_is_served() {
    let mut postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres).upstream(LONG));
    postgres.signal("INT");
    postgres.ends();
    let mut psql = psql(&conninfo(&portcullis));
    let psql = Running::start(psql.args(["-c", "select 6 * 7"]).stdout(Stdio::piped()));
    thread::sleep(OUTAGE);
    postgres.start_again();
    let mut psql = psql;
    assert_eq!(psql.exit_code(), Some(0));
}

#[test]
fn refusing_upstream_fails_pg_isready_and_makes_libpq_try_its_next_host() {
    let postgres = Postgres::start();
    let away = Portcullis::before(Listener::postgres(free_address()));
    let there = Portcullis::before(Listener::postgres(&postgres));
    let is_ready = |portcullis: &Portcullis| {
        let port = portcullis.address("main").port().to_string();
        run(client("pg_isready").args(["-h", "127.0.0.1", "-p", &port])).code
    };
    assert_eq!((is_ready(&away), is_ready(&there)), (Some(1), Some(0)));

    let [first, second] = [&away, &there].map(|portcullis| portcullis.address("main").port());
    let both = format!("host=127.0.0.1,127.0.0.1 port={first},{second} user=app dbname=postgres sslmode=require");
    assert_eq!(run(psql(&both).args(["-c", "select 6 * 7"])).success(), "42\n");
    assert_eq!(away.event("a denial", |event| event.is("connection.denied")).reason(), "upstream_unreachable");
}

#[test]
fn held_client_that_closes_is_released() {
    for listener in [Listener::redis(free_address()), Listener::tcp(free_address())] {
        let portcullis = Portcullis::before(listener.upstream(LONG).limit("max_connections = 1"));
        let mut first = portcullis.client().connect();
        portcullis.event("the first one has been dialled for", |line| line.0["message"] == "upstream unhealthy");
        let mut second = portcullis.client().connect();
        second.rest().unwrap();
        assert_eq!(portcullis.refusal(second.port()), "connection_limit", "who is held counts");
        first.hang_up();
        assert_eq!(portcullis.refusal(first.port()), "client_closed");
    }
}

#[test]
fn held_client_is_authorized_again() {
    let upstream = Upstream::echo();
    let config = |upstream: &dyn std::fmt::Display, source: &str| {
        let listener = Listener::redis(upstream).trusting(&[source]).upstream(LONG);
        format!("{ON_SIGHUP}{listener}")
    };
    let away = free_address();
    let portcullis = Portcullis::start(TestDir::new(), config(&away, "127.0.0.0/8"));
    let mut client = portcullis.client().connect();
    client.send(b"hello");
    assert!(portcullis.reconfigure(config(&upstream, "127.0.0.0/8")).is("reload.applied"));
    assert_eq!(client.receive(5), b"hello", "the upstream has moved");

    assert!(portcullis.reconfigure(config(&away, "127.0.0.0/8")).is("reload.applied"));
    let mut client = portcullis.client().connect();
    let mut other = portcullis.client().connect();
    assert!(portcullis.reconfigure(config(&away, "10.0.0.0/8")).is("reload.applied"));
    for client in [&mut client, &mut other] {
        assert_eq!(client.rest().unwrap(), b"-DENIED this connection is not allowed\r\n");
        assert_eq!(portcullis.refusal(client.port()), "untrusted_source");
    }
}

#[test]
fn held_clients_share_one_dial() {
    // It accepts and closes connections, which counts as a refusal if it is queried for its role.
    let upstream = Upstream::new(crate::harness::client::reset);
    let listener = Listener::redis(&upstream).upstream("target = \"master\"");
    let portcullis = Portcullis::before(listener);
    let client = portcullis.client();
    let begun = Instant::now();
    let crowd: Vec<_> = (0..40).map(|_| client.connect()).collect();
    for mut connection in crowd {
        let words = connection.rest().unwrap();
        assert_eq!(words, b"-LOADING the database behind this proxy cannot be reached\r\n");
        let denied = portcullis.ending(connection.port());
        assert_eq!(denied.reason(), "upstream_unreachable");
        assert!(denied.text("detail").ends_with("retried for 2s (dial_retry)"), "{}", denied.0);
    }
    // Separately each would have dialled about ten times.
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!(upstream.connections() < 40 + 20 * seconds, "{}", upstream.connections());
}

#[test]
fn disabled_dial_retry_fails_the_client_at_once() {
    let portcullis = Portcullis::before(Listener::redis(free_address()).upstream("dial_retry = \"0s\""));
    let mut client = portcullis.client().connect();
    assert!(client.rest().unwrap().starts_with(b"-LOADING "));
    let denied = portcullis.ending(client.port());
    assert!(denied.number("duration_ms") < 1900 && !denied.text("detail").contains("dial_retry"), "{}", denied.0);
}

/// Debian's python3-redis, which scripts/install-test-tools installs.
fn python(script: &str, portcullis: &Portcullis) -> Command {
    let mut python = tied("/usr/bin/python3".as_ref());
    python.args(["-c", script, &portcullis.address("main").port().to_string()]);
    python.arg(portcullis.site.path("ca.crt"));
    python
}

const REDIS_PY: &str = "
import redis, sys
from redis.backoff import ConstantBackoff
from redis.retry import Retry
client = redis.Redis(port=int(sys.argv[1]), ssl=True, ssl_ca_certs=sys.argv[2], ssl_check_hostname=False,
                     retry=Retry(ConstantBackoff(0.1), 100), retry_on_error=[redis.ConnectionError])
print(client.set('number', 42), flush=True)
while True:
    number = client.get('number')
    if number is None:
        break
print('restarted')
";

/// The outage lasts longer than a client is held, so that the client gets an error, too.
#[test]
fn redis_py_survives_an_outage_as_it_does_without_a_proxy() {
    let mut redis = Redis::start();
    let portcullis = Portcullis::before(Listener::redis(&redis).upstream("dial_retry = \"500ms\""));
    let mut python = python(REDIS_PY, &portcullis);
    let mut python = Running::start(python.stdout(Stdio::piped()).stderr(Stdio::piped()));
    // Otherwise it would set the number after the outage, and wait for ever for its loss.
    let mut lines = BufReader::new(python.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "True");
    redis.kill();
    let denials = || portcullis.events().iter().filter(|event| event.is("connection.denied")).count();
    eventually("it gets two errors", || (denials() >= 2).then_some(()));
    redis.start_again();
    let code = python.exit_code();
    let output = std::io::read_to_string(python.0.stderr.take().unwrap()).unwrap();
    assert_eq!(code, Some(0), "{output}");
}
