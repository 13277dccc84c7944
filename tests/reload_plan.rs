//! Reload plans and the audit of reloads: every key of the configuration, with its old and its new value.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use toml::de::{DeTable, DeValue};

use crate::config::site;
use crate::harness::portcullis::{ADMIN, executable};
use crate::harness::program::run;
use crate::harness::{Authority, Listener, Portcullis, Request, TestDir, Upstream};

/// One change: a key of the reference, the text of [`BASE`] and its replacement, and the key that must be listed, with a `!`
/// before it if the change weakens protection.
type Change = (&'static str, &'static str, &'static str, &'static str);

const BASE: &str = r#"
[admin]
listen = "unix:admin.sock"
metrics = "127.0.0.1:0" # of [admin]
hosts = ["panel.internal"]
tokens_file = "tokens.toml"

[admin.tls]
certificates = [{ cert = "copy.crt", key = "copy.key" }]
client_ca = ["second.crt"]

[[admin.token]]
name = "terraform"
role = "viewer"
sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
expires_at = 2998-01-31T00:00:00Z
sources = ["198.18.0.0/15"]

[log]
level = "info"
format = "json"
audit_file = "audit.log"

[state]
directory = "state"

[reload]
watch = false
poll = "1h"
revoke = "disconnect"

[shutdown]
drain = "30s"

[resolver.digitalocean]
token_file = "do.token"
endpoint = "https://127.0.0.1:8443"
ca = "ca.crt" # of the API
refresh = "45s"
addresses = "private"

[resolver.kubernetes]
server = "https://127.0.0.1:6443"
ca = "ca.crt" # of the cluster
token_file = "k8s.token"

[fleet]
name = "prod" # of the fleet
member = "a"
store = "etcd"
key_file = "fleet.key"
ticket_rotation = "6h"

[fleet.etcd]
endpoints = ["http://127.0.0.1:1"]
ca = "ca.crt" # of the store
prefix = "/portcullis"

[[source_group]]
name = "shared" # of the group
trusted_sources = ["10.250.0.0/24"] # of the group
sources_file = "group.toml"

[[listener]]
name = "main"
protocol = "postgres"
listen = ["[::1]:0"]
ipv6_only = false
revoke = "disconnect" # of main
shield = "auto"
enforcement = "enforce"
sources_file = "sources.toml"
ca_bundle = "ca.crt"
trusted_sources = [
    "10.1.0.0/16",
    { type = "ip_addr", value = "203.0.113.7", description = "office", expires_at = 2999-01-31T00:00:00Z },
    { type = "dns", value = "localhost", refresh = "30s" },
]

[listener.tls]
certificates = [{ cert = "server.crt", key = "server.key" }]
min_version = "1.3"
client_auth = "required"
client_ca = ["ca.crt"]
client_crl = ["ca.crl"]
crl_expired = "refuse"
anchor_validity = "enforce" # of client_ca
client_certificates = ["clients/a*.crt"]
trusted_clients = ["cn:app", "uri:spiffe://prod/*"]
ticket_keys = "tickets.keys"

[listener.upstream]
address = "db.internal:5432"
connect_timeout = "5s"
dial_retry = "3s"
target = "any"
tls = "verify-full"
ca = ["ca.crt", "other.crt"]
anchor_validity = "enforce" # of ca
cert = "clients/app.crt"
key = "clients/app.key"
server_name = "db.internal"
negotiation = "postgres"
proxy_protocol = "off"

[listener.proxy_protocol]
trusted = ["192.0.2.0/24"]
health_checks = ["198.51.100.0/28"]

[listener.limits]
max_connections = 1000
max_connections_per_source = 50
max_handshakes = 2000
connection_rate_per_source = "20/s"
handshake_timeout = "10s"
idle_timeout = "1m"
half_close_timeout = "5m"
dead_peer_timeout = "6m"

[listener.postgres]
plaintext_cancel = false

[listener.credentials]
clients_file = "clients.toml"
upstream_user = "owner"
upstream_password_file = "db.password"

