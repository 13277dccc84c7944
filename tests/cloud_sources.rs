//! Trusted sources that are objects of a cloud or a cluster, as far as no API is needed: configuration, kept answers, API.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::dns_sources::{STATE, is_admitted};
use crate::harness::api::Api;
use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{Outcome, run};
use crate::harness::{Listener, Portcullis, TestDir, Upstream};
use crate::reload::ON_SIGHUP;

/// No server is at the endpoint.
pub(crate) const RESOLVER: &str =
    "[resolver.digitalocean]\ntoken_file = \"do.token\"\nendpoint = \"https://127.0.0.1:1\"\n";

const KUBERNETES: &str = "[resolver.kubernetes]\nkubeconfig = \"kubeconfig\"\n";

const KUBECONFIG: &str = "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{ name: x, context: { cluster: x, \
                          user: x } }]\nclusters: [{ name: x, cluster: { server: \"https://127.0.0.1:1\" } }]\nusers: [{ \
                          name: x, user: { token: x } }]\n";

const ANSWER: &str = r#"{"names":{},"cloud":{
    "tag:backend":{"addresses":{"127.0.0.5":"droplet web-1","10.0.0.7":"droplet web-2"},"resolved_at":"2026-11-22T00:00:00Z"},
    "tag:idle":{"addresses":{},"resolved_at":"2026-11-22T00:00:00Z"}}}"#;

fn site() -> TestDir {
    let site = TestDir::new();
    site.write("do.token", "dop_v1_of_a_test");
    site.write("kubeconfig", KUBECONFIG);
    for secret in ["do.token", "kubeconfig"] {
        fs::set_permissions(site.path(secret), fs::Permissions::from_mode(0o600)).unwrap();
    }
    site.write("main.sources", "rule = []\n");
    site
}

fn config(upstream: &Upstream, resolvers: &str, sources: &[&str]) -> String {
    let listener = Listener::redis(upstream).trusting(sources).key("sources_file = \"main.sources\"");
    format!("{STATE}{ADMIN}{ON_SIGHUP}{resolvers}{listener}")
}

/// Writes the answers that an earlier run kept.
pub(crate) fn keep(site: &TestDir, answers: &str) {
    let path = site.path("portcullis.toml");
    let hash = digest(&SHA256, path.as_os_str().as_encoded_bytes());
    let print = hash.as_ref()[..8].iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    fs::create_dir_all(site.path("state")).unwrap();
    let file = format!("state/names-{print}.json");
    site.write(&file, answers);
    fs::set_permissions(site.path(&file), fs::Permissions::from_mode(0o600)).unwrap();
}

fn sources(portcullis: &Portcullis) -> Vec<Value> {
    let (status, body) = portcullis.ask("GET", "/v1/listeners/main/sources");
    assert_eq!(status, 200, "{body}");
    body["rules"].as_array().unwrap().clone()
}

fn command(site: &TestDir, arguments: &[&str]) -> Outcome {
    run(executable().args(arguments).args(["-c", "portcullis.toml"]).current_dir(site.directory()))
}

