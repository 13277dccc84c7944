//! Edits the text of a `sources_file`. Pure: text in, text out.
//!
//! Comments, order and formatting of rules that a change does not concern are kept byte for byte. Only tables that change are
//! parsed as an editable tree, because a file may have 100,000.

mod inline;
mod layout;
mod plan;
mod request;
mod table;
pub(crate) mod text;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::config::edit::sources::layout::Part;
use crate::config::edit::sources::plan::{Current, Fate, Given, Plan};
use crate::config::edit::sources::table::Entry;
use crate::config::edit::sources::text::LineBreak;
use crate::config::problem::Problems;
use crate::config::rule_cache::RuleCache;
use crate::config::sources;
use crate::config::sources::{RuleScope, RulesOf};
use crate::source::rule::{Origin, Rule};

/// A rule of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRule {
    /// The `type` key.
    pub kind: String,
    /// The `value` key, written to the file as it is.
    pub value: String,
    /// The UUID that the caller knows the rule by. It helps to find the rule, and is never given to another one.
    pub uuid: Option<Uuid>,
    /// At most 255 characters; an empty text clears it.
    pub description: Field<String>,
    /// Written in whole seconds.
    pub expires_at: Field<OffsetDateTime>,
}

/// A field of a rule in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Field<T> {
    /// Not mentioned: an existing rule keeps its value.
    #[default]
    Keep,
    /// The rule has no value afterwards.
    Clear,
    /// The value of the rule afterwards.
    Set(T),
}

/// A change of the rules of a `sources_file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourcesChange {
    /// Adds rules. One with the same type and the byte-identical value is left as it is, or renewed if it has expired.
    Append(Vec<NewRule>),
    /// Makes these the rules of the file, except those with the UUID of a rule of the configuration.
    Replace(Vec<NewRule>),
    /// Removes the rules with these UUIDs.
    Remove(Vec<Uuid>),
}

/// The listener or the group whose `sources_file` is edited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// For error messages.
    pub file: &'a Path,
    /// The text of its [`RuleOwner`](crate::source::group::RuleOwner).
    pub owner: &'a str,
    /// All its rules. Those of the file are ignored; their text counts.
    pub rules: &'a [Arc<Rule>],
    pub scope: RuleScope<'a>,
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edited {
    /// The new text; the same as before if nothing changed.
    pub text: String,
    /// The UUIDs of the rules that the request names, in its order, whether they changed or not.
    pub affected: Vec<Uuid>,
}

/// Why a change cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EditError {
    /// A rule of the request is not valid.
    #[error("rules[{index}].{field}: {message}")]
    Invalid {
        /// The position of the rule, from 0.
        index: usize,
        /// The key of the rule.
        field: &'static str,
        /// What was found, and what is expected.
        message: String,
    },
    /// [`SourcesChange::Remove`] of a rule that does not exist.
    #[error("there is no rule with the UUID {0}")]
    UnknownUuid(Uuid),
    /// [`SourcesChange::Remove`] of a rule of the configuration file.
    #[error("the rule with the UUID {0} is in the configuration file; remove it there")]
    Configured(Uuid),
    /// The text is not a valid `sources_file`.
    #[error("the sources_file is not valid: {0}")]
    File(Problems),
    /// The text is valid, but cannot be edited safely.
    #[error("the rules in {0} are written in a form that cannot be edited; write each as a [[rule]] table")]
    Form(String),
}

/// Applies a change to the text of a `sources_file`.
///
/// The whole text is validated unless the change only adds rules that the text cannot contain.
///
/// # Errors
/// [`EditError`]. Nothing of the change is applied then.
pub(crate) fn apply(
    text: &str,
    target: &Target<'_>,
    change: &SourcesChange,
    now: OffsetDateTime,
    cache: &mut RuleCache,
) -> Result<Edited, EditError> {
    if let SourcesChange::Append(new) = change
        && certainly_lacks(text, new)
    {
        let sources = request::sources(new, target.scope)?;
        let given: Vec<Given<'_>> = new.iter().zip(&sources).collect();
        let plan = target.current(&[], now).append(&given);
        let mut edited = text.to_owned();
        append(&mut edited, &plan.added, LineBreak::of(text));
        return Ok(Edited { text: edited, affected: plan.affected });
    }
    let new = match change {
        SourcesChange::Append(new) | SourcesChange::Replace(new) => new.as_slice(),
        SourcesChange::Remove(_) => &[],
    };
    let sources = request::sources(new, target.scope)?;
    let given: Vec<Given<'_>> = new.iter().zip(&sources).collect();
    let rules = target.read(text, cache)?;
    let current = target.current(&rules, now);
    let plan = match change {
        SourcesChange::Append(_) => current.append(&given),
        SourcesChange::Replace(_) => current.replace(&given),
        SourcesChange::Remove(uuids) => current.remove(uuids)?,
    };
    target.write(text, &rules, plan, cache)
}

