//! Several upstreams: which is tried first, which is ejected, and which has recovered.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::dial::clogged;
use crate::harness::hosts;
use crate::harness::portcullis::ADMIN;
use crate::harness::program::{self, command, free_port, run};
use crate::harness::redis::ANY_CLIENT;
use crate::harness::{Authority, Client, Event, Listener, Portcullis, Redis, Request, TestDir, Upstream, eventually};
use crate::reload::ON_SIGHUP;

/// A configuration whose upstream is a table with these keys, with the admin socket.
pub(crate) fn config(listener: &Listener, keys: &str) -> String {
    let listener = listener.to_string().replace("upstream = \"UPSTREAM\"", &format!("upstream = {{ {keys} }}"));
    format!("{ADMIN}{ON_SIGHUP}{listener}")
}

pub(crate) fn addresses(all: &[&dyn std::fmt::Display]) -> String {
    let all: Vec<_> = all.iter().map(|address| format!("\"{address}\"")).collect();
    format!("address = [{}]", all.join(", "))
}

pub(crate) fn redis(keys: &str) -> String {
    config(&Listener::redis("UPSTREAM"), keys)
}

/// The upstreams of the first listener in `status`.
pub(crate) fn upstreams(portcullis: &Portcullis) -> Vec<Value> {
    portcullis.status()["upstreams"].as_array().unwrap().clone()
}

pub(crate) fn logged(portcullis: &Portcullis, seen: usize, words: &str) -> Event {
    portcullis.event_after(seen, words, |line| has_words(line, words))
}

/// The number of log lines with these words.
fn times_logged(portcullis: &Portcullis, words: &str) -> usize {
    portcullis.events().iter().filter(|event| has_words(event, words)).count()
}

/// Waits for the first line, because a client may be answered before the log has the line.
fn assert_logged_once(portcullis: &Portcullis, words: &str) {
    portcullis.event(words, |event| has_words(event, words));
    assert_eq!(times_logged(portcullis, words), 1, "{words}");
}

fn has_words(line: &Event, words: &str) -> bool {
    let text = |field: &str| line.0[field].as_str().unwrap_or_default();
    let detail = ["role", "reply", "error"].map(text).concat();
    format!("{} {}: {detail}", text("message"), text("upstream")).contains(words)
}

/// No client got an error because of the upstream. A client that closes during its handshake is denied, too.
fn assert_no_client_was_refused(portcullis: &Portcullis) {
    let away = |event: &&Event| event.is("connection.denied") && event.reason().starts_with("upstream");
    assert_eq!(portcullis.events().iter().find(away), None);
}

/// Opens a session and returns its upstream.
fn session(portcullis: &Portcullis) -> String {
    // An earlier client may have had the same port.
    let seen = portcullis.seen();
    let mut client = portcullis.client().connect();
    client.ask(b"PING\r\n", b"+PONG\r\n");
    let opens = |event: &Event| event.is("connection.opened") && event.0["source_port"] == client.port();
    portcullis.event_after(seen, "the opening of the connection", opens).text("upstream").to_owned()
}

/// An upstream that answers every line with `+PONG`.
fn ponging(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(1..) = std::io::Read::read(&mut stream, &mut bytes) {
                    std::io::Write::write_all(&mut stream, b"+PONG\r\n").unwrap();
                }
            });
        }
    });
}

#[test]
fn first_healthy_upstream_is_used_and_the_first_again_once_it_recovers() {
    let (mut first, second) = (Redis::start(), Redis::start());
    let unused = format!("127.0.0.1:{}", free_port());
    let all = addresses(&[&unused, &first, &second]);
    let portcullis = Portcullis::start(TestDir::new(), redis(&all));
    portcullis.address("main");
    assert!(upstreams(&portcullis).iter().all(|upstream| upstream["healthy"].is_null()));
    assert_eq!(session(&portcullis), first.to_string());
    logged(&portcullis, 0, &format!("upstream ejected {unused}: Connection refused"));

    first.kill();
    assert_eq!(session(&portcullis), second.to_string());
    logged(&portcullis, 0, &format!("upstream ejected {first}"));
    let known = upstreams(&portcullis);
    let answers: Vec<_> = known.iter().map(|upstream| upstream["healthy"].clone()).collect();
    assert_eq!(answers, [false, false, true]);
    assert!(known[1]["error"].as_str().unwrap().contains("refused") && known[1]["since"].is_string(), "{}", known[1]);

    let seen = portcullis.seen();
    first.start_again();
    logged(&portcullis, seen, &format!("upstream recovered {first}"));
    assert_eq!(session(&portcullis), first.to_string());
    assert_logged_once(&portcullis, &format!("upstream ejected {unused}"));
}

