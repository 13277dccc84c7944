//! Reload: whole or not at all, and without a client noticing.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::SystemTime;

use crate::harness::client::port;
use crate::harness::pki::sha256;
use crate::harness::program::free_address;
use crate::harness::{Authority, Leaf, Listener, Portcullis, Request, Site, Upstream, eventually, wire};

/// Reloads on SIGHUP only.
const ON_SIGHUP: &str = "reload.watch = false\nreload.poll = \"0s\"\n";
/// Reloads on change events only.
const ON_CHANGE: &str = "reload.watch = true\nreload.poll = \"0s\"\n";

/// The fingerprint of the certificate that a new client meets.
fn served(portcullis: &Portcullis) -> String {
    let connection = portcullis.client().connect();
    sha256(&connection.tls().peer_certificates().unwrap()[0])
}

/// Waits until new clients meet this certificate.
fn wait_until_served(portcullis: &Portcullis, leaf: &Leaf) {
    eventually("the new certificate is served", || (served(portcullis) == leaf.sha256()).then_some(()));
}

#[test]
fn sighup_applies_a_new_configuration() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream);
    let portcullis = Portcullis::start(Site::new(), format!("{ON_SIGHUP}{listener}"));
    let mut inside = portcullis.client().connect();
    inside.ask(b"hello", b"hello");
    let mut last = 0;
    for sources in [&["127.0.0.2"][..], &["127.0.0.1", "127.0.0.2"], &["127.0.0.1"]] {
        let listener = listener.clone().trusting(sources);
        let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{listener}"));
        assert!(applied.is("reload.applied"), "{}", applied.0);
        assert!(applied.number("generation") > last, "{}", applied.0);
        last = applied.number("generation");
        for source in ["127.0.0.1", "127.0.0.2"] {
            let let_in = portcullis.client().from(source).attempt().1.is_ok();
            assert_eq!(let_in, sources.contains(&source), "{source} of {sources:?}");
        }
    }
    inside.ask(b"hello", b"hello");
}

#[test]
fn sighup_without_a_change_says_so_and_touches_nobody() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let mut inside = portcullis.client().connect();
    inside.ask(b"hello", b"hello");
    for _ in 0..3 {
        portcullis.applies(|| portcullis.process.signal("HUP"));
        inside.ask(b"hello", b"hello");
        portcullis.client().connect().ask(b"hello", b"hello");
    }
}

#[test]
fn a_handshake_begun_under_the_old_policy_is_judged_by_the_new_one() {
    let upstream = Upstream::silent();
    let listener = Listener::postgres(&upstream);
    let portcullis = Portcullis::start(Site::new(), format!("{ON_SIGHUP}{listener}"));
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
    // It may be told so, if it is told anything.
    assert!(words.is_err() || words.is_ok_and(|words| words.is_empty() || words.starts_with(b"E")));
    let reason = portcullis.refusal(port);
    assert!(matches!(reason.as_str(), "untrusted_source" | "source_revoked"), "{reason}");
    upstream.assert_untouched();
}

#[test]
fn two_quick_reloads_end_with_the_newest_files() {
    let upstream = Upstream::echo();
    let config = |source: &str| format!("{ON_SIGHUP}{}", Listener::redis(&upstream).trusting(&[source]));
    let portcullis = Portcullis::start(Site::new(), config("127.0.0.1"));
    portcullis.address("main");
    for round in 0..5 {
        let newest = format!("127.0.2.{}", round + 1);
        for source in ["127.0.1.1", "127.0.1.2", &newest] {
            portcullis.site.replace("portcullis.toml", config(source));
            portcullis.process.signal("HUP");
        }
        let newcomer = portcullis.client().from(&newest);
        eventually("the newest is in force", || newcomer.attempt().1.is_ok().then_some(()));
    }
}

