//! `[listener.credentials]` with real Redis clients and servers.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::process::Command;

use portcullis::internals::timestamp;
use serde_json::{Value, json};

use crate::harness::credentials::{
    DATABASE_PASSWORD, OTHER_PASSWORD, PASSWORD, add_password, assert_no_secret, remove_password,
    rotate_database_password, set_client, site, with_credentials,
};
use crate::harness::load::Load;
use crate::harness::portcullis::ADMIN;
use crate::harness::program::{command, run};
use crate::harness::{Connection, Event, Listener, Portcullis, Redis, Request, WAIT_TIMEOUT, eventually};
use crate::redis::cli;

/// A server whose user `keyed` needs [`DATABASE_PASSWORD`], and whose default user needs another password.
pub(crate) fn keyed() -> Redis {
    let redis = Redis::start();
    let password = format!(">{DATABASE_PASSWORD}");
    let user = ["ACL", "SETUSER", "keyed", "on", &password, "~*", "&*", "+@all"];
    assert_eq!(run(redis.cli().args(user)).success(), "OK\n");
    assert_eq!(run(redis.cli().args(["CONFIG", "SET", "requirepass", "nobody knows"])).success(), "OK\n");
    redis
}

/// As an administrator of the server.
fn direct(redis: &Redis, words: &[&str]) -> String {
    run(redis.cli().env("REDISCLI_AUTH", "nobody knows").args(words)).success()
}

pub(crate) fn before(redis: &Redis) -> Portcullis {
    let portcullis = Portcullis::start(site(), format!("{ADMIN}{}", with_credentials(Listener::redis(redis))));
    // It has read its files.
    portcullis.address("main");
    portcullis
}

/// `redis-cli` as a client with this password.
fn cli_as(portcullis: &Portcullis, user: &str, password: &str) -> Command {
    let mut cli = cli(portcullis);
    cli.env("REDISCLI_AUTH", password).args(["--user", user]);
    cli
}

fn auth(user: &str, password: &str) -> Vec<u8> {
    format!("AUTH {user} {password}\r\n").into_bytes()
}

/// A session of `app` with this password.
fn session(portcullis: &Portcullis, user: &str, password: &str) -> Connection {
    let mut connection = portcullis.client().connect();
    connection.ask(&auth(user, password), b"+OK\r\n");
    connection
}

const WRONG: &[u8] = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";
const NO_AUTH: &[u8] = b"-NOAUTH Authentication required.\r\n";

fn is_failure(event: &Event) -> bool {
    event.is("authentication.failed")
}

fn is_denied(event: &Event) -> bool {
    event.is("connection.denied")
}

fn is_closed(event: &Event) -> bool {
    event.is("connection.closed")
}

fn users(portcullis: &Portcullis) -> Vec<Value> {
    portcullis.sessions().iter().map(|session| session["user"].clone()).collect()
}

#[test]
fn client_has_another_password_than_the_database() {
    let redis = keyed();
    let portcullis = before(&redis);
    assert_eq!(run(cli_as(&portcullis, "app", PASSWORD).args(["ACL", "WHOAMI"])).success(), "keyed\n");
    let opened = portcullis.event("an opening", |event| event.is("connection.opened"));
    assert_eq!(opened.text("user"), "app");
    for (user, password, detail) in [
        ("app", "Wrong-1-password", "wrong password"),
        ("app", DATABASE_PASSWORD, "wrong password"),
        ("keyed", DATABASE_PASSWORD, "unknown user, or user without a valid password"),
        ("default", PASSWORD, "unknown user, or user without a valid password"),
    ] {
        let seen = portcullis.seen();
        let refused = run(cli_as(&portcullis, user, password).arg("PING"));
        assert!(refused.stderr.contains("WRONGPASS"), "{}", refused.stderr);
        let failed = portcullis.event_after(seen, "a failure", is_failure);
        let denied = portcullis.event_after(seen, "a denial", is_denied);
        for event in [&failed, &denied] {
            assert_eq!((event.text("user"), event.reason()), (user, "authentication_failed"));
            assert_eq!((event.text("source"), event.text("listener")), ("127.0.0.1", "main"));
            assert_eq!(event.text("detail"), detail);
        }
    }
    assert_no_secret(portcullis);
}

