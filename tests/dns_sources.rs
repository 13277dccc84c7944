//! Trusted sources that are host names, resolved periodically by the resolver of the system.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::harness::hosts::{executable, name, start};
use crate::harness::portcullis::ADMIN;
use crate::harness::program::run;
use crate::harness::{ClockedPortcullis, Connection, Event, Listener, Portcullis, TestDir, Upstream, eventually};
use crate::reload::ON_SIGHUP;

/// Keeps its state in the directory.
pub(crate) const STATE: &str = "state.directory = \"state\"\n";

const RULE: &str = "{ type = \"dns\", value = \"app.test\", refresh = \"1s\" }";

fn config(upstream: &Upstream, rules: &[&str]) -> String {
    let listener = Listener::redis(upstream).trusting(&[]).to_string();
    format!(
        "{STATE}{ADMIN}{ON_SIGHUP}{}",
        listener.replace("trusted_sources = []", &format!("trusted_sources = [{}]", rules.join(", ")))
    )
}

fn site(ips: &[&str]) -> TestDir {
    let site = TestDir::new();
    name(&site, &[("app.test", ips)]);
    site
}

pub(crate) fn is_admitted(portcullis: &Portcullis, source: &str) -> bool {
    portcullis.client().from(source).attempt().1.is_ok()
}

fn admitted(portcullis: &Portcullis, source: &str) -> Connection {
    portcullis.client().from(source).attempt().1.unwrap()
}

/// The event about addresses of the name.
fn source_event(portcullis: &Portcullis, seen: usize, event: &str, addresses: &str) -> Event {
    let words = format!("{event} with {addresses}");
    portcullis.event_after(seen, &words, |line| line.is(event) && line.0["addresses"] == addresses)
}

/// The first name in `status`.
fn status(portcullis: &Portcullis) -> Value {
    portcullis.status()["dns_sources"][0].clone()
}

fn warned(portcullis: &Portcullis, seen: usize, words: &str) -> Event {
    let texts = ["message", "detail", "error", "warning"];
    let has_words =
        |line: &Event| texts.iter().any(|field| line.0[field].as_str().is_some_and(|text| text.contains(words)));
    portcullis.event_after(seen, words, has_words)
}

#[test]
fn client_is_admitted_by_its_host_name() {
    let upstream = Upstream::echo();
    let Some(portcullis) = start(site(&["127.0.0.5", "::1"]), config(&upstream, &[RULE])) else { return };
    let inside = admitted(&portcullis, "127.0.0.5");
    let opened = portcullis.opened(inside.port());
    assert_eq!(opened.text("rule"), "dns:app.test");
    assert!(!is_admitted(&portcullis, "127.0.0.1"), "the name leads elsewhere");
    let status = status(&portcullis);
    assert_eq!(status["addresses"], serde_json::json!(["127.0.0.5", "::1"]), "{status}");
    assert_eq!((&status["stale"], &status["rule"]), (&false.into(), &"dns:app.test".into()), "{status}");
}

#[test]
fn added_address_is_admitted_and_removed_address_ends_its_sessions() {
    let upstream = Upstream::echo();
    let Some(portcullis) = start(site(&["127.0.0.5"]), config(&upstream, &[RULE])) else { return };
    let mut stays = admitted(&portcullis, "127.0.0.5");
    assert!(!is_admitted(&portcullis, "127.0.0.6"));
    let seen = portcullis.seen();
    name(&portcullis.site, &[("app.test", &["127.0.0.5", "127.0.0.6"])]);
    let added = source_event(&portcullis, seen, "source.added", "127.0.0.6");
    assert_eq!((added.text("rule"), added.text("listener")), ("dns:app.test", "main"));
    let leaves = admitted(&portcullis, "127.0.0.6");
    let seen = portcullis.seen();
    name(&portcullis.site, &[("app.test", &["127.0.0.5"])]);
    source_event(&portcullis, seen, "source.removed", "127.0.0.6");
    let ending = portcullis.ending(leaves.port());
    assert_eq!((ending.reason(), ending.text("rule")), ("source_revoked", "dns:app.test"));
    assert!(!is_admitted(&portcullis, "127.0.0.6"));
    stays.ask(b"still here", b"still here");
    let of_reloads = portcullis.events().into_iter().filter(|event| event.is("reload.applied")).count();
    assert_eq!(of_reloads, 0, "new addresses are no reload");
}

#[test]
fn added_address_keeps_session_tickets_valid() {
    let upstream = Upstream::echo();
    let Some(portcullis) = start(site(&["127.0.0.5"]), config(&upstream, &[RULE])) else { return };
    let client = portcullis.client().from("127.0.0.5");
    drop(client.attempt().1.unwrap());
    let seen = portcullis.seen();
    name(&portcullis.site, &[("app.test", &["127.0.0.5", "127.0.0.6"])]);
    source_event(&portcullis, seen, "source.added", "127.0.0.6");
    let again = client.attempt().1.unwrap();
    assert_eq!(again.tls().handshake_kind(), Some(rustls::HandshakeKind::Resumed));
}

