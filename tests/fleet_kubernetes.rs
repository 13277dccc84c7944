//! Members of a fleet over a Kubernetes API: the real program, and a double of the API over TLS.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::HandshakeKind;
use rustls::version::TLS13;
use serde_json::{Value, json};

use crate::harness::fleet::{FLEET_KEY, Member, SOURCES, assert_changes_are_prompt, listener, rules};
use crate::harness::kubernetes::{Answer, KubernetesApi, Seen, namespace};
use crate::harness::portcullis::executable;
use crate::harness::program::run;
use crate::harness::{Listener, TestDir, Upstream, eventually};

/// A cluster with the namespace `shop`.
struct Cluster {
    site: TestDir,
    api: KubernetesApi,
}

impl Cluster {
    fn new() -> Self {
        let site = TestDir::new();
        let api = KubernetesApi::start(&site);
        api.require_token("token-1");
        api.put(&namespace("shop", "5d0c"));
        site.write("token", "token-1\n");
        Self { site, api }
    }

    fn member(&self, site: TestDir, name: &str, listener: &Listener) -> Member {
        let store = format!(
            "store = \"kubernetes\"\n[fleet.kubernetes]\nserver = {:?}\nca = {:?}\ntoken_file = {:?}\nnamespace = \"shop\"\n",
            self.api.url(),
            self.site.path("ca.crt").display().to_string(),
            self.site.path("token").display().to_string(),
        );
        Member::start(site, name, &store, listener)
    }

    /// Two members of one fleet.
    fn pair(&self, upstream: &Upstream) -> [Member; 2] {
        let members = ["a", "b"].map(|name| self.member(TestDir::new(), name, &listener(upstream)));
        members.iter().for_each(|member| member.await_members(2, 0));
        members
    }

    /// The server answers each request with this.
    fn answer(&self, answer: Option<Answer>) {
        self.api.answer_lists(answer.clone());
        self.api.answer_watches(answer);
    }
}

#[test]
fn changed_rule_is_in_force_at_every_member_and_ends_its_sessions() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let [a, b] = cluster.pair(&upstream);
    let added = a.append("127.0.0.7").expect(201);
    b.has(&["127.0.0.7"]);
    let mut sessions = [&a, &b].map(|member| member.session("127.0.0.7"));
    let uuid = added["rules"][0]["uuid"].as_str().unwrap();
    assert_eq!(b.api().delete(&format!("{SOURCES}/{uuid}")).status, 204);
    for (member, session) in [&a, &b].into_iter().zip(&mut sessions) {
        let _ = session.rest();
        assert_eq!(member.0.ending(session.port()).reason(), "source_revoked");
    }
    a.has(&[]);
    assert!(!a.admits("127.0.0.7"));
}

#[test]
fn change_is_in_force_at_every_member_and_ends_its_sessions_within_a_second() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let [a, b] = cluster.pair(&upstream);
    assert_changes_are_prompt(&a, &b);
}

#[test]
fn sessions_of_a_source_are_counted_and_closed_at_all_members() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let [a, b] = cluster.pair(&upstream);
    let many: Vec<_> = (0..6_000).map(|number: u32| format!("10.{}.{}.1", number / 250, number % 250)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).chain(["127.0.0.0/8"]).collect();
    assert_eq!(a.api().put(&format!("{SOURCES}?wait=5s"), &rules(&many)).status, 204);
    let mut sessions = [&a, &b].map(|member| member.session("127.0.0.7"));
    let plan = a.api().put(&format!("{SOURCES}?plan=true"), &rules(&many[..6_000])).expect(200);
    assert_eq!(plan["fleet"], json!({ "sessions_ended_count": 2, "missing": [] }));
    let rotation = b.api().get("/v1/rotation?fleet=true").expect(200);
    let items = rotation["items"].as_array().unwrap();
    let used: Vec<_> = items.iter().filter(|item| item["kind"] == "source" && item["sessions"] != 0).collect();
    assert!(
        used.len() == 1 && used[0]["sessions"] == 2 && used[0]["name"].as_str().unwrap().contains("127.0.0.0/8"),
        "{used:?}"
    );
    assert_eq!(rotation["members"], json!(["a", "b"]));
    let outcome = a.command(&["sessions", "close", "--source", "127.0.0.7", "--fleet"]);
    assert_eq!((outcome.code, outcome.text()), (Some(0), "2 sessions are closed\n".to_owned()));
    for session in &mut sessions {
        let _ = session.rest();
    }
}

