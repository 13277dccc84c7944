//! TLS to the upstream, with real Redis, PostgreSQL and OpenSSL servers, and with some that misbehave.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, ServerConfig};
use time::OffsetDateTime;

use crate::harness::load::UNTIL_STOPPED;
use crate::harness::openssl::openssl;
use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::postgres::client;
use crate::harness::program::{Running, command, run, serve};
use crate::harness::redis::ANY_CLIENT;
use crate::harness::upstream::{Secured, showing};
use crate::harness::wire::{PROTOCOL_3_0, SSL_REQUEST, error_response, read_exactly, startup};
use crate::harness::{
    Authority, ClockedPortcullis, Event, Leaf, Listener, Load, Portcullis, Postgres, Redis, Request, TestDir, Upstream,
    WAIT_TIMEOUT, eventually,
};
use crate::postgres::{conninfo, psql};
use crate::reload::{ON_CHANGE, ON_SIGHUP};

/// Sends PING to Redis behind a listener, and returns why no PONG comes.
fn ping(portcullis: &Portcullis, listener: &str) -> Result<(), String> {
    let mut client = portcullis.client_of(listener).connect();
    client.send(b"PING\r\n");
    let output = client.rest_until(b"\r\n");
    if output == b"+PONG\r\n" {
        return Ok(());
    }
    assert!(output.starts_with(b"-LOADING the database behind this proxy"), "{}", output.escape_ascii());
    // Two listeners may see the same port of a client, one after the other.
    let ends = |event: &Event| event.ends(client.port()) && event.text("listener") == listener;
    let ending = portcullis.event("the end of the connection", ends);
    assert_eq!(ending.reason(), "upstream_tls_failed", "{}", ending.0);
    Err(ending.text("detail").to_owned())
}

/// The error of a PING must contain these words.
fn assert_refused(portcullis: &Portcullis, listener: &str, words: &str) {
    match ping(portcullis, listener) {
        Ok(()) => panic!("{listener}: the upstream was taken"),
        Err(detail) => assert!(detail.contains(words), "{listener}: {detail}"),
    }
}

/// Listeners by name, each with one of several servers.
struct Table(String);

impl Table {
    fn new() -> Self {
        Self(String::new())
    }

    fn add(&mut self, name: &str, upstream: &Redis, keys: &[&str]) {
        let listener = Listener::redis(upstream).named(name);
        write!(self.0, "{}", keys.iter().fold(listener, |listener, key| listener.upstream(key))).unwrap();
    }
}

#[test]
fn each_tls_mode_accepts_the_servers_that_libpq_accepts() {
    let site = TestDir::new();
    let foreign = Authority::new("Foreign CA");
    site.write("foreign.crt", foreign.pem());
    let alone = Leaf::by_itself(Request::server(&["localhost", "127.0.0.1"]));
    site.write("alone.crt", alone.pem());
    let redis = |leaf: &Leaf| Redis::with_tls(&site, leaf, ANY_CLIENT);
    let right = redis(&site.server());
    let elsewhere = redis(&site.ca.issue(Request::server(&["db.elsewhere"])));
    let expired = redis(&site.ca.issue(Request::server(&["127.0.0.1"]).valid(-9, -1)));
    let alone = redis(&alone);

    let (require, verify_ca, verify_full) = ("tls = \"require\"", "tls = \"verify-ca\"", "tls = \"verify-full\"");
    let (ours, foreign, its_own) = ("ca = \"ca.crt\"", "ca = \"foreign.crt\"", "ca = \"alone.crt\"");
    let named = "server_name = \"db.elsewhere\"";
    let (unknown, late) = ("not issued by any CA in ca", "it has expired");
    let cases: &[(&Redis, &[&str], Option<&str>)] = &[
        // Encrypted, and not verified.
        (&right, &[require], None),
        (&elsewhere, &[require], None),
        (&expired, &[require], None),
        (&alone, &[require], None),
        // With a bundle it is verify-ca, as with libpq.
        (&right, &[require, ours], None),
        (&elsewhere, &[require, ours], None),
        (&right, &[require, foreign], Some(unknown)),
        (&expired, &[require, ours], Some(late)),
        (&right, &[verify_ca, ours], None),
        (&elsewhere, &[verify_ca, ours], None),
        (&right, &[verify_ca, foreign], Some(unknown)),
        (&expired, &[verify_ca, ours], Some(late)),
        (&alone, &[verify_ca, ours], Some("it is self-signed and not trusted")),
        (&alone, &[verify_ca, its_own], None),
        (&right, &[verify_full, ours], None),
        (&elsewhere, &[verify_full, ours], Some("it is not for \"127.0.0.1\"; its names are dns:db.elsewhere")),
        (&elsewhere, &[verify_full, ours, named], None),
        (&right, &[verify_full, ours, named], Some("it is not for \"db.elsewhere\"")),
        (&right, &[verify_full, foreign], Some(unknown)),
        (&expired, &[verify_full, ours], Some(late)),
        (&alone, &[verify_full, its_own], None),
    ];
    let mut table = Table::new();
    for (number, (server, keys, _)) in cases.iter().enumerate() {
        table.add(&format!("l{number}"), server, keys);
    }
    let portcullis = Portcullis::start(site, table.0);
    for (number, (_, keys, refused)) in cases.iter().enumerate() {
        let (pinged, name) = (ping(&portcullis, &format!("l{number}")), format!("{number}: {keys:?}"));
        match (pinged, refused) {
            (Ok(()), None) => {}
            (Err(detail), Some(words)) => assert!(detail.contains(words), "{name}: {detail}"),
            (pinged, _) => panic!("{name}: {pinged:?}"),
        }
    }
    // With TLS off, an upstream that requires TLS gets no bytes that Portcullis made.
    assert!(!portcullis.events().iter().any(|event| event.is("connection.opened") && event.0["upstream"].is_null()));
}

