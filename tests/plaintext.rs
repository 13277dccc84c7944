//! Listeners without TLS, such as the sidecar of an application: loopback and Unix sockets.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::client::port;
use crate::harness::portcullis::executable;
use crate::harness::postgres::client;
use crate::harness::program::{Running, command, run};
use crate::harness::wire::{
    GSSENC_REQUEST, PROTOCOL_3_0, SSL_REQUEST, error_response, read_exactly, read_until_closed, startup,
};
use crate::harness::{Listener, Portcullis, Postgres, Redis, Request, TestDir, Upstream, WAIT_TIMEOUT, eventually};
use crate::postgres::psql;
use crate::reload::ON_SIGHUP;

/// A listener at the file `name` of a site, beside a port of 127.0.0.1.
fn at(listener: Listener, site: &TestDir, name: &str) -> Listener {
    listener.without_tls().on(&["127.0.0.1:0", &format!("unix:{}", site.path(name).display())])
}

fn call(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    stream
}

fn ask(stream: &mut (impl Read + Write), question: &[u8], answer: &[u8]) {
    stream.write_all(question).unwrap();
    let output = read_exactly(stream, answer.len());
    assert_eq!(output.escape_ascii().to_string(), answer.escape_ascii().to_string());
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn redis_cli_works_without_tls_over_tcp_and_unix_socket() {
    let redis = Redis::start();
    let site = TestDir::new();
    let socket = site.path("cache.sock");
    let listener = Listener::redis(&redis).without_tls().trusting(&["127.0.0.1", "::1"]);
    let listener = listener.on(&["127.0.0.1:0", "[::1]:0", &format!("unix:{}", socket.display())]);
    let portcullis = Portcullis::start(site, listener);
    let addresses = portcullis.addresses("main");
    assert_eq!(addresses.len(), 2);
    for (ip, address) in ["127.0.0.1", "::1"].into_iter().zip(addresses) {
        let mut cli = command("redis-cli");
        cli.args(["-h", ip, "-p", &address.port().to_string()]);
        assert_eq!(run(cli.arg("PING")).success(), "PONG\n");
        let opened = portcullis.event("an opening", |event| event.is("connection.opened") && event.0["source"] == ip);
        assert_eq!(opened.text("rule"), format!("ip_addr:{ip}"));
        assert!(!opened.has("tls_version") && !opened.has("cipher"), "{}", opened.0);
    }
    assert_eq!(run(command("redis-cli").arg("-s").arg(&socket).arg("PING")).success(), "PONG\n");
    let closed = portcullis.event("the end", |event| event.is("connection.closed") && event.0["source"] == "unix");
    assert!(!closed.has("rule") && !closed.has("source_port") && !closed.has("would_deny"), "{}", closed.0);
    assert_eq!(closed.reason(), "client_closed");
    let mut benchmark = command("redis-benchmark");
    benchmark.arg("-s").arg(&socket).args(["-c", "50", "-n", "10000", "-t", "set,get", "--csv"]);
    assert!(run(&mut benchmark).success().contains("\"GET\""));
}

#[test]
fn tcp_checks_the_source_and_unix_socket_relies_on_its_mode() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let listener = at(Listener::tcp(&upstream), &site, "a.sock").trusting(&["127.0.0.2"]);
    let portcullis = Portcullis::start(site, listener);
    let mut untrusted = portcullis.client().dial();
    assert_eq!(read_until_closed(&mut untrusted), b"");
    assert_eq!(portcullis.refusal(port(&untrusted)), "untrusted_source");
    ask(&mut portcullis.client().from("127.0.0.2").dial(), b"hello", b"hello");
    ask(&mut call(&portcullis.site.path("a.sock")), b"hello", b"hello");
}

