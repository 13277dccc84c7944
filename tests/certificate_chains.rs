//! Unusual certificates, chains and ClientHellos: what is accepted, and how the others are reported.

use rustls::version::{TLS12, TLS13};

use crate::harness::openssl::s_client;
use crate::harness::portcullis::{executable, refused};
use crate::harness::program::run;
use crate::harness::{Authority, Leaf, Listener, Request, TestDir, Upstream};
use crate::revocation::{assert_lives, session, start, wanting};

const GREETING: &str = "greetings";

/// An upstream that sends this and closes the connection, which ends `openssl s_client`.
fn greeting() -> Upstream {
    Upstream::sending_and_closing(GREETING.as_bytes())
}

#[test]
fn handshakes_succeed_when_the_names_of_the_cas_are_longer_than_tls_allows() {
    let (upstream, site, clients) = (Upstream::echo(), TestDir::new(), Authority::new("Clients CA"));
    let long = "x".repeat(60);
    let others = (0..800).map(|number| Authority::new(&format!("CA {number} {long}")).pem());
    site.write("clients.pem", others.chain([clients.pem()]).collect::<String>());
    let optional = Listener::redis(&upstream).tls("client_auth = \"optional\"").tls("client_ca = \"clients.pem\"");
    let portcullis = start(site, &[&optional]);
    for version in [&TLS12, &TLS13] {
        portcullis.client().speaking(version).connect().ask(b"hello", b"hello");
        let known = portcullis.client().speaking(version).showing(clients.issue(Request::client("app")));
        known.connect().ask(b"hello", b"hello");
    }
}

#[test]
fn server_certificate_with_a_critical_extension_is_served() {
    let (upstream, site) = (greeting(), TestDir::new());
    let leaf = site.ca.issue(Request::server(&["localhost", "127.0.0.1"]).with_critical_policies());
    site.install("server", &leaf);
    let portcullis = start(site, &[&Listener::redis(&upstream)]);
    for version in ["-tls1_2", "-tls1_3"] {
        // OpenSSL verifies such a chain; rustls does not.
        let output = run(&mut s_client(&portcullis.site, portcullis.address("main"), &[version])).text();
        assert!(output.contains("Verify return code: 0 (ok)") && output.contains(GREETING), "{version}: {output}");
    }
}

#[test]
fn client_certificate_with_a_critical_extension_is_accepted_when_it_is_pinned() {
    let (upstream, site, clients) = (greeting(), TestDir::new(), Authority::new("Clients CA"));
    let leaf = clients.issue(Request::client("app").with_critical_policies());
    site.write("clients.pem", clients.pem());
    site.write("app.pem", leaf.pem());
    site.install("app", &leaf);
    let by_ca = wanting(&upstream, &["client_ca = \"clients.pem\""]).named("ca");
    let pinned = wanting(&upstream, &["client_certificates = \"app.pem\""]).named("pinned");
    let portcullis = start(site, &[&by_ca, &pinned]);
    // rustls as a client does not show such a certificate.
    let show = |listener: &str, version: &str| {
        let options = [version, "-cert", "app.crt", "-key", "app.key"];
        run(&mut s_client(&portcullis.site, portcullis.address(listener), &options)).text()
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let output = show("pinned", version);
        assert!(output.contains(GREETING), "{version}: {output}");
    }
    let seen = portcullis.seen();
    show("ca", "-tls1_3");
    let denied = portcullis.event_after(seen, "a refusal", |event| event.is("connection.denied"));
    assert_eq!(denied.reason(), "client_certificate_invalid");
    let detail = denied.text("detail");
    assert!(detail.contains("critical extension certificatePolicies") && detail.contains("pin"), "{detail}");
}

#[test]
fn each_unusable_chain_has_its_own_error() {
    let (upstream, site, clients) = (Upstream::echo(), TestDir::new(), Authority::new("Clients CA"));
    let own_ca = Leaf::by_itself(Request::client("own").authority());
    let below_a_leaf = Authority::below_a_leaf(&clients, "Leaf that issues");
    site.write("clients.pem", format!("{}{}", clients.pem(), own_ca.pem()));
    let portcullis = start(site, &[&wanting(&upstream, &["client_ca = \"clients.pem\""])]);
    for (leaf, words) in [
        (&own_ca, "CA:TRUE"),
        (&below_a_leaf.issue(Request::client("app")), "it is not a CA certificate (basicConstraints)"),
        (&clients.issue(Request::server(&["app.test"])), "its extended key usage lacks clientAuth"),
    ] {
        let denied = refused(&portcullis, leaf);
        assert_eq!(denied.reason(), "client_certificate_invalid", "{}", denied.0);
        assert!(denied.text("detail").contains(words), "{words}: {}", denied.0);
    }
    assert_lives(session(&portcullis, clients.issue(Request::client("app"))));
}

#[test]
fn unsupported_name_constraints_of_a_ca_give_a_warning() {
    let (upstream, site) = (Upstream::echo(), TestDir::new());
    site.write("clients.pem", Authority::limited_to_a_directory("Limited CA").pem());
    let portcullis = start(site, &[&wanting(&upstream, &["client_ca = \"clients.pem\""])]);
    let checked = run(executable().arg("check").arg("-c").arg(portcullis.site.path("portcullis.toml")));
    let expected = "CN=Limited CA limits directory names (name constraints), which cannot be checked";
    assert!(checked.text().contains(expected), "{}", checked.text());
}

#[test]
fn too_old_client_hello_is_reported_with_its_version() {
    let upstream = Upstream::silent();
    let portcullis = start(TestDir::new(), &[&Listener::redis(&upstream)]);
    for (options, words) in [
        (&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"][..], "TLS 1.2"),
        (&["-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0"], "too old"),
        (&["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"], "too old"),
    ] {
        let seen = portcullis.seen();
        run(&mut s_client(&portcullis.site, portcullis.address("main"), options));
        let denied = portcullis.event_after(seen, "a refusal", |event| event.is("connection.denied"));
        assert_eq!(denied.reason(), "handshake_failed");
        let detail = denied.text("detail");
        assert!(detail.starts_with("the client offers no ") && detail.contains(words), "{options:?}: {detail}");
    }
    upstream.assert_untouched();
}

#[test]
fn server_name_with_a_trailing_dot_selects_the_certificate() {
    let (upstream, site) = (greeting(), TestDir::new());
    site.install("a", &site.ca.issue(Request::server(&["a.test"])));
    let portcullis = start(site, &[&Listener::redis(&upstream).certificates(&["server", "a"])]);
    for name in ["a.test", "a.test.", "A.Test."] {
        let mut client = s_client(&portcullis.site, portcullis.address("main"), &["-servername", name]);
        let output = run(&mut client).text();
        assert!(output.contains("subject=CN = a.test"), "{name}: {output}");
    }
}
