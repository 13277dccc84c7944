//! SCRAM channel binding: libpq binds its password to the server certificate that it receives, and the server compares it
//! with its own. With real libpq and PostgreSQL, and with TLS on either side, both and none.

use crate::harness::portcullis::executable;
use crate::harness::program::run;
use crate::harness::{Authority, Leaf, Listener, Portcullis, Postgres, Request, TestDir};
use crate::postgres::{conninfo, psql};

/// Parts of the warning of `check`, and of the log when a client fails.
const WARNING: &str = "SCRAM channel binding (preferred by libpq) fails unless";
const EXPLANATION: &str = "SCRAM channel binding failed";

/// A role with a password.
fn keyed(postgres: &Postgres) {
    postgres.direct("create role keyed login password 'open sesame'");
}

/// Authenticates with this `channel_binding`, and returns the standard error of psql if that fails.
fn sign_in(conninfo: &str, binding: &str) -> Result<(), String> {
    let mut psql = psql(&format!("{conninfo} channel_binding={binding}"));
    let outcome = run(psql.env("PGPASSWORD", "open sesame").args(["-c", "select current_user"]));
    if outcome.text() == "keyed\n" { Ok(()) } else { Err(outcome.stderr) }
}

fn as_keyed(portcullis: &Portcullis) -> String {
    conninfo(portcullis).replace("user=app", "user=keyed")
}

/// Whether `check` warns about the configuration of a running program.
fn warns(portcullis: &Portcullis) -> bool {
    let checked = run(executable().args(["check", "-c"]).arg(portcullis.site.path("portcullis.toml")));
    checked.success().contains(WARNING)
}

fn explains(portcullis: &Portcullis) -> bool {
    portcullis.events().iter().any(|event| event.0["message"].as_str().is_some_and(|text| text.contains(EXPLANATION)))
}

/// Without channel binding the password is protected by TLS only, and no certificate is compared.
fn works_but_for_require(portcullis: &Portcullis) {
    for binding in ["prefer", "disable"] {
        assert_eq!(sign_in(&as_keyed(portcullis), binding), Ok(()), "{binding}");
    }
    let refused = sign_in(&as_keyed(portcullis), "require").unwrap_err();
    assert!(refused.contains("channel binding is required, but server did not offer"), "{refused}");
    assert!(!warns(portcullis) && !explains(portcullis));
}

#[test]
fn plaintext_upstream_works_except_with_channel_binding_require() {
    let postgres = Postgres::start();
    keyed(&postgres);
    works_but_for_require(&Portcullis::before(Listener::postgres(&postgres)));
}

/// By default the server asks for no password at its Unix socket.
#[test]
fn unix_socket_upstream_works_except_with_channel_binding_require() {
    let postgres = Postgres::start();
    keyed(&postgres);
    postgres.ask_for_passwords_at_its_socket("keyed");
    works_but_for_require(&Portcullis::before(Listener::postgres(format!("unix:{}", postgres.socket().display()))));
}

/// A listener and its upstream, which both present this certificate.
fn twins(own: impl Fn(&TestDir) -> Leaf, ca: impl Fn(&TestDir) -> String) -> (Portcullis, Postgres) {
    let site = TestDir::new();
    let leaf = own(&site);
    site.install("server", &leaf);
    site.write("upstream.crt", ca(&site));
    let postgres = Postgres::with_tls(&site, &leaf);
    keyed(&postgres);
    let listener = Listener::postgres(&postgres).upstream_tls("verify-full", "upstream.crt");
    (Portcullis::start(site, listener), postgres)
}

#[test]
fn same_certificate_on_both_sides_supports_channel_binding() {
    let from_ca = |site: &TestDir| site.server();
    let rsa = |site: &TestDir| site.ca.issue(Request::server(&["localhost", "127.0.0.1"]).rsa());
    let (portcullis, _postgres) = twins(from_ca, |site| site.ca.pem());
    let (other, _other) = twins(rsa, |site| site.ca.pem());
    for portcullis in [&portcullis, &other] {
        for binding in ["prefer", "require", "disable"] {
            assert_eq!(sign_in(&as_keyed(portcullis), binding), Ok(()), "{binding}");
        }
        // The certificate of an upstream is not known in advance.
        assert!(warns(portcullis) && !explains(portcullis));
    }
}

#[test]
fn ca_bundle_with_the_listener_certificate_supports_channel_binding() {
    let (portcullis, _postgres) = twins(
        |site| site.server(),
        |site| {
            let own = std::fs::read_to_string(site.path("server.crt")).unwrap();
            format!("{}{own}", Authority::new("Another").pem())
        },
    );
    for binding in ["prefer", "require", "disable"] {
        assert_eq!(sign_in(&as_keyed(&portcullis), binding), Ok(()), "{binding}");
    }
    assert!(!warns(&portcullis) && !explains(&portcullis));
}

