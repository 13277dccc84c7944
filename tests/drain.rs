//! Start and end of the process, as systemd sees them.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;

use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::run;
use crate::harness::{Connection, Listener, Portcullis, TestDir, Upstream, WAIT_TIMEOUT, eventually};

fn draining(drain: &str, upstream: &Upstream) -> (Portcullis, Connection) {
    let config = format!("shutdown.drain = \"{drain}\"\n{}", Listener::redis(upstream));
    let portcullis = Portcullis::start(TestDir::new(), config);
    let mut inside = portcullis.client().connect();
    inside.ask(b"hello", b"hello");
    (portcullis, inside)
}

/// Sends SIGTERM and waits until no new connection is accepted.
pub(crate) fn begin_to_drain(portcullis: &Portcullis) {
    let client = portcullis.client();
    portcullis.process.signal("TERM");
    eventually("the listener is closed", || client.try_dial().is_err().then_some(()));
}

#[test]
fn sigterm_waits_for_a_running_session_and_refuses_new_ones() {
    let upstream = Upstream::echo();
    let (mut portcullis, mut inside) = draining("10m", &upstream);
    begin_to_drain(&portcullis);
    for _ in 0..10 {
        inside.ask(b"still here", b"still here");
    }
    // A reload during a drain is harmless.
    portcullis.hang_up();
    inside.ask(b"still here", b"still here");
    assert!(portcullis.process.0.try_wait().unwrap().is_none(), "it did not wait");
    inside.finish_sending();
    inside.rest().unwrap();
    assert_eq!(portcullis.process.exit_code(), Some(0));
    assert!(matches!(portcullis.ending(inside.port()).reason(), "client_closed" | "upstream_closed"));
}

#[test]
fn sigterm_without_a_session_ends_at_once() {
    let upstream = Upstream::echo();
    let config = format!("shutdown.drain = \"10m\"\n{}", Listener::redis(&upstream));
    let mut portcullis = Portcullis::start(TestDir::new(), config);
    portcullis.address("main");
    assert_eq!(portcullis.stop().0, Some(0));
}

#[test]
fn sessions_that_outlast_the_drain_are_closed() {
    let upstream = Upstream::echo();
    let (mut portcullis, mut inside) = draining("500ms", &upstream);
    let (code, _) = portcullis.stop();
    assert_eq!(code, Some(0));
    assert_eq!(portcullis.ending(inside.port()).reason(), "shutdown");
    // A proper end, not an RST.
    inside.rest().unwrap();
}

#[test]
fn second_sigterm_ends_the_program_at_once() {
    let upstream = Upstream::echo();
    let (mut portcullis, inside) = draining("10m", &upstream);
    begin_to_drain(&portcullis);
    // The drain lasts ten minutes, and the client neither reads nor closes. `stop` waits for far less.
    let (code, _) = portcullis.stop();
    assert_eq!(code, Some(0));
    assert_eq!(portcullis.ending(inside.port()).reason(), "shutdown");
}

#[test]
fn draining_program_is_reported_by_commands_and_allows_another_start() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let socket = site.path("admin.sock");
    let (drain, listener) = ("shutdown.drain = \"10m\"\n", Listener::redis(&upstream));
    let mut portcullis = Portcullis::start(site, format!("{drain}{ADMIN}{listener}"));
    let mut inside = portcullis.client().connect();
    inside.ask(b"hello", b"hello");
    begin_to_drain(&portcullis);
    let ask = |arguments: &[&str]| run(executable().args(arguments).arg("--socket").arg(&socket));
    assert!(ask(&["status"]).success().contains("DRAINING since"));
    let sessions = ask(&["sessions", "list"]);
    assert!(sessions.stderr.contains("draining: "), "{}", sessions.stderr);
    assert!(sessions.success().contains(" open "));
    for command in [&["reload"][..], &["reload", "--plan"]] {
        let refused = ask(command);
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains("draining: "), "{}", refused.stderr);
    }
    // Its ports and its socket are free for another process.
    let admin = format!("[admin]\nlisten = \"unix:{}\"\n", socket.display());
    let next = Portcullis::start(TestDir::new(), format!("{admin}{listener}"));
    next.address("main");
    assert!(!ask(&["status"]).success().contains("DRAINING"));
    inside.finish_sending();
    inside.rest().unwrap();
    assert_eq!(portcullis.process.exit_code(), Some(0));
    assert!(ask(&["status"]).success().contains(&format!("process {}", next.process.0.id())));
}