#[test]
fn without_the_api_the_last_good_rules_stay_and_changes_are_refused_in_time() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let member = cluster.member(TestDir::new(), "a", &listener(&upstream));
    member.await_store("up");
    member.append("127.0.0.7").expect(201);
    cluster.api.partition(true);
    let begin = Instant::now();
    let reply = member.append("127.0.0.8");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(reply.header("retry-after").is_some());
    reply.expect_error(503, "service_unavailable");
    assert!(member.admits("127.0.0.7"));
    member.0.event("the store is down", |event| event.is("fleet.store_down"));
    assert!(member.admits("127.0.0.7"));

    cluster.api.partition(false);
    cluster.answer(Some(Answer::error(503, "the server is starting")));
    let restarted = cluster.member(member.stop(), "a", &listener(&upstream));
    restarted.await_store("down");
    assert!(restarted.admits("127.0.0.7"), "from the last good copy");
    restarted.append("127.0.0.8").expect_error(503, "service_unavailable");
    restarted.0.event("the store is down", |event| event.is("fleet.store_down"));
    cluster.answer(None);
    restarted.await_store("up");
    restarted.0.event("the store is up", |event| event.is("fleet.store_up"));
    restarted.append("127.0.0.8").expect(201);
    restarted.has(&["127.0.0.7", "127.0.0.8"]);
}

#[test]
fn member_without_a_copy_admits_no_one_by_rules_of_the_fleet() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    cluster.answer(Some(Answer::error(503, "the server is starting")));
    let member = cluster.member(TestDir::new(), "a", &listener(&upstream));
    member.await_store("down");
    assert!(!member.admits("127.0.0.7"));
    let status = member.command(&["status"]).success();
    assert!(status.contains("main unknown: no rules of the fleet are known here"), "{status}");
}

#[test]
fn restored_cluster_is_refused_until_an_operator_accepts_it() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let [a, b] = cluster.pair(&upstream);
    a.append("127.0.0.7").expect(201);
    let backup = cluster.api.backup();
    a.append("127.0.0.8").expect(201);
    b.has(&["127.0.0.7", "127.0.0.8"]);
    cluster.api.restore(backup, true);
    for member in [&a, &b] {
        member.await_store("refused");
        member.has(&["127.0.0.7", "127.0.0.8"]);
        member.0.event("the store is refused", |event| event.is("fleet.store_refused"));
    }
    a.append("127.0.0.9").expect_error(503, "service_unavailable");
    let outcome = a.command(&["fleet", "accept"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.text());
    for member in [&a, &b] {
        member.await_store("up");
        member.has(&["127.0.0.7"]);
    }
}

#[test]
fn namespace_that_was_made_anew_is_refused_and_gets_the_last_good_rules_when_it_is_accepted() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let member = cluster.member(TestDir::new(), "a", &listener(&upstream));
    member.await_store("up");
    member.append("127.0.0.7").expect(201);
    for plural in ["/configmaps", "/secrets"] {
        cluster.api.objects(plural).iter().for_each(|object| cluster.api.delete(object));
    }
    member.0.event("the rules are missing", |event| event.is("fleet.rules_missing"));
    cluster.api.put(&namespace("shop", "77aa"));
    cluster.api.compact();
    member.await_store("refused");
    assert!(member.admits("127.0.0.7"));
    member.append("127.0.0.8").expect_error(503, "service_unavailable");
    let accepted = member.api().post("/v1/fleet/accept", &json!({})).expect(200);
    assert_eq!(accepted["rules_written"], json!(["main"]));
    member.await_store("up");
    member.append("127.0.0.8").expect(201);
    member.has(&["127.0.0.7", "127.0.0.8"]);
}

