//! Files that change under a running process, in every way in which files are replaced.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::SystemTime;

use crate::harness::{Authority, Leaf, Listener, Portcullis, Request, Site, Upstream};
use crate::reload::{ON_CHANGE, wait_until_served};

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

pub(crate) fn watching(upstream: &Upstream) -> Portcullis {
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
