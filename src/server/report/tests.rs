//! How sessions are reported in each state.

use time::{Duration, OffsetDateTime};

use super::*;
use crate::credential::clients::fixtures;
use crate::credential::login::{Login, Proof};
use crate::outcome::Reason;
use crate::policy::fixtures::{ConfigDir, listener};
use crate::policy::usage::Authorization;
use crate::session::registry::ConnectionGuard;
use crate::session::registry::state::ClosedSide;

/// A policy with the listener `db`, which trusts `sources`.
fn policy(dir: &ConfigDir, sources: &str) -> Snapshot {
    dir.install("db", OffsetDateTime::now_utc() + Duration::days(365));
    dir.snapshot(listener("db", 1001, sources), None)
}

fn register(registry: &Arc<ConnectionRegistry>, snapshot: &Snapshot) -> ConnectionGuard {
    let policy = snapshot.named("db").unwrap();
    let rule = policy.sources.trusted.rules().first().cloned().map(Into::into);
    let guard = registry.enter("db".into(), ClientAddr::new(([127, 0, 0, 1], 4242).into()));
    guard.activate(Authorization { rule, ..Authorization::default() });
    guard
}

/// One connection that has not reached its upstream, and one session in each state.
fn connections_in_each_state(registry: &Arc<ConnectionRegistry>, snapshot: &Snapshot) -> [ConnectionGuard; 5] {
    let connections = [(); 5].map(|()| register(registry, snapshot));
    let [_dialling, open, half_closed, closing, terminated] = &connections;
    for session in [open, half_closed, closing, terminated] {
        session.mark_open();
    }
    half_closed.mark_half_closed(ClosedSide::Upstream);
    closing.mark_closing();
    registry.find(terminated.id()).unwrap().end(Reason::ClosedByAdmin.into());
    connections
}

#[test]
fn list_has_every_session_with_its_state_and_no_dialling_connection() {
    let (dir, registry) = (ConfigDir::new(), Arc::new(ConnectionRegistry::default()));
    let snapshot = policy(&dir, "\"127.0.0.1\"");
    let connections = connections_in_each_state(&registry, &snapshot);
    let answer = sessions(&snapshot, &registry, &SessionFilter::default());
    let fields = |session: &Value| {
        (session["session"].as_u64().unwrap(), session["state"].clone(), session["half_closed_by"].clone())
    };
    let listed: Vec<_> = answer["sessions"].as_array().unwrap().iter().map(fields).collect();
    let [_, open, half_closed, closing, terminated] = connections.each_ref().map(ConnectionGuard::id);
    let expected = [
        (open, json!("open"), Value::Null),
        (half_closed, json!("half_closed"), json!("upstream")),
        (closing, json!("closing"), Value::Null),
        (terminated, json!("closing"), Value::Null),
    ];
    assert_eq!(listed, expected);
}

#[test]
fn rotation_counts_open_and_half_closed_sessions() {
    let (dir, registry) = (ConfigDir::new(), Arc::new(ConnectionRegistry::default()));
    let snapshot = policy(&dir, "\"127.0.0.1\"");
    let [_dialling, open, half_closed, ..] = connections_in_each_state(&registry, &snapshot);
    let users = || {
        let answer = rotation(&snapshot, &registry);
        let items = answer["items"].as_array().unwrap().iter();
        let item = items.clone().find(|item| item["kind"] == "source").unwrap();
        (item["sessions"].clone(), item["clients"].as_array().unwrap().len())
    };
    assert_eq!(users(), (json!(2), 1));
    open.mark_closing();
    assert_eq!(users(), (json!(1), 1));
    half_closed.mark_closing();
    assert_eq!(users(), (json!(0), 0), "no open session uses it");
}

#[test]
fn plan_counts_open_and_half_closed_sessions() {
    let (dir, registry) = (ConfigDir::new(), Arc::new(ConnectionRegistry::default()));
    let current = policy(&dir, "\"127.0.0.1\"");
    let [dialling, open, half_closed, ..] = connections_in_each_state(&registry, &current);
    let counts = |snapshot: Snapshot| {
        let plan = plan(&Built { snapshot, warnings: Vec::new() }, &current, &registry);
        let ids = plan["sessions_ended"].as_array().unwrap().iter().map(|session| session["session"].as_u64().unwrap());
        let mut ids: Vec<_> = ids.collect();
        ids.sort_unstable();
        assert_eq!(plan["sessions_ended_count"], ids.len());
        (ids, plan["sessions_kept"].as_u64().unwrap())
    };
    assert_eq!(counts(policy(&dir, "\"127.0.0.1\"")), (vec![], 2));
    assert_eq!(counts(policy(&dir, "\"127.0.0.2\"")), (vec![open.id(), half_closed.id()], 0));
    // The dialling connection is rechecked, too.
    assert_eq!(revocation::preview(&policy(&dir, "\"127.0.0.2\""), &registry).len(), 3);
    drop(dialling);
}

#[test]
fn rotation_lists_each_password_with_its_use_and_nothing_of_a_verifier() {
    let (dir, registry) = (ConfigDir::new(), Arc::new(ConnectionRegistry::default()));
    dir.install("db", OffsetDateTime::now_utc() + Duration::days(365));
    let built = |passwords: &[(&str, &str)], previous| {
        let password = |(id, text): &(&str, &str)| {
            let verifier = fixtures::password(id, text).verifier;
            format!("{{ id = \"{id}\", scram = \"{verifier}\", created_at = 2026-01-31T00:00:00Z }}, ")
        };
        let passwords: String = passwords.iter().map(password).collect();
        let clients = format!("[[client]]\nuser = \"app\"\npasswords = [{passwords}]\n");
        std::fs::write(dir.path("clients.toml"), clients).unwrap();
        let config = listener("db", 1001, "\"127.0.0.1\"").replace("\"tcp\"", "\"redis\"");
        dir.snapshot(config + "credentials.clients_file = \"clients.toml\"\n", previous)
    };
    let before = built(&[("p1", "one"), ("p2", "two")], None);
    let policy = before.named("db").unwrap();
    let client = policy.credentials.as_ref().unwrap().clients.by_user("app").unwrap();
    let by = Proof::Password(Arc::clone(client.password("p1").unwrap()));
    let login = Some(Arc::new(Login::new(Arc::clone(client), by, "default")));
    let guard = registry.enter("db".into(), ClientAddr::new(([127, 0, 0, 1], 4242).into()));
    let authorization = Authorization { login, ..Authorization::default() };
    policy.usage.note(&authorization, ClientAddr::new(([127, 0, 0, 1], 4242).into()), OffsetDateTime::now_utc());
    guard.activate(authorization);
    guard.mark_open();

    let rows = |snapshot: &Snapshot| {
        let report = rotation(snapshot, &registry);
        let items = report["items"].as_array().unwrap().iter().filter(|item| item["kind"] == "password");
        let row = |item: &Value| (item["name"].clone(), item["sessions"].clone(), item["last_used"].is_string());
        assert!(!report.to_string().contains("SCRAM"), "{report}");
        items.map(row).collect::<Vec<_>>()
    };
    assert_eq!(rows(&before), [(json!("app p1"), json!(1), true), (json!("app p2"), json!(0), false)]);
    // Another password under the ID has not been used.
    let after = built(&[("p1", "other")], Some(&before));
    let policy = after.named("db").unwrap();
    policy.usage.keep_only(policy);
    assert_eq!(rows(&after), [(json!("app p1"), json!(0), false)]);
    assert!(!rows(&before)[0].2, "the former one is forgotten");
}
