//! Real PostgreSQL clients with a real PostgreSQL server.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use rustls::RootCertStore;
use tokio::runtime::Runtime;
use tokio_postgres::{AsyncMessage, Client};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::harness::pki::sha256;
use crate::harness::postgres::client;
use crate::harness::program::{self, run};
use crate::harness::wire::{PROTOCOL_3_0, error_response, startup};
use crate::harness::{Listener, Portcullis, Postgres, Upstream};

/// A connection string for libpq that verifies everything.
pub(crate) fn conninfo(portcullis: &Portcullis) -> String {
    format!(
        "host=localhost hostaddr=127.0.0.1 port={} user=app dbname=postgres sslmode=verify-full sslrootcert={}",
        portcullis.address("main").port(),
        portcullis.site.path("ca.crt").display(),
    )
}

/// `psql` that prints only the values.
pub(crate) fn psql(conninfo: &str) -> Command {
    let mut psql = client("psql");
    psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", conninfo]);
    psql
}

/// The crate's TLS, trusting the test's CA.
pub(crate) fn connector(portcullis: &Portcullis) -> MakeRustlsConnect {
    let mut roots = RootCertStore::empty();
    roots.add(portcullis.site.ca.der().clone()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    MakeRustlsConnect::new(config.with_no_client_auth())
}

pub(crate) fn parameters(portcullis: &Portcullis) -> tokio_postgres::Config {
    let mut parameters = tokio_postgres::Config::new();
    parameters.host("localhost").hostaddr([127, 0, 0, 1].into());
    parameters.port(portcullis.address("main").port()).user("app").dbname("postgres");
    parameters.ssl_mode(tokio_postgres::config::SslMode::Require);
    parameters
}

#[test]
fn psql_works_with_verify_full() {
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres));
    let output = run(psql(&conninfo(&portcullis)).args(["-c", "select 6 * 7"])).success();
    assert_eq!(output, "42\n");
    let opened = portcullis.event("an opening", |event| event.is("connection.opened"));
    assert_eq!(opened.text("upstream"), postgres.to_string());
    assert_eq!(opened.text("tls_version"), "TLSv1.3");
}

#[test]
fn psql_presents_its_client_certificate() {
    let postgres = Postgres::start();
    let site = crate::harness::TestDir::new();
    site.install("client", &site.ca.issue(crate::harness::Request::client("app")));
    let listener = Listener::postgres(&postgres).tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"");
    let portcullis = Portcullis::start(site, listener);
    let refused = run(psql(&conninfo(&portcullis)).args(["-c", "select 1"]));
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("certificate required"), "{}", refused.stderr);
    let with = format!(
        "{} sslcert={} sslkey={}",
        conninfo(&portcullis),
        portcullis.site.path("client.crt").display(),
        portcullis.site.path("client.key").display(),
    );
    assert_eq!(run(psql(&with).args(["-c", "select 1"])).success(), "1\n");
}

#[test]
fn postgres_is_reached_over_its_unix_socket() {
    let postgres = Postgres::start();
    let socket = format!("unix:{}", postgres.socket().display());
    let portcullis = Portcullis::before(Listener::postgres(&socket));
    let output = run(psql(&conninfo(&portcullis)).args(["-c", "select inet_server_addr() is null"]));
    assert_eq!(output.success(), "t\n");
}

#[test]
fn password_is_checked_with_scram_end_to_end() {
    let postgres = Postgres::start();
    postgres.direct("create role keyed login password 'open sesame'");
    let portcullis = Portcullis::before(Listener::postgres(&postgres));
    let conninfo = conninfo(&portcullis).replace("user=app", "user=keyed");
    let ask = |password: &str, binding: &str| {
        let conninfo = format!("{conninfo} channel_binding={binding}");
        run(psql(&conninfo).env("PGPASSWORD", password).args(["-c", "select current_user"]))
    };
    for binding in ["prefer", "disable"] {
        assert_eq!(ask("open sesame", binding).success(), "keyed\n");
    }
    let wrong = ask("open barley", "prefer");
    assert!(wrong.stderr.contains("password authentication failed"), "{}", wrong.stderr);
}

#[test]
fn pgbench_runs_eight_clients() {
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres));
    let conninfo = conninfo(&portcullis);
    run(client("pgbench").args(["-i", "-q", "-d", &conninfo])).success();
    let output = run(client("pgbench").args(["-n", "-c", "8", "-t", "100", "-d", &conninfo]));
    let output = output.success();
    assert!(output.contains("number of transactions actually processed: 800/800"), "{output}");
    let fresh = ["-n", "-S", "-C", "-c", "4", "-t", "25", "-d"];
    let output = run(client("pgbench").args(fresh).arg(&conninfo)).success();
    assert!(output.contains("number of transactions actually processed: 100/100"), "{output}");
}

