//! Validates the rules of a request with the parser of the configuration, and words problems without a position.

use std::collections::HashSet;
use std::path::Path;

use time::OffsetDateTime;

use crate::config::edit::sources::table::Entry;
use crate::config::edit::sources::{EditError, Field, NewRule};
use crate::config::problem::Problem;
use crate::config::rule_cache::RuleCache;
use crate::config::sources;
use crate::config::sources::{RuleScope, RulesOf};
use crate::source::rule::Source;

/// Returns the source of each rule.
///
/// # Errors
/// [`EditError::Invalid`] for the first rule that is not valid.
pub(crate) fn sources(rules: &[NewRule], scope: RuleScope<'_>) -> Result<Vec<Source>, EditError> {
    if rules.is_empty() {
        return Ok(Vec::new());
    }
    for (index, rule) in rules.iter().enumerate() {
        check(&rule.value, max_value(&rule.kind)).map_err(|message| EditError::Invalid {
            index,
            field: "value",
            message,
        })?;
        if let Field::Set(description) = &rule.description {
            check(description, MAX_DESCRIPTION).map_err(|message| EditError::Invalid {
                index,
                field: "description",
                message,
            })?;
        }
    }
    let text: String = rules.iter().map(|rule| entry(rule).to_text()).collect();
    let read = sources::from_text(
        Path::new(""),
        &text,
        RulesOf { owner: "", scope },
        HashSet::new(),
        &mut RuleCache::default(),
    )
    .map_err(|problems| first(&problems))?;
    Ok(read.into_iter().map(|rule| rule.source.clone()).collect())
}

/// The rule as the file states it, without UUID.
pub(crate) fn entry(rule: &NewRule) -> Entry<'_> {
    Entry {
        kind: &rule.kind,
        value: &rule.value,
        description: description(rule).value(),
        expires_at: expiry(rule).value(),
        identity: None,
    }
}

/// The description, which an empty text clears.
pub(crate) fn description(rule: &NewRule) -> Field<&str> {
    match &rule.description {
        Field::Keep => Field::Keep,
        Field::Set(text) if !text.is_empty() => Field::Set(text),
        Field::Clear | Field::Set(_) => Field::Clear,
    }
}

/// The expiry in whole seconds.
pub(crate) fn expiry(rule: &NewRule) -> Field<OffsetDateTime> {
    match rule.expires_at {
        Field::Set(end) => Field::Set(end.replace_nanosecond(0).unwrap_or(end)),
        other => other,
    }
}

/// Limits the length of a text, in characters, and rejects characters that could forge lines in logs and terminals: control
/// characters, line separators, and those that change the direction of text.
fn check(text: &str, limit: usize) -> Result<(), String> {
    let is_forging = |character: &char| {
        character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if let Some(control) = text.chars().find(is_forging) {
        return Err(format!("contains the control character U+{:04X}; remove it", u32::from(control)));
    }
    let length = text.chars().count();
    if length > limit {
        return Err(format!("has {length} characters; shorten it to at most {limit}"));
    }
    Ok(())
}

/// The first problem, with the index and field of its key, such as `rule[7].value`.
fn first(problems: &[Problem]) -> EditError {
    let key = problems.first().map_or("", |problem| problem.key.as_str());
    let message = problems.first().map_or_else(String::new, |problem| problem.message.clone());
    let index = key.split(['[', ']']).nth(1).and_then(|index| index.parse().ok()).unwrap_or(0);
    let field = FIELDS.into_iter().find(|field| key.ends_with(field)).unwrap_or("type");
    EditError::Invalid { index, field, message }
}

const FIELDS: [&str; 4] = ["type", "value", "description", "expires_at"];

/// Maximum length of a description in a request, in characters.
const MAX_DESCRIPTION: usize = 255;

/// Maximum length of a value in a request, in characters.
fn max_value(kind: &str) -> usize {
    if kind == KUBERNETES { MAX_SELECTION } else { MAX_VALUE }
}

const KUBERNETES: &str = "kubernetes";

/// A namespace and a label selector.
const MAX_SELECTION: usize = 1_300;

/// The length of a tag; a host name has at most 253 characters (RFC 1035 section 2.3.4).
const MAX_VALUE: usize = 255;
