//! The resolver of Kubernetes sources against an API server over TLS.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::agent::{Agent, addresses, receive, send};
use crate::harness::kubernetes::{Answer, KubernetesApi, node, pod, slice};
use crate::harness::program::Running;
use crate::harness::rights::{granted, needed};
use crate::harness::{Authority, TestDir, WAIT_TIMEOUT};

/// A cluster, and the resolver that watches it.
struct Cluster {
    site: TestDir,
    api: KubernetesApi,
}

impl Cluster {
    fn new() -> Self {
        let site = TestDir::new();
        let api = KubernetesApi::start(&site);
        api.require_token("token-1");
        site.write("token", "token-1\n");
        Self { site, api }
    }

    fn settings(&self) -> Value {
        let token = json!({ "file": self.site.path("token") });
        json!({ "connection": "server", "server": self.api.url(), "ca": self.site.path("ca.crt"), "token": token })
    }

    fn resolve(&self, sources: &[&str]) -> Resolver {
        Resolver::start(self.settings(), sources)
    }

    fn lists(&self) -> usize {
        self.api.requests().iter().filter(|request| !request.is_watch()).count()
    }

    fn watches(&self) -> usize {
        self.api.requests().iter().filter(|request| request.is_watch()).count()
    }

    /// Waits for an open watch, so that a change is reported by it and not by the list.
    fn watched(&self, count: usize) {
        crate::harness::eventually("a watch", || (self.watches() >= count).then_some(()));
    }
}

/// An agent that resolves sources of a cluster.
struct Resolver {
    settings: Value,
    stream: RefCell<UnixStream>,
    observed: mpsc::Receiver<Observed>,
    _process: Running,
}

#[derive(Clone, Debug)]
struct Observed {
    at: Instant,
    source: String,
    /// `10.0.0.1 node worker-1`, or the error.
    result: Result<Vec<String>, String>,
    evidence: &'static str,
}

impl Observed {
    fn new(source: String, observation: &Value) -> Self {
        let result = match observation.get("addresses") {
            Some(_) => Ok(addresses(observation)),
            None => Err(observation["failed"]["error"].as_str().unwrap_or_default().to_owned()),
        };
        let evidence = if observation["addresses"]["evidence"] == "watch" { "watch" } else { "list" };
        Self { at: Instant::now(), source, result, evidence }
    }

    fn is_list_of(&self, addresses: &[&str]) -> bool {
        self.result.as_ref().is_ok_and(|found| found == addresses)
    }
}

impl Resolver {
    fn start(settings: Value, sources: &[&str]) -> Self {
        let Agent { process, stream: mut messages, .. } = Agent::start();
        // A test waits with a limit of its own.
        messages.set_read_timeout(None).unwrap();
        let stream = RefCell::new(messages.try_clone().unwrap());
        let (sender, observed) = mpsc::channel();
        thread::spawn(move || {
            while let Some(message) = receive(&mut messages) {
                let observed = &message["observed"];
                let source = observed["source"].as_str().unwrap_or_default().to_owned();
                if sender.send(Observed::new(source, &observed["observation"])).is_err() {
                    return;
                }
            }
        });
        let resolver = Self { settings, stream, observed, _process: process };
        resolver.set_sources(sources);
        resolver
    }

    fn set_sources(&self, sources: &[&str]) {
        let sources: Vec<_> = sources.iter().map(|source| format!("kubernetes:{source}")).collect();
        let task = json!({ "digitalocean": null, "kubernetes": self.settings, "sources": sources });
        send(&mut self.stream.borrow_mut(), &json!({ "task": task }));
    }

    fn next(&self) -> Observed {
        self.observed.recv_timeout(WAIT_TIMEOUT).expect("something is observed")
    }

    /// The next observation within a time.
    fn within(&self, time: Duration) -> Option<Observed> {
        self.observed.recv_timeout(time).ok()
    }

    /// Waits for these addresses. Nothing else may be observed before, except the same as at first.
    #[track_caller]
    fn expect(&self, addresses: &[&str]) -> Observed {
        let mut earlier: Option<Observed> = None;
        loop {
            let observed = self.next();
            if observed.is_list_of(addresses) {
                return observed;
            }
            let is_repeated = earlier.as_ref().is_none_or(|earlier| earlier.result == observed.result);
            assert!(observed.result.is_ok() && is_repeated, "{observed:?}, not {addresses:?}");
            earlier = Some(observed);
        }
    }

