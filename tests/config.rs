//! Valid and invalid configurations: runs `check` on each file in tests/config.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs};

use crate::harness::openssl::openssl;
use crate::harness::portcullis::executable;
use crate::harness::program::{Outcome, run};
use crate::harness::{Authority, Listener, Request, TestDir};

/// The files of a directory of tests/config, sorted.
fn cases(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(directory);
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// A `clients_file`. The password of "app" is "pencil".
const CLIENTS: &str = r#"
[[client]]
user = "app"
passwords = [
    { id = "p1", scram = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=", created_at = 2026-01-31T00:00:00Z },
]

[[client]]
user = "web"
certificates = ["cn:web", "uri:spiffe://prod/web/*"]
upstream_user = "readonly"
"#;

/// Clients with everything that is rejected.
const WRONG_CLIENTS: &str = r#"
[[client]]
user = "web"
certificates = ["dns:1.app.internal", "uri:spiffe://prod/web/1"]

[[client]]
user = "web"
upstream_user = ""
passwords = [
    { id = "p1", scram = "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA" },
    { id = "p 2", scram = "my-secret-Passw0rd!", expires_at = "soon" },
]

[[client]]
user = "web"
certificates = ["dns:*.app.internal", "uri:spiffe://prod/web/1"]

[[client]]
user = "job"
password = "my-secret-Passw0rd!"
certificates = "job"
disabled = "no"
"#;

/// A password with another salt than those of [`CLIENTS`].
const OTHER_SALT: &str = r#"},
    { id = "p2", scram = "SCRAM-SHA-256$4096:AAAAaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=" },
]
"#;

/// A directory with all files that the configurations name.
pub(crate) fn site() -> TestDir {
    let site = TestDir::new();
    site.install("other", &site.server());
    site.write("sources.toml", "[[rule]]\ntype = \"ip_addr\"\nvalue = \"192.0.2.1\"\n");
    let token = format!("[[token]]\nname = \"ci\"\nrole = \"viewer\"\nsha256 = \"{}\"\n", "c".repeat(64));
    site.write("tokens.toml", token);
    site.write("clients.toml", CLIENTS);
    site.write("db.password", "new secret\nold secret\n");
    site.write("nul.password", "new secret\n\nold\0secret\n");
    site.write("two-salts.toml", CLIENTS.replace("},\n]\n", OTHER_SALT));
    site.write("wrong-clients.toml", WRONG_CLIENTS);
    site.write("empty", "");
    site.write("do.token", "dop_v1_of_a_test");
    site.write("k8s.token", "eyJ of a test");
    site.write("kubeconfig", "apiVersion: v1\nkind: Config\n");
    let whole = Authority::new("A CA").pem();
    site.write("cut.crt", &whole[..whole.len() / 2]);
    site.write("joined.crt", format!("{}{whole}", whole.trim_end()));
    for kind in ["X509", "TRUSTED"] {
        let foreign = whole.replace("CERTIFICATE", &format!("{kind} CERTIFICATE"));
        site.write(&format!("{}.crt", kind.to_lowercase()), format!("{whole}{foreign}"));
    }
    site.write("right.txt", "right");
    site.write("wrong.txt", "mistaken");
    for (name, how) in [
        ("encrypted.key", &["pkey", "-aes256"][..]),
        ("scrypt.key", &["pkcs8", "-topk8", "-scrypt"]),
        ("legacy.key", &["ec", "-aes256"]),
    ] {
        openssl(&site, &[how, &["-in", "server.key", "-out", name, "-passout", "file:right.txt"]].concat());
    }
    clients(&site);
    site
}

/// Writes valid and invalid files for client authentication and session tickets.
fn clients(site: &TestDir) {
    let app = site.ca.issue(Request::client("app"));
    fs::create_dir(site.path("clients")).unwrap();
    site.install("clients/app", &app);
    site.install("clients/next", &site.ca.issue(Request::client("app")));
    let options = ["req", "-new", "-subj", "/CN=old app", "-key", "clients/app.key", "-out", "v1.csr"];
    openssl(site, &options);
    openssl(site, &["x509", "-req", "-in", "v1.csr", "-signkey", "clients/app.key", "-out", "v1.crt"]);

    let list = site.ca.revoking(&[&app], 30);
    site.write("ca.crl", &list);
    site.write("cut.crl", &list[..list.len() / 2]);
    // The same name with another key.
    site.write("namesake.crl", Authority::new("Test CA").revoking(&[], 30));

    site.write("tickets.keys", format!("# today\n{}\n{}\n", "a".repeat(64), "b".repeat(64)));
    site.write("short.keys", format!("{}\n{}\n", "a".repeat(64), "A".repeat(43) + "="));
    site.write("words.keys", "secret words, 48 of them\n");
}

/// Runs a command on one configuration, copied to where the files it names are.
fn portcullis(site: &TestDir, command: &str, case: &Path) -> Outcome {
    // The examples name directories that systemd creates.
    let text = fs::read_to_string(case).unwrap().replace("unix:/run/portcullis/", "unix:");
    site.write(name(case), text);
    let mut portcullis = executable();
    portcullis.args([command, "-c", name(case)]).current_dir(site.directory());
    if command == "check" {
        // The upstreams do not exist.
        portcullis.arg("--offline");
    }
    run(&mut portcullis)
}

/// The expectations in the first line of a case: `# expect: this | and that | !but not this`.
fn expectations(case: &Path) -> Vec<String> {
    let text = fs::read_to_string(case).unwrap();
    let line = text.lines().next().and_then(|line| line.strip_prefix("# expect:"));
    line.expect("a first line with expectations").split(" | ").map(|text| text.trim().to_owned()).collect()
}

#[test]
fn valid_configuration_passes_check() {
    let site = site();
    for case in cases("valid") {
        let outcome = portcullis(&site, "check", &case);
        assert_eq!(outcome.code, Some(0), "{}: {}", name(&case), outcome.stderr);
        assert!(!outcome.stdout.is_empty(), "{}", name(&case));
    }
}

/// Checks the exit code, the expectations of the case, and the exact text.
#[test]
fn invalid_configuration_fails_with_the_approved_errors() {
    let bless = env::var_os("PORTCULLIS_BLESS").is_some();
    let site = site();
    let mut failures = Vec::new();
    for case in cases("invalid") {
        let Outcome { code, stderr, .. } = portcullis(&site, "check", &case);
        if code != Some(78) {
            failures.push(format!("{}: exit {code:?}\n{stderr}", name(&case)));
        }
        for expected in expectations(&case) {
            let is_met = match expected.strip_prefix('!') {
                None => stderr.contains(&expected),
                Some(unexpected) => !stderr.contains(unexpected),
            };
            if !is_met {
                failures.push(format!("{}: not met: {expected:?} in\n{stderr}", name(&case)));
            }
        }
        let actual = stderr.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        let golden = case.with_extension("stderr");
        if bless {
            fs::write(&golden, &actual).unwrap();
        }
        let approved = fs::read_to_string(&golden).unwrap_or_default();
        if actual != approved {
            failures.push(format!("{}:\napproved:\n{approved}actual:\n{actual}", name(&case)));
        }
    }
    let hint = "run with PORTCULLIS_BLESS=1 to approve, and read what you approve";
    assert!(failures.is_empty(), "{}\n{hint}", failures.join("\n"));
}

#[test]
fn run_rejects_what_check_rejects() {
    let site = site();
    for case in ["several-errors-at-once", "key-of-another-certificate", "source-with-host-bits"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        let case = path.join("tests/config/invalid").join(case).with_extension("toml");
        let (checked, started) = (portcullis(&site, "check", &case), portcullis(&site, "run", &case));
        assert_eq!(started.code, Some(78), "{}", started.stderr);
        assert_eq!(started.stderr, checked.stderr);
        assert!(!started.text().contains("ready"), "{}", started.text());
    }
}

#[test]
fn missing_configuration_exits_with_78() {
    for command in ["check", "run"] {
        let outcome = run(executable().args([command, "-c", "/nowhere/portcullis.toml"]));
        assert_eq!(outcome.code, Some(78));
        assert!(outcome.stderr.contains("/nowhere/portcullis.toml"), "{}", outcome.stderr);
    }
}

#[test]
fn configuration_that_is_not_utf8_is_rejected() {
    let site = TestDir::new();
    fs::write(site.path("portcullis.toml"), b"name = \"\xff\xfe\"").unwrap();
    let outcome = run(executable().arg("check").arg("-c").arg(site.path("portcullis.toml")));
    assert_eq!(outcome.code, Some(78));
    assert!(outcome.stderr.contains("UTF-8"), "{}", outcome.stderr);
}

/// A list of sources in which every rule has a different error.
pub(crate) fn broken_rules(count: u32) -> String {
    let rules = (0..count).map(|number| {
        let [_, high, middle, low] = (number | 1).to_be_bytes();
        format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.{high}.{middle}.{low}/8\"\n")
    });
    rules.collect()
}