[[listener]]
name = "local"
protocol = "redis"
listen = { address = "unix:local.sock", mode = "0600" }
tls = "off"
upstream = "127.0.0.1:6379"

[[listener]]
name = "loopback"
protocol = "tcp"
listen = "127.0.0.1:0"
sources_store = "fleet"
tls = { certificates = [{ cert = "other.crt", key = "other.key" }] }
upstream = "127.0.0.1:7000"
"#;

const CHANGES: &[Change] = &[
    ("admin.listen", "unix:admin.sock", "unix:other.sock", "admin.listen"),
    ("admin.metrics", "\"127.0.0.1:0\" # of [admin]", "\"127.0.0.1:1\"", "admin.metrics"),
    ("admin.hosts", "panel.internal", "other.internal", "admin.hosts"),
    ("admin.tokens_file", "\"tokens.toml\"", "\"empty\"", "admin.tokens_file"),
    ("admin.tokens_file", "\"tokens.toml\"", "\"empty\"", "admin.token"),
    ("admin.tls.certificates.cert", "cert = \"copy.crt\"", "cert = \"server.crt\"", "admin.tls.certificates"),
    ("admin.tls.certificates.key", "key = \"copy.key\"", "key = \"server.key\"", "admin.tls.certificates"),
    ("admin.tls.client_ca", "[\"second.crt\"]", "\"ca.crt\"", "admin.tls.client_ca"),
    ("admin.token.name", "\"terraform\"", "\"pipeline\"", "admin.token"),
    ("admin.token.role", "\"viewer\"", "\"owner\"", "admin.token"),
    ("admin.token.sha256", "2d711642", "3d711642", "admin.token"),
    ("admin.token.expires_at", "2998-01-31", "2997-01-31", "admin.token"),
    ("admin.token.sources", "\"198.18.0.0/15\"", "\"198.18.0.0/16\"", "admin.token"),
    ("log.level", "level = \"info\"", "level = \"debug\"", "log.level"),
    ("log.format", "format = \"json\"", "format = \"text\"", "log.format"),
    ("log.audit_file", "audit.log", "other.log", "log.audit_file"),
    ("state.directory", "directory = \"state\"", "directory = \"other\"", "state.directory"),
    ("reload.watch", "watch = false", "watch = true", "reload.watch"),
    ("reload.poll", "poll = \"1h\"", "poll = \"2h\"", "reload.poll"),
    ("reload.revoke", "\"1h\"\nrevoke = \"disconnect\"", "\"1h\"\nrevoke = \"keep\"", "!reload.revoke"),
    ("shutdown.drain", "drain = \"30s\"", "drain = \"5s\"", "shutdown.drain"),
    ("resolver.digitalocean.token_file", "\"do.token\"", "\"k8s.token\"", "resolver.digitalocean.token_file"),
    ("resolver.digitalocean.endpoint", "127.0.0.1:8443", "127.0.0.1:8444", "resolver.digitalocean.endpoint"),
    ("resolver.digitalocean.ca", "\"ca.crt\" # of the API", "\"other.crt\"", "resolver.digitalocean.ca"),
    ("resolver.digitalocean.refresh", "refresh = \"45s\"", "refresh = \"1s\"", "resolver.digitalocean.refresh"),
    ("resolver.digitalocean.addresses", "\"private\"", "\"all\"", "!resolver.digitalocean.addresses"),
    (
        "resolver.kubernetes.kubeconfig",
        "server = \"https://127.0.0.1:6443\"\nca = \"ca.crt\" # of the cluster\ntoken_file = \"k8s.token\"",
        "kubeconfig = \"kubeconfig\"",
        "resolver.kubernetes.kubeconfig",
    ),
    ("resolver.kubernetes.server", "127.0.0.1:6443", "127.0.0.1:6444", "resolver.kubernetes.server"),
    ("resolver.kubernetes.ca", "\"ca.crt\" # of the cluster", "\"other.crt\"", "resolver.kubernetes.ca"),
    ("resolver.kubernetes.token_file", "\"k8s.token\"", "\"do.token\"", "resolver.kubernetes.token_file"),
    ("fleet.name", "\"prod\" # of", "\"test\" # of", "fleet.name"),
    ("fleet.member", "member = \"a\"", "member = \"b\"", "fleet.member"),
    (
        "fleet.store",
        "store = \"etcd\"\nkey_file = \"fleet.key\"\nticket_rotation = \"6h\"\n\n[fleet.etcd]\n\
         endpoints = [\"http://127.0.0.1:1\"]\nca = \"ca.crt\" # of the store\nprefix = \"/portcullis\"\n",
        "store = \"kubernetes\"\n[fleet.kubernetes]\nnamespace = \"shop\"\n",
        "fleet.store",
    ),
    ("fleet.key_file", "\"fleet.key\"", "\"other-fleet.key\"", "fleet.key_file"),
    ("fleet.ticket_rotation", "\"6h\"", "\"7h\"", "fleet.ticket_rotation"),
    ("fleet.etcd.endpoints", "http://127.0.0.1:1\"", "http://127.0.0.1:2\"", "fleet.etcd.endpoints"),
    ("fleet.etcd.ca", "\"ca.crt\" # of the store", "\"other.crt\"", "fleet.etcd.ca"),
    ("fleet.etcd.prefix", "\"/portcullis\"", "\"/other\"", "fleet.etcd.prefix"),
    ("listener.sources_store", "sources_store = \"fleet\"", "", "sources_store"),
    ("listener.name", "name = \"main\"", "name = \"renamed\"", "listeners_added"),
    ("listener.protocol", "protocol = \"redis\"", "protocol = \"tcp\"", "protocol"),
    ("listener.listen", "[\"[::1]:0\"]", "[\"[::1]:1\"]", "listen"),
    ("listener.listen", "[\"[::1]:0\"]", "[\"[::1]:0\", \"[::]:1\"]", "!listen"),
    ("listener.listen.address", "unix:local.sock", "unix:moved.sock", "listen"),
    ("listener.listen.mode", "mode = \"0600\"", "mode = \"0666\"", "!listen"),
    ("listener.listen.mode", "mode = \"0600\"", "mode = \"0400\"", "listen"),
    ("listener.listen.owner", "mode = \"0600\"", "owner = \"0\"", "listen"),
    ("listener.listen.group", "mode = \"0600\"", "group = \"0\"", "listen"),
    ("listener.ipv6_only", "ipv6_only = false", "ipv6_only = true", "ipv6_only"),
    ("listener.revoke", "\"disconnect\" # of main", "\"keep\"", "!revoke"),
    ("listener.shield", "shield = \"auto\"", "shield = \"off\"", "!shield"),
    ("listener.shield", "shield = \"auto\"", "shield = \"on\"", "shield"),
    ("listener.enforcement", "enforcement = \"enforce\"", "enforcement = \"observe\"", "!enforcement"),
    ("listener.ca_bundle", "ca_bundle = \"ca.crt\"", "ca_bundle = \"second.crt\"", "ca_bundle"),
    ("source_group.name", "\"shared\" # of", "\"other\" # of", "source_group"),
    ("source_group.trusted_sources", "\"10.250.0.0/24\"", "\"10.250.0.0/24\", \"192.0.2.9\"", "sources_added"),
    ("source_group.trusted_sources", "\"10.250.0.0/24\"", "\"10.250.0.0/16\"", "!trusted_sources"),
    ("source_group.sources_file", "\"group.toml\"", "\"more.toml\"", "sources_file"),
    ("listener.sources_file", "\"sources.toml\"", "\"more.toml\"", "sources_file"),
    ("listener.trusted_sources", "\"10.1.0.0/16\"", "\"10.1.0.0/16\", \"192.0.2.9\"", "sources_added"),
    ("listener.trusted_sources", "\"10.1.0.0/16\"", "\"10.0.0.0/8\"", "!trusted_sources"),
    ("listener.trusted_sources", "\"10.1.0.0/16\",", "", "sources_removed"),
    (
        "listener.trusted_sources.type",
        "\"dns\", value = \"localhost\", refresh = \"30s\"",
        "\"ip_addr\", value = \"192.0.2.33\"",
        "sources_added",
    ),
    ("listener.trusted_sources.value", "203.0.113.7", "203.0.113.8", "sources_added"),
    ("listener.trusted_sources.description", "\"office\"", "\"the office\"", "trusted_sources"),
    ("listener.trusted_sources.expires_at", "2999", "2998", "sources_added"),
    ("listener.trusted_sources.refresh", "refresh = \"30s\"", "refresh = \"31s\"", "trusted_sources"),
    (
        "listener.tls",
        "tls = { certificates = [{ cert = \"other.crt\", key = \"other.key\" }] }",
        "tls = \"off\"",
        "!tls",
    ),
    (
        "listener.tls.certificates",
        "key = \"server.key\" }]",
        "key = \"server.key\" }, { cert = \"other.crt\", key = \"other.key\" }]",
        "tls.certificates",
    ),
    ("listener.tls.certificates.cert", "\"server.crt\"", "\"copy.crt\"", "tls.certificates"),
    ("listener.tls.certificates.key", "\"server.key\"", "\"copy.key\"", "tls.certificates"),
    (
        "listener.tls.certificates.key_passphrase_file",
        "key = \"server.key\"",
        "key = \"encrypted.key\", key_passphrase_file = \"right.txt\"",
        "tls.certificates",
    ),
    ("listener.tls.min_version", "min_version = \"1.3\"", "min_version = \"1.2\"", "!tls.min_version"),
    ("listener.tls.client_auth", "client_auth = \"required\"", "client_auth = \"optional\"", "!tls.client_auth"),
    ("listener.tls.client_ca", "client_ca = [\"ca.crt\"]", "client_ca = [\"ca.crt\", \"second.crt\"]", "tls.client_ca"),
    ("listener.tls.client_crl", "client_crl = [\"ca.crl\"]", "", "!tls.client_crl"),
    ("listener.tls.crl_expired", "crl_expired = \"refuse\"", "crl_expired = \"allow\"", "!tls.crl_expired"),
    ("listener.tls.anchor_validity", "\"enforce\" # of client_ca", "\"ignore\"", "!tls.anchor_validity"),
    ("listener.tls.client_certificates", "clients/a*.crt", "clients/*.crt", "tls.client_certificates"),
    ("listener.tls.trusted_clients", "[\"cn:app\", \"uri:spiffe://prod/*\"]", "[]", "!tls.trusted_clients"),
    ("listener.tls.trusted_clients", "\"cn:app\", ", "\"cn:app\", \"cn:jobs\", ", "!tls.trusted_clients"),
    ("listener.tls.trusted_clients", "\"cn:app\", ", "", "tls.trusted_clients"),
    (
        "listener.tls.issuing_ca",
        "ticket_keys =",
        "issuing_ca = { cert = \"issuing/ca.crt\", key = \"issuing/ca.key\" }\nticket_keys =",
        "!tls.issuing_ca",
    ),
    (
        "listener.tls.issuing_ca.cert",
        "ticket_keys =",
        "issuing_ca = { cert = \"issuing/ca.crt\", key = \"issuing/ca.key\" }\nticket_keys =",
        "!tls.issuing_ca",
    ),
    (
        "listener.tls.issuing_ca.key",
        "ticket_keys =",
        "issuing_ca = { cert = \"issuing/ca.crt\", key = \"issuing/ca.key\" }\nticket_keys =",
        "!tls.issuing_ca",
    ),
    ("listener.tls.ticket_keys", "ticket_keys = \"tickets.keys\"", "", "tls.ticket_keys"),
    ("listener.upstream", "upstream = \"127.0.0.1:6379\"", "upstream = \"127.0.0.1:6380\"", "upstream.address"),
    ("listener.upstream", "upstream = \"127.0.0.1:6379\"", "upstream = \"10.0.0.1:6379\"", "!upstream.address"),
    ("listener.upstream.address", "db.internal:5432", "db-2.internal:5432", "upstream.address"),
    (
        "listener.upstream.connect_timeout",
        "connect_timeout = \"5s\"",
        "connect_timeout = \"6s\"",
        "upstream.connect_timeout",
    ),
    ("listener.upstream.dial_retry", "dial_retry = \"3s\"", "dial_retry = \"0s\"", "upstream.dial_retry"),
    ("listener.upstream.target", "target = \"any\"", "target = \"primary\"", "upstream.target"),
    ("listener.upstream.tls", "tls = \"verify-full\"", "tls = \"verify-ca\"", "!upstream.tls"),
    ("listener.upstream.ca", "ca = [\"ca.crt\", \"other.crt\"]", "", "!upstream.ca"),
    ("listener.upstream.ca", "\"ca.crt\", \"other.crt\"", "\"ca.crt\"", "upstream.ca"),
    ("listener.upstream.anchor_validity", "\"enforce\" # of ca\n", "\"ignore\"\n", "!upstream.anchor_validity"),
    ("listener.upstream.cert", "cert = \"clients/app.crt\"", "cert = \"clients/copy.crt\"", "upstream.cert"),
    ("listener.upstream.key", "key = \"clients/app.key\"", "key = \"clients/copy.key\"", "upstream.key"),
    (
        "listener.upstream.key_passphrase_file",
        "cert = \"clients/app.crt\"\nkey = \"clients/app.key\"",
        "cert = \"server.crt\"\nkey = \"encrypted.key\"\nkey_passphrase_file = \"right.txt\"",
        "upstream.key_passphrase_file",
    ),
    (
        "listener.upstream.server_name",
        "server_name = \"db.internal\"",
        "server_name = \"other.internal\"",
        "upstream.server_name",
    ),
    ("listener.upstream.negotiation", "negotiation = \"postgres\"", "negotiation = \"direct\"", "upstream.negotiation"),
    (
        "listener.upstream.proxy_protocol",
        "proxy_protocol = \"off\"",
        "proxy_protocol = \"v2\"",
        "upstream.proxy_protocol",
    ),
    ("listener.proxy_protocol.trusted", "192.0.2.0/24", "192.0.0.0/16", "!proxy_protocol.trusted"),
    ("listener.proxy_protocol.trusted", "192.0.2.0/24", "192.0.2.1", "proxy_protocol.trusted"),
    (
        "listener.proxy_protocol.health_checks",
        "health_checks = [\"198.51.100.0/28\"]",
        "health_checks = true",
        "proxy_protocol.health_checks",
    ),
    ("listener.limits.max_connections", "max_connections = 1000", "", "!limits.max_connections"),
    ("listener.limits.max_connections", "max_connections = 1000", "max_connections = 10", "limits.max_connections"),
    (
        "listener.limits.max_connections_per_source",
        "max_connections_per_source = 50",
        "max_connections_per_source = 51",
        "!limits.max_connections_per_source",
    ),
    ("listener.limits.max_handshakes", "max_handshakes = 2000", "max_handshakes = 3000", "!limits.max_handshakes"),
    ("listener.limits.connection_rate_per_source", "\"20/s\"", "\"21/s\"", "!limits.connection_rate_per_source"),
    ("listener.limits.connection_rate_per_source", "\"20/s\"", "\"20/m\"", "limits.connection_rate_per_source"),
    ("listener.limits.handshake_timeout", "\"10s\"", "\"1m\"", "!limits.handshake_timeout"),
    ("listener.limits.idle_timeout", "idle_timeout = \"1m\"", "idle_timeout = \"0s\"", "!limits.idle_timeout"),
    ("listener.limits.half_close_timeout", "\"5m\"", "\"4m\"", "limits.half_close_timeout"),
    ("listener.limits.dead_peer_timeout", "\"6m\"", "\"7m\"", "!limits.dead_peer_timeout"),
    (
        "listener.postgres.plaintext_cancel",
        "plaintext_cancel = false",
        "plaintext_cancel = true",
        "!postgres.plaintext_cancel",
    ),
    (
        "listener.credentials.clients_file",
        "clients_file = \"clients.toml\"",
        "clients_file = \"no-clients.toml\"",
        "credentials.clients_file",
    ),
    (
        "listener.credentials.clients_file",
        "clients_file = \"clients.toml\"",
        "clients_file = \"no-clients.toml\"",
        "credentials.client",
    ),
    (
        "listener.credentials.clients_file",
        "[listener.credentials]\nclients_file = \"clients.toml\"\nupstream_user = \"owner\"\n\
         upstream_password_file = \"db.password\"\n",
        "",
        "!credentials.clients_file",
    ),
    (
        "listener.credentials.upstream_user",
        "upstream_user = \"owner\"",
        "upstream_user = \"other\"",
        "credentials.upstream_user",
    ),
    (
        "listener.credentials.upstream_password_file",
        "\"db.password\"",
        "\"other.password\"",
        "credentials.upstream_password_file",
    ),
];

