//! Reloads: all or nothing, and without an effect on other clients.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::harness::client::port;
use crate::harness::pki::sha256;
use crate::harness::program::{free_address, free_port};
use crate::harness::{Leaf, Listener, Portcullis, TestDir, Upstream, WAIT_TIMEOUT, eventually, wire};

/// Reloads on SIGHUP only.
pub(crate) const ON_SIGHUP: &str = "reload.watch = false\nreload.poll = \"0s\"\n";
/// Reloads on change events only.
pub(crate) const ON_CHANGE: &str = "reload.watch = true\nreload.poll = \"0s\"\n";

/// The fingerprint of the certificate that a new client receives.
pub(crate) fn served(portcullis: &Portcullis) -> String {
    let connection = portcullis.client().connect();
    sha256(&connection.tls().peer_certificates().unwrap()[0])
}

/// Waits until new clients receive this certificate.
pub(crate) fn wait_until_served(portcullis: &Portcullis, leaf: &Leaf) {
    eventually("the new certificate is served", || (served(portcullis) == leaf.sha256()).then_some(()));
}

#[test]
fn sighup_applies_a_new_configuration() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream);
    let portcullis = Portcullis::start(TestDir::new(), format!("{ON_SIGHUP}{listener}"));
    portcullis.address("main");
    let mut last = 0;
    for sources in [&["127.0.0.2"][..], &["127.0.0.1", "127.0.0.2"], &["127.0.0.1"]] {
        let listener = listener.clone().trusting(sources);
        let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{listener}"));
        assert!(applied.is("reload.applied"), "{}", applied.0);
        assert!(applied.number("generation") > last, "{}", applied.0);
        last = applied.number("generation");
        for source in ["127.0.0.1", "127.0.0.2"] {
            let admitted = portcullis.client().from(source).attempt().1.is_ok();
            assert_eq!(admitted, sources.contains(&source), "{source} of {sources:?}");
        }
    }
}

#[test]
fn sighup_without_a_change_keeps_all_sessions() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let mut inside = portcullis.client().connect();
    inside.ask(b"hello", b"hello");
    for _ in 0..3 {
        portcullis.applies(|| portcullis.hang_up());
        inside.ask(b"hello", b"hello");
        portcullis.client().connect().ask(b"hello", b"hello");
    }
}

#[test]
fn handshake_during_a_reload_is_authorized_by_the_new_policy() {
    let upstream = Upstream::silent();
    let listener = Listener::postgres(&upstream);
    let portcullis = Portcullis::start(TestDir::new(), format!("{ON_SIGHUP}{listener}"));
    let client = portcullis.client().alpn(&["postgresql"]);
    let mut stream = client.dial();
    stream.write_all(&wire::SSL_REQUEST).unwrap();
    assert_eq!(wire::read_exactly(&mut stream, 1), b"S");
    let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{}", listener.trusting(&["127.0.0.2"])));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    let port = port(&stream);
    let words = client.secure(stream).and_then(|mut connection| {
        connection.stream.write_all(&wire::startup(wire::PROTOCOL_3_0, &[("user", "app")]))?;
        connection.rest()
    });
    // It may get an error, or just be closed.
    assert!(words.is_err() || words.is_ok_and(|words| words.is_empty() || words.starts_with(b"E")));
    let reason = portcullis.refusal(port);
    assert!(matches!(reason.as_str(), "untrusted_source" | "source_revoked"), "{reason}");
    upstream.assert_untouched();
}

#[test]
fn two_quick_reloads_end_with_the_newest_files() {
    let upstream = Upstream::echo();
    let config = |source: &str| format!("{ON_SIGHUP}{}", Listener::redis(&upstream).trusting(&[source]));
    let portcullis = Portcullis::start(TestDir::new(), config("127.0.0.1"));
    portcullis.address("main");
    for round in 0..5 {
        let newest = format!("127.0.2.{}", round + 1);
        for source in ["127.0.1.1", "127.0.1.2", &newest] {
            portcullis.site.replace("portcullis.toml", config(source));
            portcullis.hang_up();
        }
        let client = portcullis.client().from(&newest);
        eventually("the newest is in force", || client.attempt().1.is_ok().then_some(()));
    }
}

