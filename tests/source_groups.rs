//! `[[source_group]]`: rules that several listeners share.

use std::time::Instant;

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::dns_sources::STATE;
use crate::harness::api::Api;
use crate::harness::client::port;
use crate::harness::hosts;
use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{Outcome, run};
use crate::harness::prometheus::request;
use crate::harness::{ClockedPortcullis, Connection, Listener, Portcullis, TestDir, Upstream, wire};
use crate::reload::ON_SIGHUP;
use crate::revocation::{MAX_REVOCATION_TIME, assert_ended, assert_lives};

const WEB: &str = "/v1/listeners/group:web/sources";

/// The group `web`, which has 127.0.0.2, and in its file 127.0.0.1.
const GROUP: &str =
    "[[source_group]]\nname = \"web\"\ntrusted_sources = [\"127.0.0.2\"]\nsources_file = \"web.sources\"\n";

fn site() -> TestDir {
    let site = TestDir::new();
    let rule = |value: &str| format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"{value}\"\n");
    site.write("web.sources", rule("127.0.0.1"));
    site.write("jobs.sources", rule("127.0.0.3"));
    site
}

/// `cache` and `jobs` use the group, `plain` does not.
fn config(upstream: &Upstream, group: &str) -> String {
    let listener = |name: &str, sources: &[&str]| Listener::redis(upstream).named(name).trusting(sources);
    let jobs = listener("jobs", &["group:web"]).key("sources_file = \"jobs.sources\"");
    let (cache, plain) = (listener("cache", &["group:web"]), listener("plain", &["127.0.0.1"]));
    format!("{ADMIN}{ON_SIGHUP}{group}{cache}{jobs}{plain}")
}

fn start(upstream: &Upstream) -> Portcullis {
    let portcullis = Portcullis::start(site(), config(upstream, GROUP));
    for listener in ["cache", "jobs", "plain"] {
        portcullis.address(listener);
    }
    portcullis
}

fn api(portcullis: &Portcullis) -> Api {
    Api::at_socket(portcullis.site.path("admin.sock"))
}

fn connect(portcullis: &Portcullis, listener: &str, source: &str) -> Connection {
    portcullis.client_of(listener).from(source).attempt().1.unwrap()
}

fn is_admitted(portcullis: &Portcullis, listener: &str, source: &str) -> bool {
    portcullis.client_of(listener).from(source).attempt().1.is_ok()
}

fn command(portcullis: &Portcullis, arguments: &[&str]) -> Outcome {
    run(executable().args(arguments).arg("--socket").arg(portcullis.site.path("admin.sock")))
}

/// The rule with this value in a list.
fn rule(list: &Value, value: &str) -> Value {
    let rules = list["rules"].as_array().unwrap();
    rules.iter().find(|rule| rule["value"] == value).unwrap_or_else(|| panic!("no {value} in {list}")).clone()
}

fn uuid_of(list: &Value, value: &str) -> String {
    rule(list, value)["uuid"].as_str().unwrap().to_owned()
}

#[test]
fn group_admits_its_sources_at_every_listener_that_uses_it() {
    let upstream = Upstream::echo();
    let portcullis = start(&upstream);
    for listener in ["cache", "jobs"] {
        for source in ["127.0.0.1", "127.0.0.2"] {
            let mut session = connect(&portcullis, listener, source);
            session.ask(b"hello", b"hello");
            let opened = portcullis.opened(session.port());
            assert_eq!((opened.text("rule"), opened.text("group")), (format!("ip_addr:{source}").as_str(), "web"));
            assert_eq!(opened.text("listener"), listener);
        }
    }
    let own = connect(&portcullis, "jobs", "127.0.0.3");
    let opened = portcullis.opened(own.port());
    assert_eq!((opened.text("rule"), opened.has("group")), ("ip_addr:127.0.0.3", false));
    let mut untrusted = portcullis.client_of("cache").from("127.0.0.3").dial();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
    assert_eq!(portcullis.refusal(port(&untrusted)), "untrusted_source");

    let explained = api(&portcullis).get("/v1/explain?listener=cache&source=127.0.0.2").expect(200);
    assert_eq!((&explained["rule"], &explained["group"]), (&json!("ip_addr:127.0.0.2"), &json!("web")));
    let text = explained["steps"].to_string();
    assert!(text.contains("127.0.0.2 is trusted by ip_addr:127.0.0.2 of group web"), "{text}");
    let status = api(&portcullis).get("/v1/status").expect(200);
    let counts: Vec<_> = (0..3).map(|index| status["listeners"][index]["trusted_sources"].clone()).collect();
    assert_eq!(counts, [2, 3, 1]);
    let groups = api(&portcullis).get("/v1/source-groups").expect(200);
    let uuid = groups["source_groups"][0]["uuid"].clone();
    let web = json!({ "name": "web", "uuid": uuid, "sources_file": true, "rules": 2, "listeners": ["cache", "jobs"] });
    assert_eq!(groups["source_groups"], json!([web]));
    assert_eq!(status["source_groups"], groups["source_groups"]);
    assert_eq!(api(&portcullis).get("/v1/listeners").expect(200)["listeners"].as_array().unwrap().len(), 3);
}

