//! Reloads that are rejected, and how they succeed later.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use crate::config::broken_rules;
use crate::file_watcher::watching;
use crate::harness::client::port;
use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{free_address, run};
use crate::harness::{Listener, Portcullis, TestDir, Upstream, eventually, wire};
use crate::reload::{ON_SIGHUP, served};

#[test]
fn repeated_error_is_reported_once() {
    let upstream = Upstream::echo();
    let config = format!("reload.watch = true\nreload.poll = \"200ms\"\n{}", Listener::redis(&upstream));
    let portcullis = Portcullis::start(TestDir::new(), &config);
    portcullis.address("main");
    let rejected = portcullis.reload_after(|| portcullis.site.replace("portcullis.toml", "[[listener"));
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    let (before, several) = (portcullis.bytes_read(), 4 * config.len() as u64);
    eventually("it polls again, several times", || (portcullis.bytes_read() > before + several).then_some(()));
    assert_eq!(portcullis.events().iter().filter(|event| event.is("reload.rejected")).count(), 1);
    portcullis.applies(|| portcullis.site.replace("portcullis.toml", &config));
}

/// Breaks a file, and expects that nothing changes, that the error names the file, and that repairing it is enough.
fn assert_survives(portcullis: &Portcullis, file: &str, breaking: impl FnOnce(), mended: &str) {
    let before = served(portcullis);
    let rejected = portcullis.reload_after(|| {
        breaking();
        portcullis.hang_up();
    });
    assert!(rejected.is("reload.rejected"), "{file}: {}", rejected.0);
    assert!(rejected.text("error").contains(file), "{file} is not named: {}", rejected.0);
    assert_eq!(served(portcullis), before);
    portcullis.client().connect().ask(b"hello", b"hello");
    let mut untrusted = portcullis.client().from("127.0.0.9").dial();
    assert_eq!(wire::read_until_closed(&mut untrusted), b"");
    assert_eq!(portcullis.refusal(port(&untrusted)), "untrusted_source");
    portcullis.applies(|| {
        portcullis.site.replace(file, mended);
        portcullis.hang_up();
    });
    portcullis.client().connect().ask(b"hello", b"hello");
}

#[test]
fn rejected_reload_changes_nothing_until_the_file_is_fixed() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    site.write("clients.pem", site.ca.pem());
    site.write("sources.toml", "rule = []\n");
    let listener = Listener::redis(&upstream)
        .key("sources_file = \"sources.toml\"")
        .tls("client_auth = \"optional\"")
        .tls("client_ca = \"clients.pem\"");
    let config = format!("{ON_SIGHUP}{listener}");
    let portcullis = Portcullis::start(site, &config);
    let mut inside = portcullis.client().connect();
    inside.ask(b"hello", b"hello");

    let site = &portcullis.site;
    let read = |name: &str| fs::read_to_string(site.path(name)).unwrap();
    let (certificate, key) = (read("server.crt"), read("server.key"));
    let (bundle, sources) = (read("clients.pem"), read("sources.toml"));
    let other_key = site.server().key_pem();
    let half = |text: &str| text[..text.len() / 2].to_owned();
    let host_bits = config.replace("[\"127.0.0.1\"]", "[\"10.1.2.3/8\"]");
    let broken_files = [
        ("portcullis.toml", format!("{config}\n[[listener"), &config),
        ("portcullis.toml", host_bits, &config),
        ("portcullis.toml", String::new(), &config),
        ("portcullis.toml", half(&config), &config),
        ("server.crt", String::new(), &certificate),
        ("server.crt", half(&certificate), &certificate),
        ("server.key", String::new(), &key),
        ("server.key", half(&key), &key),
        ("server.key", other_key, &key),
        ("clients.pem", String::new(), &bundle),
        ("clients.pem", format!("{bundle}{}", half(&bundle)), &bundle),
        ("sources.toml", String::new(), &sources),
        ("sources.toml", "[[rule]]\ntype = \"ip_addr\"\nvalue = \"1.2.3\"\n".into(), &sources),
    ];
    for (file, text, mended) in broken_files {
        assert_survives(&portcullis, file, || site.replace(file, text), mended);
    }
    for (file, mended) in [("server.crt", &certificate), ("server.key", &key)] {
        assert_survives(&portcullis, file, || fs::remove_file(site.path(file)).unwrap(), mended);
    }
    inside.ask(b"hello", b"hello");
}

#[test]
fn port_in_use_rejects_the_whole_reload() {
    let upstream = Upstream::echo();
    let main = Listener::redis(&upstream);
    let portcullis = Portcullis::start(TestDir::new(), format!("{ON_SIGHUP}{main}"));
    portcullis.address("main");
    // The kernel gives a port of this range to no connection once it is free.
    let taken = TcpListener::bind(free_address()).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let free = free_address();
    let config = format!(
        "{ON_SIGHUP}{}{}{}",
        main.clone().trusting(&["127.0.0.2"]),
        main.clone().named("fresh").on(&[&free.to_string()]),
        main.clone().named("taken").on(&[&address]),
    );
    let rejected = portcullis.reconfigure(&config);
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    assert!(rejected.text("error").contains(&address), "{}", rejected.0);
    // Neither the new sources nor the new listener that could have been bound are there.
    portcullis.client().connect().ask(b"hello", b"hello");
    portcullis.client().at(free).try_dial().unwrap_err();

    drop(taken);
    let applied = portcullis.reconfigure(&config);
    assert!(applied.is("reload.applied"), "{}", applied.0);
    portcullis.client_of("taken").connect().ask(b"hello", b"hello");
}

