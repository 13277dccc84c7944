//! The agent with the store of a fleet in a Kubernetes API. The tests send its messages themselves.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::kubernetes::{Answer, KubernetesApi, namespace};
use crate::harness::store::{StoreAgent, failure, pairs, version};
use crate::harness::{TestDir, eventually};

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

    fn settings(&self, fleet: &str) -> Value {
        let token = json!({ "file": self.site.path("token") });
        let connection =
            json!({ "connection": "server", "server": self.api.url(), "ca": self.site.path("ca.crt"), "token": token });
        json!({ "fleet": fleet, "engine": { "kubernetes": { "connection": connection, "namespace": "shop" } } })
    }

    fn agent(&self) -> StoreAgent {
        StoreAgent::start(&self.settings("prod"))
    }

    /// An agent that has listed the empty store, and watches it.
    fn listed(&self) -> StoreAgent {
        let mut agent = self.agent();
        assert!(agent.listed().keys.is_empty());
        self.watched(2);
        agent
    }

    /// How often the agent has begun to list and watch.
    fn attempts(&self) -> usize {
        self.api.requests().iter().filter(|request| request.path == "/api/v1/namespaces/shop").count()
    }

    fn watched(&self, count: usize) {
        let watches = || self.api.requests().iter().filter(|request| request.is_watch()).count();
        eventually("a watch", || (watches() >= count).then_some(()));
    }
}