#[test]
fn client_in_its_handshake_does_not_delay_the_shutdown() {
    let upstream = Upstream::echo();
    let config = format!("shutdown.drain = \"500ms\"\n{}", Listener::redis(&upstream));
    let mut portcullis = Portcullis::start(TestDir::new(), config);
    let _silent = portcullis.client().dial();
    assert_eq!(portcullis.stop().0, Some(0));
}

#[test]
fn each_listener_logs_ready_with_its_address() {
    let upstream = Upstream::echo();
    let config = format!(
        "{}{}",
        Listener::redis(&upstream).named("cache").on(&["127.0.0.1:0", "127.0.0.2:0"]),
        Listener::postgres(&upstream).named("db"),
    );
    let mut portcullis = Portcullis::start(TestDir::new(), config);
    let of = |name: &str| portcullis.event("ready", |event| event.is("ready") && event.0["listener"] == name);
    let (cache, db) = (of("cache"), of("db"));
    assert_eq!((cache.text("protocol"), db.text("protocol")), ("redis", "postgres"));
    assert_eq!(cache.text("level"), "INFO");
    assert_eq!((portcullis.addresses("cache").len(), portcullis.addresses("db").len()), (2, 1));
    let (_, events) = portcullis.stop();
    assert_eq!(events.iter().filter(|event| event.is("ready")).count(), 2);
}

/// Waits for a message to systemd that has this line.
fn expect(socket: &UnixDatagram, line: &str) {
    let mut buffer = [0; 1024];
    loop {
        let length = socket.recv(&mut buffer).expect("systemd is notified in time");
        let message = String::from_utf8_lossy(&buffer[..length]);
        if message.lines().any(|sent| sent == line) {
            return;
        }
    }
}

#[test]
fn systemd_is_notified_of_ready_and_stopping() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let path = site.path("notify");
    let in_a_file = (UnixDatagram::bind(&path).unwrap(), path.display().to_string());
    let name = format!("portcullis-test-{}", process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let abstractly = (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"));
    for (socket, variable) in [in_a_file, abstractly] {
        socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut command = executable();
        command.env("NOTIFY_SOCKET", &variable);
        let (one, two) = (Listener::redis(&upstream).named("one"), Listener::tcp(&upstream));
        let config = format!("{one}{two}");
        let mut portcullis = Portcullis::start_by(command, TestDir::new(), config);
        expect(&socket, "READY=1");
        // All addresses are bound before systemd is notified.
        for listener in ["one", "main"] {
            portcullis.client_of(listener).connect().ask(b"hello", b"hello");
        }
        portcullis.process.signal("TERM");
        expect(&socket, "STOPPING=1");
        assert_eq!(portcullis.process.exit_code(), Some(0));
    }
}

/// A program that is starting, with large files to read before it can serve.
fn starting(upstream: &Upstream) -> Portcullis {
    let site = TestDir::new();
    let rules = (0..20_000_u32).map(|number| {
        let [_, high, middle, low] = number.to_be_bytes();
        format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.{high}.{middle}.{low}\"\n")
    });
    let rules: String = rules.collect();
    site.write("sources.toml", &rules);
    let listener = Listener::redis(upstream).key("sources_file = \"sources.toml\"");
    let portcullis = Portcullis::start(site, listener);
    eventually("it has read the rules", || (portcullis.bytes_read() > rules.len() as u64).then_some(()));
    portcullis
}

#[test]
fn sighup_during_the_start_reloads_after_it() {
    let upstream = Upstream::echo();
    let portcullis = starting(&upstream);
    portcullis.applies(|| portcullis.hang_up());
    portcullis.client().connect().ask(b"hello", b"hello");
}

#[test]
fn sigterm_during_the_start_exits_cleanly() {
    let upstream = Upstream::echo();
    let mut portcullis = starting(&upstream);
    assert_eq!(portcullis.stop().0, Some(0));
}
