//! Errors and warnings never contain a secret, whichever key it is written into.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::config::shown::tests::{random_keys, repeats};
use crate::resolution::cache::ResolutionCache;
use crate::server::reload::build;

/// All keys, each with a value of the right type.
const EVERY_KEY: &str = r#"
log = { level = "info", format = "auto", audit_file = "audit.jsonl" }
state = { directory = "state" }
admin = { listen = ["unix:admin.sock", "127.0.0.1:9642"], metrics = "127.0.0.1:9643", hosts = ["portcullis.internal"], tokens_file = "tokens.toml", tls = { certificates = [{ cert = "server.crt", key = "server.key" }], client_ca = "ca.crt" }, token = [{ name = "ci", role = "operator", sha256 = "0000000000000000000000000000000000000000000000000000000000000000", expires_at = 2036-01-31T00:00:00Z, sources = ["10.0.0.0/8"] }] }
reload = { watch = true, poll = "30s", revoke = "disconnect" }
resolver = { digitalocean = { token_file = "do.token", endpoint = "https://api.digitalocean.com", ca = "ca.crt", refresh = "60s", addresses = "all" }, kubernetes = { kubeconfig = "kubeconfig", server = "https://10.0.0.1:6443", ca = "ca.crt", token_file = "k8s.token" } }
fleet = { name = "prod", member = "proxy-1", store = "etcd", key_file = "fleet.key", ticket_rotation = "12h", etcd = { endpoints = ["https://10.0.0.1:2379"], ca = "ca.crt", cert = "user.crt", key = "user.key", user = "portcullis", password_file = "etcd.password", prefix = "/portcullis" }, kubernetes = { namespace = "shop" } }
shutdown = { drain = "30s" }

[[source_group]]
name = "web"
trusted_sources = ["10.40.0.0/16"]
sources_file = "orders.sources"

[[listener]]
name = "orders"
protocol = "postgres"
listen = ["0.0.0.0:5433"]
ipv6_only = false
revoke = "disconnect"
shield = "off"
enforcement = "enforce"
trusted_sources = [
    "10.1.2.3",
    { type = "ip_addr", value = "203.0.113.7", description = "the office", expires_at = 2036-01-31T00:00:00Z },
    { type = "dns", value = "localhost", refresh = "30s" },
    "group:web",
    { type = "group", value = "web" },
]
sources_file = "orders.sources"
sources_store = "fleet"
ca_bundle = "ca.crt"
tls = { certificates = [{ cert = "server.crt", key = "server.key", key_passphrase_file = "right.txt" }], min_version = "1.2", client_auth = "optional", client_ca = ["ca.crt"], client_crl = "ca.crl", crl_expired = "refuse", anchor_validity = "enforce", client_certificates = "client*.crt", trusted_clients = ["cn:client", "email:app@example.com"], issuing_ca = { cert = "ca.crt", key = "ca.key" }, ticket_keys = "tickets.keys" }
upstream = { address = ["127.0.0.1:5432", "unix:pg.sock"], connect_timeout = "5s", dial_retry = "2s", target = "any", tls = "verify-full", ca = "redis_ca.pem", anchor_validity = "enforce", cert = "user.crt", key = "user.key", key_passphrase_file = "user.txt", server_name = "db.internal", negotiation = "postgres", proxy_protocol = "off" }
proxy_protocol = { trusted = ["10.9.0.5"], health_checks = ["10.9.0.5"] }
limits = { max_connections = 1000, max_connections_per_source = 50, connection_rate_per_source = "20/s", handshake_timeout = "10s", idle_timeout = "0s", half_close_timeout = "5m", dead_peer_timeout = "5m", max_handshakes = 0 }
postgres = { plaintext_cancel = true }
credentials = { clients_file = "clients.toml", upstream_user = "owner", upstream_password_file = "db.password" }

[[listener]]
name = "local"
protocol = "redis"
listen = { address = "unix:local.sock", mode = "0660", owner = "root", group = "root" }
tls = "off"
upstream = "127.0.0.1:6379"
"#;

const SECRET: &str = "hunter2";