#[test]
fn shared_keys_are_objects_that_are_listed_and_watched() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    version(&agent.put("shared/rules/cache", "{}", &json!("absent")));
    agent.changed("shared/rules/cache", Some("{}"));
    version(&agent.put("shared/tickets", "sealed", &json!("absent")));
    agent.changed("shared/tickets", Some("sealed"));
    version(&agent.put("chunks/cache/0f", "10.0.0.1", &json!("absent")));
    version(&agent.put("shared/epoch", "1", &json!("absent")));
    agent.changed("shared/epoch", Some("1"));
    version(&agent.delete("shared/epoch", &json!("any")));
    agent.changed("shared/epoch", None);
    let mut other = cluster.agent();
    let listed = other.listed();
    assert_eq!(listed.keys, pairs(&[("shared/rules/cache", "{}"), ("shared/tickets", "sealed")]));
    assert_eq!(listed.cluster, "5d0c");
    assert!(listed.revision > 1000, "{listed:?}");
    let secrets = cluster.api.objects("/secrets");
    assert_eq!((secrets.len(), &secrets[0]["data"]["value"]), (1, &json!("c2VhbGVk")));
    let maps = cluster.api.objects("/configmaps");
    let keys: Vec<_> = maps.iter().map(|map| &map["metadata"]["annotations"]["portcullis/key"]).collect();
    assert_eq!(keys, ["chunks/cache/0f", "shared/rules/cache"]);
    assert!(maps.iter().all(|map| map["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "portcullis"));
    let mut other_fleet = StoreAgent::start(&cluster.settings("test"));
    assert!(other_fleet.listed().keys.is_empty(), "another fleet");
}

#[test]
fn change_of_one_member_is_reported_to_the_others_within_a_second() {
    let cluster = Cluster::new();
    let (mut writer, mut reader) = (cluster.listed(), cluster.agent());
    reader.listed();
    cluster.watched(4);
    let mut times = Vec::new();
    for number in 0..30 {
        let value = number.to_string();
        let written = Instant::now();
        version(&writer.put("shared/epoch", &value, &json!("any")));
        reader.until("shared/epoch", Some(&value));
        times.push(written.elapsed());
    }
    times.sort();
    println!("from request to report: median {:?}, maximum {:?}", times[15], times[29]);
    assert!(times[28] < Duration::from_secs(1), "{times:?}");
}

#[test]
fn write_is_done_only_as_expected() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    for key in ["shared/rules/cache", "shared/tickets", "members/a"] {
        let first = version(&agent.put(key, "1", &json!("absent")));
        let current = |version: &str, value: &str| json!({ "conflict": { "current": { "key": key, "value": value, "version": version } } });
        assert_eq!(agent.put(key, "2", &json!("absent")), current(&first, "1"));
        let second = version(&agent.put(key, "2", &json!({ "version": first })));
        assert_eq!(agent.put(key, "3", &json!({ "version": first })), current(&second, "2"));
        assert_eq!(agent.delete(key, &json!({ "version": first })), current(&second, "2"));
        let third = version(&agent.put(key, "3", &json!("any")));
        assert_eq!(agent.get(&[key, "shared/missing"]), pairs(&[(key, "3")]));
        version(&agent.delete(key, &json!({ "version": third })));
        assert_eq!(agent.put(key, "4", &json!({ "version": third })), json!({ "conflict": { "current": null } }));
        version(&agent.delete(key, &json!("any")));
    }
    for plural in ["/configmaps", "/secrets", "/leases"] {
        assert!(cluster.api.objects(plural).is_empty(), "{plural}");
    }
    let foreign = failure(&agent.put("other", "1", &json!("any")));
    assert!(foreign.contains("not a key of a fleet"), "{foreign}");
    failure(&agent.put("shared/rules/cache", &"x".repeat((768 << 10) + 1), &json!("any")));
}

#[test]
fn concurrent_writers_lose_no_update() {
    let cluster = Cluster::new();
    let mut agents = [cluster.listed(), cluster.agent(), cluster.agent()];
    version(&agents[0].put("shared/epoch", "0", &json!("absent")));
    let mut done = 0;
    for _ in 0..10 {
        let listed = agents[0].perform(&json!({ "get": { "keys": ["shared/epoch"] } }));
        let version = listed["entries"][0]["version"].clone();
        let put = json!({ "put": { "key": "shared/epoch", "value": "x", "expected": { "version": version },
                                   "seconds": null } });
        let requests: Vec<_> = agents.iter_mut().map(|agent| agent.request(&put)).collect();
        let outcomes: Vec<_> = agents.iter_mut().zip(requests).map(|(agent, number)| agent.reply(number)).collect();
        done += outcomes.iter().filter(|outcome| outcome.get("done").is_some()).count();
        assert!(outcomes.iter().all(|outcome| outcome.get("failed").is_none()), "{outcomes:?}");
    }
    assert_eq!(done, 10, "one writer of each round");
}

#[test]
fn member_has_one_lease_for_its_state_and_its_life() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    version(&agent.put("members/web-1", "{\"sessions\":1}", &json!("any")));
    assert!(agent.list("alive/").is_empty());
    version(&agent.hold("alive/web-1", "process 1", 2));
    let leases = cluster.api.objects("/leases");
    assert_eq!(leases.len(), 1);
    assert_eq!(leases[0]["spec"]["holderIdentity"], "process 1");
    assert_eq!(leases[0]["spec"]["leaseDurationSeconds"], 2);
    let mut other = cluster.agent();
    let conflict = other.hold("alive/web-1", "process 2", 2);
    assert_eq!(conflict["conflict"]["current"]["value"], "process 1", "{conflict}");
    let held = Instant::now();
    while held.elapsed() < Duration::from_secs(4) {
        version(&agent.hold("alive/web-1", "process 1", 2));
        version(&agent.put("members/web-1", "{\"sessions\":2}", &json!("any")));
        assert_eq!(other.list("alive/"), pairs(&[("alive/web-1", "process 1")]));
    }
    drop(agent);
    eventually("it is no longer heard of", || other.list("alive/").is_empty().then_some(()));
    assert_eq!(other.list("members/"), pairs(&[("members/web-1", "{\"sessions\":2}")]), "its state stays");
    version(&other.hold("alive/web-1", "process 2", 60));
    version(&other.delete("alive/web-1", &json!("any")));
    assert_eq!(other.list("members/").len(), 1);
    version(&other.delete("members/web-1", &json!("any")));
    assert!(cluster.api.objects("/leases").is_empty());
}