#[test]
fn half_close_is_relayed_without_tls() {
    let upstream = Upstream::new(|mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        stream.write_all(&vec![b'a'; question.len() + 1]).unwrap();
    });
    let site = TestDir::new();
    let listener = at(Listener::tcp(&upstream), &site, "a.sock");
    let portcullis = Portcullis::start(site, listener);
    for size in [1, 3 << 20] {
        let mut tcp = portcullis.client().dial();
        tcp.write_all(&vec![b'q'; size]).unwrap();
        tcp.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_until_closed(&mut tcp).len(), size + 1);
        let mut unix = call(&portcullis.site.path("a.sock"));
        unix.write_all(&vec![b'q'; size]).unwrap();
        unix.shutdown(std::net::Shutdown::Write).unwrap();
        let mut back = Vec::new();
        unix.read_to_end(&mut back).unwrap();
        assert_eq!(back.len(), size + 1);
    }
}

/// A connection string without TLS.
fn plain(portcullis: &Portcullis, sslmode: &str) -> String {
    let port = portcullis.address("main").port();
    format!("host=127.0.0.1 port={port} user=app dbname=postgres sslmode={sslmode}")
}

#[test]
fn psql_works_without_tls_over_tcp_and_unix_socket() {
    let postgres = Postgres::start();
    let site = TestDir::new();
    let listener = at(Listener::postgres(&postgres), &site, ".s.PGSQL.5432");
    let portcullis = Portcullis::start(site, listener);
    let select = ["-c", "select 6 * 7"];
    for sslmode in ["disable", "allow", "prefer"] {
        assert_eq!(run(psql(&plain(&portcullis, sslmode)).args(select)).success(), "42\n");
    }
    let refused = run(psql(&plain(&portcullis, "require")).args(select));
    assert!(refused.stderr.contains("server does not support SSL, but SSL was required"), "{}", refused.stderr);
    let file = format!("host={} user=app dbname=postgres", portcullis.site.directory().display());
    assert_eq!(run(psql(&file).args(select)).success(), "42\n");
    let opened = portcullis.event("an opening", |event| event.is("connection.opened") && event.0["source"] == "unix");
    assert!(!opened.has("tls_version"), "{}", opened.0);
    run(client("pgbench").args(["-i", "-q", &file])).success();
    let output = run(client("pgbench").args(["-n", "-S", "-C", "-c", "4", "-t", "25", &file])).success();
    assert!(output.contains("number of transactions actually processed: 100/100"), "{output}");
}

#[test]
fn each_encryption_request_is_declined_once() {
    let upstream = Upstream::brief();
    let site = TestDir::new();
    let listener = at(Listener::postgres(&upstream), &site, "db.sock");
    let portcullis = Portcullis::start(site, listener);
    let hello = startup(PROTOCOL_3_0, &[("user", "app")]);

    let mut client = portcullis.client().dial();
    ask(&mut client, &GSSENC_REQUEST, b"N");
    ask(&mut client, &SSL_REQUEST, b"N");
    client.write_all(&hello).unwrap();
    assert_eq!(upstream.receives(hello.len()), hello);

    for request in [SSL_REQUEST, GSSENC_REQUEST] {
        let mut client = portcullis.client().dial();
        ask(&mut client, &request, b"N");
        client.write_all(&request).unwrap();
        let words = read_until_closed(&mut client);
        assert_eq!(error_response(&words)[&'C'], "08P01");
        assert_eq!(portcullis.refusal(port(&client)), "protocol_violation");
    }
    // Injection is impossible: the bytes before and after the request are both plaintext.
    let mut client = portcullis.client().dial();
    client.write_all(&[&SSL_REQUEST[..], &hello].concat()).unwrap();
    assert_eq!(read_exactly(&mut client, 1), b"N");
    assert_eq!(upstream.receives(2 * hello.len()), [&hello[..], &hello].concat());
    // A TLS record read as a packet has an impossible length.
    let mut client = portcullis.client().dial();
    client.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").unwrap();
    read_until_closed(&mut client);
    assert_eq!(portcullis.refusal(port(&client)), "protocol_violation");
}