#[test]
fn a_listener_on_port_zero_keeps_its_port() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream);
    let portcullis = Portcullis::start(Site::new(), format!("{ON_SIGHUP}{listener}"));
    let before = portcullis.address("main");
    let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{}", listener.trusting(&["127.0.0.0/8"])));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    assert_eq!(portcullis.address("main"), before);
    portcullis.client().at(before).from("127.0.0.2").connect().ask(b"hello", b"hello");
}

#[test]
fn a_changed_configuration_is_noticed() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream);
    let portcullis = Portcullis::start(Site::new(), format!("{ON_CHANGE}{listener}"));
    portcullis.address("main");
    let wider = format!("{ON_CHANGE}{}", listener.trusting(&["127.0.0.0/8"]));
    portcullis.applies(|| portcullis.site.replace("portcullis.toml", &wider));
    portcullis.client().from("127.0.0.2").connect().ask(b"hello", b"hello");
}

#[test]
fn an_edited_sources_file_is_noticed() {
    let upstream = Upstream::echo();
    let site = Site::new();
    let rule = |value: &str| format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"{value}\"\n");
    site.write("sources.toml", rule("127.0.0.2"));
    let listener = Listener::redis(&upstream).key("sources_file = \"sources.toml\"");
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    let let_in = |source: &str| portcullis.client().from(source).attempt().1.is_ok();
    assert!(let_in("127.0.0.2") && !let_in("127.0.0.3"));
    let applied = portcullis.applies(|| portcullis.site.write("sources.toml", rule("127.0.0.3")));
    assert!(!let_in("127.0.0.2") && let_in("127.0.0.3"));
    // It says what changed.
    let words = applied.0.to_string();
    let all: Vec<String> = portcullis.events().iter().map(|event| event.0.to_string()).collect();
    for rule in ["ip_addr:127.0.0.2", "ip_addr:127.0.0.3"] {
        assert!(all.iter().any(|event| event.contains(rule)), "{rule} is not mentioned: {words}");
    }
    portcullis.applies(|| portcullis.site.write("sources.toml", "rule = []\n"));
    assert!(!let_in("127.0.0.3") && let_in("127.0.0.1"));
}

#[test]
fn a_certificate_renamed_over_the_old_one_is_noticed() {
    let upstream = Upstream::echo();
    let portcullis = watching(&upstream);
    for _ in 0..3 {
        let leaf = portcullis.site.server();
        portcullis.site.replace("server.key", leaf.key_pem());
        portcullis.site.replace("server.crt", leaf.pem());
        wait_until_served(&portcullis, &leaf);
    }
}

#[test]
fn a_certificate_written_in_place_is_noticed() {
    let upstream = Upstream::echo();
    let portcullis = watching(&upstream);
    for _ in 0..3 {
        let leaf = portcullis.site.server();
        portcullis.site.install("server", &leaf);
        wait_until_served(&portcullis, &leaf);
    }
}

#[test]
fn a_copy_that_keeps_the_time_of_the_old_file_is_noticed() {
    let upstream = Upstream::echo();
    let portcullis = watching(&upstream);
    let leaf = portcullis.site.server();
    for (name, text) in [("server.key", leaf.key_pem()), ("server.crt", leaf.pem())] {
        let old = portcullis.site.path(name);
        let time: SystemTime = fs::metadata(&old).unwrap().modified().unwrap();
        portcullis.site.write("copy", text);
        let copy = fs::File::options().write(true).open(portcullis.site.path("copy")).unwrap();
        copy.set_modified(time).unwrap();
        fs::rename(portcullis.site.path("copy"), &old).unwrap();
    }
    wait_until_served(&portcullis, &leaf);
}

fn watching(upstream: &Upstream) -> Portcullis {
    let config = format!("{ON_CHANGE}{}", Listener::redis(upstream));
    let portcullis = Portcullis::start(Site::new(), config);
    portcullis.address("main");
    portcullis
}