/// A bundle as providers publish it: roots that are no longer used, an intermediate, the current root, with
/// comments, as text from another system, and one of them twice.
#[test]
fn every_certificate_of_an_upstream_bundle_is_a_trust_anchor() {
    let site = TestDir::new();
    let [old, older, today] = ["Old root 1", "Old root 2", "Root of today"].map(Authority::new);
    let public = Authority::new("A public root");
    let between = public.intermediate("Between");
    let mut bundle = String::from("# Deprecated\r\n\r\n");
    for authority in [&old, &older, &between, &today, &old] {
        write!(bundle, "subject=some\r\nBag Attributes: <none>\r\n{}\r\n", authority.pem().replace('\n', "\r\n"))
            .unwrap();
    }
    site.write("redis_ca.pem", bundle);
    let untrusted = Authority::new("Other");
    let servers: Vec<Redis> = [&old, &older, &between, &today, &untrusted, &public]
        .map(|authority| Redis::with_tls(&site, &authority.issue(Request::server(&["127.0.0.1"])), ANY_CLIENT))
        .into();
    let mut table = Table::new();
    for (number, server) in servers.iter().enumerate() {
        table.add(&format!("l{number}"), server, &["tls = \"verify-full\"", "ca = \"redis_ca.pem\""]);
    }
    let portcullis = Portcullis::start(site, table.0);
    for number in 0..4 {
        assert_eq!(ping(&portcullis, &format!("l{number}")), Ok(()), "{number}");
    }
    for number in [4, 5] {
        assert_refused(&portcullis, &format!("l{number}"), "not issued by any CA in ca");
    }
}

#[test]
fn system_roots_are_used_without_a_bundle() {
    let site = TestDir::new();
    let redis = Redis::with_tls(&site, &site.server(), ANY_CLIENT);
    let listener = Listener::redis(&redis).upstream("tls = \"verify-full\"");
    let mut command = executable();
    command.env("SSL_CERT_FILE", site.path("ca.crt")).env_remove("SSL_CERT_DIR");
    let portcullis = Portcullis::start_by(command, site, &listener);
    assert_eq!(ping(&portcullis, "main"), Ok(()));

    let site = TestDir::new();
    let mut command = executable();
    command.env("SSL_CERT_FILE", site.path("ca.crt")).env_remove("SSL_CERT_DIR");
    let portcullis = Portcullis::start_by(command, site, &listener);
    assert_refused(&portcullis, "main", "not issued by any root certificate of the system");

    let site = TestDir::new();
    site.write("portcullis.toml", &listener);
    site.write("none.crt", "");
    let mut check = executable();
    check.env("SSL_CERT_FILE", site.path("none.crt")).env_remove("SSL_CERT_DIR");
    let refused = run(check.args(["check", "-c"]).arg(site.path("portcullis.toml")));
    assert_eq!(refused.code, Some(78), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("listener[0].upstream.tls") && refused.stderr.contains("root"),
        "{}",
        refused.stderr
    );
}

/// Starts with a Redis that the system's roots trust, and replaces these roots by another CA.
fn with_replaced_system_roots(process: &str) -> (Portcullis, Redis) {
    let site = TestDir::new();
    let redis = Redis::with_tls(&site, &site.server(), ANY_CLIENT);
    let roots = site.path("roots.pem");
    std::fs::copy(site.path("ca.crt"), &roots).unwrap();
    let listener = Listener::redis(&redis).upstream("tls = \"verify-full\"");
    let mut command = executable();
    command.env("SSL_CERT_FILE", &roots).env_remove("SSL_CERT_DIR");
    let portcullis = Portcullis::start_by(command, site, format!("{process}{listener}"));
    assert_eq!(ping(&portcullis, "main"), Ok(()));
    portcullis.site.replace("roots.pem", Authority::new("Another CA").pem());
    (portcullis, redis)
}

#[test]
fn reload_after_a_root_of_the_system_is_removed_rejects_its_upstream() {
    let admin = "admin.listen = \"unix:admin.sock\"\n";
    let (portcullis, _redis) = with_replaced_system_roots(&format!("{admin}{ON_SIGHUP}"));
    let reload = run(executable().args(["reload", "--socket"]).arg(portcullis.site.path("admin.sock")));
    let answer = String::from_utf8_lossy(&reload.stdout);
    assert!(answer.starts_with("applied: generation 2 is in force"), "{answer}");
    assert_refused(&portcullis, "main", "not issued by any root certificate of the system");
}