#[test]
fn ctrl_c_in_psql_cancels_its_query_over_tcp_and_unix_socket() {
    let postgres = Postgres::start();
    let site = TestDir::new();
    // This key forbids plaintext cancels on TLS listeners; on this listener all bytes are plaintext.
    let listener = at(Listener::postgres(&postgres), &site, ".s.PGSQL.5432").postgres_key("plaintext_cancel = false");
    let portcullis = Portcullis::start(site, listener);
    let file = format!("host={} user=app dbname=postgres", portcullis.site.directory().display());
    for conninfo in [plain(&portcullis, "prefer"), file] {
        let seen = portcullis.seen();
        let mut psql = psql(&conninfo);
        psql.args(["-c", "select pg_sleep(1000)"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut psql = Running::start(&mut psql);
        let sleeps = "select count(*) from pg_stat_activity where query = 'select pg_sleep(1000)' and state = 'active'";
        eventually("the query runs", || (postgres.direct(sleeps) == "1").then_some(()));
        psql.signal("INT");
        assert_eq!(psql.exit_code(), Some(1));
        let mut stderr = String::new();
        psql.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(stderr.contains("canceling statement due to user request"), "{stderr}");
        portcullis.event_after(seen, "cancel.forwarded", |event| event.is("cancel.forwarded"));
    }
}

#[test]
fn unreachable_upstream_is_reported_in_the_protocol_of_the_client() {
    let site = TestDir::new();
    let listener = at(Listener::redis("unix:/nowhere/redis.sock"), &site, "cache.sock");
    let other = Listener::postgres("unix:/nowhere/.s.PGSQL.5432").named("db").without_tls();
    let portcullis = Portcullis::start(site, format!("{listener}{other}"));
    portcullis.address("main");
    let mut client = call(&portcullis.site.path("cache.sock"));
    client.write_all(b"PING\r\n").unwrap();
    let mut words = String::new();
    client.read_to_string(&mut words).unwrap();
    assert!(words.starts_with("-LOADING the database behind this proxy"), "{words}");
    let mut client = portcullis.client_of("db").dial();
    client.write_all(&startup(PROTOCOL_3_0, &[("user", "app")])).unwrap();
    assert_eq!(error_response(&read_until_closed(&mut client))[&'C'], "57P03");
}

/// Listens at `unix:NAME` of the site, with more keys.
fn file(upstream: &Upstream, site: &TestDir, keys: &str) -> String {
    let address = format!("unix:{}", site.path("a.sock").display());
    let list = format!("listen = {:?}\n", [&address]);
    let table = format!("listen = {{ address = {address:?}{keys} }}\n");
    format!("{ON_SIGHUP}{}", Listener::tcp(upstream).without_tls().on(&[&address]).to_string().replace(&list, &table))
}

#[test]
fn unix_socket_mode_is_private_by_default_and_follows_a_reload() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let path = site.path("a.sock");
    let config = file(&upstream, &site, "");
    let mut portcullis = Portcullis::start(site, config);
    portcullis.event("ready", |event| event.is("ready"));
    let found = fs::metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.mode() & 0o777, 0o600);
    let own = (found.uid(), found.gid());
    let mut inside = call(&path);
    ask(&mut inside, b"hello", b"hello");
    let set = |keys: &str| {
        let applied = portcullis.reconfigure(file(&upstream, &portcullis.site, keys));
        assert!(applied.is("reload.applied"), "{}", applied.0);
        // The mode of the file is set right after this event.
        fs::metadata(&path).unwrap()
    };
    for (keys, wanted) in [(", mode = \"0660\"", 0o660), (", mode = \"666\"", 0o666), ("", 0o600)] {
        set(keys);
        eventually("the mode follows", || (mode(&path) == wanted).then_some(()));
    }
    // Only root may give the file to another group.
    if own.0 == 0 {
        set(", owner = \"postgres\", group = \"65534\", mode = \"0660\"");
        let postgres = run(command("id").args(["-u", "postgres"])).success().trim().parse().unwrap();
        eventually("the owner follows", || {
            let file = fs::metadata(&path).unwrap();
            ((file.uid(), file.gid()) == (postgres, 65534)).then_some(())
        });
        let as_user = |user: &str, expected: &str| {
            let mut cli = command("setpriv");
            cli.args([&format!("--reuid={user}"), "--regid=65533", "--clear-groups", "--", "redis-cli", "-s"]);
            let output = run(cli.arg(&path).arg("PING").current_dir("/"));
            assert!(format!("{}{}", output.text(), output.stderr).contains(expected), "{user}: {output:?}");
        };
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        as_user("65532", "Permission denied");
    }
    ask(&mut inside, b"still", b"still");
    drop(inside);
    portcullis.stop();
    assert!(!path.exists(), "the file was left behind");
}

