//! `[listener.credentials]` with real PostgreSQL clients and servers.

use std::fs;
use std::time::{Duration, Instant};

use portcullis::internals::timestamp;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::harness::credentials::{
    DATABASE_PASSWORD, OTHER_PASSWORD, PASSWORD, add_password, assert_no_secret, remove_password,
    rotate_database_password, set_client, site, with_credentials,
};
use crate::harness::load::UNTIL_STOPPED;
use crate::harness::portcullis::ADMIN;
use crate::harness::postgres::client;
use crate::harness::program::{Outcome, allow_many_files, run};
use crate::harness::wire::{PROTOCOL_3_0, PROTOCOL_3_2, error_response, startup};
use crate::harness::{
    Authority, Client, Connection, Event, Leaf, Listener, Load, Portcullis, Postgres, Request, TestDir, eventually,
};
use crate::postgres::{connector, conninfo, parameters, psql};

/// A server whose role `keyed` needs [`DATABASE_PASSWORD`].
pub(crate) fn keyed() -> Postgres {
    let postgres = Postgres::start();
    postgres.direct(&format!("create role keyed login replication password '{DATABASE_PASSWORD}'"));
    postgres.direct("grant all on schema public to keyed");
    postgres
}

pub(crate) fn before(postgres: &Postgres) -> Portcullis {
    let portcullis = Portcullis::start(site(), format!("{ADMIN}{}", with_credentials(Listener::postgres(postgres))));
    // It has read its files.
    portcullis.address("main");
    portcullis
}

/// Runs SQL as a client with this password.
pub(crate) fn ask(conninfo: &str, password: &str, sql: &str) -> Outcome {
    run(psql(conninfo).env("PGPASSWORD", password).args(["-w", "-c", sql]))
}

fn is_failure(event: &Event) -> bool {
    event.is("authentication.failed")
}

fn is_denied(event: &Event) -> bool {
    event.is("connection.denied")
}

#[test]
fn client_has_another_password_than_the_database() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    let conninfo = conninfo(&portcullis);
    assert_eq!(ask(&conninfo, PASSWORD, "select current_user, 6 * 7").success(), "keyed|42\n");
    let opened = portcullis.event("an opening", |event| event.is("connection.opened"));
    assert_eq!(opened.text("user"), "app");
    portcullis.event("an end", |event| event.is("connection.closed"));

    for (user, password, detail) in [
        ("app", "Wrong-1-password", "wrong password"),
        ("app", DATABASE_PASSWORD, "wrong password"),
        ("keyed", DATABASE_PASSWORD, "unknown user, or user without a valid password"),
    ] {
        let seen = portcullis.seen();
        let refused = ask(&conninfo.replace("user=app", &format!("user={user}")), password, "select 1");
        let expected = format!("FATAL:  password authentication failed for user \"{user}\"");
        assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
        let failed = portcullis.event_after(seen, "a failure", is_failure);
        let denied = portcullis.event_after(seen, "a denial", is_denied);
        for event in [&failed, &denied] {
            assert_eq!((event.text("user"), event.reason()), (user, "authentication_failed"));
            assert_eq!((event.text("source"), event.text("listener")), ("127.0.0.1", "main"));
            assert_eq!(event.text("detail"), detail);
        }
        assert_eq!(failed.number("source_port"), denied.number("source_port"));
    }
    portcullis.assert_count("failures", 3, is_failure);
    portcullis.assert_count("denials", 3, is_denied);
    assert_no_secret(portcullis);
}

#[test]
fn client_that_leaves_to_ask_its_user_has_not_failed() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    let refused = run(psql(&conninfo(&portcullis)).args(["-w", "-c", "select 1"]));
    assert!(refused.stderr.contains("no password supplied"), "{}", refused.stderr);
    let denied = portcullis.event("a denial", is_denied);
    assert_eq!((denied.reason(), denied.text("user")), ("client_closed", "app"));
    portcullis.assert_count("failures", 0, is_failure);
}