#[test]
fn client_that_does_not_authenticate_reaches_nothing() {
    let redis = keyed();
    let portcullis = before(&redis);
    let mut connection = portcullis.client().connect();
    connection.ask(b"GET key\r\n", NO_AUTH);
    connection.ask(b"PING\r\nHELLO 3\r\n", &[NO_AUTH, b"-NOAUTH HELLO must be called with "].concat());
    drop(connection);
    let denied = portcullis.event("a denial", is_denied);
    assert_eq!(denied.reason(), "client_closed");
    assert_eq!(direct(&redis, &["INFO", "stats"]).matches("total_connections_received:").count(), 1);
    let mut connection = portcullis.client().connect();
    connection.send(b"QUIT\r\n");
    assert_eq!(connection.rest().unwrap(), b"+OK\r\n");
    portcullis.assert_count("failures", 0, is_failure);
}

#[test]
fn several_attempts_on_one_connection_are_denied_once() {
    let redis = keyed();
    let portcullis = before(&redis);
    let mut connection = portcullis.client().connect();
    connection.send(&[auth("app", "one"), auth("web", "two"), b"QUIT\r\n".to_vec()].concat());
    assert_eq!(connection.rest().unwrap(), [WRONG, WRONG, b"+OK\r\n"].concat());
    let denied = portcullis.event("a denial", is_denied);
    assert_eq!((denied.reason(), denied.text("user")), ("authentication_failed", "web"));
    portcullis.assert_count("failures", 2, is_failure);
    let mut connection = portcullis.client().connect();
    connection.ask(&auth("app", "one"), WRONG);
    connection.ask(&[auth("app", PASSWORD), b"PING\r\n".to_vec()].concat(), b"+OK\r\n+PONG\r\n");
    portcullis.assert_count("denials", 1, is_denied);
}

/// What redis answers to the bytes, without TLS.
fn reference(redis: &Redis, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, redis.port())).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    let _ = stream.shutdown(Shutdown::Both);
    received
}

/// Without the ID of the connection, which HELLO reports.
fn comparable(received: &[u8]) -> String {
    let text = received.escape_ascii().to_string();
    let mut parts = text.split("$2\\r\\nid\\r\\n:");
    let mut comparable = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        comparable += &format!("(id){}", part.trim_start_matches(|digit: char| digit.is_ascii_digit()));
    }
    comparable
}

/// The same bytes go to a Redis with these clients, and through Portcullis to one that knows only its own user.
#[test]
fn whole_sessions_are_answered_byte_for_byte_as_by_redis() {
    let (reference_server, redis) = (Redis::start(), keyed());
    let password = format!(">{PASSWORD}");
    run(reference_server.cli().args(["ACL", "SETUSER", "app", "on", &password, "~*", "&*", "+@all"])).success();
    run(reference_server.cli().args(["CONFIG", "SET", "requirepass", OTHER_PASSWORD])).success();
    let portcullis = before(&redis);
    portcullis.applies(|| add_password(&portcullis.site, "default", OTHER_PASSWORD));
    let right = format!("AUTH app {PASSWORD}\r\n");
    let hello = format!("HELLO 3 AUTH app {PASSWORD} SETNAME shop\r\n");
    let wrong = "AUTH app Wrong-1-password\r\n";
    let sessions = [
        format!("PING\r\n{wrong}{right}SET key value\r\nGET key\r\n"),
        format!("AUTH {OTHER_PASSWORD}\r\nPING\r\nAUTH wrong\r\nPING\r\nAUTH {OTHER_PASSWORD}\r\nPING\r\n"),
        format!("{hello}CLIENT GETNAME\r\nHELLO 2\r\nCLIENT GETNAME\r\n"),
        format!("HELLO 3 AUTH app nope\r\n{hello}PING\r\n"),
        format!("{right}MULTI\r\n{wrong}{right}SET key value\r\nEXEC\r\nPING\r\n"),
        format!("{right}MULTI\r\n{right}DISCARD\r\nPING\r\n"),
        format!("{right}SUBSCRIBE news\r\n{right}{wrong}UNSUBSCRIBE news\r\nPING\r\n"),
        format!("{hello}SUBSCRIBE news\r\n{right}{wrong}PING\r\n"),
        format!("{right}CLIENT REPLY OFF\r\n{wrong}{right}PING\r\nCLIENT REPLY ON\r\nPING\r\n"),
        format!("{right}CLIENT REPLY SKIP\r\n{wrong}PING\r\n"),
        format!("{right}RESET\r\nPING\r\n{right}PING\r\n"),
        format!("{right}HELLO 3 AUTH app {PASSWORD} foo\r\nHELLO 9 AUTH app {PASSWORD}\r\nPING\r\n"),
        format!("{right}AUTH\r\nAUTH a b c\r\nHELLO x\r\nHELLO 3 AUTH app\r\n"),
        format!("{right}ECHO \"AUTH app x\"\r\n*2\r\n$4\r\nECHO\r\n$12\r\n\r\nAUTH a b\r\n\r\n"),
        format!("*3\r\n$4\r\nauth\r\n$3\r\napp\r\n${}\r\n{PASSWORD}\r\n*1\r\n$4\r\nPING\r\n", PASSWORD.len()),
        format!("{right}{}", "PING\r\n".repeat(2000)),
        format!("{right}SET big {}\r\n{right}STRLEN big\r\n", "x".repeat(50_000)),
        format!("{right}*2\r\n$4\r\nAUTH\r\n$20000\r\n{}\r\nPING\r\n", "x".repeat(20_000)),
        format!("{right}*1\r\n$-1\r\n"),
        format!("{right}GET 'unbalanced\r\nPING\r\n"),
    ];
    for bytes in sessions {
        let bytes = format!("{bytes}QUIT\r\n").into_bytes();
        let expected = comparable(&reference(&reference_server, &bytes));
        for size in [bytes.len(), 7] {
            let mut connection = portcullis.client().connect();
            // Redis may have closed before the last bytes are sent.
            let _ = bytes.chunks(size).try_for_each(|chunk| connection.stream.write_all(chunk));
            let received = comparable(&connection.rest().unwrap());
            assert_eq!(received, expected, "in chunks of {size}: {}", bytes.escape_ascii());
        }
    }
    assert_no_secret(portcullis);
}

