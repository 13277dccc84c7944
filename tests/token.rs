//! `portcullis token`.

use serde_json::Value;

use crate::harness::portcullis::executable;
use crate::harness::program::{Outcome, run};
use crate::harness::{Listener, TestDir};

fn token_new(arguments: &[&str]) -> Outcome {
    run(executable().args(["token", "new"]).args(arguments))
}

/// The lower-case hexadecimal SHA-256 of a text.
fn sha256(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn offline_token_is_alone_on_the_first_line_and_its_table_passes_check() {
    let options = ["--name", "terraform", "--role", "operator", "--ttl", "90d", "--source", "10.0.0.0/8"];
    let outcome = token_new(&[&["--offline"], &options[..]].concat());
    assert!(outcome.stderr.contains("not shown again"), "{}", outcome.stderr);
    let output = outcome.success();
    let (token, table) = output.split_once('\n').unwrap();
    assert!(token.starts_with("pcl_") && token.len() == 53, "{token}");
    assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{token}");
    assert!(!table.contains(token), "{table}");
    for line in
        ["[[admin.token]]", "name = \"terraform\"", "role = \"operator\"", &format!("sha256 = \"{}\"", sha256(token))]
    {
        assert!(table.lines().any(|known| known == line), "no {line} in {table}");
    }
    assert!(table.contains("\nexpires_at = 2") && table.contains("\nsources = [\"10.0.0.0/8\"]\n"), "{table}");

    let site = TestDir::new();
    let listener = Listener::redis("127.0.0.1:6379");
    site.write("portcullis.toml", format!("[admin]\nlisten = \"127.0.0.1:9642\"\n{table}\n{listener}"));
    let mut check = executable();
    check.args(["check", "--offline", "--strict", "-c", "portcullis.toml"]).current_dir(site.directory());
    run(&mut check).success();
}

#[test]
fn json_has_the_token_and_its_settings() {
    let output = token_new(&["--offline", "--name", "ci", "--role", "viewer", "--json"]).success();
    let token: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(token["sha256"], sha256(token["token"].as_str().unwrap()));
    assert_eq!((&token["name"], &token["role"]), (&"ci".into(), &"viewer".into()));
    assert_eq!((&token["expires_at"], &token["sources"]), (&Value::Null, &Value::Array(Vec::new())));
    assert!(token["created_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{output}");
}

#[test]
fn invalid_option_exits_with_2_and_names_what_is_expected() {
    let valid = ["--offline", "--name", "ci", "--role", "viewer"];
    for (option, value, expected) in [
        ("--ttl", "90", "a duration such as"),
        ("--ttl", "0s", "more than 0s"),
        ("--ttl", "9999d", "3650d"),
        ("--source", "10.1.2.3/8", "10.0.0.0/8"),
        ("--source", "office", "not an IPv4 or IPv6 address"),
    ] {
        let outcome = token_new(&[&valid[..], &[option, value]].concat());
        assert_eq!(outcome.code, Some(2), "{option} {value}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{option} {value}: {}", outcome.stderr);
        assert!(outcome.stdout.is_empty(), "{}", outcome.text());
    }
    for (name, role, expected) in [("a b", "viewer", "64 letters"), ("ci", "admin", "viewer, operator, owner")] {
        let outcome = token_new(&["--offline", "--name", name, "--role", role]);
        assert_eq!(outcome.code, Some(2), "{name} {role}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{name} {role}: {}", outcome.stderr);
    }
}

#[test]
fn token_that_has_expired_is_a_warning() {
    let site = TestDir::new();
    let table = |name: &str, year: u32| {
        let digest = sha256(name);
        format!(
            "[[admin.token]]\nname = {name:?}\nrole = \"owner\"\nsha256 = {digest:?}\nexpires_at = {year}-01-31T00:00:00Z\n"
        )
    };
    let admin = "[admin]\nlisten = \"127.0.0.1:9642\"\n".to_owned() + &table("old", 2020) + &table("new", 2126);
    site.write("portcullis.toml", format!("{admin}\n{}", Listener::redis("127.0.0.1:6379")));
    let mut check = executable();
    check.args(["check", "--offline", "-c", "portcullis.toml"]).current_dir(site.directory());
    let output = run(&mut check).success();
    assert!(output.contains("warning: the admin token \"old\" expired at 2020-01-31T00:00:00Z"), "{output}");
    assert!(!output.contains("\"new\""), "{output}");
}
