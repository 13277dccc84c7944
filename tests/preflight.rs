//! Faults that `check` reports before a start: files, chains, keys, sources, directories, addresses, upstreams.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::unistd::geteuid;
use serde_json::Value;

use crate::harness::openssl::openssl;
use crate::harness::portcullis::{EXECUTABLE, executable};
use crate::harness::program::{Outcome, free_address, run, setpriv};
use crate::harness::{Authority, Listener, Portcullis, Request, TestDir};
use crate::reload::ON_SIGHUP;

/// A directory with a configuration, and the output of `check` with these options.
fn check(site: &TestDir, config: impl std::fmt::Display, options: &[&str]) -> Outcome {
    site.write("portcullis.toml", config);
    run(executable().args(["check", "-c", "portcullis.toml"]).args(options).current_dir(site.directory()))
}

fn warnings(site: &TestDir, config: impl std::fmt::Display) -> String {
    let outcome = check(site, config, &["--offline"]);
    let output = outcome.success();
    output.lines().filter(|line| line.starts_with("warning: ")).map(|line| format!("{line}\n")).collect()
}

fn listener() -> Listener {
    Listener::redis("127.0.0.1:6379")
}

#[test]
fn faulty_chains_give_warnings() {
    let site = TestDir::new();
    let middle = site.ca.intermediate("Middle CA");
    let leaf = middle.issue(Request::server(&["localhost"]));
    site.install("server", &leaf);
    assert_eq!(warnings(&site, listener()), "");
    let own = leaf.pem().split_inclusive("-----END CERTIFICATE-----\n").next().unwrap().to_owned();
    site.write(
        "server.crt",
        [&own, &site.ca.pem(), &middle.pem(), &middle.pem(), &Authority::new("Other CA").pem()]
            .map(String::as_str)
            .concat(),
    );
    let output = warnings(&site, listener());
    for words in [
        "use this order: CN=localhost, then CN=Middle CA, then CN=Test CA",
        "certificate 4 is the same as certificate 3",
        "certificate 5 (CN=Other CA) does not belong to the chain",
    ] {
        assert!(output.contains(words), "no {words:?} in {output}");
    }
    assert_eq!(output.lines().count(), 3, "{output}");
}

#[test]
fn certificates_of_the_wrong_purpose_give_warnings() {
    let site = TestDir::new();
    site.install("client", &site.ca.issue(Request::client("app").also("dns:localhost")));
    let output = warnings(&site, listener().certificates(&["client"]));
    assert!(output.contains("the server certificate CN=app lacks serverAuth"), "{output}");
    let upstream = |name: &str| {
        let keys = format!("cert = \"{name}.crt\"\nkey = \"{name}.key\"");
        listener().upstream_tls("verify-full", "ca.crt").upstream(&keys)
    };
    let output = warnings(&site, upstream("server"));
    assert!(output.contains("the certificate for the upstream CN=localhost lacks clientAuth"), "{output}");
    assert_eq!(warnings(&site, upstream("client")), "");
}

#[test]
fn unspecified_and_expired_sources_give_warnings() {
    let site = TestDir::new();
    let rule = "trusted_sources = [\"127.0.0.1\", { type = \"ip_addr\", value = \"10.0.0.1\", expires_at = 2020-01-31T00:00:00Z }]";
    let config = listener().to_string().replace("trusted_sources = [\"127.0.0.1\"]", rule);
    let output = warnings(&site, config);
    assert!(
        output.contains("the rule ip_addr:10.0.0.1 expired at 2020-01-31T00:00:00Z and matches no client"),
        "{output}"
    );
    for (source, meant) in [("0.0.0.0", "0.0.0.0/0"), ("::", "::/0"), ("0.0.0.0/32", "0.0.0.0/0"), ("::/128", "::/0")] {
        let output = warnings(&site, listener().trusting(&[source]));
        assert!(output.contains("matches no client") && output.contains(meant), "{source}: {output}");
        let output = warnings(&site, listener().behind(&[source]));
        assert!(output.contains("matches no client") && output.contains(meant), "{source}: {output}");
    }
    assert!(!warnings(&site, listener().trusting(&["0.0.0.0/0"])).contains("matches no client"));
}