#[test]
fn two_certificates_break_channel_binding_and_the_log_explains_it() {
    let site = TestDir::new();
    let postgres = Postgres::with_tls(&site, &site.server());
    keyed(&postgres);
    let listener = Listener::postgres(&postgres).upstream_tls("verify-full", "ca.crt");
    let mut portcullis = Portcullis::start(site, listener);
    assert!(warns(&portcullis));
    assert_eq!(sign_in(&as_keyed(&portcullis), "disable"), Ok(()));
    assert!(!explains(&portcullis));
    for binding in ["prefer", "require"] {
        let refused = sign_in(&as_keyed(&portcullis), binding).unwrap_err();
        assert!(refused.contains("SCRAM channel binding check failed"), "{refused}");
    }
    let warning =
        portcullis.event("why", |event| event.0["message"].as_str().is_some_and(|text| text.contains(EXPLANATION)));
    assert_eq!(warning.0["level"], "WARN");
    for way_out in ["use the same certificate", "channel_binding=disable", "Unix socket"] {
        assert!(warning.text("message").contains(way_out), "{}", warning.0);
    }
    // A wrong password is a different error.
    let mut psql = psql(&format!("{} channel_binding=disable", as_keyed(&portcullis)));
    let refused = run(psql.env("PGPASSWORD", "open barley").args(["-c", "select 1"]));
    assert!(refused.stderr.contains("password authentication failed"), "{}", refused.stderr);
    let (_, events) = portcullis.stop();
    let explained =
        events.iter().filter(|event| event.0["message"].as_str().is_some_and(|text| text.contains(EXPLANATION)));
    assert_eq!(explained.count(), 2);
}

/// Application, sidecar, gateway, database. The sidecar removes channel binding from the offer of the server.
#[test]
fn chained_proxies_work_for_a_plaintext_application() {
    let site = TestDir::new();
    let secured = Postgres::with_tls(&site, &site.server());
    let plain = Postgres::start();
    for postgres in [&secured, &plain] {
        keyed(postgres);
    }
    let far = Listener::postgres(&secured).named("far").upstream_tls("verify-full", "ca.crt");
    let near = Listener::postgres(&plain).named("near");
    let ca = site.ca.pem();
    let gateway = Portcullis::start(site, format!("{far}{near}"));
    for name in ["far", "near"] {
        let site = TestDir::new();
        site.write("gateway.crt", &ca);
        let listener =
            Listener::postgres(gateway.address(name)).upstream_tls("verify-full", "gateway.crt").without_tls();
        let sidecar = Portcullis::start(site, listener);
        let port = sidecar.address("main").port();
        let conninfo = format!("host=127.0.0.1 port={port} user=keyed dbname=postgres");
        for binding in ["prefer", "disable"] {
            assert_eq!(sign_in(&conninfo, binding), Ok(()), "{name}: {binding}");
        }
        assert!(!warns(&sidecar) && !explains(&sidecar));
    }
    assert!(!explains(&gateway));
}

/// An application with TLS before a sidecar with another certificate: of the three connections the first fails.
#[test]
fn channel_binding_is_offered_to_tls_clients_only() {
    let site = TestDir::new();
    let postgres = Postgres::with_tls(&site, &site.server());
    keyed(&postgres);
    let bare = Listener::postgres(&postgres).named("bare").upstream_tls("verify-full", "ca.crt").without_tls();
    let secured = Listener::postgres(&postgres).upstream_tls("verify-full", "ca.crt");
    let portcullis = Portcullis::start(site, format!("{bare}{secured}"));
    let port = portcullis.address("bare").port();
    let conninfo = format!("host=127.0.0.1 port={port} user=keyed dbname=postgres");
    assert_eq!(sign_in(&conninfo, "prefer"), Ok(()));
    let refused = sign_in(&as_keyed(&portcullis), "prefer").unwrap_err();
    assert!(refused.contains("SCRAM channel binding check failed"), "{refused}");
    let checked = run(executable().args(["check", "-c"]).arg(portcullis.site.path("portcullis.toml"))).success();
    assert!(checked.contains("warning: listener main: with TLS on both sides"), "{checked}");
    assert!(!checked.contains("warning: listener bare"), "{checked}");
}

/// Its signature algorithm names no hash, so the channel binding is undefined (RFC 5929, section 4.1).
#[test]
fn ed25519_certificate_does_not_support_channel_binding() {
    let own = |_: &TestDir| Leaf::by_itself(Request::server(&["localhost", "127.0.0.1"]).ed25519());
    let (portcullis, _postgres) = twins(own, |site| std::fs::read_to_string(site.path("server.crt")).unwrap());
    let conninfo = as_keyed(&portcullis).replace("ca.crt", "server.crt");
    assert_eq!(sign_in(&conninfo, "disable"), Ok(()));
    for binding in ["prefer", "require"] {
        let refused = sign_in(&conninfo, binding).unwrap_err();
        assert!(refused.contains("could not find digest"), "{refused}");
    }
    let checked = run(executable().args(["check", "-c"]).arg(portcullis.site.path("portcullis.toml"))).success();
    assert!(checked.contains("CN=localhost is signed with Ed25519"), "{checked}");
}
