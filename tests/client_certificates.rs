//! Client certificates: which are admitted, which are denied, and the audit events of both.

use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, HandshakeKind};

use crate::harness::client::alert;
use crate::harness::openssl::{openssl, s_client};
use crate::harness::portcullis::executable;
use crate::harness::program::run;
use crate::harness::{Authority, Listener, Portcullis, Request, TestDir, Upstream};
use crate::reload::ON_SIGHUP;

/// A listener that asks for certificates of the CA in `clients.pem`.
fn asking(client_auth: &str, upstream: &Upstream) -> Listener {
    Listener::redis(upstream).tls(&format!("client_auth = \"{client_auth}\"")).tls("client_ca = \"clients.pem\"")
}

/// A site whose `clients.pem` has one CA, which is returned.
fn site() -> (TestDir, Authority) {
    let (site, clients) = (TestDir::new(), Authority::new("Clients CA"));
    site.write("clients.pem", clients.pem());
    (site, clients)
}

#[test]
fn client_with_a_trusted_certificate_is_admitted_and_named() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    let portcullis = Portcullis::start(site, asking("required", &upstream));
    for version in [&TLS12, &TLS13] {
        let leaf = clients.issue(Request::client("app").organization("Acme, Inc."));
        let sha256 = leaf.sha256();
        let (port, connection) = portcullis.client().speaking(version).showing(leaf).attempt();
        drop(connection.unwrap());
        for event in [portcullis.opened(port), portcullis.ending(port)] {
            // RFC 4514: the last part first, special characters escaped.
            assert_eq!(event.text("client_subject"), r"O=Acme\, Inc.,CN=app");
            assert_eq!(event.text("client_sha256"), sha256);
        }
    }
}

#[test]
fn client_without_a_certificate_is_denied_before_the_upstream_is_dialled() {
    let upstream = Upstream::silent();
    let (site, _) = site();
    let portcullis = Portcullis::start(site, asking("required", &upstream));
    for version in [&TLS12, &TLS13] {
        let (port, connection) = portcullis.client().speaking(version).attempt();
        connection.unwrap_err();
        assert_eq!(portcullis.refusal(port), "client_certificate_missing");
    }
    upstream.assert_untouched();
}

#[test]
fn each_bad_certificate_is_denied_with_its_reason() {
    let upstream = Upstream::silent();
    let (site, clients) = site();
    let untrusted = Authority::new("Another CA");
    // The same name as the trusted CA, with another key.
    let impostor = Authority::new("Clients CA");
    let portcullis = Portcullis::start(site, asking("required", &upstream));
    for version in [&TLS12, &TLS13] {
        for (leaf, reason) in [
            (untrusted.issue(Request::client("app")), "client_certificate_unknown_ca"),
            (impostor.issue(Request::client("app")), "client_certificate_unknown_ca"),
            (clients.issue(Request::client("app").valid(-20, -10)), "client_certificate_expired"),
            (clients.issue(Request::client("app").valid(10, 20)), "client_certificate_invalid"),
            (clients.issue(Request::server(&["app"])), "client_certificate_invalid"),
        ] {
            let (port, connection) = portcullis.client().speaking(version).showing(leaf).attempt();
            connection.unwrap_err();
            assert_eq!(portcullis.refusal(port), reason);
        }
    }
    upstream.assert_untouched();
}

#[test]
fn denied_client_receives_an_alert() {
    let upstream = Upstream::silent();
    let (site, clients) = site();
    let untrusted = Authority::new("Another CA");
    let portcullis = Portcullis::start(site, asking("required", &upstream));
    let client = || portcullis.client().speaking(&TLS13);
    for (client, expected) in [
        (client(), AlertDescription::CertificateRequired),
        (client().showing(untrusted.issue(Request::client("app"))), AlertDescription::UnknownCA),
        (client().showing(clients.issue(Request::client("app").valid(-20, -10))), AlertDescription::CertificateExpired),
    ] {
        let error = client.attempt().1.unwrap_err();
        assert_eq!(alert(&error), Some(expected), "{error}");
    }
}

