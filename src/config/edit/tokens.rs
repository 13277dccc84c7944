//! Edits of the text of a `tokens_file`.

use toml_edit::{Array, Datetime, DocumentMut, Item, Table, value};

use crate::config::edit::tables::{appended, remove_element, remove_key, remove_table};
use crate::timestamp;
use crate::token::{Token, TokenOrigin};

/// Why a text is not edited. The text of the file is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenEditError {
    #[error("is not valid TOML; run \"portcullis check\" and correct it")]
    Syntax,
    #[error("has a key \"token\" that is not a list of [[token]] tables; correct it")]
    NotTables,
    #[error("already has a token of this name; choose another name, or revoke that token first")]
    NameTaken,
    #[error("has no token of this name")]
    NotFound,
}

/// Returns the text with a `[[token]]` table appended. All existing text stays as it is, except that a list of inline tables
/// (`token = [{ … }]`) gets a new element.
///
/// # Errors
/// When the text is not a `tokens_file`, or has a token of this name.
pub(crate) fn with_token(text: &str, token: &Token) -> Result<String, TokenEditError> {
    let mut document = parse(text)?;
    if names(&document)?.iter().any(|name| name.as_deref() == Some(&token.name)) {
        return Err(TokenEditError::NameTaken);
    }
    match document.get_mut("token") {
        Some(Item::Value(list)) => {
            let list = list.as_array_mut().ok_or(TokenEditError::NotTables)?;
            if !list.is_empty() {
                list.push(keys(token).into_inline_table());
                return Ok(document.to_string());
            }
            // `token = []` is what a file without tokens may contain.
            remove_key(&mut document, "token");
            Ok(appended(document.to_string(), &table(token)))
        }
        _ => Ok(appended(text.to_owned(), &table(token))),
    }
}

/// Returns the text without the token of this name and without the comment directly above it. A comment that an empty line
/// separates from the table stays.
///
/// # Errors
/// When the text is not a `tokens_file`, or has no token of this name.
pub(crate) fn without_token(text: &str, name: &str) -> Result<String, TokenEditError> {
    let mut document = parse(text)?;
    let is_named = |found: &Option<String>| found.as_deref() == Some(name);
    let index = names(&document)?.iter().position(is_named).ok_or(TokenEditError::NotFound)?;
    match document.get_mut("token") {
        Some(Item::ArrayOfTables(tables)) => {
            let kept = remove_table(tables, index);
            // The comment stood above the last table.
            if let Some(kept) = kept {
                let trailing = kept + document.trailing().as_str().unwrap_or_default();
                document.set_trailing(trailing);
            }
        }
        Some(Item::Value(list)) => {
            remove_element(list.as_array_mut().ok_or(TokenEditError::NotTables)?, index);
        }
        Some(Item::None | Item::Table(_)) | None => return Err(TokenEditError::NotTables),
    }
    Ok(document.to_string())
}

/// The table of a token with its header: `[[token]]`, or `[[admin.token]]` for the configuration.
pub(crate) fn table(token: &Token) -> String {
    let header = match token.origin {
        TokenOrigin::Configuration => "[[admin.token]]",
        TokenOrigin::TokensFile => "[[token]]",
    };
    format!("{header}\n{}", keys(token))
}

fn parse(text: &str) -> Result<DocumentMut, TokenEditError> {
    text.parse().map_err(|_| TokenEditError::Syntax)
}

/// The name of each token in the order of the file; `None` for one without.
fn names(document: &DocumentMut) -> Result<Vec<Option<String>>, TokenEditError> {
    let name = |item: Option<&str>| item.map(str::to_owned);
    match document.get("token") {
        None => Ok(Vec::new()),
        Some(Item::ArrayOfTables(tables)) => {
            Ok(tables.iter().map(|table| name(table.get("name").and_then(Item::as_str))).collect())
        }
        Some(item) => {
            let list = item.as_array().ok_or(TokenEditError::NotTables)?;
            let names = list.iter().map(|value| {
                let table = value.as_inline_table().ok_or(TokenEditError::NotTables)?;
                Ok(name(table.get("name").and_then(|value| value.as_str())))
            });
            names.collect()
        }
    }
}

