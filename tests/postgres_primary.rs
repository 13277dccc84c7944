//! PostgreSQL with a primary and a standby that change roles, and servers that are neither.

use std::fmt::Display;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::harness::load::UNTIL_STOPPED;
use crate::harness::postgres::client;
use crate::harness::program::{free_port, run};
use crate::harness::wire::{PROTOCOL_3_0, error_response, startup};
use crate::harness::{Authority, Event, Listener, Load, Portcullis, Postgres, Request, TestDir, Upstream, eventually};
use crate::postgres::{connector, conninfo, parameters, psql};
use crate::upstream_selection::{addresses, config, logged, upstreams};

const ASK: [&str; 2] = ["-c", "select pg_is_in_recovery(), inet_server_port()"];

pub(crate) fn before(keys: &str) -> Portcullis {
    Portcullis::start(TestDir::new(), config(&Listener::postgres("UPSTREAM"), keys))
}

/// Sessions go to the one of these that takes writes.
pub(crate) fn target(servers: &[&dyn Display]) -> String {
    format!("{}, target = \"primary\"", addresses(servers))
}

fn port(server: &dyn Display) -> String {
    server.to_string().rsplit(':').next().unwrap().to_owned()
}

/// What a session learns about its server.
fn primary_by(mut psql: Command) -> String {
    let output = run(psql.args(ASK)).success();
    let (standby, port) = output.trim_end().split_once('|').expect("two values");
    assert_eq!(standby, "f", "it is a standby");
    port.to_owned()
}

fn keyed(portcullis: &Portcullis) -> Command {
    let mut psql = psql(&conninfo(portcullis).replace("user=app", "user=keyed"));
    psql.env("PGPASSWORD", "open sesame");
    psql
}

#[test]
fn client_without_a_password_reaches_the_primary_at_every_position() {
    let leader = Postgres::primary();
    let standby = Postgres::following(&leader);
    let portcullis = before(&target(&[&standby, &leader]));
    let conninfo = conninfo(&portcullis);
    assert_eq!(primary_by(psql(&conninfo)), port(&leader));
    let opened = portcullis.event("an opening", |event| event.is("connection.opened"));
    assert_eq!(opened.text("upstream"), leader.to_string());
    logged(&portcullis, 0, &format!("upstream role changed {standby}: replica"));
    let roles: Vec<_> = upstreams(&portcullis).iter().map(|upstream| upstream["role"].clone()).collect();
    assert_eq!(roles, ["replica", "primary"]);

    run(client("pgbench").args(["-i", "-q", "-d", &conninfo])).success();
    let output = run(client("pgbench").args(["-n", "-C", "-c", "4", "-t", "20", "-d", &conninfo])).success();
    assert!(output.contains("number of transactions actually processed: 80/80"), "{output}");
    Runtime::new().unwrap().block_on(async {
        let (client, connection) = parameters(&portcullis).connect(connector(&portcullis)).await.unwrap();
        let query = async move {
            let row = client.query_one("select pg_is_in_recovery()", &[]).await.unwrap();
            assert!(!row.get::<_, bool>(0));
        };
        let (ended, ()) = tokio::join!(connection, query);
        ended.unwrap();
    });
    let events = portcullis.events();
    assert!(!events.iter().any(|event| event.is("connection.denied")));
    // One event for each session, though two servers were asked.
    let opened = |event: &&Event| event.is("connection.opened");
    assert!(events.iter().filter(opened).all(|event| event.text("upstream") == leader.to_string()));
}

#[test]
fn client_with_a_password_is_refused_once_and_then_reaches_the_primary() {
    let leader = Postgres::primary();
    let standby = Postgres::following(&leader);
    let portcullis = before(&target(&[&standby, &leader]));
    let first = run(keyed(&portcullis).args(ASK));
    assert!(
        first.stderr.contains("FATAL:  no server behind this proxy can take this connection now"),
        "{}",
        first.stderr
    );
    let denied = portcullis.event("a refusal", |event| event.is("connection.denied"));
    assert!(denied.text("detail").contains("other endpoints are tried first"), "{}", denied.0);
    for _ in 0..3 {
        assert_eq!(primary_by(keyed(&portcullis)), port(&leader));
    }
    // libpq itself tries its next host, which may be the same one again.
    let portcullis = before(&target(&[&standby, &leader]));
    let (own, info) = (portcullis.address("main").port(), conninfo(&portcullis));
    let twice = info
        .replace("user=app", "user=keyed")
        .replace("host=localhost hostaddr=127.0.0.1", "host=localhost,localhost hostaddr=127.0.0.1,127.0.0.1");
    let twice = twice.replace(&format!("port={own}"), &format!("port={own},{own}"));
    let mut psql = psql(&twice);
    psql.env("PGPASSWORD", "open sesame");
    assert_eq!(primary_by(psql), port(&leader));
}