#[test]
fn copy_of_100_mb_is_relayed_unchanged_both_ways() {
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres));
    copy_both_ways(&portcullis, &postgres);
}

/// Copies 100 MB out of the server and into it again, and compares with what the server has.
pub(crate) fn copy_both_ways(portcullis: &Portcullis, postgres: &Postgres) {
    const ROWS: &str = "select i, repeat(md5(i::text), 32) from generate_series(1, 100000) i";
    let conninfo = conninfo(portcullis);
    let out = portcullis.site.path("out");

    let mut copy = psql(&conninfo);
    copy.args(["-c", &format!("copy ({ROWS}) to stdout")]).stdout(File::create(&out).unwrap());
    assert!(copy.status().unwrap().success());
    let mut copy = postgres.psql();
    let straight = run(copy.args(["-c", &format!("copy ({ROWS}) to stdout")])).stdout;
    let through = fs::read(&out).unwrap();
    assert!(through.len() > 100_000_000, "{}", through.len());
    assert_eq!(sha256(&through), sha256(&straight));

    postgres.direct("create unlogged table copied (number int, text text)");
    let mut copy = psql(&conninfo);
    copy.args(["-c", "copy copied from stdin"]).stdin(File::open(&out).unwrap());
    assert!(copy.stdout(Stdio::null()).status().unwrap().success());
    let back = run(postgres.psql().args(["-c", "copy copied to stdout"])).stdout;
    assert_eq!(sha256(&back), sha256(&through));
}

#[test]
fn tokio_postgres_works() {
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres));
    Runtime::new().unwrap().block_on(async {
        let connected = parameters(&portcullis).connect(connector(&portcullis)).await;
        let (client, connection) = connected.unwrap();
        let queries = async move {
            let row = client.query_one("select $1::int * 7", &[&6]).await.unwrap();
            assert_eq!(row.get::<_, i32>(0), 42);
            let rows = client.query("select repeat('x', 1000) from generate_series(1, 5000)", &[]);
            assert_eq!(rows.await.unwrap().len(), 5000);
        };
        let (ended, ()) = tokio::join!(connection, queries);
        ended.unwrap();
    });
}

#[test]
fn notification_reaches_its_listener() {
    let postgres = Postgres::start();
    let portcullis = Portcullis::before(Listener::postgres(&postgres));
    Runtime::new().unwrap().block_on(async {
        let connected = parameters(&portcullis).connect(connector(&portcullis)).await;
        let (client, mut connection) = connected.unwrap();
        let received = async {
            loop {
                let message = std::future::poll_fn(|context| connection.poll_message(context)).await;
                if let AsyncMessage::Notification(notification) = message.unwrap().unwrap() {
                    return notification;
                }
            }
        };
        let talk = async {
            client.batch_execute("listen news").await.unwrap();
            postgres.direct("notify news, 'hello'");
        };
        let (notification, ()) = tokio::join!(received, talk);
        assert_eq!((notification.channel(), notification.payload()), ("news", "hello"));
        drop::<Client>(client);
    });
}

#[test]
fn psql_prints_that_the_upstream_is_unreachable() {
    let unused = format!("127.0.0.1:{}", program::free_port());
    let portcullis = Portcullis::before(Listener::postgres(unused));
    let refused = run(psql(&conninfo(&portcullis)).args(["-c", "select 1"]));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("FATAL:"), "{}", refused.stderr);
    let denied = portcullis.event("a refusal", |event| event.is("connection.denied"));
    assert_eq!(denied.reason(), "upstream_unreachable");

    let mut connection = portcullis.client().with_ssl_request().connect();
    connection.send(&startup(PROTOCOL_3_0, &[("user", "app")]));
    let fields = error_response(&connection.rest().unwrap());
    assert_eq!((fields[&'S'].as_str(), fields[&'C'].as_str()), ("FATAL", "57P03"));
    assert_eq!(portcullis.refusal(connection.port()), "upstream_unreachable");
}

#[test]
fn startup_message_of_any_version_is_relayed_unchanged() {
    use crate::harness::wire::{PROTOCOL_3_2, PROTOCOL_GREASE};
    for version in [PROTOCOL_3_0, PROTOCOL_3_2, PROTOCOL_GREASE] {
        let upstream = Upstream::silent();
        let portcullis = Portcullis::before(Listener::postgres(&upstream));
        let hello = startup(version, &[("user", "app"), ("_pq_.command_tag_format", "x")]);
        let mut connection = portcullis.client().with_ssl_request().connect();
        connection.send(&[hello.as_slice(), b"and what follows"].concat());
        let expected = [hello.as_slice(), b"and what follows"].concat();
        assert_eq!(upstream.receives(expected.len()), expected);
    }
}