#[test]
fn two_passwords_of_a_user_are_valid_at_once() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    portcullis.applies(|| add_password(&portcullis.site, "app", OTHER_PASSWORD));
    let conninfo = conninfo(&portcullis);
    for password in [PASSWORD, OTHER_PASSWORD] {
        assert_eq!(ask(&conninfo, password, "select 1").success(), "1\n");
    }
    assert_ne!(ask(&conninfo, "Neither-1-of-them", "select 1").code, Some(0));
    assert_no_secret(portcullis);
}

/// The first message of a SCRAM client, in SASLInitialResponse.
const CLIENT_FIRST: &str = "n,,n=,r=abcdefghijklmnop";

/// What a client without TLS receives before it proves its password, without the nonce of the server, which is random.
fn challenge(client: &Client, user: &str) -> (Vec<u8>, String) {
    let mut connection = client.connect();
    connection.send(&startup(PROTOCOL_3_0, &[("user", user)]));
    let offer = message(&mut connection);
    connection.send(&sasl_response(&initial_response()));
    let challenge = message(&mut connection);
    let text = String::from_utf8(challenge[9..].to_vec()).unwrap();
    let (nonce, rest) = text.split_once(",s=").unwrap();
    assert_eq!(nonce.len(), "r=abcdefghijklmnop".len() + 24);
    (offer, rest.to_owned())
}

fn initial_response() -> Vec<u8> {
    let length = u32::try_from(CLIENT_FIRST.len()).unwrap().to_be_bytes();
    [b"SCRAM-SHA-256\0", &length[..], CLIENT_FIRST.as_bytes()].concat()
}

fn sasl_response(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [b"p", &length[..], body].concat()
}

/// A client that proves another password than its user has.
fn guess(client: &Client, user: &str) -> Connection {
    let mut connection = client.connect();
    connection.send(&startup(PROTOCOL_3_0, &[("user", user)]));
    message(&mut connection);
    connection.send(&sasl_response(&initial_response()));
    let challenge = String::from_utf8(message(&mut connection)[9..].to_vec()).unwrap();
    let nonce = challenge.split_once(",s=").unwrap().0;
    connection.send(&sasl_response(format!("c=biws,{nonce},p={}=", "A".repeat(43)).as_bytes()));
    connection
}

/// Waits until each client that has guessed is refused.
fn assert_refused(guesses: Vec<Connection>) {
    for mut connection in guesses {
        assert_eq!(error_response(&connection.rest().unwrap())[&'C'], "28P01");
    }
}

/// One whole message of the server.
fn message(connection: &mut Connection) -> Vec<u8> {
    let mut message = connection.receive(5);
    let length = u32::from_be_bytes(message[1..].try_into().unwrap());
    message.extend(connection.receive(usize::try_from(length).unwrap() - 4));
    message
}

