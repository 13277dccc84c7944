//! Dates far in the past and future, and a wall clock that is set while the program runs.

use std::io::{Read, Write};

use rustls::HandshakeKind;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::upstream::showing;
use crate::harness::{
    Authority, Client, ClockedPortcullis, Listener, Portcullis, Request, TestDir, Upstream, eventually, program,
};
use crate::reload::ON_SIGHUP;
use crate::revocation::{assert_ended, assert_lives, wanting};

/// Rules that expire far in the future at a negative UTC offset, and one that expired long ago at a positive offset.
const ENDS: [(&str, &str); 4] = [
    ("127.0.0.1", "9999-12-31T23:59:59-05:00"),
    ("127.0.0.2", "9999-12-31 23:59:59.999999999-23:59"),
    ("127.0.0.3", "9999-12-31T23:59:59Z"),
    ("127.0.0.4", "0000-01-01T00:00:00+23:59"),
];

fn rules() -> String {
    let rule = |(source, end)| format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"{source}\"\nexpires_at = {end}\n");
    ENDS.map(rule).concat()
}

fn with_sources_file(upstream: &Upstream) -> String {
    format!("{ON_SIGHUP}{}", Listener::redis(upstream).trusting(&["127.0.1.1"]).key("sources_file = \"sources.toml\""))
}

#[test]
fn expiry_beyond_the_year_9999_in_a_reload_trusts_the_source() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    site.write("sources.toml", "rule = []\n");
    let mut portcullis = Portcullis::start(site, with_sources_file(&upstream));
    let from = |source: &str| portcullis.client().from(source).attempt();
    let before = from("127.0.1.1").1.unwrap();
    for rules in [rules(), "rule = []\n".to_owned(), rules()] {
        // Also removes the rules again, because the audit names added and removed rules.
        portcullis.applies(|| {
            portcullis.site.replace("sources.toml", rules);
            portcullis.hang_up();
        });
    }
    assert_lives(before);
    for source in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        assert_lives(from(source).1.unwrap());
    }
    let (port, expired) = from("127.0.0.4");
    expired.unwrap_err();
    let denied = portcullis.ending(port);
    assert_eq!(denied.reason(), "untrusted_source");
    assert!(denied.text("detail").contains("0000-01-01T00:00:00Z"), "{}", denied.0);
    assert_eq!(portcullis.stop().0, Some(0));
}