#[test]
fn unresponsive_upstream_delays_one_client_only() {
    let (_socket, _waiting, hole) = clogged();
    let server = Redis::start();
    let keys = format!("{}, connect_timeout = \"3s\"", addresses(&[&hole, &server]));
    let portcullis = Portcullis::start(TestDir::new(), redis(&keys));
    let timed = || {
        let begun = Instant::now();
        assert_eq!(session(&portcullis), server.to_string());
        begun.elapsed()
    };
    let first = timed();
    assert!(first >= Duration::from_secs(3), "{first:?}");
    // On a busy machine some of them may take as long for another reason.
    let quick = (0..20).filter(|_| timed() < Duration::from_secs(2)).count();
    assert!(quick > 10, "only {quick} of 20 sessions did not wait");
}

#[test]
fn denial_names_each_unreachable_upstream() {
    let [one, two] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let all = addresses(&[&one, &two, &"unix:/nowhere/redis.sock", &"nowhere.invalid:1"]);
    let portcullis = Portcullis::start(TestDir::new(), redis(&all));
    for _ in 0..2 {
        let mut client = portcullis.client().connect();
        assert!(client.rest().unwrap().starts_with(b"-LOADING "));
        let denied = portcullis.ending(client.port());
        assert_eq!(denied.reason(), "upstream_unreachable");
        for name in [&one, &two, "unix:/nowhere/redis.sock", "nowhere.invalid:1"] {
            assert_eq!(denied.text("detail").matches(&format!("upstream {name}: ")).count(), 1, "{}", denied.0);
        }
        assert_eq!(denied.text("upstream"), format!("{one},{two},unix:/nowhere/redis.sock,nowhere.invalid:1"));
    }
}

#[test]
fn single_upstream_is_never_ejected() {
    let mut only = Redis::start();
    let portcullis = Portcullis::start(TestDir::new(), redis(&addresses(&[&only])));
    session(&portcullis);
    only.kill();
    let mut client = portcullis.client().connect();
    assert!(client.rest().unwrap().starts_with(b"-LOADING "));
    portcullis.ending(client.port());
    only.start_again();
    assert_eq!(session(&portcullis), only.to_string());
    assert_eq!(times_logged(&portcullis, "upstream ejected"), 0);
}

#[test]
fn ejected_upstream_stays_ejected_over_a_reload_and_is_still_checked() {
    let (mut first, second) = (Redis::start(), Redis::start());
    first.kill();
    let keys = addresses(&[&first, &second]);
    let portcullis = Portcullis::start(TestDir::new(), redis(&keys));
    assert_eq!(session(&portcullis), second.to_string());
    let config = redis(&format!("{keys}, connect_timeout = \"4s\""));
    assert!(portcullis.reconfigure(config).is("reload.applied"));
    assert_eq!(upstreams(&portcullis)[0]["healthy"], false);
    first.start_again();
    logged(&portcullis, 0, &format!("upstream recovered {first}"));
    assert_eq!(session(&portcullis), first.to_string());
}

/// A Redis that accepts only TLS, at these addresses of the machine.
fn redis_with_tls(site: &TestDir, name: &str, ips: &[&str]) -> Redis {
    let other = Authority::new("Upstream CA");
    site.write("upstream.crt", other.pem());
    Redis::with_tls(site, &other.issue(Request::server(&[name])), &[ANY_CLIENT, &["--bind"], ips].concat())
}

#[test]
fn upstream_that_fails_in_tls_stays_ejected_although_it_accepts_connections() {
    let deaf = Upstream::new(drop);
    let site = TestDir::new();
    let server = redis_with_tls(&site, "127.0.0.1", &["127.0.0.1"]);
    let good = server.to_string();
    let keys = format!("{}, tls = \"verify-full\", ca = \"upstream.crt\"", addresses(&[&deaf, &good]));
    let portcullis = Portcullis::start(site, redis(&keys));
    assert_eq!(session(&portcullis), good);
    // The health check dials it again, more than once.
    eventually("it is asked again", || (deaf.connections() > 2).then_some(()));
    assert_eq!(upstreams(&portcullis)[0]["healthy"], false);
    assert_eq!(times_logged(&portcullis, "upstream recovered"), 0);
    let before = deaf.connections();
    assert_eq!(session(&portcullis), good);
    assert!(deaf.connections() <= before + 1, "only to be asked again");
}