/// Mounts a certificate as Kubernetes mounts a Secret: files are links into `..data`, which is a link to a directory
/// that is new every time.
fn mount(volume: &Path, leaf: &Leaf, number: usize) {
    let fresh = volume.join(format!("..2026_01_31_{number}"));
    fs::create_dir_all(&fresh).unwrap();
    fs::write(fresh.join("tls.crt"), leaf.pem()).unwrap();
    fs::write(fresh.join("tls.key"), leaf.key_pem()).unwrap();
    symlink(fresh.file_name().unwrap(), volume.join("..data_tmp")).unwrap();
    let old = fs::read_link(volume.join("..data"));
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if let Ok(old) = old {
        fs::remove_dir_all(volume.join(old)).unwrap();
    }
}

#[test]
fn a_kubernetes_volume_is_followed_through_several_swaps() {
    let upstream = Upstream::echo();
    let site = Site::new();
    let volume = site.path("secret");
    mount(&volume, &site.server(), 0);
    symlink("..data/tls.crt", volume.join("tls.crt")).unwrap();
    symlink("..data/tls.key", volume.join("tls.key")).unwrap();
    let listener = Listener::redis(&upstream)
        .to_string()
        .replace("server.crt", "secret/tls.crt")
        .replace("server.key", "secret/tls.key");
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    portcullis.address("main");
    for number in 1..=4 {
        let leaf = portcullis.site.server();
        mount(&volume, &leaf, number);
        wait_until_served(&portcullis, &leaf);
    }
}

#[test]
fn a_configuration_from_a_kubernetes_volume_is_followed_too() {
    let upstream = Upstream::echo();
    let site = Site::new();
    let volume = site.path("config");
    let swap = |volume: &Path, number: usize, config: &str| {
        let fresh = volume.join(format!("..2026_01_31_{number}"));
        fs::create_dir_all(&fresh).unwrap();
        fs::write(fresh.join("portcullis.toml"), config).unwrap();
        symlink(fresh.file_name().unwrap(), volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    };
    let config = |source: &str| format!("{ON_CHANGE}{}", Listener::redis(&upstream).trusting(&[source]));
    swap(&volume, 0, &config("127.0.0.1"));
    symlink("config/..data/portcullis.toml", site.path("portcullis.toml")).unwrap();
    let portcullis = Portcullis::start(site, config("127.0.0.1"));
    portcullis.address("main");
    for number in 1..=3 {
        let source = format!("127.0.3.{number}");
        portcullis.applies(|| swap(&volume, number, &config(&source)));
        portcullis.client().from(&source).connect().ask(b"hello", b"hello");
    }
}

#[test]
fn the_same_mistake_is_reported_once_however_often_it_is_looked_at() {
    let upstream = Upstream::echo();
    let config = format!("reload.watch = true\nreload.poll = \"200ms\"\n{}", Listener::redis(&upstream));
    let portcullis = Portcullis::start(Site::new(), &config);
    portcullis.address("main");
    let rejected = portcullis.reload_after(|| portcullis.site.replace("portcullis.toml", "[[listener"));
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    // Time for several polls.
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(portcullis.events().iter().filter(|event| event.is("reload.rejected")).count(), 1);
    portcullis.applies(|| portcullis.site.replace("portcullis.toml", &config));
}

#[test]
fn a_client_ca_added_to_a_bundle_is_noticed() {
    let upstream = Upstream::echo();
    let site = Site::new();
    let (old, new) = (Authority::new("Old CA"), Authority::new("New CA"));
    site.write("clients.pem", old.pem());
    let listener = Listener::redis(&upstream).tls("client_auth = \"required\"").tls("client_ca = \"clients.pem\"");
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    let attempt = |ca: &Authority| portcullis.client().showing(ca.issue(Request::client("app"))).attempt().1.is_ok();
    assert!(attempt(&old) && !attempt(&new));
    let both = format!("{}{}", old.pem(), new.pem());
    portcullis.applies(|| portcullis.site.replace("clients.pem", both));
    assert!(attempt(&old) && attempt(&new));
}

#[test]
fn the_poll_finds_a_change_where_nothing_is_watched() {
    let upstream = Upstream::echo();
    let config = format!("reload.watch = false\nreload.poll = \"1s\"\n{}", Listener::redis(&upstream));
    let portcullis = Portcullis::start(Site::new(), config);
    portcullis.address("main");
    let leaf = portcullis.site.server();
    portcullis.site.replace("server.key", leaf.key_pem());
    portcullis.site.replace("server.crt", leaf.pem());
    wait_until_served(&portcullis, &leaf);
}

#[test]
fn a_listener_can_be_added_and_removed() {
    let upstream = Upstream::echo();
    let main = Listener::redis(&upstream);
    let portcullis = Portcullis::start(Site::new(), format!("{ON_SIGHUP}{main}"));
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
fn a_moved_listener_keeps_its_sessions() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream);
    let portcullis = Portcullis::start(Site::new(), format!("{ON_SIGHUP}{listener}"));
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
    let (one, two) = (Upstream::saying(b"one"), Upstream::saying(b"two"));
    let config = |one_on: SocketAddr, two_on: SocketAddr| {
        format!(
            "{ON_SIGHUP}{}{}",
            Listener::redis(&one).named("one").on(&[&one_on.to_string()]),
            Listener::redis(&two).named("two").on(&[&two_on.to_string()]),
        )
    };
    let (first, second) = (free_address(), free_address());
    let portcullis = Portcullis::start(Site::new(), config(first, second));
    assert_eq!(portcullis.client_of("one").connect().receive(3), b"one");
    let applied = portcullis.reconfigure(config(second, first));
    assert!(applied.is("reload.applied"), "{}", applied.0);
    let meets = |address| portcullis.client_of("one").at(address).connect().receive(3);
    assert_eq!((meets(second), meets(first)), (b"one".to_vec(), b"two".to_vec()));
}

