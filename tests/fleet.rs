//! Members of a fleet over a real etcd: rules and ticket keys are shared, nothing is lost, and nothing depends on the store being
//! there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use rustls::HandshakeKind;
use rustls::version::TLS13;
use serde_json::{Value, json};

use crate::harness::etcd::Etcd;
use crate::harness::fleet::{FLEET_KEY, Member, SOURCES, assert_changes_are_prompt, listener, rules};
use crate::harness::portcullis::executable;
use crate::harness::program::{command, run, run_with_input};
use crate::harness::{Listener, TestDir, Upstream, eventually};

pub(crate) fn start(etcd: &Etcd, name: &str, upstream: &Upstream) -> Member {
    start_in(TestDir::new(), etcd, name, &listener(upstream))
}

pub(crate) fn start_in(site: TestDir, etcd: &Etcd, name: &str, listener: &Listener) -> Member {
    let store = format!("store = \"etcd\"\n[fleet.etcd]\nendpoints = [\"{}\"]\n", etcd.url());
    Member::start(site, name, &store, listener)
}

/// Two members of one fleet.
pub(crate) fn pair(etcd: &Etcd, upstream: &Upstream) -> [Member; 2] {
    let members = ["a", "b"].map(|name| start(etcd, name, upstream));
    members.iter().for_each(|member| member.await_members(2, 0));
    members
}

#[test]
fn changed_rule_is_in_force_at_every_member_and_ends_its_sessions() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, b] = pair(&etcd, &upstream);
    assert!(!b.admits("127.0.0.7"), "no rules yet");
    let added = a.append("127.0.0.7").expect(201);
    b.has(&["127.0.0.7"]);
    let mut sessions = [&a, &b].map(|member| member.session("127.0.0.7"));
    let etags = [&a, &b].map(|member| member.api().get(SOURCES).header("etag").unwrap().to_owned());
    assert_eq!(etags[0], etags[1]);
    let uuid = added["rules"][0]["uuid"].as_str().unwrap();
    assert_eq!(b.api().delete(&format!("{SOURCES}/{uuid}")).status, 204);
    for session in &mut sessions {
        let _ = session.rest();
    }
    for member in [&a, &b] {
        let ended = member.0.event("the session ends", |event| event.is("connection.closed"));
        assert_eq!(ended.reason(), "source_revoked");
    }
    a.has(&[]);
    assert!(!a.admits("127.0.0.7"));
    let hashes = a.fleet();
    let hashes: Vec<_> = hashes["members"].as_array().unwrap().iter().map(|member| &member["policy_hash"]).collect();
    assert!(hashes[0].is_string());
    eventually("equal replicas have equal hashes", || {
        let fleet = a.fleet();
        (fleet["members"][0]["policy_hash"] == fleet["members"][1]["policy_hash"]).then_some(())
    });
}

#[test]
fn change_is_in_force_at_every_member_and_ends_its_sessions_within_a_second() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, b] = pair(&etcd, &upstream);
    assert_changes_are_prompt(&a, &b);
}

#[test]
fn changes_at_two_members_at_the_same_time_are_all_kept() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, b] = pair(&etcd, &upstream);
    std::thread::scope(|scope| {
        for (member, third) in [(&a, 1), (&b, 2)] {
            scope.spawn(move || {
                for last in 1..=5 {
                    member.append(&format!("10.0.{third}.{last}")).expect(201);
                }
            });
        }
    });
    let all: Vec<_> = (1..=2).flat_map(|third| (1..=5).map(move |last| format!("10.0.{third}.{last}"))).collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    a.has(&all);
    b.has(&all);
    let outdated = format!("if-match: \"{}\"\r\n", "0".repeat(32));
    let body = rules(&["10.0.0.1"]).to_string();
    let reply = a.api().request("PUT", SOURCES, &outdated, body.as_bytes());
    reply.expect_error(412, "precondition_failed");
}