    /// Waits for a failure with this text. No set that differs from the known one may be observed before.
    #[track_caller]
    fn expect_failure(&self, known: &[&str], text: &str) -> Observed {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let observed = self.next();
            match &observed.result {
                Err(error) if error.contains(text) => return observed,
                // The end of an earlier trial.
                Err(_) => assert!(Instant::now() < deadline, "{observed:?}, not {text:?}"),
                Ok(_) => assert!(observed.is_list_of(known), "{observed:?}, not {text:?}"),
            }
        }
    }

    /// Waits for these addresses after failures, during which the known ones stay.
    #[track_caller]
    fn recovers(&self, known: &[&str], addresses: &[&str]) {
        loop {
            let observed = self.next();
            match &observed.result {
                Ok(_) if observed.is_list_of(addresses) => return,
                Ok(_) => assert!(observed.is_list_of(known), "{observed:?}, not {addresses:?}"),
                Err(_) => {}
            }
        }
    }
}

/// The only pod of many tests.
const WEB: &[&str] = &["10.244.0.1 pod shop/web-0"];

fn web(name: &str, ip: &str) -> Value {
    pod("shop", name, ip, json!({ "app": "web" }))
}

#[test]
fn nodes_pods_and_services_resolve_with_their_objects() {
    let cluster = Cluster::new();
    cluster.api.put(&node("worker-1", "192.0.2.1", json!({ "pool": "a" })));
    cluster.api.put(&node("worker-2", "192.0.2.2", json!({ "pool": "b" })));
    cluster.api.put(&web("web-0", "10.244.0.1"));
    cluster.api.put(&pod("shop", "db-0", "10.244.0.2", json!({ "app": "db" })));
    cluster.api.put(&pod("other", "web-0", "10.244.0.3", json!({ "app": "web" })));
    cluster.api.put(&slice("shop", "web", "x7k2p", &[("web-0", "10.244.0.1")]));
    cluster.api.put(&slice("shop", "web", "m4qpz", &[("web-1", "10.244.0.9")]));
    cluster.api.put(&slice("shop", "db", "k2j4h", &[("db-0", "10.244.0.2")]));
    for (source, expected) in [
        ("nodes", &["192.0.2.1 node worker-1", "192.0.2.2 node worker-2"][..]),
        ("nodes:pool in (b, c)", &["192.0.2.2 node worker-2"]),
        ("pods:shop", &["10.244.0.1 pod shop/web-0", "10.244.0.2 pod shop/db-0"]),
        ("pods:shop:app=web,!gone", &["10.244.0.1 pod shop/web-0"]),
        ("service:shop/web", &["10.244.0.1 pod shop/web-0", "10.244.0.9 pod shop/web-1"]),
        ("service:shop/missing", &[]),
        ("pods:missing", &[]),
    ] {
        let observed = cluster.resolve(&[source]).expect(expected);
        assert_eq!((observed.source.as_str(), observed.evidence), (&*format!("kubernetes:{source}"), "list"));
    }
}

#[test]
fn change_is_observed_within_two_seconds() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let resolver = cluster.resolve(&["pods:shop"]);
    resolver.expect(WEB);
    cluster.watched(1);
    let change = |change: &dyn Fn(), expected: &[&str]| {
        let changed = Instant::now();
        change();
        let observed = resolver.expect(expected);
        assert!(observed.at.duration_since(changed) < Duration::from_secs(2), "{:?}", observed.at - changed);
        assert_eq!(observed.evidence, "watch");
    };
    let (first, second) = ("10.244.0.1 pod shop/web-0", "10.244.0.2 pod shop/web-1");
    change(&|| cluster.api.put(&web("web-1", "10.244.0.2")), &[first, second]);
    let mut terminating = web("web-0", "10.244.0.1");
    terminating["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    cluster.api.put(&terminating);
    assert!(resolver.within(Duration::from_millis(500)).is_none(), "a pod that is being deleted still counts");
    let mut ended = terminating.clone();
    ended["status"]["phase"] = json!("Succeeded");
    change(&|| cluster.api.put(&ended), &[second]);
    change(&|| cluster.api.delete(&web("web-1", "10.244.0.2")), &[]);
    assert_eq!((cluster.lists(), cluster.watches()), (1, 1));
}