#[test]
fn poll_applies_changed_roots_of_the_system() {
    let (portcullis, _redis) = with_replaced_system_roots("reload = { watch = false, poll = \"1s\" }\n");
    portcullis.event("the reload of the poll", |event| event.is("reload.applied"));
    assert_refused(&portcullis, "main", "not issued by any root certificate of the system");
}

/// Installs the client certificates of these tests.
fn install_clients(site: &TestDir) {
    site.install("client", &site.ca.issue(Request::client("certified")));
    site.install("other", &site.ca.issue(Request::client("other")));
    site.install("expired", &site.ca.issue(Request::client("certified").valid(-9, -1)));
    site.install("foreign", &Authority::new("Foreign CA").issue(Request::client("certified")));
    site.write("passphrase", "open sesame\n");
    let options = ["pkcs8", "-topk8", "-in", "client.key", "-out", "locked.key", "-passout", "file:passphrase"];
    openssl(site, &options);
}

#[test]
fn redis_verifies_the_upstream_client_certificate() {
    let site = TestDir::new();
    install_clients(&site);
    let shown = |name: &str| [format!("cert = \"{name}.crt\""), format!("key = \"{name}.key\"")];
    let locked = ["cert = \"client.crt\"", "key = \"locked.key\"", "key_passphrase_file = \"passphrase\""];
    let mut table = Table::new();
    let mut servers = Vec::new();
    for version in ["TLSv1.2", "TLSv1.3"] {
        let redis = Redis::with_tls(&site, &site.server(), &["--tls-protocols", version]);
        let version = version.replace("TLSv1.", "v");
        let mut add = |name: &str, keys: &[&str]| {
            let keys = [&["tls = \"verify-full\"", "ca = \"ca.crt\""], keys].concat();
            table.add(&format!("{name}-{version}"), &redis, &keys);
        };
        for name in ["client", "expired", "foreign"] {
            add(name, &shown(name).each_ref().map(String::as_str));
        }
        add("none", &[]);
        add("locked", &locked);
        servers.push(redis);
    }
    let portcullis = Portcullis::start(site, table.0);
    for version in ["v2", "v3"] {
        assert_eq!(ping(&portcullis, &format!("client-{version}")), Ok(()));
        assert_eq!(ping(&portcullis, &format!("locked-{version}")), Ok(()));
        let refused = "the upstream refused our certificate CN=certified";
        assert_refused(&portcullis, &format!("expired-{version}"), refused);
        assert_refused(&portcullis, &format!("expired-{version}"), "it has expired");
        assert_refused(&portcullis, &format!("foreign-{version}"), refused);
        assert_refused(&portcullis, &format!("foreign-{version}"), "does not know its CA");
    }
    // TLS 1.2 has no alert of its own for a certificate that is missing.
    assert_refused(&portcullis, "none-v2", "may require a client certificate");
    assert_refused(
        &portcullis,
        "none-v3",
        "the upstream requires a client certificate; set upstream.cert and upstream.key",
    );
}

/// Queries PostgreSQL, and returns the result or the error.
fn select(portcullis: &Portcullis, user: &str) -> Result<(), String> {
    let conninfo = conninfo(portcullis).replace("user=app", &format!("user={user}"));
    let outcome =
        run(psql(&conninfo)
            .args(["-c", "select ssl, version is not null from pg_stat_ssl where pid = pg_backend_pid()"]));
    match outcome.code {
        Some(0) if outcome.text() == "t|t\n" => Ok(()),
        _ => Err(outcome.text() + &outcome.stderr),
    }
}

#[test]
fn postgres_authenticates_the_upstream_client_certificate() {
    let site = TestDir::new();
    install_clients(&site);
    let postgres = Postgres::with_tls(&site, &site.server());
    postgres.direct("create role certified login");
    let base = Listener::postgres(&postgres).upstream_tls("verify-full", "ca.crt");
    let with = |name: &str| {
        base.clone().upstream(&format!("cert = \"{name}.crt\"")).upstream(&format!("key = \"{name}.key\""))
    };
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{}", with("client")));
    assert_eq!(select(&portcullis, "certified"), Ok(()));
    assert_eq!(select(&portcullis, "app"), Ok(()));
    let refused = |listener: &Listener, words: &str| {
        let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{listener}"));
        assert!(applied.is("reload.applied"), "{}", applied.0);
        let stderr = select(&portcullis, "certified").unwrap_err();
        assert!(stderr.contains(words), "{stderr}");
    };
    // The errors of PostgreSQL inside TLS are relayed.
    refused(&base, "connection requires a valid client certificate");
    refused(&with("other"), "authentication failed for user \"certified\"");
    // A TLS alert becomes an error in the protocol of the client.
    for name in ["expired", "foreign"] {
        let seen = portcullis.seen();
        refused(&with(name), "FATAL:  the database behind this proxy");
        let ending = portcullis.event_after(seen, "the end", |event| event.0["reason"] == "upstream_tls_failed");
        let words = "the upstream refused our certificate CN=certified";
        assert!(ending.text("detail").contains(words), "{}", ending.0);
        let mut client = portcullis.client().with_ssl_request().connect();
        client.send(&startup(PROTOCOL_3_0, &[("user", "app"), ("database", "postgres")]));
        let fields = error_response(&client.rest().unwrap());
        assert_eq!((fields[&'S'].as_str(), fields[&'C'].as_str()), ("FATAL", "57P03"));
        assert_eq!(portcullis.ending(client.port()).reason(), "upstream_tls_failed");
    }
}