#[test]
fn recreated_ca_with_the_old_name_is_unknown() {
    let upstream = Upstream::silent();
    let site = TestDir::new();
    for directory in ["old", "new"] {
        run(executable().args(["certs", "init", directory]).current_dir(site.directory())).success();
    }
    let subject = |file| openssl(&site, &["x509", "-in", file, "-noout", "-subject"]);
    assert_eq!(subject("old/ca.crt"), subject("new/ca.crt"));
    let listener = Listener::redis(&upstream).tls("client_auth = \"required\"").tls("client_ca = \"new/ca.crt\"");
    let portcullis = Portcullis::start(site, listener);
    for version in ["-tls1_2", "-tls1_3"] {
        let options = [version, "-cert", "old/client.crt", "-key", "old/client.key"];
        let (address, seen) = (portcullis.address("main"), portcullis.seen());
        let stderr = run(&mut s_client(&portcullis.site, address, &options)).stderr;
        assert!(stderr.contains("alert unknown ca"), "{version}: {stderr}");
        let denied = portcullis.event_after(seen, "a refusal", |event| event.is("connection.denied"));
        assert_eq!(denied.reason(), "client_certificate_unknown_ca");
    }
    upstream.assert_untouched();
}

#[test]
fn bundle_with_a_byte_order_mark_is_read_completely() {
    let upstream = Upstream::echo();
    let (site, first) = site();
    let second = Authority::new("Second CA");
    site.write("clients.pem", format!("\u{feff}{}{}", first.pem(), second.pem()));
    let portcullis = Portcullis::start(site, asking("required", &upstream));
    for authority in [&first, &second] {
        portcullis.client().showing(authority.issue(Request::client("app"))).attempt().1.unwrap();
    }
}

#[test]
fn certificate_of_an_intermediate_is_verified_up_to_its_root() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    let portcullis = Portcullis::start(site, asking("required", &upstream));
    let leaf = clients.intermediate("Team CA").issue(Request::client("app"));
    portcullis.client().showing(leaf).attempt().1.unwrap();
}

#[test]
fn optional_certificate_may_be_missing_and_must_be_valid() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    let portcullis = Portcullis::start(site, asking("optional", &upstream));
    let (port, connection) = portcullis.client().attempt();
    connection.unwrap();
    assert!(!portcullis.opened(port).has("client_subject"));

    let leaf = clients.issue(Request::client("app"));
    let (port, connection) = portcullis.client().showing(leaf).attempt();
    connection.unwrap();
    assert_eq!(portcullis.opened(port).text("client_subject"), "CN=app");

    let leaf = Authority::new("Another CA").issue(Request::client("app"));
    let (port, connection) = portcullis.client().showing(leaf).attempt();
    connection.unwrap_err();
    assert_eq!(portcullis.refusal(port), "client_certificate_unknown_ca");
}

#[test]
fn certificate_is_ignored_without_client_auth() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let leaf = Authority::new("Another CA").issue(Request::client("app"));
    let (port, connection) = portcullis.client().showing(leaf).attempt();
    connection.unwrap();
    assert!(!portcullis.opened(port).has("client_subject"));
}

#[test]
fn every_ca_of_a_bundle_is_a_trust_anchor() {
    let upstream = Upstream::echo();
    let (site, first) = site();
    let twins = [Authority::new("Twin CA"), Authority::new("Twin CA")];
    let root = Authority::new("Root CA");
    let middle = root.intermediate("Only this one is in the bundle");
    let last = Authority::new("Last CA");
    site.write(
        "clients.pem",
        format!(
            "# comments are fine\n{}Bag Attributes\n    localKeyID: 01 02\nsubject=CN = Twin CA\n\n{}{}\n\n{}{}",
            first.pem().replace('\n', "\r\n"),
            twins[0].pem(),
            twins[1].pem(),
            first.pem(),
            middle.pem(),
        ),
    );
    site.write("more.pem", last.pem().trim_end());
    let listener =
        Listener::redis(&upstream).tls("client_auth = \"required\"").tls("client_ca = [\"clients.pem\", \"more.pem\"]");
    let portcullis = Portcullis::start(site, listener);
    let [one, other] = &twins;
    for authority in [&first, one, other, &middle, &last] {
        let leaf = authority.issue(Request::client("app"));
        portcullis.client().showing(leaf).attempt().1.unwrap();
    }
    let leaf = root.issue(Request::client("app"));
    portcullis.client().showing(leaf).attempt().1.unwrap_err();
}