#[test]
fn tls_verifies_the_configured_name_of_the_upstream() {
    let site = TestDir::new();
    let server = redis_with_tls(&site, "db.test", &["127.0.0.53", "::1"]);
    let port = server.port();
    let deaf = TcpListener::bind(("127.0.0.52", port)).unwrap();
    thread::spawn(move || deaf.incoming().for_each(drop));
    hosts::name(&site, &[("db.test", &["127.0.0.52", "127.0.0.53"]), ("alias.test", &["127.0.0.53"])]);
    let keys = |name: &str| format!("address = \"{name}:{port}\", tls = \"verify-full\", ca = \"upstream.crt\"");
    let Some(portcullis) = hosts::start(site, redis(&keys("db.test"))) else { return };
    assert_eq!(session(&portcullis), format!("db.test:{port}"));
    // Each address behind the name is one that TLS can fail at.
    logged(&portcullis, 0, &format!("upstream ejected db.test:{port} (127.0.0.52:{port})"));
    hosts::name(&portcullis.site, &[("db.test", &["::1"]), ("alias.test", &["127.0.0.53"])]);
    assert_eq!(session(&portcullis), format!("db.test:{port}"));
    assert!(portcullis.reconfigure(redis(&keys("alias.test"))).is("reload.applied"));
    let mut client = portcullis.client().connect();
    assert!(client.rest().unwrap().starts_with(b"-LOADING "));
    assert_eq!(portcullis.refusal(client.port()), "upstream_tls_failed");
}

#[test]
fn healthy_upstreams_are_not_checked() {
    let (one, other) = (Upstream::echo(), Upstream::echo());
    let portcullis = Portcullis::start(TestDir::new(), redis(&addresses(&[&one, &other])));
    portcullis.client().connect().ask(b"x", b"x");
    let before = portcullis.cpu_ticks();
    // Longer than all pauses between health checks but the longest.
    thread::sleep(Duration::from_secs(3));
    assert!(portcullis.cpu_ticks() - before < 20, "it is busy with something");
    assert_eq!((one.connections(), other.connections()), (1, 0));
}

#[test]
fn ejected_upstreams_are_checked_with_backoff_and_do_not_delay_the_shutdown() {
    let server = Redis::start();
    let closing = Upstream::new(drop);
    let unused = format!("127.0.0.1:{}", free_port());
    let mut portcullis = Portcullis::start(TestDir::new(), master(&[&unused, &closing, &server]));
    session(&portcullis);
    let before = portcullis.cpu_ticks();
    eventually("it is asked again", || (closing.connections() >= 3).then_some(()));
    assert!(portcullis.cpu_ticks() - before < 20, "it is busy with something");
    assert_eq!(portcullis.stop().0, Some(0));
}

#[test]
fn new_connections_succeed_while_upstreams_restart() {
    let mut servers = [Redis::start(), Redis::start(), Redis::start()];
    let all = addresses(&[&servers[0], &servers[1], &servers[2]]);
    let portcullis = Portcullis::start(TestDir::new(), redis(&all));
    portcullis.address("main");
    let over = AtomicBool::new(false);
    let killed: Vec<String> = thread::scope(|scope| {
        let load = |_| {
            scope.spawn(|| {
                let mut failed = vec![];
                while !over.load(Ordering::SeqCst) {
                    let mut client = portcullis.client().connect();
                    let (port, mut answer) = (client.port(), [0; 7]);
                    let asked = std::io::Write::write_all(&mut client.stream, b"PING\r\n");
                    let answered = asked.and_then(|()| std::io::Read::read_exact(&mut client.stream, &mut answer));
                    if answered.is_err() || &answer != b"+PONG\r\n" {
                        failed.push(port);
                    }
                }
                failed
            })
        };
        let loads: Vec<_> = (0..4).map(load).collect();
        let mut killed = vec![];
        for index in [0, 1] {
            let (seen, name) = (portcullis.seen(), servers[index].to_string());
            servers[index].kill();
            killed.push(name.clone());
            logged(&portcullis, seen, &format!("upstream ejected {name}"));
        }
        for index in [0, 1] {
            let (seen, name) = (portcullis.seen(), servers[index].to_string());
            servers[index].start_again();
            logged(&portcullis, seen, &format!("upstream recovered {name}"));
        }
        over.store(true, Ordering::SeqCst);
        for port in loads.into_iter().flat_map(|load| load.join().unwrap()) {
            // Only a session at a killed upstream may fail.
            let opened = portcullis.opened(port);
            assert!(killed.contains(&opened.text("upstream").to_owned()), "{}", opened.0);
        }
        killed
    });
    assert_eq!(session(&portcullis), killed[0]);
    assert_no_client_was_refused(&portcullis);
}