#[test]
fn upstream_without_tls_is_reported_and_gets_no_plaintext() {
    let site = TestDir::new();
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let listener =
        |listener: Listener| listener.upstream_tls("verify-full", "ca.crt").upstream("connect_timeout = \"2s\"");
    let config =
        format!("{}{}", listener(Listener::postgres(&postgres).named("db")), listener(Listener::redis(&redis)));
    let portcullis = Portcullis::start(site, config);

    assert_refused(&portcullis, "main", "the upstream did not finish the TLS handshake in time");

    let mut client = portcullis.client_of("db").with_ssl_request().connect();
    client.send(&startup(PROTOCOL_3_0, &[("user", "app"), ("database", "postgres")]));
    let fields = error_response(&client.rest().unwrap());
    assert_eq!((fields[&'S'].as_str(), fields[&'C'].as_str()), ("FATAL", "57P03"));
    let denied = portcullis.ending(client.port());
    assert_eq!(denied.reason(), "upstream_tls_failed");
    assert!(denied.text("detail").contains("replied N to SSLRequest"), "{}", denied.0);
}

/// Bytes behind the S were not sent in TLS, and may come from an attacker (CVE-2021-23222).
#[test]
fn invalid_answer_to_sslrequest_is_rejected() {
    let cases: [(&[u8], &str); 4] = [
        (b"SE\0\0\0\x10SFATAL\0Cno\0\0", "sent plaintext after its reply"),
        (b"E\0\0\0\x10SFATAL\0Cno\0\0", "is not a PostgreSQL server: unexpected reply to SSLRequest"),
        (b"+PONG\r\n", "is not a PostgreSQL server: unexpected reply to SSLRequest"),
        (b"", "the upstream closed the connection during the TLS handshake"),
    ];
    for (answer, words) in cases {
        let (sender, receiver) = mpsc::channel();
        let upstream = Upstream::new(move |mut stream| {
            let asked = read_exactly(&mut stream, SSL_REQUEST.len());
            stream.write_all(answer).unwrap();
            if answer.is_empty() {
                return;
            }
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            sender.send([asked, rest].concat()).unwrap();
        });
        let portcullis = Portcullis::before(Listener::postgres(&upstream).upstream("tls = \"require\""));
        let mut client = portcullis.client().with_ssl_request().connect();
        client.send(&startup(PROTOCOL_3_0, &[("user", "app")]));
        let fields = error_response(&client.rest().unwrap());
        assert_eq!(fields[&'C'], "57P03");
        let denied = portcullis.ending(client.port());
        assert_eq!(denied.reason(), "upstream_tls_failed");
        assert!(denied.text("detail").contains(words), "{}", denied.0);
        if !answer.is_empty() {
            assert_eq!(receiver.recv_timeout(WAIT_TIMEOUT).unwrap(), SSL_REQUEST, "it received more than SSLRequest");
        }
    }
}

/// `openssl s_server` among the files of a site, and its address.
fn s_server(site: &TestDir, options: &[&str]) -> (Running, String) {
    let (server, port) = serve("ACCEPT", |port| {
        let mut command = command("openssl");
        command.current_dir(site.directory()).args(["s_server", "-accept", &port.to_string()]);
        command.args(["-cert", "server.crt", "-key", "server.key"]).args(options);
        command
    });
    (server, format!("127.0.0.1:{port}"))
}

/// PostgreSQL has direct TLS from version 17 on; what it answers in TLS is what OpenSSL answers for it.
#[test]
fn direct_negotiation_requires_alpn_postgresql() {
    let site = TestDir::new();
    // It returns every line reversed.
    let (_modern, modern) = s_server(&site, &["-rev", "-alpn", "postgresql"]);
    let (_mute, mute) = s_server(&site, &["-rev"]);
    let (_other, other) = s_server(&site, &["-rev", "-alpn", "http/1.1"]);
    let listener = |name: &str, address: &str| {
        let listener = Listener::postgres(address).named(name).upstream_tls("verify-full", "ca.crt");
        listener.upstream("negotiation = \"direct\"").to_string()
    };
    let config = [("modern", &modern), ("mute", &mute), ("other", &other)].map(|(name, at)| listener(name, at));
    let portcullis = Portcullis::start(site, config.concat());
    let hello = startup(PROTOCOL_3_0, &[("user", "app\n")]);

    let mut client = portcullis.client_of("modern").with_ssl_request().connect();
    client.send(&hello);
    let line: Vec<u8> = hello.iter().take_while(|byte| **byte != b'\n').copied().collect();
    let back: Vec<u8> = line.into_iter().rev().chain(*b"\n").collect();
    assert_eq!(client.receive(back.len()).escape_ascii().to_string(), back.escape_ascii().to_string());

    for (name, words) in [
        ("mute", "did not confirm \"postgresql\" by ALPN"),
        ("other", "does not support the protocol requested by ALPN"),
    ] {
        let mut client = portcullis.client_of(name).with_ssl_request().connect();
        client.send(&hello);
        assert_eq!(error_response(&client.rest().unwrap())[&'C'], "57P03");
        let denied = portcullis.ending(client.port());
        assert_eq!(denied.reason(), "upstream_tls_failed");
        assert!(denied.text("detail").contains(words), "{name}: {}", denied.0);
    }
}

