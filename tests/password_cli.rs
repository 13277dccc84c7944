//! `portcullis password`.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::guide::{Rehearsal, blocks, document};
use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::{Outcome, Running, command, run, run_with_input};
use crate::harness::{Listener, Portcullis, TestDir};

/// Runs `portcullis password` in a directory, with this standard input.
fn password_with(site: &TestDir, arguments: &[&str], input: &str) -> Outcome {
    let mut command = executable();
    run_with_input(command.arg("password").args(arguments).current_dir(site.directory()), input.as_bytes())
}

fn password(site: &TestDir, arguments: &[&str]) -> Outcome {
    password_with(site, arguments, "")
}

/// Adds a password with the ID `p1`, `p2`, ….
fn add(site: &TestDir, user: &str, text: &str) {
    password_with(site, &["add", user, "-f", "clients.toml"], text).success();
}

fn file(site: &TestDir) -> String {
    fs::read_to_string(site.path("clients.toml")).unwrap()
}

fn listed(site: &TestDir) -> Value {
    serde_json::from_str(&password(site, &["list", "-f", "clients.toml", "--json"]).success()).unwrap()
}

/// The verifiers in the file, without their salts and iterations.
fn keys(text: &str) -> Vec<&str> {
    let verifiers = text.split("SCRAM-SHA-256$").skip(1).filter_map(|rest| rest.split('"').next());
    verifiers.filter_map(|verifier| verifier.split_once('$')).flat_map(|(_, keys)| keys.split(':')).collect()
}

/// The salt and the iterations of each verifier.
fn salts(text: &str) -> Vec<&str> {
    text.split("SCRAM-SHA-256$").skip(1).filter_map(|rest| rest.split('$').next()).collect()
}

#[test]
fn commands_of_the_guide_work_as_written() {
    let guide = document("docs/CONFIGURATION.md");
    Rehearsal::of(blocks(&guide, |section| section == "Passwords of clients")).run();
    let example = blocks(&guide, |section| section == "Passwords of clients").pop().unwrap();
    let site = TestDir::new();
    site.write("clients.toml", example.lines.join("\n"));
    assert_eq!(listed(&site)["clients"][1]["upstream_user"], "readonly");
}

/// The file without the secret at its top.
fn clients_of(content: &str) -> &str {
    let (first, rest) = content.split_once("\n\n").unwrap();
    assert!(first.starts_with("# Hides which users exist. Keep it secret.\nmock_secret = \""), "{content}");
    rest
}

#[test]
fn generated_password_is_alone_on_its_line_and_not_in_the_file() {
    let site = TestDir::new();
    let outcome = password(&site, &["add", "app", "-f", "clients.toml", "--generate", "--expires", "90d"]);
    assert!(
        outcome.stderr.contains("the password p1 of \"app\" is in clients.toml and expires at 20"),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stderr.contains("not shown again"), "{}", outcome.stderr);
    let output = outcome.success();
    let text = output.strip_suffix('\n').unwrap();
    assert!(
        text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
        "{text}"
    );
    let content = file(&site);
    assert!(!content.contains(text), "{content}");
    assert!(
        clients_of(&content)
            .starts_with("[[client]]\nuser = \"app\"\npasswords = [\n    { id = \"p1\", scram = \"SCRAM-SHA-256$4096:"),
        "{content}"
    );
    assert_eq!(fs::metadata(site.path("clients.toml")).unwrap().mode() & 0o7777, 0o600);

    let listener = Listener::redis("127.0.0.1:6379").key("credentials.clients_file = \"clients.toml\"");
    site.write("portcullis.toml", listener);
    let mut check = executable();
    check.args(["check", "--offline", "-c", "portcullis.toml"]).current_dir(site.directory());
    let output = run(&mut check).success();
    assert!(output.contains("1 client with 1 password in "), "{output}");
}