#[test]
fn redis_benchmark_has_no_error_while_the_first_upstream_recovers() {
    let (mut first, second) = (Redis::start(), Redis::start());
    let portcullis = Portcullis::start(TestDir::new(), redis(&addresses(&[&first, &second])));
    session(&portcullis);
    first.kill();
    let port = portcullis.address("main").port().to_string();
    let mut benchmark = command("redis-benchmark");
    benchmark.args(["-p", &port, "--tls", "--cacert"]).arg(portcullis.site.path("ca.crt"));
    // -k 0: a connection for each request.
    benchmark.args(["-k", "0", "-c", "4", "-n", "1500", "-t", "ping_inline", "-q"]);
    let load = thread::spawn(move || run(&mut benchmark));
    logged(&portcullis, 0, &format!("upstream ejected {first}"));
    first.start_again();
    logged(&portcullis, 0, &format!("upstream recovered {first}"));
    let output = load.join().unwrap();
    assert!(!format!("{}{}", output.text(), output.stderr).to_lowercase().contains("error"), "{}", output.text());
    output.success();
    assert_eq!(session(&portcullis), first.to_string());
    assert_no_client_was_refused(&portcullis);
}

fn master(servers: &[&dyn std::fmt::Display]) -> String {
    redis(&format!("{}, target = \"master\"", addresses(servers)))
}

fn cli(redis: &Redis, words: &[&str]) -> String {
    run(redis.cli().args(words)).success().trim_end().to_owned()
}

fn follow(replica: &Redis, master: &Redis) {
    assert_eq!(cli(replica, &["REPLICAOF", "127.0.0.1", &master.port().to_string()]), "OK");
}

#[test]
fn redis_master_is_found_at_every_position() {
    let (replica, leader) = (Redis::start(), Redis::start());
    follow(&replica, &leader);
    let portcullis = Portcullis::start(TestDir::new(), master(&[&replica, &leader]));
    assert_eq!(session(&portcullis), leader.to_string());
    logged(&portcullis, 0, &format!("upstream role changed {replica}: replica"));
    let roles: Vec<_> = upstreams(&portcullis).iter().map(|upstream| upstream["role"].clone()).collect();
    assert_eq!(roles, ["replica", "primary"]);
    assert_eq!(session(&portcullis), leader.to_string());

    // They swap their roles.
    assert_eq!(cli(&replica, &["REPLICAOF", "NO", "ONE"]), "OK");
    follow(&leader, &replica);
    assert_eq!(session(&portcullis), replica.to_string());
    logged(&portcullis, 0, &format!("upstream role changed {replica}: primary"));
    assert_eq!(session(&portcullis), replica.to_string());

    // No server takes writes.
    follow(&replica, &leader);
    let mut client = portcullis.client().connect();
    assert!(client.rest().unwrap().starts_with(b"-LOADING "));
    let denied = portcullis.ending(client.port());
    assert_eq!(denied.text("detail").matches("is a replica").count(), 2, "{}", denied.0);
    // They answer, so all stay healthy.
    assert!(upstreams(&portcullis).iter().all(|upstream| upstream["healthy"] == true));
    assert_eq!(cli(&leader, &["REPLICAOF", "NO", "ONE"]), "OK");
    assert_eq!(session(&portcullis), leader.to_string());
}