#[test]
fn clock_of_another_machine_does_not_matter() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    version(&agent.hold("alive/a", "process 1", 60));
    let mut lease = cluster.api.objects("/leases").remove(0);
    lease["spec"]["renewTime"] = json!("1999-01-01T00:00:00.000000Z");
    cluster.api.put(&lease);
    assert_eq!(cluster.agent().list("alive/"), pairs(&[("alive/a", "process 1")]));
}

#[test]
fn key_with_a_limited_life_is_removed() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    version(&agent.put_for("shared/commands/1", "close", 2));
    agent.changed("shared/commands/1", Some("close"));
    agent.changed("shared/commands/1", None);
    assert!(cluster.api.objects("/configmaps").is_empty());
}

#[test]
fn keys_with_a_limited_life_that_nobody_watches_are_removed_unless_they_became_permanent() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    version(&agent.put_for("answers/1/web-1", "{}", 1));
    version(&agent.put_for("chunks/cache/0f", "of a plan", 1));
    version(&agent.put_for("chunks/cache/10", "of a plan and of rules", 1));
    version(&agent.put("chunks/cache/10", "of a plan and of rules", &json!("any")));
    assert_eq!(agent.list("answers/1/"), pairs(&[("answers/1/web-1", "{}")]));
    eventually("the temporary keys are removed", || (cluster.api.objects("/configmaps").len() == 1).then_some(()));
    assert_eq!(agent.list("chunks/"), pairs(&[("chunks/cache/10", "of a plan and of rules")]));
}

#[test]
fn foreign_object_with_the_name_is_not_overwritten() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    version(&agent.put("shared/epoch", "1", &json!("absent")));
    let mut foreign = cluster.api.objects("/configmaps").remove(0);
    foreign["metadata"]["labels"] = json!({});
    foreign["data"] = json!({ "value": "foreign" });
    cluster.api.put(&foreign);
    let before = cluster.api.objects("/configmaps");
    let error = failure(&agent.put("shared/epoch", "2", &json!("any")));
    assert!(error.contains("does not belong to the fleet prod; remove it"), "{error}");
    failure(&agent.delete("shared/epoch", &json!("any")));
    assert_eq!(cluster.api.objects("/configmaps"), before);
    let mut copy = before[0].clone();
    copy["metadata"]["name"] = json!("a-copy");
    copy["metadata"]["labels"] = json!({ "app.kubernetes.io/managed-by": "portcullis", "portcullis/fleet": "prod" });
    cluster.api.put(&copy);
    assert!(cluster.agent().listed().keys.is_empty(), "a copy with another name is not the key");
}

#[test]
fn forgotten_version_is_listed_again_without_a_failure() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    for key in ["shared/rules/a", "shared/rules/b"] {
        version(&agent.put(key, "1", &json!("any")));
        agent.until(key, Some("1"));
    }
    agent.process.signal("STOP");
    let gone = cluster.api.objects("/configmaps").remove(0);
    cluster.api.delete(&gone);
    cluster.api.compact();
    agent.process.signal("CONT");
    let listed = agent.listed();
    assert_eq!(listed.keys.len(), 1, "{listed:?}");
}

#[test]
fn position_of_a_restored_server_is_reported_as_it_is() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    version(&agent.put("shared/epoch", "1", &json!("any")));
    let backup = cluster.api.backup();
    for number in 2..10 {
        version(&agent.put("shared/epoch", &number.to_string(), &json!("any")));
    }
    agent.until("shared/epoch", Some("9"));
    let before = agent.event()["synced"]["revision"].as_u64().unwrap();
    cluster.api.restore(backup, true);
    let restored = agent.listed();
    assert_eq!(restored.keys, pairs(&[("shared/epoch", "1")]));
    assert!(restored.revision < before, "{restored:?} {before}");
}

