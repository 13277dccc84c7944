//! TLS with clients of several implementations.

use std::io::Write;

use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, HandshakeKind, NamedGroup};

use crate::harness::client::{alert, port};
use crate::harness::openssl::{openssl, s_client};
use crate::harness::program::run;
use crate::harness::{Authority, Leaf, Listener, Portcullis, Request, TestDir, Upstream};
use crate::reload::ON_SIGHUP;

/// An upstream that closes at once.
fn brief() -> Upstream {
    Upstream::new(|mut stream| stream.write_all(b"farewell\n").unwrap())
}

#[test]
fn openssl_connects_with_tls_1_2_and_1_3() {
    let upstream = brief();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let address = portcullis.address("main");
    for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let output = run(&mut s_client(&portcullis.site, address, &[option])).success();
        assert!(output.contains("Verify return code: 0 (ok)"), "{output}");
        assert!(output.contains(&format!("New, {version}")), "{output}");
        assert!(output.contains("farewell"), "{output}");
    }
}

#[test]
fn openssl_starttls_postgres_connects() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::postgres(&upstream));
    let options = ["-starttls", "postgres", "-no_ign_eof"];
    let output = run(&mut s_client(&portcullis.site, portcullis.address("main"), &options)).text();
    assert!(output.contains("Verify return code: 0 (ok)"), "{output}");
}

#[test]
fn audit_names_version_cipher_and_server_name() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    for (version, name) in [(&TLS12, "TLSv1.2"), (&TLS13, "TLSv1.3")] {
        let mut client = portcullis.client().speaking(version).connect();
        client.ask(b"hello", b"hello");
        let opened = portcullis.opened(client.port());
        assert_eq!(opened.text("tls_version"), name);
        assert_eq!(opened.text("sni"), "localhost");
        let suite = client.tls().negotiated_cipher_suite().unwrap().suite();
        assert!(opened.text("cipher").starts_with("TLS_"), "{suite:?}: {}", opened.0);
    }
}

#[test]
fn min_version_1_3_rejects_1_2() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream).tls("min_version = \"1.3\""));
    let client = portcullis.client().speaking(&TLS12);
    let stream = client.dial();
    let port = port(&stream);
    let error = client.secure(stream).unwrap_err();
    assert_eq!(alert(&error), Some(AlertDescription::ProtocolVersion));
    let denied = portcullis.ending(port);
    assert!(denied.is("connection.denied") && denied.reason() == "handshake_failed", "{}", denied.0);
    // The handshake was rejected before a certificate was selected, which is when the name is read (docs/AUDIT.md).
    assert!(denied.0.get("sni").is_none(), "{}", denied.0);
    portcullis.client().speaking(&TLS13).connect().ask(b"hello", b"hello");
}

#[test]
fn hybrid_key_exchange_is_used_with_a_client_that_offers_it() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let connection = portcullis.client().connect();
    let group = connection.tls().negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
}

#[test]
fn server_name_selects_the_certificate() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let (a, b) = (site.ca.issue(Request::server(&["a.test"])), site.ca.issue(Request::server(&["*.b.test"])));
    site.install("a", &a);
    site.install("b", &b);
    let listener = Listener::redis(&upstream).certificates(&["server", "a", "b"]);
    let portcullis = Portcullis::start(site, listener);
    for (name, leaf) in [("a.test", &a), ("x.b.test", &b)] {
        let connection = portcullis.client().named(name).connect();
        assert_eq!(&connection.tls().peer_certificates().unwrap()[0], leaf.der());
    }
    // An address is not a server name, so this client sends none.
    portcullis.client().named("127.0.0.1").connect();
    // A name that no certificate has gets the first one, and the client decides.
    let unknown = portcullis.client().named("nobody.test");
    assert!(unknown.try_connect().unwrap_err().to_string().contains("not valid for name"));
}

#[test]
fn rsa_only_client_gets_the_rsa_certificate() {
    let upstream = brief();
    let site = TestDir::new();
    let rsa = Request::server(&["localhost", "127.0.0.1"]).rsa();
    site.install("rsa", &site.ca.issue(rsa));
    let listeners = [["server", "rsa"], ["rsa", "server"]]
        .map(|order| Listener::redis(&upstream).named(order[0]).certificates(&order).to_string());
    let portcullis = Portcullis::start(site, listeners.concat());
    for listener in ["server", "rsa"] {
        let address = portcullis.address(listener);
        for (options, signature) in [
            (["-tls1_3", "-sigalgs", "rsa_pss_rsae_sha256"], "RSA-PSS"),
            (["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], "RSA-PSS"),
            (["-tls1_3", "-sigalgs", "ecdsa_secp256r1_sha256"], "ECDSA"),
            (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], "ECDSA"),
        ] {
            let output = run(&mut s_client(&portcullis.site, address, &options)).text();
            let expected = format!("Peer signature type: {signature}");
            assert!(output.contains(&expected), "{listener} {options:?}: {output}");
        }
    }
}

#[test]
fn certificate_is_sent_with_its_intermediates() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let middle = site.ca.intermediate("One").intermediate("Two");
    site.install("server", &middle.issue(Request::server(&["localhost"])));
    let portcullis = Portcullis::start(site, Listener::redis(&upstream));
    portcullis.client().connect().ask(b"hello", b"hello");
}

