//! The listed states of sessions: open, half-closed, closing, and denied connections.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{free_address, run};
use crate::harness::wire::{PROTOCOL_3_0, error_response, startup};
use crate::harness::{
    Authority, Connection, Listener, Portcullis, Postgres, Redis, Request, TestDir, Upstream, eventually,
};
use crate::postgres_primary::{CLEARTEXT, asks_and_is, before, target};
use crate::reload::ON_SIGHUP;
use crate::revocation::MAX_REVOCATION_TIME;

fn start(listener: &Listener) -> Portcullis {
    Portcullis::start(TestDir::new(), format!("{ADMIN}{ON_SIGHUP}{listener}"))
}

/// A Redis session that the server has ended, and whose client has noticed that and stays.
fn left_by_redis(portcullis: &Portcullis) -> Connection {
    let mut client = portcullis.client().connect();
    client.send(b"QUIT\r\n");
    assert_eq!(client.rest().unwrap(), b"+OK\r\n");
    client
}

/// A PostgreSQL client that has sent its StartupMessage.
fn introduced(portcullis: &Portcullis, user: &str) -> Connection {
    let mut client = portcullis.client().with_ssl_request().connect();
    client.send(&startup(PROTOCOL_3_0, &[("user", user), ("database", "postgres")]));
    client
}

/// The only session, once it is in this state.
fn only(portcullis: &Portcullis, state: &str, half_closed_by: &Value) -> Value {
    eventually(state, || {
        let sessions = portcullis.sessions();
        assert!(sessions.len() < 2, "{sessions:?}");
        sessions.into_iter().find(|one| one["state"] == state && one["half_closed_by"] == *half_closed_by)
    })
}

/// The number of sessions that rely on the first trusted source.
fn users(rotation: &Value) -> u64 {
    let mut items = rotation["items"].as_array().unwrap().iter();
    items.find(|item| item["kind"] == "source").unwrap()["sessions"].as_u64().unwrap()
}

fn words(portcullis: &Portcullis, arguments: &[&str]) -> String {
    run(executable().args(arguments).arg("--socket").arg(portcullis.site.path("admin.sock"))).success()
}

/// The policy ends the session of this client soon.
fn assert_revoked(portcullis: &Portcullis, client: &Connection, act: impl FnOnce()) {
    act();
    let began = Instant::now();
    let closed = portcullis.ending(client.port());
    assert!(began.elapsed() < MAX_REVOCATION_TIME, "it took {:?}", began.elapsed());
    assert_eq!((closed.text("event"), closed.reason()), ("connection.closed", "source_revoked"), "{}", closed.0);
    eventually("it is not listed any more", || portcullis.sessions().is_empty().then_some(()));
}

#[test]
fn session_whose_upstream_has_ended_is_half_closed_until_it_is_revoked() {
    let redis = Redis::start();
    let listener = Listener::redis(&redis);
    let portcullis = start(&listener);
    let mut busy = portcullis.client().connect();
    busy.ask(b"PING\r\n", b"+PONG\r\n");
    let open = only(&portcullis, "open", &Value::Null);
    busy.send(b"QUIT\r\n");
    assert_eq!(busy.rest().unwrap(), b"+OK\r\n");
    let half_closed = only(&portcullis, "half_closed", &json!("upstream"));
    assert_eq!((&half_closed["session"], &half_closed["opened_at"]), (&open["session"], &open["opened_at"]));
    assert!(words(&portcullis, &["sessions", "list"]).contains(" half-closed by upstream "));
    // It still depends on its source: the client may still send.
    let status = portcullis.status();
    assert_eq!((&status["sessions"], &status["sessions_closing"]), (&json!(1), &json!(0)));
    assert_eq!(users(&portcullis.ask("GET", "/v1/rotation").1), 1);
    assert_revoked(&portcullis, &busy, || {
        let elsewhere = listener.clone().trusting(&["127.0.0.2"]);
        portcullis.reconfigure(format!("{ADMIN}{ON_SIGHUP}{elsewhere}"));
    });
}