#[test]
fn kept_answer_admits_after_a_start_without_the_api() {
    let upstream = Upstream::echo();
    let site = site();
    keep(&site, ANSWER);
    let portcullis = Portcullis::start(site, config(&upstream, RESOLVER, &["tag:backend", "tag:idle", "tag:new"]));
    let inside = portcullis.client().from("127.0.0.5").attempt().1.unwrap();
    let opened = portcullis.opened(inside.port());
    assert_eq!((opened.text("rule"), opened.text("object")), ("tag:backend", "droplet web-1"));
    assert!(!is_admitted(&portcullis, "127.0.0.6"));
    let rules = sources(&portcullis);
    assert_eq!(rules[0]["addresses"], json!(["10.0.0.7", "127.0.0.5"]), "{rules:?}");
    let objects = json!({ "10.0.0.7": "droplet web-2", "127.0.0.5": "droplet web-1" });
    assert_eq!((&rules[0]["objects"], &rules[1]["objects"]), (&objects, &json!({})), "{rules:?}");
    assert_eq!((&rules[0]["state"], &rules[0]["addresses_count"]), (&json!("stale"), &json!(2)), "{rules:?}");
    assert_eq!((&rules[1]["state"], &rules[1]["addresses_count"]), (&json!("stale"), &json!(0)), "{rules:?}");
    assert_eq!((&rules[2]["state"], &rules[2]["addresses"]), (&json!("unresolved"), &json!([])), "{rules:?}");
    assert!(rules.iter().all(|rule| rule["detail"].is_string()), "{rules:?}");
    let status = command(&portcullis.site, &["status"]).success();
    assert!(status.contains("tag:backend") && status.contains("STALE") && status.contains("UNRESOLVED"), "{status}");

    let explain = |source: &str| command(&portcullis.site, &["explain", "--listener", "main", "--source", source]);
    let admitted = explain("10.0.0.7").success();
    assert!(admitted.contains("10.0.0.7 is droplet web-2 by tag:backend"), "{admitted}");
    let refused = explain("10.0.0.8").text();
    for words in
        ["not an address of tag:backend, now 10.0.0.7 127.0.0.5", "tag:backend is stale:", "tag:new is unresolved:"]
    {
        assert!(refused.contains(words), "{words} in {refused}");
    }

    let mut inside = inside;
    let seen = portcullis.seen();
    let applied = portcullis.reconfigure(config(&upstream, RESOLVER, &["tag:new", "tag:other"]));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    let ended = portcullis.ending(inside.port());
    assert_eq!((ended.reason(), ended.text("object")), ("source_revoked", "droplet web-1"));
    let _ = inside.rest();
    assert!(!portcullis.events()[seen..].iter().any(|event| event.is("source.resolved")));
    assert!(sources(&portcullis).iter().all(|rule| rule["state"] == "unresolved"));
}

#[test]
fn commands_without_a_program_use_kept_answers() {
    let upstream = Upstream::echo();
    let site = site();
    keep(&site, ANSWER);
    let resolvers = format!("{RESOLVER}{KUBERNETES}");
    site.write("portcullis.toml", config(&upstream, &resolvers, &["tag:backend", "kubernetes:pods:shop:app=web"]));
    for offline in [&["check"][..], &["check", "--offline"]] {
        let checked = command(&site, offline).success();
        assert!(checked.contains("tag:backend, now 10.0.0.7 127.0.0.5"), "{checked}");
        assert!(checked.contains("kubernetes:pods:shop:app=web, NO ADDRESS"), "{checked}");
    }
    let report: Value = serde_json::from_str(&command(&site, &["check", "--json"]).success()).unwrap();
    let source = &report["listeners"][0]["sources"][0];
    assert_eq!((&source["type"], &source["addresses_count"]), (&json!("tag"), &json!(2)), "{source}");
    let explained = command(&site, &["explain", "--listener", "main", "--source", "127.0.0.5"]).success();
    assert!(explained.contains("127.0.0.5 is droplet web-1 by tag:backend"), "{explained}");
    keep(&site, &ANSWER.replace("10.0.0.7", "10.0.0.0/8"));
    let damaged = command(&site, &["check"]);
    assert!(damaged.success().contains("are not used: an entry is damaged"));
}

#[test]
fn secret_that_others_can_read_is_a_warning() {
    let upstream = Upstream::echo();
    let site = site();
    fs::set_permissions(site.path("do.token"), fs::Permissions::from_mode(0o644)).unwrap();
    site.write("portcullis.toml", config(&upstream, RESOLVER, &[]));
    let checked = command(&site, &["check"]).success();
    assert!(checked.contains("others can read the secret") && checked.contains("do.token"), "{checked}");
}