#[test]
fn unknown_user_is_answered_like_a_known_one_also_after_a_restart() {
    let postgres = keyed();
    let mut portcullis = before(&postgres);
    portcullis.applies(|| set_client(&portcullis.site, "disable", "app"));
    portcullis.applies(|| add_password(&portcullis.site, "web", PASSWORD));
    let users = ["web", "app", "nobody", "n\u{f6}body"];
    let client = portcullis.client().with_ssl_request();
    let first = users.map(|user| challenge(&client, user));
    let salts = first.iter().map(|(_, rest)| rest.split_once(",i=").unwrap());
    for ((offer, _), (salt, iterations)) in first.iter().zip(salts) {
        assert_eq!(*offer, first[0].0);
        assert_eq!((salt.len(), iterations), (24, "4096"));
    }
    portcullis.stop();
    let site = portcullis.site.with_same_certificate();
    for name in ["clients.toml", "db.password"] {
        site.write(name, fs::read_to_string(portcullis.site.path(name)).unwrap());
    }
    let again = Portcullis::start(site, with_credentials(Listener::postgres(&postgres)));
    let client = client.at(again.address("main"));
    assert_eq!(users.map(|user| challenge(&client, user)), first);
    // Known or not, the answer to a wrong proof is the same.
    let answers = users.map(|user| {
        let mut connection = guess(&client, user);
        let mut fields = error_response(&connection.rest().unwrap());
        let text = fields.remove(&'M').unwrap();
        (fields, text.replace(user, "USER"))
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(answers[0].1, "password authentication failed for user \"USER\"");
    again.assert_count("failures", users.len(), is_failure);
}

/// Each leg has another certificate.
#[test]
fn channel_binding_works_with_tls_on_both_legs() {
    let site = site();
    let postgres = Postgres::with_tls(&site, &site.server());
    postgres.direct(&format!("create role keyed login password '{DATABASE_PASSWORD}'"));
    let listener = with_credentials(Listener::postgres(&postgres).upstream_tls("verify-full", "ca.crt"));
    let portcullis = Portcullis::start(site, listener);
    for binding in ["require", "prefer", "disable"] {
        let conninfo = format!("{} channel_binding={binding}", conninfo(&portcullis));
        assert_eq!(ask(&conninfo, PASSWORD, "select current_user").success(), "keyed\n", "{binding}");
    }
    assert!(!checked(&portcullis).contains("channel binding"), "the warning is about clients of the database");
}

/// The output of `check` for the configuration of a running program.
fn checked(portcullis: &Portcullis) -> String {
    let file = portcullis.site.path("portcullis.toml");
    run(crate::harness::portcullis::executable().args(["check", "-c"]).arg(file)).success()
}

/// A listener that presents this certificate, and a connection string that trusts `roots`.
fn showing(site: TestDir, own: &Leaf, roots: &str, postgres: &Postgres) -> (Portcullis, String) {
    site.install("server", own);
    site.write("roots.crt", roots);
    let portcullis = Portcullis::start(site, with_credentials(Listener::postgres(postgres)));
    let conninfo = conninfo(&portcullis).replace("ca.crt", "roots.crt");
    (portcullis, conninfo)
}

/// What `check` warns of when SCRAM-SHA-256-PLUS cannot be offered.
const NO_BINDING: &str = "has a signature that SCRAM channel binding does not support";

/// The signature counts, because libpq hashes the certificate with its hash function. Ed25519 has none.
#[test]
fn certificate_signed_with_ed25519_offers_no_channel_binding() {
    let postgres = keyed();
    let request = || Request::server(&["localhost", "127.0.0.1"]);
    let ed25519_ca = Authority::ed25519("Ed25519 CA");
    let by_itself = Leaf::by_itself(request().ed25519());
    let roots = by_itself.pem();
    let cases = [
        (by_itself, roots),
        (ed25519_ca.issue(request().ed25519()), ed25519_ca.pem()),
        (ed25519_ca.issue(request()), ed25519_ca.pem()),
    ];
    for (own, roots) in cases {
        let (portcullis, conninfo) = showing(site(), &own, &roots, &postgres);
        for binding in ["prefer", "disable"] {
            let conninfo = format!("{conninfo} channel_binding={binding}");
            assert_eq!(ask(&conninfo, PASSWORD, "select 1").success(), "1\n", "{binding}");
        }
        let refused = ask(&format!("{conninfo} channel_binding=require"), PASSWORD, "select 1");
        let expected = "channel binding is required, but server did not offer an authentication method that supports channel binding";
        assert!(refused.stderr.contains(expected), "{}", refused.stderr);
        assert!(checked(&portcullis).contains(NO_BINDING));
    }
}

#[test]
fn ed25519_key_in_a_certificate_that_is_signed_with_ecdsa_offers_channel_binding() {
    let (site, postgres) = (site(), keyed());
    let own = site.ca.issue(Request::server(&["localhost", "127.0.0.1"]).ed25519());
    let roots = site.ca.pem();
    let (portcullis, conninfo) = showing(site, &own, &roots, &postgres);
    for binding in ["require", "prefer", "disable"] {
        let conninfo = format!("{conninfo} channel_binding={binding}");
        assert_eq!(ask(&conninfo, PASSWORD, "select 1").success(), "1\n", "{binding}");
    }
    assert!(!checked(&portcullis).contains(NO_BINDING));
}

#[test]
fn certificate_of_the_user_needs_no_password() {
    let (site, postgres) = (site(), keyed());
    let clients = fs::read_to_string(site.path("clients.toml")).unwrap();
    site.write("clients.toml", format!("{clients}\n[[client]]\nuser = \"web\"\ncertificates = [\"cn:web\"]\n"));
    site.install("web", &site.ca.issue(Request::client("web")));
    let listener = Listener::postgres(&postgres).tls("client_auth = \"optional\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, format!("{ADMIN}{}", with_credentials(listener)));
    let path = |name: &str| portcullis.site.path(name).display().to_string();
    let with = format!("{} sslcert={} sslkey={}", conninfo(&portcullis), path("web.crt"), path("web.key"));
    let as_web = with.replace("user=app", "user=web");
    assert_eq!(run(psql(&as_web).args(["-w", "-c", "select current_user"])).success(), "keyed\n");
    let opened = portcullis.event("an opening", |event| event.is("connection.opened"));
    assert_eq!((opened.text("user"), opened.text("client_subject")), ("web", "CN=web"));
    // The certificate proves `web` only.
    assert!(run(psql(&with).args(["-w", "-c", "select 1"])).stderr.contains("no password supplied"));
    assert_eq!(ask(&with, PASSWORD, "select 1").success(), "1\n");
    let without = conninfo(&portcullis).replace("user=app", "user=web");
    assert!(ask(&without, PASSWORD, "select 1").stderr.contains("password authentication failed"));
    portcullis.applies(|| set_client(&portcullis.site, "disable", "web"));
    assert!(run(psql(&as_web).args(["-w", "-c", "select 1"])).stderr.contains("no password supplied"));
}

#[test]
fn drivers_of_rust_and_pgbench_authenticate() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    Runtime::new().unwrap().block_on(async {
        let mut parameters = parameters(&portcullis);
        for binding in
            [tokio_postgres::config::ChannelBinding::Require, tokio_postgres::config::ChannelBinding::Disable]
        {
            parameters.password(PASSWORD).channel_binding(binding);
            let (client, connection) = parameters.connect(connector(&portcullis)).await.unwrap();
            let mut running = JoinSet::new();
            running.spawn(connection);
            let token = client.cancel_token();
            let sleeping = client.simple_query("select pg_sleep(60)");
            let cancelling = async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                token.cancel_query(connector(&portcullis)).await.unwrap();
            };
            let (slept, ()) = tokio::join!(sleeping, cancelling);
            assert!(slept.unwrap_err().to_string().contains("db error"));
            assert_eq!(client.query_one("select current_user::text", &[]).await.unwrap().get::<_, String>(0), "keyed");
            drop(client);
            running.join_next().await.unwrap().unwrap().unwrap();
        }
    });
    let conninfo = conninfo(&portcullis);
    run(client("pgbench").env("PGPASSWORD", PASSWORD).args(["-i", "-q", "-d", &conninfo])).success();
    let fresh = ["-n", "-S", "-C", "-c", "4", "-t", "25", "-d", &conninfo];
    let output = run(client("pgbench").env("PGPASSWORD", PASSWORD).args(fresh)).success();
    assert!(output.contains("number of transactions actually processed: 100/100"), "{output}");
    assert_no_secret(portcullis);
}

#[test]
fn options_replication_and_newer_protocols_pass() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    let conninfo = conninfo(&portcullis);
    let with_options = format!("{conninfo} options='-c work_mem=7MB' application_name=shop");
    let sql = "select current_setting('work_mem'), current_setting('application_name'), current_database()";
    assert_eq!(ask(&with_options, PASSWORD, sql).success(), "7MB|shop|postgres\n");
    let replication = ask(&format!("{conninfo} replication=database"), PASSWORD, "IDENTIFY_SYSTEM").success();
    assert!(replication.ends_with("|postgres\n"), "{replication}");
    let mut connection = portcullis.client().with_ssl_request().connect();
    connection.send(&startup(PROTOCOL_3_2, &[("user", "app"), ("_pq_.wanted", "x")]));
    assert_eq!(message(&mut connection), b"v\0\0\0\x18\0\x03\0\0\0\0\0\x01_pq_.wanted\0");
    assert_eq!(message(&mut connection)[..1], *b"R");
}