#[test]
fn list_of_invalid_rules_is_reported_quickly_and_truncated() {
    let site = TestDir::new();
    site.write("sources.toml", broken_rules(40_000));
    let listener = Listener::redis("127.0.0.1:6379").key("sources_file = \"sources.toml\"");
    site.write("portcullis.toml", listener);
    let start = Instant::now();
    let outcome = run(executable().args(["check", "-c"]).arg(site.path("portcullis.toml")));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(outcome.code, Some(78));
    let reported = outcome.stderr.lines().filter(|line| line.contains("did you mean")).count();
    assert_eq!(reported, 100, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("and 39900 more problems"), "{}", outcome.stderr);
}

/// A Secret volume as Kubernetes mounts it: symbolic links through `..data` to the files.
fn secret(site: &TestDir, mode: u32) {
    fs::create_dir_all(site.path("tls/..2026")).unwrap();
    std::os::unix::fs::symlink("..2026", site.path("tls/..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        let file = site.path(&format!("tls/..2026/{name}"));
        fs::copy(site.path(&name.replace("tls", "server")), &file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::symlink(format!("..data/{name}"), site.path(&format!("tls/{name}"))).unwrap();
    }
}

#[test]
fn key_in_a_secret_volume_causes_a_warning_only_if_all_users_can_read_it() {
    for (mode, warned) in [(0o400, false), (0o440, false), (0o644, true)] {
        let site = TestDir::new();
        secret(&site, mode);
        let listener = Listener::redis("127.0.0.1:6379").certificate("cert = \"tls/tls.crt\", key = \"tls/tls.key\"");
        site.write("portcullis.toml", listener);
        let output =
            run(executable().args(["check", "--offline", "-c", "portcullis.toml"]).current_dir(site.directory()))
                .success();
        assert_eq!(output.contains("defaultMode: 0400"), warned, "{mode:o}: {output}");
        assert!(!output.contains("chmod"), "{mode:o}: {output}");
    }
}

#[test]
fn kubernetes_example_passes_check_without_warnings() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes/redis-sidecar.yaml");
    let manifest = fs::read_to_string(manifest).unwrap();
    let (_, config) = manifest.split_once("portcullis.toml: |\n").unwrap();
    let lines = config.lines().take_while(|line| *line != "---");
    let config: String = lines.map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let site = TestDir::new();
    secret(&site, 0o440);
    fs::create_dir(site.path("clients")).unwrap();
    site.write("clients/ca.crt", site.ca.pem());
    let here = |path: &str| format!("\"{}/", site.path(path).display());
    let run_directory = site.directory().display().to_string();
    let config = config.replace("\"/tls/", &here("tls")).replace("\"/clients/", &here("clients"));
    site.write("portcullis.toml", config.replace("/run/portcullis", &run_directory));
    // With --strict a warning is a failure. Redis is not reachable here.
    let mut check = executable();
    check.args(["check", "--offline", "--strict", "-c", "portcullis.toml"]).current_dir(site.directory());
    let output = run(&mut check).success();
    assert!(!output.contains("warning"), "{output}");
    assert!(
        output.contains("client certificates: required") && manifest.contains("mountPath: /run/portcullis"),
        "{output}"
    );
}
