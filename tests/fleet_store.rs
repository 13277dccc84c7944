//! The agent with the store of a fleet in etcd. The tests send its messages themselves.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::agent::SECRET;
use crate::harness::etcd::{Etcd, Garbage};
use crate::harness::prometheus::request;
use crate::harness::store::{StoreAgent, entries, failure, pairs, version};
use crate::harness::{Authority, Request, TestDir, eventually};

/// The settings of the fleet `prod` with these endpoints.
fn settings(endpoints: &[String]) -> Value {
    with(endpoints, &json!({}))
}

/// The same with other values of `[fleet.etcd]`.
fn with(endpoints: &[String], values: &Value) -> Value {
    let mut etcd =
        json!({ "endpoints": endpoints, "ca": null, "identity": null, "login": null, "prefix": "/portcullis" });
    etcd.as_object_mut().unwrap().extend(values.as_object().unwrap().clone());
    json!({ "fleet": "prod", "engine": { "etcd": etcd } })
}

/// A key of the fleet in etcd.
fn full(key: &str) -> String {
    format!("/portcullis/prod/{key}")
}

/// One member, and an agent that has listed it.
fn one() -> (Etcd, StoreAgent) {
    let etcd = Etcd::start();
    let mut agent = StoreAgent::start(&settings(&[etcd.url()]));
    assert!(agent.listed().keys.is_empty());
    (etcd, agent)
}

#[test]
fn shared_keys_are_listed_and_watched() {
    let etcd = Etcd::start();
    etcd.put(&full("shared/epoch"), "1");
    etcd.put(&full("members/a"), "not shared");
    etcd.put("/portcullis/production/shared/epoch", "another fleet");
    let mut agent = StoreAgent::start(&settings(&[etcd.url()]));
    let listed = agent.listed();
    assert_eq!(listed.keys, pairs(&[("shared/epoch", "1")]));
    assert!(listed.revision >= 4 && !listed.cluster.is_empty(), "{listed:?}");
    etcd.put(&full("members/b"), "not shared");
    etcd.put("/portcullis/production/shared/epoch", "another fleet");
    etcd.put(&full("shared/rules/cache"), "{}");
    agent.changed("shared/rules/cache", Some("{}"));
    let synced = agent.event();
    assert_eq!(synced["synced"]["cluster"], listed.cluster.as_str());
    assert!(synced["synced"]["revision"].as_u64().unwrap() > listed.revision, "{synced}");
    etcd.etcdctl(&["del", &full("shared/epoch")]);
    agent.changed("shared/epoch", None);
}

#[test]
fn change_is_reported_within_a_second() {
    let (_etcd, mut writer) = one();
    let mut reader = StoreAgent::start(&settings(&[_etcd.url()]));
    reader.listed();
    let mut times = Vec::new();
    for number in 0..50 {
        let value = number.to_string();
        let written = Instant::now();
        version(&writer.put("shared/epoch", &value, &json!("any")));
        reader.until("shared/epoch", Some(&value));
        times.push(written.elapsed());
    }
    times.sort();
    println!("from request to report: median {:?}, maximum {:?}", times[25], times[49]);
    assert!(times[48] < Duration::from_secs(1), "{times:?}");
}

#[test]
fn write_is_done_only_as_expected() {
    let (etcd, mut agent) = one();
    let key = "shared/rules/cache";
    let first = version(&agent.put(key, "1", &json!("absent")));
    assert_eq!(agent.changed(key, Some("1")), first);
    let current = |version: &str, value: &str| json!({ "conflict": { "current": { "key": key, "value": value, "version": version } } });
    assert_eq!(agent.put(key, "2", &json!("absent")), current(&first, "1"));
    let second = version(&agent.put(key, "2", &json!({ "version": first })));
    assert_ne!(first, second);
    for expected in [first.as_str(), "0", "-1", "abc", ""] {
        assert_eq!(agent.put(key, "3", &json!({ "version": expected })), current(&second, "2"), "{expected}");
    }
    assert_eq!(agent.delete(key, &json!({ "version": first })), current(&second, "2"));
    let third = version(&agent.put(key, "3", &json!("any")));
    version(&agent.delete(key, &json!({ "version": third })));
    assert_eq!(agent.put(key, "4", &json!({ "version": third })), json!({ "conflict": { "current": null } }));
    for expected in [json!("any"), json!({ "version": third }), json!("absent"), json!({ "version": "abc" })] {
        version(&agent.delete(key, &expected));
    }
    assert_eq!(etcd.etcdctl(&["get", "--prefix", "/portcullis/prod/"]), "");
}

