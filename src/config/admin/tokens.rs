//! `[[admin.token]]`, and the `[[token]]` tables of `tokens_file`.

use std::path::Path;

use crate::config::SourcedFile;
use crate::config::document::{Document, Node};
use crate::config::files::Files;
use crate::config::problem::{Position, Problem, Problems};
use crate::config::sources::SOURCE;
use crate::source::rule::{Network, NetworkError};
use crate::token::secret;
use crate::token::{NAME, Role, Token, TokenDigest, TokenOrigin, is_name};

/// Reads the tokens of the configuration; `None` if one is invalid.
pub(crate) fn configured(node: &Node<'_>) -> Option<Vec<Token>> {
    Reader { origin: TokenOrigin::Configuration, known: &[], read: Vec::new() }.tokens(node)
}

/// Reads the tokens of a `tokens_file`, or returns its problems. `known` are the tokens of the configuration.
///
/// A missing or empty file has no tokens: the first new token creates it. Its directory has to exist.
pub(crate) fn from_file(file: &SourcedFile, known: &[Token], files: &mut Files) -> Result<Vec<Token>, Vec<Problem>> {
    let Some(bytes) = files.read_if_present(&file.path).map_err(|why| vec![file.unreadable(&why)])? else {
        return if is_creatable(&file.path) { Ok(Vec::new()) } else { Err(vec![file.problem(NO_DIRECTORY)]) };
    };
    let whole_file =
        |message: String| vec![Problem { position: Position::file(&file.path), key: String::new(), message }];
    let text = std::str::from_utf8(&bytes).map_err(|error| whole_file(format!("is not UTF-8: {error}")))?;
    let document = Document::new(&file.path, text);
    let tree = document.parse().map_err(Problems::into_vec)?;
    let root = document.root(tree.get_ref());
    let reader = Reader { origin: TokenOrigin::TokensFile, known, read: Vec::new() };
    let tokens = root.get("token").map_or_else(|| Some(Vec::new()), |node| reader.tokens(&node));
    root.finish();
    let problems = document.into_problems();
    tokens.filter(|_| problems.is_empty()).ok_or(problems)
}

fn is_creatable(file: &Path) -> bool {
    file.parent().is_some_and(|directory| directory.as_os_str().is_empty() || directory.is_dir())
}

/// Reads tables of tokens and detects names and texts that are used twice.
struct Reader<'a> {
    origin: TokenOrigin,
    /// Tokens of another place.
    known: &'a [Token],
    read: Vec<Token>,
}

impl Reader<'_> {
    /// `None` if a token is invalid.
    fn tokens(mut self, node: &Node<'_>) -> Option<Vec<Token>> {
        let nodes = node.list(match self.origin {
            TokenOrigin::Configuration => "a list of tables: write [[admin.token]], in double brackets",
            TokenOrigin::TokensFile => "a list of tables: write [[token]], in double brackets",
        })?;
        for node in &nodes {
            let token = self.token(node);
            self.read.extend(token);
        }
        Some(self.read).filter(|read| read.len() == nodes.len())
    }

    fn token(&self, node: &Node<'_>) -> Option<Token> {
        let section = node.section("a table with name, role and sha256")?;
        let name = section.require("name", NAME).and_then(|node| self.name(&node));
        let role =
            section.require("role", "\"viewer\", \"operator\" or \"owner\"").and_then(|node| node.choice(&roles()));
        let digest = section.require("sha256", DIGEST).and_then(|node| self.digest(&node));
        let created_at = section.get("created_at").map(|node| node.instant());
        let expires_at = section.get("expires_at").map(|node| node.instant());
        let sources = section.get("sources").map_or_else(|| Some(Vec::new()), |node| networks(&node));
        section.finish();
        Some(Token {
            name: name?,
            role: role?,
            digest: digest?,
            created_at: created_at.map_or(Some(None), |at| at.map(Some))?,
            // A token with an invalid restriction must not become a token without it.
            expires_at: expires_at.map_or(Some(None), |at| at.map(Some))?,
            sources: sources?,
            origin: self.origin,
        })
    }

    fn name(&self, node: &Node<'_>) -> Option<String> {
        let name = node.text(NAME)?;
        if !is_name(name) {
            node.expected(NAME);
            return None;
        }
        if let Some(other) = self.find(|other| other.name == name) {
            node.problem(format_args!("found \"{name}\", which is already the name of {}", self.place_of(other)));
            return None;
        }
        Some(name.to_owned())
    }

    /// Never shows the value, because it may be the token itself.
    fn digest(&self, node: &Node<'_>) -> Option<TokenDigest> {
        let text = node.text(DIGEST)?;
        let Some(digest) = TokenDigest::from_hex(text) else {
            if text.starts_with(secret::PREFIX) {
                node.problem(TOKEN_ITSELF);
            } else {
                node.problem(format_args!("is not a SHA-256; expected {DIGEST}"));
            }
            return None;
        };
        if let Some(other) = self.find(|other| other.digest == digest) {
            node.problem(format_args!(
                "is also that of \"{}\", {}; create another token with \"portcullis token new\"",
                other.name,
                self.place_of(other)
            ));
            return None;
        }
        Some(digest)
    }

    fn find(&self, is_same: impl Fn(&Token) -> bool) -> Option<&Token> {
        self.known.iter().chain(&self.read).find(|other| is_same(other))
    }

    fn place_of(&self, other: &Token) -> &'static str {
        if other.origin == self.origin { "another token" } else { "a token in the configuration" }
    }
}