#[test]
fn listener_on_port_zero_keeps_its_port() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream);
    let portcullis = Portcullis::start(TestDir::new(), format!("{ON_SIGHUP}{listener}"));
    let before = portcullis.address("main");
    let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{}", listener.trusting(&["127.0.0.0/8"])));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    assert_eq!(portcullis.address("main"), before);
    portcullis.client().at(before).from("127.0.0.2").connect().ask(b"hello", b"hello");
}

#[test]
fn listener_can_be_added_and_removed() {
    let upstream = Upstream::echo();
    let main = Listener::redis(&upstream);
    let portcullis = Portcullis::start(TestDir::new(), format!("{ON_SIGHUP}{main}"));
    let mut inside = portcullis.client().connect();
    inside.ask(b"hello", b"hello");

    let more = main.clone().named("more");
    let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{main}{more}"));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    let address = portcullis.address("more");
    portcullis.client_of("more").connect().ask(b"hello", b"hello");

    let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{main}"));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    let gone = portcullis.client().at(address);
    eventually("the address is closed", || gone.try_dial().is_err().then_some(()));
    inside.ask(b"hello", b"hello");
    portcullis.client().connect().ask(b"hello", b"hello");
}

#[test]
fn moved_listener_keeps_its_sessions() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream);
    let portcullis = Portcullis::start(TestDir::new(), format!("{ON_SIGHUP}{listener}"));
    let before = portcullis.address("main");
    let mut inside = portcullis.client().connect();
    inside.ask(b"hello", b"hello");
    let seen = portcullis.seen();
    let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{}", listener.on(&["127.0.0.2:0"])));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    portcullis.event_after(seen, "the new address", |event| event.is("ready"));
    let after = portcullis.address("main");
    assert_ne!(after, before);
    portcullis.client().at(after).connect().ask(b"hello", b"hello");
    let gone = portcullis.client().at(before);
    eventually("the old address is closed", || gone.try_dial().is_err().then_some(()));
    inside.ask(b"hello", b"hello");
}

#[test]
fn two_listeners_can_swap_their_addresses() {
    let (one, two) = (Upstream::sending(b"one"), Upstream::sending(b"two"));
    let config = |one_on: SocketAddr, two_on: SocketAddr| {
        format!(
            "{ON_SIGHUP}{}{}",
            Listener::redis(&one).named("one").on(&[&one_on.to_string()]),
            Listener::redis(&two).named("two").on(&[&two_on.to_string()]),
        )
    };
    let (first, second) = (free_address(), free_address());
    let portcullis = Portcullis::start(TestDir::new(), config(first, second));
    assert_eq!(portcullis.client_of("one").connect().receive(3), b"one");
    let applied = portcullis.reconfigure(config(second, first));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    let meets = |address| portcullis.client_of("one").at(address).connect().receive(3);
    assert_eq!((meets(second), meets(first)), (b"one".to_vec(), b"two".to_vec()));
}

#[test]
fn wildcard_address_is_narrowed_without_refusing_a_connection() {
    let upstream = Upstream::echo();
    let port = free_port();
    let here = SocketAddr::from(([127, 0, 0, 1], port));
    let listener = |address: &str| format!("{ON_SIGHUP}{}", Listener::redis(&upstream).on(&[address]));
    let portcullis = Portcullis::start(TestDir::new(), listener(&format!("0.0.0.0:{port}")));
    portcullis.address("main");
    let (calls, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let deadline = Instant::now() + WAIT_TIMEOUT;
    let ten_more = |when: &str| {
        let before = calls.load(Ordering::SeqCst);
        eventually(when, || (calls.load(Ordering::SeqCst) > before + 10).then_some(()));
    };
    thread::scope(|scope| {
        let calling = scope.spawn(|| {
            let client = portcullis.client().at(here);
            while !over.load(Ordering::SeqCst) && Instant::now() < deadline {
                client.connect().ask(b"PING", b"PING");
                calls.fetch_add(1, Ordering::SeqCst);
            }
        });
        ten_more("calls before");
        let applied = portcullis.reconfigure(listener(&here.to_string()));
        assert!(applied.is("reload.applied"), "{}", applied.0);
        ten_more("calls after");
        over.store(true, Ordering::SeqCst);
        calling.join().expect("every call is taken and answered");
    });
    let elsewhere = portcullis.client().at(SocketAddr::from(([127, 0, 0, 2], port)));
    eventually("the wildcard is closed", || elsewhere.try_dial().is_err().then_some(()));
}