#[test]
fn keys_are_read_with_their_versions() {
    let (etcd, mut agent) = one();
    for key in ["members/a", "members/b", "member", "chunks/cache/0f"] {
        etcd.put(&full(key), &format!("of {key}"));
    }
    let expected = pairs(&[("members/a", "of members/a"), ("member", "of member")]);
    assert_eq!(agent.get(&["members/a", "member", "member", "members/missing"]), expected);
    assert!(agent.get(&[]).is_empty());
    assert_eq!(agent.list("members/").len(), 2);
    assert_eq!(agent.list("").len(), 4);
    assert_eq!(agent.perform(&json!({ "keys": { "prefix": "chunks/" } }))["entries"][0]["value"], "");
    let listed = agent.perform(&json!({ "list": { "prefix": "member" } }));
    let version = listed["entries"][0]["version"].as_str().unwrap();
    assert!(version.parse::<u64>().unwrap() > 1, "{listed}");
}

#[test]
fn key_with_a_limited_life_expires() {
    let (_etcd, mut agent) = one();
    version(&agent.put_for("shared/commands/1", "close", 2));
    agent.changed("shared/commands/1", Some("close"));
    agent.changed("shared/commands/1", None);
}

#[test]
fn large_and_many_keys_are_listed_in_pages() {
    let (etcd, mut agent) = one();
    for number in 0..20 {
        let value = format!("{number:02}").repeat(350 << 10);
        version(&agent.put(&format!("shared/rules/{number}"), &value, &json!("any")));
    }
    for number in 0..350 {
        version(&agent.put(&format!("shared/rules/small-{number}"), "x", &json!("any")));
    }
    let too_long = failure(&agent.perform(&json!({ "list": { "prefix": "shared/" } })));
    assert!(too_long.contains("more than 12 MiB"), "{too_long}");
    assert_eq!(entries(&agent.perform(&json!({ "keys": { "prefix": "shared/" } }))).len(), 370);
    assert_eq!(agent.list("shared/rules/small-").len(), 350);
    let mut other = StoreAgent::start(&settings(&[etcd.url()]));
    assert_eq!(other.listed().keys.len(), 370);
    for number in 20..60 {
        let value = "x".repeat(700 << 10);
        version(&agent.put(&format!("shared/rules/{number}"), &value, &json!("any")));
    }
    let mut other = StoreAgent::start(&settings(&[etcd.url()]));
    let down = other.down();
    assert!(down.contains("more than 32 MiB"), "{down}");
}

#[test]
fn value_beyond_the_limit_is_rejected_and_a_foreign_one_is_reported_as_empty() {
    let (etcd, mut agent) = one();
    let long = failure(&agent.put("shared/rules/cache", &"x".repeat((768 << 10) + 1), &json!("any")));
    assert_eq!(long, "a key or a value is too long for the store");
    failure(&agent.put(&format!("shared/{}", "k".repeat(257)), "x", &json!("any")));
    failure(&agent.put("shared/a\nb", "x", &json!("any")));
    version(&agent.put("shared/rules/cache", &"x".repeat(768 << 10), &json!("any")));
    agent.event();
    agent.event();
    etcd.put(&full("shared/rules/cache"), &"y".repeat(1 << 20));
    agent.changed("shared/rules/cache", Some(""));
    etcd.put(&full(&format!("shared/{}", "k".repeat(300))), "a key that is none of the fleet");
    etcd.put(&full("shared/epoch"), "1");
    agent.changed("shared/epoch", Some("1"));
    let mut other = StoreAgent::start(&settings(&[etcd.url()]));
    assert_eq!(other.listed().keys, pairs(&[("shared/epoch", "1"), ("shared/rules/cache", "")]));
}