#[test]
fn without_the_store_the_last_good_rules_stay_and_changes_are_refused_in_time() {
    let (mut etcd, upstream) = (Etcd::start(), Upstream::echo());
    let member = start(&etcd, "a", &upstream);
    member.await_store("up");
    member.append("127.0.0.7").expect(201);
    etcd.kill();
    let begin = Instant::now();
    let reply = member.append("127.0.0.8");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(reply.header("retry-after").is_some());
    reply.expect_error(503, "service_unavailable");
    let outcome = member.command(&["sources", "append", "main", "127.0.0.8"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.text());
    assert!(outcome.stderr.contains("the store of the fleet"), "{}", outcome.stderr);
    assert!(member.admits("127.0.0.7"));
    member.0.event("the store is down", |event| event.is("fleet.store_down"));

    let restarted = start_in(member.stop(), &etcd, "a", &listener(&upstream));
    assert!(restarted.admits("127.0.0.7"), "from the last good copy");
    restarted.0.event("the store is down", |event| event.is("fleet.store_down"));
    etcd.run();
    etcd.ready();
    restarted.await_store("up");
    restarted.0.event("the store is up", |event| event.is("fleet.store_up"));
    restarted.append("127.0.0.8").expect(201);
    restarted.has(&["127.0.0.7", "127.0.0.8"]);
}

#[test]
fn restored_store_is_refused_until_an_operator_accepts_it() {
    let (mut etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, b] = pair(&etcd, &upstream);
    a.append("127.0.0.7").expect(201);
    let backup = etcd.backup();
    a.append("127.0.0.8").expect(201);
    b.has(&["127.0.0.7", "127.0.0.8"]);
    etcd.kill();
    etcd.restore(&backup, "other");
    etcd.run();
    etcd.ready();
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
fn accepted_store_that_was_wiped_gets_the_last_good_rules_back() {
    let (mut etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, b] = pair(&etcd, &upstream);
    a.append("127.0.0.7").expect(201);
    b.has(&["127.0.0.7"]);
    etcd.kill();
    let port = etcd.url();
    etcd = Etcd::start();
    for member in [&a, &b] {
        let file = member.0.site.path("portcullis.toml");
        let text = fs::read_to_string(&file).unwrap().replace(&port, &etcd.url());
        member.0.site.replace("portcullis.toml", text);
        member.0.hang_up();
        member.await_store("refused");
    }
    let accepted = a.api().post("/v1/fleet/accept", &json!({})).expect(200);
    assert_eq!(accepted["rules_written"], json!(["main"]));
    for member in [&a, &b] {
        member.await_store("up");
        member.has(&["127.0.0.7"]);
    }
}

#[test]
fn removed_rules_key_is_missing_and_not_empty_and_the_next_change_writes_it_again() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let member = start(&etcd, "a", &upstream);
    member.await_store("up");
    member.append("127.0.0.7").expect(201);
    etcd.etcdctl(&["del", "--prefix", "/portcullis/prod/shared/rules/"]);
    let event = member.0.event("the rules are missing", |event| event.is("fleet.rules_missing"));
    assert_eq!(event.text("listener"), "main");
    assert!(member.admits("127.0.0.7"));
    member.append("127.0.0.8").expect(201);
    member.has(&["127.0.0.7", "127.0.0.8"]);
}

#[test]
fn change_that_waits_names_the_members_that_have_not_confirmed() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, mut b] = pair(&etcd, &upstream);
    let outcome = a.command(&["sources", "append", "main", "127.0.0.7", "--wait", "5s"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.text());
    assert_eq!(b.values(), ["127.0.0.7"]);
    b.0.process.signal("KILL");
    b.0.process.exit_code();
    let reply = a.api().post(&format!("{SOURCES}?wait=1s"), &rules(&["127.0.0.8"]));
    let body = reply.expect(202);
    assert_eq!(body["missing"][0]["member"], "b");
    assert_eq!(body["rules"][0]["value"], "127.0.0.8");
    a.await_members(1, 1);
    let fleet = a.fleet();
    assert_eq!(fleet["members"][1]["sessions"], Value::Null);
    let outcome = a.command(&["sources", "append", "main", "127.0.0.9", "--wait", "1s"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.text());
    assert!(outcome.stderr.contains("b (unknown)"), "{}", outcome.stderr);
    let plan = a.api().post(&format!("{SOURCES}?plan=true"), &rules(&["127.0.0.10"])).expect(200);
    assert_eq!(plan["fleet"]["sessions_ended_count"], Value::Null);
    let rotation = a.command(&["status", "--rotation", "--fleet"]);
    assert!(rotation.text().contains("no answer from b (unknown)"), "{}", rotation.text());
    let forgotten = a.command(&["fleet", "forget", "b"]);
    assert_eq!(forgotten.code, Some(0), "{}", forgotten.text());
    a.await_members(1, 0);
    a.append("127.0.0.11").expect(201);
}

#[test]
fn clean_stop_leaves_the_fleet() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, mut b] = pair(&etcd, &upstream);
    b.0.stop();
    a.await_members(1, 0);
}