#[test]
fn ticket_keys_are_sealed_in_a_secret_and_a_ticket_is_valid_at_every_member() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let listener = Listener::tcp(&upstream).trusting(&["127.0.0.0/8"]).tls("ticket_keys = \"fleet\"");
    let first = TestDir::new();
    let second = first.with_same_certificate();
    let members = [("a", first), ("b", second)].map(|(name, site)| cluster.member(site, name, &listener));
    for member in &members {
        eventually("the ticket keys are shared", || (member.fleet()["tickets"]["sequence"] == 1).then_some(()));
    }
    let secrets = cluster.api.objects("/secrets");
    let value = STANDARD.decode(secrets[0]["data"]["value"].as_str().unwrap()).unwrap();
    let ring: Value = serde_json::from_slice(&value).unwrap();
    let sealed = ring["keys"][0]["sealed"].as_str().unwrap();
    assert_eq!((secrets.len(), ring["keys"].as_array().unwrap().len()), (1, 1));
    for other in ["/configmaps", "/leases"] {
        assert!(!json!(cluster.api.objects(other)).to_string().contains(sealed), "{other}");
    }
    let sent = cluster.api.requests().iter().map(|request| request.body.clone()).collect::<String>();
    assert!(!sent.contains(FLEET_KEY.trim()), "the key that seals never leaves the member");

    let mut client = members[0].0.client().speaking(&TLS13);
    for (member, expected) in [(&members[0], HandshakeKind::Full), (&members[1], HandshakeKind::Resumed)] {
        client.go_to(member.0.address("main"));
        let connection = client.attempt().1.unwrap();
        assert_eq!(connection.tls().handshake_kind(), Some(expected));
    }

    let other = TestDir::new();
    other.write("fleet.key", format!("{}\n", STANDARD.encode([7; 32])));
    let other = cluster.member(other, "c", &listener);
    other.0.event("the keys cannot be unsealed", |event| event.is("fleet.key_wrong"));
}

#[test]
fn members_are_leases_and_a_killed_one_is_unknown_when_its_lease_has_expired() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let [a, b] = cluster.pair(&upstream);
    let leases = cluster.api.objects("/leases");
    assert_eq!(leases.len(), 2);
    assert!(leases.iter().all(|lease| lease["spec"]["leaseDurationSeconds"] == 10), "{leases:?}");
    let site = b.kill();
    let body = a.api().post(&format!("{SOURCES}?wait=1s"), &rules(&["127.0.0.7"])).expect(202);
    assert_eq!(body["missing"][0]["member"], "b");
    a.await_members(1, 1);
    let restarted = cluster.member(site, "b", &listener(&upstream));
    a.await_members(2, 0);
    restarted.has(&["127.0.0.7"]);
    drop(restarted.stop());
    a.await_members(1, 0);
    assert_eq!(cluster.api.objects("/leases").len(), 1, "a clean stop leaves");
}

#[test]
fn rejected_token_is_reported_and_a_new_one_is_used() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let member = cluster.member(TestDir::new(), "a", &listener(&upstream));
    member.await_store("up");
    member.append("127.0.0.7").expect(201);
    cluster.api.require_token("token-2");
    cluster.api.cut_watches();
    member.await_store("down");
    let detail = member.fleet()["store"]["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("HTTP 401"), "{detail}");
    let down = member.0.event("the store is down", |event| event.is("fleet.store_down"));
    assert!(down.text("error").contains("HTTP 401"), "{}", down.0);
    assert!(member.admits("127.0.0.7"));
    let seen = member.0.seen();
    cluster.site.replace("token", "token-2\n");
    let replaced = Instant::now();
    member.0.event_after(seen, "the store is up", |event| event.is("fleet.store_up"));
    assert!(replaced.elapsed() < Duration::from_secs(10), "{:?}", replaced.elapsed());
    member.append("127.0.0.8").expect(201);
}

#[test]
fn reload_with_another_fleet_section_continues_at_once() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let member = cluster.member(TestDir::new(), "a", &listener(&upstream));
    member.await_store("up");
    member.append("127.0.0.7").expect(201);
    let file = member.0.site.path("portcullis.toml");
    let change = |from: &str, to: &str| {
        let text = fs::read_to_string(&file).unwrap().replace(from, to);
        assert!(member.0.reconfigure(text).is("reload.applied"));
    };
    // The store is the same, and is not listed again.
    change("member = \"a\"", "member = \"b\"");
    eventually("the other name is in the fleet", || {
        member.fleet()["members"].as_array().unwrap().iter().any(|member| member["member"] == "b").then_some(())
    });
    member.append("127.0.0.8").expect(201);
    // Another fleet has no rules yet, and those of the former one are not taken for its own.
    change("name = \"prod\"", "name = \"test\"");
    eventually("the other store is up", || {
        let fleet = member.fleet();
        (fleet["name"] == "test" && fleet["store"]["state"] == "up").then_some(())
    });
    member.has(&[]);
    member.append("127.0.0.9").expect(201);
    member.has(&["127.0.0.9"]);
    change("name = \"test\"", "name = \"prod\"");
    member.has(&["127.0.0.7", "127.0.0.8"]);
}

