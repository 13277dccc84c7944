//! File descriptors: the raised limit, and the reserve that no client can use.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use serde_json::Value;

use crate::harness::client::port;
use crate::harness::hosts;
use crate::harness::portcullis::{ADMIN, EXECUTABLE};
use crate::harness::program::{allow_many_files, command, run};
use crate::harness::{Connection, Event, Listener, Portcullis, TestDir, Upstream, eventually};
use crate::reload::ON_SIGHUP;
use crate::revocation::assert_ended;

/// The built program, with a soft and a hard limit of open files.
fn limited(limits: &str) -> Command {
    let mut limited = command("prlimit");
    limited.arg(format!("--nofile={limits}")).args(["--", EXECUTABLE]);
    limited
}

/// A limit for a few connections: in addition some fifteen descriptors are open, and five for each core.
pub(crate) fn tight(for_connections: usize) -> String {
    let cores = std::thread::available_parallelism().unwrap().get();
    let limit = 15 + 5 * cores + RESERVE + for_connections;
    format!("{limit}:{limit}")
}

/// The reserve where the limit is low.
const RESERVE: usize = 16;

/// The descriptors of the process in `status`.
fn descriptors(portcullis: &Portcullis) -> Value {
    portcullis.ask("GET", "/v1/status").1["descriptors"].clone()
}

fn logged(portcullis: &Portcullis, seen: usize, words: &str) -> Event {
    let has_words = |line: &Event| line.0["message"].as_str().is_some_and(|message| message.starts_with(words));
    portcullis.event_after(seen, words, has_words)
}

/// Connects from this address until accepting is paused. Returns the sessions, and the connections in the queue.
fn flood(portcullis: &Portcullis, source: &str) -> (Vec<Connection>, Vec<TcpStream>) {
    let client = portcullis.client().from(source);
    let free = descriptors(portcullis)["max_connections"].as_u64().unwrap();
    let sessions = (0..free).map(|_| {
        let mut session = client.connect();
        session.ask(b"hello", b"hello");
        session
    });
    let sessions = sessions.collect();
    let waiting = (0..50).map(|_| client.dial()).collect();
    logged(portcullis, 0, "accepting paused");
    (sessions, waiting)
}

#[test]
fn soft_limit_is_raised_to_the_hard_one() {
    allow_many_files();
    let upstream = Upstream::echo();
    let config = format!("{ADMIN}{}", Listener::redis(&upstream));
    let portcullis = Portcullis::start_by(limited("64:4096"), TestDir::new(), config);
    let client = portcullis.client();
    let mut sessions: Vec<_> = (0..150).map(|_| client.connect()).collect();
    for session in &mut sessions {
        session.ask(b"hello", b"hello");
    }
    let descriptors = descriptors(&portcullis);
    assert_eq!((&descriptors["limit"], &descriptors["reserved"]), (&4096.into(), &256.into()));
    assert_eq!((&descriptors["connections"], &descriptors["accepting"]), (&150.into(), &true.into()));
}

#[test]
fn source_that_uses_all_descriptors_can_be_removed() {
    const SOURCES: &[&str] = &["127.0.0.2", "127.0.0.3"];
    allow_many_files();
    let upstream = Upstream::echo();
    let config = |sources: &[&str]| {
        let listener = Listener::redis(&upstream).trusting(sources);
        format!("log.audit_file = \"audit.log\"\n{ADMIN}{ON_SIGHUP}{listener}")
    };
    let portcullis = Portcullis::start_by(limited(&tight(23)), TestDir::new(), config(SOURCES));
    portcullis.address("main");
    let (mut sessions, waiting) = flood(&portcullis, "127.0.0.2");

    // All other functions continue.
    let paused = descriptors(&portcullis);
    assert_eq!((&paused["accepting"], paused["paused_since"].is_string()), (&false.into(), true), "{paused}");
    let words = run(command(EXECUTABLE).args(["status", "--socket"]).arg(portcullis.site.path("admin.sock"))).success();
    assert!(words.contains("ACCEPTING PAUSED for "), "{words}");
    let limit = usize::try_from(paused["limit"].as_u64().unwrap()).unwrap();
    eventually("the reserve is free", || (portcullis.open_files() + RESERVE <= limit).then_some(()));
    for session in &mut sessions {
        session.ask(b"hello", b"hello");
    }
    let audit = portcullis.site.path("audit.log");
    fs::rename(&audit, portcullis.site.path("audit.log.1")).unwrap();

    let applied = portcullis.reconfigure(config(&SOURCES[1..]));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    for session in sessions {
        assert_ended(&portcullis, session, "source_revoked");
    }
    for stream in &waiting {
        assert_eq!(portcullis.refusal(port(stream)), "untrusted_source");
    }
    portcullis.client().from("127.0.0.3").connect().ask(b"hello", b"hello");
    eventually("it accepts", || (descriptors(&portcullis)["accepting"] == true).then_some(()));
    logged(&portcullis, 0, "accepting resumed");
    eventually("the new audit file is written", || fs::metadata(&audit).ok().filter(|file| file.len() > 0));
}

#[test]
fn host_names_are_resolved_while_clients_use_all_descriptors() {
    allow_many_files();
    let (upstream, site) = (Upstream::echo(), TestDir::new());
    hosts::name(&site, &[("app.test", &["127.0.0.4"])]);
    let name = "{ type = \"dns\", value = \"app.test\", refresh = \"1s\" }";
    let listener = Listener::redis(&upstream).trusting(&["127.0.0.2"]).to_string();
    let listener = listener.replace("[\"127.0.0.2\"]", &format!("[\"127.0.0.2\", {name}]"));
    let Some(inside) = hosts::executable(&site) else { return };
    let mut limited = command("prlimit");
    limited.arg(format!("--nofile={}", tight(23))).arg("--").arg(inside.get_program()).args(inside.get_args());
    let config = format!("state.directory = \"state\"\n{ADMIN}{ON_SIGHUP}{listener}");
    let portcullis = Portcullis::start_by(limited, site, config);
    portcullis.address("main");
    let _crowd = flood(&portcullis, "127.0.0.2");
    hosts::name(&portcullis.site, &[("app.test", &["127.0.0.5"])]);
    let added = |event: &Event| event.is("source.added") && event.0["addresses"] == "127.0.0.5";
    portcullis.event("the new address", added);
}

#[test]
fn other_clients_are_accepted_once_descriptors_are_free() {
    allow_many_files();
    let upstream = Upstream::echo();
    let config = format!("{ADMIN}{}", Listener::redis(&upstream).trusting(&["127.0.0.2", "127.0.0.3"]));
    let portcullis = Portcullis::start_by(limited(&tight(23)), TestDir::new(), config);
    portcullis.address("main");
    let (mut sessions, waiting) = flood(&portcullis, "127.0.0.2");
    drop(waiting);
    let other = portcullis.client().from("127.0.0.3").dial();
    assert_eq!(descriptors(&portcullis)["accepting"], false);
    sessions.pop();
    portcullis.client().secure(other).unwrap().ask(b"hello", b"hello");
    let paused = |event: &Event| event.0["message"].as_str().is_some_and(|it| it.starts_with("accepting paused"));
    portcullis.assert_count("a pause is logged once a minute", 1, paused);
}
