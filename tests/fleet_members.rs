//! Members of a fleet that are slow, killed, or configured differently: what the others report of them.

use serde_json::{Value, json};

use crate::fleet::{pair, start_in};
use crate::harness::etcd::Etcd;
use crate::harness::fleet::{Member, SOURCES, listener, rules};
use crate::harness::program::signal;
use crate::harness::{Authority, Connection, Leaf, Request, TestDir, Upstream};
use crate::metrics::reaches;

#[test]
fn member_whose_agent_hangs_keeps_its_rules_and_is_named_until_it_continues() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, b] = pair(&etcd, &upstream);
    a.append("127.0.0.7").expect(201);
    b.has(&["127.0.0.7"]);
    let mut session = b.session("127.0.0.7");
    let agent = b.agent();
    signal(agent, "STOP");
    let body = a.api().put(&format!("{SOURCES}?wait=1s"), &rules(&["127.0.0.8"])).expect(202);
    let missing = body["missing"].as_array().unwrap();
    assert_eq!((missing.len(), &missing[0]["member"]), (1, &json!("b")), "{body}");
    assert_eq!((a.values(), b.values()), (vec!["127.0.0.8".to_owned()], vec!["127.0.0.7".to_owned()]));
    session.ask(b"still here", b"still here");
    assert!(b.admits("127.0.0.7") && !b.admits("127.0.0.8"));
    signal(agent, "CONT");
    let _ = session.rest();
    assert_eq!(b.0.ending(session.port()).reason(), "source_revoked");
    b.has(&["127.0.0.8"]);
    assert!(b.admits("127.0.0.8") && !b.admits("127.0.0.7"));
}

/// A resolver whose API server does not exist.
#[cfg(feature = "kubernetes")]
const RESOLVER: &str = "[resolver.kubernetes]\nserver = \"https://127.0.0.1:1\"\n";

#[test]
#[cfg(feature = "kubernetes")]
fn live_member_at_which_a_rule_is_not_valid_is_named() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let store = format!("store = \"etcd\"\n[fleet.etcd]\nendpoints = [\"{}\"]\n", etcd.url());
    let listener = listener(&upstream);
    let a = Member::start(TestDir::new(), "a", &format!("{store}{RESOLVER}"), &listener);
    let b = Member::start(TestDir::new(), "b", &store, &listener);
    a.await_members(2, 0);
    a.append("127.0.0.7").expect(201);
    b.has(&["127.0.0.7"]);
    let pods = json!({ "rules": [{ "type": "kubernetes", "value": "pods:shop" }] });
    let body = a.api().post(&format!("{SOURCES}?wait=1s"), &pods).expect(202);
    assert_eq!(body["missing"], json!([{ "member": "b", "state": "live" }]));
    let invalid = b.0.event("the rules are invalid", |event| event.is("fleet.rules_invalid"));
    assert!(invalid.text("error").contains("needs [resolver.kubernetes]"), "{}", invalid.0);
    let outcome = a.command(&["sources", "append", "main", "127.0.0.8", "--wait", "1s"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.text());
    assert!(outcome.stderr.contains("not confirmed by b (live)"), "{}", outcome.stderr);
    assert_eq!(b.values(), ["127.0.0.7"]);
    assert!(b.admits("127.0.0.7"));
}

#[test]
fn killed_member_makes_the_numbers_of_the_fleet_unknown() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let [a, b] = pair(&etcd, &upstream);
    a.append("127.0.0.7").expect(201);
    b.has(&["127.0.0.7"]);
    for (state, count) in [("live", 2.0), ("unknown", 0.0)] {
        reaches(&a.0, &format!("portcullis_fleet_members{{state=\"{state}\"}}"), count);
    }
    reaches(&a.0, "portcullis_fleet_revision", a.fleet()["store"]["revision"].as_f64().unwrap());
    b.kill();
    a.await_members(1, 1);
    for state in ["live", "unknown"] {
        reaches(&a.0, &format!("portcullis_fleet_members{{state=\"{state}\"}}"), 1.0);
    }
    let source = || {
        let rotation = a.api().get("/v1/rotation?fleet=true").expect(200);
        assert_eq!(rotation["missing"], json!([{ "member": "b", "state": "unknown" }]));
        assert_eq!(rotation["members"], json!(["a"]));
        let items = rotation["items"].as_array().unwrap();
        items.iter().find(|item| item["kind"] == "source").unwrap().clone()
    };
    assert_eq!(source()["sessions"], Value::Null, "b may have some");
    let mut session = a.session("127.0.0.7");
    assert_eq!(source()["sessions"], 1, "at least");
    let close = ["sessions", "close", "--source", "127.0.0.7", "--fleet"];
    let outcome = a.command(&close);
    assert_eq!((outcome.code, outcome.text()), (Some(1), String::new()));
    assert!(outcome.stderr.contains("sessions: done here, and not confirmed by b (unknown)"), "{}", outcome.stderr);
    let _ = session.rest();
    assert_eq!(a.0.ending(session.port()).reason(), "closed_by_admin");
    let outcome = a.command(&[&close[..], &["--json"]].concat());
    let body: Value = serde_json::from_str(&outcome.text()).unwrap();
    assert_eq!((outcome.code, &body["closed"]), (Some(1), &Value::Null), "{body}");
    let plan = a.command(&["sources", "append", "main", "127.0.0.8", "--plan"]);
    let expected = "in the fleet: unknown: no answer from b (unknown)";
    assert!(plan.text().contains(expected), "{}{}", plan.text(), plan.stderr);
}

#[test]
fn sessions_of_a_client_certificate_are_closed_here_or_at_all_members() {
    let (etcd, upstream) = (Etcd::start(), Upstream::echo());
    let clients = Authority::new("Clients CA");
    let listener = listener(&upstream).tls("client_auth = \"required\"").tls("client_ca = \"clients.pem\"");
    let [a, b] = ["a", "b"].map(|name| {
        let site = TestDir::new();
        site.write("clients.pem", clients.pem());
        start_in(site, &etcd, name, &listener)
    });
    a.await_members(2, 0);
    a.append("127.0.0.7").expect(201);
    b.has(&["127.0.0.7"]);
    let [app, other] = ["app", "other"].map(|name| clients.issue(Request::client(name)));
    let session = |member: &Member, leaf: &Leaf| -> Connection {
        let mut session = member.0.client().from("127.0.0.7").showing(leaf).connect();
        session.ask(b"hello", b"hello");
        session
    };
    let mut others = [&a, &b].map(|member| session(member, &other));
    let mut at_a = session(&a, &app);
    let mut at_b = session(&b, &app);
    let close = |arguments: &[&str]| {
        let outcome = a.command(&[&["sessions", "close", "--client"], arguments].concat());
        outcome.success()
    };
    assert_eq!(close(&["CN=nobody", "--fleet"]), "0 sessions are closed\n");
    assert_eq!(close(&["CN=app"]), "1 session is closed\n");
    let _ = at_a.rest();
    assert_eq!(a.0.ending(at_a.port()).reason(), "closed_by_admin");
    at_b.ask(b"here", b"here");
    let mut at_a = session(&a, &app);
    assert_eq!(close(&["CN=app", "--fleet"]), "2 sessions are closed\n");
    for (member, session) in [(&a, &mut at_a), (&b, &mut at_b)] {
        let _ = session.rest();
        assert_eq!(member.0.ending(session.port()).reason(), "closed_by_admin");
    }
    for session in &mut others {
        session.ask(b"here", b"here");
    }
}
