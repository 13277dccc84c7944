//! Private keys: encrypted, in the environment, and in systemd credentials.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::harness::openssl::openssl;
use crate::harness::portcullis::executable;
use crate::harness::program::{Outcome, run};
use crate::harness::{Authority, Listener, Portcullis, Request, TestDir, Upstream};
use crate::reload::{ON_CHANGE, served, wait_until_served};

const PASSPHRASE: &str = "correct horse, battery staple";

/// The keys of a certificate whose key is encrypted.
const ENCRYPTED: &str = "cert = \"server.crt\", key = \"encrypted.key\", key_passphrase_file = \"passphrase\"";

/// A site in which `passphrase` holds the passphrase.
fn site() -> TestDir {
    let site = TestDir::new();
    site.write("passphrase", format!("{PASSPHRASE}\n"));
    site
}

/// Encrypts `server.key` into `encrypted.key` with an openssl command that gets in- and output appended.
fn encrypt(site: &TestDir, how: &[&str]) {
    let files = ["-in", "server.key", "-out", "encrypted.key", "-passout", "file:passphrase"];
    openssl(site, &[how, &files].concat());
    fs::set_permissions(site.path("encrypted.key"), fs::Permissions::from_mode(0o600)).unwrap();
}

/// `check` with one listener that has this certificate.
fn check(site: &TestDir, certificate: &str) -> Outcome {
    check_by(executable(), site, Listener::redis("127.0.0.1:6379").certificate(certificate))
}

fn check_by(mut command: Command, site: &TestDir, listener: Listener) -> Outcome {
    site.write("portcullis.toml", listener);
    run(command.args(["check", "--offline", "-c", "portcullis.toml"]).current_dir(site.directory()))
}

/// All output of a command, which must not contain the passphrase.
fn text_of(outcome: &Outcome) -> String {
    let printed = format!("{}{}", outcome.text(), outcome.stderr);
    assert!(!PASSPHRASE.split(' ').any(|word| printed.contains(word)), "{printed}");
    printed
}

#[test]
fn keys_in_each_encryption_of_openssl_are_decrypted() {
    let site = site();
    for how in [
        &["pkey", "-aes256"][..],
        &["pkey", "-aes128"],
        &["pkcs8", "-topk8"],
        &["pkcs8", "-topk8", "-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA1"],
        &["pkcs8", "-topk8", "-v2", "aes-192-cbc", "-v2prf", "hmacWithSHA384"],
        &["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA512", "-iter", "100000"],
    ] {
        encrypt(&site, how);
        let outcome = check(&site, ENCRYPTED);
        assert_eq!(outcome.code, Some(0), "{how:?}: {}", text_of(&outcome));
        assert!(!text_of(&outcome).contains("warning"), "{how:?}: {}", text_of(&outcome));
    }
}