#[test]
fn sessions_of_a_source_are_counted_and_closed_at_all_members() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, b] = pair(&etcd, &upstream);
    let added = a.api().post(&format!("{SOURCES}?wait=5s"), &rules(&["127.0.0.0/8"])).expect(201);
    let mut sessions = [&a, &b].map(|member| member.session("127.0.0.7"));
    let uuid = added["rules"][0]["uuid"].as_str().unwrap();
    let plan = a.api().delete(&format!("{SOURCES}/{uuid}?plan=true")).expect(200);
    assert_eq!((&plan["sessions_ended_count"], &plan["fleet"]["sessions_ended_count"]), (&json!(1), &json!(2)));
    let rotation = b.api().get("/v1/rotation?fleet=true").expect(200);
    let source = rotation["items"].as_array().unwrap().iter().find(|item| item["kind"] == "source").unwrap();
    assert_eq!(source["sessions"], 2);
    let outcome = a.command(&["sessions", "close", "--source", "127.0.0.7", "--fleet"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.text());
    assert_eq!(outcome.text(), "2 sessions are closed\n");
    for session in &mut sessions {
        let _ = session.rest();
    }
    for member in [&a, &b] {
        let ended = member.0.event("the session ends", |event| event.is("connection.closed"));
        assert_eq!(ended.reason(), "closed_by_admin");
    }
    assert!(a.admits("127.0.0.7"), "its rule is still there");
}

#[test]
fn rules_that_are_not_valid_at_a_member_leave_its_last_good_ones() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let member = start(&etcd, "a", &upstream);
    member.await_store("up");
    member.append("127.0.0.7").expect(201);
    let key = "/portcullis/prod/shared/rules/main";
    let manifest: Value = serde_json::from_str(&etcd.etcdctl(&["get", "--print-value-only", key])).unwrap();
    let mut damaged = manifest.clone();
    damaged["sequence"] = json!(7);
    let text = "rule = 1\n";
    damaged["content"]["text"] = json!(text);
    damaged["length"] = json!(text.len());
    let sum = run_with_input(&mut command("sha256sum"), text.as_bytes()).success();
    damaged["sha256"] = json!(sum.split(' ').next().unwrap());
    etcd.put(key, &damaged.to_string());
    let event = member.0.event("the rules are invalid", |event| event.is("fleet.rules_invalid"));
    assert_eq!(event.text("listener"), "main");
    assert!(member.admits("127.0.0.7"));
    assert_eq!(member.fleet()["rules"]["main"]["state"], "invalid");
    let error = member.append("127.0.0.8").expect_error(409, "conflict");
    assert!(error.contains("not valid at this member"), "{error}");
}

#[test]
fn second_process_with_the_name_of_a_member_is_not_counted() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let first = start(&etcd, "a", &upstream);
    first.await_members(1, 0);
    let second = start(&etcd, "a", &upstream);
    second.0.event("the name is taken", |event| event.is("fleet.member_duplicate"));
    assert_eq!(second.fleet()["duplicate"], true);
    assert_eq!(first.fleet()["duplicate"], false);
    first.append("127.0.0.7").expect(201);
    second.has(&["127.0.0.7"]);
}