#[test]
fn unix_socket_is_removed_and_created_with_its_listener() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let path = site.path("a.sock");
    let config = file(&upstream, &site, "");
    let other = format!("{ON_SIGHUP}{}", Listener::tcp(&upstream).named("other"));
    let portcullis = Portcullis::start(site, &config);
    portcullis.event("ready", |event| event.is("ready"));
    let mut inside = call(&path);
    ask(&mut inside, b"hello", b"hello");
    assert!(portcullis.reconfigure(&other).is("reload.applied"));
    let closed = portcullis.event("the end", |event| event.is("connection.closed"));
    assert_eq!(closed.reason(), "listener_removed");
    eventually("the file goes", || (!path.exists()).then_some(()));
    assert!(portcullis.reconfigure(&config).is("reload.applied"));
    eventually("the file comes", || path.exists().then_some(()));
    ask(&mut call(&path), b"hello", b"hello");
    // A file that another program removed is created again by the next reload.
    fs::remove_file(&path).unwrap();
    assert!(portcullis.reconfigure(&config).is("reload.applied"));
    ask(&mut call(&path), b"hello", b"hello");
}

#[test]
fn stale_unix_socket_is_replaced_and_live_one_is_an_error() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let path = site.path("a.sock");
    drop(UnixListener::bind(&path).unwrap());
    let config = file(&upstream, &site, "");
    let portcullis = Portcullis::start(site, &config);
    portcullis.event("ready", |event| event.is("ready"));
    ask(&mut call(&path), b"hello", b"hello");

    let start = |file: &Path| run(executable().args(["run", "-c"]).arg(file));
    let second = start(&portcullis.site.path("portcullis.toml"));
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(second.stderr.contains("is in use by a running program"), "{}", second.stderr);
    ask(&mut call(&path), b"hello", b"hello");

    // A reload replaces no file of another program, either.
    let elsewhere = portcullis.site.path("b.sock");
    let _living = UnixListener::bind(&elsewhere).unwrap();
    let rejected = portcullis.reconfigure(config.replace("a.sock", "b.sock"));
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    assert!(rejected.text("error").contains("b.sock") && rejected.text("error").contains("running program"));
    fs::write(portcullis.site.path("c.sock"), "precious").unwrap();
    let rejected = portcullis.reconfigure(config.replace("a.sock", "c.sock"));
    assert!(rejected.is("reload.rejected") && rejected.text("error").contains("is not a socket"), "{}", rejected.0);
    assert_eq!(fs::read_to_string(portcullis.site.path("c.sock")).unwrap(), "precious");
    ask(&mut call(&path), b"hello", b"hello");
}

#[test]
fn enabling_tls_ends_plaintext_sessions_and_disabling_it_ends_none() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let (off, on) = (Listener::tcp(&upstream).without_tls(), Listener::tcp(&upstream));
    // Port 0 would be another port each time.
    let address = crate::harness::program::free_address().to_string();
    let [off, on] = [off, on].map(|listener| format!("{ON_SIGHUP}{}", listener.on(&[&address])));
    let portcullis = Portcullis::start(site, &off);
    let mut clear = portcullis.client().dial();
    ask(&mut clear, b"hello", b"hello");
    assert!(portcullis.reconfigure(&on).is("reload.applied"));
    assert_eq!(read_until_closed(&mut clear), b"");
    let revoked = portcullis.event("session.revoked", |event| event.is("session.revoked"));
    assert_eq!(revoked.reason(), "credential_revoked");
    assert!(revoked.text("detail").contains("is not encrypted"), "{}", revoked.0);
    assert_eq!(portcullis.ending(port(&clear)).reason(), "credential_revoked");

    let mut secured = portcullis.client().connect();
    secured.ask(b"hello", b"hello");
    assert!(portcullis.reconfigure(&off).is("reload.applied"));
    ask(&mut portcullis.client().dial(), b"hello", b"hello");
    secured.ask(b"still", b"still");
    assert!(!portcullis.events().iter().any(|event| event.ends(secured.port())));
}