#[test]
fn certificate_of_a_client_needs_no_password() {
    let (site, redis) = (site(), keyed());
    let clients = fs::read_to_string(site.path("clients.toml")).unwrap();
    site.write("clients.toml", format!("{clients}\n[[client]]\nuser = \"web\"\ncertificates = [\"cn:web\"]\n"));
    let [web, app] = ["web", "app"].map(|name| site.ca.issue(Request::client(name)));
    let listener = Listener::redis(&redis).tls("client_auth = \"optional\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, format!("{ADMIN}{}", with_credentials(listener)));
    let mut with = portcullis.client().showing(&web).connect();
    with.ask(b"ACL WHOAMI\r\n", b"$5\r\nkeyed\r\n");
    let opened = portcullis.event("an opening", |event| event.is("connection.opened"));
    assert_eq!((opened.text("user"), opened.text("client_subject")), ("web", "CN=web"));
    // It may become another client with a password, and nothing is left after RESET.
    with.ask(&auth("app", "Wrong-1-password"), WRONG);
    with.ask(&auth("app", PASSWORD), b"+OK\r\n");
    assert_eq!(users(&portcullis), [json!("app")]);
    with.ask(b"RESET\r\nPING\r\n", &[b"+RESET\r\n", NO_AUTH].concat());
    portcullis.client().showing(&app).connect().ask(b"PING\r\n", NO_AUTH);
    portcullis.client().connect().ask(b"PING\r\n", NO_AUTH);
    let mut another = portcullis.client().showing(&web).connect();
    another.ask(b"PING\r\n", b"+PONG\r\n");
    let seen = portcullis.seen();
    portcullis.applies(|| set_client(&portcullis.site, "disable", "web"));
    let closed = portcullis.event_after(seen, "an end", is_closed);
    assert_eq!((closed.reason(), closed.text("user")), ("credential_revoked", "web"));
    assert_eq!(closed.number("source_port"), u64::from(another.port()));
    portcullis.client().showing(&web).connect().ask(b"PING\r\n", NO_AUTH);
    with.ask(b"PING\r\n", NO_AUTH);
}

#[test]
fn removed_password_ends_exactly_its_sessions() {
    let redis = keyed();
    let portcullis = before(&redis);
    portcullis.applies(|| add_password(&portcullis.site, "app", OTHER_PASSWORD));
    portcullis.applies(|| add_password(&portcullis.site, "web", PASSWORD));
    let mut old = session(&portcullis, "app", PASSWORD);
    let mut new = session(&portcullis, "app", OTHER_PASSWORD);
    let mut web = session(&portcullis, "web", PASSWORD);
    // It began with the old password and has the new one now.
    let mut renewed = session(&portcullis, "app", PASSWORD);
    renewed.ask(&auth("app", OTHER_PASSWORD), b"+OK\r\n");
    assert_eq!(portcullis.sessions().len(), 4);
    let seen = portcullis.seen();
    let applied = portcullis.applies(|| remove_password(&portcullis.site, "app", "p1"));
    let closed = portcullis.event_after(seen, "an end", is_closed);
    assert_eq!((closed.number("source_port"), closed.reason()), (old.port().into(), "credential_revoked"));
    assert!(closed.text("detail").contains("the password p1 of \"app\""), "{}", closed.0);
    let at = |event: &Event| timestamp::parse(event.text("ts")).unwrap();
    assert!(at(&closed) - at(&applied) < time::Duration::SECOND);
    assert_eq!(old.rest().unwrap(), b"");
    for kept in [&mut new, &mut web, &mut renewed] {
        kept.ask(b"PING\r\n", b"+PONG\r\n");
    }
    eventually("the end of the session", || (portcullis.sessions().len() == 3).then_some(()));
    portcullis.client().connect().ask(&auth("app", PASSWORD), WRONG);
    renewed.ask(&auth("app", PASSWORD), WRONG);
    renewed.ask(b"PING\r\n", b"+PONG\r\n");
}

/// Redis compares names and options up to a NUL.
#[test]
fn client_cannot_become_another_user_of_the_database() {
    let redis = keyed();
    direct(&redis, &["ACL", "SETUSER", "boss", "on", "nopass", "~*", "&*", "+@all"]);
    let portcullis = before(&redis);
    let who = b"ACL WHOAMI\r\n";
    for option in ["AUTH\0", "auth", "SETNAME\0 n AUTH", "foo boss x AUTH"] {
        let words: Vec<&str> = ["HELLO", "2"].into_iter().chain(option.split(' ')).chain(["boss", "x"]).collect();
        let hello: String = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect();
        let hello = format!("*{}\r\n{hello}", words.len());
        let mut connection = session(&portcullis, "app", PASSWORD);
        connection.send(&[hello.as_bytes(), who].concat());
        let reply = connection.rest_until(b"$5\r\nkeyed\r\n");
        assert!(reply.starts_with(b"-"), "{option:?}: {}", reply.escape_ascii());
    }
}

#[test]
fn session_ends_when_its_client_acts_as_another_user_of_the_database() {
    let redis = keyed();
    let portcullis = before(&redis);
    let mut connection = session(&portcullis, "app", PASSWORD);
    let clients = fs::read_to_string(portcullis.site.path("clients.toml")).unwrap();
    let changed = clients.replace("user = \"app\"", "user = \"app\"\nupstream_user = \"weak\"");
    portcullis.applies(|| portcullis.site.replace("clients.toml", &changed));
    let closed = portcullis.event("an end", is_closed);
    assert_eq!((closed.reason(), closed.number("source_port")), ("credential_revoked", connection.port().into()));
    assert!(closed.text("detail").contains("the client \"app\" has another upstream_user"), "{}", closed.0);
    assert_eq!(connection.rest().unwrap(), b"");
}

/// A session stays at its server, which may have been replaced because it is not trusted any more.
#[test]
fn password_of_another_database_is_not_sent_to_the_one_of_the_session() {
    let (old, new) = (keyed(), keyed());
    direct(&new, &["ACL", "SETUSER", "keyed", "resetpass", ">new secret"]);
    let portcullis = before(&old);
    let mut connection = session(&portcullis, "app", PASSWORD);
    portcullis.site.write("new.password", "new secret\nnewer secret\n");
    let listener = with_credentials(Listener::redis(&new)).to_string().replace("db.password", "new.password");
    assert!(portcullis.reconfigure(format!("{ADMIN}{listener}")).is("reload.applied"));
    direct(&old, &["CONFIG", "SET", "acllog-max-len", "100"]);
    connection.ask(&auth("app", PASSWORD), b"+OK\r\n");
    assert_eq!(direct(&old, &["ACL", "LOG"]), "\n", "no password was wrong there");
    session(&portcullis, "app", PASSWORD).ask(b"PING\r\n", b"+PONG\r\n");
}

/// Redis only queues an AUTH within MULTI, so the session may still act as the user before it.
#[test]
fn session_that_may_act_as_two_users_of_the_database_ends_with_either() {
    let (site, redis) = (site(), keyed());
    direct(&redis, &["ACL", "SETUSER", "batch", "on", &format!(">{DATABASE_PASSWORD}"), "~*", "+@all"]);
    add_password(&site, "job", OTHER_PASSWORD);
    let clients = fs::read_to_string(site.path("clients.toml")).unwrap();
    let clients = clients.replace("user = \"job\"", "user = \"job\"\nupstream_user = \"batch\"");
    site.write("clients.toml", clients);
    let portcullis = Portcullis::start(site, format!("{ADMIN}{}", with_credentials(Listener::redis(&redis))));
    let mut connection = session(&portcullis, "app", PASSWORD);
    connection.ask(b"MULTI\r\n", b"+OK\r\n");
    connection.ask(&auth("job", OTHER_PASSWORD), b"+QUEUED\r\n");
    connection.ask(b"DISCARD\r\nACL WHOAMI\r\n", b"+OK\r\n$5\r\nkeyed\r\n");
    assert_eq!(users(&portcullis), [json!("job")]);
    let mut job = session(&portcullis, "job", OTHER_PASSWORD);
    job.ask(b"ACL WHOAMI\r\n", b"$5\r\nbatch\r\n");
    let seen = portcullis.seen();
    portcullis.applies(|| set_client(&portcullis.site, "disable", "app"));
    let closed = portcullis.event_after(seen, "an end", is_closed);
    assert_eq!((closed.reason(), closed.number("source_port")), ("credential_revoked", connection.port().into()));
    assert!(closed.text("detail").contains("\"app\" is disabled"), "{}", closed.0);
    assert_eq!(closed.text("user"), "job", "it was the last one");
    job.ask(b"PING\r\n", b"+PONG\r\n");
}

#[test]
fn password_of_the_database_changes_under_load_without_a_failed_connection() {
    let redis = keyed();
    let portcullis = before(&redis);
    let port = portcullis.address("main").port().to_string();
    let mut benchmark = command("redis-benchmark");
    benchmark.args(["-h", "127.0.0.1", "-p", &port, "--tls", "--cacert"]).arg(portcullis.site.path("ca.crt"));
    // A new connection for each request, until it is stopped.
    benchmark.args(["--user", "app", "-a", PASSWORD, "-k", "0", "-c", "4", "-l", "-n", "1000", "-t", "get", "-q"]);
    let load = Load::start(&mut benchmark);
    rotate_database_password(&portcullis, |password| {
        direct(&redis, &["ACL", "SETUSER", "keyed", "resetpass", &format!(">{password}")]);
    });
    load.stop_without_error();
    portcullis.assert_count("failures", 0, is_failure);
    // The load closes connections that are being set up when it is stopped.
    let is_leaving = |event: &Event| ["client_closed", "handshake_failed"].contains(&event.reason());
    let denied: Vec<_> = portcullis.events().into_iter().filter(is_denied).collect();
    assert!(denied.iter().all(is_leaving), "{denied:?}");
}

#[test]
fn client_that_authenticates_again_is_not_affected_by_a_new_password_of_the_database() {
    let redis = keyed();
    let portcullis = before(&redis);
    portcullis.applies(|| portcullis.site.replace("db.password", "open sesame\nnew secret\n"));
    let mut connection = session(&portcullis, "app", PASSWORD);
    direct(&redis, &["ACL", "SETUSER", "keyed", "resetpass", ">new secret"]);
    connection.ask(&auth("app", PASSWORD), b"+OK\r\n");
    connection.ask(&auth("app", "Wrong-1-password"), WRONG);
    connection.ask(b"PING\r\n", b"+PONG\r\n");
}

#[test]
fn database_that_rejects_every_password_is_reported_without_its_reason_to_clients() {
    let redis = keyed();
    let portcullis = before(&redis);
    portcullis.applies(|| portcullis.site.replace("db.password", "# wrong\n\nalso wrong\n"));
    let mut connection = portcullis.client().connect();
    connection.send(&auth("app", PASSWORD));
    let answer = String::from_utf8(connection.rest().unwrap()).unwrap();
    assert!(answer.starts_with("-LOADING ") && !answer.contains("keyed") && !answer.contains("assword"), "{answer}");
    let denied = portcullis.event("a denial", is_denied);
    assert_eq!(denied.reason(), "upstream_authentication_failed");
    let detail = format!(
        "upstream {redis}: rejects the user \"keyed\" with upstream_password_file lines 1, 3: WRONGPASS invalid \
         username-password pair or user is disabled"
    );
    assert_eq!(denied.text("detail"), detail);
    portcullis.applies(|| portcullis.site.replace("db.password", DATABASE_PASSWORD));
    session(&portcullis, "app", PASSWORD).ask(b"PING\r\n", b"+PONG\r\n");
    assert_no_secret(portcullis);
}

#[test]
fn reset_where_the_default_user_is_open_ends_the_session() {
    let redis = Redis::start();
    let password = format!(">{DATABASE_PASSWORD}");
    run(redis.cli().args(["ACL", "SETUSER", "keyed", "on", &password, "~*", "+@all"])).success();
    let portcullis = before(&redis);
    let mut connection = session(&portcullis, "app", PASSWORD);
    connection.send(b"PING\r\nRESET\r\nSET key value\r\n");
    assert_eq!(connection.rest().unwrap(), b"+PONG\r\n+RESET\r\n");
    assert_eq!(run(redis.cli().args(["EXISTS", "key"])).success(), "0\n");
}

#[test]
fn only_a_master_is_chosen_after_the_login() {
    let (master, replica) = (keyed(), keyed());
    let port = master.port().to_string();
    for setting in [["masteruser", "keyed"], ["masterauth", DATABASE_PASSWORD]] {
        direct(&replica, &["CONFIG", "SET", setting[0], setting[1]]);
    }
    direct(&replica, &["REPLICAOF", "127.0.0.1", &port]);
    eventually("the replication", || direct(&replica, &["ROLE"]).contains("connected").then_some(()));
    let listener = with_credentials(Listener::redis("unused").upstream("target = \"master\"")).to_string();
    let addresses = format!("address = [\"{replica}\", \"{master}\"]");
    let listener = listener.replace("address = \"unused\"", &addresses);
    let portcullis = Portcullis::start(site(), format!("{ADMIN}{listener}"));
    for _ in 0..3 {
        session(&portcullis, "app", PASSWORD).ask(b"SET key value\r\n", b"+OK\r\n");
    }
    let status = portcullis.status();
    let roles: Vec<_> = status["upstreams"].as_array().unwrap().iter().map(|upstream| &upstream["role"]).collect();
    assert!(roles.iter().any(|role| **role == json!("primary")), "{status}");
}

#[test]
fn authentication_is_bounded_in_time_and_size() {
    let redis = keyed();
    let listener = with_credentials(Listener::redis(&redis).limit("handshake_timeout = \"1s\""));
    let portcullis = Portcullis::start(site(), format!("{ADMIN}{listener}"));
    // An endless bulk string, refused as soon as its size is known.
    let mut connection = portcullis.client().connect();
    connection.send(b"*2\r\n$4\r\nAUTH\r\n$536870912\r\n");
    assert_eq!(connection.rest().unwrap(), b"-ERR Protocol error: unauthenticated bulk length\r\n");
    // Nothing, and an authentication that never ends.
    for bytes in [&b""[..], b"*2\r\n$4\r\nAUTH\r\n$9\r\n"] {
        let mut connection = portcullis.client().connect();
        connection.send(bytes);
        let _ = connection.rest();
        assert_eq!(portcullis.ending(connection.port()).reason(), "handshake_timeout");
    }
    let mut connection = portcullis.client().connect();
    connection.ask(&auth("app", "Wrong-1-password"), WRONG);
    let _ = connection.rest();
    let denied = portcullis.ending(connection.port());
    assert_eq!((denied.reason(), denied.text("detail")), ("authentication_failed", "wrong password"));
    // In the middle of a session, memory stays bounded too.
    let mut connection = session(&portcullis, "app", PASSWORD);
    let before = portcullis.resident();
    connection.send(b"*2\r\n$4\r\nAUTH\r\n$268435456\r\n");
    let block = vec![b'x'; 1 << 20];
    (0..256).for_each(|_| connection.send(&block));
    connection.ask(b"\r\nPING\r\n", &[WRONG, b"+PONG\r\n"].concat());
    assert!(portcullis.resident() < before + (8 << 20), "{before} {}", portcullis.resident());
}

#[test]
fn names_of_users_are_shown_on_one_line_and_cut() {
    let redis = keyed();
    let portcullis = before(&redis);
    let mut connection = portcullis.client().connect();
    let user = format!("\u{1b}[31mx\0y\r\n{}", "z".repeat(1000));
    connection.send(format!("*3\r\n$4\r\nAUTH\r\n${}\r\n{user}\r\n$1\r\nx\r\n", user.len()).as_bytes());
    assert_eq!(connection.receive(WRONG.len()), WRONG);
    let failed = portcullis.event("a failure", is_failure);
    assert_eq!(failed.text("user"), format!("?[31mx?y??{}", "z".repeat(53)));
}
