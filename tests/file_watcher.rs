//! Files that change under a running process, replaced in every common way.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::SystemTime;

use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::run;
use crate::harness::{
    Authority, CrlContent, Event, Leaf, Listener, Portcullis, Request, TestDir, Upstream, eventually,
};
use crate::reload::{ON_CHANGE, served, wait_until_served};
use crate::revocation::{assert_ended, assert_lives, session, wanting, while_busy};

#[test]
fn changed_configuration_is_applied() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream);
    let portcullis = Portcullis::start(TestDir::new(), format!("{ON_CHANGE}{listener}"));
    portcullis.address("main");
    let wider = format!("{ON_CHANGE}{}", listener.trusting(&["127.0.0.0/8"]));
    portcullis.applies(|| portcullis.site.replace("portcullis.toml", &wider));
    portcullis.client().from("127.0.0.2").connect().ask(b"hello", b"hello");
}

#[test]
fn reload_after_an_edit_creates_one_generation() {
    let upstream = Upstream::echo();
    let config = |number: u64| {
        let source = format!("127.0.4.{number}");
        format!("{ADMIN}{ON_CHANGE}{}", Listener::redis(&upstream).trusting(&[&source]))
    };
    let mut portcullis = Portcullis::start(TestDir::new(), config(1));
    portcullis.address("main");
    let socket = portcullis.site.path("admin.sock");
    let reload = || run(executable().args(["reload", "--socket"]).arg(&socket)).success();
    let mut edits = 1;
    for _ in 0..4 {
        // The watcher or the command may be first.
        edits += 1;
        portcullis.site.replace("portcullis.toml", config(edits));
        let answer = reload();
        assert!(answer.contains(&format!("generation {edits} is in force")), "{answer}");
        // The watcher has read all its events when this edit is in force.
        edits += 1;
        portcullis.site.replace("portcullis.toml", config(edits));
        let is_in_force = |event: &Event| event.is("reload.applied") && event.number("generation") == edits;
        portcullis.event("the watcher's reload", is_in_force);
        let answer = reload();
        assert!(answer.starts_with("already in force since "), "{answer}");
    }
    let (_, events) = portcullis.stop();
    let applied = events.iter().filter(|event| event.is("reload.applied")).map(|event| event.number("generation"));
    assert_eq!(applied.collect::<Vec<_>>(), (2..=edits).collect::<Vec<_>>());
}

#[test]
fn edited_sources_file_is_applied() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let rule = |value: &str| format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"{value}\"\n");
    site.write("sources.toml", rule("127.0.0.2"));
    let listener = Listener::redis(&upstream).key("sources_file = \"sources.toml\"");
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    let admitted = |source: &str| portcullis.client().from(source).attempt().1.is_ok();
    assert!(admitted("127.0.0.2") && !admitted("127.0.0.3"));
    let applied = portcullis.applies(|| portcullis.site.write("sources.toml", rule("127.0.0.3")));
    assert!(!admitted("127.0.0.2") && admitted("127.0.0.3"));
    // The log has what changed.
    for rule in ["ip_addr:127.0.0.2", "ip_addr:127.0.0.3"] {
        portcullis.event(&format!("{rule} after {}", applied.0), |event| event.0.to_string().contains(rule));
    }
    portcullis.applies(|| portcullis.site.write("sources.toml", "rule = []\n"));
    assert!(!admitted("127.0.0.3") && admitted("127.0.0.1"));
}