#[test]
fn session_whose_client_has_ended_is_half_closed_until_it_is_revoked() {
    let (finish, finished) = channel::<()>();
    let finished = Mutex::new(finished);
    let upstream = Upstream::new(move |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = stream.write_all(b"still here");
        let _ = finished.lock().unwrap().recv();
    });
    let listener = Listener::tcp(&upstream);
    let portcullis = start(&listener);
    let mut client = portcullis.client().connect();
    client.finish_sending();
    assert_eq!(client.receive(10), b"still here");
    let half_closed = only(&portcullis, "half_closed", &json!("client"));
    assert!(words(&portcullis, &["sessions", "list"]).contains(" half-closed by client "));
    assert_eq!(users(&portcullis.ask("GET", "/v1/rotation").1), 1);
    let plan = portcullis.site.path("next.toml");
    portcullis.site.write("next.toml", format!("{ADMIN}{}", listener.clone().trusting(&["127.0.0.2"])));
    let plan = run(executable().args(["check", "--diff", "--json", "-c"]).arg(plan)).success();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["plan"]["sessions_ended"][0]["session"], half_closed["session"]);
    assert_revoked(&portcullis, &client, || {
        let elsewhere = listener.clone().trusting(&["127.0.0.2"]);
        portcullis.reconfigure(format!("{ADMIN}{ON_SIGHUP}{elsewhere}"));
    });
    drop(finish);
}

#[test]
fn half_closed_session_is_closed_by_its_number() {
    let redis = Redis::start();
    let portcullis = start(&Listener::redis(&redis));
    let client = left_by_redis(&portcullis);
    let session = only(&portcullis, "half_closed", &json!("upstream"))["session"].to_string();
    assert!(words(&portcullis, &["sessions", "close", &session]).contains("is closed"));
    assert_eq!(portcullis.ending(client.port()).reason(), "closed_by_admin");
}

/// The answers of the admin socket while a session lingers for its client.
struct WhileClosing {
    listed: Value,
    status: Value,
    rotation: Value,
    closed: (u16, Value),
}

/// Keeps a client connected whose session has ended, and queries the admin socket while the session lingers.
fn while_closing(portcullis: &Portcullis) -> Option<WhileClosing> {
    // The place of an earlier attempt is taken until its last client has ended.
    eventually("the place is free", || portcullis.sessions().is_empty().then_some(()));
    let mut client = left_by_redis(portcullis);
    // What it sends to a closed server breaks the other direction, too.
    let closed = eventually("the end of the session", || {
        client.send(b"PING\r\n");
        portcullis.events().into_iter().find(|event| event.ends(client.port()))
    });
    let id = closed.number("session");
    let find = || {
        let (_, answer) = portcullis.ask("GET", "/v1/sessions");
        answer["sessions"].as_array().unwrap().iter().find(|one| one["session"] == id).cloned()
    };
    let listed = find()?;
    let status = portcullis.ask("GET", "/v1/status").1["listeners"][0].clone();
    let rotation = portcullis.ask("GET", "/v1/rotation").1;
    let closed = portcullis.ask("DELETE", &format!("/v1/sessions/{id}"));
    // Its place is free for the next one.
    portcullis.client().connect().ask(b"PING\r\n", b"+PONG\r\n");
    // On a slow machine it may have ended before the last answer; then the answers do not count.
    find().map(|_| WhileClosing { listed, status, rotation, closed })
}

#[test]
fn lingering_session_is_listed_as_closing_and_does_not_count() {
    let redis = Redis::start();
    let portcullis = start(&Listener::redis(&redis).limit("max_connections = 1"));
    portcullis.status();
    let seen = eventually("a session that is closing", || while_closing(&portcullis));
    assert_eq!((&seen.listed["state"], &seen.listed["half_closed_by"]), (&json!("closing"), &Value::Null));
    assert_eq!((&seen.status["sessions"], &seen.status["sessions_closing"]), (&json!(0), &json!(1)));
    assert_eq!(users(&seen.rotation), 0, "nothing open depends on it: {}", seen.rotation);
    assert_eq!(seen.closed, (204, Value::Null));
    assert!(!portcullis.events().iter().any(|event| event.is("admin.action")), "nothing was done");
}

#[test]
fn client_that_no_standby_serves_is_never_listed() {
    let leader = Postgres::primary();
    let standby = Postgres::following(&leader);
    let portcullis = before(&target(&[&standby]));
    let mut client = introduced(&portcullis, "app");
    // It has received its error, and stays connected.
    assert_eq!(error_response(&client.rest().unwrap())[&'C'], "57P03");
    assert_eq!(portcullis.sessions(), [] as [Value; 0]);
    assert_eq!(portcullis.status()["sessions"], 0);
    assert_eq!(portcullis.refusal(client.port()), "upstream_unreachable");
}

