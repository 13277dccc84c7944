//! The health of the upstream in `status`: the result of the last dial, updated without a client.

use serde_json::Value;

use crate::harness::hosts;
use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{self, free_port, run};
use crate::harness::wire::{PROTOCOL_3_0, startup};
use crate::harness::{Event, Listener, Portcullis, Postgres, Redis, TestDir, Upstream, eventually};
use crate::upstream_selection::upstreams;

fn start(listener: &Listener) -> Portcullis {
    Portcullis::start(TestDir::new(), format!("{ADMIN}{listener}"))
}

/// The health of the upstream in `status`, and its first address.
fn status(portcullis: &Portcullis) -> (String, Value) {
    let listener = portcullis.status();
    (listener["upstream_health"].as_str().unwrap().to_owned(), listener["upstreams"][0].clone())
}

/// The text output of `status`.
fn words(portcullis: &Portcullis) -> String {
    run(executable().args(["status", "--socket"]).arg(portcullis.site.path("admin.sock"))).success()
}

/// Sends a command as a client, and expects the error for an unreachable upstream.
fn refused(portcullis: &Portcullis) {
    let mut client = portcullis.client().connect();
    client.send(b"PING\r\n");
    assert!(client.rest().unwrap().starts_with(b"-"));
    assert!(portcullis.refusal(client.port()).starts_with("upstream_"));
}

fn eventually_healthy(portcullis: &Portcullis) -> Value {
    eventually("it is healthy again", || Some(status(portcullis)).filter(|(health, _)| health == "healthy")).1
}

#[test]
fn single_redis_recovers_without_a_client() {
    let mut redis = Redis::start();
    let portcullis = start(&Listener::redis(&redis));
    portcullis.address("main");
    let (health, unknown) = status(&portcullis);
    assert_eq!(
        (health.as_str(), &unknown["healthy"], &unknown["health"]),
        ("unknown", &Value::Null, &"unknown".into())
    );
    assert!(words(&portcullis).contains("unknown, not dialled yet"), "{}", words(&portcullis));

    portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    let (health, healthy) = status(&portcullis);
    assert_eq!(
        (health.as_str(), &healthy["healthy"], &healthy["health"]),
        ("healthy", &true.into(), &"healthy".into())
    );
    assert_eq!((&healthy["last_dial"]["result"], &healthy["error"]), (&"connected".into(), &Value::Null));

    redis.kill();
    refused(&portcullis);
    let (health, unhealthy) = status(&portcullis);
    assert_eq!((health.as_str(), &unhealthy["healthy"]), ("unhealthy", &false.into()));
    assert!(unhealthy["since"].is_string() && unhealthy["last_dial"]["at"].is_string(), "{unhealthy}");
    for error in [&unhealthy["error"], &unhealthy["last_dial"]["error"]] {
        assert!(error.as_str().unwrap().contains("Connection refused"), "{unhealthy}");
    }
    assert!(words(&portcullis).contains("UNHEALTHY for "), "{}", words(&portcullis));
    refused(&portcullis);
    portcullis.assert_count("it is logged once", 1, |line| line.0["message"] == "upstream unhealthy");

    redis.start_again();
    let again = eventually_healthy(&portcullis);
    assert_eq!((&again["healthy"], &again["since"], &again["error"]), (&true.into(), &Value::Null, &Value::Null));
    assert_eq!(again["last_dial"]["result"], "connected");
    let upstream = redis.to_string();
    let is_logged = |line: &Event| line.0["message"] == "upstream recovered" && line.0["upstream"] == upstream.as_str();
    portcullis.event("it is logged", is_logged);
}

#[test]
fn single_postgres_recovers_without_a_client() {
    let port = free_port();
    let portcullis = start(&Listener::postgres(format!("127.0.0.1:{port}")));
    let mut client = portcullis.client().with_ssl_request().connect();
    client.send(&startup(PROTOCOL_3_0, &[("user", "app")]));
    assert_eq!(portcullis.refusal(client.port()), "upstream_unreachable");
    assert_eq!(status(&portcullis).0, "unhealthy");
    let answering = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let _accepting = std::thread::spawn(move || {
        for mut stream in answering.incoming().map_while(Result::ok) {
            let mut request = [0; 8];
            if std::io::Read::read_exact(&mut stream, &mut request).is_ok() {
                let _ = std::io::Write::write_all(&mut stream, b"N");
            }
        }
    });
    eventually_healthy(&portcullis);
}