#[test]
fn renamed_certificate_is_applied() {
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
fn certificate_written_in_place_is_applied() {
    let upstream = Upstream::echo();
    let portcullis = watching(&upstream);
    for _ in 0..3 {
        let leaf = portcullis.site.server();
        portcullis.site.install("server", &leaf);
        wait_until_served(&portcullis, &leaf);
    }
}

#[test]
fn copy_with_an_unchanged_mtime_is_applied() {
    let upstream = Upstream::echo();
    let portcullis = watching(&upstream);
    let leaf = portcullis.site.server();
    replace_in_its_time(&portcullis.site, "server.key", &leaf.key_pem());
    replace_in_its_time(&portcullis.site, "server.crt", &leaf.pem());
    wait_until_served(&portcullis, &leaf);
}

pub(crate) fn watching(upstream: &Upstream) -> Portcullis {
    let config = format!("{ON_CHANGE}{}", Listener::redis(upstream));
    let portcullis = Portcullis::start(TestDir::new(), config);
    portcullis.address("main");
    portcullis
}

/// Mounts files as Kubernetes mounts a Secret. The files are links into `..data`, which is a link to a new directory each
/// time. After `..data` is swapped, links to new files are added and links to old files removed.
fn mount(volume: &Path, files: &[(&str, String)], number: usize) {
    let fresh = volume.join(format!("..2026_01_31_{number}"));
    fs::create_dir_all(&fresh).unwrap();
    for (name, text) in files {
        fs::write(fresh.join(name), text).unwrap();
    }
    symlink(fresh.file_name().unwrap(), volume.join("..data_tmp")).unwrap();
    let old = fs::read_link(volume.join("..data"));
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    for (name, _) in files.iter().filter(|(name, _)| !volume.join(name).is_symlink()) {
        symlink(Path::new("..data").join(name), volume.join(name)).unwrap();
    }
    for entry in fs::read_dir(volume).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(b"..") && !files.iter().any(|(file, _)| name == *file) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    if let Ok(old) = old {
        fs::remove_dir_all(volume.join(old)).unwrap();
    }
}

/// A certificate with its key, as in a Secret of the kind `kubernetes.io/tls`.
fn pair(leaf: &Leaf) -> [(&'static str, String); 2] {
    [("tls.crt", leaf.pem()), ("tls.key", leaf.key_pem())]
}

#[test]
fn kubernetes_volume_swaps_are_applied() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let volume = site.path("secret");
    mount(&volume, &pair(&site.server()), 0);
    let listener = Listener::redis(&upstream)
        .to_string()
        .replace("server.crt", "secret/tls.crt")
        .replace("server.key", "secret/tls.key");
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    portcullis.address("main");
    for number in 1..=4 {
        let leaf = portcullis.site.server();
        mount(&volume, &pair(&leaf), number);
        wait_until_served(&portcullis, &leaf);
    }
}

#[test]
fn configuration_in_a_kubernetes_volume_is_applied() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
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
fn client_ca_added_to_a_bundle_is_applied() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
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
fn poll_applies_a_change_without_watching() {
    let upstream = Upstream::echo();
    let config = format!("reload.watch = false\nreload.poll = \"1s\"\n{}", Listener::redis(&upstream));
    let portcullis = Portcullis::start(TestDir::new(), config);
    portcullis.address("main");
    let leaf = portcullis.site.server();
    portcullis.site.replace("server.key", leaf.key_pem());
    portcullis.site.replace("server.crt", leaf.pem());
    wait_until_served(&portcullis, &leaf);
}

/// The number of rejected reloads.
fn rejections(portcullis: &Portcullis) -> usize {
    portcullis.events().iter().filter(|event| event.is("reload.rejected")).count()
}

#[test]
fn kubernetes_volume_with_all_files_is_applied_through_swaps() {
    const SWAPS: usize = 5;
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let volume = site.path("secret");
    // One CA stays. Another is new each time, and revokes the certificate that it has issued in the end.
    let steady = Authority::new("Steady CA");
    let brief: Vec<Authority> = (0..=SWAPS).map(|number| Authority::new(&format!("CA {number}"))).collect();
    let leaves: Vec<[Leaf; 2]> = brief.iter().map(|ca| [0, 1].map(|_| ca.issue(Request::client("app")))).collect();
    let servers: Vec<Leaf> = (0..=SWAPS).map(|_| site.server()).collect();
    let files = |number: usize| {
        let list = CrlContent::nothing(1).and(leaves[number][1].der());
        let [certificate, key] = pair(&servers[number]);
        let bundle = format!("{}{}", steady.pem(), brief[number].pem());
        [certificate, key, ("ca.crt", bundle), ("ca.crl", brief[number].list(list).pem())]
    };
    mount(&volume, &files(0), 0);
    let listener = wanting(&upstream, &["client_ca = \"secret/ca.crt\"", "client_crl = \"secret/ca.crl\""])
        .to_string()
        .replace("server.crt", "secret/tls.crt")
        .replace("server.key", "secret/tls.key");
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    let leaf = steady.issue(Request::client("steady"));
    let mut kept = session(&portcullis, &leaf);
    let gone = session(&portcullis, &leaves[0][0]);
    while_busy(&mut kept, || {
        for number in 1..=SWAPS {
            mount(&volume, &files(number), number);
        }
        eventually("the newest certificate is served", || {
            (shown_to(&portcullis, &leaf)? == servers[SWAPS].sha256()).then_some(())
        });
    });
    assert_ended(&portcullis, gone, "credential_revoked");
    assert_lives(session(&portcullis, &leaves[SWAPS][0]));
    for (leaf, reason) in [
        (&leaves[SWAPS][1], "client_certificate_revoked"),
        (&leaves[SWAPS - 1][0], "client_certificate_unknown_ca"),
        (&leaves[0][0], "client_certificate_unknown_ca"),
    ] {
        let (port, attempt) = portcullis.client().showing(leaf).attempt();
        attempt.unwrap_err();
        assert_eq!(portcullis.refusal(port), reason);
    }
    assert_lives(kept);
    assert!(rejections(&portcullis) <= 1);
}

/// The fingerprint of the server certificate that a client with this certificate receives, once it is admitted.
fn shown_to(portcullis: &Portcullis, leaf: &Leaf) -> Option<String> {
    let connection = portcullis.client().showing(leaf).attempt().1.ok()?;
    Some(crate::harness::pki::sha256(&connection.tls().peer_certificates()?[0]))
}

#[test]
fn client_certificates_in_a_kubernetes_volume_are_added_and_removed() {
    let upstream = Upstream::echo();
    let (site, anybody) = (TestDir::new(), Authority::new("Anybody's CA"));
    let volume = site.path("clients");
    let [steady, first, second, third] = ["steady", "1", "2", "3"].map(|name| anybody.issue(Request::client(name)));
    let file = |name: &'static str, leaf: &Leaf| (name, leaf.pem());
    mount(&volume, &[file("steady.crt", &steady), file("a.crt", &first)], 0);
    let listener = wanting(&upstream, &["client_certificates = \"clients/*.crt\""]);
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    let mut kept = session(&portcullis, &steady);
    let gone = session(&portcullis, &first);
    let is_in = |leaf: &Leaf| portcullis.client().showing(leaf).attempt().1.is_ok();
    assert!(!is_in(&second));
    while_busy(&mut kept, || {
        // Another file, and then other content of the same.
        mount(&volume, &[file("steady.crt", &steady), file("b.crt", &second)], 1);
        eventually("the second one gets in", || is_in(&second).then_some(()));
        assert_ended(&portcullis, gone, "credential_revoked");
        let gone = session(&portcullis, &second);
        mount(&volume, &[file("steady.crt", &steady), file("b.crt", &third)], 2);
        eventually("the third one gets in", || is_in(&third).then_some(()));
        assert_ended(&portcullis, gone, "credential_revoked");
        // Several in a row.
        mount(&volume, &[file("steady.crt", &steady), file("c.crt", &second)], 3);
        mount(&volume, &[file("steady.crt", &steady), file("d.crt", &third)], 4);
        mount(&volume, &[file("steady.crt", &steady), file("a.crt", &first), file("d.crt", &second)], 5);
        eventually("the first one gets in again", || is_in(&first).then_some(()));
    });
    assert!(is_in(&second) && !is_in(&third));
    assert_lives(kept);
    // A link may be read between its swap and its removal, at each of the three times.
    assert!(rejections(&portcullis) <= 3);
}

/// A listener with a CA and its CRL, and a session that must survive all changes of their files.
fn steady(upstream: &Upstream) -> (Portcullis, Authority, Leaf) {
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    let leaf = clients.issue(Request::client("steady"));
    site.write("clients.pem", clients.pem());
    site.write("clients.crl", clients.list(CrlContent::nothing(1)).pem());
    let listener = wanting(upstream, &["client_ca = \"clients.pem\"", "client_crl = \"clients.crl\""]);
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    portcullis.address("main");
    (portcullis, clients, leaf)
}

#[test]
fn file_written_in_two_halves_is_applied_when_complete() {
    let upstream = Upstream::echo();
    let (portcullis, clients, leaf) = steady(&upstream);
    let mut kept = session(&portcullis, &leaf);
    let other = Authority::new("Other CA");
    let read = |name: &str| fs::read_to_string(portcullis.site.path(name)).unwrap();
    let server = portcullis.site.ca.issue(Request::server(&["localhost", "renewed.test"]));
    let taken = clients.issue(Request::client("taken"));
    let of_other = other.issue(Request::client("other"));
    let gone = session(&portcullis, &taken);
    let renewed = format!("# renewed\n{}", read("server.key"));
    for (file, text) in [
        ("clients.pem", format!("{}{}", clients.pem(), other.pem())),
        ("clients.crl", clients.list(CrlContent::nothing(2).and(taken.der())).pem()),
        ("server.key", renewed),
    ] {
        // In the middle of the last block, as where it ends between two the first half is a whole file.
        let (first, rest) = text.split_at(text.len() - 100);
        let before = rejections(&portcullis);
        while_busy(&mut kept, || {
            let mut open = fs::File::create(portcullis.site.path(file)).unwrap();
            let rejected = portcullis.reload_after(|| open.write_all(first.as_bytes()).unwrap());
            assert!(rejected.is("reload.rejected") && rejected.text("error").contains(file), "{}", rejected.0);
            // The change is kept, and the old policy is in force.
            assert_lives(session(&portcullis, &leaf));
            portcullis.applies(|| open.write_all(rest.as_bytes()).unwrap());
        });
        assert_eq!(rejections(&portcullis), before + 1, "{file}");
    }
    assert_ended(&portcullis, gone, "credential_revoked");
    assert_lives(session(&portcullis, &of_other));

    // The other half may also come at once.
    let before = rejections(&portcullis);
    while_busy(&mut kept, || {
        for (file, text) in [("server.crt", server.pem()), ("server.key", server.key_pem())] {
            let (first, rest) = text.split_at(text.len() / 2);
            let mut open = fs::File::create(portcullis.site.path(file)).unwrap();
            open.write_all(first.as_bytes()).unwrap();
            open.write_all(rest.as_bytes()).unwrap();
        }
        let renewed = || (shown_to(&portcullis, &leaf)? == server.sha256()).then_some(());
        eventually("the new certificate is served", renewed);
    });
    assert!(rejections(&portcullis) <= before + 1);
    assert_lives(kept);
}

#[test]
fn crls_and_cas_with_an_unchanged_mtime_are_applied() {
    let upstream = Upstream::echo();
    let (portcullis, clients, leaf) = steady(&upstream);
    let taken = clients.issue(Request::client("taken"));
    let (kept, gone) = (session(&portcullis, &leaf), session(&portcullis, &taken));
    let list = clients.list(CrlContent::nothing(2).and(taken.der())).pem();
    portcullis.applies(|| replace_in_its_time(&portcullis.site, "clients.crl", &list));
    assert_ended(&portcullis, gone, "credential_revoked");
    let other = Authority::new("Other CA");
    let both = format!("{}{}", clients.pem(), other.pem());
    portcullis.applies(|| replace_in_its_time(&portcullis.site, "clients.pem", &both));
    let gone = session(&portcullis, other.issue(Request::client("app")));
    portcullis.applies(|| replace_in_its_time(&portcullis.site, "clients.pem", &clients.pem()));
    assert_ended(&portcullis, gone, "credential_revoked");
    assert_lives(kept);
}

/// Puts a copy that has the modification time of the old file over that.
fn replace_in_its_time(site: &TestDir, name: &str, text: &str) {
    let old = site.path(name);
    let time: SystemTime = fs::metadata(&old).unwrap().modified().unwrap();
    site.write("copy", text);
    let copy = fs::File::options().write(true).open(site.path("copy")).unwrap();
    copy.set_modified(time).unwrap();
    fs::rename(site.path("copy"), &old).unwrap();
}

#[test]
fn certificate_before_its_key_causes_at_most_one_rejection() {
    let upstream = Upstream::echo();
    let portcullis = watching(&upstream);
    let mut kept = portcullis.client().connect();
    while_busy(&mut kept, || {
        for in_place in [false, true, false, true] {
            let (leaf, before) = (portcullis.site.server(), rejections(&portcullis));
            let put = |name: &str, text: String| match in_place {
                true => portcullis.site.write(name, text),
                false => portcullis.site.replace(name, text),
            };
            put("server.crt", leaf.pem());
            // A client that connects in between gets the old pair, or already the new one.
            served(&portcullis);
            put("server.key", leaf.key_pem());
            wait_until_served(&portcullis, &leaf);
            // The log has the rejection, if there was one, before this line.
            portcullis.event("the reload", |event| {
                event.is("reload.applied") && event.0.to_string().contains(&leaf.sha256())
            });
            assert!(rejections(&portcullis) <= before + 1);
        }
    });
    let events = portcullis.events();
    assert!(!events.iter().any(|event| event.is("connection.denied")));
}
