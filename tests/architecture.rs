//! The folders of `src/` and what each may import. `docs/ARCHITECTURE.md` shows the same picture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder (or a file beside `lib.rs`) and the folders that it imports from. A folder with its own line is not part of the
/// one above it. The order is the order of dependencies: a folder imports only from lines above its own.
const ALLOWED: &[(&str, &[&str])] = &[
    ("printable", &[]),
    ("addr", &[]),
    ("outcome", &["printable"]),
    ("timestamp", &[]),
    ("fault", &["printable"]),
    ("permissions", &[]),
    ("durable_file", &[]),
    ("descriptors", &[]),
    ("digest", &[]),
    ("jitter", &[]),
    ("protocol/redis", &[]),
    ("protocol", &["addr", "outcome", "protocol/redis"]),
    ("source", &["addr", "timestamp"]),
    ("limit", &["addr", "outcome"]),
    ("token", &["addr", "digest", "source", "limit"]),
    ("panel", &["addr", "digest", "token"]),
    ("metrics", &["outcome"]),
    ("x509", &["printable", "timestamp", "digest"]),
    ("x509/chain", &["timestamp", "x509"]),
    ("identity", &["printable", "outcome", "timestamp", "x509", "x509/chain"]),
    ("credential", &["timestamp", "digest", "x509", "identity"]),
    ("login", &["printable", "digest", "protocol/redis", "protocol", "credential"]),
    ("issuing", &["x509"]),
    ("tls", &["outcome", "protocol", "x509", "identity"]),
    ("tls/upstream", &["printable", "timestamp", "protocol", "x509", "x509/chain", "identity", "tls"]),
    ("transport", &["permissions", "source", "identity", "tls"]),
    ("resolution", &["printable", "timestamp", "fault", "durable_file", "digest", "source"]),
    ("fleet", &["timestamp", "digest", "resolution"]),
    ("agent", &["printable", "source", "resolution", "fleet"]),
    ("agent/client", &["resolution"]),
    ("agent/digitalocean", &["printable", "timestamp", "jitter", "source", "resolution", "agent/client"]),
    ("agent/kubernetes", &["printable", "fault", "jitter", "source", "resolution"]),
    (
        "agent/store",
        &["printable", "fault", "digest", "jitter", "resolution", "fleet", "agent", "agent/client", "agent/kubernetes"],
    ),
    (
        "agent/process",
        &["fault", "source", "resolution", "fleet", "agent", "agent/digitalocean", "agent/kubernetes", "agent/store"],
    ),
    ("dns", &["addr", "timestamp", "fault", "jitter", "source", "resolution"]),
    ("audit", &["printable", "addr", "outcome", "timestamp", "fault", "permissions", "source", "limit", "token"]),
    (
        "config",
        &[
            "printable",
            "addr",
            "timestamp",
            "permissions",
            "digest",
            "protocol",
            "source",
            "limit",
            "token",
            "x509/chain",
            "identity",
            "credential",
            "transport",
            "resolution",
            "fleet",
        ],
    ),
    (
        "upstream",
        &[
            "printable",
            "addr",
            "outcome",
            "fault",
            "descriptors",
            "protocol/redis",
            "protocol",
            "limit",
            "x509",
            "identity",
            "credential",
            "login",
            "tls",
            "tls/upstream",
            "transport",
            "audit",
            "config",
        ],
    ),
    (
        "policy",
        &[
            "printable",
            "addr",
            "outcome",
            "timestamp",
            "protocol",
            "source",
            "limit",
            "metrics",
            "x509",
            "x509/chain",
            "identity",
            "credential",
            "issuing",
            "tls",
            "tls/upstream",
            "transport",
            "resolution",
            "fleet",
            "audit",
            "config",
            "upstream",
        ],
    ),
    (
        "policy/diff",
        &[
            "printable",
            "addr",
            "timestamp",
            "protocol",
            "source",
            "limit",
            "token",
            "x509",
            "x509/chain",
            "identity",
            "credential",
            "tls",
            "transport",
            "resolution",
            "fleet",
            "audit",
            "config",
            "policy",
        ],
    ),
    ("session", &["addr", "outcome", "fault", "identity", "config", "policy"]),
    ("shield", &["source", "metrics", "transport", "audit", "config", "policy"]),
    (
        "proxy",
        &[
            "printable",
            "addr",
            "outcome",
            "fault",
            "descriptors",
            "protocol/redis",
            "protocol",
            "source",
            "limit",
            "metrics",
            "x509",
            "identity",
            "credential",
            "login",
            "tls",
            "tls/upstream",
            "transport",
            "audit",
            "config",
            "upstream",
            "policy",
            "session",
        ],
    ),
    (
        "proxy/listener",
        &[
            "addr",
            "outcome",
            "fault",
            "permissions",
            "descriptors",
            "source",
            "limit",
            "metrics",
            "transport",
            "audit",
            "policy",
            "shield",
            "proxy",
        ],
    ),
    (
        "metrics/exposition",
        &[
            "addr",
            "fault",
            "limit",
            "metrics",
            "x509",
            "resolution",
            "agent",
            "config",
            "upstream",
            "policy",
            "session",
        ],
    ),
    (
        "control",
        &[
            "printable",
            "addr",
            "timestamp",
            "fault",
            "source",
            "limit",
            "token",
            "panel",
            "metrics",
            "x509",
            "credential",
            "issuing",
            "tls",
            "transport",
            "audit",
            "config",
        ],
    ),
    (
        "server",
        &[
            "printable",
            "addr",
            "outcome",
            "timestamp",
            "fault",
            "permissions",
            "durable_file",
            "descriptors",
            "digest",
            "protocol",
            "source",
            "token",
            "metrics",
            "x509",
            "identity",
            "credential",
            "issuing",
            "tls",
            "resolution",
            "fleet",
            "agent",
            "dns",
            "audit",
            "config",
            "upstream",
            "policy",
            "session",
            "shield",
            "proxy",
            "proxy/listener",
            "metrics/exposition",
            "control",
        ],
    ),
    (
        "cli",
        &[
            "printable",
            "addr",
            "timestamp",
            "fault",
            "permissions",
            "durable_file",
            "descriptors",
            "protocol",
            "source",
            "token",
            "x509",
            "x509/chain",
            "identity",
            "credential",
            "issuing",
            "transport",
            "resolution",
            "fleet",
            "agent/process",
            "audit",
            "config",
            "policy",
            "server",
        ],
    ),
];