#[test]
fn client_with_a_password_reaches_the_new_primary_after_a_switchover() {
    let mut leader = Postgres::primary();
    let mut standby = Postgres::following(&leader);
    let portcullis = before(&target(&[&leader, &standby]));
    assert_eq!(primary_by(keyed(&portcullis)), port(&leader));
    for _ in 0..2 {
        standby.promote();
        leader.signal("INT");
        leader.ends();
        leader = Postgres::following(&standby);
        std::mem::swap(&mut leader, &mut standby);
        let config = config(&Listener::postgres("UPSTREAM"), &target(&[&standby, &leader]));
        assert!(portcullis.reconfigure(config).is("reload.applied"));
        // Whatever is known of them: each error makes the next attempt a better one.
        eventually("the new primary is found", || {
            (run(keyed(&portcullis).args(ASK)).text() == format!("f|{}\n", port(&leader))).then_some(())
        });
        assert_eq!(primary_by(keyed(&portcullis)), port(&leader));
    }
}

#[test]
fn two_former_standbys_are_tried_in_turn() {
    // Servers that ask for a password before they send their role.
    let standby = || Upstream::new(|stream| asks_and_is(stream, "on"));
    let (one, other) = (standby(), standby());
    let primary = Upstream::new(|stream| asks_and_is(stream, "off"));
    let portcullis = before(&target(&[&one, &other, &primary]));
    let attempt = || {
        let mut client = portcullis.client().with_ssl_request().connect();
        client.send(&startup(PROTOCOL_3_0, &[("user", "app")]));
        assert_eq!(client.receive(CLEARTEXT.len()), CLEARTEXT);
        client.send(b"p\0\0\0\x08abc\0");
        let mut kind = [0];
        client.stream.read_exact(&mut kind).unwrap();
        kind[0]
    };
    assert_eq!((attempt(), attempt(), attempt()), (b'E', b'E', b'R'));
    assert_eq!(attempt(), b'R');
    assert_eq!((one.connections(), other.connections(), primary.connections()), (1, 1, 2));
}

#[test]
fn client_that_sends_no_password_is_closed_at_the_idle_timeout() {
    let primary = Upstream::new(|stream| asks_and_is(stream, "off"));
    let listener = Listener::postgres("UPSTREAM").limit("idle_timeout = \"2s\"");
    let portcullis = Portcullis::start(TestDir::new(), config(&listener, &target(&[&primary])));
    let mut client = portcullis.client().with_ssl_request().connect();
    client.send(&startup(PROTOCOL_3_0, &[("user", "app")]));
    assert_eq!(client.receive(CLEARTEXT.len()), CLEARTEXT);
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).unwrap();
    assert!(String::from_utf8_lossy(&rest).contains("C57P01"), "{rest:?}");
    let denied = portcullis.event("the end", |event| event.is("connection.denied"));
    assert_eq!(denied.reason(), "idle_timeout");
}

pub(crate) const CLEARTEXT: &[u8] = b"R\0\0\0\x08\0\0\0\x03";