#[test]
fn rule_removed_from_a_group_ends_its_sessions_at_all_listeners_and_no_other() {
    let upstream = Upstream::echo();
    let portcullis = start(&upstream);
    let api = api(&portcullis);
    let session = |listener: &str, source: &str| connect(&portcullis, listener, source);
    let gone = [session("cache", "127.0.0.1"), session("jobs", "127.0.0.1")];
    let kept = [session("plain", "127.0.0.1"), session("cache", "127.0.0.2"), session("jobs", "127.0.0.3")];
    for session in gone.iter().chain(&kept) {
        portcullis.opened(session.port());
    }
    let list = api.get(WEB).expect(200);
    assert_eq!(rule(&list, "127.0.0.1")["sessions"], 2);
    assert!(rule(&list, "127.0.0.1")["last_used"].is_string(), "{list}");
    assert_eq!(
        (&rule(&list, "127.0.0.2")["sessions"], &rule(&list, "127.0.0.2")["origin"]),
        (&json!(1), &json!("config"))
    );
    let of_jobs = api.get("/v1/listeners/jobs/sources").expect(200);
    assert_eq!((&rule(&of_jobs, "web")["type"], &rule(&of_jobs, "web")["sessions"]), (&json!("group"), &json!(1)));

    let target = format!("{WEB}/{}", uuid_of(&list, "127.0.0.1"));
    let plan = api.delete(&format!("{target}?plan=true")).expect(200);
    let ended = plan["sessions_ended"].as_array().unwrap();
    let mut listeners: Vec<_> = ended.iter().map(|session| session["listener"].as_str().unwrap()).collect();
    listeners.sort_unstable();
    assert_eq!((listeners.as_slice(), &plan["admits_nobody"]), (&["cache", "jobs"][..], &json!(false)));

    let seen = portcullis.seen();
    let began = Instant::now();
    assert_eq!(api.delete(&target).status, 204);
    for session in gone {
        assert_ended(&portcullis, session, "source_revoked");
    }
    assert!(began.elapsed() < MAX_REVOCATION_TIME, "{:?}", began.elapsed());
    kept.into_iter().for_each(assert_lives);
    let removed = portcullis.event_after(seen, "the removal", |event| event.is("source.removed"));
    assert_eq!((removed.text("group"), removed.text("rule")), ("web", "ip_addr:127.0.0.1"));
    assert!(!removed.has("listener"), "{}", removed.0);
    portcullis.assert_count("one removal", 1, |event| event.is("source.removed"));
    let revoked = portcullis.event_after(seen, "a revocation", |event| event.is("session.revoked"));
    assert_eq!((revoked.text("rule"), revoked.text("group")), ("ip_addr:127.0.0.1", "web"));
    let action = portcullis.event("the action", |event| event.is("admin.action"));
    assert!(action.text("target").starts_with("group:web/"), "{}", action.0);
    assert!(!is_admitted(&portcullis, "cache", "127.0.0.1") && is_admitted(&portcullis, "plain", "127.0.0.1"));
}