#[test]
fn object_that_no_longer_matches_the_selector_is_removed() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    cluster.api.put(&web("web-1", "10.244.0.2"));
    let resolver = cluster.resolve(&["pods:shop:app=web"]);
    resolver.expect(&["10.244.0.1 pod shop/web-0", "10.244.0.2 pod shop/web-1"]);
    cluster.watched(1);
    cluster.api.put(&pod("shop", "web-0", "10.244.0.1", json!({ "app": "db" })));
    assert_eq!(resolver.expect(&["10.244.0.2 pod shop/web-1"]).evidence, "watch");
}

#[test]
fn pages_are_one_complete_set() {
    let cluster = Cluster::new();
    for number in 0..1_201 {
        cluster.api.put(&web(&format!("web-{number:04}"), &format!("10.244.{}.{}", number / 250, number % 250)));
    }
    let observed = cluster.resolve(&["pods:shop"]).next();
    assert_eq!(observed.result.unwrap().len(), 1_201);
    assert_eq!(cluster.lists(), 3);
    assert!(cluster.api.requests().iter().all(|request| request.is_watch() || request.query["limit"] == "500"));
}

#[test]
fn burst_of_changes_is_reported_together() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-000", "10.244.9.9"));
    let resolver = cluster.resolve(&["pods:shop"]);
    resolver.next();
    cluster.watched(1);
    for number in 1..200 {
        cluster.api.put(&web(&format!("web-{number:03}"), &format!("10.244.0.{number}")));
    }
    let mut reports = 0;
    while resolver.next().result.unwrap().len() < 200 {
        reports += 1;
    }
    assert!(reports < 20, "{reports} reports");
}

#[test]
fn empty_list_is_confirmed_by_a_second_one() {
    let cluster = Cluster::new();
    let resolver = cluster.resolve(&["pods:shop"]);
    let (first, second) = (resolver.expect(&[]), resolver.expect(&[]));
    assert_eq!((first.evidence, second.evidence), ("list", "list"));
    assert!(second.at - first.at >= Duration::from_secs(1), "{:?}", second.at - first.at);
    cluster.watched(1);
    assert_eq!(cluster.lists(), 2);
    cluster.api.put(&web("web-0", "10.244.0.1"));
    resolver.expect(WEB);
}

#[test]
fn list_that_is_empty_for_a_moment_is_repeated() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let resolver = cluster.resolve(&["pods:shop"]);
    resolver.expect(WEB);
    cluster.watched(1);
    let empty =
        json!({ "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "1002" }, "items": null });
    cluster.api.answer_lists(Some(Answer::text(&empty.to_string())));
    cluster.api.compact();
    assert_eq!(resolver.expect(&[]).evidence, "list");
    cluster.api.answer_lists(None);
    let observed = resolver.expect(WEB);
    assert_eq!(observed.evidence, "list");
}

#[test]
fn forgotten_version_is_listed_again_without_a_failure() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    cluster.api.put(&web("web-1", "10.244.0.2"));
    let resolver = cluster.resolve(&["pods:shop"]);
    resolver.expect(&["10.244.0.1 pod shop/web-0", "10.244.0.2 pod shop/web-1"]);
    cluster.watched(1);
    cluster.api.delete(&web("web-0", "10.244.0.1"));
    cluster.api.compact();
    let left = &["10.244.0.2 pod shop/web-1"];
    resolver.expect(left);
    cluster.watched(3);
    cluster.api.put(&web("web-2", "10.244.0.3"));
    let observed = resolver.expect(&["10.244.0.2 pod shop/web-1", "10.244.0.3 pod shop/web-2"]);
    assert_eq!(observed.evidence, "watch");
}

#[test]
fn cut_watch_continues_at_the_last_version() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let resolver = cluster.resolve(&["pods:shop"]);
    resolver.expect(WEB);
    cluster.watched(1);
    cluster.api.cut_watches();
    cluster.api.put(&web("web-1", "10.244.0.2"));
    let observed = resolver.expect(&["10.244.0.1 pod shop/web-0", "10.244.0.2 pod shop/web-1"]);
    assert_eq!((observed.evidence, cluster.lists()), ("watch", 1));
}

/// A server that was restored from a backup: its versions go back.
fn restored_server(rejects_future_versions: bool) {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let backup = cluster.api.backup();
    cluster.api.put(&web("web-1", "10.244.0.2"));
    cluster.api.put(&web("web-2", "10.244.0.3"));
    let resolver = cluster.resolve(&["pods:shop"]);
    let all = ["10.244.0.1 pod shop/web-0", "10.244.0.2 pod shop/web-1", "10.244.0.3 pod shop/web-2"];
    resolver.expect(&all);
    cluster.watched(1);
    cluster.api.restore(backup, rejects_future_versions);
    let observed = resolver.expect(&all[..1]);
    assert_eq!(observed.evidence, "list");
    assert_eq!(resolver.expect(&all[..1]).evidence, "list", "seen twice");
    cluster.watched(3);
    cluster.api.put(&web("web-9", "10.244.0.9"));
    resolver.expect(&[all[0], "10.244.0.9 pod shop/web-9"]);
}