#[test]
fn key_is_read_in_every_form_that_openssl_writes() {
    let upstream = Upstream::echo();
    let site = TestDir::new();
    let sec1 = openssl(&site, &["ec", "-in", "server.key"]);
    assert!(sec1.contains("BEGIN EC PRIVATE KEY"), "{sec1}");
    site.install("rsa", &site.ca.issue(Request::server(&["rsa.test"]).rsa()));
    let pkcs1 = openssl(&site, &["rsa", "-traditional", "-in", "rsa.key"]);
    assert!(pkcs1.contains("BEGIN RSA PRIVATE KEY"), "{pkcs1}");
    site.write("server.key", format!("Bag Attributes\n    friendlyName: x\n{sec1}"));
    site.write("rsa.key", pkcs1.replace('\n', "\r\n"));
    let listener = Listener::redis(&upstream).certificates(&["server", "rsa"]);
    let portcullis = Portcullis::start(site, listener);
    portcullis.client().connect().ask(b"hello", b"hello");
    portcullis.client().named("rsa.test").connect().ask(b"hello", b"hello");
}

#[test]
fn session_ends_with_close_notify() {
    let upstream = brief();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    for version in [&TLS12, &TLS13] {
        let mut connection = portcullis.client().speaking(version).connect();
        // An end without close_notify would be an error.
        assert_eq!(connection.rest().unwrap(), b"farewell\n");
    }
}

#[test]
fn returning_client_resumes_its_tls_session() {
    let upstream = Upstream::echo();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    for version in [&TLS12, &TLS13] {
        let client = portcullis.client().speaking(version);
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let mut connection = client.connect();
            connection.ask(b"hello", b"hello");
            kinds.push(connection.tls().handshake_kind().unwrap());
        }
        assert_eq!(kinds[1..], [HandshakeKind::Resumed; 2], "{version:?}");
    }
}

#[test]
fn openssl_resumes_its_session_with_a_client_certificate() {
    let upstream = brief();
    for client_auth in ["none", "required"] {
        let site = TestDir::new();
        site.install("client", &site.ca.issue(Request::client("app")));
        let mut listener = Listener::redis(&upstream).tls(&format!("client_auth = \"{client_auth}\""));
        if client_auth == "required" {
            listener = listener.tls("client_ca = \"ca.crt\"");
        }
        let portcullis = Portcullis::start(site, listener);
        let address = portcullis.address("main");
        for version in ["-tls1_2", "-tls1_3"] {
            let first = [version, "-cert", "client.crt", "-key", "client.key", "-sess_out", "session"];
            let output = run(&mut s_client(&portcullis.site, address, &first)).success();
            assert!(output.contains("New, TLS"), "{output}");
            let second = [version, "-cert", "client.crt", "-key", "client.key", "-sess_in", "session"];
            let output = run(&mut s_client(&portcullis.site, address, &second)).success();
            assert!(output.contains("Reused, TLS"), "{version} {client_auth}: {output}");
            assert!(output.contains("farewell"), "{output}");
        }
    }
}

#[test]
fn client_that_distrusts_the_certificate_is_explained_in_the_audit() {
    let upstream = Upstream::silent();
    let portcullis = Portcullis::before(Listener::redis(&upstream));
    let untrusted = Authority::new("Another CA");
    let client = crate::harness::Client::new(portcullis.address("main"), &untrusted);
    let stream = client.dial();
    let port = port(&stream);
    client.secure(stream).unwrap_err();
    let denied = portcullis.ending(port);
    assert_eq!(denied.reason(), "handshake_failed");
    let words = denied.0.to_string();
    // The event has the failure, the certificate, and the fix for common clients.
    for word in ["does not accept our certificate", "CN=localhost", "sslrootcert", "--cacert"] {
        assert!(words.contains(word), "no {word} in {words}");
    }
    upstream.assert_untouched();
}

#[test]
fn audit_names_the_certificate_that_openssl_distrusts_and_its_time_of_effect() {
    let upstream = Upstream::silent();
    let site = TestDir::new();
    let [first, renewed] = [site.server(), site.server()];
    site.install("server", &first);
    site.write("wrong.crt", Authority::new("Another CA").pem());
    let portcullis = Portcullis::start(site, format!("{ON_SIGHUP}{}", Listener::redis(&upstream)));
    let refusing = |version: &str| {
        let (address, seen) = (portcullis.address("main"), portcullis.seen());
        let options = [version, "-CAfile", "wrong.crt", "-verify_return_error"];
        let client_output = run(&mut s_client(&portcullis.site, address, &options));
        assert_ne!(client_output.code, Some(0), "{}", client_output.text());
        let denied = portcullis.event_after(seen, "a refusal", |event| event.is("connection.denied"));
        assert_eq!(denied.reason(), "handshake_failed");
        denied.text("detail").to_owned()
    };
    let assert_reported = |since: &str, sha256: &str| {
        for version in ["-tls1_2", "-tls1_3"] {
            let detail = refusing(version);
            for words in
                ["does not accept our certificate CN=localhost", "issued by CN=Test CA", "valid until 20", since]
                    .into_iter()
                    .chain([sha256, "sslrootcert"])
            {
                assert!(detail.contains(words), "{version}: no {words} in {detail}");
            }
        }
    };
    assert_reported("in use since the start at 20", &first.sha256());
    let rotate = |leaf: &Leaf| {
        portcullis.applies(|| {
            portcullis.site.install("server", leaf);
            portcullis.hang_up();
        });
    };
    rotate(&renewed);
    assert_reported("in use since the reload to generation 2 at 20", &renewed.sha256());
    // A reload of other files keeps its time of effect, and one that restores it sets a new time.
    portcullis.applies(|| portcullis.hang_up());
    assert_reported("in use since the reload to generation 2 at 20", &renewed.sha256());
    rotate(&first);
    assert_reported("in use since the reload to generation 4 at 20", &first.sha256());
    upstream.assert_untouched();
}