#[test]
fn group_is_changed_in_the_place_of_a_listener() {
    let upstream = Upstream::echo();
    let portcullis = start(&upstream);
    let api = api(&portcullis);
    let new = |value: &str| json!({ "rules": [{ "type": "ip_addr", "value": value, "description": "office" }] });
    let seen = portcullis.seen();
    api.post("/v1/listeners/group%3Aweb/sources", &new("127.0.0.5")).expect(201);
    let added = portcullis.event_after(seen, "the addition", |event| event.is("source.added"));
    assert_eq!((added.text("group"), added.text("rule"), added.has("listener")), ("web", "ip_addr:127.0.0.5", false));
    assert!(is_admitted(&portcullis, "cache", "127.0.0.5") && is_admitted(&portcullis, "jobs", "127.0.0.5"));

    let etag = api.get(WEB).header("etag").unwrap().to_owned();
    let of_listener = api.get("/v1/listeners/cache/sources").header("etag").unwrap().to_owned();
    let put = |etag: &str, value: &str| {
        api.request("PUT", WEB, &format!("If-Match: {etag}\r\n"), new(value).to_string().as_bytes())
    };
    assert_eq!(put(&etag, "127.0.0.6").status, 204);
    put(&etag, "127.0.0.7").expect_error(412, "precondition_failed");
    assert!(is_admitted(&portcullis, "cache", "127.0.0.6") && !is_admitted(&portcullis, "cache", "127.0.0.5"));
    let now = api.get("/v1/listeners/cache/sources");
    assert_eq!(now.header("etag"), Some(of_listener.as_str()), "the rules of the listener are the same");

    let groups = api.get("/v1/source-groups").expect(200);
    let uuid = groups["source_groups"][0]["uuid"].as_str().unwrap();
    for id in ["group:web", "group%3Aweb", uuid] {
        let firewall = api.get(&format!("/v2/databases/{id}/firewall")).expect(200);
        assert_eq!(firewall["rules"][0]["value"], "127.0.0.6", "{firewall}");
        assert_eq!(firewall["rules"][0]["cluster_uuid"], uuid);
    }
    let target = format!("/v2/databases/{uuid}/firewall");
    assert_eq!(api.put(&target, &json!({ "rules": [{ "type": "ip_addr", "value": "127.0.0.8" }] })).status, 204);
    assert!(is_admitted(&portcullis, "jobs", "127.0.0.8"));
    let configured = uuid_of(&api.get(WEB).expect(200), "127.0.0.2");
    api.delete(&format!("{WEB}/{configured}")).expect_error(409, "conflict");
    let unknown = api.get("/v1/listeners/group:wbe/sources").expect_error(404, "not_found");
    assert!(unknown.contains("source groups: group:web"), "{unknown}");
}

#[test]
fn rule_of_the_type_group_is_added_to_a_listener_and_its_removal_ends_the_sessions() {
    let upstream = Upstream::echo();
    let office = "[[source_group]]\nname = \"office\"\ntrusted_sources = [\"127.0.0.9\", \"127.0.0.3\"]\n";
    let portcullis = Portcullis::start(site(), config(&upstream, &format!("{GROUP}{office}")));
    portcullis.address("jobs");
    let (api, jobs) = (api(&portcullis), "/v1/listeners/jobs/sources");
    let naming = |group: &str| json!({ "rules": [{ "type": "group", "value": group }] });
    assert!(!is_admitted(&portcullis, "jobs", "127.0.0.9"));
    let message = api.post(jobs, &naming("ofice")).expect_error(422, "unprocessable_entity");
    assert!(message.contains("rules[0].value") && message.contains("did you mean \"office\"?"), "{message}");
    let message = api.post(WEB, &naming("office")).expect_error(422, "unprocessable_entity");
    assert!(message.contains("a group cannot contain a group"), "{message}");

    let added = api.post(jobs, &naming("office")).expect(201);
    let (through, own) = (connect(&portcullis, "jobs", "127.0.0.9"), connect(&portcullis, "jobs", "127.0.0.3"));
    assert_eq!(portcullis.opened(through.port()).text("group"), "office");
    assert!(!portcullis.opened(own.port()).has("group"), "of equal prefixes the rule of the listener matches");
    let groups = api.get("/v1/source-groups").expect(200);
    assert_eq!(groups["source_groups"][1]["listeners"], json!(["jobs"]));
    let target = format!("{jobs}/{}", added["rules"][0]["uuid"].as_str().unwrap());
    assert_eq!(api.delete(&target).status, 204);
    assert_ended(&portcullis, through, "source_revoked");
    assert_lives(own);
    let message = api.post("/v1/listeners/group:office/sources", &naming("x")).expect_error(409, "conflict");
    assert!(message.contains("group office has no sources_file"), "{message}");
}