#[test]
fn restored_server_with_older_bookmarks_is_listed_again() {
    restored_server(false);
}

#[test]
fn restored_server_that_rejects_later_versions_is_listed_again() {
    restored_server(true);
}

#[test]
fn changed_token_is_read_again_at_once() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let resolver = cluster.resolve(&["pods:shop", "nodes"]);
    resolver.next();
    cluster.watched(1);
    cluster.site.replace("token", "token-2");
    cluster.api.require_token("token-2");
    cluster.api.put(&web("web-1", "10.244.0.2"));
    cluster.api.cut_watches();
    cluster.api.put(&node("worker-1", "192.0.2.1", json!({})));
    let mut is_resolved = [false; 2];
    while is_resolved != [true; 2] {
        let observed = resolver.next();
        let found = observed.result.expect("no failure");
        is_resolved[0] |= found.iter().any(|address| address.contains("web-1"));
        is_resolved[1] |= found.iter().any(|address| address.contains("worker-1"));
    }
}

#[test]
fn rejected_token_is_a_failure_until_the_file_changes() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    cluster.site.write("token", "wrong");
    let resolver = cluster.resolve(&["pods:shop"]);
    let error = resolver.expect_failure(&[], "HTTP 401").result.unwrap_err();
    assert_eq!(error, "cannot list pods: the API server answers HTTP 401: Unauthorized; check the token");
    cluster.site.write("token", "token-1");
    resolver.recovers(&[], WEB);
}

