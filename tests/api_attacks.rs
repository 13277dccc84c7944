//! Attacks on the admin API and the metrics: what one caller does must neither change nor delay what others get.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::api::{OPERATOR, OWNER, Operated, VIEWER};
use crate::harness::portcullis::ADMIN;
use crate::harness::{Listener, Portcullis, TestDir};

const SOURCES: &str = "/v1/listeners/main/sources";

/// Much less than it takes until all idle connections have timed out one after the other.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

#[test]
fn slow_large_bodies_hold_up_no_small_change() {
    let operated = Operated::start();
    let operator = operated.tcp().with_token(OPERATOR);
    let slow: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(operated.address).unwrap();
            stream.write_all(operator.head("PUT", SOURCES, "", 1 << 20).as_bytes()).unwrap();
            stream.write_all(b"{").unwrap();
            stream
        })
        .collect();
    for api in [operator, operated.unix()] {
        api.post(SOURCES, &json!({ "rules": [{ "type": "ip_addr", "value": "10.0.0.1" }] })).expect(201);
    }
    // Their bodies are still awaited.
    for mut stream in slow {
        stream.set_nonblocking(true).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn change_that_would_make_the_file_unreadable_is_refused() {
    let limit = 64 << 20;
    let rule = "[[rule]]\ntype = \"ip_addr\"\nvalue = \"127.0.0.1\"\n";
    let rules = format!("# {}\n\n{rule}", "x".repeat(limit - 4 - rule.len()));
    assert_eq!(rules.len(), limit);
    let operated = Operated::with_rules(&rules);
    let reply = operated.unix().post(SOURCES, &json!({ "rules": [{ "type": "ip_addr", "value": "10.0.0.1" }] }));
    let message = reply.expect_error(422, "unprocessable_entity");
    assert!(message.contains("64 MiB"), "{message}");
    assert_eq!(std::fs::metadata(operated.portcullis.site.path("main.sources")).unwrap().len(), limit as u64);
}

#[test]
fn too_many_rules_are_refused() {
    let operated = Operated::start();
    let body = format!("{{\"rules\":[{}]}}", vec![r#"{"type":"ip_addr","value":"10.0.0.1"}"#; 200_001].join(","));
    let message =
        operated.unix().request("PUT", SOURCES, "", body.as_bytes()).expect_error(422, "unprocessable_entity");
    assert!(message.contains("at most 200000"), "{message}");
}

#[test]
fn error_repeats_only_a_part_of_a_long_key() {
    let operated = Operated::start();
    let body = format!("{{\"{}\":1}}", "k".repeat(1 << 20));
    let message =
        operated.unix().request("PUT", SOURCES, "", body.as_bytes()).expect_error(422, "unprocessable_entity");
    assert!(message.len() <= 64 << 10, "{}", message.len());
}

#[test]
fn files_of_the_machine_are_named_over_the_unix_socket_only() {
    let operated = Operated::start();
    let secret = operated.portcullis.site.path("secret");
    operated.portcullis.site.write("secret", "listen = \"a password\"\n");
    let body = json!({ "file": secret });
    for token in [OPERATOR, OWNER] {
        let reply = operated.tcp().with_token(token).post("/v1/reload?plan=true", &body);
        let message = reply.expect_error(403, "forbidden");
        assert!(message.contains("Unix socket"), "{message}");
    }
    operated.unix().post("/v1/reload?plan=true", &body).expect_error(422, "reload_rejected");
    operated.tcp().with_token(OPERATOR).post("/v1/reload?plan=true", &json!({})).expect(200);
}

#[test]
fn empty_list_of_networks_is_not_a_token_for_all() {
    let operated = Operated::start();
    let body = json!({ "name": "nowhere", "role": "viewer", "sources": [] });
    let message = operated.unix().post("/v1/tokens", &body).expect_error(422, "unprocessable_entity");
    assert!(message.contains("from nowhere"), "{message}");
}

#[test]
fn request_without_a_token_learns_nothing_whatever_its_form() {
    let operated = Operated::start();
    for target in [
        "/v1/status",
        "//v1/status",
        "/%2Fv1/status",
        "/./v1/status",
        "/x/../v1/status",
        "/v1%2Fstatus",
        "http://localhost/v1/status",
        "*",
    ] {
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "BREW"] {
            let request = format!("{method} {target} HTTP/1.1\r\nHost: a\r\nX-HTTP-Method-Override: GET\r\n\r\n");
            let reply = operated.tcp().raw(request.as_bytes());
            let line = String::from_utf8_lossy(&reply);
            let status = line.split(' ').nth(1).unwrap_or_default();
            assert!(["400", "401", "429"].contains(&status), "{method} {target}: {line}");
        }
    }
    let twice = format!("Authorization: Bearer {OWNER}\r\n");
    let reply = operated.tcp().with_token(OWNER).request("GET", "/v1/tokens", &twice, b"");
    assert!([401, 429].contains(&reply.status), "{}", reply.status);
    operated.tcp().with_token(VIEWER).get("/v1/status").expect(200);
}

#[test]
fn idle_connections_of_one_source_keep_no_other_from_a_health_check() {
    let site = TestDir::new();
    let config = format!("{ADMIN}admin.metrics = \"127.0.0.1:0\"\n{}", Listener::tcp("127.0.0.1:1").without_tls());
    let portcullis = Portcullis::start(site, config);
    let serving = portcullis.event("the metrics are served", |event| event.0["message"] == "serving metrics");
    let address: SocketAddr = serving.text("address").parse().unwrap();
    let _idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    let other = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    other.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    other.connect(&address.into()).unwrap();
    let mut other = TcpStream::from(other);
    other.set_read_timeout(Some(PROBE_TIMEOUT)).unwrap();
    other.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = String::new();
    other.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