#[test]
fn client_that_is_asked_for_a_password_is_listed_when_the_server_has_taken_it() {
    for (standby, is_taken) in [("on", false), ("off", true)] {
        let upstream = Upstream::new(|stream| asks_and_is(stream, standby));
        let portcullis = before(&target(&[&upstream]));
        let mut client = introduced(&portcullis, "app");
        assert_eq!(client.receive(CLEARTEXT.len()), CLEARTEXT);
        assert_eq!(portcullis.sessions(), [] as [Value; 0], "it has not got in yet");
        client.send(b"p\0\0\0\x08abc\0");
        assert_eq!(client.receive(1), if is_taken { b"R" } else { b"E" });
        if is_taken {
            only(&portcullis, "open", &Value::Null);
        } else {
            assert_eq!(portcullis.sessions(), [] as [Value; 0]);
        }
    }
}

/// The answer of a client with a wrong password.
fn wrong_password() -> Vec<u8> {
    let answer = [&b"SCRAM-SHA-256\0"[..], &7_u32.to_be_bytes(), b"garbage"].concat();
    let length = u32::try_from(answer.len() + 4).unwrap();
    [&b"p"[..], &length.to_be_bytes(), &answer].concat()
}

/// The next message of a server: its type and what is in it.
fn message(client: &mut Connection) -> (u8, Vec<u8>) {
    let head = client.receive(5);
    let length = u32::from_be_bytes(head[1..].try_into().unwrap());
    (head[0], client.receive(usize::try_from(length).unwrap() - 4))
}

const TRUSTED: &[u8] = &[0, 0, 0, 0];
const SASL: &[u8] = &[0, 0, 0, 10];

#[test]
fn client_refused_by_the_server_is_half_closed_until_it_closes() {
    let leader = Postgres::primary();
    let alone = format!("address = \"{leader}\"");
    for (keys, user) in [(&alone, "nobody"), (&alone, "keyed"), (&target(&[&leader]), "keyed")] {
        let portcullis = before(keys);
        let mut client = introduced(&portcullis, user);
        loop {
            let (kind, body) = message(&mut client);
            match (kind, &body[..4]) {
                (b'E', _) => break,
                (b'R', SASL) => client.send(&wrong_password()),
                (b'R', TRUSTED) => {}
                _ => panic!("{user} received {:?}", char::from(kind)),
            }
        }
        client.rest().unwrap();
        // The server was reached, and has spoken to the client itself.
        let session = only(&portcullis, "half_closed", &json!("upstream"));
        assert_eq!(portcullis.opened(client.port()).number("session"), session["session"].as_u64().unwrap());
        drop(client);
        eventually("it is not listed any more", || portcullis.sessions().is_empty().then_some(()));
    }
}

#[test]
fn denied_connection_is_never_listed() {
    let upstream = Upstream::echo();
    let (full, away) = (Listener::redis(&upstream).limit("max_connections = 1"), Listener::redis(free_address()));
    let portcullis = start(&full);
    let mut inside = portcullis.client().connect();
    inside.ask(b"hello", b"hello");
    let mut refused = portcullis.client().connect();
    assert!(refused.rest().unwrap().starts_with(b"-ERR max number"));
    let inside = portcullis.opened(inside.port()).number("session");
    assert_eq!(only(&portcullis, "open", &Value::Null)["session"], inside);

    let portcullis = start(&away);
    let mut refused = portcullis.client().connect();
    assert!(refused.rest().unwrap().starts_with(b"-LOADING"));
    assert_eq!(portcullis.sessions(), [] as [Value; 0]);
    assert_eq!(portcullis.refusal(refused.port()), "upstream_unreachable");
    // The denied client used the rule all the same, and may connect again.
    let item = &portcullis.ask("GET", "/v1/rotation").1["items"][1];
    assert_eq!((&item["kind"], &item["sessions"]), (&json!("source"), &json!(0)));
    assert!(item["last_used"].is_string(), "{item}");
}