/// Values that are secrets under any key.
const SECRETS: [&str; 36] = [
    "\"\"\"-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n\"\"\"",
    "\"-----BEGIN PRIVATE KEY-----\\nhunter2\"",
    "\"hunter2\\n-----END PRIVATE KEY-----\"",
    "\"redis://user:hunter2@db.internal:6379\"",
    "\"redis://user:a@hunter2/x@db.internal:6379\"",
    "\"user:hunter2@db.internal:6379\"",
    "\"postgres://db.internal/x?password=hunter2\"",
    "[\"redis://user:hunter2@db.internal:6379\"]",
    "{ x = \"redis://user:hunter2@db.internal:6379\" }",
    // In place of a port, or after one.
    "\"h:hunter2\"",
    "\"127.0.0.1:hunter2\"",
    "\"[::1]:hunter2\"",
    "\"h:6379:hunter2\"",
    "\"h:6379:db:user:hunter2\"",
    "\"h:1,h:hunter2\"",
    "\"app/hunter2:hunter2\"",
    "\"email:hunter2@\"",
    "[\"h:1\", \"h:hunter2\"]",
    "\"dns:h:hunter2\"",
    "\"user@h:hunter2\"",
    "\"h:6379@hunter2\"",
    "\"redis://h:hunter2/0\"",
    "\"postgres://u:hunter2@h:5432/x?sslmode=require\"",
    "\"postgres://h:5432/x?user=u&pw=hunter2\"",
    "\"rediss://h:6379/0#hunter2\"",
    "\"jdbc:postgresql://h:5432/x?x=hunter2\"",
    "\"host=h port=6379 pass=hunter2\"",
    // Percent-encoded, and in nested quotes.
    "\"redis://user:hunter2%40h:6379\"",
    "\"user%3Ahunter2%40h:6379\"",
    "\"h%3ahunter2\"",
    "\"user:hunter2%2540h:1\"",
    "\"\\\"user:hunter2\\\"@h:1\"",
    "'\"h:hunter2\"'",
    "{ address = \"h:hunter2\" }",
    // Invalid TOML: a string without quotes, and one without its end.
    "hunter2",
    "\"hunter2",
];

/// Values of each type that are secrets under one of [`SECRET_KEYS`].
const VALUES: [&str; 13] = [
    "\"hunter2\"",
    "'/etc/hunter2'",
    "\"env:hunter2\"",
    "\"credential:../hunter2\"",
    "\"credential:hunter2\"",
    "\"credential:my hunter2 phrase\"",
    "\"$CREDENTIALS_DIRECTORY/hunter2\"",
    "\"env:HUNTER2\"",
    "\"unix:hunter2\"",
    "[\"hunter2\"]",
    "[[\"hunter2\"], { x = \"hunter2\" }]",
    "{ x = \"hunter2\", cert = \"hunter2\", key = \"hunter2\" }",
    "7734077340773407734",
];

const SECRET_KEYS: [&str; 8] = [
    "key",
    "key_file",
    "key_passphrase_file",
    "password_file",
    "ticket_keys",
    "token",
    "token_file",
    "upstream_password_file",
];

/// All values in the text that are not written as table headers, with their keys.
fn values(text: &str) -> Vec<(String, Range<usize>)> {
    fn walk(text: &str, key: &str, value: &toml::Spanned<DeValue<'_>>, found: &mut Vec<(String, Range<usize>)>) {
        let written = &text[value.span()];
        if !written.starts_with("[[listener") {
            found.push((key.to_owned(), value.span()));
        }
        match value.get_ref() {
            DeValue::Array(elements) => elements.iter().for_each(|element| walk(text, key, element, found)),
            DeValue::Table(table) => table.iter().for_each(|(key, value)| walk(text, key.get_ref(), value, found)),
            _ => {}
        }
    }
    let table = DeTable::parse(text).unwrap();
    let mut found = Vec::new();
    for (key, value) in table.get_ref() {
        walk(text, key.get_ref(), value, &mut found);
    }
    // Remove the list of listeners itself; its elements are listed separately.
    found.retain(|(_, span)| !text[span.clone()].contains("[[listener]]"));
    found
}

/// The errors or warnings of loading this text.
fn messages(directory: &Path, text: &str) -> String {
    let file = directory.join("portcullis.toml");
    std::fs::write(&file, text).unwrap();
    match build(&file, None, &ResolutionCache::offline()).0 {
        Ok(built) => built.warnings.join("\n"),
        Err(problems) => problems.to_string(),
    }
}

fn with(value: &str, span: Range<usize>) -> String {
    format!("{}{value}{}", &EVERY_KEY[..span.start], &EVERY_KEY[span.end..])
}

#[test]
fn every_key_covers_all_keys_of_the_example() {
    let keys: Vec<String> = values(EVERY_KEY).into_iter().map(|(key, _)| key).collect();
    let example = include_str!("../../../config/everything.toml");
    let names =
        example.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" = ")).map(|(name, _)| name);
    let names = names
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit()));
    for name in names {
        assert!(keys.iter().any(|key| key == name), "EVERY_KEY has no {name}");
    }
    for key in SECRET_KEYS {
        assert!(keys.iter().any(|known| known == key), "EVERY_KEY has no {key}: {keys:?}");
    }
}