#[test]
fn check_and_explain_describe_a_listener_without_tls() {
    let site = TestDir::new();
    let address = format!("unix:{}", site.path("a.sock").display());
    let table = format!("listen = [\"127.0.0.1:6380\", {{ address = {address:?}, mode = \"0666\" }}]");
    let listener = Listener::redis("127.0.0.1:6379").without_tls().on(&["127.0.0.1:6380"]).to_string();
    let listener = listener.replace("listen = [\"127.0.0.1:6380\"]", &table);
    let private = Listener::redis("127.0.0.1:6379").named("private").without_tls().trusting(&[]);
    let private = private.on(&[&format!("unix:{}", site.path("b.sock").display())]);
    site.write("portcullis.toml", format!("{listener}{private}"));
    let portcullis = |arguments: &[&str]| {
        let mut command = executable();
        run(command.args(arguments).args(["-c", "portcullis.toml"]).current_dir(site.directory()))
    };
    let output = portcullis(&["check", "--offline"]).success();
    for words in ["OFF: only local programs can connect", "a.sock (mode 0666)", "b.sock (mode 0600)"] {
        assert!(output.contains(words), "{words}: {output}");
    }
    assert!(output.contains("warning: listener main: every user of this machine can connect to unix:"), "{output}");
    assert_eq!(output.matches("warning:").count(), 1, "{output}");
    let report: serde_json::Value = serde_json::from_str(&portcullis(&["check", "--json"]).success()).unwrap();
    assert_eq!(report["listeners"][0]["min_version"], serde_json::Value::Null);
    assert_eq!(report["listeners"][0]["socket_files"][0]["mode"], "0666");
    assert_eq!(report["listeners"][1]["socket_files"][0]["mode"], "0600");

    let explain = |listener: &str, source: &str| portcullis(&["explain", "--listener", listener, "--source", source]);
    let trusted = explain("main", "127.0.0.1").success();
    assert!(trusted.contains("tls       off; no client certificate is requested"), "{trusted}");
    assert_eq!(explain("main", "127.0.0.2").code, Some(3));
    for listener in ["main", "private"] {
        let output = explain(listener, "unix").success();
        assert!(
            output.contains("every client that may write to the socket") && output.contains("verdict   admitted"),
            "{output}"
        );
    }
    let wrong = explain("private", "127.0.0.1");
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("--source unix"), "{}", wrong.stderr);
    assert_eq!(explain("main", "nobody").code, Some(2));
}

#[test]
fn listener_on_a_network_address_requires_tls() {
    let site = TestDir::new();
    for address in ["0.0.0.0:6380", "[::]:6380", "192.0.2.1:6380", "[2001:db8::1]:6380", "[::ffff:192.0.2.1]:6380"] {
        site.write("portcullis.toml", Listener::redis("127.0.0.1:6379").without_tls().on(&[address]));
        let refused = run(executable().args(["check", "-c"]).arg(site.path("portcullis.toml")));
        assert_eq!(refused.code, Some(78), "{address}");
        assert!(refused.stderr.contains("other machines can reach"), "{}", refused.stderr);
    }
    for address in ["127.0.0.1:6380", "127.9.9.9:6380", "[::1]:6380", "[::ffff:127.0.0.1]:6380"] {
        site.write("portcullis.toml", Listener::redis("127.0.0.1:6379").without_tls().on(&[address]));
        let checked = run(executable().args(["check", "-c"]).arg(site.path("portcullis.toml")));
        assert_eq!(checked.code, Some(0), "{address}: {}", checked.stderr);
    }
}

