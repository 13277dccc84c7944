//! Words that the project no longer uses, because the field has a standard term.

use std::fs;
use std::path::{Path, PathBuf};

/// A retired word or phrase in lower case, and the term to use.
const RETIRED: &[(&str, &str)] = &[
    ("stranger", "untrusted source"),
    ("strangers", "untrusted sources"),
    ("newcomer", "accepted connection"),
    ("whereabouts", "endpoint"),
    ("overture", "start-up"),
    ("audition", "probe"),
    ("lineage", "certificate history"),
    ("reliance", "authorization"),
    ("voucher", "trust anchor or pinned certificate"),
    ("headcount", "session limiter"),
    ("pacer", "rate limiter"),
    ("untold", "unknown"),
    ("parting", "farewell"),
    ("goodbye", "farewell message"),
    ("whom", "another sentence"),
    ("told", "reported"),
    ("said", "reported"),
    ("hears", "receives"),
    ("let in", "admitted, accepted"),
    ("lets in", "admits, accepts"),
    ("letting in", "admitting, accepting"),
    ("goes on", "continues"),
    ("be had", "is available"),
    ("by the word of", "announced by"),
    ("gone past", "skipped"),
    ("taken out", "removed"),
    ("takes out", "removes"),
    ("shown out", "closed"),
    ("run out", "expired"),
    ("runs out", "expires"),
    ("ran out", "expired"),
    ("turned away", "rejected"),
    ("turns away", "rejects"),
    ("sent away", "rejected"),
];

const FOLDERS: &[&str] = &["src", "tests", "bench", "docs", "config", "packaging", "scripts"];
const FILES: &[&str] = &["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "Makefile", "Dockerfile"];

fn files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    fs::read_dir(path).unwrap().flat_map(|entry| files(&entry.unwrap().path())).collect()
}

/// The retired words of a line. An identifier is split at `_` and at capitals; the words of a phrase stand in one identifier or
/// in a sentence.
fn retired_in(line: &str) -> Vec<&'static str> {
    let mut split = String::with_capacity(line.len());
    let mut before = ' ';
    for sign in line.chars() {
        if before.is_lowercase() && sign.is_uppercase() {
            split.push('_');
        }
        split.extend(sign.to_lowercase());
        before = sign;
    }
    let is_letter = |sign: Option<char>| sign.is_some_and(char::is_alphabetic);
    let contains = |text: &str, phrase: &str, forbidden_end: Option<char>| {
        text.match_indices(phrase).any(|(start, found)| {
            let (before, after) = (text[..start].chars().next_back(), text[start + found.len()..].chars().next());
            !is_letter(before) && !is_letter(after) && (after.is_none() || after != forbidden_end)
        })
    };
    let is_used = |phrase: &str| {
        // `let in_force` is code and no phrase.
        let after_phrase = phrase.contains(' ').then_some('_');
        contains(&split, phrase, after_phrase) || contains(&split, &phrase.replace(' ', "_"), None)
    };
    RETIRED.iter().map(|(phrase, _)| *phrase).filter(|phrase| is_used(phrase)).collect()
}

#[test]
fn retired_words_are_not_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for file in FOLDERS.iter().chain(FILES).flat_map(|name| files(&root.join(name))) {
        // Binary files hold no words.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        if file.ends_with("tests/vocabulary.rs") {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            for word in retired_in(line) {
                let term = RETIRED.iter().find(|(retired, _)| *retired == word).map_or("", |(_, term)| term);
                let place = file.strip_prefix(root).unwrap().display();
                found.push(format!("{place}:{number}: \"{word}\": write {term}"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn retired_words_are_found_in_sentences_and_identifiers() {
    assert_eq!(retired_in("fn is_let_in(source: Stranger)"), ["stranger", "let in"]);
    assert_eq!(retired_in("// The rule has run out."), ["run out"]);
    assert_eq!(retired_in("struct PeerLineage;"), ["lineage"]);
    assert_eq!(retired_in("let in_force = is_starting(untoldness);"), [""; 0]);
}