/// A right: API group, resource, verb.
type Right = (String, String, String);

fn right(group: &str, resource: &str, verb: &str) -> Right {
    (group.to_owned(), resource.to_owned(), verb.to_owned())
}

/// The right that a request needs.
fn needed(request: &Seen) -> Right {
    let mut parts: Vec<_> = request.path.trim_start_matches('/').split('/').collect();
    let group = if parts[0] == "apis" { parts[1] } else { "" };
    parts.drain(..if parts[0] == "apis" { 3 } else { 2 });
    // The namespace itself is an object too.
    if parts[0] == "namespaces" && parts.len() > 2 {
        parts.drain(..2);
    }
    let verb = match (request.method.as_str(), parts.len()) {
        ("GET", 1) if request.is_watch() => "watch",
        ("GET", 1) => "list",
        ("GET", _) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("DELETE", 2) => "delete",
        other => panic!("{other:?}"),
    };
    right(group, parts[0], verb)
}

/// The rights of a Role of the manifests. None is limited to names, because those of the objects have a digest.
fn granted(role: &str) -> BTreeSet<Right> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes/gateway/base/rbac.yaml");
    let text = fs::read_to_string(file).unwrap();
    let mut documents = text.split("\n---\n");
    let head = format!("kind: Role\nmetadata:\n  name: {role}\n");
    let document = documents.find(|document| document.contains(&head)).unwrap();
    assert!(!document.contains("resourceNames"), "{document}");
    let lists = |key: &str| -> Vec<Vec<String>> {
        let lines = document.lines().filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(key));
        lines.map(|list| serde_json::from_str(list).unwrap()).collect()
    };
    let (groups, resources, verbs) = (lists("apiGroups: "), lists("resources: "), lists("verbs: "));
    assert!(groups.len() == resources.len() && groups.len() == verbs.len());
    let mut rights = BTreeSet::new();
    for ((groups, resources), verbs) in groups.iter().zip(&resources).zip(&verbs) {
        for resource in resources {
            rights.extend(verbs.iter().map(|verb| right(&groups[0], resource, verb)));
        }
    }
    rights
}

#[test]
fn role_of_the_manifests_grants_what_the_members_use_and_nothing_else() {
    let (cluster, upstream) = (Cluster::new(), Upstream::echo());
    let listener = listener(&upstream).tls("ticket_keys = \"fleet\"");
    let [a, b] = ["a", "b"].map(|name| cluster.member(TestDir::new(), name, &listener));
    a.await_members(2, 0);
    let many: Vec<_> = (0..3_000).map(|number: u32| format!("10.{}.{}.1", number / 250, number % 250)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(a.api().put(SOURCES, &rules(&many)).status, 204);
    assert_eq!(a.api().put(SOURCES, &rules(&["127.0.0.7"])).status, 204);
    b.has(&["127.0.0.7"]);
    b.kill();
    a.await_members(1, 1);
    assert_eq!(a.command(&["fleet", "forget", "b"]).code, Some(0));
    let used = || cluster.api.requests().iter().map(needed).collect::<BTreeSet<_>>();
    eventually("unused chunks are removed", || used().contains(&right("", "configmaps", "delete")).then_some(()));
    drop(a.stop());
    let mut used = used();
    // The first rotation of the ticket keys is after a minute at the earliest.
    used.insert(right("", "secrets", "update"));
    assert_eq!(used, granted("portcullis-fleet"));
}

#[test]
fn invalid_connection_is_reported_once() {
    let site = TestDir::new();
    let upstream = Upstream::echo();
    let fleet = "state.directory = \"state\"\n[fleet]\nname = \"prod\"\nstore = \"kubernetes\"\n";
    let resolver = "[resolver.kubernetes]\nserver = \"http://127.0.0.1:1\"\n";
    for section in ["", "[fleet.kubernetes]\nnamespace = \"shop\"\n"] {
        site.write("portcullis.toml", format!("{fleet}{section}{resolver}{}", listener(&upstream)));
        let outcome = run(executable().args(["check", "--offline", "-c"]).arg(site.path("portcullis.toml")));
        assert_eq!(outcome.code, Some(78), "{}", outcome.text());
        assert!(outcome.stderr.contains("resolver.kubernetes.server"), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("fleet.kubernetes"), "{}", outcome.stderr);
    }
}