#[test]
fn encrypted_key_serves_clients() {
    let site = site();
    let algorithm = ["-algorithm", "RSA", "-aes256", "-out", "encrypted.key", "-pass", "file:passphrase"];
    openssl(&site, &[&["genpkey"][..], &algorithm].concat());
    fs::set_permissions(site.path("encrypted.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let request = ["req", "-x509", "-key", "encrypted.key", "-passin", "file:passphrase", "-subj", "/CN=localhost"];
    let names = ["-addext", "subjectAltName=DNS:localhost", "-out", "server.crt"];
    openssl(&site, &[&request[..], &names].concat());
    assert_eq!(check(&site, ENCRYPTED).code, Some(0));
}

#[test]
fn unsupported_encryption_is_reported_with_a_conversion_command() {
    let site = site();
    // openssl would take the second line of one file for the second passphrase.
    site.write("same", PASSPHRASE);
    for (how, name) in [
        (&["pkcs8", "-topk8", "-scrypt", "-scrypt_N", "1024"][..], "scrypt"),
        (&["pkcs8", "-topk8", "-v2", "des3"], "3DES"),
        (&["ec", "-aes256"], "Proc-Type: 4,ENCRYPTED"),
    ] {
        encrypt(&site, how);
        let outcome = check(&site, ENCRYPTED);
        let printed = text_of(&outcome);
        assert_eq!(outcome.code, Some(78), "{how:?}: {printed}");
        assert!(printed.contains(name) && printed.contains("encrypted.key"), "{how:?}: {printed}");

        let (_, convert) = printed.split_once("openssl ").expect("a command");
        let convert =
            format!("{} converted.key", convert.split_once(" NEW").unwrap().0).replace("OLD", "encrypted.key");
        let passphrases = ["-passin", "file:passphrase", "-passout", "file:same"];
        openssl(&site, &[&convert.split(' ').collect::<Vec<_>>()[..], &passphrases].concat());
        let outcome = check(&site, &ENCRYPTED.replace("encrypted.key", "converted.key"));
        assert_eq!(outcome.code, Some(0), "{how:?}: {}", outcome.stderr);
    }
}

#[test]
fn wrong_passphrase_is_reported_and_never_shown() {
    let site = site();
    encrypt(&site, &["pkey", "-aes256"]);
    let problem = |words: &[&str]| {
        let outcome = check(&site, ENCRYPTED);
        assert_eq!(outcome.code, Some(78));
        words.iter().for_each(|word| assert!(text_of(&outcome).contains(word), "no {word} in {}", text_of(&outcome)));
    };
    site.write("passphrase", format!("{PASSPHRASE}, and more"));
    problem(&["key_passphrase_file: passphrase does not contain the passphrase of encrypted.key on its first line"]);
    site.write("passphrase", format!("\n{PASSPHRASE}\n"));
    problem(&["passphrase holds no passphrase"]);
    fs::remove_file(site.path("passphrase")).unwrap();
    problem(&["key_passphrase_file: the file that it names cannot be read"]);
    site.write("passphrase", format!("{PASSPHRASE}\r\nanother line"));
    assert_eq!(check(&site, ENCRYPTED).code, Some(0));

    let without = check(&site, "cert = \"server.crt\", key = \"encrypted.key\"");
    assert_eq!(without.code, Some(78));
    assert!(without.stderr.contains("encrypted.key") && without.stderr.contains("key_passphrase_file"));
}

#[test]
fn unneeded_and_readable_passphrases_give_warnings() {
    let site = site();
    let outcome = check(&site, &ENCRYPTED.replace("encrypted.key", "server.key"));
    assert_eq!(outcome.code, Some(0), "{}", text_of(&outcome));
    assert!(text_of(&outcome).contains("warning: listener main: the key server.key is not encrypted"));
    encrypt(&site, &["pkey", "-aes256"]);
    fs::set_permissions(site.path("passphrase"), fs::Permissions::from_mode(0o644)).unwrap();
    let outcome = check(&site, ENCRYPTED);
    assert!(text_of(&outcome).contains("can read the passphrase passphrase"), "{}", text_of(&outcome));
}

#[test]
fn encrypted_key_rotates_with_its_passphrase() {
    let upstream = Upstream::echo();
    let site = site();
    encrypt(&site, &["pkey", "-aes256"]);
    let listener = Listener::redis(&upstream).certificate(ENCRYPTED);
    let portcullis = Portcullis::start(site, format!("{ON_CHANGE}{listener}"));
    portcullis.client().connect().ask(b"hello", b"hello");
    let site = &portcullis.site;
    for round in 0..3 {
        let leaf = site.server();
        site.write("server.key", leaf.key_pem());
        site.write("new", format!("another passphrase {round}"));
        openssl(site, &["pkey", "-aes256", "-in", "server.key", "-out", "encrypted.new", "-passout", "file:new"]);
        // One file after the other, as a script does.
        fs::rename(site.path("new"), site.path("passphrase")).unwrap();
        fs::rename(site.path("encrypted.new"), site.path("encrypted.key")).unwrap();
        site.replace("server.crt", leaf.pem());
        wait_until_served(&portcullis, &leaf);
        // The log line comes a moment later.
        let sha256 = leaf.sha256();
        portcullis.event("the reload", |event| event.is("reload.applied") && event.0.to_string().contains(&sha256));
    }
    let before = served(&portcullis);
    let rejected = portcullis.reload_after(|| site.replace("passphrase", "hunter2"));
    assert!(rejected.is("reload.rejected"), "{}", rejected.0);
    assert!(rejected.text("error").contains("does not contain the passphrase of"), "{}", rejected.0);
    assert_eq!(served(&portcullis), before);
    let log: String = portcullis.events().iter().map(|event| event.0.to_string()).collect();
    assert!(!log.contains("hunter2") && !log.contains("another passphrase"), "{log}");
}

#[test]
fn certificate_and_key_are_read_from_the_environment() {
    let upstream = Upstream::echo();
    let listener = Listener::redis(&upstream).certificate("cert = \"env:TLS_CERT\", key = \"env:TLS_KEY\"");
    let site = TestDir::new();
    let leaf = site.server();
    let mut command = executable();
    command.env("TLS_CERT", leaf.pem()).env("TLS_KEY", leaf.key_pem());
    let portcullis = Portcullis::start_by(command, site, format!("{ON_CHANGE}{listener}"));
    portcullis.client().connect().ask(b"hello", b"hello");
    // A reload finds them again.
    portcullis.applies(|| portcullis.hang_up());
    assert_eq!(served(&portcullis), leaf.sha256());
    let log: String = portcullis.events().iter().map(|event| event.0.to_string()).collect();
    assert!(!log.contains("WARN"), "{log}");
}

#[test]
fn variable_without_a_key_is_a_configuration_error() {
    let site = TestDir::new();
    for (value, words) in [
        (None, "the environment variable TLS_KEY is not set"),
        (Some(""), "the environment variable TLS_KEY is empty"),
        (Some("hello"), "the environment variable TLS_KEY holds no private key"),
    ] {
        let mut command = executable();
        command.envs(value.map(|value| ("TLS_KEY", value)));
        let listener = Listener::redis("127.0.0.1:6379").certificate("cert = \"server.crt\", key = \"env:TLS_KEY\"");
        let outcome = check_by(command, &site, listener);
        assert_eq!(outcome.code, Some(78));
        assert!(outcome.stderr.contains(words) && outcome.stderr.contains(".key: "), "{}", outcome.stderr);
    }
}

/// A site whose files are credentials, and the listener that names them so.
fn with_credentials() -> (TestDir, Listener) {
    let site = site();
    encrypt(&site, &["pkey", "-aes256"]);
    fs::create_dir(site.path("credentials")).unwrap();
    site.write("sources", "[[rule]]\ntype = \"ip_addr\"\nvalue = \"127.0.0.0/8\"\n");
    for name in ["server.crt", "encrypted.key", "passphrase", "ca.crt", "sources"] {
        fs::rename(site.path(name), site.path(&format!("credentials/{name}"))).unwrap();
        // The owner and mode that systemd sets if the service does not run as root.
        let mode = fs::Permissions::from_mode(0o440);
        fs::set_permissions(site.path(&format!("credentials/{name}")), mode).unwrap();
    }
    let listener = Listener::redis("127.0.0.1:6379")
        .certificate(
            "cert = \"${CREDENTIALS_DIRECTORY}/server.crt\", key = \"credential:encrypted.key\", \
             key_passphrase_file = \"$CREDENTIALS_DIRECTORY/passphrase\"",
        )
        .key("sources_file = \"credential:sources\"")
        .tls("client_auth = \"optional\"")
        .tls("client_ca = [\"credential:ca.crt\"]");
    (site, listener)
}

#[test]
fn files_are_read_from_systemd_credentials() {
    let (site, listener) = with_credentials();
    let with = || {
        let mut command = executable();
        command.env("CREDENTIALS_DIRECTORY", site.path("credentials"));
        command
    };
    let outcome = check_by(with(), &site, listener.clone());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.text().contains("127.0.0.0/8"), "{}", outcome.text());
    assert!(!outcome.text().contains("warning"), "{}", outcome.text());
    // A credential must not be readable by all users, either.
    fs::set_permissions(site.path("credentials/encrypted.key"), fs::Permissions::from_mode(0o444)).unwrap();
    let outcome = check_by(with(), &site, listener.clone());
    assert!(outcome.text().contains("encrypted.key; run: chmod 600"), "{}", outcome.text());

    fs::remove_file(site.path("credentials/ca.crt")).unwrap();
    let outcome = check_by(with(), &site, listener);
    assert_eq!(outcome.code, Some(78));
    assert!(outcome.stderr.contains("credentials/ca.crt cannot be read"), "{}", outcome.stderr);
}

#[test]
fn missing_credentials_directory_is_reported_as_a_unit_error() {
    let (site, listener) = with_credentials();
    for directory in [None, Some("")] {
        let mut command = executable();
        directory.map(|directory| command.env("CREDENTIALS_DIRECTORY", directory));
        let outcome = check_by(command, &site, listener.clone());
        assert_eq!(outcome.code, Some(78));
        for name in ["server.crt", "encrypted.key", "passphrase", "ca.crt", "sources"] {
            let words = format!("LoadCredential={name}:");
            assert!(outcome.stderr.contains(&words), "no {words} in {}", outcome.stderr);
        }
    }
}

#[test]
fn certificate_that_expires_within_a_month_gives_a_warning() {
    let site = TestDir::new();
    let middle = site.ca.intermediate("Middle CA");
    let warnings = |days: i64| {
        site.install("soon", &middle.issue(Request::server(&["localhost"]).valid(-1, days)));
        let listener = Listener::redis("127.0.0.1:6379")
            .certificates(&["soon"])
            .tls("client_auth = \"required\"")
            .tls("client_ca = \"soon.crt\"");
        let printed = check_by(executable(), &site, listener).success();
        printed.lines().filter(|line| line.contains("expires in")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(warnings(31).is_empty());
    for (days, words) in [(30, "expires in 30 days"), (1, "expires in 1 day,")] {
        let warnings = warnings(days);
        let about = |what: &str| warnings.iter().any(|line| line.contains(what) && line.contains(words));
        assert!(about("the server certificate CN=localhost"), "{warnings:?}");
        assert!(about("the client CA certificate CN=localhost"), "{warnings:?}");
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }
}

#[test]
fn expired_intermediate_gives_a_warning() {
    let site = TestDir::new();
    let leaf = fs::read_to_string(site.path("server.crt")).unwrap();
    site.write("server.crt", format!("{leaf}{}", Authority::expired("Old CA").pem()));
    let printed = check_by(executable(), &site, Listener::redis("127.0.0.1:6379")).success();
    assert!(printed.contains("the intermediate certificate CN=Old CA expired"), "{printed}");
}

#[test]
fn start_warns_about_a_certificate_that_expires_within_a_month() {
    let site = TestDir::new();
    site.install("server", &site.ca.issue(Request::server(&["localhost"]).valid(-1, 9)));
    let portcullis = Portcullis::start(site, Listener::redis("127.0.0.1:6379"));
    portcullis.event("a warning", |event| {
        event.0["level"] == "WARN" && event.0.to_string().contains("CN=localhost expires in 9 days")
    });
}