#[test]
fn expired_rule_that_names_a_group_ends_the_sessions_through_it() {
    let upstream = Upstream::echo();
    let end = OffsetDateTime::now_utc() + Duration::HOUR;
    let naming = format!(r#"{{ type = "group", value = "web", expires_at = {} }}"#, end.format(&Rfc3339).unwrap());
    let listener = Listener::redis(&upstream).trusting(&["GROUP", "127.0.0.0/30"]);
    let listener = listener.to_string().replace("\"GROUP\"", &naming);
    let group = "[[source_group]]\nname = \"web\"\ntrusted_sources = [\"127.0.0.1\", \"127.0.0.9\"]\n";
    let portcullis = ClockedPortcullis::start(TestDir::new(), format!("{ON_SIGHUP}{group}{listener}"));
    let from = |source: &str| portcullis.client().from(source).attempt().1.unwrap();
    let (gone, kept) = (from("127.0.0.9"), from("127.0.0.1"));
    assert_eq!(portcullis.opened(kept.port()).text("group"), "web");
    portcullis.opened(gone.port());
    portcullis.set_shortly_before(end);
    assert_ended(&portcullis, gone, "rule_expired");
    assert_lives(kept);
    let later = from("127.0.0.1");
    assert_eq!(portcullis.opened(later.port()).text("rule"), "ip_addr:127.0.0.0/30");
}

#[test]
fn commands_take_a_group_in_the_place_of_a_listener() {
    let upstream = Upstream::echo();
    let portcullis = start(&upstream);
    let sources = |arguments: &[&str]| command(&portcullis, &[&["sources"], arguments].concat());
    let text = sources(&["append", "group:web", "127.0.0.4", "--description", "office"]).success();
    assert!(text.starts_with("group:web: added ip_addr:127.0.0.4 ("), "{text}");
    let session = connect(&portcullis, "cache", "127.0.0.4");
    portcullis.opened(session.port());
    let table = sources(&["list", "group:web"]).success();
    assert!(table.contains("127.0.0.4") && table.contains("office"), "{table}");
    sources(&["edit", "group:web", "127.0.0.4", "--description", "new office"]).success();
    assert!(sources(&["list", "group:web"]).success().contains("new office"));
    let plan = sources(&["remove", "group:web", "127.0.0.4", "--plan"]).success();
    assert!(plan.contains("group:web: this would change:") && plan.contains("1 session would end"), "{plan}");
    sources(&["remove", "group:web", "127.0.0.4"]).success();
    assert_ended(&portcullis, session, "source_revoked");
    sources(&["replace", "group:web", "127.0.0.1", "127.0.0.6"]).success();
    assert!(is_admitted(&portcullis, "jobs", "127.0.0.6"));
    let table = sources(&["list", "cache"]).success();
    assert!(table.lines().any(|line| line.contains("group") && line.contains("web")), "{table}");

    let unknown = sources(&["append", "jobs", "group:wbe"]);
    assert_eq!(unknown.code, Some(1), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("did you mean \"web\"?"), "{}", unknown.stderr);
    let unknown = sources(&["list", "group:wbe"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);
    let status = command(&portcullis, &["status"]).success();
    assert!(status.contains("SOURCE GROUP") && status.contains("cache, jobs"), "{status}");
}

#[test]
fn reload_of_a_group_is_planned_with_what_it_weakens() {
    let upstream = Upstream::echo();
    let portcullis = start(&upstream);
    let session = connect(&portcullis, "jobs", "127.0.0.2");
    portcullis.opened(session.port());
    let wider = GROUP.replace("127.0.0.2", "127.0.0.0/31");
    portcullis.site.replace("portcullis.toml", config(&upstream, &wider));
    let plan = command(&portcullis, &["reload", "--plan"]).success();
    for line in [
        "! setting      group:web  trusted_sources: ip_addr:127.0.0.1/32 -> ip_addr:127.0.0.0/31 (weakens protection)",
        "+ source       group:web  ip_addr:127.0.0.0/31",
        "- source       group:web  ip_addr:127.0.0.2",
        "sessions that would be closed: 1;",
    ] {
        assert!(plan.contains(line), "no {line} in {plan}");
    }
    let applied = portcullis.applies(|| portcullis.hang_up());
    assert_eq!((applied.number("sources_added"), applied.number("sources_removed")), (1, 1), "{}", applied.0);
    let weakened = portcullis.event("the weakening", |event| event.is("policy.weakened"));
    assert_eq!((weakened.text("group"), weakened.has("listener")), ("web", false));
    assert_ended(&portcullis, session, "source_revoked");
}

#[test]
fn check_prints_groups_and_warns_about_unused_ones() {
    let upstream = Upstream::silent();
    let site = site();
    let unused = "[[source_group]]\nname = \"old\"\ntrusted_sources = []\n";
    site.write("portcullis.toml", config(&upstream, &format!("{GROUP}{unused}")));
    let check = |arguments: &[&str]| {
        run(executable()
            .args(["check", "--offline", "-c", "portcullis.toml"])
            .args(arguments)
            .current_dir(site.directory()))
    };
    let text = check(&[]).success();
    for words in [
        "\nsource group web\n  listeners     cache, jobs\n  trusted sources (2)\n    ip_addr:127.0.0.2\n",
        "    ip_addr:127.0.0.1  [sources_file]\n",
        "warning: source_group old: no listener uses the group; add \"group:old\" to trusted_sources",
        "    group:web\n",
    ] {
        assert!(text.contains(words), "no {words} in {text}");
    }
    let facts: Value = serde_json::from_str(&check(&["--json"]).success()).unwrap();
    assert_eq!(facts["source_groups"][0]["listeners"], json!(["cache", "jobs"]));
    assert_eq!(facts["source_groups"][0]["sources"][1]["rule"], "ip_addr:127.0.0.1");
}

#[test]
fn listener_with_an_empty_group_trusts_no_source() {
    let upstream = Upstream::silent();
    let group = "[[source_group]]\nname = \"web\"\ntrusted_sources = []\n";
    let portcullis =
        Portcullis::start(TestDir::new(), format!("{group}{}", Listener::redis(&upstream).trusting(&["group:web"])));
    portcullis.event("a warning", |event| event.0.to_string().contains("no source is trusted"));
    let mut untrusted = portcullis.client().dial();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
    assert_eq!(portcullis.refusal(port(&untrusted)), "untrusted_source");
    upstream.assert_untouched();
}

#[test]
fn changed_addresses_of_a_host_in_a_group_apply_to_all_its_listeners() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    hosts::name(&site, &[("app.test", &["127.0.0.5"])]);
    let rule = "{ type = \"dns\", value = \"app.test\", refresh = \"1s\" }";
    let group = format!("[[source_group]]\nname = \"web\"\ntrusted_sources = [{rule}]\n");
    let metrics = "admin.metrics = \"127.0.0.1:0\"\n";
    let listener = |name: &str| Listener::redis(&upstream).named(name).trusting(&["group:web"]);
    let config = format!("{STATE}{ADMIN}{metrics}{ON_SIGHUP}{group}{}{}", listener("cache"), listener("jobs"));
    let Some(portcullis) = hosts::start(site, config) else { return };
    portcullis.address("jobs");
    let gone = ["cache", "jobs"].map(|listener| connect(&portcullis, listener, "127.0.0.5"));
    assert_eq!(portcullis.opened(gone[0].port()).text("rule"), "dns:app.test");

    portcullis.event("the metrics are served", |event| event.0["message"] == "serving metrics");
    let serving = portcullis.events().into_iter().rfind(|event| event.0["message"] == "serving metrics").unwrap();
    let scraped = request(serving.text("address").parse().unwrap(), "GET", "/metrics", "").body;
    for listener in ["cache", "jobs"] {
        for series in [
            format!("portcullis_trusted_sources{{listener=\"{listener}\"}} 1\n"),
            format!("portcullis_source_stale{{listener=\"{listener}\",rule=\"dns:app.test\"}} 0\n"),
        ] {
            assert!(scraped.contains(&series), "no {series} in {scraped}");
        }
    }

    let seen = portcullis.seen();
    hosts::name(&portcullis.site, &[("app.test", &["127.0.0.6"])]);
    for session in gone {
        assert_ended(&portcullis, session, "source_revoked");
    }
    assert!(is_admitted(&portcullis, "cache", "127.0.0.6") && is_admitted(&portcullis, "jobs", "127.0.0.6"));
    let added = portcullis.event_after(seen, "the addition", |event| event.is("source.added"));
    assert_eq!((added.text("group"), added.text("addresses"), added.has("listener")), ("web", "127.0.0.6", false));
    portcullis.assert_count("one removal", 1, |event| event.is("source.removed"));
}
