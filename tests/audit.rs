//! Audit events: their fields, the audit file, and what never appears in them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use portcullis::internals::timestamp;
use serde_json::Value;
use time::OffsetDateTime;

use crate::harness::client::port;
use crate::harness::program::free_address;
use crate::harness::{Event, Listener, Portcullis, Request, TestDir, Upstream, eventually, wire};

/// One connection of each kind: admitted, from an untrusted source, plaintext, closed at once. Returns their source ports.
fn mixed_company(portcullis: &Portcullis) -> Vec<u16> {
    let mut inside = portcullis.client().connect();
    inside.ask(b"hello", b"hello");
    let mut untrusted = portcullis.client().from("127.0.0.2").dial();
    wire::read_until_closed(&mut untrusted);
    let mut plain = portcullis.client().dial();
    plain.write_all(b"PING\r\n").unwrap();
    wire::read_until_closed(&mut plain);
    let brief = portcullis.client().dial();
    let ports = vec![inside.port(), port(&untrusted), port(&plain), port(&brief)];
    drop(brief);
    inside.finish_sending();
    inside.rest().unwrap();
    for port in &ports {
        portcullis.ending(*port);
    }
    ports
}

#[test]
fn connection_has_one_denied_or_one_opened_and_one_closed_event() {
    let upstream = Upstream::echo();
    let mut portcullis = Portcullis::before(Listener::redis(&upstream));
    let ports: Vec<u16> = (0..5).flat_map(|_| mixed_company(&portcullis)).collect();
    let (_, events) = portcullis.stop();
    for port in ports {
        let own: Vec<&str> = events
            .iter()
            .filter(|event| event.0["source_port"] == port && event.has("event"))
            .map(|event| event.text("event"))
            .collect();
        let fine = [vec!["connection.denied"], vec!["connection.opened", "connection.closed"]];
        assert!(fine.contains(&own), "{own:?}");
    }
}

#[test]
fn event_is_a_flat_object_with_its_fields() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let ports = mixed_company(&portcullis);
    let opened = portcullis.opened(ports[0]);
    let closed = portcullis.ending(ports[0]);
    let session = opened.0["session"].clone();
    assert!(!session.is_null() && closed.0["session"] == session, "{}", closed.0);
    let fields = ["ts", "listener", "source", "source_port", "rule", "tls_version", "cipher", "upstream"];
    for event in [&opened, &closed] {
        for field in fields {
            assert!(event.has(field), "no {field} in {}", event.0);
        }
    }
    for field in ["reason", "bytes_in", "bytes_out", "duration_ms"] {
        assert!(closed.has(field), "no {field} in {}", closed.0);
    }
    assert_eq!(opened.text("upstream"), upstream.to_string());
    for port in &ports[1..] {
        let denied = portcullis.ending(*port);
        for field in ["ts", "listener", "source", "source_port", "reason"] {
            assert!(denied.has(field), "no {field} in {}", denied.0);
        }
    }
    for event in portcullis.events().iter().filter(|event| event.0["target"] == "audit") {
        let object = event.0.as_object().expect("an object");
        assert!(object.values().all(|value| !value.is_object()), "{}", event.0);
        let age = OffsetDateTime::now_utc() - timestamp::parse(event.text("ts")).unwrap();
        assert!(age.whole_seconds().abs() < 60, "{}", event.0);
    }
}

/// The events in a file of JSON lines.
fn lines(file: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn audit_file_has_the_events_of_the_log() {
    let upstream = Upstream::echo();
    let config = format!("log.audit_file = \"audit.log\"\n{}", Listener::redis(&upstream));
    let mut portcullis = Portcullis::start(TestDir::new(), config);
    mixed_company(&portcullis);
    let (_, events) = portcullis.stop();
    let logged = events.iter().filter(|event| event.0["target"] == "audit").map(|event| {
        let mut object = event.0.as_object().unwrap().clone();
        object.remove("target");
        object.remove("level");
        Value::Object(object).to_string()
    });
    let logged: BTreeSet<String> = logged.collect();
    let filed = lines(&portcullis.site.path("audit.log")).iter().map(Value::to_string).collect();
    assert!(logged.len() >= 5, "{logged:?}");
    assert_eq!(logged, filed);
}

#[test]
fn audit_file_is_reopened_on_sighup() {
    let upstream = Upstream::echo();
    let config = format!("log.audit_file = \"audit.log\"\n{}", Listener::redis(&upstream));
    let portcullis = Portcullis::start(TestDir::new(), config);
    let (file, rotated) = (portcullis.site.path("audit.log"), portcullis.site.path("audit.log.1"));
    let arrives = |file: &std::path::Path, port: u16| {
        eventually("the event is in the file", || {
            lines(file).iter().any(|event| event["source_port"] == port).then_some(())
        });
    };
    let ports = mixed_company(&portcullis);
    arrives(&file, ports[1]);
    fs::rename(&file, &rotated).unwrap();
    portcullis.applies(|| portcullis.hang_up());
    let ports = mixed_company(&portcullis);
    arrives(&file, ports[1]);
    assert!(!lines(&rotated).iter().any(|event| event["source_port"] == ports[1]));
}

#[test]
fn certificate_that_expires_soon_is_reported() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let soon = site.ca.issue(Request::server(&["soon.test"]).valid(-10, 5));
    site.install("soon", &soon);
    let listener = Listener::redis(&upstream).certificates(&["server", "soon"]);
    let mut portcullis = Portcullis::start(site, listener);
    let event = portcullis.event("a warning", |event| event.is("certificate.expiring"));
    assert!(event.0.to_string().contains(&soon.sha256()), "{}", event.0);
    // The other one has a year.
    let (_, events) = portcullis.stop();
    assert_eq!(events.iter().filter(|event| event.is("certificate.expiring")).count(), 1);
}