#[test]
fn restored_server_whose_version_has_caught_up_is_listed_anew() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    version(&agent.put("shared/epoch", "1", &json!("any")));
    agent.changed("shared/epoch", Some("1"));
    let backup = cluster.api.backup();
    version(&agent.put("shared/epoch", "2", &json!("any")));
    agent.changed("shared/epoch", Some("2"));
    cluster.api.restore(backup, true);
    for _ in 0..5 {
        cluster.api.put(&namespace("other", "1"));
    }
    assert_eq!(agent.listed().keys["shared/epoch"], "1");
}

#[test]
fn partitioned_server_is_down_and_used_again() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    cluster.api.partition(true);
    let error = failure(&agent.put("shared/epoch", "1", &json!("any")));
    assert!(error.contains("does not answer within 4s"), "{error}");
    let down = agent.down();
    assert!(down.contains("no answer within 4.5s"), "{down}");
    cluster.api.partition(false);
    let returned = Instant::now();
    agent.listed();
    assert!(returned.elapsed() < Duration::from_secs(10), "{:?}", returned.elapsed());
    version(&agent.put("shared/epoch", "1", &json!("any")));
}

#[test]
fn rejected_token_and_missing_namespace_are_down() {
    let cluster = Cluster::new();
    cluster.site.write("token", "wrong");
    let mut agent = cluster.agent();
    let down = agent.down();
    assert!(down.contains("HTTP 401: Unauthorized; check the token"), "{down}");
    failure(&agent.put("shared/epoch", "1", &json!("any")));
    cluster.site.replace("token", "token-1\n");
    agent.listed();
    version(&agent.put("shared/epoch", "1", &json!("any")));
    let mut settings = cluster.settings("prod");
    settings["engine"]["kubernetes"]["namespace"] = json!("missing");
    let down = StoreAgent::start(&settings).down();
    assert!(down.contains("the namespace missing does not exist"), "{down}");
}

#[test]
fn server_is_used_again_within_ten_seconds_of_its_return_after_the_longest_pause() {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    let failed = |count: usize| {
        let before = cluster.attempts();
        eventually("attempts", || (cluster.attempts() >= before + count).then_some(()));
    };
    cluster.api.answer_lists(Some(Answer::error(503, "the server is starting")));
    cluster.api.compact();
    failed(7);
    cluster.api.partition(true);
    // The server returns when an attempt has just begun that it will never answer.
    failed(1);
    cluster.api.partition(false);
    let returned = Instant::now();
    agent.listed();
    println!("used again after {:?}", returned.elapsed());
    assert!(returned.elapsed() < Duration::from_secs(10), "{:?}", returned.elapsed());
}

/// Waits until the store has been reported as down for this reason.
fn await_down(agent: &mut StoreAgent, reason: &str) {
    let mut last = String::new();
    while !last.contains(reason) {
        last = agent.down();
        println!("{reason:?} in {last:?}");
        assert!(last.len() <= 1024, "{last}");
    }
}

/// A cluster with one shared key, and an agent that watches it.
fn with_epoch() -> (Cluster, StoreAgent) {
    let cluster = Cluster::new();
    let mut agent = cluster.listed();
    version(&agent.put("shared/epoch", "0", &json!("absent")));
    agent.until("shared/epoch", Some("0"));
    (cluster, agent)
}

/// Checks that the keys are listed and watched again, and written.
fn recovers(agent: &mut StoreAgent, number: &mut u32) {
    // The listing may have been on its way while the server was wrong.
    while agent.listed().keys != pairs(&[("shared/epoch", &number.to_string())]) {}
    *number += 1;
    version(&agent.put("shared/epoch", &number.to_string(), &json!("any")));
    agent.until("shared/epoch", Some(&number.to_string()));
}