/// Application, sidecar, database: the database requires TLS and a client certificate, and the application has neither.
#[test]
fn plaintext_application_reaches_databases_that_require_tls() {
    let site = TestDir::new();
    site.install("app", &site.ca.issue(Request::client("certified")));
    let redis = Redis::with_tls(&site, &site.server(), &[]);
    let postgres = Postgres::with_tls(&site, &site.server());
    postgres.direct("create role certified login");
    postgres.direct("create role keyed login password 'open sesame'");
    let secured = |listener: Listener| {
        let listener = listener.upstream_tls("verify-full", "ca.crt");
        listener.upstream("cert = \"app.crt\"").upstream("key = \"app.key\"")
    };
    let cache = at(secured(Listener::redis(&redis)).named("cache"), &site, "cache.sock");
    let db = at(secured(Listener::postgres(&postgres)), &site, ".s.PGSQL.5432");
    let portcullis = Portcullis::start(site, format!("{cache}{db}"));
    let file = format!("host={} dbname=postgres", portcullis.site.directory().display());
    let port = plain(&portcullis, "prefer").replace(" user=app", "");

    let mut cli = command("redis-cli");
    cli.args(["-p", &portcullis.address("cache").port().to_string(), "PING"]);
    assert_eq!(run(&mut cli).success(), "PONG\n");
    let mut cli = command("redis-cli");
    assert_eq!(run(cli.arg("-s").arg(portcullis.site.path("cache.sock")).arg("PING")).success(), "PONG\n");

    let sql = "select current_user, ssl, client_dn from pg_stat_ssl where pid = pg_backend_pid()";
    let ask = |psql: &mut Command, binding: &str| {
        psql.env("PGCHANNELBINDING", binding).env("PGPASSWORD", "open sesame");
        run(psql.args(["-c", sql]))
    };
    for way in [&file, &port] {
        for user in ["certified", "keyed"] {
            // The server offers SCRAM-SHA-256-PLUS, which Portcullis removes for a client without TLS.
            for binding in ["prefer", "disable"] {
                let output = ask(&mut psql(&format!("{way} user={user}")), binding).success();
                assert_eq!(output, format!("{user}|t|/CN=certified\n"));
            }
        }
        let refused = ask(&mut psql(&format!("{way} user=keyed")), "require");
        assert!(refused.stderr.contains("channel binding"), "{}", refused.stderr);
    }
    let wrong = run(psql(&format!("{file} user=keyed")).env("PGPASSWORD", "open barley").args(["-c", "select 1"]));
    assert!(wrong.stderr.contains("password authentication failed"), "{}", wrong.stderr);
}

/// Its example configuration, with other addresses and paths.
#[test]
fn sidecar_example_works_unchanged() {
    let site = TestDir::new();
    site.install("client", &site.ca.issue(Request::client("certified")));
    let redis = Redis::with_tls(&site, &site.server(), &[]);
    let postgres = Postgres::with_tls(&site, &site.server());
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/client-sidecar.toml");
    let directory = site.directory().display().to_string();
    let places = [
        ("cache.example:6380", redis.to_string()),
        ("db.example:5432", postgres.to_string()),
        ("127.0.0.1:6379", "127.0.0.1:0".to_owned()),
        ("unix:/run/portcullis", format!("unix:{directory}")),
        ("../certs/", String::new()),
    ];
    let config = places.iter().fold(fs::read_to_string(example).unwrap(), |config, (place, ours)| {
        assert!(config.contains(place), "{place}");
        config.replace(place, ours)
    });
    let portcullis = Portcullis::start(site, config);
    portcullis.event("ready", |event| event.is("ready") && event.0["listener"] == "db");
    let checked = run(executable().args(["check", "-c"]).arg(portcullis.site.path("portcullis.toml"))).success();
    assert!(checked.contains(", TLS (verify-full)") && !checked.contains("warning"), "{checked}");
    let socket = portcullis.site.path("cache.sock");
    assert_eq!(mode(&socket), 0o660);
    assert_eq!(run(command("redis-cli").arg("-s").arg(&socket).arg("PING")).success(), "PONG\n");
    let conninfo = format!("host={directory} user=app dbname=postgres");
    let sql = "select ssl, client_dn from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(run(psql(&conninfo).args(["-c", sql])).success(), "t|/CN=certified\n");
}