#[test]
fn unresolvable_name_keeps_its_addresses_over_a_restart() {
    let upstream = Upstream::echo();
    let Some(mut portcullis) = start(site(&["127.0.0.5"]), config(&upstream, &[RULE])) else { return };
    let mut inside = admitted(&portcullis, "127.0.0.5");
    let seen = portcullis.seen();
    name(&portcullis.site, &[]);
    warned(&portcullis, seen, "using the last good answer, from 20");
    // After several lookups nothing more was logged, and no address was removed.
    eventually("it is stale", || (status(&portcullis)["stale"] == true).then_some(()));
    inside.ask(b"still here", b"still here");
    assert!(is_admitted(&portcullis, "127.0.0.5"));
    let status = status(&portcullis);
    assert_eq!(status["addresses"], serde_json::json!(["127.0.0.5"]), "{status}");
    assert!(!status["error"].is_null(), "{status}");
    drop(inside);
    let (_, events) = portcullis.stop();
    let warnings = events.iter().filter(|event| event.0.to_string().contains("cannot be resolved")).count();
    assert_eq!(warnings, 1, "once for each change and not for each try");

    let config = fs::read_to_string(portcullis.site.path("portcullis.toml")).unwrap();
    let site = std::mem::replace(&mut portcullis.site, TestDir::new());
    let again = start(site, config).unwrap();
    assert!(is_admitted(&again, "127.0.0.5"), "what is kept counts");
    warned(&again, 0, "using the last good answer, from 20");
    let seen = again.seen();
    name(&again.site, &[("app.test", &["127.0.0.7"])]);
    source_event(&again, seen, "source.removed", "127.0.0.5");
    assert!(is_admitted(&again, "127.0.0.7"));
    warned(&again, seen, "can be resolved again");
}

#[test]
fn never_resolved_name_admits_no_client_and_does_not_fail_the_start() {
    let upstream = Upstream::echo();
    let Some(portcullis) = start(site(&[]), config(&upstream, &[RULE, "\"127.0.0.1\""])) else { return };
    assert!(is_admitted(&portcullis, "127.0.0.1"));
    assert!(!is_admitted(&portcullis, "127.0.0.5"));
    warned(&portcullis, 0, "the rule admits no client until it can be resolved");
    let seen = portcullis.seen();
    name(&portcullis.site, &[("app.test", &["127.0.0.5"])]);
    source_event(&portcullis, seen, "source.added", "127.0.0.5");
    assert!(is_admitted(&portcullis, "127.0.0.5"));
}

#[test]
fn broken_state_file_is_ignored() {
    let upstream = Upstream::echo();
    let config = config(&upstream, &[RULE]);
    let Some(mut portcullis) = start(site(&["127.0.0.5"]), &config) else { return };
    portcullis.address("main");
    let directory = portcullis.site.path("state");
    let file = eventually("the answers are kept", || {
        let mut entries = fs::read_dir(&directory).ok()?.flatten().map(|entry| entry.path());
        entries.find(|path| path.extension().is_some_and(|end| end == "json"))
    });
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    portcullis.stop();
    fs::write(&file, "{\"names\":{\"app.test\":{\"addresses\":[\"0.0.0.0/0\"]}}}").unwrap();
    let site = std::mem::replace(&mut portcullis.site, TestDir::new());
    name(&site, &[]);
    let again = start(site, config).unwrap();
    assert!(!is_admitted(&again, "127.0.0.5"));
    warned(&again, 0, "are not used: an entry is damaged");
}

#[test]
fn unwritable_state_directory_gives_a_warning_only() {
    let upstream = Upstream::echo();
    let site = site(&["127.0.0.5"]);
    site.write("state", "no directory");
    let Some(portcullis) = start(site, config(&upstream, &[RULE])) else { return };
    assert!(is_admitted(&portcullis, "127.0.0.5"));
    warned(&portcullis, 0, "Set [state] directory");
}

#[test]
fn rule_for_a_name_expires_like_any_other() {
    let upstream = Upstream::echo();
    let end = OffsetDateTime::now_utc() + Duration::HOUR;
    let expires_at = end.format(&Rfc3339).unwrap();
    let rule = format!("{{ type = \"dns\", value = \"app.test\", expires_at = {expires_at} }}");
    let site = site(&["127.0.0.5"]);
    let Some(command) = executable(&site) else { return };
    let portcullis = ClockedPortcullis::start_by(command, site, config(&upstream, &[&rule]));
    let inside = admitted(&portcullis, "127.0.0.5");
    portcullis.set_shortly_before(end);
    let ending = portcullis.ending(inside.port());
    assert_eq!(ending.reason(), "rule_expired");
    assert!(ending.text("detail").contains("dns:app.test expired"), "{}", ending.0);
    assert!(!is_admitted(&portcullis, "127.0.0.5"));
}