impl<'a> Target<'a> {
    fn current(&self, rules: &'a [Arc<Rule>], now: OffsetDateTime) -> Current<'a> {
        Current { rules, configured: self.rules, now }
    }

    fn read(&self, text: &str, cache: &mut RuleCache) -> Result<Vec<Arc<Rule>>, EditError> {
        let configured = self.rules.iter().filter(|rule| rule.origin == Origin::Configuration);
        let taken = configured.map(|rule| rule.uuid).collect();
        let of = RulesOf { owner: self.owner, scope: self.scope };
        let read = sources::from_text(self.file, text, of, taken, cache);
        read.or_else(|problems| match Problems::unless_any(problems, Vec::new()) {
            Ok(none) => Ok(none),
            Err(problems) => Err(EditError::File(problems)),
        })
    }

    fn form(&self) -> EditError {
        EditError::Form(self.file.display().to_string())
    }

    /// Carries out a plan for the rules of the text.
    fn write(
        &self,
        text: &str,
        rules: &[Arc<Rule>],
        mut plan: Plan<'_>,
        cache: &mut RuleCache,
    ) -> Result<Edited, EditError> {
        if plan.changes_nothing() {
            return Ok(Edited { text: text.to_owned(), affected: plan.affected });
        }
        let line_break = LineBreak::of(text);
        let mut text = Cow::Borrowed(text);
        let is_rule = |part: &Part<'_>| matches!(part, Part::Rule(_));
        if !layout::parts(&text).iter().any(is_rule) {
            let tables = inline::to_tables(&text).ok_or_else(|| self.form())?;
            text = Cow::Owned(line_break.apply(tables));
        }
        let parts = layout::parts(&text);
        if parts.iter().filter(|part| is_rule(part)).count() != rules.len() {
            return Err(self.form());
        }
        // A derived UUID may depend on a rule that the plan removes. The second attempt states such UUIDs.
        for _ in 0..2 {
            let edited = edit(&parts, &plan, line_break).ok_or_else(|| self.form())?;
            let written = self.read(&edited, cache)?;
            match compare(rules, &written, &plan) {
                Verdict::AsPlanned => return Ok(Edited { text: edited, affected: plan.affected }),
                Verdict::OtherUuids(moved) => state_uuids(&mut plan, rules, &moved),
                Verdict::Different => return Err(self.form()),
            }
        }
        Err(self.form())
    }
}

/// How the rules of an edited text compare with the plan.
enum Verdict {
    AsPlanned,
    /// The rules at these positions before the change have other UUIDs after it.
    OtherUuids(Vec<usize>),
    Different,
}

fn compare(before: &[Arc<Rule>], after: &[Arc<Rule>], plan: &Plan<'_>) -> Verdict {
    let mut written = after.iter();
    let mut moved = Vec::new();
    for (index, (old, fate)) in before.iter().zip(&plan.fates).enumerate() {
        let Fate::Stay(update) = fate else { continue };
        let Some(new) = written.next() else { return Verdict::Different };
        if !update.leads_to(old, new) {
            return Verdict::Different;
        }
        if new.uuid != old.uuid {
            moved.push(index);
        }
    }
    let is_added = written.len() == plan.added.len()
        && written.zip(&plan.added).all(|(new, entry)| {
            new.written_value() == entry.value && entry.identity.is_some_and(|(uuid, _)| uuid == new.uuid)
        });
    match (is_added, moved.is_empty()) {
        (false, _) => Verdict::Different,
        (true, false) => Verdict::OtherUuids(moved),
        (true, true) => Verdict::AsPlanned,
    }
}

fn state_uuids(plan: &mut Plan<'_>, rules: &[Arc<Rule>], positions: &[usize]) {
    for position in positions {
        if let (Some(Fate::Stay(update)), Some(rule)) = (plan.fates.get_mut(*position), rules.get(*position)) {
            update.uuid = Some(rule.uuid);
        }
    }
}

/// Puts the edited text together; `None` if a table cannot be edited.
fn edit(parts: &[Part<'_>], plan: &Plan<'_>, line_break: LineBreak) -> Option<String> {
    let mut out = String::new();
    let mut fates = plan.fates.iter();
    let mut rules_left = plan.added.len();
    let mut is_after_removed = false;
    for part in parts {
        match part {
            // The blank lines above a removed rule stay, and those below go.
            Part::Free(text) if is_after_removed && text::ends_with_blank_line(&out) => {
                out.push_str(without_leading_blank_lines(text));
            }
            Part::Free(text) => out.push_str(text),
            Part::Rule(text) => match fates.next()? {
                Fate::Remove => is_after_removed = true,
                Fate::Stay(update) => {
                    is_after_removed = false;
                    rules_left = rules_left.saturating_add(1);
                    let text = if update.changes_nothing() { Cow::Borrowed(*text) } else { update.apply(text)?.into() };
                    out.push_str(&text);
                }
            },
        }
    }
    if is_after_removed {
        out.truncate(out.trim_end().len());
        line_break.end_line(&mut out);
    }
    append(&mut out, &plan.added, line_break);
    if rules_left == 0 {
        line_break.end_line(&mut out);
        out.push_str(&line_break.apply(NO_RULES.to_owned()));
    }
    Some(out)
}

fn without_leading_blank_lines(text: &str) -> &str {
    let blank = text.len().saturating_sub(text.trim_start().len());
    let lines = text.get(..blank).and_then(|blank| blank.rfind('\n')).map_or(0, |newline| newline.saturating_add(1));
    text.get(lines..).unwrap_or_default()
}

/// Adds rules to the end of a text, separated by blank lines.
fn append(out: &mut String, added: &[Entry<'_>], line_break: LineBreak) {
    for entry in added {
        line_break.end_with_blank_line(out);
        out.push_str(&line_break.apply(entry.to_text()));
    }
}

/// Whether a text of `[[rule]]` tables certainly has no rule with one of these values. A search is much faster than parsing.
fn certainly_lacks(text: &str, rules: &[NewRule]) -> bool {
    let has_tables = text.starts_with(HEADER) || text.contains(HEADER_LINE);
    // With escapes a value can be written in many ways.
    let is_plain = !text.contains('\\') && !layout::has_multiline_strings(text);
    rules.len() <= MAX_SEARCHED && has_tables && is_plain && rules.iter().all(|rule| !has_string(text, &rule.value))
}

/// Whether the text contains a value directly behind a quote.
fn has_string(text: &str, value: &str) -> bool {
    text.match_indices(value).any(|(start, _)| {
        let (before, after) = text.split_at(start);
        let after = after.get(value.len()..).unwrap_or_default();
        before.ends_with(['"', '\'']) && after.starts_with(['"', '\''])
    })
}

impl<T> Field<T> {
    /// The value that is set.
    pub(crate) fn value(self) -> Option<T> {
        match self {
            Self::Set(value) => Some(value),
            Self::Keep | Self::Clear => None,
        }
    }

    /// The value of a field that had the value `current`.
    fn after(self, current: Option<T>) -> Option<T> {
        match self {
            Self::Keep => current,
            Self::Clear => None,
            Self::Set(value) => Some(value),
        }
    }

    /// [`Self::Keep`] if the field has the value already.
    fn unless(self, current: Option<T>) -> Self
    where
        T: PartialEq,
    {
        match self {
            Self::Set(value) if current.as_ref() == Some(&value) => Self::Keep,
            Self::Clear if current.is_none() => Self::Keep,
            other => other,
        }
    }
}

/// Maximum number of values that are searched for before the text is parsed.
const MAX_SEARCHED: usize = 4;

const HEADER: &str = "[[rule]]";
const HEADER_LINE: &str = "\n[[rule]]";

/// The text of a file without rules. An empty file counts as incomplete.
const NO_RULES: &str = "rule = []\n";