#[test]
fn failed_list_and_watch_keep_the_set_and_recover() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let resolver = cluster.resolve(&["pods:shop"]);
    resolver.expect(WEB);
    cluster.watched(1);
    let watches_again = || {
        cluster.api.put(&web("web-1", "10.244.0.2"));
        resolver.recovers(WEB, &["10.244.0.1 pod shop/web-0", "10.244.0.2 pod shop/web-1"]);
        cluster.api.delete(&web("web-1", "10.244.0.2"));
        resolver.expect(WEB);
    };
    let bad_item =
        r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[{"metadata":{}}]}"#;
    let page_loop =
        r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"5","continue":"x"},"items":[]}"#;
    let no_version = r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[]}"#;
    for (answer, error) in [
        (
            Answer::error(403, "pods is forbidden: User \"x\" cannot list resource \"pods\""),
            "HTTP 403: pods is forbidden",
        ),
        (
            Answer::error(429, "the server has received too many requests").with(429, "Retry-After: 1\r\n"),
            "HTTP 429: the",
        ),
        (Answer::text("<html>\u{202e}").with(500, ""), "HTTP 500"),
        (Answer::error(503, "etcd leader changed\r\n\u{1b}[2J"), "leader changed\\r\\n\\u{1b}[2J"),
        (Answer::text("").with(302, "Location: https://localhost:1/\r\n"), "redirects are not followed"),
        (Answer::text("{}"), "the answer is not"),
        (Answer::text("{\"kind\":\"PodList\","), "the answer is not valid"),
        (Answer::text(&"[".repeat(1 << 20)), "the answer is not valid"),
        (Answer::text(no_version), "no resourceVersion"),
        (Answer::text(&no_version.replace("Pod", "Node")), "the answer is not a PodList"),
        (Answer::text(bad_item), "no valid name"),
        (Answer::text(page_loop), "invalid continue token"),
    ] {
        cluster.api.answer_lists(Some(answer.clone()));
        cluster.api.compact();
        let observed = resolver.expect_failure(WEB, error);
        assert!(observed.result.as_ref().unwrap_err().len() <= 512, "{observed:?}");
        cluster.api.answer_lists(None);
        resolver.recovers(WEB, WEB);
        watches_again();
    }
    let event = |text: &str| Answer::text(&format!("{text}\n"));
    for (answer, error) in [
        (
            Answer::error(403, "pods is forbidden"),
            "cannot watch pods: the API server answers HTTP 403: pods is forbidden",
        ),
        (Answer::error(500, "boom"), "cannot watch pods: the API server answers HTTP 500: boom"),
        (event("garbage"), "the answer is not valid"),
        (event(r#"{"type":"ADDED","object":{"metadata":{"name":"x"}}}"#), "no resourceVersion"),
        (event(r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"9999"}}}"#), "no valid name"),
        (event(r#"{"type":"EXPLODED","object":{}}"#), "the answer is not valid"),
        (event(r#"{"type":"ERROR","object":{"code":500,"message":"etcdserver: no leader"}}"#), "no leader"),
        (Answer::text(""), "ends each watch at once"),
    ] {
        cluster.api.answer_watches(Some(answer.clone()));
        resolver.expect_failure(WEB, error);
        cluster.api.answer_watches(None);
        resolver.recovers(WEB, WEB);
        watches_again();
    }
}

#[test]
fn endless_answers_are_cut() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let resolver = cluster.resolve(&["pods:shop"]);
    resolver.expect(WEB);
    cluster.watched(1);
    cluster.api.answer_watches(Some(Answer::endless("x")));
    resolver.expect_failure(WEB, "more than 8388608 bytes in one event");
    cluster.api.answer_watches(None);
    resolver.recovers(WEB, WEB);
    cluster.api.answer_lists(Some(Answer::endless("[[[[ ")));
    cluster.api.compact();
    resolver.expect_failure(WEB, "cannot list pods");
}

#[test]
fn too_many_addresses_are_a_failure() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let resolver = cluster.resolve(&["pods:shop"]);
    resolver.expect(WEB);
    let mut large = web("web-1", "10.244.0.2");
    large["status"]["podIPs"] = json!(vec![json!({ "ip": "10.244.0.2" }); 65_536]);
    cluster.watched(1);
    cluster.api.put(&large);
    resolver.expect_failure(WEB, "more than 65536 addresses");
    cluster.api.delete(&large);
    resolver.recovers(WEB, WEB);
}

#[test]
fn silent_server_is_a_failure_after_ten_seconds() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    cluster.api.partition(true);
    let started = Instant::now();
    let resolver = cluster.resolve(&["pods:shop"]);
    let observed = resolver.expect_failure(&[], "cannot list pods: no answer within 10s");
    assert!((8..20).contains(&(observed.at - started).as_secs()), "{:?}", observed.at - started);
    cluster.api.partition(false);
    resolver.recovers(&[], WEB);
}

#[test]
fn partition_is_noticed_and_survived() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let resolver = cluster.resolve(&["pods:shop"]);
    resolver.expect(WEB);
    cluster.watched(1);
    cluster.api.partition(true);
    let parted = Instant::now();
    cluster.api.put(&web("web-1", "10.244.0.2"));
    let observed = resolver.expect_failure(WEB, "cannot watch pods: no answer within 10s");
    assert!((observed.at - parted).as_secs() < 75, "{:?}", observed.at - parted);
    cluster.api.partition(false);
    resolver.recovers(WEB, &["10.244.0.1 pod shop/web-0", "10.244.0.2 pod shop/web-1"]);
}

#[test]
fn watch_that_begins_and_stays_silent_is_restarted() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    cluster.api.answer_watches(Some(Answer::silence()));
    let resolver = cluster.resolve(&["pods:shop"]);
    resolver.expect(WEB);
    cluster.watched(1);
    cluster.api.answer_watches(None);
    cluster.api.put(&web("web-1", "10.244.0.2"));
    resolver.expect(&["10.244.0.1 pod shop/web-0", "10.244.0.2 pod shop/web-1"]);
    assert_eq!(cluster.lists(), 1);
}

#[test]
fn unchanged_set_is_observed_again() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let resolver = cluster.resolve(&["pods:shop"]);
    let first = resolver.expect(WEB);
    let second = resolver.expect(WEB);
    let between = second.at - first.at;
    assert!((10..60).contains(&between.as_secs()), "{between:?}");
}

#[test]
fn sources_start_and_stop_without_disturbing_others() {
    let cluster = Cluster::new();
    cluster.api.put(&node("worker-1", "192.0.2.1", json!({})));
    cluster.api.put(&web("web-0", "10.244.0.1"));
    let resolver = cluster.resolve(&["nodes"]);
    resolver.expect(&["192.0.2.1 node worker-1"]);
    cluster.watched(1);
    resolver.set_sources(&["nodes", "pods:shop"]);
    resolver.expect(WEB);
    cluster.watched(2);
    resolver.set_sources(&["nodes"]);
    cluster.api.put(&web("web-1", "10.244.0.2"));
    cluster.api.put(&node("worker-2", "192.0.2.2", json!({})));
    let observed = resolver.expect(&["192.0.2.1 node worker-1", "192.0.2.2 node worker-2"]);
    assert_eq!((observed.source.as_str(), cluster.lists(), cluster.watches()), ("kubernetes:nodes", 2, 2));
}

