//! Denials of a flood: some are logged, and the rest is summed up, so that log and audit stay small.

use std::collections::HashMap;

use crate::harness::wire::read_until_closed;
use crate::harness::{Client, Event, Listener, Portcullis, Upstream, eventually};

/// Denied connections of an untrusted source, one after the other.
fn flood(client: &Client, count: u64) {
    for _ in 0..count {
        assert_eq!(read_until_closed(&mut client.dial()), b"");
    }
}

/// The number of logged denials of each source, and the number of those reported as suppressed.
fn count_by_source(events: &[Event]) -> HashMap<String, (u64, u64)> {
    let mut counts: HashMap<_, (u64, u64)> = HashMap::new();
    for event in events {
        let source = || event.text("source").to_owned();
        if event.is("connection.denied") {
            counts.entry(source()).or_default().0 += 1;
        } else if event.is("denials.suppressed") {
            let suppressed = event.number("suppressed");
            assert_eq!(event.text("listener"), "main");
            assert_eq!(event.reason(), "untrusted_source");
            assert!(event.text("detail").starts_with(&format!("{suppressed} more suppressed")), "{}", event.0);
            counts.entry(source()).or_default().1 += suppressed;
        }
    }
    counts
}

#[test]
fn denials_of_a_flood_are_logged_up_to_a_limit_and_summed_up() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let begun = std::time::Instant::now();
    flood(&portcullis.client().from("127.0.0.2"), 3_000);
    flood(&portcullis.client().from("127.0.0.3"), 50);
    let seconds = begun.elapsed().as_secs() + 1;
    // Without further connections.
    let counts = eventually("both are logged or summed up", || {
        let counts = count_by_source(&portcullis.events());
        let all_of = |source: &str| counts.get(source).map(|(lines, suppressed)| lines + suppressed);
        ((all_of("127.0.0.2"), all_of("127.0.0.3")) == (Some(3_000), Some(50))).then_some(counts)
    });
    let (lines, _) = counts["127.0.0.2"];
    assert!((500..=500 + seconds).contains(&lines), "{lines} lines in {seconds} s");
    assert_eq!(counts["127.0.0.3"], (50, 0));
    let sums = portcullis.events().iter().filter(|event| event.is("denials.suppressed")).count();
    assert!(sums as u64 <= 2 + seconds / 2, "{sums} in {seconds} s");
    upstream.assert_untouched();
}

#[test]
fn flood_is_summed_up_at_shutdown() {
    let upstream = Upstream::silent();
    let mut portcullis = Portcullis::before(Listener::redis(&upstream));
    flood(&portcullis.client().from("127.0.0.2"), 900);
    let (code, events) = portcullis.stop();
    assert_eq!(code, Some(0));
    let (lines, suppressed) = count_by_source(&events)["127.0.0.2"];
    assert_eq!(lines + suppressed, 900);
    assert!(suppressed > 100, "{lines} lines");
}

#[test]
fn flood_is_suppressed_in_the_audit_file() {
    let upstream = Upstream::silent();
    let site = crate::harness::TestDir::new();
    let config = format!("log.audit_file = \"audit.jsonl\"\n{}", Listener::redis(&upstream));
    let mut portcullis = Portcullis::start(site, config);
    flood(&portcullis.client().from("127.0.0.2"), 1_500);
    portcullis.stop();
    let text = std::fs::read_to_string(portcullis.site.path("audit.jsonl")).unwrap();
    let events: Vec<_> = text.lines().map(|line| Event(serde_json::from_str(line).unwrap())).collect();
    let (lines, suppressed) = count_by_source(&events)["127.0.0.2"];
    assert_eq!(lines + suppressed, 1_500);
    assert!(lines < 600, "{lines} lines");
}

#[test]
fn events_of_admitted_clients_are_never_suppressed() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream).key("enforcement = \"observe\""));
    let client = portcullis.client().from("127.0.0.2");
    for _ in 0..150 {
        client.connect().ask(b"hello", b"hello");
    }
    eventually("all are logged", || {
        let events = portcullis.events();
        let opened = events.iter().filter(|event| event.0["would_deny"] == "untrusted_source").count();
        let closed = events.iter().filter(|event| event.is("connection.closed")).count();
        ((opened, closed) == (150, 150)).then_some(())
    });
    let of_denials = |event: &Event| event.is("connection.denied") || event.is("denials.suppressed");
    assert!(!portcullis.events().iter().any(of_denials));
}