#[test]
fn database_that_asks_for_md5_or_cleartext_is_answered() {
    let site = site();
    let postgres = Postgres::with_tls(&site, &site.server());
    postgres.direct("alter system set password_encryption = 'md5'");
    postgres.direct("select pg_reload_conf()");
    eventually("the setting", || (postgres.direct("show password_encryption") == "md5").then_some(()));
    postgres.direct(&format!("create role keyed login password '{DATABASE_PASSWORD}'"));
    let secured = with_credentials(Listener::postgres(&postgres).upstream_tls("verify-full", "ca.crt"));
    let plain = with_credentials(Listener::postgres(&postgres).named("plain"));
    let portcullis = Portcullis::start(site, format!("{secured}{plain}"));
    let secured = conninfo(&portcullis);
    let port = |name: &str| format!("port={}", portcullis.address(name).port());
    let plain = secured.replace(&port("main"), &port("plain"));
    postgres.ask_by("keyed", "md5");
    for conninfo in [&secured, &plain] {
        assert_eq!(ask(conninfo, PASSWORD, "select current_user").success(), "keyed\n");
    }
    postgres.ask_by("keyed", "password");
    assert_eq!(ask(&secured, PASSWORD, "select current_user").success(), "keyed\n");
    let seen = portcullis.seen();
    let refused = ask(&plain, PASSWORD, "select 1");
    assert!(refused.stderr.contains("can take this connection now"), "{}", refused.stderr);
    let denied = portcullis.event_after(seen, "a denial", is_denied);
    assert_eq!(denied.reason(), "upstream_authentication_failed");
    assert!(denied.text("detail").contains("in cleartext over a connection without TLS"), "{}", denied.0);
}