#[test]
fn further_password_has_the_salt_of_the_first_and_another_client_has_another() {
    let site = TestDir::new();
    add(&site, "app", "Passw0rd!\n");
    add(&site, "app", "Other-Passw0rd");
    add(&site, "web", "Passw0rd!\r\n");
    let content = file(&site);
    let [one, two, other] = salts(&content)[..] else { panic!("three verifiers: {content}") };
    assert!(one == two && one != other, "{content}");
    let known = password_with(&site, &["add", "app", "-f", "clients.toml"], "Other-Passw0rd");
    assert_eq!(known.code, Some(1));
    assert!(known.stderr.contains("with the ID p2; choose another one"), "{}", known.stderr);
    let named = password_with(&site, &["add", "app", "-f", "clients.toml", "--id", "spare"], "Third-Passw0rd");
    assert!(named.success().starts_with("the password spare of \"app\" is in clients.toml"));
    let taken = password_with(&site, &["add", "app", "-f", "clients.toml", "--id", "spare"], "Fourth-Passw0rd");
    assert_eq!(taken.code, Some(1));
    assert!(taken.stderr.contains("has a password with the ID spare already"), "{}", taken.stderr);
    let ids: Vec<_> =
        listed(&site)["clients"][0]["passwords"].as_array().unwrap().iter().map(|one| one["id"].clone()).collect();
    assert_eq!(ids, ["p1", "p2", "spare"]);
}