#[test]
fn unusable_keys_are_reported_with_kind_and_size() {
    let site = TestDir::new();
    openssl(&site, &["dsaparam", "-out", "dsa.pem", "1024"]);
    openssl(&site, &["genpkey", "-paramfile", "dsa.pem", "-out", "dsa.key"]);
    for (options, words) in [
        (&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"][..], "it is RSA of 1024 bits"),
        (&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1536"], "it is RSA of 1536 bits"),
        (&["ecparam", "-name", "secp224r1", "-genkey", "-noout"], "it is EC on P-224"),
        (&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"], "it is EC on secp256k1"),
        (&["genpkey", "-algorithm", "ED448"], "it is Ed448"),
        (&["genpkey", "-paramfile", "dsa.pem"], "it is DSA of 1024 bits"),
        (&["pkey", "-in", "dsa.key", "-traditional"], "holds a DSA key"),
    ] {
        openssl(&site, &[options, &["-out", "odd.key"]].concat());
        openssl(&site, &["req", "-x509", "-new", "-key", "odd.key", "-subj", "/CN=localhost", "-out", "odd.crt"]);
        let outcome = check(&site, listener().certificates(&["odd"]), &["--offline"]);
        assert_eq!(outcome.code, Some(78), "{words}: {}", outcome.text());
        for words in [words, "RSA of 2048 to 8192 bits"] {
            assert!(outcome.stderr.contains(words), "no {words:?} in {}", outcome.stderr);
        }
    }
    // An unusable CA is only a warning: the other CAs are still used.
    openssl(
        &site,
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:1024",
            "-nodes",
            "-keyout",
            "x.key",
            "-subj",
            "/CN=Old CA",
            "-out",
            "old.crt",
        ],
    );
    let clients = listener().tls("client_auth = \"required\"").tls("client_ca = [\"ca.crt\", \"old.crt\"]");
    let output = warnings(&site, clients);
    assert!(output.contains("the key of the client CA certificate CN=Old CA is RSA of 1024 bits"), "{output}");
}

#[test]
fn pem_in_the_environment_may_have_escaped_line_breaks() {
    let site = TestDir::new();
    let on_one_line = |name: &str| fs::read_to_string(site.path(name)).unwrap().replace('\n', "\\n");
    site.write("portcullis.toml", listener().certificate("cert = \"env:TLS_CERT\", key = \"env:TLS_KEY\""));
    let mut command = executable();
    command.env("TLS_CERT", on_one_line("server.crt")).env("TLS_KEY", on_one_line("server.key"));
    run(command.args(["check", "--offline", "-c", "portcullis.toml"]).current_dir(site.directory())).success();
}

#[test]
fn missing_files_are_reported_with_other_errors_of_the_listener() {
    let site = TestDir::new();
    let listener = listener()
        .named("Not A Name")
        .certificate("cert = \"nowhere.crt\", key = \"server.key\"")
        .tls("client_auth = \"required\"")
        .tls("client_ca = [\"ca.crt\", \"missing.pem\"]")
        .tls("client_certificates = \"clients/*.crt\"")
        .upstream("tls = \"verify\"")
        .upstream("ca = \"redis_ca.pem\"");
    let outcome = check(&site, listener, &["--offline"]);
    assert_eq!(outcome.code, Some(78));
    for words in [
        "name: found",
        "nowhere.crt cannot be read",
        "client_ca[1]: missing.pem",
        "clients/*.crt",
        "upstream.tls: found",
        "redis_ca.pem",
    ] {
        assert_eq!(outcome.stderr.matches(words).count(), 1, "{words:?} in {}", outcome.stderr);
    }
    assert!(!outcome.stderr.contains("ca.crt cannot") && !outcome.stderr.contains("unknown key"), "{}", outcome.stderr);
}

#[test]
fn missing_directory_of_a_unix_socket_is_reported() {
    let site = TestDir::new();
    let admin = format!("admin.listen = \"unix:nowhere/admin.sock\"\n{}", listener());
    let unix = listener().without_tls().on(&["unix:nowhere/cache.sock"]).to_string();
    for (config, place) in [(&admin, "portcullis.toml:1:16: admin.listen: "), (&unix, "listener[0].listen[0]: ")] {
        let outcome = check(&site, config, &["--offline"]);
        assert_eq!(outcome.code, Some(78), "{}", outcome.text());
        for words in [place, "directory nowhere does not exist"] {
            assert!(outcome.stderr.contains(words), "no {words:?} in {}", outcome.stderr);
        }
        let started = run(executable().args(["run", "-c", "portcullis.toml"]).current_dir(site.directory()));
        assert_eq!(started.code, Some(1), "{}", started.stderr);
    }
    fs::create_dir(site.path("nowhere")).unwrap();
    assert_eq!(check(&site, &admin, &["--offline"]).code, Some(0));
    site.write("nowhere/admin.sock", "a file");
    let outcome = check(&site, &admin, &["--offline"]);
    assert!(outcome.code == Some(78) && outcome.stderr.contains("is not a socket"), "{}", outcome.stderr);
}

#[test]
fn check_of_a_running_configuration_passes() {
    let upstream = crate::harness::Upstream::echo();
    let address = free_address().to_string();
    let config =
        format!("{ON_SIGHUP}admin.listen = \"unix:admin.sock\"\n{}", Listener::redis(&upstream).on(&[&address]));
    let portcullis = Portcullis::start(TestDir::new(), &config);
    portcullis.client().connect().ask(b"hello", b"hello");
    let outcome = check(&portcullis.site, &config, &["--strict"]);
    assert_eq!(outcome.code, Some(0), "{}{}", outcome.text(), outcome.stderr);
}

#[test]
fn silent_upstreams_are_warnings_that_strict_fails_and_offline_skips() {
    let site = TestDir::new();
    let closed = free_address();
    for (upstream, words) in [
        (closed.to_string(), "refuses connections"),
        ("no-such-host.invalid:6379".to_owned(), "cannot be resolved"),
        ("unix:nowhere.sock".to_owned(), "cannot be reached: No such file"),
    ] {
        let listener = Listener::redis(&upstream);
        let outcome = check(&site, &listener, &[]);
        let output = outcome.success();
        assert!(output.contains(&format!("warning: listener main: upstream {upstream} {words}")), "{output}");
        let strict = check(&site, &listener, &["--strict"]);
        assert_eq!(strict.code, Some(1), "{}", strict.stderr);
        assert!(strict.text().contains(words) && strict.stderr.contains("1 warning"), "{}", strict.stderr);
        let report: Value = serde_json::from_str(&check(&site, &listener, &["--json"]).success()).unwrap();
        assert!(report["warnings"][0].as_str().unwrap().contains(words), "{report}");
        let offline = check(&site, &listener, &["--strict", "--offline"]);
        assert_eq!(offline.code, Some(0), "{}{}", offline.text(), offline.stderr);
    }
}

#[test]
fn expired_server_certificates_fail_strictly() {
    let site = TestDir::new();
    site.install("server", &site.ca.issue(Request::server(&["localhost"]).valid(-20, -10)));
    assert_eq!(check(&site, listener(), &["--offline"]).code, Some(0));
    let strict = check(&site, listener(), &["--offline", "--strict"]);
    assert_eq!(strict.code, Some(1));
    assert!(strict.text().contains("the server certificate CN=localhost expired at"), "{}", strict.text());
}

#[test]
fn addresses_of_other_machines_cannot_be_bound() {
    let site = TestDir::new();
    // 192.0.2.0/24 is for documentation and belongs to no machine.
    let listener = listener().on(&["127.0.0.1:0", "192.0.2.77:6380"]);
    let outcome = check(&site, &listener, &[]);
    assert_eq!(outcome.code, Some(78), "{}", outcome.text());
    assert!(outcome.stderr.contains("listener[0].listen[1]: 192.0.2.77:6380 cannot be bound"), "{}", outcome.stderr);
    assert_eq!(check(&site, &listener, &["--offline"]).code, Some(0));
}

/// Runs the program as a user who owns nothing. Only root can do that.
fn as_unprivileged(site: &TestDir, arguments: &[&str]) -> Option<Outcome> {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return None;
    }
    fs::set_permissions(site.directory(), Permissions::from_mode(0o755)).unwrap();
    let options = ["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"];
    Some(run(setpriv(&options, EXECUTABLE).args(arguments).current_dir(site.directory())))
}

#[test]
fn unreadable_files_are_reported_with_user_and_fix() {
    let site = TestDir::new();
    let config = format!(
        "log.audit_file = \"audit.jsonl\"\nadmin.listen = \"unix:admin.sock\"\n{}",
        listener().on(&["127.0.0.1:80"])
    );
    site.write("portcullis.toml", config);
    let readable = |name: &str| fs::set_permissions(site.path(name), Permissions::from_mode(0o644)).unwrap();
    let check = ["check", "-c", "portcullis.toml"];
    let denied = "as user nobody: permission denied; ";
    let Some(outcome) = as_unprivileged(&site, &check) else { return };
    assert!(
        outcome.stderr.contains(&format!("portcullis.toml: cannot be read {denied}run: chgrp nogroup portcullis.toml")),
        "{}",
        outcome.stderr
    );
    readable("portcullis.toml");
    readable("server.crt");
    let outcome = as_unprivileged(&site, &check).unwrap();
    assert_eq!(outcome.code, Some(78));
    let words = format!("server.key cannot be read {denied}run: chown nobody: server.key && chmod 600 server.key");
    assert!(outcome.stderr.contains(&words), "{}", outcome.stderr);
    let changed = Command::new("chown").args(["nobody:", "server.key"]).current_dir(site.directory()).status().unwrap();
    assert!(changed.success());
    let outcome = as_unprivileged(&site, &check).unwrap();
    assert_eq!(outcome.code, Some(78));
    for words in [
        format!("log.audit_file: audit.jsonl cannot be opened for writing {denied}run: chown nobody: "),
        format!("admin.listen: admin.sock cannot be bound {denied}run: chown nobody: ."),
        format!(
            "listener[0].listen[0]: 127.0.0.1:80 cannot be bound {denied}ports below 1024 need CAP_NET_BIND_SERVICE"
        ),
    ] {
        assert!(outcome.stderr.contains(&words), "no {words:?} in {}", outcome.stderr);
    }
    let started = as_unprivileged(&site, &["run", "-c", "portcullis.toml"]).unwrap();
    assert_eq!(started.code, Some(1));
    assert!(
        started.stderr.contains(&format!("audit.jsonl cannot be opened for writing {denied}run: chown nobody: ")),
        "{}",
        started.stderr
    );
    site.write("portcullis.toml", format!("admin.listen = \"unix:admin.sock\"\n{}", listener()));
    let started = as_unprivileged(&site, &["run", "-c", "portcullis.toml"]).unwrap();
    assert!(
        started.stderr.contains(&format!("admin.sock: cannot be bound {denied}run: chown nobody: .")),
        "{}",
        started.stderr
    );
    site.write("portcullis.toml", listener().on(&["127.0.0.1:80"]));
    let started = as_unprivileged(&site, &["run", "-c", "portcullis.toml"]).unwrap();
    assert!(
        started.stderr.contains(&format!("127.0.0.1:80 cannot be bound {denied}ports below")),
        "{}",
        started.stderr
    );
}

#[test]
fn secrets_are_not_repeated_by_check_run_reload_and_status() {
    let upstream = crate::harness::Upstream::echo();
    let good = format!("{ON_SIGHUP}admin.listen = \"unix:admin.sock\"\n{}", Listener::redis(&upstream));
    let mut portcullis = Portcullis::start(TestDir::new(), &good);
    portcullis.address("main");
    let tls = |table: &str| Listener::redis(&upstream).certificate(table).to_string();
    let pem = "\"\"\"-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n\"\"\"";
    for listener in [
        tls(&format!("cert = \"server.crt\", key = {pem}")),
        tls("cert = \"server.crt\", key = \"server.key\", key_passphrase_file = \"hunter2\""),
        tls("cert = \"server.crt\", key = \"server.key\", key_passphrase_file = hunter2"),
        Listener::redis("redis://user:hunter2@db.internal:6379").to_string(),
        Listener::redis(&upstream)
            .tls("ticket_keys = \"hunter2/aGVsbG8gd29ybGQgdGhpcyBpcyBhIHRpY2tldCBrZXkK\"")
            .to_string(),
    ] {
        let config = format!("{ON_SIGHUP}admin.listen = \"unix:admin.sock\"\n{listener}");
        assert!(portcullis.reconfigure(&config).is("reload.rejected"), "{config}");
        let site = &portcullis.site;
        for arguments in [
            &["check"][..],
            &["check", "--json"],
            &["run"],
            &["reload"],
            &["reload", "--plan"],
            &["status"],
            &["status", "--json"],
        ] {
            let socket: &[&str] =
                if matches!(arguments[0], "reload" | "status") { &["--socket", "admin.sock"] } else { &[] };
            let mut command = executable();
            command.args(arguments).args(["-c", "portcullis.toml"]).args(socket).current_dir(site.directory());
            let outcome = run(&mut command);
            let output = format!("{}{}", outcome.text(), outcome.stderr);
            assert!(!output.contains("hunter2") && !output.is_empty(), "{arguments:?}: {output}");
        }
    }
    let (_, events) = portcullis.stop();
    assert!(events.iter().filter(|event| event.is("reload.rejected")).count() >= 5);
    for event in &events {
        assert!(!event.0.to_string().contains("hunter2"), "{}", event.0);
    }
}