#[test]
fn password_of_the_database_changes_under_load_without_a_failed_connection() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    let conninfo = conninfo(&portcullis);
    run(client("pgbench").env("PGPASSWORD", PASSWORD).args(["-i", "-q", "-d", &conninfo])).success();
    let mut pgbench = client("pgbench");
    pgbench.env("PGPASSWORD", PASSWORD).args(["-n", "-S", "-C", "-c", "4"]).args(UNTIL_STOPPED).args(["-d", &conninfo]);
    let load = Load::start(&mut pgbench);
    rotate_database_password(&portcullis, |password| {
        postgres.direct(&format!("alter role keyed password '{password}'"));
    });
    load.stop_without_error();
    let denied: Vec<_> = portcullis.events().into_iter().filter(is_denied).collect();
    assert!(denied.iter().all(|event| event.reason() == "client_closed"), "{denied:?}");
}

/// The rows of the passwords of the database: each line, the users that it was accepted for, and those that it is rejected for.
fn upstream_passwords(portcullis: &Portcullis) -> Vec<Value> {
    let items = portcullis.ask("GET", "/v1/rotation").1["items"].as_array().unwrap().clone();
    let users = |users: &Value| users.as_array().unwrap().iter().map(|user| user["user"].clone()).collect::<Vec<_>>();
    let row = |item: &Value| {
        assert_eq!(
            (item["last_used"].is_null(), item["sessions"].as_u64()),
            (item["last_users"] == json!([]), Some(0))
        );
        assert_eq!(item["name"], format!("line {}", item["line"]));
        json!([item["line"], users(&item["last_users"]), users(&item["rejected_users"])])
    };
    items.iter().filter(|item| item["kind"] == "upstream_password").map(row).collect()
}