#[test]
fn rejected_reload_is_retried_when_the_watched_file_is_fixed() {
    let upstream = Upstream::echo();
    let portcullis = watching(&upstream);
    let leaf = portcullis.site.server();
    let rejected = portcullis.reload_after(|| portcullis.site.replace("server.crt", leaf.pem()));
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    portcullis.client().connect().ask(b"hello", b"hello");
    portcullis.applies(|| portcullis.site.replace("server.key", leaf.key_pem()));
    assert_eq!(served(&portcullis), leaf.sha256());
}

#[test]
fn rejected_reload_is_retried_when_its_port_becomes_free() {
    let upstream = Upstream::echo();
    let polling = "reload.watch = false\nreload.poll = \"200ms\"\n";
    let main = Listener::redis(&upstream);
    let portcullis = Portcullis::start(TestDir::new(), format!("{polling}{main}"));
    portcullis.address("main");
    // The kernel gives a port of this range to no connection once it is free.
    let taken = TcpListener::bind(free_address()).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = format!("{polling}{main}{}", main.clone().named("taken").on(&[&address]));
    let rejected = portcullis.reload_after(|| portcullis.site.replace("portcullis.toml", &config));
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    for words in ["portcullis.toml", &address] {
        assert!(rejected.text("error").contains(words), "no {words} in {}", rejected.0);
    }

    // The reload is retried, and the error is logged only once.
    let (before, several) = (portcullis.bytes_read(), 4 * config.len() as u64);
    eventually("it looks again", || (portcullis.bytes_read() > before + several).then_some(()));
    portcullis.applies(|| drop(taken));
    assert_eq!(portcullis.events().iter().filter(|event| event.is("reload.rejected")).count(), 1);
    portcullis.client_of("taken").connect().ask(b"hello", b"hello");
}

#[test]
fn many_broken_rules_are_rejected_with_a_short_error() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    site.write("sources.toml", "rule = []\n");
    let listener = Listener::redis(&upstream).key("sources_file = \"sources.toml\"");
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{listener}"));
    portcullis.address("main");
    let rejected = portcullis.reload_after(|| {
        portcullis.site.replace("sources.toml", broken_rules(40_000));
        portcullis.hang_up();
    });
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    let error = rejected.text("error");
    assert!(error.contains("sources.toml") && error.contains("and 39900 more problems"), "{error}");
    assert!(error.len() < 64 * 1024, "{} bytes", error.len());
    portcullis.client().connect().ask(b"hello", b"hello");
}

/// Secrets in places where operators write them by mistake.
const MISPLACED: [&str; 6] = [
    "key_passphrase_file = \"credential:hunter2 and more\"",
    "key_passphrase_file = \"env:HUNTER2\"",
    "upstream = \"127.0.0.1:hunter2\"",
    "upstream = \"user:hunter2@127.0.0.1:1\"",
    "upstream = \"postgres://user:hunter2%40127.0.0.1:1/orders\"",
    "listen = \"127.0.0.1:hunter2\"",
];

#[test]
fn misplaced_secrets_appear_in_no_output_and_no_log_line() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).to_string();
    let mut portcullis = Portcullis::start(TestDir::new(), format!("{ADMIN}{ON_SIGHUP}{listener}"));
    portcullis.address("main");
    let socket = portcullis.site.path("admin.sock");
    let [file, alone] = ["portcullis.toml", "alone.toml"].map(|name| portcullis.site.path(name));
    let ask = |arguments: &[&str], option: &str, value: &Path| {
        let outcome = run(executable().args(arguments).arg(option).arg(value));
        let text = outcome.text() + &outcome.stderr;
        assert!(!text.to_lowercase().contains("hunter2"), "{arguments:?}: {text}");
        text
    };
    for misplaced in MISPLACED {
        let key = misplaced.split(' ').next().unwrap();
        let config: String = match key {
            "key_passphrase_file" => {
                listener.replace("key = \"server.key\"", &format!("key = \"server.key\", {misplaced}"))
            }
            _ => listener
                .lines()
                .map(|line| if line.starts_with(&format!("{key} =")) { misplaced } else { line })
                .map(|line| format!("{line}\n"))
                .collect(),
        };
        assert!(config.contains(misplaced), "{config}");
        portcullis.site.replace("portcullis.toml", format!("{ADMIN}{ON_SIGHUP}{config}"));
        // Without [admin] explain goes by the file.
        portcullis.site.write("alone.toml", &config);
        let explain = ["explain", "--listener", "main", "--source", "127.0.0.1"];
        for (arguments, file) in
            [(&["check"][..], &file), (&["check", "--json"], &file), (&["run"], &file), (&explain, &alone)]
        {
            let text = ask(arguments, "-c", file);
            assert!(text.contains(key), "{arguments:?} names the key: {text}");
        }
        assert!(ask(&["reload"], "--socket", &socket).contains(key));
        assert!(ask(&["status"], "--socket", &socket).contains(key));
        assert!(ask(&["status", "--json"], "--socket", &socket).contains(key));
    }
    let errors = portcullis.errors();
    let (_, events) = portcullis.stop();
    assert_eq!(events.iter().filter(|event| event.is("reload.rejected")).count(), MISPLACED.len());
    assert!(!errors.to_lowercase().contains("hunter2"), "{errors}");
    for event in events {
        assert!(!event.0.to_string().to_lowercase().contains("hunter2"), "{}", event.0);
    }
}
