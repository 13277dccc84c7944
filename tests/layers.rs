//! The floors of the house: a module of `src/` looks down only, and never at its neighbour.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the roof down. `lib` only lists what there is.
const FLOORS: [&[&str]; 12] = [
    &["main", "cli"],
    &["server"],
    &["listener", "reload", "admin", "signals", "expiry", "readmission", "resolver", "revocation"],
    &["connection", "shield"],
    &["sessions"],
    &["snapshot"],
    &["config", "names", "tls", "audit"],
    &["audit_file", "socket_file", "tcp_diag", "fault", "descriptors", "notify"],
    &["permissions"],
    // These three are pure: decisions, the values that they are about, and how text is shown.
    &["policy", "protocol"],
    &["addr", "outcome", "timestamp"],
    &["printable"],
];

/// What the three lowest floors must not know of: the time, the disk, the network, the log.
const NOT_PURE: [&str; 7] =
    ["tokio", "tracing", "std::fs", "std::net::Tcp", "Instant::now", "SystemTime::now", "now_utc"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The module at the top of the tree to which a file belongs.
fn module(file: &Path) -> String {
    let inside = file.strip_prefix(source()).unwrap();
    let first = inside.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().rev().position(|names| names.contains(&module))
}

/// A file without its comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules that a text names as `crate::…` or, in a binary, as `portcullis::…`.
fn named(code: &str) -> BTreeSet<String> {
    let places = ["crate::", "portcullis::"].map(|root| code.match_indices(root).map(move |(at, _)| at + root.len()));
    let mut names = BTreeSet::new();
    for place in places.into_iter().flatten() {
        let rest = &code[place..];
        if let Some(list) = rest.strip_prefix('{') {
            names.extend(top_of_list(list));
        } else {
            names.extend(word(rest));
        }
    }
    names
}

fn word(text: &str) -> Option<String> {
    let end = text.find(|sign: char| !sign.is_alphanumeric() && sign != '_').unwrap_or(text.len());
    Some(text[..end].to_owned()).filter(|word| !word.is_empty())
}

/// The first names in a `{a::b, c::{d, e}}`.
fn top_of_list(list: &str) -> Vec<String> {
    let mut depth = 0_i32;
    let mut names = Vec::new();
    let mut fresh = true;
    for (place, sign) in list.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' if depth == 0 => return names,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            _ if fresh && depth == 0 && !sign.is_whitespace() => {
                names.extend(word(&list[place..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn every_module_has_a_floor() {
    for file in files(&source()) {
        let module = module(&file);
        assert!(module == "lib" || floor(&module).is_some(), "{module} has no floor: give it one");
    }
}

#[test]
fn a_module_looks_down_only() {
    let mut wrong = Vec::new();
    for file in files(&source()) {
        let own = module(&file);
        let Some(height) = floor(&own) else { continue };
        for other in named(&code(&file)) {
            let upward = floor(&other).is_some_and(|other| other >= height);
            // The roof is one: the program's argv and its commands.
            if other != own && upward && own != "main" {
                wrong.push(format!("{}: {own} looks at {other}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_import_climbs_by_way_of_its_parents() {
    for file in files(&source()) {
        assert!(!code(&file).contains("super::super"), "{} climbs", file.display());
    }
}

#[test]
fn decisions_know_of_no_clock_disk_or_network() {
    for file in files(&source()) {
        if floor(&module(&file)).is_none_or(|floor| floor > 2) {
            continue;
        }
        let code = code(&file);
        for thing in NOT_PURE {
            assert!(!code.contains(thing), "{} knows of {thing}", file.display());
        }
    }
}

#[test]
fn the_words_of_a_list_are_found() {
    let code = "use crate::{addr::Ip, policy::{a, b}, tls};\nuse crate::config::Config;";
    let expected = ["addr", "config", "policy", "tls"].map(str::to_owned);
    assert!(named(code).into_iter().eq(expected));
}