/// Folders of decisions: no runtime, log, clock, disk or network.
const PURE: &[&str] = &["addr", "outcome", "printable", "timestamp", "protocol", "source", "credential", "login"];

const IMPURE_WORDS: &[&str] =
    &["tokio", "tracing", "std::fs", "std::net::Tcp", "Instant::now", "SystemTime::now", "now_utc"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The module path of a file, such as `proxy/relay/flow`.
fn module(file: &Path) -> String {
    let path = file.strip_prefix(source()).unwrap().with_extension("");
    let path = path.to_str().unwrap();
    path.strip_suffix("/mod").unwrap_or(path).to_owned()
}

/// The line of [`ALLOWED`] that a module path belongs to: the longest that it begins with.
fn folder(module: &str) -> Option<&'static str> {
    let is_within =
        |folder: &str| module == folder || module.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    ALLOWED.iter().map(|(folder, _)| *folder).filter(|folder| is_within(folder)).max_by_key(|folder| folder.len())
}

/// Whether a file has tests or fuzz targets only. They may import from every folder.
fn is_test(file: &Path) -> bool {
    let module = module(file);
    module.split('/').any(|part| ["tests", "fixtures", "fuzz"].contains(&part))
}

/// A file without its comments and its tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Every path that begins with `crate::`, lists taken apart, as `proxy/relay/flow/Flow`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (start, _) in code.match_indices("crate::") {
        let after_word =
            code[..start].chars().next_back().is_some_and(|before| before == '$' || before.is_alphanumeric());
        if !after_word {
            expand("", &code[start + "crate::".len()..], &mut found);
        }
    }
    found
}