/// Every key that a reference names, those in comments too.
fn keys_of(reference: &str) -> BTreeSet<String> {
    let is_key = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
    };
    let uncommented = reference.lines().map(|line| match line.strip_prefix("# ") {
        Some(commented) if is_key(commented) => commented,
        _ => line,
    });
    let text: String = uncommented.map(|line| format!("{line}\n")).collect();
    let tree = DeTable::parse(&text).expect("a reference is TOML");
    let mut keys = BTreeSet::new();
    collect(tree.get_ref(), "", &mut keys);
    keys
}

fn collect(table: &DeTable<'_>, path: &str, keys: &mut BTreeSet<String>) {
    for (key, value) in table {
        let path = if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
        descend(value.get_ref(), &path, keys);
    }
}

fn descend(value: &DeValue<'_>, path: &str, keys: &mut BTreeSet<String>) {
    match value {
        DeValue::Table(table) => collect(table, path, keys),
        DeValue::Array(list) if list.iter().any(|element| element.get_ref().is_table()) => {
            for element in list.iter() {
                descend(element.get_ref(), path, keys);
            }
        }
        _ => {
            keys.insert(path.to_owned());
        }
    }
}

#[test]
fn every_key_of_the_reference_has_a_test_change() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known: BTreeSet<&str> = CHANGES.iter().map(|(key, ..)| *key).collect();
    for reference in ["config/everything.toml", "tests/config/valid/everything.toml", "tests/config/valid/admin.toml"] {
        let keys = keys_of(&fs::read_to_string(root.join(reference)).unwrap());
        assert!(keys.len() > 5, "{reference}: {keys:?}");
        let missing: Vec<_> = keys.iter().filter(|key| !known.contains(key.as_str())).collect();
        assert!(missing.is_empty(), "{reference} has keys that no plan is tested for: {missing:?}");
    }
}