#[test]
fn session_makes_a_single_postgres_healthy() {
    let server = Postgres::start();
    let portcullis = start(&Listener::postgres(&server));
    let mut client = portcullis.client().with_ssl_request().connect();
    client.send(&startup(PROTOCOL_3_0, &[("user", "postgres")]));
    assert_eq!(client.receive(1), b"R");
    let (health, known) = status(&portcullis);
    assert_eq!((health.as_str(), &known["last_dial"]["result"]), ("healthy", &"connected".into()));
}

#[test]
fn upstream_whose_tls_fails_is_unhealthy() {
    let upstream = Upstream::new(drop);
    let portcullis = start(&Listener::redis(&upstream).upstream("tls = \"require\""));
    refused(&portcullis);
    let (health, known) = status(&portcullis);
    assert_eq!(
        (health.as_str(), &known["health"], &known["last_dial"]["result"]),
        ("unhealthy", &"unhealthy".into(), &"failed".into())
    );
}

#[test]
fn name_that_resolves_again_has_its_addresses_dialled_without_a_client() {
    let (site, redis) = (TestDir::new(), Redis::start());
    hosts::name(&site, &[("other.test", &["127.0.0.1"])]);
    let listener = Listener::redis(format!("db.test:{}", redis.port()));
    let Some(portcullis) = hosts::start(site, format!("{ADMIN}{listener}")) else { return };
    refused(&portcullis);
    let (health, known) = status(&portcullis);
    assert_eq!((health.as_str(), &known["socket"], &known["healthy"]), ("unhealthy", &Value::Null, &false.into()));
    hosts::name(&portcullis.site, &[("db.test", &["127.0.0.1"])]);
    let known = eventually_healthy(&portcullis);
    assert_eq!(known["socket"], redis.to_string());
}

#[test]
fn name_with_a_new_address_has_it_dialled_without_a_client() {
    let (site, redis) = (TestDir::new(), Redis::start());
    hosts::name(&site, &[("db.test", &["127.0.0.30"])]);
    let listener = Listener::redis(format!("db.test:{}", redis.port()));
    let Some(portcullis) = hosts::start(site, format!("{ADMIN}{listener}")) else { return };
    refused(&portcullis);
    assert_eq!(status(&portcullis).0, "unhealthy");
    hosts::name(&portcullis.site, &[("db.test", &["127.0.0.1"])]);
    let known = eventually_healthy(&portcullis);
    assert_eq!(known["socket"], redis.to_string());
}

#[test]
fn shortage_of_descriptors_does_not_make_an_upstream_unhealthy() {
    let (one, two) = (Redis::start(), Redis::start());
    for upstreams_in_config in [format!("\"{one}\""), format!("[\"{one}\", \"{two}\"]")] {
        let upstream = format!("upstream = {upstreams_in_config}");
        let config = format!("{ADMIN}{}", Listener::redis("UPSTREAM"));
        let portcullis = Portcullis::start(TestDir::new(), config.replace("upstream = \"UPSTREAM\"", &upstream));
        let client = portcullis.client();
        client.connect().ask(b"PING\r\n", b"+PONG\r\n");
        let before = upstreams(&portcullis);
        assert_eq!((&before[0]["health"], &before[0]["last_dial"]["result"]), (&"healthy".into(), &"connected".into()));

        let connections = |count: u64| {
            let has = || portcullis.ask("GET", "/v1/status").1["descriptors"]["connections"] == count;
            eventually("so many connections", || has().then_some(()));
        };
        connections(0);
        // Accepted, and not dialled for yet; then no descriptor is left.
        let early = client.dial();
        connections(1);
        let number = portcullis.process.0.id().to_string();
        let limit = |limit: &str| {
            run(program::command("prlimit").args(["--pid", &number, &format!("--nofile={limit}:")])).success()
        };
        limit("8");
        let mut early = client.secure(early).unwrap();
        let denied = portcullis.ending(early.port());
        assert_eq!(denied.reason(), "upstream_unreachable");
        assert!(denied.text("detail").contains("Too many open files"), "{}", denied.0);
        assert!(early.rest().unwrap().starts_with(b"-"));
        limit("1024");

        let after = upstreams(&portcullis);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((&after["health"], &after["since"]), (&before["health"], &Value::Null), "{after}");
            assert_eq!(after["last_dial"]["result"], "local_shortage", "{after}");
        }
        client.connect().ask(b"PING\r\n", b"+PONG\r\n");
        assert_eq!(portcullis.events().iter().filter(|event| event.0["message"] == "upstream unhealthy").count(), 0);
    }
}
