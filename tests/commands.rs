//! The commands beside `run`.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::harness::openssl::{openssl, s_client};
use crate::harness::portcullis::executable;
use crate::harness::program::{Outcome, free_address, run};
use crate::harness::{Authority, Listener, Portcullis, Request, TestDir, Upstream};

/// Portcullis, in a directory.
fn portcullis(site: &TestDir, arguments: &[&str]) -> Outcome {
    run(executable().args(arguments).current_dir(site.directory()))
}

fn mode(site: &TestDir, file: &str) -> u32 {
    fs::metadata(site.path(file)).unwrap().permissions().mode() & 0o777
}

/// A site with a configuration of one listener.
fn configured(listener: Listener) -> TestDir {
    let site = TestDir::new();
    site.write("portcullis.toml", listener);
    site
}

#[test]
fn version_is_that_of_the_package() {
    let output = run(executable().arg("--version")).success();
    assert_eq!(output.trim(), format!("portcullis {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [&[][..], &["frobnicate"], &["run", "--frobnicate"], &["explain"]] {
        let outcome = run(executable().args(arguments));
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {}", outcome.stderr);
        assert!(!outcome.stderr.is_empty());
    }
    let help = run(executable().arg("--help")).success();
    for command in
        ["run", "check", "explain", "status", "reload", "sources", "denials", "sessions", "events", "token", "certs"]
    {
        assert!(help.contains(command), "{help}");
    }
}

#[test]
fn configuration_is_found_through_the_environment() {
    let site = configured(Listener::redis("127.0.0.1:6379").named("from-the-environment"));
    let mut check = executable();
    check.arg("check").env("PORTCULLIS_CONFIG", site.path("portcullis.toml"));
    assert!(run(&mut check).success().contains("from-the-environment"));
    // The command line overrides the environment.
    let outcome = run(check.args(["-c", "/nowhere.toml"]));
    assert_eq!(outcome.code, Some(78));
}

#[test]
fn check_shows_what_would_be_enforced() {
    let listener = Listener::redis("127.0.0.1:6379").trusting(&["10.0.0.0/8", "2001:db8::/32"]).named("cache");
    let site = configured(listener.limit("max_connections = 100").limit("connection_rate_per_source = \"50/s\""));
    let leaf = site.server();
    site.install("server", &leaf);
    let output = portcullis(&site, &["check", "--offline", "-c", "portcullis.toml"]).success();
    for word in [
        "cache",
        "redis",
        "10.0.0.0/8",
        "2001:db8::/32",
        "CN=localhost",
        "127.0.0.1",
        "100; per source unlimited, 50/s",
    ] {
        assert!(output.contains(word), "no {word} in {output}");
    }
    assert!(output.contains(&leaf.sha256()), "{output}");
}

#[test]
fn check_json_describes_the_configuration() {
    let site = TestDir::new();
    let leaf = site.ca.issue(Request::server(&["db.test", "*.db.test"]));
    site.install("server", &leaf);
    site.write("sources.toml", "[[rule]]\ntype = \"ip_addr\"\nvalue = \"192.0.2.7\"\n");
    let listener = Listener::postgres("127.0.0.1:5432")
        .named("db")
        .key("sources_file = \"sources.toml\"")
        .limit("max_connections = 100")
        .limit("connection_rate_per_source = \"50/s\"")
        .tls("client_auth = \"required\"")
        .tls("client_ca = \"ca.crt\"");
    site.write("portcullis.toml", listener);
    let output = portcullis(&site, &["check", "--json", "-c", "portcullis.toml"]).success();
    let report: Value = serde_json::from_str(&output).expect("JSON and nothing else");
    let listeners = report["listeners"].as_array().expect("listeners");
    assert_eq!(listeners.len(), 1);
    let limits = &listeners[0]["limits"];
    assert_eq!((&limits["max_connections"], &limits["max_connections_per_source"]), (&100.into(), &Value::Null));
    assert_eq!(limits["connection_rate_per_source"], "50/s");
    assert_eq!((&listeners[0]["name"], &listeners[0]["protocol"]), (&"db".into(), &"postgres".into()));
    let authority = crate::harness::pki::sha256(site.ca.der());
    for word in ["127.0.0.1", "192.0.2.7", "db.test", "*.db.test", &leaf.sha256(), &authority] {
        assert!(output.contains(word), "no {word} in {output}");
    }
}

#[test]
fn check_binds_nothing() {
    // The kernel gives a port of this range to no other server once it is free.
    let taken = TcpListener::bind(free_address()).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let site = configured(Listener::redis("127.0.0.1:6379").on(&[&address]));
    portcullis(&site, &["check", "--offline", "-c", "portcullis.toml"]).success();
    drop(taken);
    TcpStream::connect(address).unwrap_err();
}

#[test]
fn check_warns_about_a_key_that_others_can_read() {
    let site = configured(Listener::redis("127.0.0.1:6379"));
    let quiet = portcullis(&site, &["check", "--offline", "-c", "portcullis.toml"]);
    assert!(!format!("{}{}", quiet.text(), quiet.stderr).to_lowercase().contains("warning"));
    fs::set_permissions(site.path("server.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let outcome = portcullis(&site, &["check", "--offline", "-c", "portcullis.toml"]);
    assert_eq!(outcome.code, Some(0));
    let output = format!("{}{}", outcome.text(), outcome.stderr).to_lowercase();
    assert!(output.contains("warning") && output.contains("server.key"), "{output}");
}

#[test]
fn start_warns_about_a_key_that_others_can_read() {
    let site = TestDir::new();
    fs::set_permissions(site.path("server.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let portcullis = Portcullis::start(site, Listener::redis("127.0.0.1:6379"));
    portcullis.event("a warning", |event| event.0["level"] == "WARN" && event.0.to_string().contains("server.key"));
}

#[test]
fn check_warns_about_an_expired_ca() {
    let listener =
        Listener::redis("127.0.0.1:6379").tls("client_auth = \"required\"").tls("client_ca = \"clients.pem\"");
    let site = configured(listener);
    site.write("clients.pem", format!("{}{}", site.ca.pem(), Authority::expired("Old CA").pem()));
    let outcome = portcullis(&site, &["check", "--offline", "-c", "portcullis.toml"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let output = format!("{}{}", outcome.text(), outcome.stderr);
    let warning = output.lines().find(|line| line.to_lowercase().contains("warning"));
    let warning = warning.unwrap_or_else(|| panic!("no warning in {output}"));
    assert!(warning.contains("Old CA") && warning.contains("expired"), "{warning}");
}

#[test]
fn check_warns_about_plaintext_cancel_with_required_certificates() {
    let site = configured(
        Listener::postgres("127.0.0.1:5432").tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\""),
    );
    let outcome = portcullis(&site, &["check", "--offline", "-c", "portcullis.toml"]);
    assert_eq!(outcome.code, Some(0));
    let output = format!("{}{}", outcome.text(), outcome.stderr).to_lowercase();
    assert!(output.contains("warning") && output.contains("plaintext_cancel"), "{output}");
}

#[test]
fn check_warns_about_settings_that_admit_more_than_expected() {
    let listener = Listener::redis("127.0.0.1:6379")
        .key("revoke = \"keep\"")
        .tls("client_auth = \"optional\"")
        .tls("client_ca = [\"ca.crt\", \"other.crt\"]")
        .tls("client_crl = \"ca.crl\"")
        .tls("trusted_clients = [\"cn:app\"]");
    let site = configured(listener);
    site.write("ca.crl", site.ca.revoking(&[], -1));
    site.write("other.crt", Authority::new("Other CA").pem());
    let output = portcullis(&site, &["check", "--offline", "-c", "portcullis.toml"]).success();
    let warnings: Vec<_> = output.lines().filter_map(|line| line.strip_prefix("warning: listener main: ")).collect();
    assert_eq!(warnings.len(), 4, "{output}");
    for words in [
        &["trusted_clients", "without a certificate"][..],
        &["revoke = \"keep\"", "open sessions"],
        &["CN=Test CA", "expired at", "crl_expired = \"refuse\""],
        &["CN=Other CA", "client_crl"],
    ] {
        let is_this = |warning: &&&str| words.iter().all(|word| warning.contains(word));
        assert_eq!(warnings.iter().filter(is_this).count(), 1, "{words:?} in {output}");
    }
}

#[test]
fn explain_names_the_rule_that_admits() {
    let site = configured(Listener::redis("127.0.0.1:6379").trusting(&["10.0.0.0/8", "::/0"]));
    let ask = |source: &str| {
        let common = ["explain", "-c", "portcullis.toml", "--listener", "main", "--source"];
        portcullis(&site, &[&common[..], &[source]].concat())
    };
    for source in ["10.1.2.3", "::ffff:10.1.2.3"] {
        let output = ask(source).success();
        assert!(output.contains("10.0.0.0/8"), "{output}");
    }
    for source in ["192.0.2.1", "::ffff:192.0.2.1"] {
        let refused = ask(source);
        assert_eq!(refused.code, Some(3), "{}", refused.text());
        assert!(refused.text().contains("untrusted_source"), "{}", refused.text());
    }
    assert!(ask("2001:db8::1").success().contains("::/0"));
    assert_eq!(ask("10.1.2").code, Some(2));
}

#[test]
fn explain_checks_a_client_certificate() {
    let listener = Listener::redis("127.0.0.1:6379").tls("client_auth = \"required\"").tls("client_ca = \"ca.crt\"");
    let site = configured(listener);
    site.install("good", &site.ca.issue(Request::client("app")));
    site.install("expired", &site.ca.issue(Request::client("app").valid(-20, -10)));
    site.install("untrusted", &Authority::new("Another CA").issue(Request::client("app")));
    let ask = |more: &[&str]| {
        let common = ["explain", "-c", "portcullis.toml", "--listener", "main", "--source", "127.0.0.1"];
        portcullis(&site, &[&common[..], more].concat())
    };
    let output = ask(&["--client-cert", "good.crt"]).success();
    assert!(output.contains("CN=app"), "{output}");
    for (arguments, reason) in [
        (&["--client-cert", "expired.crt"][..], "client_certificate_expired"),
        (&["--client-cert", "untrusted.crt"], "client_certificate_unknown_ca"),
        (&[], "client_certificate_missing"),
    ] {
        let refused = ask(arguments);
        assert_eq!(refused.code, Some(3), "{arguments:?}: {}", refused.text());
        assert!(refused.text().contains(reason), "{arguments:?}: {}", refused.text());
    }
}

/// The exit code and output of `explain` for a certificate.
fn explained(site: &TestDir, certificate: &str, code: i32, words: &[&str]) {
    let common = ["explain", "-c", "portcullis.toml", "--listener", "main", "--source", "127.0.0.1", "--client-cert"];
    let outcome = portcullis(site, &[&common[..], &[certificate]].concat());
    assert_eq!(outcome.code, Some(code), "{certificate}: {}{}", outcome.text(), outcome.stderr);
    for word in words {
        assert!(outcome.text().contains(word), "{certificate}: no {word:?} in {}", outcome.text());
    }
}

#[test]
fn explain_names_the_anchor_and_the_trusted_client_pattern() {
    let next = Authority::new("Next CA");
    let listener = Listener::redis("127.0.0.1:6379")
        .tls("client_auth = \"required\"")
        .tls("client_ca = [\"ca.crt\", \"next.crt\"]")
        .tls("client_certificates = \"*.pin.crt\"")
        .tls("trusted_clients = [\"cn:app\", \"dns:*.app.internal\"]");
    let site = configured(listener);
    site.write("next.crt", next.pem());
    site.install("app", &site.ca.issue(Request::client("app")));
    site.install("api", &next.issue(Request::client("x").also("dns:api.app.internal")));
    site.install("jobs", &next.issue(Request::client("jobs").also("dns:jobs.other.internal")));
    let alone = Authority::new("Nowhere CA");
    site.install("known.pin", &alone.issue(Request::client("app")));
    site.install("unknown", &alone.issue(Request::client("app")));
    explained(&site, "app.crt", 0, &["CN=app", "CN=Test CA", "\"cn:app\""]);
    explained(&site, "api.crt", 0, &["CN=x", "CN=Next CA", "\"dns:*.app.internal\""]);
    explained(&site, "known.pin.crt", 0, &["CN=app", "client_certificates", "\"cn:app\""]);
    let names = ["client_not_trusted", "CN=jobs", "trusted_clients", "cn:jobs", "dns:jobs.other.internal"];
    explained(&site, "jobs.crt", 3, &names);
    let unknown = ["client_certificate_unknown_ca", "issued by CN=Nowhere CA", "not listed in client_certificates"];
    explained(&site, "unknown.crt", 3, &unknown);
    site.install("namesake", &Authority::new("Test CA").issue(Request::client("app")));
    explained(&site, "namesake.crt", 3, &["client_certificate_unknown_ca", "of the same name with another key"]);
}

#[test]
fn explain_checks_the_crls() {
    let listener = Listener::redis("127.0.0.1:6379")
        .tls("client_auth = \"required\"")
        .tls("client_ca = \"ca.crt\"")
        .tls("client_crl = \"ca.crl\"");
    let site = configured(listener);
    let (good, bad) = (site.ca.issue(Request::client("good")), site.ca.issue(Request::client("bad")));
    site.install("good", &good);
    site.install("bad", &bad);
    site.write("ca.crl", site.ca.revoking(&[&bad], 1));
    explained(&site, "good.crt", 0, &["CN=good", "not revoked"]);
    explained(&site, "bad.crt", 3, &["client_certificate_revoked", "client_crl"]);
    site.write("ca.crl", site.ca.revoking(&[&bad], -1));
    explained(&site, "good.crt", 3, &["client_certificate_invalid", "has expired", "crl_expired"]);
    let allowing = Listener::redis("127.0.0.1:6379")
        .tls("client_auth = \"required\"")
        .tls("client_ca = [\"ca.crt\", \"second.crt\"]")
        .tls("client_crl = \"ca.crl\"")
        .tls("crl_expired = \"allow\"");
    site.write("portcullis.toml", allowing);
    let other = Authority::new("Other CA");
    site.write("second.crt", other.pem());
    site.install("other", &other.issue(Request::client("other")));
    explained(&site, "good.crt", 0, &["not revoked", "expired at"]);
    explained(&site, "bad.crt", 3, &["client_certificate_revoked"]);
    explained(&site, "other.crt", 0, &["client_crl contains no CRL of CN=Other CA"]);
}

#[test]
fn explain_rejects_an_unknown_listener() {
    let site = configured(Listener::redis("127.0.0.1:6379"));
    let arguments = ["explain", "-c", "portcullis.toml", "--listener", "mian", "--source", "127.0.0.1"];
    let outcome = portcullis(&site, &arguments);
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("mian") && outcome.stderr.contains("main"), "{}", outcome.stderr);
}

#[test]
fn development_certificates_are_valid_and_private() {
    let site = TestDir::new();
    portcullis(&site, &["certs", "init", "dev", "--host", "db.internal", "--host", "10.1.2.3"]).success();
    for key in ["dev/ca.key", "dev/server.key", "dev/client.key"] {
        assert_eq!(mode(&site, key), 0o600, "{key}");
    }
    for (purpose, file) in [("sslserver", "dev/server.crt"), ("sslclient", "dev/client.crt")] {
        openssl(&site, &["verify", "-CAfile", "dev/ca.crt", "-purpose", purpose, "-x509_strict", file]);
    }
    let names = openssl(&site, &["x509", "-in", "dev/server.crt", "-noout", "-ext", "subjectAltName"]);
    for name in ["DNS:localhost", "IP Address:127.0.0.1", "DNS:db.internal", "IP Address:10.1.2.3"] {
        assert!(names.contains(name), "{names}");
    }
    for name in ["ca", "server", "client"] {
        let (certificate, key) = (format!("dev/{name}.crt"), format!("dev/{name}.key"));
        let certified = openssl(&site, &["x509", "-in", &certificate, "-noout", "-pubkey"]);
        assert_eq!(certified, openssl(&site, &["pkey", "-in", &key, "-pubout"]), "{name}");
    }

    let before = fs::read(site.path("dev/ca.key")).unwrap();
    let again = portcullis(&site, &["certs", "init", "dev"]);
    assert_eq!(again.code, Some(1), "{}", again.stderr);
    assert!(again.stderr.contains("exist"), "{}", again.stderr);
    assert_eq!(fs::read(site.path("dev/ca.key")).unwrap(), before);
}

#[test]
fn development_certificates_serve_a_client() {
    let site = TestDir::new();
    portcullis(&site, &["certs", "init", "dev"]).success();
    let issue = ["certs", "issue", "--ca", "dev/ca.crt", "--ca-key", "dev/ca.key", "--name", "app"];
    let names = ["--dns", "app.internal", "--uri", "spiffe://prod/app", "--days", "7"];
    portcullis(&site, &[&issue[..], &names, &["--out", "dev"]].concat()).success();
    assert_eq!(mode(&site, "dev/app.key"), 0o600);
    let names = openssl(&site, &["x509", "-in", "dev/app.crt", "-noout", "-ext", "subjectAltName"]);
    assert!(names.contains("DNS:app.internal"), "{names}");
    assert!(names.contains("URI:spiffe://prod/app"), "{names}");

    let upstream = Upstream::new(|mut stream| stream.write_all(b"farewell\n").unwrap());
    let listener = Listener::redis(&upstream)
        .certificates(&["dev/server"])
        .tls("client_auth = \"required\"")
        .tls("client_ca = \"dev/ca.crt\"");
    let portcullis = Portcullis::start(site, listener);
    for (certificate, key) in [("dev/client.crt", "dev/client.key"), ("dev/app.crt", "dev/app.key")] {
        let options = ["-CAfile", "dev/ca.crt", "-cert", certificate, "-key", key];
        let output = run(&mut s_client(&portcullis.site, portcullis.address("main"), &options));
        assert!(output.text().contains("Verify return code: 0 (ok)"), "{}", output.text());
        assert!(output.text().contains("farewell"), "{}", output.text());
    }
}

#[test]
fn inspect_lists_every_certificate_of_every_bundle() {
    let site = TestDir::new();
    let roots = [Authority::new("First CA"), Authority::new("Second CA")];
    let middle = roots[0].intermediate("Middle CA");
    let leaf = middle.issue(Request::client("app"));
    site.write("bundle.pem", format!("# roots\n{}junk\n{}", roots[0].pem(), roots[1].pem()));
    site.write("chain.pem", leaf.pem());
    let output = portcullis(&site, &["certs", "inspect", "bundle.pem", "chain.pem"]).success();
    for name in ["CN=First CA", "CN=Second CA", "CN=Middle CA", "CN=app", "bundle.pem", "chain.pem"] {
        assert!(output.contains(name), "no {name} in {output}");
    }
    for der in [roots[0].der(), roots[1].der(), middle.der(), leaf.der()] {
        assert!(output.contains(&crate::harness::pki::sha256(der)), "{output}");
    }
    assert!(output.contains("self-signed"), "{output}");

    let missing = portcullis(&site, &["certs", "inspect", "nowhere.pem"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("nowhere.pem"), "{}", missing.stderr);
}

#[test]
fn completions_and_man_page_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(executable().args(["completions", shell])).success();
        assert!(output.contains("portcullis") && output.contains("explain"), "{output}");
    }
    let site = TestDir::new();
    site.write("completion", run(executable().args(["completions", "bash"])).success());
    run(Command::new("bash").arg("-n").arg(site.path("completion"))).success();
    let manual = run(executable().arg("man")).success();
    for word in [".TH", "portcullis sources append", "portcullis token revoke", "PORTCULLIS_TOKEN"] {
        assert!(manual.contains(word), "no {word} in {manual}");
    }
}

#[test]
fn port_in_use_fails_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let site = configured(Listener::redis("127.0.0.1:6379").on(&["127.0.0.1:0", &address]));
    let outcome = portcullis(&site, &["run", "-c", "portcullis.toml"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&address), "{}", outcome.stderr);
    assert!(!outcome.text().contains("\"ready\""), "{}", outcome.text());
}