#[test]
fn stopped_redis_is_ejected_by_its_role_query() {
    let (first, second) = (Redis::start(), Redis::start());
    let keys = format!("{}, target = \"master\", connect_timeout = \"3s\"", addresses(&[&first, &second]));
    let portcullis = Portcullis::start(TestDir::new(), redis(&keys));
    assert_eq!(session(&portcullis), first.to_string());
    // The kernel continues to accept its connections.
    first.signal("STOP");
    assert_eq!(session(&portcullis), second.to_string());
    assert_eq!(upstreams(&portcullis)[0]["healthy"], false);
    let seen = portcullis.seen();
    first.signal("CONT");
    logged(&portcullis, seen, &format!("upstream recovered {first}"));
    assert_eq!(session(&portcullis), first.to_string());
}

#[test]
fn redis_without_a_role_is_used_and_gives_one_warning() {
    let (first, second) = (Redis::with(&["--requirepass", "secret"]), Redis::start());
    let portcullis = Portcullis::start(TestDir::new(), master(&[&first, &second]));
    for _ in 0..3 {
        let mut client = portcullis.client().connect();
        client.ask(b"AUTH secret\r\nPING\r\n", b"+OK\r\n+PONG\r\n");
        assert_eq!(portcullis.opened(client.port()).text("upstream"), first.to_string());
    }
    assert_logged_once(&portcullis, "cannot determine the role of the upstream, assuming that it is the master");
}

#[test]
fn redis_default_user_with_role_permission_only_is_queried() {
    let (first, second) = (Redis::start(), Redis::start());
    for server in [&first, &second] {
        let rules = ["ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all"];
        assert_eq!(cli(server, &rules), "OK");
    }
    follow(&first, &second);
    for server in [&first, &second] {
        // The rules of docs/CONFIGURATION.md.
        let rules = ["ACL", "SETUSER", "default", "on", "nopass", "-@all", "+role", "+auth", "+hello"];
        assert_eq!(cli(server, &rules), "OK");
    }
    let portcullis = Portcullis::start(TestDir::new(), master(&[&first, &second]));
    let mut client = portcullis.client().connect();
    client.ask(b"AUTH app secret\r\nSET key value\r\n", b"+OK\r\n+OK\r\n");
    assert_eq!(portcullis.opened(client.port()).text("upstream"), second.to_string());
    assert_eq!(times_logged(&portcullis, "cannot determine the role"), 0);
}