#[test]
fn held_key_belongs_to_one_holder_and_ends_with_it() {
    let (etcd, mut first) = one();
    let mut second = StoreAgent::start(&settings(&[etcd.url()]));
    let taken = version(&first.hold("alive/a", "process 1", 3));
    assert_eq!(version(&first.hold("alive/a", "process 1", 3)), taken, "it is extended, not written");
    let conflict = second.hold("alive/a", "process 2", 3);
    assert_eq!(conflict["conflict"]["current"]["value"], "process 1", "{conflict}");
    let leases = etcd.etcdctl(&["lease", "list"]);
    assert!(leases.contains("found 1 leases"), "the rejected holder has left none: {leases}");
    let held = Instant::now();
    while held.elapsed() < Duration::from_secs(5) {
        version(&first.hold("alive/a", "process 1", 3));
        assert_eq!(second.list("alive/"), pairs(&[("alive/a", "process 1")]));
    }
    drop(first);
    eventually("the other holder takes it", || second.hold("alive/a", "process 2", 3).get("done").map(drop));
    version(&second.delete("alive/a", &json!("any")));
    eventually("its lease ends", || etcd.etcdctl(&["lease", "list"]).contains("found 0 leases").then_some(()));
}

#[test]
fn lost_lease_is_taken_anew() {
    let (etcd, mut agent) = one();
    version(&agent.hold("alive/a", "process 1", 60));
    let lease = etcd.etcdctl(&["lease", "list"]).lines().last().unwrap().to_owned();
    etcd.etcdctl(&["lease", "revoke", &lease]);
    version(&agent.hold("alive/a", "process 1", 60));
    assert_eq!(agent.list("alive/"), pairs(&[("alive/a", "process 1")]));
    etcd.etcdctl(&["del", &full("alive/a")]);
    version(&agent.hold("alive/a", "process 1", 60));
    etcd.put(&full("alive/a"), "process 2");
    let conflict = agent.hold("alive/a", "process 1", 60);
    assert_eq!(conflict["conflict"]["current"]["value"], "process 2", "{conflict}");
}

#[test]
fn key_of_an_earlier_process_is_taken_over() {
    let (etcd, mut agent) = one();
    version(&agent.hold("alive/a", "process 1", 3));
    drop(agent);
    let mut agent = StoreAgent::start(&settings(&[etcd.url()]));
    let taken = Instant::now();
    while taken.elapsed() < Duration::from_secs(6) {
        version(&agent.hold("alive/a", "process 1", 60));
    }
    assert_eq!(agent.list("alive/"), pairs(&[("alive/a", "process 1")]), "it has the life of the new lease");
}

#[test]
fn store_that_is_down_at_the_start_is_used_when_it_comes() {
    let mut etcd = Etcd::start();
    etcd.put(&full("shared/epoch"), "1");
    etcd.kill();
    let mut agent = StoreAgent::start(&settings(&[etcd.url()]));
    let down = agent.down();
    assert!(down.contains(&etcd.url()) && down.contains("Connection refused"), "{down}");
    let error = failure(&agent.put("shared/epoch", "2", &json!("any")));
    assert!(error.contains("Connection refused"), "{error}");
    etcd.run();
    etcd.ready();
    let returned = Instant::now();
    assert_eq!(agent.listed().keys, pairs(&[("shared/epoch", "1")]));
    assert!(returned.elapsed() < Duration::from_secs(10), "{:?}", returned.elapsed());
    version(&agent.put("shared/epoch", "2", &json!("any")));
    etcd.kill();
    agent.down();
    etcd.run();
    etcd.ready();
    let returned = Instant::now();
    assert_eq!(agent.listed().keys, pairs(&[("shared/epoch", "2")]));
    assert!(returned.elapsed() < Duration::from_secs(10), "{:?}", returned.elapsed());
}

#[test]
fn killed_leader_costs_a_new_listing_only() {
    let mut members = Etcd::cluster();
    let leader = eventually("a leader", || members.iter().position(Etcd::is_leader));
    // The agent is connected to the leader.
    members.swap(0, leader);
    let urls: Vec<_> = members.iter().map(Etcd::url).collect();
    let mut agent = StoreAgent::start(&settings(&urls));
    agent.listed();
    version(&agent.put("shared/epoch", "1", &json!("any")));
    agent.until("shared/epoch", Some("1"));
    members[0].kill();
    let killed = Instant::now();
    let listed = agent.listed();
    println!("listed again after {:?}", killed.elapsed());
    assert_eq!(listed.keys, pairs(&[("shared/epoch", "1")]));
    assert!(killed.elapsed() < Duration::from_secs(20), "{:?}", killed.elapsed());
    eventually("a write", || agent.put("shared/epoch", "2", &json!("any")).get("done").map(drop));
    agent.until("shared/epoch", Some("2"));
}