#[test]
fn cluster_role_of_the_manifests_grants_what_the_resolver_uses_and_nothing_else() {
    let cluster = Cluster::new();
    cluster.api.put(&node("worker-1", "192.0.2.1", json!({})));
    cluster.api.put(&web("web-0", "10.244.0.1"));
    cluster.api.put(&slice("shop", "web", "x7k2p", &[("web-0", "10.244.0.1")]));
    let _resolver = cluster.resolve(&["nodes", "pods:shop:app=web", "service:shop/web"]);
    cluster.watched(3);
    cluster.api.compact();
    // After the lists that this causes.
    cluster.watched(9);
    let used: BTreeSet<_> = cluster.api.requests().iter().map(needed).collect();
    for file in ["rbac-sources.yaml", "gateway/base/rbac.yaml"] {
        assert_eq!(used, granted(file, "portcullis-sources"), "{file}");
    }
}

/// The files are read again after a minute.
#[test]
fn changed_ca_is_used_after_a_minute() {
    let cluster = Cluster::new();
    cluster.api.put(&web("web-0", "10.244.0.1"));
    cluster.site.write("api-ca.crt", Authority::new("Former CA").pem());
    let mut settings = cluster.settings();
    settings["ca"] = json!(cluster.site.path("api-ca.crt"));
    let resolver = Resolver::start(settings, &["pods:shop"]);
    resolver.expect_failure(&[], "invalid peer certificate");
    cluster.site.replace("api-ca.crt", cluster.site.ca.pem());
    resolver.recovers(&[], WEB);
}

#[test]
fn token_is_not_sent_to_a_server_with_another_certificate() {
    let cluster = Cluster::new();
    cluster.site.write("other.crt", Authority::new("Other CA").pem());
    let mut settings = cluster.settings();
    settings["ca"] = json!(cluster.site.path("other.crt"));
    let resolver = Resolver::start(settings, &["nodes"]);
    resolver.expect_failure(&[], "invalid peer certificate");
    assert_eq!(cluster.api.requests(), []);
}

#[test]
fn redirect_is_not_followed() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let location = format!("Location: {}/api/v1/nodes\r\n", other.api.url());
    cluster.api.answer_lists(Some(Answer::text("").with(307, &location)));
    cluster.resolve(&["nodes"]).expect_failure(&[], "HTTP 307: redirects are not followed");
    assert_eq!(other.api.requests(), []);
}

#[test]
fn kubeconfig_names_server_ca_and_token_file() {
    let cluster = Cluster::new();
    cluster.api.put(&node("worker-1", "192.0.2.1", json!({})));
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: prod\n\
         clusters:\n- name: c\n  cluster: {{ server: '{}', certificate-authority: ca.crt }}\n\
         users:\n- name: other\n  user: {{ exec: {{ apiVersion: client.authentication.k8s.io/v1, command: false }} }}\n\
         - name: u\n  user: {{ tokenFile: token }}\n\
         contexts:\n- name: prod\n  context: {{ cluster: c, user: u }}\n",
        cluster.api.url()
    );
    cluster.site.write("kubeconfig", &kubeconfig);
    let settings = json!({ "connection": "kubeconfig", "file": cluster.site.path("kubeconfig") });
    Resolver::start(settings.clone(), &["nodes"]).expect(&["192.0.2.1 node worker-1"]);
    cluster.site.write("kubeconfig", kubeconfig.replace("user: u }", "user: other }"));
    let resolver = Resolver::start(settings, &["nodes"]);
    let error = resolver.expect_failure(&[], "exec plugin, which Portcullis does not run").result.unwrap_err();
    assert!(error.starts_with(&format!("cannot list nodes: {}", cluster.site.path("kubeconfig").display())), "{error}");
}

#[test]
fn unreachable_server_is_a_failure_that_names_the_cause() {
    let cluster = Cluster::new();
    let mut settings = cluster.settings();
    settings["server"] = json!("https://localhost:1");
    Resolver::start(settings, &["nodes"]).expect_failure(&[], "Connection refused");
}