/// The base configuration, with a running program.
fn running() -> Portcullis {
    let site = site();
    site.write("group.toml", "rule = []\n");
    site.write("no-clients.toml", "client = []\n");
    site.write("other.password", "secret\n");
    for (file, byte) in [("fleet.key", 1), ("other-fleet.key", 2)] {
        site.write(file, STANDARD.encode([byte; 32]));
    }
    site.write("more.toml", "[[rule]]\ntype = \"ip_addr\"\nvalue = \"192.0.2.1\"\n");
    site.write("second.crt", Authority::new("Second CA").pem());
    run(executable().args(["certs", "init", "issuing"]).current_dir(site.directory())).success();
    for (from, to) in [("server", "copy"), ("clients/app", "clients/copy")] {
        for ending in ["crt", "key"] {
            site.write(&format!("{to}.{ending}"), fs::read_to_string(site.path(&format!("{from}.{ending}"))).unwrap());
        }
    }
    let portcullis = Portcullis::start(site, BASE);
    portcullis.addresses("main");
    portcullis
}

fn plan(portcullis: &Portcullis, config: &str) -> Value {
    portcullis.site.write("next.toml", config);
    let body = json!({ "file": portcullis.site.path("next.toml") }).to_string();
    let (status, plan) = portcullis.ask_with("POST", "/v1/reload?plan=true", &body);
    assert_eq!(status, 200, "{plan}\n{config}");
    plan
}