#[test]
fn weak_password_is_rejected_and_no_file_is_made() {
    let site = TestDir::new();
    for (text, why) in [
        ("", "has 0 characters; use at least 8"),
        ("Aa1-567\n", "has 7 characters"),
        ("passw0rd!", "has no upper-case letter"),
        ("PASSW0RD!", "has no lower-case letter"),
        ("Password!", "has no digit"),
        ("Passw0rds", "has no special character"),
        ("Passw0rd!\nPassw0rd!\n", "contains a control character"),
        ("Passw0rd!\0", "contains a control character"),
        (&"Aa1-".repeat(100_000), "is longer than 1024 bytes"),
    ] {
        let outcome = password_with(&site, &["add", "app", "-f", "clients.toml"], text);
        assert_eq!(outcome.code, Some(1), "{text:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(&format!("the password {why}")), "{text:?}: {}", outcome.stderr);
        assert!(text.is_empty() || !outcome.stderr.contains(text.trim_end()), "{}", outcome.stderr);
        assert!(outcome.stdout.is_empty() && !site.path("clients.toml").exists());
    }
    let mut command = executable();
    command.args(["password", "add", "app", "-f", "clients.toml"]).current_dir(site.directory());
    let outcome = run_with_input(&mut command, b"Passw0rd!\xff");
    assert!(outcome.code == Some(1) && outcome.stderr.contains("not UTF-8"), "{}", outcome.stderr);
}

#[test]
fn invalid_argument_exits_with_2_and_says_what_is_expected() {
    let site = TestDir::new();
    for (arguments, expected) in [
        (&["app", "--expires", "90"][..], "a duration such as"),
        (&["app", "--expires", "0s"], "more than 0s"),
        (&["app", "--id", "a b"], "an ID of 1 to 32 letters"),
        (&["", "--generate"], "a user name that is not empty"),
        (&["a\nb", "--generate"], "without control characters"),
        (&[&"x".repeat(256), "--generate"], "at most 255 bytes"),
    ] {
        let outcome = password(&site, &[&["add", "-f", "clients.toml"], arguments].concat());
        assert_eq!(outcome.code, Some(2), "{arguments:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{arguments:?}: {}", outcome.stderr);
    }
    assert_eq!(password(&site, &["list"]).code, Some(2), "without a file");
    assert!(!site.path("clients.toml").exists());
}

#[test]
fn password_is_removed_and_its_client_stays() {
    let site = TestDir::new();
    add(&site, "app", "Passw0rd!");
    add(&site, "app", "Other-Passw0rd");
    let removed = password(&site, &["remove", "app", "p1", "-f", "clients.toml"]);
    assert!(removed.stderr.is_empty(), "{}", removed.stderr);
    assert_eq!(removed.success(), "the password p1 of \"app\" is removed from clients.toml\n");
    let last = password(&site, &["remove", "app", "p2", "-f", "clients.toml"]);
    assert!(last.code == Some(0) && last.stderr.contains("can no longer authenticate"), "{}", last.stderr);
    assert_eq!(clients_of(&file(&site)), "[[client]]\nuser = \"app\"\npasswords = []\n");
    for (user, id, why) in [("app", "p2", "no password of this client"), ("web", "p1", "no client of this name")] {
        let outcome = password(&site, &["remove", user, id, "-f", "clients.toml"]);
        assert_eq!(outcome.code, Some(1));
        assert!(outcome.stderr.contains("clients.toml: has") && outcome.stderr.contains(why), "{}", outcome.stderr);
    }
    for command in ["remove", "list", "disable", "enable"] {
        let arguments: &[&str] = match command {
            "remove" => &["app", "p1"],
            "list" => &[],
            _ => &["app"],
        };
        let outcome = password(&site, &[&[command, "-f", "nowhere.toml"], arguments].concat());
        assert_eq!(outcome.code, Some(1));
        assert!(outcome.stderr.contains("nowhere.toml: does not exist; create it with"), "{}", outcome.stderr);
    }
}

#[test]
fn disabled_client_is_listed_as_such_until_it_is_enabled() {
    let site = TestDir::new();
    add(&site, "app", "Passw0rd!");
    let before = file(&site);
    let state = |word: &str| password(&site, &[word, "app", "-f", "clients.toml"]).success();
    assert_eq!(state("disable"), "the client \"app\" in clients.toml is disabled\n");
    assert_eq!(listed(&site)["clients"][0]["disabled"], true);
    let text = password(&site, &["list", "-f", "clients.toml"]).success();
    assert!(text.lines().nth(1).unwrap().starts_with("app   disabled  p1  20"), "{text}");
    let more = password_with(&site, &["add", "app", "-f", "clients.toml"], "Other-Passw0rd");
    assert!(more.stderr.contains("enable it with portcullis password enable"), "{}", more.stderr);
    password(&site, &["remove", "app", "p2", "-f", "clients.toml"]).success();
    assert_eq!(state("enable"), "the client \"app\" in clients.toml is enabled\n");
    assert_eq!(file(&site), before);
}

#[test]
fn existing_file_keeps_comments_mode_and_link() {
    let site = TestDir::new();
    fs::create_dir(site.path("real")).unwrap();
    let text = "# Clients of the shop.\n\n[[client]]\nuser = \"web\" # by certificate\ncertificates = [\"cn:web\"]\n";
    site.write("real/clients.toml", text);
    fs::set_permissions(site.path("real/clients.toml"), Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("real/clients.toml", site.path("clients.toml")).unwrap();
    let outcome = password_with(&site, &["add", "app", "-f", "clients.toml"], "Passw0rd!");
    assert!(
        outcome.stderr.contains("group or others can read the clients clients.toml; run: chmod 600"),
        "{}",
        outcome.stderr
    );
    outcome.success();
    assert!(clients_of(&file(&site)).starts_with(text), "{}", file(&site));
    assert!(site.path("clients.toml").is_symlink());
    assert_eq!(fs::metadata(site.path("real/clients.toml")).unwrap().mode() & 0o7777, 0o640);
    let clients = listed(&site)["clients"].clone();
    let web =
        json!({ "user": "web", "disabled": false, "upstream_user": null, "certificates": ["cn:web"], "passwords": [] });
    assert_eq!((&clients[0], &clients[1]["user"]), (&web, &json!("app")));
    assert_eq!(fs::read_dir(site.path("real")).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn invalid_file_is_reported_with_its_position_and_left_alone() {
    let site = TestDir::new();
    for text in
        ["[[client]]\nuser = \"app\"\npassword = \"Passw0rd!\"\n", "[[client]]\nuser = \"Passw0rd!\n", "\u{0}Passw0rd!"]
    {
        site.write("clients.toml", text);
        for arguments in [&["add", "app", "--generate"][..], &["list"], &["remove", "app", "p1"], &["disable", "app"]] {
            let outcome = password(&site, &[arguments, &["-f", "clients.toml"]].concat());
            assert_eq!(outcome.code, Some(78), "{arguments:?}: {}", outcome.stderr);
            assert!(outcome.stderr.starts_with("clients.toml:"), "{}", outcome.stderr);
            assert!(!outcome.stderr.contains("Passw0rd") && outcome.stdout.is_empty(), "{}", outcome.stderr);
            assert_eq!(file(&site), text);
        }
    }
}

/// A command on a terminal.
struct Terminal {
    program: Running,
    seen: String,
}

impl Terminal {
    fn add(site: &TestDir) -> Self {
        let line = format!("{} password add app -f clients.toml", env!("CARGO_BIN_EXE_portcullis"));
        let mut script = command("script");
        // Without a logged copy; the exit code is that of the command.
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).current_dir(site.directory());
        let program = Running::start(script.stdin(Stdio::piped()).stdout(Stdio::piped()));
        Self { program, seen: String::new() }
    }

    /// Waits for a text on the terminal.
    fn expect(&mut self, text: &str) {
        let output = self.program.0.stdout.as_mut().unwrap();
        let mut byte = [0];
        while !self.seen.ends_with(text) {
            assert_eq!(output.read(&mut byte).unwrap(), 1, "no {text:?} in {:?}", self.seen);
            self.seen.push(char::from(byte[0]));
        }
    }

    fn write(&mut self, text: &str) {
        self.program.0.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// The exit code, and everything that was on the terminal.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = Vec::new();
        self.program.0.stdout.as_mut().unwrap().read_to_end(&mut rest).unwrap();
        (self.program.exit_code(), self.seen + &String::from_utf8_lossy(&rest))
    }
}

#[test]
fn password_is_typed_twice_on_a_terminal_and_never_shown() {
    for (again, code) in [("Passw0rd!", 0), ("Passw0rd?", 1)] {
        let site = TestDir::new();
        let mut terminal = Terminal::add(&site);
        terminal.expect("Password for app: ");
        terminal.write("Passw0rd!\n");
        terminal.expect("The same password again: ");
        terminal.write(&format!("{again}\n"));
        let (exit, shown) = terminal.end();
        assert_eq!(exit, Some(code), "{shown}");
        assert!(!shown.contains("Passw0rd"), "{shown}");
        assert_eq!(site.path("clients.toml").exists(), code == 0);
        let expected =
            if code == 0 { "the password p1 of \"app\" is in clients.toml" } else { "the two passwords differ" };
        assert!(shown.contains(expected), "{shown}");
    }
}

#[test]
fn interrupted_prompt_ends_the_command_by_its_signal() {
    let site = TestDir::new();
    let mut terminal = Terminal::add(&site);
    terminal.expect("Password for app: ");
    terminal.write("Passw\x03");
    let (exit, shown) = terminal.end();
    // 128 and the number of SIGINT.
    assert_eq!(exit, Some(130), "{shown}");
    assert!(!site.path("clients.toml").exists());
}

#[test]
fn check_warns_of_clients_that_cannot_authenticate_and_of_readable_files() {
    let site = TestDir::new();
    site.write("db.password", "secret\n");
    fs::set_permissions(site.path("db.password"), Permissions::from_mode(0o644)).unwrap();
    let key = "credentials = { clients_file = \"clients.toml\", upstream_password_file = \"db.password\" }";
    site.write("portcullis.toml", Listener::postgres("127.0.0.1:5432").key(key));
    let check = || {
        let mut check = executable();
        check.args(["check", "--offline", "-c", "portcullis.toml"]).current_dir(site.directory());
        run(&mut check).success()
    };
    site.write("clients.toml", "client = []\n");
    assert!(check().contains("lists no client, so every client is denied; add one with portcullis password add"));
    fs::remove_file(site.path("clients.toml")).unwrap();
    add(&site, "app", "Passw0rd!");
    let expired = file(&site).replace(" },\n", ", expires_at = 2026-01-31T00:00:00Z },\n");
    let others = "[[client]]\nuser = \"none\"\n[[client]]\nuser = \"off\"\ndisabled = true\n[[client]]\nuser = \"web\"\ncertificates = \"cn:web\"\n";
    site.write("clients.toml", format!("{expired}{others}"));
    let output = check();
    for warning in [
        "the password p1 of \"app\" expired at 2026-01-31T00:00:00Z; remove it with portcullis password remove",
        "the client \"none\" has neither a password nor a certificate, so it cannot authenticate",
        "client_auth = \"none\" does not request them; set tls.client_auth to",
        "group or others can read the passwords db.password; run: chmod 600 db.password",
        "  credentials   4 clients with 1 password in clients.toml",
        "  database user the user of each client, with 1 password in db.password",
    ] {
        assert!(output.contains(warning), "no {warning:?} in {output}");
    }
    assert!(!output.contains("\"off\"") && !output.contains("secret"), "{output}");
    let json =
        run(executable().args(["check", "--offline", "--json", "-c", "portcullis.toml"]).current_dir(site.directory()));
    let json: Value = serde_json::from_str(&json.success()).unwrap();
    let credentials = &json["listeners"][0]["credentials"];
    assert_eq!((&credentials["clients"], &credentials["upstream_passwords"]), (&json!(4), &json!(1)));
}

#[test]
fn change_of_the_file_is_reloaded_and_audited_by_user_and_id() {
    let site = TestDir::new();
    add(&site, "app", "Passw0rd!");
    add(&site, "app", "Other-Passw0rd");
    site.write("db.password", "Database-Passw0rd\n");
    let key = "credentials = { clients_file = \"clients.toml\", upstream_password_file = \"db.password\" }";
    let listener = Listener::redis("127.0.0.1:1").key(key);
    let portcullis = Portcullis::start(site, format!("{ADMIN}reload = {{ watch = true }}\n{listener}"));
    portcullis.address("main");
    let site = &portcullis.site;
    let change = |change: &dyn Fn()| {
        let applied = portcullis.reload_after(change);
        assert!(applied.is("reload.applied"), "{}", applied.0);
        applied.text("differences").to_owned()
    };
    let removed = change(&|| drop(password(site, &["remove", "app", "p1", "-f", "clients.toml"]).success()));
    assert_eq!(removed, "main credentials.password: app p1 -> none");
    let added = change(&|| drop(password(site, &["add", "web", "-f", "clients.toml", "--generate"]).success()));
    assert_eq!(added, "main credentials.client: none -> web (password p1)");
    let disabled = change(&|| drop(password(site, &["disable", "web", "-f", "clients.toml"]).success()));
    assert_eq!(disabled, "main credentials.client: web -> web disabled");
    let rotated = change(&|| site.replace("db.password", "New-Database-Passw0rd\nDatabase-Passw0rd\n"));
    let path = site.path("db.password").display().to_string();
    assert_eq!(rotated, format!("main credentials.upstream_password_file: {path} -> {path} (passwords changed)"));

    let content = file(site);
    let rejected = portcullis.reload_after(|| site.replace("clients.toml", ""));
    assert!(
        rejected.is("reload.rejected") && rejected.text("error").contains("clients.toml: is empty"),
        "{}",
        rejected.0
    );
    let log: String = portcullis.events().iter().map(|event| event.0.to_string()).collect();
    assert!(!log.contains("SCRAM") && !log.contains("Passw0rd"), "{log}");
    assert!(keys(&content).iter().all(|key| !log.contains(key)), "{log}");
}