#[test]
fn sentinel_and_loading_server_are_not_masters() {
    let site = TestDir::new();
    site.write("sentinel.conf", "");
    let port = free_port();
    let mut sentinel = command("redis-server");
    sentinel.arg(site.path("sentinel.conf")).args(["--sentinel", "--port", &port.to_string(), "--bind", "127.0.0.1"]);
    let _sentinel = program::Running::start(&mut sentinel);
    eventually("the sentinel is up", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let loading = Upstream::sending(b"-LOADING Redis is loading the dataset in memory\r\n");
    let leader = Redis::start();
    let sentinel = format!("127.0.0.1:{port}");
    let portcullis = Portcullis::start(TestDir::new(), master(&[&sentinel, &loading, &leader]));
    assert_eq!(session(&portcullis), leader.to_string());
    assert!(upstreams(&portcullis).iter().all(|upstream| upstream["healthy"] == true), "{:?}", upstreams(&portcullis));
}

/// A server on the same port of several addresses of this machine.
fn at(ips: &[&str]) -> (u16, Vec<TcpListener>) {
    loop {
        let first = TcpListener::bind((ips[0], 0)).unwrap();
        let port = first.local_addr().unwrap().port();
        let rest: Result<Vec<_>, _> = ips[1..].iter().map(|ip| TcpListener::bind((*ip, port))).collect();
        if let Ok(rest) = rest {
            return (port, [vec![first], rest].into_iter().flatten().collect());
        }
    }
}

/// The sockets of the healthy upstreams.
fn socket_of(portcullis: &Portcullis) -> Vec<String> {
    let known = upstreams(portcullis);
    known.iter().filter(|one| one["healthy"] == true).map(|one| one["socket"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_address_of_a_name_is_tried_and_new_ones_are_used() {
    const NAME: &str = "db.test";
    let (port, mut listeners) = at(&["127.0.0.31", "::1"]);
    let (six, four) = (listeners.pop().unwrap(), listeners.pop().unwrap());
    ponging(four);
    ponging(six);
    let site = TestDir::new();
    // No server listens at the first. (The resolver of the system sorts by common prefixes; these have the same.)
    hosts::name(&site, &[(NAME, &["127.0.0.30", "127.0.0.31"])]);
    let name = format!("{NAME}:{port}");
    let Some(portcullis) = hosts::start(site, redis(&addresses(&[&name]))) else { return };
    assert_eq!(session(&portcullis), name);
    logged(&portcullis, 0, &format!("upstream ejected {name} (127.0.0.30:{port})"));
    assert_eq!(socket_of(&portcullis), [format!("127.0.0.31:{port}")]);

    // A failover: the name has a new address, and open sessions stay.
    let mut open = portcullis.client().connect();
    open.ask(b"PING\r\n", b"+PONG\r\n");
    hosts::name(&portcullis.site, &[(NAME, &["::1"])]);
    assert_eq!(session(&portcullis), name);
    assert_eq!(socket_of(&portcullis), [format!("[::1]:{port}")]);
    open.ask(b"PING\r\n", b"+PONG\r\n");

    // The unhealthy one recovers.
    hosts::name(&portcullis.site, &[(NAME, &["127.0.0.29", "127.0.0.31"])]);
    assert_eq!(session(&portcullis), name);
    logged(&portcullis, 0, &format!("upstream ejected {name} (127.0.0.29:{port})"));
    ponging(TcpListener::bind(("127.0.0.29", port)).unwrap());
    logged(&portcullis, 0, &format!("upstream recovered {name} (127.0.0.29:{port})"));
    assert_eq!(socket_of(&portcullis).len(), 2);
}

#[test]
fn master_is_found_among_the_addresses_of_one_name() {
    let port = free_port();
    let server = |ip: &str, options: &[&str]| {
        let mut server = command("redis-server");
        server.args(["--port", &port.to_string(), "--bind", ip, "--save", ""]).args(options);
        program::serve_on(port, "Ready to accept connections", |_| {
            let mut command = Command::new(server.get_program());
            command.args(server.get_args());
            command
        })
    };
    let leader = server("127.0.0.43", &[]);
    let replica = server("127.0.0.42", &["--replicaof", "127.0.0.43", &port.to_string()]);
    assert!(leader.is_some() && replica.is_some(), "the port was free a moment ago");
    let site = TestDir::new();
    hosts::name(&site, &[("db.test", &["127.0.0.41", "127.0.0.42", "127.0.0.43"])]);
    let name = format!("db.test:{port}");
    let Some(portcullis) = hosts::start(site, master(&[&name])) else { return };
    for _ in 0..3 {
        let mut client = portcullis.client().connect();
        client.ask(b"SET key value\r\n", b"+OK\r\n");
    }
    let known = upstreams(&portcullis);
    let known: Vec<_> = known.iter().map(|one| (one["healthy"].clone(), one["role"].clone())).collect();
    assert_eq!(known, [(false.into(), Value::Null), (true.into(), "replica".into()), (true.into(), "primary".into())]);
}

#[test]
fn unresolvable_name_is_ejected_until_it_resolves() {
    let site = TestDir::new();
    hosts::name(&site, &[("other.test", &["127.0.0.1"])]);
    let (first, second) = (Redis::start(), Redis::start());
    let name = format!("db.test:{}", first.port());
    let Some(portcullis) = hosts::start(site, redis(&addresses(&[&name, &second]))) else { return };
    assert_eq!(session(&portcullis), second.to_string());
    assert_eq!(upstreams(&portcullis)[0]["healthy"], false);
    hosts::name(&portcullis.site, &[("db.test", &["127.0.0.1"])]);
    logged(&portcullis, 0, &format!("upstream recovered {name}"));
    assert_eq!(session(&portcullis), name);
}

#[test]
fn failed_upstream_is_ejected_once_for_simultaneous_clients() {
    let (mut first, second) = (Redis::start(), Redis::start());
    let portcullis = Portcullis::start(TestDir::new(), redis(&addresses(&[&first, &second])));
    let address: SocketAddr = portcullis.address("main");
    first.kill();
    let mut clients: Vec<_> = (0..10).map(|_| Client::new(address, &portcullis.site.ca).connect()).collect();
    for client in &mut clients {
        client.ask(b"PING\r\n", b"+PONG\r\n");
    }
    assert_logged_once(&portcullis, "upstream ejected");
}