#[test]
fn silent_member_is_replaced_by_another() {
    let members = Etcd::cluster();
    let follower = eventually("a follower", || members.iter().position(|member| !member.is_leader()));
    let mut order: Vec<_> = members.iter().collect();
    order.swap(0, follower);
    let urls: Vec<_> = order.iter().map(|member| member.url()).collect();
    let mut agent = StoreAgent::start(&settings(&urls));
    agent.listed();
    order[0].signal("STOP");
    let stopped = Instant::now();
    order[1].put(&full("shared/epoch"), "1");
    let down = agent.down();
    // It may have stopped before the watch was open.
    let says_so = ["silent", "no answer to a listing or a watch"].iter().any(|text| down.contains(text));
    assert!(down.contains(&urls[0]) && says_so, "{down}");
    assert_eq!(agent.listed().keys, pairs(&[("shared/epoch", "1")]));
    println!("listed again after {:?}", stopped.elapsed());
    assert!(stopped.elapsed() < Duration::from_secs(30), "{:?}", stopped.elapsed());
    order[0].signal("CONT");
}

#[test]
fn operation_without_an_answer_finds_the_silent_member_at_once() {
    let members = Etcd::cluster();
    let follower = eventually("a follower", || members.iter().position(|member| !member.is_leader()));
    let mut order: Vec<_> = members.iter().collect();
    order.swap(0, follower);
    let urls: Vec<_> = order.iter().map(|member| member.url()).collect();
    let mut agent = StoreAgent::start(&settings(&urls));
    agent.listed();
    order[0].signal("STOP");
    let stopped = Instant::now();
    let error = failure(&agent.put("shared/epoch", "1", &json!("any")));
    assert!(error.contains("does not answer within 4s"), "{error}");
    agent.listed();
    assert!(stopped.elapsed() < Duration::from_secs(13), "{:?}", stopped.elapsed());
    version(&agent.put("shared/epoch", "2", &json!("any")));
    order[0].signal("CONT");
}

#[test]
fn member_without_a_quorum_is_down() {
    let mut members = Etcd::cluster();
    let urls = vec![members[0].url()];
    let mut agent = StoreAgent::start(&settings(&urls));
    agent.listed();
    members[1].kill();
    members[2].kill();
    let down = agent.down();
    assert!(down.contains(&urls[0]), "{down}");
    failure(&agent.put("shared/epoch", "1", &json!("any")));
    members[1].run();
    members[1].ready();
    let returned = Instant::now();
    agent.listed();
    assert!(returned.elapsed() < Duration::from_secs(10), "{:?}", returned.elapsed());
    version(&agent.put("shared/epoch", "2", &json!("any")));
}

#[test]
fn compaction_while_disconnected_skips_no_deletion() {
    let (mut etcd, mut agent) = one();
    for key in ["shared/rules/a", "shared/rules/b"] {
        version(&agent.put(key, "1", &json!("any")));
        agent.until(key, Some("1"));
    }
    agent.process.signal("STOP");
    etcd.kill();
    etcd.run();
    etcd.ready();
    etcd.etcdctl(&["del", &full("shared/rules/a")]);
    for number in 0..20 {
        etcd.put(&full("shared/rules/b"), &number.to_string());
    }
    let status = etcd.etcdctl(&["get", &full("shared/rules/b"), "--write-out", "fields"]);
    let revision = status.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
    etcd.etcdctl(&["compact", revision]);
    agent.process.signal("CONT");
    assert_eq!(agent.listed().keys, pairs(&[("shared/rules/b", "19")]));
}

#[test]
fn position_of_a_restored_store_is_reported_as_it_is() {
    let (mut etcd, mut agent) = one();
    version(&agent.put("shared/epoch", "1", &json!("any")));
    let backup = etcd.backup();
    for number in 2..10 {
        version(&agent.put("shared/epoch", &number.to_string(), &json!("any")));
    }
    let before = agent.until("shared/epoch", Some("9"));
    let synced = agent.event()["synced"].clone();
    assert!(before.len() >= 9, "{before:?}");
    etcd.restore(&backup, "etcd-cluster");
    let restored = agent.listed();
    assert_eq!(restored.keys, pairs(&[("shared/epoch", "1")]));
    assert_eq!(synced["cluster"], restored.cluster.as_str(), "the same token makes the same cluster");
    assert!(restored.revision < synced["revision"].as_u64().unwrap(), "{restored:?} {synced}");
    etcd.restore(&backup, "another-cluster");
    assert_ne!(agent.listed().cluster, restored.cluster);
}