#[test]
fn every_changed_key_is_listed_with_both_values() {
    let portcullis = running();
    let unchanged = plan(&portcullis, BASE);
    assert_eq!((&unchanged["differences"], &unchanged["differences_count"]), (&json!([]), &json!(0)));
    let mut failures = Vec::new();
    for (key, from, to, expected) in CHANGES {
        assert_eq!(BASE.matches(from).count(), 1, "{from}");
        let plan = plan(&portcullis, &BASE.replace(from, to));
        let (weakens, listed) = expected.strip_prefix('!').map_or((false, *expected), |listed| (true, listed));
        let differences = plan["differences"].as_array().unwrap();
        let found = match plan[listed].as_array() {
            Some(list) => !list.is_empty(),
            None => differences.iter().any(|one| one["key"] == listed && one["old"] != one["new"]),
        };
        let is_marked = differences.iter().any(|one| one["weakens"] == true);
        if !found || is_marked != weakens {
            failures.push(format!("{key}: {from} -> {to}: {}", plan["differences"]));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A listener with the protection that the running one of [`weaker`] lacks.
fn stronger() -> Listener {
    Listener::redis("127.0.0.1:1")
        .tls("client_auth = \"required\"")
        .tls("client_ca = \"ca.crt\"")
        .tls("trusted_clients = [\"cn:app\"]")
}

fn weaker() -> Listener {
    Listener::redis("127.0.0.1:2")
        .key("enforcement = \"observe\"")
        .tls("client_auth = \"optional\"")
        .tls("client_ca = \"ca.crt\"")
}

const QUIET: &str = "reload = { watch = false, poll = \"0s\" }\n";

fn configured(listener: Listener) -> String {
    format!("{ADMIN}{QUIET}{listener}")
}

#[test]
fn plan_text_marks_weakened_settings() {
    let portcullis = Portcullis::start(TestDir::new(), configured(stronger()));
    portcullis.address("main");
    portcullis.site.write("next.toml", configured(weaker()));
    let ask = |arguments: &[&str]| {
        let mut command = executable();
        run(command.args(arguments).current_dir(portcullis.site.directory())).success()
    };
    let expected = [
        "! setting      main  enforcement: enforce -> observe (weakens protection)",
        "! setting      main  tls.client_auth: required -> optional (weakens protection)",
        "! setting      main  tls.trusted_clients: cn:app -> none (weakens protection)",
        "~ setting      main  upstream.address: 127.0.0.1:1 -> 127.0.0.1:2",
        "settings that would weaken protection: 3 (marked !)",
    ];
    let diff = ask(&["check", "-c", "next.toml", "--diff"]);
    portcullis.site.write("portcullis.toml", configured(weaker()));
    let planned = ask(&["reload", "-c", "portcullis.toml", "--plan"]);
    for output in [&diff, &planned] {
        for line in expected {
            assert!(output.lines().any(|output| output.trim() == line), "no {line:?} in\n{output}");
        }
    }
    let applied = ask(&["reload", "-c", "portcullis.toml"]);
    assert!(expected[..4].iter().all(|line| applied.contains(line)), "{applied}");
    assert!(ask(&["reload", "-c", "portcullis.toml", "--plan"]).contains("nothing would change"));
}

#[test]
fn applied_reload_logs_the_differences_of_its_plan() {
    let portcullis = Portcullis::start(TestDir::new(), configured(stronger()));
    portcullis.address("main");
    let planned = plan(&portcullis, &configured(weaker()));
    let seen = portcullis.seen();
    let applied = portcullis.reconfigure(configured(weaker()));
    let lines: Vec<String> = applied.0["differences"].as_str().unwrap().lines().map(str::to_owned).collect();
    let keys =
        |lines: &[String]| lines.iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect::<Vec<_>>();
    let of_plan = planned["differences"].as_array().unwrap().iter();
    let of_plan: Vec<_> = of_plan.map(|one| format!("{}:", one["key"].as_str().unwrap())).collect();
    assert_eq!(keys(&lines), of_plan);
    assert!(lines.contains(&"main enforcement: enforce -> observe (weakens protection)".to_owned()), "{lines:?}");
    assert_eq!((&applied.0["differences_count"], &applied.0["weakened_count"]), (&json!(4), &json!(3)));

    portcullis.event_after(seen, "the last event", |event| event.0["key"] == "tls.trusted_clients");
    let weakened: BTreeMap<_, _> = portcullis
        .events()
        .into_iter()
        .filter(|event| event.is("policy.weakened"))
        .map(|event| (event.0["key"].as_str().unwrap().to_owned(), event.0))
        .collect();
    assert!(weakened.keys().eq(["enforcement", "tls.client_auth", "tls.trusted_clients"]), "{weakened:?}");
    let auth = &weakened["tls.client_auth"];
    assert_eq!(
        (&auth["listener"], &auth["old"], &auth["new"]),
        (&json!("main"), &json!("required"), &json!("optional"))
    );
    assert_eq!(weakened["tls.trusted_clients"]["new"], Value::Null);
}

#[test]
fn plan_names_sessions_that_it_would_end() {
    let (site, upstream) = (TestDir::new(), Upstream::echo());
    let old = Authority::new("Old CA");
    site.write("old.crt", old.pem());
    let with = |rest: &str, sources: &[&str]| {
        let listener = Listener::redis(&upstream).trusting(sources).tls("client_auth = \"required\"");
        configured(listener.tls(&format!("client_ca = [\"ca.crt\"{rest}]")))
    };
    let portcullis = Portcullis::start(site, with(", \"old.crt\"", &["127.0.0.1"]));
    let mut session = portcullis.client().showing(old.issue(Request::client("app"))).connect();
    session.ask(b"hello", b"hello");
    let detail = |config: &str| {
        let planned = plan(&portcullis, config);
        planned["sessions_ended"][0]["detail"].as_str().unwrap_or_else(|| panic!("{planned}")).to_owned()
    };
    let why = detail(&with("", &["127.0.0.1"]));
    assert!(why.contains("CN=Old CA would be removed by this reload") && !why.contains("was removed"), "{why}");
    assert_eq!(detail(&with(", \"old.crt\"", &["127.0.0.2"])), "no rule would trust this address");
    session.ask(b"still", b"still");
}

#[test]
fn plan_and_audit_contain_no_secret() {
    let site = site();
    let ticket_keys = fs::read_to_string(site.path("tickets.keys")).unwrap();
    let listener = Listener::redis("127.0.0.1:1").tls("ticket_keys = \"tickets.keys\"");
    let portcullis = Portcullis::start(site, configured(listener.clone()));
    portcullis.address("main");
    portcullis.site.write("tickets.keys", format!("{}\n", "c".repeat(64)));
    let planned = plan(&portcullis, &configured(listener.clone()));
    let [difference] = planned["differences"].as_array().unwrap().as_slice() else { panic!("{planned}") };
    assert_eq!(difference["key"], "tls.ticket_keys");
    assert!(difference["new"].as_str().unwrap().ends_with("tickets.keys (keys changed)"), "{difference}");
    let applied = portcullis.reconfigure(configured(listener));
    for secret in ticket_keys.lines().filter(|line| line.len() == 64).chain([&*"c".repeat(64)]) {
        assert!(!planned.to_string().contains(secret) && !applied.0.to_string().contains(secret));
    }
}