/// A server that asks for a password and then sends whether it is in hot standby.
pub(crate) fn asks_and_is(mut stream: TcpStream, standby: &str) {
    let mut bytes = [0; 512];
    let _ = stream.read(&mut bytes);
    let _ = stream.write_all(CLEARTEXT);
    let _ = stream.read(&mut bytes);
    let status = [b"in_hot_standby\0", standby.as_bytes(), b"\0"].concat();
    let length = u32::try_from(status.len() + 4).unwrap().to_be_bytes();
    let _ = stream.write_all(&[b"R\0\0\0\x08\0\0\0\0S", &length[..], &status].concat());
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

#[test]
fn switchover_under_load_causes_no_client_error() {
    let mut leader = Postgres::primary();
    let standby = Postgres::following(&leader);
    let portcullis = before(&target(&[&leader, &standby]));
    let conninfo = conninfo(&portcullis);
    run(client("pgbench").args(["-i", "-q", "-d", &conninfo])).success();
    let mut pgbench = client("pgbench");
    pgbench.args(["-n", "-S", "-C", "-c", "4", "-d", &conninfo]).args(UNTIL_STOPPED);
    let load = Load::start(&mut pgbench);
    portcullis.event("the load", |event| event.is("connection.opened"));
    eventually("the standby has it all", || {
        let has = run(standby.psql().args(["-c", "select count(*) from pgbench_accounts"]));
        (has.text() == "100000\n").then_some(())
    });
    standby.promote();
    // It waits for its sessions to end, and refuses new ones because it is shutting down (57P03).
    let seen = portcullis.seen();
    leader.signal("TERM");
    portcullis.event_after(seen, "a session at the new primary", |event| {
        event.is("connection.opened") && event.text("upstream") == standby.to_string()
    });
    leader.ends();
    // Before the load is stopped.
    let events = portcullis.events();
    load.stop_without_error();
    assert!(!events.iter().any(|event| event.is("connection.denied")));
}

/// pgbench with a connection for each transaction. `extent` is the number of transactions of a client (`-t`) or the time
/// (`-T`).
fn load(portcullis: &Portcullis, extent: [&str; 2]) -> Command {
    let script = portcullis.site.path("load.sql");
    std::fs::write(&script, "select pg_sleep(0.002);\n").unwrap();
    let mut pgbench = client("pgbench");
    pgbench.args(["-n", "-C", "-c", "4", "-d", &conninfo(portcullis), "-f"]).arg(script).args(extent);
    pgbench
}

#[test]
fn restarted_server_under_load_breaks_only_its_own_sessions() {
    let (mut first, second) = (Postgres::start(), Postgres::start());
    let portcullis = before(&addresses(&[&first, &second]));
    let at = |server: &dyn Display| {
        let server = server.to_string();
        move |event: &Event| event.is("connection.opened") && event.text("upstream") == server
    };
    let mut pgbench = load(&portcullis, ["-t", "100"]);
    let meanwhile = thread::spawn(move || run(&mut pgbench));
    portcullis.event("the load", at(&first));
    let seen = portcullis.seen();
    first.signal("QUIT");
    first.ends();
    // A session at the killed server is lost; a new one goes to the other server.
    let _ = meanwhile.join().unwrap();
    let output = run(&mut load(&portcullis, ["-t", "25"]));
    assert!(!output.stderr.contains("error"), "{}", output.stderr);
    portcullis.event_after(seen, "a session at the second", at(&second));

    let load = Load::start(&mut load(&portcullis, UNTIL_STOPPED));
    let seen = portcullis.seen();
    first.start_again();
    portcullis.event_after(seen, "a session at the first", at(&first));
    // Before the load is stopped.
    let events = portcullis.events();
    load.stop_without_error();
    assert!(!events.iter().any(|event| event.is("connection.denied")));
    // A server may receive the client's Terminate and close first; then the event has no detail.
    let lost = |event: &&Event| event.is("connection.closed") && event.0["detail"].is_string();
    assert_eq!(events.iter().skip(seen).filter(lost).count(), 0, "a session was lost after the first came back");
}

#[test]
fn killed_primary_is_ejected_and_used_again_once_it_recovers() {
    let mut leader = Postgres::primary();
    let standby = Postgres::following(&leader);
    let portcullis = before(&target(&[&leader, &standby]));
    let conninfo = conninfo(&portcullis);
    assert_eq!(primary_by(psql(&conninfo)), port(&leader));
    leader.signal("QUIT");
    leader.ends();
    // No server takes writes: only the standby answers.
    let refused = run(psql(&conninfo).args(ASK));
    assert!(refused.stderr.contains("no server behind this proxy can take this connection now"), "{}", refused.stderr);
    let denied = portcullis.event("a refusal", |event| event.is("connection.denied"));
    let detail = denied.text("detail");
    assert!(detail.contains(&format!("upstream {leader}: Connection refused")), "{detail}");
    assert!(detail.contains(&format!("upstream {standby}: is a standby, but target is \"primary\"")), "{detail}");
    assert_eq!(denied.text("upstream"), format!("{leader},{standby}"));
    let seen = portcullis.seen();
    leader.start_again();
    logged(&portcullis, seen, &format!("upstream recovered {leader}"));
    assert_eq!(primary_by(psql(&conninfo)), port(&leader));
}

#[test]
fn server_that_serves_no_client_is_ejected_for_each_target() {
    let real = Postgres::start();
    let starting: &[u8] = b"E\0\0\0\x3bSFATAL\0VFATAL\0C57P03\0Mthe database system is starting\0\0";
    let unused = format!("127.0.0.1:{}", free_port());
    for target in ["any", "primary"] {
        let hanging = Upstream::silent();
        let closing = Upstream::new(|mut stream| drop(stream.read(&mut [0; 512])));
        let garbage = Upstream::sending(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let starting = Upstream::new(|mut stream| {
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(starting);
        });
        let all = addresses(&[&unused, &closing, &garbage, &hanging, &starting, &real]);
        let portcullis = before(&format!("{all}, target = \"{target}\", connect_timeout = \"2s\""));
        let conninfo = conninfo(&portcullis);
        assert_eq!(primary_by(psql(&conninfo)), port(&real));
        // A session that dialled the hanging server again would take two seconds. On a busy machine another may, too.
        let is_quick = |_| {
            let begun = Instant::now();
            assert_eq!(primary_by(psql(&conninfo)), port(&real));
            begun.elapsed() < Duration::from_secs(2)
        };
        assert!((0..20).any(is_quick), "every session waited for the hanging server");
        for (server, words) in [
            (&unused, "Connection refused"),
            (&closing.to_string(), "closed the connection without a response"),
            (&garbage.to_string(), "not a PostgreSQL server"),
            (&hanging.to_string(), "did not respond within connect_timeout"),
        ] {
            let known = upstreams(&portcullis);
            let known = known.iter().find(|upstream| upstream["address"] == server.as_str()).unwrap();
            assert_eq!(known["healthy"], false, "{server} {target}");
            assert!(known["error"].as_str().is_some_and(|error| error.contains(words)), "{known}");
        }
        // It answers that it is not ready, which is healthy.
        assert_eq!(upstreams(&portcullis)[4]["healthy"], true);
        // Accepting connections alone does not make it healthy again.
        let asked = closing.connections();
        eventually("it is asked again", || (closing.connections() > asked).then_some(()));
        assert_eq!(upstreams(&portcullis)[1]["healthy"], false);
    }
}

#[test]
fn stopped_server_is_ejected_and_used_again_once_it_continues() {
    let (first, second) = (Postgres::start(), Postgres::start());
    let portcullis = before(&format!("{}, connect_timeout = \"2s\"", addresses(&[&first, &second])));
    let conninfo = conninfo(&portcullis);
    assert_eq!(primary_by(psql(&conninfo)), port(&first));
    first.signal("STOP");
    assert_eq!(primary_by(psql(&conninfo)), port(&second));
    let seen = portcullis.seen();
    eventually("it has been asked, and hangs", || {
        upstreams(&portcullis)[0]["error"]
            .as_str()
            .is_some_and(|error| error.contains("did not respond within connect_timeout"))
            .then_some(())
    });
    first.signal("CONT");
    logged(&portcullis, seen, &format!("upstream recovered {first}"));
    assert_eq!(primary_by(psql(&conninfo)), port(&first));
}

#[test]
fn bytes_after_the_startup_message_go_to_the_selected_server() {
    let leader = Postgres::primary();
    let standby = Postgres::following(&leader);
    let portcullis = before(&target(&[&standby, &leader]));
    let query = b"select inet_server_port()::text\0";
    let query = [b"Q", &u32::try_from(query.len() + 4).unwrap().to_be_bytes()[..], query].concat();
    let terminate = b"X\0\0\0\x04";
    let mut client = portcullis.client().with_ssl_request().connect();
    let hello = startup(PROTOCOL_3_0, &[("user", "app"), ("database", "postgres")]);
    client.send(&[&hello[..], &query, terminate].concat());
    let all = client.rest().unwrap();
    let row = [&b"D\0\0\0"[..], &[10 + u8::try_from(port(&leader).len()).unwrap()]].concat();
    let at = all.windows(row.len()).position(|window| window == row).expect("a row of that length");
    assert!(all[at..].windows(port(&leader).len()).any(|window| window == port(&leader).as_bytes()));
    assert_eq!(all.windows(row.len()).filter(|window| *window == row).count(), 1, "it was asked once");
}

#[test]
fn server_error_for_the_client_is_relayed() {
    let leader = Postgres::primary();
    let standby = Postgres::following(&leader);
    for keys in [target(&[&leader, &standby]), addresses(&[&leader, &standby])] {
        let portcullis = before(&keys);
        let unused = conninfo(&portcullis).replace("user=app", "user=nobody");
        let refused = run(psql(&unused).args(ASK));
        assert!(refused.stderr.contains("role \"nobody\" does not exist"), "{}", refused.stderr);
        let wrong = run(keyed(&portcullis).env("PGPASSWORD", "open barley").args(ASK));
        assert!(wrong.stderr.contains("password authentication failed"), "{}", wrong.stderr);
        assert!(upstreams(&portcullis).iter().all(|upstream| upstream["healthy"] != false));
    }
}

#[test]
fn starting_servers_are_reported_with_sqlstate_57p03() {
    let starting: &[u8] = b"E\0\0\0\x3bSFATAL\0VFATAL\0C57P03\0Mthe database system is starting\0\0";
    let starting = Upstream::new(move |mut stream| {
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(starting);
    });
    let unused = format!("127.0.0.1:{}", free_port());
    let portcullis = before(&addresses(&[&starting, &unused]));
    let mut client = portcullis.client().with_ssl_request().connect();
    client.send(&startup(PROTOCOL_3_0, &[("user", "app")]));
    assert_eq!(error_response(&client.rest().unwrap())[&'C'], "57P03");
    assert_eq!(portcullis.refusal(client.port()), "upstream_unreachable");
}

#[test]
fn primary_is_found_over_tls_and_a_rejected_certificate_is_explained() {
    let (leader, site) = (Postgres::primary(), TestDir::new());
    let (databases, untrusted_clients) = (Authority::new("Databases"), Authority::new("Other"));
    leader.demand_certificates(&databases.issue(Request::server(&["127.0.0.1"])), &databases);
    let standby = Postgres::following(&leader);
    site.write("databases.crt", databases.pem());
    site.install("app", &databases.issue(Request::client("app")));
    site.install("untrusted", &untrusted_clients.issue(Request::client("app")));
    let keys = |name: &str| {
        let tls = format!("tls = \"verify-full\", ca = \"databases.crt\", cert = \"{name}.crt\", key = \"{name}.key\"");
        config(&Listener::postgres("UPSTREAM"), &format!("{}, {tls}", target(&[&standby, &leader])))
    };
    let portcullis = Portcullis::start(site, keys("app"));
    let conninfo = format!("{} channel_binding=disable", conninfo(&portcullis));
    assert_eq!(primary_by(psql(&conninfo)), port(&leader));
    let mut keyed = psql(&conninfo.replace("user=app", "user=keyed"));
    keyed.env("PGPASSWORD", "open sesame");
    assert_eq!(primary_by(keyed), port(&leader));

    assert!(portcullis.reconfigure(keys("untrusted")).is("reload.applied"));
    let refused = run(psql(&conninfo).args(ASK));
    assert!(refused.stderr.contains("FATAL"), "{}", refused.stderr);
    let denied = portcullis.event("a refusal", |event| event.is("connection.denied"));
    assert_eq!(denied.reason(), "upstream_tls_failed");
    for server in [&leader, &standby] {
        let words = format!("upstream {server}: the upstream refused our certificate");
        assert!(denied.text("detail").contains(&words), "{}", denied.0);
    }
}

#[test]
fn plaintext_client_reaches_the_primary_and_keeps_its_password() {
    let (leader, site) = (Postgres::primary(), TestDir::new());
    let databases = Authority::new("Databases");
    leader.demand_certificates(&databases.issue(Request::server(&["127.0.0.1"])), &databases);
    let standby = Postgres::following(&leader);
    site.write("databases.crt", databases.pem());
    site.install("app", &databases.issue(Request::client("app")));
    let tls = "tls = \"verify-full\", ca = \"databases.crt\", cert = \"app.crt\", key = \"app.key\"";
    let listener = Listener::postgres("UPSTREAM").without_tls();
    let config = config(&listener, &format!("{}, {tls}", target(&[&standby, &leader])));
    let portcullis = Portcullis::start(site, config);
    let plain = |user: &str| {
        let own = portcullis.address("main").port();
        let mut psql = psql(&format!("host=127.0.0.1 port={own} user={user} dbname=postgres sslmode=disable"));
        psql.env("PGPASSWORD", "open sesame");
        psql
    };
    assert_eq!(primary_by(plain("app")), port(&leader));
    // SCRAM-SHA-256-PLUS, which the server offers in TLS, is not for this client.
    assert_eq!(primary_by(plain("keyed")), port(&leader));
}