#[test]
fn rotation_shows_which_password_the_database_accepts_and_for_which_clients() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    let connect = || assert_eq!(ask(&conninfo(&portcullis), PASSWORD, "select 1").success(), "1\n");
    assert_eq!(upstream_passwords(&portcullis), [json!([1, [], []])]);
    connect();
    assert_eq!(upstream_passwords(&portcullis), [json!([1, ["keyed"], []])]);
    // The evidence follows the password into its new line.
    portcullis.applies(|| portcullis.site.replace("db.password", format!("new secret\n\n{DATABASE_PASSWORD}\n")));
    assert_eq!(upstream_passwords(&portcullis), [json!([1, [], []]), json!([3, ["keyed"], []])]);
    postgres.direct("alter role keyed password 'new secret'");
    connect();
    assert_eq!(upstream_passwords(&portcullis), [json!([1, ["keyed"], []]), json!([3, ["keyed"], ["keyed"]])]);

    let items = portcullis.ask("GET", "/v1/rotation").1["items"].as_array().unwrap().clone();
    for kind in ["password", "source"] {
        let item = items.iter().find(|item| item["kind"] == kind).unwrap();
        assert_eq!(item["last_users"][0]["user"], "app", "{item}");
    }
    let mut status = crate::harness::portcullis::executable();
    let shown = run(status.args(["status", "--rotation", "-c"]).arg(portcullis.site.path("portcullis.toml"))).success();
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("upstream password line 3 - - ") && words.contains("rejected as keyed ("), "{shown}");
    assert!(words.contains("last users: app from 127.0.0.1 ("), "{shown}");
    assert_no_secret(portcullis);
}

/// A password that the database does not ask for is not in use.
#[test]
fn password_that_the_database_does_not_ask_for_has_no_evidence() {
    let postgres = keyed();
    postgres.ask_by("keyed", "trust");
    let portcullis = before(&postgres);
    assert_eq!(ask(&conninfo(&portcullis), PASSWORD, "select 1").success(), "1\n");
    assert_eq!(upstream_passwords(&portcullis), [json!([1, [], []])]);
}

#[test]
fn database_that_rejects_every_password_is_reported_without_its_reason_to_clients() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    portcullis.applies(|| portcullis.site.replace("db.password", "# wrong\n\nalso wrong\n"));
    let mut seen = portcullis.seen();
    for _ in 0..2 {
        let refused = ask(&conninfo(&portcullis), PASSWORD, "select 1");
        assert!(refused.stderr.contains("FATAL:  no server behind this proxy can take this connection now"));
        assert!(!refused.stderr.contains("password") && !refused.stderr.contains("keyed"), "{}", refused.stderr);
        let denied = portcullis.event_after(seen, "a denial", is_denied);
        seen = portcullis.seen();
        assert_eq!(denied.reason(), "upstream_authentication_failed");
        let detail = format!(
            "upstream {postgres}: rejects the user \"keyed\" with upstream_password_file lines 1, 3: password authentication \
             failed for user \"keyed\""
        );
        assert_eq!(denied.text("detail"), detail);
    }
    let is_warning = |event: &Event| event.0["message"].as_str().is_some_and(|text| text.contains("rejects the user"));
    let warning = portcullis.event("a warning", is_warning);
    assert_eq!((warning.text("user"), warning.text("lines")), ("keyed", "1, 3"));
    portcullis.assert_count("warnings", 1, is_warning);
    let rejected = |line: usize| json!([line, [], ["keyed"]]);
    assert_eq!(upstream_passwords(&portcullis), [rejected(1), rejected(3)]);
    let error = portcullis.status()["upstreams"][0]["last_dial"]["error"].as_str().unwrap().to_owned();
    assert!(error.contains("lines 1, 3"), "{error}");
    portcullis.applies(|| portcullis.site.replace("db.password", DATABASE_PASSWORD));
    assert_eq!(ask(&conninfo(&portcullis), PASSWORD, "select 1").success(), "1\n");
    assert_no_secret(portcullis);
}

#[test]
fn other_errors_of_the_database_reach_the_client() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    let conninfo = conninfo(&portcullis);
    let missing = ask(&conninfo.replace("dbname=postgres", "dbname=missing"), PASSWORD, "select 1");
    assert!(missing.stderr.contains("database \"missing\" does not exist"), "{}", missing.stderr);
    postgres.direct("alter role keyed connection limit 0");
    let limited = ask(&conninfo, PASSWORD, "select 1");
    assert!(limited.stderr.contains("too many connections for role \"keyed\""), "{}", limited.stderr);
}

/// A psql that waits in a query.
fn waiting(conninfo: &str, password: &str) -> std::process::Child {
    let mut psql = psql(conninfo);
    psql.env("PGPASSWORD", password).args(["-w", "-c", "select pg_sleep(600)"]);
    psql.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
}