#[test]
fn reload_replaces_a_network_by_a_name_without_ending_sessions() {
    let upstream = Upstream::echo();
    let site = site(&["127.0.0.5"]);
    let Some(portcullis) = start(site, config(&upstream, &["\"127.0.0.5\""])) else { return };
    let mut inside = admitted(&portcullis, "127.0.0.5");
    let seen = portcullis.seen();
    let applied = portcullis.reconfigure(config(&upstream, &[RULE]));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    assert_eq!((applied.number("sources_added"), applied.number("sources_removed")), (1, 1));
    source_event(&portcullis, seen, "source.added", "127.0.0.5");
    inside.ask(b"still here", b"still here");
    let seen = portcullis.seen();
    name(&portcullis.site, &[("app.test", &["127.0.0.5", "127.0.0.6"])]);
    source_event(&portcullis, seen, "source.added", "127.0.0.6");
    let seen = portcullis.seen();
    let applied = portcullis.reconfigure(config(&upstream, &["\"127.0.0.6\""]));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    source_event(&portcullis, seen, "source.removed", "127.0.0.5,127.0.0.6");
    assert_eq!(portcullis.ending(inside.port()).reason(), "source_revoked");
    assert!(is_admitted(&portcullis, "127.0.0.6"));
}

#[test]
fn at_most_a_thousand_added_names_are_logged_at_once() {
    let upstream = Upstream::echo();
    let (names, ips): (Vec<_>, Vec<_>) =
        (0..1_001).map(|number| (format!("n{number}.test"), format!("10.0.{}.{}", number / 250, number % 250))).unzip();
    let site = TestDir::new();
    let ips: Vec<_> = ips.iter().map(|ip| [ip.as_str()]).collect();
    name(&site, &names.iter().zip(&ips).map(|(name, ip)| (name.as_str(), &ip[..])).collect::<Vec<_>>());
    let Some(portcullis) = start(site, config(&upstream, &[])) else { return };
    portcullis.address("main");
    let rules: Vec<_> = names.iter().map(|name| format!("\"dns:{name}\"")).collect();
    let applied = portcullis.reconfigure(config(&upstream, &rules.iter().map(String::as_str).collect::<Vec<_>>()));
    assert_eq!(applied.number("sources_added"), 1_001, "{}", applied.0);
    let is_added = |event: &Event| event.is("source.added") && event.has("addresses");
    portcullis.assert_count("a thousand names are reported", 1_000, is_added);
}

#[test]
fn changing_names_do_not_delay_the_poll() {
    let upstream = Upstream::echo();
    let config = config(&upstream, &[RULE]).replace("reload.poll = \"0s\"", "reload.poll = \"2s\"");
    let Some(portcullis) = start(site(&["127.0.0.1"]), &config) else { return };
    portcullis.address("main");
    portcullis.site.replace("portcullis.toml", format!("log.level = \"warn\"\n{config}"));
    let mut ips = vec!["127.0.0.1".to_owned()];
    for last in 10..20 {
        let (ip, seen) = (format!("127.0.0.{last}"), portcullis.seen());
        ips.push(ip.clone());
        let ips: Vec<_> = ips.iter().map(String::as_str).collect();
        name(&portcullis.site, &[("app.test", &ips)]);
        source_event(&portcullis, seen, "source.added", &ip);
        if portcullis.events().iter().any(|event| event.is("reload.applied")) {
            return;
        }
    }
    panic!("the poll did not come");
}

#[test]
fn check_and_explain_resolve_names_and_print_them() {
    let upstream = Upstream::echo();
    let site = site(&["127.0.0.5", "2001:db8::1"]);
    site.write("portcullis.toml", config(&upstream, &[RULE, "\"dns:gone.test\""]));
    let ask = |arguments: &[&str]| {
        let mut command = executable(&site)?;
        Some(run(command.args(arguments).arg("-c").arg(site.path("portcullis.toml"))))
    };
    let Some(outcome) = ask(&["check"]) else { return };
    let words = outcome.success();
    for output in
        ["dns:app.test, now 127.0.0.5 2001:db8::1", "dns:gone.test, NO ADDRESS", "warning: dns:gone.test cannot be"]
    {
        assert!(words.contains(output), "{output} in {words}");
    }
    let report: Value = serde_json::from_str(&ask(&["check", "--json"]).unwrap().success()).unwrap();
    let source = &report["listeners"][0]["sources"][0];
    assert_eq!(source["addresses"], serde_json::json!(["127.0.0.5", "2001:db8::1"]), "{source}");
    assert_eq!((&source["type"], &source["refresh_ms"]), (&"dns".into(), &1000.into()), "{source}");
    let explained = ask(&["explain", "--listener", "main", "--source", "2001:db8::1"]).unwrap().success();
    assert!(explained.contains("2001:db8::1 is trusted by dns:app.test, now 127.0.0.5 2001:db8::1"), "{explained}");
    let refused = ask(&["explain", "--listener", "main", "--source", "127.0.0.6"]).unwrap();
    assert_eq!(refused.code, Some(3));
    assert!(refused.text().contains("not an address of dns:app.test, now 127.0.0.5"), "{}", refused.text());
    assert!(!site.path("state").exists(), "what only looks leaves nothing behind");
}