/// Breaks something, and expects nothing to change, the file to be named, and mending to heal.
fn assert_survives(portcullis: &Portcullis, file: &str, breaking: impl FnOnce(), mended: &str) {
    let before = served(portcullis);
    let rejected = portcullis.reload_after(|| {
        breaking();
        portcullis.process.signal("HUP");
    });
    assert!(rejected.is("reload.rejected"), "{file}: {}", rejected.0);
    assert!(rejected.text("error").contains(file), "{file} is not named: {}", rejected.0);
    assert_eq!(served(portcullis), before);
    portcullis.client().connect().ask(b"hello", b"hello");
    let mut stranger = portcullis.client().from("127.0.0.9").dial();
    assert_eq!(wire::last_words(&mut stranger), b"");
    assert_eq!(portcullis.refusal(port(&stranger)), "untrusted_source");
    portcullis.applies(|| {
        portcullis.site.replace(file, mended);
        portcullis.process.signal("HUP");
    });
    portcullis.client().connect().ask(b"hello", b"hello");
}

#[test]
fn a_bad_reload_changes_nothing_and_is_healed_by_mending_the_file() {
    let upstream = Upstream::echo();
    let site = Site::new();
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
fn a_port_in_use_rejects_the_whole_reload() {
    let upstream = Upstream::echo();
    let main = Listener::redis(&upstream);
    let portcullis = Portcullis::start(Site::new(), format!("{ON_SIGHUP}{main}"));
    portcullis.address("main");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
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
fn a_bad_reload_heals_by_itself_when_the_watched_file_is_mended() {
    let upstream = Upstream::echo();
    let portcullis = watching(&upstream);
    let leaf = portcullis.site.server();
    let rejected = portcullis.reload_after(|| portcullis.site.replace("server.crt", leaf.pem()));
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    portcullis.client().connect().ask(b"hello", b"hello");
    portcullis.applies(|| portcullis.site.replace("server.key", leaf.key_pem()));
    assert_eq!(served(&portcullis), leaf.sha256());
}