#[test]
fn payload_and_keys_are_never_logged() {
    let upstream = Upstream::echo();
    let config = format!("log.level = \"trace\"\n{}", Listener::redis(&upstream));
    let mut portcullis = Portcullis::start(TestDir::new(), config);
    let password = b"AUTH correct-horse-battery-staple\r\n";
    portcullis.client().connect().ask(password, password);
    let mut plain = portcullis.client().dial();
    plain.write_all(password).unwrap();
    wire::read_until_closed(&mut plain);
    let key = fs::read_to_string(portcullis.site.path("server.key")).unwrap();
    let (_, events) = portcullis.stop();
    for event in events {
        let text = event.0.to_string();
        assert!(!text.contains("battery"), "{text}");
        assert!(!text.contains(key.lines().nth(1).unwrap()), "{text}");
    }
}

#[test]
fn newline_in_a_certificate_forges_no_log_line() {
    const EVIL: &str = "app\n{\"event\":\"forged\"}\r\nforged\x1b[2J\0";
    let upstream = Upstream::echo();
    for format in ["json", "text"] {
        let site = TestDir::new();
        let leaf = site.ca.issue(Request::client(EVIL));
        let address = free_address();
        let listener = Listener::redis(&upstream)
            .on(&[&address.to_string()])
            .tls("client_auth = \"required\"")
            .tls("client_ca = \"ca.crt\"");
        let audit = "log.audit_file = \"audit.log\"";
        let config = format!("log.format = \"{format}\"\n{audit}\n{listener}");
        let mut portcullis = Portcullis::start(site, config);
        portcullis.event("the line ready", |event| event.0.to_string().contains("ready"));
        let client = crate::harness::Client::new(address, &portcullis.site.ca).showing(leaf);
        // Whether such a name is admitted does not matter here.
        let _ = client.attempt();
        let (_, events) = portcullis.stop();
        let filed = fs::read_to_string(portcullis.site.path("audit.log")).unwrap();
        assert!(filed.contains("forged"), "the name is not in the audit: {filed}");
        for line in filed.lines() {
            let event = Event(serde_json::from_str(line).expect("an object a line"));
            assert!(!event.is("forged"));
        }
        for event in &events {
            let line = event.0.as_str().map_or_else(|| event.0.to_string(), str::to_owned);
            assert!(!line.starts_with("forged") && !line.starts_with("{\"event\":\"forged"), "{line}");
            assert!(!line.contains(['\x1b', '\0']), "{line:?}");
            assert_eq!(event.0.is_string(), format == "text", "{line}");
        }
    }
}

#[test]
fn newline_in_a_server_name_forges_no_log_line() {
    let upstream = Upstream::silent();
    let mut portcullis = Portcullis::before(Listener::redis(&upstream));
    let client = portcullis.client().named("abcdefgh.example");
    let mut hello = Vec::new();
    client.tls().write_tls(&mut hello).unwrap();
    let place = hello.windows(8).position(|window| window == b"abcdefgh").expect("the name is there");
    hello[place..place + 8].copy_from_slice(b"a\n{\"\0\r\x1bx");
    let mut stream = client.dial();
    stream.write_all(&hello).unwrap();
    let port = port(&stream);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    wire::read_until_closed(&mut stream);
    portcullis.ending(port);
    let (_, events) = portcullis.stop();
    assert!(events.iter().all(|event| event.0.is_object()), "{events:?}");
    assert_eq!(events.iter().filter(|event| event.ends(port)).count(), 1);
    upstream.assert_untouched();
}