#[test]
fn rule_without_its_resolver_is_rejected_by_every_interface() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::start(site(), config(&upstream, RESOLVER, &[]));
    portcullis.address("main");
    let api = Api::at_socket(portcullis.site.path("admin.sock"));
    let body = json!({ "rules": [{ "type": "kubernetes", "value": "nodes" }] });
    let message = api.post("/v1/listeners/main/sources", &body).expect_error(422, "unprocessable_entity");
    assert!(message.contains("rules[0].type") && message.contains("[resolver.kubernetes]"), "{message}");
    for path in ["/v1/listeners/main/sources", "/v2/databases/main/firewall"] {
        let message = api.put(path, &body).expect_error(422, "unprocessable_entity");
        assert!(message.contains("[resolver.kubernetes]"), "{message}");
    }
    let appended = command(&portcullis.site, &["sources", "append", "main", "kubernetes:nodes"]);
    assert!(appended.stderr.contains("[resolver.kubernetes]"), "{}", appended.stderr);
    portcullis.site.write("main.sources", "[[rule]]\ntype = \"kubernetes\"\nvalue = \"nodes\"\n");
    let rejected = portcullis.reload_after(|| portcullis.hang_up());
    assert!(rejected.text("error").contains("needs [resolver.kubernetes]"), "{}", rejected.0);
}

#[test]
fn every_kind_is_added_and_listed_as_it_was_sent() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::start(site(), config(&upstream, &format!("{RESOLVER}{KUBERNETES}"), &[]));
    portcullis.address("main");
    let api = Api::at_socket(portcullis.site.path("admin.sock"));
    let kinds = [
        ("droplet", "3164444"),
        ("tag", "env:Prod_eu-1"),
        ("k8s", "BD5F5959-5e1e-4205-a714-a914373942af"),
        ("app", "4f6c71e2-1e90-4762-9fee-6cc4a0a9f2cf"),
        ("kubernetes", "pods:shop:app=web,tier in (a, b)"),
    ];
    let rules: Vec<_> = kinds.iter().map(|(kind, value)| json!({ "type": kind, "value": value })).collect();
    api.put("/v2/databases/main/firewall", &json!({ "rules": rules })).expect(204);
    let listed = api.get("/v2/databases/main/firewall").expect(200);
    let values = |rules: &Value| {
        let rules = rules["rules"].as_array().unwrap().iter();
        rules
            .map(|rule| (rule["type"].as_str().unwrap().to_owned(), rule["value"].as_str().unwrap().to_owned()))
            .collect::<Vec<_>>()
    };
    let expected: Vec<_> = kinds.iter().map(|(kind, value)| ((*kind).to_owned(), (*value).to_owned())).collect();
    assert_eq!(values(&listed), expected);
    // What was read may be sent back, with all read-only fields.
    let read = api.get("/v1/listeners/main/sources").expect(200);
    api.put("/v1/listeners/main/sources", &read).expect(204);
    let again = api.get("/v2/databases/main/firewall").expect(200);
    assert_eq!(again, listed);
    let added = api.post("/v1/listeners/main/sources", &json!({ "rules": [{ "type": "tag", "value": "new" }] }));
    assert_eq!(added.expect(201)["rules"][0]["state"], "unresolved");
    let appended = ["sources", "append", "main", "tag:backend", "kubernetes:service:shop/web"];
    command(&portcullis.site, &appended).success();
    let shown = command(&portcullis.site, &["sources", "list", "main"]).success();
    for words in ["tag", "backend", "kubernetes", "service:shop/web", "unresolved"] {
        assert!(shown.contains(words), "{words} in {shown}");
    }
    command(&portcullis.site, &["sources", "remove", "main", "tag:backend", "kubernetes:service:shop/web"]).success();
}

#[test]
fn token_that_appears_lets_the_next_reload_succeed() {
    let upstream = Upstream::echo();
    let site = site();
    let watching = |config: String| config.replace("reload.watch = false", "reload.watch = true");
    let portcullis = Portcullis::start(site, watching(config(&upstream, "", &[])));
    portcullis.address("main");
    let with_resolver = config(&upstream, &RESOLVER.replace("do.token", "later.token"), &["tag:web"]);
    let rejected = portcullis.reconfigure(watching(with_resolver));
    assert!(rejected.text("error").contains("later.token"), "{}", rejected.0);
    portcullis.site.write("later.token", "dop_v1_of_a_test");
    portcullis.event("the reload", |event| event.is("reload.applied"));
}