/// Adds the paths of a use tree that begins `text`.
fn expand(prefix: &str, text: &str, found: &mut BTreeSet<String>) {
    let text = text.trim_start();
    let Some(list) = text.strip_prefix('{') else {
        let end = text.find(|sign: char| !sign.is_alphanumeric() && sign != '_').unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        let path = if prefix.is_empty() { word.to_owned() } else { format!("{prefix}/{word}") };
        match rest.strip_prefix("::") {
            Some(rest) => expand(&path, rest, found),
            None => drop(found.insert(path)),
        }
        return;
    };
    let mut depth = 0_usize;
    let mut start = 0;
    for (at, sign) in list.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                if !list[start..at].trim().is_empty() {
                    expand(prefix, &list[start..at], found);
                }
                start = at + 1;
                if sign == '}' {
                    return;
                }
            }
            _ => {}
        }
    }
}

/// The folders that each folder imports from, with a file that does.
fn edges() -> BTreeMap<(&'static str, &'static str), String> {
    let mut edges = BTreeMap::new();
    for file in files(&source()).iter().filter(|file| !is_test(file)) {
        let Some(own) = folder(&module(file)) else { continue };
        for other in imports(&code(file)).iter().filter_map(|path| folder(path)) {
            if other != own {
                edges.insert((own, other), module(file));
            }
        }
    }
    edges
}

#[test]
fn every_file_belongs_to_a_folder_of_the_list() {
    for file in files(&source()).into_iter().filter(|file| !is_test(file)) {
        let module = module(&file);
        let is_root = ["lib", "main", "internals"].contains(&module.as_str());
        assert!(is_root || folder(&module).is_some(), "{module}: add its folder to ALLOWED");
    }
}

#[test]
fn folder_imports_only_what_the_list_allows() {
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let wrong: Vec<_> = edges().into_iter().filter(|((own, other), _)| !allowed[own].contains(other)).collect();
    assert!(wrong.is_empty(), "not in ALLOWED: {wrong:#?}");
}

#[test]
fn allowed_list_has_no_unused_edge() {
    let used = edges();
    for (own, others) in ALLOWED {
        for other in *others {
            assert!(used.contains_key(&(*own, *other)), "{own} no longer imports from {other}: remove it from ALLOWED");
        }
    }
}

#[test]
fn allowed_list_is_in_the_order_of_dependencies() {
    let position = |folder: &str| ALLOWED.iter().position(|(name, _)| *name == folder);
    for (own, others) in ALLOWED {
        for other in *others {
            assert!(position(other) < position(own), "{own} may not import from {other}, which stands below it");
        }
    }
}

#[test]
fn no_import_climbs_more_than_one_level() {
    for file in files(&source()) {
        assert!(!code(&file).contains("super::super"), "{} climbs", file.display());
    }
}

#[test]
fn pure_folders_import_no_runtime_clock_disk_or_network() {
    for file in files(&source()).iter().filter(|file| !is_test(file)) {
        let module = module(file);
        if PURE.iter().any(|pure| module.split('/').next() == Some(pure)) {
            let code = code(file);
            for word in IMPURE_WORDS {
                assert!(!code.contains(word), "{module} knows {word}");
            }
        }
    }
}

/// A predicate never mutates its subject.
#[test]
fn predicates_never_mutate_and_always_return_a_value() {
    for file in files(&source()) {
        let code = code(&file);
        for signature in code.split("fn ").skip(1).filter_map(|rest| rest.split('{').next()) {
            let name = signature.split(['(', '<']).next().unwrap_or_default();
            if name.starts_with("is_") || name.starts_with("has_") {
                assert!(!signature.contains("&mut self"), "{}: {name} changes something", file.display());
                assert!(signature.contains("->"), "{}: {name} answers nothing", file.display());
            }
        }
    }
}

#[test]
fn imports_of_a_list_are_found() {
    let code = "use crate::{addr::Ip, source::{rule, trusted::{A, B}}, tls};\nlet x = crate::config::Config::new();";
    let expected = ["addr/Ip", "config/Config/new", "source/rule", "source/trusted/A", "source/trusted/B", "tls"];
    assert!(imports(code).into_iter().eq(expected.map(str::to_owned)));
}