/// `None` if one is invalid.
fn networks(node: &Node<'_>) -> Option<Vec<Network>> {
    let nodes = node.one_or_list();
    if nodes.is_empty() {
        node.problem("is empty, so the token could be used from nowhere; list networks, or remove the key");
        return None;
    }
    let network = |node: &Node<'_>| {
        let problem = |error: NetworkError| node.problem(format_args!("found {}, which is {error}", node.found()));
        node.text(SOURCE)?.parse().map_err(problem).ok()
    };
    // Reads all before returning, so that all problems are reported.
    let networks: Vec<Option<Network>> = nodes.iter().map(network).collect();
    networks.into_iter().collect()
}

fn roles() -> [(&'static str, Role); 3] {
    Role::ALL.map(|role| (role.code(), role))
}

const DIGEST: &str = "the SHA-256 of the token as 64 lower-case hexadecimal digits";

const TOKEN_ITSELF: &str = "is a token instead of its SHA-256 (not shown), and everyone who can read this file could use it; \
                            create another one with \"portcullis token new\"";

const NO_DIRECTORY: &str = "cannot be created, because its directory does not exist; create the directory";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: Option<&str>, known: &[Token]) -> Result<Vec<Token>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.toml");
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        let file =
            SourcedFile { path, position: Position::file(Path::new("x.toml")), key: "admin.tokens_file".to_owned() };
        let lines = |problems: Vec<Problem>| problems.iter().map(|problem| format!("{problem}\n")).collect::<String>();
        let prefix = format!("{}/", directory.path().display());
        from_file(&file, known, &mut Files::default()).map_err(|problems| lines(problems).replace(&prefix, ""))
    }

    fn table(name: &str, digit: char) -> String {
        format!("[[token]]\nname = \"{name}\"\nrole = \"viewer\"\nsha256 = \"{}\"\n", String::from(digit).repeat(64))
    }

    #[test]
    fn missing_or_empty_file_has_no_tokens() {
        for text in [None, Some(""), Some("\n# no tokens yet\n"), Some("token = []\n")] {
            assert_eq!(read(text, &[]), Ok(Vec::new()), "{text:?}");
        }
    }

    #[test]
    fn missing_file_that_appears_changes_the_fingerprint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.toml");
        let mut files = Files::default();
        assert!(files.read_if_present(&path).unwrap().is_none());
        let before = files.fingerprint();
        assert_eq!(before, before.now());
        std::fs::write(&path, "").unwrap();
        assert_ne!(before, before.now());
    }

    #[test]
    fn token_of_the_file_is_read_with_all_its_keys() {
        let text = table("ci", 'a')
            + "created_at = 2026-01-31T00:00:00Z\nexpires_at = \"2027-01-31T01:00:00+01:00\"\nsources = \"10.0.0.0/8\"\n";
        let tokens = read(Some(&text), &[]).unwrap();
        let at = |text| crate::timestamp::parse(text);
        let expected = Token {
            name: "ci".to_owned(),
            role: Role::Viewer,
            digest: TokenDigest::from_hex(&"a".repeat(64)).unwrap(),
            created_at: at("2026-01-31T00:00:00Z"),
            expires_at: at("2027-01-31T00:00:00Z"),
            sources: vec!["10.0.0.0/8".parse().unwrap()],
            origin: TokenOrigin::TokensFile,
        };
        assert_eq!(tokens, [expected]);
    }

    #[test]
    fn name_and_text_are_unique_over_both_places() {
        let mut known = read(Some(&table("ci", 'a')), &[]).unwrap();
        known[0].origin = TokenOrigin::Configuration;
        let problems =
            read(Some(&(table("ci", 'b') + &table("two", 'a') + &table("x", 'c') + &table("x", 'c'))), &known);
        assert_eq!(
            problems.unwrap_err(),
            "tokens.toml:2:8: token[0].name: found \"ci\", which is already the name of a token in the configuration\n\
             tokens.toml:8:10: token[1].sha256: is also that of \"ci\", a token in the configuration; create another token with \"portcullis token new\"\n\
             tokens.toml:14:8: token[3].name: found \"x\", which is already the name of another token\n\
             tokens.toml:16:10: token[3].sha256: is also that of \"x\", another token; create another token with \"portcullis token new\"\n"
        );
    }

    #[test]
    fn token_in_any_key_is_never_shown() {
        let token = secret::TokenSecret::generate().unwrap();
        let token = token.reveal();
        let valid = table("ci", 'a') + "expires_at = 2027-01-31T00:00:00Z\nsources = [\"10.0.0.0/8\"]\n";
        let digest = format!("\"{}\"", "a".repeat(64));
        for value in ["\"ci\"", "\"viewer\"", &digest, "2027-01-31T00:00:00Z", "\"10.0.0.0/8\""] {
            for replacement in [format!("\"{token}\""), format!("[\"{token}\"]"), token.to_owned()] {
                let text = valid.replacen(value, &replacement, 1);
                let problems = read(Some(&text), &[]).unwrap_err();
                assert!(!problems.contains(&token[4..20]), "{text}\n{problems}");
            }
        }
        let problems = read(Some(&format!("{valid}{token} = 1\n")), &[]).unwrap_err();
        assert!(!problems.contains(&token[4..20]), "{problems}");
    }
}