#[test]
fn resumed_session_is_authorized_again_after_a_reload() {
    for version in [&TLS12, &TLS13] {
        let upstream = Upstream::echo();
        let (site, clients) = site();
        let config = format!("reload.watch = false\n{}", asking("required", &upstream));
        let portcullis = Portcullis::start(site, &config);
        let leaf = clients.issue(Request::client("app"));
        let client = portcullis.client().speaking(version).showing(leaf);
        client.attempt().1.unwrap();
        let resumed = client.attempt().1.unwrap();
        assert_eq!(resumed.tls().handshake_kind(), Some(HandshakeKind::Resumed));

        portcullis.applies(|| {
            portcullis.site.replace("clients.pem", Authority::new("Another CA").pem());
            portcullis.hang_up();
        });
        let (port, connection) = client.attempt();
        connection.unwrap_err();
        assert_eq!(portcullis.refusal(port), "client_certificate_unknown_ca", "{version:?}");
    }
}

#[test]
fn tls_session_of_one_listener_is_not_resumed_on_another() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    site.write("others.pem", Authority::new("Others CA").pem());
    let other =
        Listener::redis(&upstream).named("other").tls("client_auth = \"required\"").tls("client_ca = \"others.pem\"");
    let portcullis = Portcullis::start(site, format!("{}{other}", asking("required", &upstream)));
    for version in [&TLS12, &TLS13] {
        let leaf = clients.issue(Request::client("app"));
        let client = portcullis.client().speaking(version).showing(leaf);
        client.attempt().1.unwrap();
        // The same name and the same session cache, so this client offers its session.
        let client = client.at(portcullis.address("other"));
        let (port, connection) = client.attempt();
        connection.unwrap_err();
        assert_eq!(portcullis.refusal(port), "client_certificate_unknown_ca");
    }
}

#[test]
fn denial_names_the_reload_that_removed_the_ca() {
    let upstream = Upstream::echo();
    let (site, clients) = site();
    let pinned = Authority::new("Anybody's CA").issue(Request::client("pinned"));
    let leaf = clients.issue(Request::client("app"));
    site.install("app", &leaf);
    site.install("pinned", &pinned);
    let whole = format!("{}{}", clients.pem(), Authority::new("Other CA").pem());
    site.write("clients.pem", &whole);
    let listener = asking("required", &upstream);
    let with_pin = format!("{ON_SIGHUP}{}", listener.clone().tls("client_certificates = \"pinned.crt\""));
    let portcullis = Portcullis::start(site, &with_pin);
    portcullis.address("main");

    let applied = portcullis.reconfigure(format!("{ON_SIGHUP}{listener}"));
    assert_eq!(applied.number("generation"), 2);
    let change = |bundle: &str| {
        portcullis.applies(|| {
            portcullis.site.replace("clients.pem", bundle);
            portcullis.hang_up();
        })
    };
    assert_eq!(change(&Authority::new("Other CA").pem()).number("generation"), 3);
    let denial_of = |name: &str, version: &str| {
        let (address, seen) = (portcullis.address("main"), portcullis.seen());
        let [certificate, key] = ["crt", "key"].map(|ending| format!("{name}.{ending}"));
        let options = [version, "-cert", &certificate, "-key", &key];
        let stderr = run(&mut s_client(&portcullis.site, address, &options)).stderr;
        assert!(stderr.contains("alert unknown ca"), "{version}: {stderr}");
        let denied = portcullis.event_after(seen, "a refusal", |event| event.is("connection.denied"));
        assert_eq!(denied.reason(), "client_certificate_unknown_ca");
        denied.text("detail").to_owned()
    };
    for version in ["-tls1_2", "-tls1_3"] {
        for (name, words) in [
            ("pinned", ["CN=pinned (issued by CN=Anybody's CA", "CN=pinned was removed by the reload to generation 2"]),
            ("app", ["CN=app (issued by CN=Clients CA", "CN=Clients CA was removed by the reload to generation 3"]),
        ] {
            let detail = denial_of(name, version);
            for words in words {
                assert!(detail.contains(words), "{version}: no {words} in {detail}");
            }
        }
    }
    // Once the CA is trusted again, nothing is reported.
    change(&whole);
    portcullis.client().showing(&leaf).attempt().1.unwrap();
    let detail = denial_of("pinned", "-tls1_3");
    assert!(detail.contains("generation 2") && !detail.contains("Clients CA was removed"), "{detail}");
}