#[test]
fn rotation_shows_last_users_of_unused_items() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let old = Authority::new("Old CA");
    site.write("old-ca.crt", old.pem());
    let job = old.issue(Request::client("job"));
    let listener = Listener::redis(&upstream).tls("client_auth = \"required\"").tls("client_ca = \"old-ca.crt\"");
    let portcullis = Portcullis::start(site, format!("{ADMIN}{ON_SIGHUP}{listener}"));
    let mut client = portcullis.client().showing(job).connect();
    client.ask(b"hello", b"hello");
    let port = client.port();
    drop(client);
    assert_eq!(portcullis.opened(port).text("client_issuer"), "CN=Old CA");
    eventually("the session has ended", || portcullis.sessions().is_empty().then_some(()));

    let rotation = portcullis.ask("GET", "/v1/rotation").1;
    for item in rotation["items"].as_array().unwrap() {
        assert_eq!(item["sessions"], 0, "{item}");
        let [user] = item["last_users"].as_array().unwrap().as_slice() else { panic!("{item}") };
        assert_eq!((&user["subject"], &user["source"]), (&json!("CN=job"), &json!("127.0.0.1")), "{item}");
        assert_eq!(user["last_used"], item["last_used"], "{item}");
    }
    let words = joined(&words(&portcullis, &["status", "--rotation"]));
    assert!(words.contains("no open session; last used") && words.contains("last users: CN=job from"), "{words}");
    assert!(!words.contains("unused for"), "{words}");
}

#[test]
fn added_rule_shows_the_time_of_its_reload() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream);
    let portcullis = start(&listener);
    portcullis.address("main");
    let added = listener.clone().trusting(&["127.0.0.1", "192.0.2.1"]);
    assert!(portcullis.reconfigure(format!("{ADMIN}{ON_SIGHUP}{added}")).is("reload.applied"));
    let words = joined(&words(&portcullis, &["status", "--rotation"]));
    assert!(words.contains("not used since it was added"), "{words}");
}

#[test]
fn reload_of_unchanged_files_keeps_their_time_of_effect() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream);
    let portcullis = start(&listener);
    portcullis.address("main");
    let reload = || words(&portcullis, &["reload"]);
    assert!(reload().starts_with("already in force since "), "nothing has changed since the start");
    let added = listener.clone().trusting(&["127.0.0.1", "192.0.2.1"]);
    portcullis.site.replace("portcullis.toml", format!("{ADMIN}{ON_SIGHUP}{added}"));
    assert!(reload().starts_with("applied: generation 2 is in force\n  sources added: 1"));
    let again = reload();
    assert!(again.starts_with("already in force since ") && again.contains("generation 2 is in force"), "{again}");
    // A rejected policy is not in force.
    portcullis.site.replace("portcullis.toml", "nonsense");
    assert_eq!(run(executable().args(["reload", "--socket"]).arg(portcullis.site.path("admin.sock"))).code, Some(1));
    portcullis.site.replace("portcullis.toml", format!("{ADMIN}{ON_SIGHUP}{added}"));
    assert!(reload().starts_with("applied: generation 3 is in force"));
}

/// The cells of a table that have several lines, in one line.
fn joined(table: &str) -> String {
    table.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn sessions_of_a_removed_listener_are_shown_until_they_end() {
    let upstream = Upstream::echo();
    let [gone, kept] = ["gone", "kept"].map(|name| Listener::redis(&upstream).named(name));
    let keep = format!("{ADMIN}{ON_SIGHUP}reload.revoke = \"keep\"\n");
    let portcullis = Portcullis::start(TestDir::new(), format!("{keep}{gone}{kept}"));
    let mut client = portcullis.client_of("gone").connect();
    client.ask(b"hello", b"hello");
    assert!(portcullis.reconfigure(format!("{keep}{kept}")).is("reload.applied"));
    let removed = || portcullis.ask("GET", "/v1/status").1["removed_listeners"].clone();
    assert_eq!(removed(), json!([{ "name": "gone", "sessions": 1, "sessions_closing": 0 }]));
    assert!(words(&portcullis, &["status"]).contains("removed listener gone: 1"));
    assert!(words(&portcullis, &["sessions", "list", "gone"]).contains(" open "));
    client.ask(b"still here", b"still here");
    drop(client);
    eventually("nothing is left of it", || (removed() == json!([])).then_some(()));
}