#[test]
fn tls_with_a_client_certificate_is_used() {
    let site = TestDir::new();
    site.install("client", &site.ca.issue(Request::client("portcullis")));
    let other = Authority::new("Other CA");
    site.write("other.crt", other.pem());
    site.install("other-client", &other.issue(Request::client("portcullis")));
    let etcd = Etcd::with_tls(&site);
    let identity =
        |name: &str| json!({ "cert": site.path(&format!("{name}.crt")), "key": site.path(&format!("{name}.key")) });
    let url = [etcd.url().replace("127.0.0.1", "localhost")];
    let start = |ca: &str, identity: &Value| {
        StoreAgent::start(&with(&url, &json!({ "ca": site.path(ca), "identity": identity })))
    };
    let mut agent = start("ca.crt", &identity("client"));
    agent.listed();
    version(&agent.put("shared/epoch", "1", &json!("any")));
    for (ca, identity, text) in [
        ("other.crt", identity("client"), "certificate"),
        ("ca.crt", json!(null), ""),
        ("ca.crt", identity("other-client"), ""),
        ("ca.crt", identity("missing"), "missing.crt: No such file"),
        ("missing.crt", identity("client"), "missing.crt: No such file"),
        ("server.key", identity("client"), "server.key: it has no certificate"),
    ] {
        let down = start(ca, &identity).down();
        assert!(down.contains(text), "{ca} {identity}: {down}");
    }
}

/// A cluster with users: `portcullis` may use the keys of the fleet.
fn with_users(password: &str) -> Etcd {
    let mut etcd = Etcd::start_with(&["--auth-token-ttl", "2"]);
    etcd.etcdctl(&["user", "add", "root:root"]);
    etcd.etcdctl(&["user", "grant-role", "root", "root"]);
    etcd.etcdctl(&["user", "add", &format!("portcullis:{password}")]);
    etcd.etcdctl(&["role", "add", "fleet"]);
    etcd.etcdctl(&["role", "grant-permission", "fleet", "--prefix=true", "readwrite", "/portcullis/prod/"]);
    etcd.etcdctl(&["user", "grant-role", "portcullis", "fleet"]);
    etcd.etcdctl(&["user", "add", "guest:guest"]);
    etcd.etcdctl(&["auth", "enable"]);
    etcd.log_in("root:root");
    etcd
}

#[test]
fn user_with_a_password_is_used() {
    let password = format!("one {SECRET}");
    let etcd = with_users(&password);
    let site = TestDir::new();
    site.write("password", format!("{password}\n"));
    let login = |user: &str| json!({ "login": { "user": user, "password": { "file": site.path("password") } } });
    let mut agent = StoreAgent::start(&with(&[etcd.url()], &login("portcullis")));
    agent.listed();
    version(&agent.put("shared/epoch", "1", &json!("any")));
    version(&agent.hold("alive/a", "process 1", 60));
    version(&agent.put_for("shared/commands/1", "x", 60));
    // The token expires after two seconds.
    let logged_in = Instant::now();
    while logged_in.elapsed() < Duration::from_secs(5) {
        version(&agent.put("shared/epoch", "2", &json!("any")));
    }
    // The tokens of a user end when the password changes. The agent then reads the file again.
    let changed = format!("two-{SECRET}");
    site.write("password", format!("{changed}\n"));
    etcd.change_password("portcullis", &changed);
    eventually("a write", || agent.put("shared/epoch", "3", &json!("any")).get("done").map(drop));
    assert_eq!(agent.list("shared/epoch"), pairs(&[("shared/epoch", "3")]));
}

/// The watches that etcd has.
fn watchers(etcd: &Etcd) -> u64 {
    let address = etcd.url().trim_start_matches("http://").parse().unwrap();
    let metrics = request(address, "GET", "/metrics", "").body;
    let count = metrics.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
    count.expect("etcd counts its watches").parse().unwrap()
}