#[test]
fn long_list_comes_into_force_at_every_member() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, b] = pair(&etcd, &upstream);
    let many: Vec<_> = (0..5_000).map(|number: u32| format!("10.{}.{}.1", number / 250, number % 250)).collect();
    let values: Vec<_> = many.iter().map(String::as_str).collect();
    assert_eq!(a.api().put(SOURCES, &rules(&values)).status, 204);
    eventually("all rules are in force", || (b.values().len() == 5_000).then_some(()));
    b.append("127.0.0.7").expect(201);
    eventually("one more", || (a.values().len() == 5_001).then_some(()));
    assert_eq!(a.api().put(SOURCES, &rules(&["127.0.0.7"])).status, 204);
    b.has(&["127.0.0.7"]);
    eventually("unused chunks are removed", || {
        etcd.etcdctl(&["get", "--prefix", "--keys-only", "/portcullis/prod/chunks/"]).trim().is_empty().then_some(())
    });
}

#[test]
fn ticket_of_one_member_resumes_the_session_at_another() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let listener = Listener::tcp(&upstream).trusting(&["127.0.0.0/8"]).tls("ticket_keys = \"fleet\"");
    let first = TestDir::new();
    let second = first.with_same_certificate();
    let members = [("a", first), ("b", second)].map(|(name, site)| start_in(site, &etcd, name, &listener));
    for member in &members {
        eventually("the ticket keys are shared", || (member.fleet()["tickets"]["sequence"] == 1).then_some(()));
    }
    let value = etcd.etcdctl(&["get", "--print-value-only", "/portcullis/prod/shared/tickets"]);
    let ring: Value = serde_json::from_str(&value).unwrap();
    assert_eq!(ring["sequence"], 1);
    let copies = members
        .each_ref()
        .map(|member| fs::read_to_string(member.0.site.path("state/fleet/prod/tickets.json")).unwrap());
    assert_eq!(copies[0], copies[1]);
    let mut client = members[0].0.client().speaking(&TLS13);
    for (member, expected) in [
        (&members[0], HandshakeKind::Full),
        (&members[1], HandshakeKind::Resumed),
        (&members[0], HandshakeKind::Resumed),
    ] {
        client.go_to(member.0.address("main"));
        let connection = client.attempt().1.unwrap();
        assert_eq!(connection.tls().handshake_kind(), Some(expected));
    }
}

#[test]
fn configuration_that_cannot_work_is_explained() {
    let site = TestDir::new();
    let upstream = Upstream::echo();
    let check = |config: String| {
        site.write("portcullis.toml", config);
        run(executable().args(["check", "--offline", "-c"]).arg(site.path("portcullis.toml")))
    };
    let listener = listener(&upstream);
    let outcome = check(listener.to_string());
    assert_eq!(outcome.code, Some(78), "{}", outcome.text());
    assert!(outcome.stderr.contains("there is no [fleet]"), "{}", outcome.stderr);
    let fleet = "state.directory = \"state\"\n[fleet]\nname = \"prod\"\nstore = \"etcd\"\n[fleet.etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n";
    let outcome = check(format!("{fleet}{}", listener.clone().key("sources_file = \"x\"")));
    assert!(outcome.stderr.contains("is set beside sources_file"), "{}", outcome.stderr);
    let outcome = check(format!("{fleet}{}", listener.clone().tls("ticket_keys = \"fleet\"")));
    assert!(outcome.stderr.contains("needs [fleet] key_file"), "{}", outcome.stderr);
    let outcome = check(format!("{fleet}{listener}"));
    assert_eq!(outcome.code, Some(0), "{}", outcome.text());
    assert!(outcome.text().contains("no copy of the fleet's rules yet"), "{}", outcome.text());
    assert!(outcome.text().contains("fleet prod\n"), "{}", outcome.text());
    let shown = |more: &str| {
        site.write("portcullis.toml", format!("{}{listener}", fleet.replace("[fleet]\n", &format!("[fleet]\n{more}"))));
        run(executable().args(["check", "--json", "--offline", "-c"]).arg(site.path("portcullis.toml")))
    };
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let default: Value = serde_json::from_str(&shown("").success()).unwrap();
    assert_eq!(default["fleet"]["member"], host.trim());
    site.write("fleet.key", FLEET_KEY);
    let key = "key_file = \"fleet.key\"\n";
    assert!(!shown(key).text().contains("fleet key"), "only its owner can read it");
    fs::set_permissions(site.path("fleet.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let readable = shown(key).success();
    assert!(readable.contains("group or others can read the fleet key"), "{readable}");
}