fn users(portcullis: &Portcullis) -> Vec<Value> {
    portcullis.sessions().iter().map(|session| json!([session["user"], session["unauthenticated"]])).collect()
}

#[test]
fn removed_password_ends_exactly_its_sessions() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    portcullis.applies(|| {
        add_password(&portcullis.site, "app", OTHER_PASSWORD);
    });
    portcullis.applies(|| {
        add_password(&portcullis.site, "web", PASSWORD);
    });
    let as_app = conninfo(&portcullis);
    let as_web = as_app.replace("user=app", "user=web");
    let clients = [(&as_app, PASSWORD), (&as_app, OTHER_PASSWORD), (&as_web, PASSWORD)];
    let mut running: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(index, (conninfo, password))| {
            let process = waiting(conninfo, password);
            eventually("the session", || (portcullis.sessions().len() == index + 1).then_some(()));
            process
        })
        .collect();
    assert_eq!(users(&portcullis), [json!(["app", false]), json!(["app", false]), json!(["web", false])]);
    let first = portcullis.sessions()[0]["session"].as_u64().unwrap();
    let seen = portcullis.seen();
    let applied = portcullis.applies(|| remove_password(&portcullis.site, "app", "p1"));
    let closed = portcullis.event_after(seen, "an end", |event| event.is("connection.closed"));
    assert_eq!((closed.number("session"), closed.reason()), (first, "credential_revoked"));
    assert!(closed.text("detail").contains("the password p1 of \"app\""), "{}", closed.0);
    let at = |event: &Event| timestamp::parse(event.text("ts")).unwrap();
    assert!(at(&closed) - at(&applied) < time::Duration::SECOND);
    assert_eq!(running[0].wait().unwrap().code(), Some(2));
    assert_eq!(users(&portcullis), [json!(["app", false]), json!(["web", false])]);
    let seen = portcullis.seen();
    portcullis.applies(|| set_client(&portcullis.site, "disable", "web"));
    let closed = portcullis.event_after(seen, "an end", |event| event.is("connection.closed"));
    assert_eq!(closed.text("user"), "web");
    assert_eq!(users(&portcullis), [json!(["app", false])]);
    for process in &mut running {
        let _ = process.kill();
        process.wait().unwrap();
    }
}