#[test]
fn invalid_answers_to_requests_are_failures_and_change_nothing() {
    let (cluster, mut agent) = with_epoch();
    let mut number = 0;
    for (answer, error) in [
        (Answer::error(403, "namespaces is forbidden"), "HTTP 403: namespaces is forbidden"),
        (Answer::error(429, "too many requests").with(429, "Retry-After: 1\r\n"), "HTTP 429"),
        (Answer::text("<html>\u{202e}").with(500, ""), "HTTP 500"),
        (Answer::error(503, "etcd leader changed\r\n\u{1b}[2J"), "leader changed\\r\\n\\u{1b}[2J"),
        (Answer::text("").with(302, "Location: https://localhost:1/\r\n"), "redirects are not followed"),
        (Answer::text(""), "the answer is not valid"),
        (Answer::text("{}"), "the answer is not valid"),
        (Answer::text("{\"kind\":\"ConfigMap\","), "the answer is not valid"),
        (Answer::text(&"[".repeat(1 << 20)), "the answer is not valid"),
        (Answer::text("{\"metadata\":{}}"), "the namespace shop does not exist"),
    ] {
        cluster.api.answer_lists(Some(answer));
        cluster.api.compact();
        await_down(&mut agent, error);
        failure(&agent.put("shared/epoch", "wrong", &json!("any")));
        failure(&agent.delete("shared/epoch", &json!("any")));
        failure(&agent.hold("alive/a", "process 1", 10));
        failure(&agent.perform(&json!({ "get": { "keys": ["shared/epoch"] } })));
        failure(&agent.perform(&json!({ "list": { "prefix": "shared/" } })));
        cluster.api.answer_lists(None);
        recovers(&mut agent, &mut number);
    }
}

#[test]
fn endless_answer_is_a_failure() {
    let (cluster, mut agent) = with_epoch();
    cluster.api.answer_lists(Some(Answer::endless("[[[[ ")));
    cluster.api.compact();
    await_down(&mut agent, "cannot get the namespace");
    failure(&agent.put("shared/epoch", "wrong", &json!("any")));
    cluster.api.answer_lists(None);
    recovers(&mut agent, &mut 0);
}