#[test]
fn secret_under_any_key_is_never_printed() {
    let directory = tempfile::tempdir().unwrap();
    let mut failures = String::new();
    let mut tried = 0;
    for (key, span) in values(EVERY_KEY) {
        let is_secret = SECRET_KEYS.contains(&key.as_str());
        let more: &[&str] = if is_secret { &VALUES } else { &[] };
        for value in SECRETS.iter().chain(more) {
            let output = messages(directory.path(), &with(value, span.clone()));
            tried += 1;
            if output.to_lowercase().contains(SECRET) || output.contains("77340") {
                let _ = writeln!(failures, "{key} = {value}\n{output}\n");
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(tried > 2_000, "{tried}");
}

#[test]
fn random_key_is_never_printed() {
    let directory = tempfile::tempdir().unwrap();
    let mut failures = String::new();
    let mut keys = random_keys(8).into_iter().cycle();
    for (key, span) in values(EVERY_KEY) {
        // A listener and a host are public, and the key is a valid name of one.
        let is_name = key == "name" || EVERY_KEY[..span.start].ends_with("type = \"dns\", value = ");
        for secret in keys.by_ref().take(if is_name { 0 } else { 6 }) {
            for value in [
                format!("\"{secret}\""),
                format!("[\"{secret}\"]"),
                format!("{{ {secret:?} = 1 }}"),
                format!("\"/etc/portcullis/{secret}\""),
                secret.clone(),
            ] {
                let output = messages(directory.path(), &with(&value, span.clone()));
                if repeats(&output, &secret) {
                    let _ = writeln!(failures, "{key} = {value}\n{output}\n");
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn long_value_is_printed_only_in_part() {
    let directory = tempfile::tempdir().unwrap();
    let long = format!("start-{}-tail", "long-".repeat(1_000));
    let mut repeated = 0;
    for (key, span) in values(EVERY_KEY) {
        let number = "1".repeat(5_000);
        for value in
            [format!("\"{long}\""), format!("[\"{long}\"]"), format!("{{ {long} = \"{long}\" }}"), number, long.clone()]
        {
            let output = messages(directory.path(), &with(&value, span.clone()));
            repeated += usize::from(output.contains("start-"));
            let longest = output.lines().map(str::len).max().unwrap_or(0);
            assert!(!output.contains("-tail") && longest < 800, "{key} = {}…\n{output}", &value[..20]);
        }
    }
    assert!(repeated > 20, "errors show the beginning of a value: {repeated}");
}

#[test]
fn secret_under_a_misspelt_or_misplaced_key_is_never_printed() {
    let directory = tempfile::tempdir().unwrap();
    let listener =
        "[[listener]]\nname = \"x\"\nprotocol = \"redis\"\nlisten = \"127.0.0.1:1\"\nupstream = \"127.0.0.1:2\"\n";
    for key in
        ["pasphrase", "key_pasphrase_file", "keys", "password", "ticket_key", "Key", "\"key \"", "tokens.x", "cert"]
    {
        for value in ["\"hunter2\"", "[\"hunter2\"]", "{ hunter = \"hunter2\" }", "\"\"\"\nhunter2\"\"\""] {
            for text in [
                format!("{key} = {value}\n{listener}tls = \"off\"\n"),
                format!("{listener}{key} = {value}\ntls = \"off\"\n"),
                format!("{listener}[listener.tls]\ncertificates = [{{ key = \"a\", {key} = {value} }}]\n"),
                format!("{listener}tls = \"off\"\n[listener.limits]\n{key} = {value}\n"),
                format!("[admin]\nlisten = \"unix:x\"\n{key} = {value}\n{listener}tls = \"off\"\n"),
            ] {
                // File names of certificates may be shown.
                let output = messages(directory.path(), &text);
                assert!(key == "cert" || !output.contains(SECRET), "{text}\n{output}");
                assert!(!output.is_empty(), "{text}");
            }
        }
    }
}

#[test]
fn content_of_an_invalid_file_is_never_printed() {
    let directory = tempfile::tempdir().unwrap();
    let key = "-----BEGIN PRIVATE KEY-----\nhunter2hunter2+hunter2\n-----END PRIVATE KEY-----\n";
    for content in [key, "hunter2", "hunter2 = \"hunter2", "[[rule]]\ntype = \"ip_addr\"\nvalue = hunter2\n"] {
        for name in [
            "server.key",
            "right.txt",
            "tickets.keys",
            "orders.sources",
            "ca.crt",
            "ca.crl",
            "server.crt",
            "user.key",
            "fleet.key",
            "etcd.password",
            "clients.toml",
            "db.password",
        ] {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        let output = messages(directory.path(), EVERY_KEY);
        assert!(!output.contains(SECRET), "{output}");
    }
}