#[test]
fn reload_that_adds_credentials_keeps_open_sessions() {
    let (site, postgres) = (site(), keyed());
    let portcullis = Portcullis::start(site, format!("{ADMIN}{}", Listener::postgres(&postgres)));
    let mut process = waiting(&conninfo(&portcullis), "");
    eventually("the session", || (portcullis.sessions().len() == 1).then_some(()));
    assert_eq!(users(&portcullis), [json!([null, false])]);
    let with = format!("{ADMIN}{}", with_credentials(Listener::postgres(&postgres)));
    assert!(portcullis.reconfigure(with).is("reload.applied"));
    assert_eq!(users(&portcullis), [json!([null, true])]);
    assert_eq!(ask(&conninfo(&portcullis), PASSWORD, "select current_user").success(), "keyed\n");
    assert_ne!(ask(&conninfo(&portcullis), "", "select 1").code, Some(0));
    assert_eq!(users(&portcullis), [json!([null, true])]);
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn primary_is_found_behind_a_standby() {
    let primary = Postgres::primary();
    let standby = Postgres::following(&primary);
    let addresses = format!("address = [\"{standby}\", \"{primary}\"]");
    let listener = with_credentials(Listener::postgres("unused").upstream("target = \"primary\"")).to_string();
    let listener = listener.replace("address = \"unused\"", &addresses);
    let portcullis = Portcullis::start(site(), format!("{ADMIN}{listener}"));
    for _ in 0..2 {
        let asked = ask(&conninfo(&portcullis), PASSWORD, "select current_user, pg_is_in_recovery()");
        assert_eq!(asked.success(), "keyed|f\n");
    }
}

/// The time that so many guesses of one source, or of one user's password, take at least: 20 at once, then 20 a second.
fn least_time(guesses: u32) -> Duration {
    Duration::from_millis(50) * (guesses - 20)
}

#[test]
fn source_that_fails_often_waits_and_a_right_password_is_still_accepted() {
    let postgres = keyed();
    let portcullis = before(&postgres);
    let client = portcullis.client().with_ssl_request();
    let start = Instant::now();
    let guesses = (0..60).map(|number| guess(&client, &format!("user{number}"))).collect();
    assert_eq!(ask(&conninfo(&portcullis), PASSWORD, "select 1").success(), "1\n");
    assert_refused(guesses);
    assert!(start.elapsed() >= least_time(60), "{:?}", start.elapsed());
}

#[test]
fn guesses_of_one_password_from_many_sources_wait_and_its_user_is_still_admitted() {
    let postgres = keyed();
    let listener = with_credentials(Listener::postgres(&postgres).trusting(&["127.0.0.0/8"]));
    let portcullis = Portcullis::start(site(), listener);
    let client = |number: u32| portcullis.client().with_ssl_request().from(&format!("127.0.1.{number}"));
    let start = Instant::now();
    let guesses = (1..=60).map(|number| guess(&client(number), "app")).collect();
    assert_eq!(ask(&conninfo(&portcullis), PASSWORD, "select 1").success(), "1\n");
    assert_refused(guesses);
    assert!(start.elapsed() >= least_time(60), "{:?}", start.elapsed());
}

#[test]
fn flood_of_failures_is_summed_up_in_the_audit_like_denials() {
    /// Of one source, 500 are logged.
    const GUESSES: u64 = 600;
    allow_many_files();
    let postgres = keyed();
    let mut portcullis = before(&postgres);
    let client = portcullis.client().with_ssl_request();
    // All of them wait at the same time.
    let guesses = (0..GUESSES).map(|number| guess(&client, &format!("user{number}"))).collect();
    assert_refused(guesses);
    portcullis.wait_until_idle();
    let (_, events) = portcullis.stop();
    for (name, summary) in
        [("authentication.failed", "authentications.suppressed"), ("connection.denied", "denials.suppressed")]
    {
        let logged = events.iter().filter(|event| event.is(name)).count() as u64;
        let sums: Vec<_> = events.iter().filter(|event| event.is(summary)).collect();
        for sum in &sums {
            assert_eq!((sum.text("source"), sum.text("listener")), ("127.0.0.1", "main"));
            assert_eq!(sum.reason(), "authentication_failed");
        }
        let suppressed: u64 = sums.iter().map(|sum| sum.number("suppressed")).sum();
        assert_eq!(logged + suppressed, GUESSES, "{name}");
        assert!(logged >= 500 && suppressed > 0, "{logged} {name} are logged");
    }
}

#[test]
fn client_that_never_authenticates_is_closed_and_costs_the_database_nothing() {
    let upstream = crate::harness::Upstream::silent();
    let listener = with_credentials(Listener::postgres(&upstream)).limit("handshake_timeout = \"1s\"");
    let portcullis = Portcullis::start(site(), listener);
    let mut connection = portcullis.client().with_ssl_request().connect();
    connection.send(&startup(PROTOCOL_3_0, &[("user", "app")]));
    message(&mut connection);
    assert_eq!(connection.rest().unwrap(), b"");
    assert_eq!(portcullis.refusal(connection.port()), "handshake_timeout");
    for (bytes, code) in
        [(&b"p\0\0\0\x05x"[..], "08P01"), (b"Q\0\0\0\x0dselect 1\0", "08P01"), (b"p\x20\0\0\0", "28P01")]
    {
        let mut connection = portcullis.client().with_ssl_request().connect();
        connection.send(&startup(PROTOCOL_3_0, &[("user", "app")]));
        message(&mut connection);
        connection.send(bytes);
        assert_eq!(error_response(&connection.rest().unwrap())[&'C'], code);
        assert_eq!(portcullis.refusal(connection.port()), "protocol_violation");
    }
    let mut connection = portcullis.client().with_ssl_request().connect();
    connection.send(&startup(PROTOCOL_3_0, &[("database", "x")]));
    assert_eq!(error_response(&connection.rest().unwrap())[&'C'], "28000");
    upstream.assert_untouched();
}