/// The page of `openssl s_server -www` about its connection.
fn page(portcullis: &Portcullis, listener: &str) -> String {
    let mut client = portcullis.client_of(listener).connect();
    client.send(b"GET / HTTP/1.0\r\n\r\n");
    String::from_utf8(client.rest().unwrap()).unwrap()
}

#[test]
fn upstream_sessions_are_resumed_in_tls_1_2_and_1_3() {
    let site = TestDir::new();
    // On SIGHUP only: a reload for a changed file could be mistaken for the next one.
    let mut config = ON_SIGHUP.to_owned();
    let mut servers = Vec::new();
    for (name, option) in [("v2", "-tls1_2"), ("v3", "-tls1_3")] {
        let (server, address) = s_server(&site, &["-www", option]);
        servers.push(server);
        write!(config, "{}", Listener::tcp(address).named(name).upstream_tls("verify-full", "ca.crt")).unwrap();
    }
    let portcullis = Portcullis::start(site, config);
    for (name, version) in [("v2", "TLSv1.2"), ("v3", "TLSv1.3")] {
        let first = page(&portcullis, name);
        assert!(first.contains(&format!("New, {version}")), "{first}");
        for _ in 0..3 {
            let again = page(&portcullis, name);
            assert!(again.contains(&format!("Reused, {version}")), "{again}");
        }
    }
    // A change of the trust drops the TLS sessions; other changes keep them.
    let config = std::fs::read_to_string(portcullis.site.path("portcullis.toml")).unwrap();
    assert!(portcullis.reconfigure(format!("{config}idle_timeout = \"1h\"\n")).is("reload.applied"));
    assert!(page(&portcullis, "v3").contains("Reused, TLSv1.3"));
    let seen = portcullis.site.ca.pem();
    portcullis.applies(|| {
        portcullis.site.replace("ca.crt", format!("{seen}{}", Authority::new("Another").pem()));
        portcullis.hang_up();
    });
    assert!(page(&portcullis, "v3").contains("New, TLSv1.3"));
}

/// A server that echoes, and records the kind of each handshake.
fn noting(config: ServerConfig) -> (Upstream, Arc<Mutex<Vec<HandshakeKind>>>) {
    let kinds = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&kinds);
    let upstream = Upstream::tls(config, move |mut tls: Secured| {
        noted.lock().unwrap().push(tls.conn.handshake_kind().unwrap());
        let mut bytes = [0; 4];
        while tls.read_exact(&mut bytes).is_ok() {
            tls.write_all(&bytes).unwrap();
        }
    });
    (upstream, kinds)
}

#[test]
fn resumed_upstream_session_ends_with_its_certificate() {
    let site = TestDir::new();
    let end = OffsetDateTime::now_utc() + time::Duration::HOUR;
    let leaf = site.ca.issue(Request::server(&["127.0.0.1"]).expiring(end));
    let (upstream, kinds) = noting(showing(&leaf));
    let listener = Listener::tcp(&upstream).upstream_tls("verify-full", "ca.crt");
    let portcullis = ClockedPortcullis::start(site, listener);
    // The echo follows the tickets, so that the next session can use them.
    let echoes = || {
        let (port, connected) = portcullis.client().attempt();
        connected.map(|mut session| session.ask(b"echo", b"echo")).map_err(|_| port)
    };
    assert_eq!([echoes(), echoes(), echoes()], [Ok(()); 3]);
    portcullis.set_shortly_before(end);
    let refused = eventually("the certificate expires", || echoes().err());
    let refused = portcullis.ending(refused);
    assert_eq!(refused.reason(), "upstream_tls_failed");
    assert!(refused.text("detail").contains("it has expired"), "{}", refused.0);
    let kinds = kinds.lock().unwrap().clone();
    assert_eq!(kinds[0], HandshakeKind::Full);
    assert!(kinds.len() > 2 && kinds[1..].iter().all(|kind| *kind == HandshakeKind::Resumed), "{kinds:?}");
}

#[test]
fn truncated_upstream_stream_is_delivered_and_reported() {
    let site = TestDir::new();
    let own = site.server();
    let output = vec![b'x'; 3 << 20];
    let sent = output.clone();
    let upstream = Upstream::tls(showing(&own), move |mut tls| {
        let mut mode = [0];
        tls.read_exact(&mut mode).unwrap();
        tls.write_all(&sent).unwrap();
        if mode == *b"p" {
            tls.conn.send_close_notify();
            tls.conn.write_tls(&mut tls.sock).unwrap();
        }
        tls.sock.shutdown(Shutdown::Write).unwrap();
        let _ = std::io::copy(&mut tls.sock, &mut std::io::sink());
    });
    let portcullis = Portcullis::start(site, Listener::tcp(&upstream).upstream_tls("verify-full", "ca.crt"));
    for version in [&TLS12, &TLS13] {
        let mut polite = portcullis.client().speaking(version).connect();
        polite.send(b"p");
        assert_eq!(polite.rest().unwrap().len(), output.len());

        let mut client = portcullis.client().speaking(version).connect();
        client.send(b"c");
        let mut received = Vec::new();
        let error = client.stream.read_to_end(&mut received).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "its TLS ended as if the stream were complete");
        assert_eq!(received.len(), output.len());
        let closed = portcullis.ending(client.port());
        assert_eq!(closed.reason(), "upstream_closed");
        assert!(closed.text("detail").contains("without close_notify"), "{}", closed.0);
        assert_eq!(closed.number("bytes_out"), output.len() as u64);
    }
}