#[test]
fn expiry_beyond_the_year_9999_in_check_is_shown_in_utc() {
    let site = TestDir::new();
    site.write("sources.toml", rules());
    site.write("portcullis.toml", with_sources_file(&Upstream::echo()));
    let check = |options: &[&str]| {
        let mut command = executable();
        command.arg("check").args(options).arg("-c").arg(site.path("portcullis.toml"));
        program::run(&mut command).success()
    };
    let table = check(&[]);
    assert_eq!(table.matches("until 9999-12-31T23:59:59Z").count(), 3, "{table}");
    assert!(table.contains("EXPIRED 0000-01-01T00:00:00Z"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&check(&["--json"])).unwrap();
    let expired: Vec<_> =
        json["listeners"][0]["sources"].as_array().unwrap().iter().map(|rule| &rule["expired"]).collect();
    assert_eq!(expired, [false, false, false, false, true], "{json}");
}

#[test]
fn longest_durations_in_use_serve_sessions() {
    const MAX_DURATION: &str = "3650d";
    let upstream = Upstream::echo();
    let limits = ["handshake_timeout", "idle_timeout", "half_close_timeout", "dead_peer_timeout"];
    let listener = limits
        .iter()
        .fold(Listener::redis(&upstream), |listener, key| listener.limit(&format!("{key} = \"{MAX_DURATION}\"")))
        .upstream(&format!("connect_timeout = \"{MAX_DURATION}\""))
        .upstream(&format!("dial_retry = \"{MAX_DURATION}\""));
    let whole = format!("reload.poll = \"{MAX_DURATION}\"\nshutdown.drain = \"{MAX_DURATION}\"\n");
    let mut portcullis = Portcullis::start(TestDir::new(), format!("{whole}{listener}"));
    assert_lives(portcullis.client().connect());
    assert_eq!(portcullis.stop().0, Some(0));
}

const DAY: Duration = Duration::DAY;
const YEAR: Duration = Duration::days(365);

/// A client that is denied for this reason.
fn denied(portcullis: &Portcullis, client: &Client, reason: &str) {
    let (port, attempt) = client.attempt();
    attempt.unwrap_err();
    assert_eq!(portcullis.refusal(port), reason);
}

fn no_fault(portcullis: &Portcullis) {
    assert_eq!(portcullis.errors(), "");
    let faults = portcullis.events().into_iter().filter(|event| event.0["message"] == "internal fault");
    assert_eq!(faults.collect::<Vec<_>>(), []);
}

#[test]
fn rule_expiry_follows_a_clock_that_is_set() {
    let upstream = Upstream::echo();
    let end = (OffsetDateTime::now_utc() + Duration::HOUR).format(&Rfc3339).unwrap();
    let rules = format!(r#"[{{ type = "ip_addr", value = "127.0.0.1", expires_at = {end} }}, "127.0.0.2"]"#);
    let listener = Listener::redis(&upstream).trusting(&[]).limit("idle_timeout = \"30m\"").to_string();
    let listener = listener.replace("trusted_sources = []", &format!("trusted_sources = {rules}"));
    let mut portcullis = ClockedPortcullis::start(TestDir::new(), format!("{ADMIN}{ON_SIGHUP}{listener}"));
    let (ending, lasting) = (portcullis.client().from("127.0.0.1"), portcullis.client().from("127.0.0.2"));
    let kept = lasting.attempt().1.unwrap();
    // Hours ahead and back, years ahead and back, and a reload under each of them.
    for offset in [Duration::hours(2), 40 * YEAR, Duration::hours(2), 7000 * YEAR] {
        let session = ending.attempt().1.unwrap();
        portcullis.set(offset);
        assert_ended(&portcullis, session, "rule_expired");
        denied(&portcullis, &ending, "untrusted_source");
        portcullis.applies(|| portcullis.hang_up());
        denied(&portcullis, &ending, "untrusted_source");
        portcullis.set(Duration::ZERO);
        assert_lives(ending.attempt().1.unwrap());
    }
    for offset in [-Duration::hours(2), -40 * YEAR] {
        portcullis.set(offset);
        let session = ending.attempt().1.unwrap();
        portcullis.applies(|| portcullis.hang_up());
        assert_lives(session);
        assert_eq!(portcullis.status()["name"], "main");
        portcullis.set(Duration::ZERO);
    }
    // The idle timeout does not use the wall clock.
    assert_lives(kept);
    no_fault(&portcullis);
    assert_eq!(portcullis.stop(), Some(0));
}

#[test]
fn expired_certificate_is_denied_with_a_ticket_after_the_clock_is_set() {
    let upstream = Upstream::echo();
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    site.write("clients.pem", clients.pem());
    let listener = wanting(&upstream, &["client_ca = \"clients.pem\""]);
    let mut portcullis = ClockedPortcullis::start(site, format!("{ON_SIGHUP}{listener}"));
    let brief = portcullis.client().showing(clients.issue(Request::client("brief").valid(-1, 2)));
    let long = portcullis.client().showing(clients.issue(Request::client("long").valid(-1, 300)));
    let [session, again] = [brief.attempt().1.unwrap(), brief.attempt().1.unwrap()];
    assert_eq!(again.tls().handshake_kind(), Some(HandshakeKind::Resumed), "it holds tickets");
    let kept = long.attempt().1.unwrap();
    // Ahead: the session ends, and neither the ticket nor the verification cache admits the client.
    portcullis.set(3 * DAY);
    assert_ended(&portcullis, session, "client_certificate_expired");
    assert_ended(&portcullis, again, "client_certificate_expired");
    denied(&portcullis, &brief, "client_certificate_expired");
    // Back: the certificate is valid again.
    portcullis.set(Duration::ZERO);
    assert_lives(brief.attempt().1.unwrap());
    // Before its validity begins, too.
    portcullis.set(-3 * DAY);
    denied(&portcullis, &brief, "client_certificate_invalid");
    denied(&portcullis, &long, "client_certificate_invalid");
    assert_lives(kept);
    portcullis.set(Duration::ZERO);
    let last = long.attempt().1.unwrap();
    portcullis.set(40 * YEAR);
    assert_ended(&portcullis, last, "client_certificate_expired");
    denied(&portcullis, &long, "client_certificate_expired");
    no_fault(&portcullis);
    assert_eq!(portcullis.stop(), Some(0));
}

#[test]
fn ticket_from_the_future_is_not_resumed() {
    let upstream = Upstream::echo();
    let mut portcullis = ClockedPortcullis::start(TestDir::new(), Listener::redis(&upstream));
    let client = portcullis.client();
    let handshake = || client.attempt().1.unwrap().tls().handshake_kind().unwrap();
    let set_and_shake_twice = |offset| {
        portcullis.set(offset);
        [handshake(), handshake()]
    };
    use HandshakeKind::{Full, Resumed};
    assert_eq!(set_and_shake_twice(YEAR), [Full, Resumed]);
    assert_eq!(set_and_shake_twice(Duration::ZERO), [Full, Resumed]);
    assert_eq!(set_and_shake_twice(-Duration::HOUR), [Full, Resumed]);
    assert_eq!(portcullis.stop(), Some(0));
}

#[test]
fn crl_expiry_follows_a_clock_that_is_set() {
    let upstream = Upstream::echo();
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    site.write("clients.pem", clients.pem());
    site.write("clients.crl", clients.revoking(&[], 2));
    let listener = wanting(&upstream, &["client_ca = \"clients.pem\"", "client_crl = \"clients.crl\""]);
    let mut portcullis = ClockedPortcullis::start(site, format!("{ON_SIGHUP}{listener}"));
    let client = portcullis.client().showing(clients.issue(Request::client("app")));
    for _ in 0..2 {
        let session = client.attempt().1.unwrap();
        portcullis.set(3 * DAY);
        assert_ended(&portcullis, session, "credential_revoked");
        denied(&portcullis, &client, "client_certificate_invalid");
        portcullis.set(Duration::ZERO);
    }
    assert_lives(client.attempt().1.unwrap());
    no_fault(&portcullis);
    assert_eq!(portcullis.stop(), Some(0));
}

#[test]
fn upstream_certificate_expiry_follows_a_clock_that_is_set() {
    let site = TestDir::new();
    let own = site.ca.issue(Request::server(&["localhost", "127.0.0.1"]).valid(-1, 2));
    let upstream = Upstream::tls(showing(&own), |mut tls| {
        let mut bytes = [0; 4];
        while tls.read_exact(&mut bytes).is_ok() {
            tls.write_all(&bytes).unwrap();
        }
    });
    let listener = Listener::tcp(&upstream).upstream_tls("verify-full", "ca.crt");
    let mut portcullis = ClockedPortcullis::start(site, listener);
    let client = portcullis.client();
    let session = client.attempt().1.unwrap();
    for offset in [3 * DAY, -3 * DAY, 40 * YEAR] {
        portcullis.set(offset);
        denied(&portcullis, &client, "upstream_tls_failed");
        portcullis.set(Duration::ZERO);
        client.attempt().1.unwrap();
    }
    drop(session);
    no_fault(&portcullis);
    assert_eq!(portcullis.stop(), Some(0));
}

#[test]
fn expiring_certificate_is_reported_once_per_clock_change() {
    let upstream = Upstream::echo();
    let mut portcullis = ClockedPortcullis::start(TestDir::new(), format!("{ON_SIGHUP}{}", Listener::redis(&upstream)));
    portcullis.address("main");
    let reload = || portcullis.applies(|| portcullis.hang_up());
    let reports = || portcullis.events().iter().filter(|event| event.is("certificate.expiring")).count();
    assert_eq!(reports(), 0);
    for turn in 1..=3 {
        for (offset, expected) in [(360 * DAY, turn), (Duration::ZERO, turn)] {
            portcullis.set(offset);
            reload();
            reload();
            eventually("the certificate is reported", || (reports() >= expected).then_some(()));
            assert_eq!(reports(), expected);
        }
    }
    no_fault(&portcullis);
    assert_eq!(portcullis.stop(), Some(0));
}