#[test]
fn contradictory_lists_are_failures_and_change_nothing() {
    let (cluster, mut agent) = with_epoch();
    let mut number = 0;
    let list = |kind: &str, metadata: &str, items: &str| {
        Answer::text(&format!(r#"{{"kind":"{kind}","apiVersion":"v1","metadata":{{{metadata}}},"items":[{items}]}}"#))
    };
    for (answer, error) in [
        (list("ConfigMapList", "", ""), "no resourceVersion"),
        (list("ConfigMapList", "\"resourceVersion\":\"abc\"", ""), "not a"),
        (list("PodList", "\"resourceVersion\":\"5\"", ""), "the answer is not a ConfigMapList"),
        (list("ConfigMapList", "\"resourceVersion\":\"5\",\"continue\":\"x\"", ""), "invalid continue token"),
        (list("ConfigMapList", "\"resourceVersion\":\"5\"", "{}"), "the answer is not valid"),
        (list("ConfigMapList", "\"resourceVersion\":\"5\"", "[[]]"), "the answer is not valid"),
    ] {
        cluster.api.answer_collections(Some(answer));
        cluster.api.compact();
        await_down(&mut agent, error);
        if !error.starts_with("not a") {
            failure(&agent.perform(&json!({ "list": { "prefix": "shared/" } })));
        }
        cluster.api.answer_collections(None);
        recovers(&mut agent, &mut number);
    }
}

#[test]
fn invalid_answers_to_writes_are_no_success() {
    let (cluster, mut agent) = with_epoch();
    for (answer, error) in [
        (Answer::text(""), "the answer is not valid"),
        (Answer::text("{\"metadata\":7}"), "the answer is not valid"),
        (Answer::error(500, "boom"), "HTTP 500: boom"),
        (Answer::error(409, "the object has been modified"), "was written by others 5 times"),
        (Answer::error(404, "not found"), "was written by others 5 times"),
    ] {
        cluster.api.answer_writes(Some(answer));
        for key in ["shared/epoch", "shared/rules/new", "members/a"] {
            let failed = failure(&agent.put(key, "1", &json!("any")));
            assert!(failed.contains(error), "{key}: {failed}");
        }
        let failed = failure(&agent.hold("alive/a", "process 1", 10));
        assert!(failed.contains(error), "{failed}");
        cluster.api.answer_writes(None);
    }
    assert_eq!(agent.list("shared/"), pairs(&[("shared/epoch", "0")]));
    assert!(agent.list("members/").is_empty() && agent.list("alive/").is_empty());
}

#[test]
fn invalid_events_are_failures_and_the_keys_are_listed_again() {
    let (cluster, mut agent) = with_epoch();
    let mut number = 0;
    let event = |text: &str| Answer::text(&format!("{text}\n"));
    for (answer, error) in [
        (Answer::error(403, "configmaps is forbidden"), "HTTP 403: configmaps is forbidden"),
        (Answer::error(500, "boom"), "HTTP 500: boom"),
        (event("garbage"), "the answer is not valid"),
        (event(r#"{"type":"ADDED","object":{"metadata":{"name":"x"}}}"#), "no resourceVersion"),
        (event(r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"99abc"}}}"#), "not a number"),
        (event(r#"{"type":"ADDED","object":{}}"#), "the answer is not valid"),
        (event(r#"{"type":"EXPLODED","object":{}}"#), "the answer is not valid"),
        (event(r#"{"type":"ERROR","object":{"code":500,"message":"etcdserver: no leader"}}"#), "no leader"),
        (event(r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"1"}}}"#), "rejects the revision"),
        (Answer::endless("x"), "more than 8388608 bytes in one event"),
    ] {
        cluster.api.answer_watches(Some(answer));
        await_down(&mut agent, error);
        cluster.api.answer_watches(None);
        recovers(&mut agent, &mut number);
    }
}

#[test]
fn watches_that_end_at_once_are_opened_at_a_limited_rate() {
    let (cluster, mut agent) = with_epoch();
    let watches = || cluster.api.requests().iter().filter(|request| request.is_watch()).count();
    cluster.api.answer_watches(Some(Answer::text("")));
    let (before, begin) = (watches(), Instant::now());
    eventually("several watches", || (watches() >= before + 10).then_some(()));
    // Two kinds of objects, at most one watch in half a second each.
    assert!(begin.elapsed() >= Duration::from_millis(1500), "{:?}", begin.elapsed());
    cluster.api.answer_watches(None);
    version(&agent.put("shared/epoch", "1", &json!("any")));
    agent.until("shared/epoch", Some("1"));
}

#[test]
fn object_beyond_the_limits_is_reported_as_empty() {
    let (cluster, mut agent) = with_epoch();
    let mut large = cluster.api.objects("/configmaps").remove(0);
    large["data"]["value"] = json!("x".repeat(2 << 20));
    cluster.api.put(&large);
    agent.changed("shared/epoch", Some(""));
    assert_eq!(cluster.agent().listed().keys, pairs(&[("shared/epoch", "")]));
}

#[test]
fn namespace_is_by_default_that_of_the_kubeconfig() {
    let cluster = Cluster::new();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "main",
        "contexts": [{ "name": "main", "context": { "cluster": "c", "user": "u", "namespace": "shop" } }],
        "clusters": [{ "name": "c", "cluster": { "server": cluster.api.url(),
                       "certificate-authority": cluster.site.path("ca.crt") } }],
        "users": [{ "name": "u", "user": { "token": "token-1" } }],
    });
    cluster.site.write("kubeconfig", kubeconfig);
    let connection = json!({ "connection": "kubeconfig", "file": cluster.site.path("kubeconfig") });
    let engine = json!({ "kubernetes": { "connection": connection, "namespace": null } });
    let mut agent = StoreAgent::start(&json!({ "fleet": "prod", "engine": engine }));
    assert_eq!(agent.listed().cluster, "5d0c");
    version(&agent.put("shared/epoch", "1", &json!("absent")));
    assert_eq!(cluster.api.objects("/namespaces/shop/configmaps").len(), 1);
}
