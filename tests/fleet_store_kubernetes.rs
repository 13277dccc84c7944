//! The agent with the store of a fleet in a Kubernetes API. The tests send its messages themselves.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::kubernetes::{KubernetesApi, namespace};
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
    assert!(down.contains("no answer within 10s"), "{down}");
    cluster.api.partition(false);
    let returned = Instant::now();
    agent.listed();
    println!("used again after {:?}", returned.elapsed());
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