#[test]
fn connections_and_stores_that_are_left_leave_no_watch_behind() {
    let etcd = with_users(SECRET);
    let site = TestDir::new();
    site.write("password", SECRET);
    let login = json!({ "login": { "user": "portcullis", "password": { "file": site.path("password") } } });
    let mut agent = StoreAgent::start(&with(&[etcd.url()], &login));
    agent.listed();
    let has_one_watch = || eventually("one watch", || (watchers(&etcd) == 1).then_some(()));
    has_one_watch();
    for round in 0..4 {
        let changed = format!("{round}-{SECRET}");
        site.write("password", &changed);
        etcd.change_password("portcullis", &changed);
        eventually("a write", || agent.put("shared/epoch", "1", &json!("any")).get("done").map(drop));
        agent.listed();
        let value = format!("{round} watched");
        version(&agent.put("shared/epoch", &value, &json!("any")));
        agent.until("shared/epoch", Some(&value));
    }
    has_one_watch();
    for _ in 0..4 {
        agent.use_store(&json!(null));
        agent.use_store(&with(&[etcd.url()], &login));
        agent.listed();
    }
    has_one_watch();
    drop(agent);
    eventually("no watch", || (watchers(&etcd) == 0).then_some(()));
}

#[test]
fn rejected_credentials_are_reported_with_what_to_check() {
    let password = format!("one {SECRET}");
    let etcd = with_users(&password);
    let site = TestDir::new();
    site.write("password", format!("wrong {SECRET}\n"));
    site.write("guest", "guest\n");
    let login = |user: &str, file: &str| json!({ "login": { "user": user, "password": { "file": site.path(file) } } });
    let start = |values: &Value| StoreAgent::start(&with(&[etcd.url()], values));
    for (values, text) in [
        (json!({}), "user name is empty; set user and password_file of [fleet.etcd]"),
        (login("guest", "guest"), "permission denied; grant the user readwrite"),
        (login("nobody", "guest"), "authentication failed, invalid user ID or password; check user and password_file"),
        (login("portcullis", "missing"), "missing: No such file"),
    ] {
        let down = start(&values).down();
        assert!(down.contains(text), "{values}: {down}");
    }
    let mut agent = start(&login("portcullis", "password"));
    let down = agent.down();
    assert!(down.ends_with("check user and password_file of [fleet.etcd]"), "{down}");
    let error = failure(&agent.put("shared/epoch", "1", &json!("any")));
    assert!(error.contains("authentication failed"), "{error}");
    let attempts = etcd.log().matches("invalid user ID or password").count();
    assert!(attempts < 12, "{attempts} attempts: no busy loop");
    site.write("password", format!("{password}\n"));
    agent.listed();
    assert!(agent.errors.events().is_empty(), "{:?}", agent.errors.events());
}

#[test]
fn server_that_is_no_etcd_is_down() {
    for (bytes, is_closed) in [
        (&b""[..], false),
        (b"", true),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", true),
        (b"\0\0\0\x04\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", false),
        (&[0xff; 4096], false),
    ] {
        let server = Garbage::start(bytes, is_closed);
        let mut agent = StoreAgent::start(&settings(&[server.url()]));
        let down = agent.down();
        assert!(down.contains(&server.url()), "{down}");
        failure(&agent.put("shared/epoch", "1", &json!("any")));
        failure(&agent.perform(&json!({ "list": { "prefix": "members/" } })));
    }
}

#[test]
fn hanging_endpoint_does_not_delay_another() {
    let (etcd, _) = one();
    let hanging = Garbage::start(b"", false);
    let urls = [hanging.url(), hanging.url(), etcd.url()];
    let started = Instant::now();
    let mut agent = StoreAgent::start(&settings(&urls));
    agent.listed();
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[test]
fn other_store_of_the_task_is_used_instead() {
    let (etcd, mut agent) = one();
    let mut other = settings(&[etcd.url()]);
    other["fleet"] = json!("test");
    etcd.put("/portcullis/test/shared/epoch", "7");
    agent.use_store(&other);
    assert_eq!(agent.listed().keys, pairs(&[("shared/epoch", "7")]));
    agent.use_store(&json!(null));
    assert_eq!(failure(&agent.put("shared/epoch", "1", &json!("any"))), "no store");
    assert!(agent.event_within(Duration::from_millis(300)).is_none());
}