/// The keys of a token, without header.
fn keys(token: &Token) -> Table {
    let Token { name, role, digest, created_at, expires_at, sources, origin: _ } = token;
    let mut table = Table::new();
    table.insert("name", value(name));
    table.insert("role", value(role.code()));
    table.insert("sha256", value(digest.to_string()));
    for (key, at) in [("created_at", created_at), ("expires_at", expires_at)] {
        // Every text of `seconds` is a TOML date-time.
        if let Some(at) = at.and_then(|at| timestamp::seconds(at).parse::<Datetime>().ok()) {
            table.insert(key, value(at));
        }
    }
    if !sources.is_empty() {
        table.insert("sources", value(sources.iter().map(ToString::to_string).collect::<Array>()));
    }
    table
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::fixtures::token;

    const HEADER: &str = "# Tokens of the shop.\n# Edit with care.\n\n";
    const FIRST: &str = "# of the shop's pipeline\n[[token]]\nname = \"one\"  # the first\nsha256   = 'a'\n\n";
    const SECOND: &str = "[[token]]\n# inside\nsha256 = 'b'\nname = \"two\"\n";
    const THIRD: &str = "\n# kept for later\n\n# of the third\n[[token]]\nname = \"three\"\n";
    const END: &str = "\n# the end\n";

    fn all() -> String {
        [HEADER, FIRST, SECOND, THIRD, END].concat()
    }

    #[test]
    fn new_token_is_appended_with_all_its_keys() {
        let at = |text| timestamp::parse(text);
        let token = Token {
            created_at: at("2026-01-31T00:00:00.5Z"),
            expires_at: at("2027-01-31T00:00:00Z"),
            sources: vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()],
            ..token("ci", "text")
        };
        let digest = token.digest;
        let table = format!(
            "[[token]]\nname = \"ci\"\nrole = \"operator\"\nsha256 = \"{digest}\"\n\
             created_at = 2026-01-31T00:00:00Z\nexpires_at = 2027-01-31T00:00:00Z\n\
             sources = [\"10.0.0.0/8\", \"::1\"]\n"
        );
        assert_eq!(with_token("", &token).as_deref(), Ok(table.as_str()));
        assert_eq!(with_token(&all(), &token), Ok(format!("{}\n{table}", all())));
        assert_eq!(with_token("# none yet", &token), Ok(format!("# none yet\n\n{table}")));
        let configured = Token { origin: TokenOrigin::Configuration, ..token };
        assert_eq!(super::table(&configured), table.replace("[[token]]", "[[admin.token]]"));
    }

    #[test]
    fn name_that_exists_is_not_added_again() {
        for text in [all(), "token = [{ name = \"two\" }]".to_owned()] {
            assert_eq!(with_token(&text, &token("two", "text")), Err(TokenEditError::NameTaken), "{text}");
        }
    }

    #[test]
    fn removed_token_takes_only_its_own_comment_with_it() {
        let without = |name| without_token(&all(), name).unwrap();
        assert_eq!(without("one"), [HEADER, "\n", SECOND, THIRD, END].concat().replacen("\n\n\n", "\n\n", 1));
        assert_eq!(without("two"), [HEADER, FIRST, THIRD.trim_start(), END].concat());
        assert_eq!(without("three"), [HEADER, FIRST, SECOND, "\n# kept for later\n", END].concat());
        assert_eq!(without_token(&all(), "four"), Err(TokenEditError::NotFound));
    }

    #[test]
    fn comments_survive_when_the_last_token_is_removed() {
        let text = [HEADER, FIRST, END].concat();
        let empty = without_token(&text, "one").unwrap();
        assert!(empty.contains("# Edit with care.") && empty.contains("# the end"), "{empty}");
        assert!(!empty.contains("[[token]]"), "{empty}");
        assert!(with_token(&empty, &token("one", "text")).unwrap().starts_with(&empty));
    }

    #[test]
    fn other_tables_survive() {
        let text = "title = 'x'\n\n[[token]]\nname = 'one'\n\n[other]\na = 1  # one\n\n[[token]]\nname = 'two'\n";
        assert_eq!(
            without_token(text, "two").unwrap(),
            "title = 'x'\n\n[[token]]\nname = 'one'\n\n[other]\na = 1  # one\n"
        );
        let added = with_token(text, &token("three", "text")).unwrap();
        assert!(added.starts_with(text), "{added}");
        assert_eq!(names(&parse(&added).unwrap()).unwrap().len(), 3);
    }

    #[test]
    fn list_of_inline_tables_is_edited_in_place() {
        let text = "# tokens\ntoken = [\n    { name = 'one' },  # the first\n    { name = 'two' },  # the second\n]\n";
        let removed = without_token(text, "two").unwrap();
        assert_eq!(removed, "# tokens\ntoken = [\n    { name = 'one' },  # the first\n]\n");
        let first = without_token(text, "one").unwrap();
        assert_eq!(first, "# tokens\ntoken = [\n    { name = 'two' },  # the second\n]\n");
        let added = with_token(&removed, &token("three", "text")).unwrap();
        assert!(added.contains("# the first") && added.contains("name = \"three\""), "{added}");
        assert_eq!(names(&parse(&added).unwrap()), Ok(vec![Some("one".to_owned()), Some("three".to_owned())]));
    }

    #[test]
    fn empty_list_becomes_a_table_and_keeps_its_comment() {
        let added = with_token("# none yet\ntoken = []\n# the end\n", &token("ci", "text")).unwrap();
        assert!(added.starts_with("# none yet\n# the end\n\n[[token]]\nname = \"ci\"\n"), "{added}");
    }

    #[test]
    fn text_that_is_not_a_tokens_file_is_left_alone() {
        for (text, error) in [
            ("token = ", TokenEditError::Syntax),
            ("token = 1\n", TokenEditError::NotTables),
            ("token = [1]\n", TokenEditError::NotTables),
            ("[token]\nname = 'ci'\n", TokenEditError::NotTables),
        ] {
            assert_eq!(with_token(text, &token("ci", "text")), Err(error), "{text}");
            assert_eq!(without_token(text, "ci"), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn tokens_added_and_removed_leave_the_others(
            before in prop::collection::btree_set("[a-z]{1,4}", 0..8),
            added in "[A-Z]{1,4}",
            at: prop::sample::Index,
        ) {
            let before: Vec<String> = before.into_iter().collect();
            let text = before.iter().fold("# tokens\n\n".to_owned(), |text, name| {
                with_token(&text, &token(name, name)).unwrap()
            });
            let with = with_token(&text, &token(&added, &added)).unwrap();
            prop_assert!(with.starts_with(&text));
            prop_assert_eq!(names(&parse(&with).unwrap()).unwrap().len(), before.len() + 1);
            let found = |text: &str| names(&parse(text).unwrap()).unwrap().into_iter().flatten().collect::<Vec<_>>();
            prop_assert_eq!(found(&without_token(&with, &added).unwrap()), before.clone());
            if !before.is_empty() {
                let gone = at.get(&before);
                let without = without_token(&text, gone).unwrap();
                let rest: Vec<_> = before.iter().filter(|name| *name != gone).cloned().collect();
                prop_assert!(without.starts_with("# tokens\n"));
                prop_assert_eq!(found(&without), rest);
            }
        }
    }
}