#[test]
fn reset_or_garbled_upstream_stream_is_reported_as_an_error() {
    let site = TestDir::new();
    let own = site.server();
    let upstream = Upstream::tls(showing(&own), |mut tls| {
        let mut mode = [0];
        tls.read_exact(&mut mode).unwrap();
        tls.write_all(b"some of it").unwrap();
        let mut more = [0];
        // The client has what came so far.
        tls.read_exact(&mut more).unwrap();
        match &mode {
            b"r" => crate::harness::client::reset(tls.sock),
            _ => {
                tls.sock.write_all(b"\x17\x03\x03\x00\x1fnot a record of this connection").unwrap();
                let _ = std::io::copy(&mut tls.sock, &mut std::io::sink());
            }
        }
    });
    let portcullis = Portcullis::start(site, Listener::tcp(&upstream).upstream_tls("verify-full", "ca.crt"));
    for (mode, reason) in [(b"r", "upstream_closed"), (b"g", "upstream_tls_failed")] {
        let mut client = portcullis.client().connect();
        client.send(mode);
        assert_eq!(client.receive(10), b"some of it");
        client.send(b"!");
        let error = client.rest().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "its TLS ended as if the stream were complete");
        assert_eq!(portcullis.ending(client.port()).reason(), reason);
    }
}

#[test]
fn half_close_is_relayed_with_tls_on_both_sides() {
    let site = TestDir::new();
    let own = site.server();
    let upstream = Upstream::tls(showing(&own), |mut tls| {
        let mut question = Vec::new();
        // Fails without close_notify.
        tls.read_to_end(&mut question).unwrap();
        let answer = vec![b'a'; question.len() + 1];
        tls.write_all(&answer).unwrap();
        tls.conn.send_close_notify();
        while tls.conn.wants_write() {
            tls.conn.write_tls(&mut tls.sock).unwrap();
        }
    });
    let (sender, receiver) = mpsc::channel();
    let brief = Upstream::tls(showing(&own), move |mut tls| {
        tls.write_all(b"that is all").unwrap();
        tls.conn.send_close_notify();
        while tls.conn.wants_write() {
            tls.conn.write_tls(&mut tls.sock).unwrap();
        }
        let mut rest = Vec::new();
        tls.read_to_end(&mut rest).unwrap();
        sender.send(rest.len()).unwrap();
    });
    let [asks, brief] = [("main", &upstream), ("brief", &brief)]
        .map(|(name, upstream)| Listener::tcp(upstream).named(name).upstream_tls("verify-full", "ca.crt").to_string());
    let portcullis = Portcullis::start(site, asks + &brief);
    for version in [&TLS12, &TLS13] {
        for size in [1, 2 << 20] {
            let mut client = portcullis.client().speaking(version).connect();
            client.send(&vec![b'q'; size]);
            client.finish_sending();
            assert_eq!(client.rest().unwrap().len(), size + 1);
        }
        let mut client = portcullis.client_of("brief").speaking(version).connect();
        assert_eq!(client.rest().unwrap(), b"that is all");
        // In TLS 1.2, rustls sends no more data after either side has ended.
        if version.version == TLS13.version {
            client.send(&vec![b'q'; 2 << 20]);
            client.finish_sending();
            assert_eq!(receiver.recv_timeout(WAIT_TIMEOUT).unwrap(), 2 << 20);
        } else {
            drop(client);
            assert_eq!(receiver.recv_timeout(WAIT_TIMEOUT).unwrap(), 0);
        }
    }
}

/// Redis as "cache" and PostgreSQL, with TLS on both sides.
fn secured_twice() -> (Redis, Postgres, Portcullis) {
    let site = TestDir::new();
    let redis = Redis::with_tls(&site, &site.server(), ANY_CLIENT);
    let postgres = Postgres::with_tls(&site, &site.server());
    let secured = |listener: Listener| listener.upstream_tls("verify-full", "ca.crt").to_string();
    let config = secured(Listener::redis(&redis).named("cache")) + &secured(Listener::postgres(&postgres));
    (redis, postgres, Portcullis::start(site, config))
}

#[test]
fn large_values_and_copies_are_relayed_with_tls_on_both_sides() {
    let (_redis, postgres, portcullis) = secured_twice();

    let value: Vec<u8> =
        (0..16 << 20_u32).flat_map(|number: u32| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut client = portcullis.client_of("cache").connect();
    client.send(format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n", value.len()).as_bytes());
    client.send(&value);
    client.ask(b"\r\n", b"+OK\r\n");
    client.ask(b"GET big\r\n", format!("${}\r\n", value.len()).as_bytes());
    assert!(client.receive(value.len()) == value, "what came back is not what was set");

    crate::postgres::copy_both_ways(&portcullis, &postgres);
}

#[test]
fn pgbench_and_redis_benchmark_work_with_tls_on_both_sides() {
    let (_redis, _postgres, portcullis) = secured_twice();
    let conninfo = conninfo(&portcullis);
    run(client("pgbench").args(["-i", "-q", &conninfo])).success();
    let output = run(client("pgbench").args(["-n", "-S", "-c", "4", "-t", "500", &conninfo])).success();
    assert!(output.contains("number of transactions actually processed: 2000/2000"), "{output}");
    let port = portcullis.address("cache").port().to_string();
    let mut benchmark = command("redis-benchmark");
    benchmark.args(["-p", &port, "--tls", "--cacert"]).arg(portcullis.site.path("ca.crt"));
    let output = run(benchmark.args(["-c", "50", "-n", "20000", "-P", "16", "-t", "set,get", "--csv"])).success();
    assert!(output.contains("\"GET\""), "{output}");
}

/// Clients that connect and close all the time, until they are stopped. None may get an error.
struct Crowd {
    enough: Arc<AtomicBool>,
    members: Vec<JoinHandle<usize>>,
}

impl Crowd {
    /// Each sends PING through `main` on a new connection each time, and one more does so on one connection all the time.
    fn before(portcullis: &Portcullis) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let member = |stays: bool| {
            let (client, enough) = (portcullis.client(), Arc::clone(&enough));
            thread::spawn(move || {
                let (mut served, mut connection) = (0, client.connect());
                while !enough.load(Ordering::SeqCst) {
                    connection.ask(b"PING\r\n", b"+PONG\r\n");
                    served += 1;
                    if !stays {
                        connection = client.connect();
                    }
                }
                served
            })
        };
        let members = [false, false, true].map(member).into();
        Self { enough, members }
    }

    /// Stops them. None may have been denied.
    fn leave(self) {
        self.enough.store(true, Ordering::SeqCst);
        for member in self.members {
            assert!(member.join().expect("no client was denied") > 10);
        }
    }
}

/// The certificate of the upstream, and those of its CA, change by way of a bundle that has both; ours likewise.
#[test]
fn rotation_of_redis_certificates_causes_no_client_error() {
    let site = TestDir::new();
    let (next, clients) = (Authority::new("Next CA"), Authority::new("Next CA of clients"));
    site.install("client", &site.ca.issue(Request::client("certified")));
    let old = site.ca.pem();
    site.write("redis_ca.pem", &old);
    let redis = Redis::with_tls(&site, &site.server(), &[]);
    let listener = Listener::redis(&redis).upstream_tls("verify-full", "redis_ca.pem");
    let listener = listener.upstream("cert = \"client.crt\"").upstream("key = \"client.key\"");
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{listener}"));
    let reload = |change: &dyn Fn()| {
        let applied = portcullis.applies(|| {
            change();
            portcullis.hang_up();
        });
        // After the swap several new connections use the new policy.
        for _ in 0..5 {
            assert_eq!(ping(&portcullis, "main"), Ok(()));
        }
        applied
    };
    let crowd = Crowd::before(&portcullis);
    let both = old.clone() + &next.pem();
    reload(&|| portcullis.site.replace("redis_ca.pem", &both));
    let server = next.issue(Request::server(&["127.0.0.1"]));
    redis.use_certificate(&server, &(old + &clients.pem()));
    reload(&|| portcullis.site.replace("redis_ca.pem", next.pem()));
    let client = clients.issue(Request::client("certified"));
    let applied = reload(&|| portcullis.site.install("client", &client));
    assert!(applied.text("certificates_in").contains(&client.sha256()), "{}", applied.0);
    redis.use_certificate(&server, &clients.pem());
    for _ in 0..5 {
        assert_eq!(ping(&portcullis, "main"), Ok(()));
    }
    crowd.leave();
    assert!(!portcullis.events().iter().any(|event| event.is("connection.denied")));
}

#[test]
fn rotation_of_the_postgres_client_certificate_causes_no_pgbench_error() {
    let site = TestDir::new();
    site.install("client", &site.ca.issue(Request::client("certified")));
    let own = site.server();
    let postgres = Postgres::with_tls(&site, &own);
    postgres.direct("create role certified login superuser");
    let clients = Authority::new("Next CA of clients");
    let both = site.ca.pem() + &clients.pem();
    let listener = Listener::postgres(&postgres).upstream_tls("verify-full", "ca.crt");
    let listener = listener.upstream("cert = \"client.crt\"").upstream("key = \"client.key\"");
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    let conninfo = conninfo(&portcullis).replace("user=app", "user=certified");
    run(client("pgbench").args(["-i", "-q", &conninfo])).success();
    let load = |fresh: &[&str]| {
        let mut pgbench = client("pgbench");
        Load::start(pgbench.args(["-n", "-S", "-c", "2", &conninfo]).args(UNTIL_STOPPED).args(fresh))
    };
    let loads = [load(&["-C"]), load(&[])];
    postgres.use_certificate(&own, &both);
    for turn in 0..4 {
        let next = clients.issue(Request::client("certified"));
        let applied = portcullis.applies(|| {
            portcullis.site.replace("client.crt", next.pem());
            portcullis.site.replace("client.key", next.key_pem());
        });
        assert!(applied.text("certificates_in").contains(&next.sha256()), "{turn}: {}", applied.0);
    }
    postgres.use_certificate(&own, &clients.pem());
    // The server verifies by the new CA only.
    run(psql(&conninfo).args(["-c", "select 1"])).success();
    // Before the loads are stopped.
    let events = portcullis.events();
    loads.into_iter().for_each(Load::stop_without_error);
    assert!(!events.iter().any(|event| event.is("connection.denied") || event.is("reload.rejected")));
}

#[test]
fn broken_upstream_files_change_nothing_until_they_are_fixed() {
    let site = TestDir::new();
    site.install("client", &site.ca.issue(Request::client("certified")));
    let redis = Redis::with_tls(&site, &site.server(), &[]);
    let listener = Listener::redis(&redis).upstream_tls("verify-full", "ca.crt");
    let listener = listener.upstream("cert = \"client.crt\"").upstream("key = \"client.key\"");
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    assert_eq!(ping(&portcullis, "main"), Ok(()));
    let site = &portcullis.site;
    let bundle = site.ca.pem();
    let half = |text: &str| text[..text.len() / 2].to_owned();
    let survives = |file: &str, broken: &str, mend: &dyn Fn()| {
        let rejected = portcullis.reload_after(|| site.replace(file, broken));
        assert!(rejected.is("reload.rejected"), "{}", rejected.0);
        assert!(rejected.text("error").contains(file), "{}", rejected.0);
        assert_eq!(ping(&portcullis, "main"), Ok(()));
        // A matching pair fixes it, even if it is not the earlier one.
        portcullis.applies(mend);
        assert_eq!(ping(&portcullis, "main"), Ok(()));
    };
    for (number, broken) in [half(&bundle), String::new(), "no certificate".to_owned()].iter().enumerate() {
        let more = bundle.clone() + &Authority::new(&format!("Another {number}")).pem();
        survives("ca.crt", broken, &|| site.replace("ca.crt", &more));
    }
    for how in [str::to_owned as fn(&str) -> String, |key| key[..key.len() / 2].to_owned()] {
        let next = site.ca.issue(Request::client("certified"));
        // A key that is written before its certificate does not match the old certificate.
        survives("client.key", &how(&next.key_pem()), &|| site.install("client", &next));
    }
}

#[test]
fn upstream_key_update_is_accepted() {
    let site = TestDir::new();
    let own = site.server();
    let upstream = Upstream::tls(showing(&own), |mut tls| {
        let mut bytes = [0; 4];
        while tls.read_exact(&mut bytes).is_ok() {
            tls.write_all(&bytes).unwrap();
            tls.conn.refresh_traffic_keys().unwrap();
        }
    });
    let portcullis = Portcullis::start(site, Listener::tcp(&upstream).upstream_tls("verify-full", "ca.crt"));
    let mut client = portcullis.client().connect();
    for turn in 0..100 {
        let word = format!("{turn:04}");
        client.ask(word.as_bytes(), word.as_bytes());
    }
}

#[test]
fn slow_reader_of_a_tls_upstream_uses_little_memory() {
    const SIZE: usize = 1 << 30;
    /// In KiB. One reading of 64 KiB, sealed for the client; what came of the next record; the rest is for the allocator.
    const MAX_GROWTH: u64 = 384;
    let site = TestDir::new();
    let own = site.server();
    let (sender, receiver) = mpsc::channel();
    let upstream = Upstream::tls(showing(&own), move |mut tls| {
        read_exactly(&mut tls, 1);
        tls.sock.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let piece = vec![7; 1 << 16];
        for written in (0..SIZE).step_by(piece.len()) {
            tls.conn.writer().write_all(&piece).unwrap();
            while tls.conn.wants_write() {
                match tls.conn.write_tls(&mut tls.sock) {
                    Ok(_) => {}
                    // The reader has stopped: this is the moment to measure the memory.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => sender.send(written).unwrap(),
                    // The client has seen enough.
                    Err(_) => return,
                }
            }
        }
    });
    let listener = Listener::tcp(&upstream).upstream_tls("verify-full", "ca.crt");
    let portcullis = Portcullis::start(site, format!("{ADMIN}{listener}"));
    // An earlier client has read such an answer, so that code and buffers are already loaded.
    let mut earlier = portcullis.client().connect();
    earlier.send(b"?");
    earlier.receive(8 << 20);
    earlier.reset();
    portcullis.wait_until_idle();
    let before = portcullis.anonymous_memory();
    let mut client = portcullis.client().connect();
    client.send(b"?");
    let stalled_at = receiver.recv_timeout(WAIT_TIMEOUT).unwrap();
    assert!(stalled_at < SIZE / 8, "{stalled_at} bytes were taken off the upstream's hands");
    let grown = portcullis.anonymous_memory().saturating_sub(before);
    assert!(grown <= MAX_GROWTH, "{grown} KiB more while {stalled_at} bytes wait");
    assert!(client.receive(64 << 20).iter().all(|byte| *byte == 7));
    let grown = portcullis.anonymous_memory().saturating_sub(before);
    assert!(grown <= MAX_GROWTH, "{grown} KiB more");
}
