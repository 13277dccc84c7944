//! A TOML document in which every value has a position, and which collects all problems instead of only the first.
//!
//! Serde stops at the first error, so an operator with three mistakes would need three attempts. This module walks the
//! tree by hand: a [`Section`] records the keys that are read, and reports every other key as unknown.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use time::OffsetDateTime;
use toml::de::{DeTable, DeValue};

use crate::config::files::Location;
use crate::config::problem::{Position, Problem, Problems};
use crate::config::{NamedLocation, PathForm, SourcedPath, SourcedPem, shown};
use crate::timestamp;

/// One file and the problems found in it so far.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    file: &'a Path,
    text: &'a str,
    /// Number of lines of the file before the text.
    lines_before: usize,
    /// Byte offsets at which lines start, so that computing a position needs no scan of the text.
    lines: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
    /// Number of problems beyond [`MAX_REPORTED`].
    omitted: Cell<usize>,
    /// Files and environment variables that the document names.
    named: RefCell<Vec<NamedLocation>>,
}

/// A value with its key and position.
#[derive(Clone, Debug)]
pub(crate) struct Node<'a> {
    document: &'a Document<'a>,
    key: String,
    span: Range<usize>,
    value: &'a DeValue<'a>,
}

/// A table that is being read.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    document: &'a Document<'a>,
    path: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
    known: RefCell<Vec<&'static str>>,
    /// Keys that belong to another table, each with a hint.
    misplaced_keys: RefCell<Vec<(&'static str, &'static str)>>,
}

impl<'a> Document<'a> {
    pub(crate) fn new(file: &'a Path, text: &'a str) -> Self {
        Self::part(file, text, 0)
    }

    /// A part of a file that starts after `lines_before` lines and parses as a document.
    pub(crate) fn part(file: &'a Path, text: &'a str, lines_before: usize) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        let (problems, omitted, named) = Default::default();
        Self { file, text, lines_before, lines, problems, omitted, named }
    }

    /// Parses the root table.
    ///
    /// # Errors
    /// Every syntax error. The recovered tree is discarded, because its gaps would cause misleading errors.
    pub(crate) fn parse(&self) -> Result<toml::Spanned<DeTable<'a>>, Problems> {
        let (root, errors) = self.parse_recovering();
        errors.map_or(Ok(root), Err)
    }

    /// Parses as much of the root table as possible, and returns the syntax errors if there are any.
    pub(crate) fn parse_recovering(&self) -> (toml::Spanned<DeTable<'a>>, Option<Problems>) {
        let (root, errors) = DeTable::parse_recoverable(self.text);
        let problem = |error: &toml::de::Error| {
            let span = error.span().unwrap_or_default();
            let position = self.position(span.start);
            // The text may be part of a value, so it may be a secret.
            let is_key = error.message().trim() == "duplicate key";
            let found = self.text.get(span).map(str::trim).filter(|found| is_key || is_punctuation(found));
            let found = found.map(|found| format!(" at `{}`", shown::key_name(found))).unwrap_or_default();
            let message = format!("not valid TOML: {}{found}", error.message().trim());
            Problem { position, key: String::new(), message }
        };
        let problems = errors.iter().take(MAX_SYNTAX_ERRORS).map(problem).collect();
        (root, Problems::unless_any(problems, ()).err())
    }

    pub(crate) fn root(&'a self, table: &'a DeTable<'a>) -> Section<'a> {
        Section::of(self, String::new(), 0..0, table)
    }

    /// Takes the files and environment variables that the document names, with their positions.
    pub(crate) fn take_named(&self) -> Vec<NamedLocation> {
        self.named.take()
    }

    /// The problems, at most [`MAX_REPORTED`], with a summary of the omitted ones.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        let (problems, omitted) = self.into_reported_and_omitted();
        limit_reported(problems, omitted)
    }

    /// The problems, at most [`MAX_REPORTED`], and the number of omitted ones.
    pub(crate) fn into_reported_and_omitted(self) -> (Vec<Problem>, usize) {
        (self.problems.take(), self.omitted.get())
    }

    fn note(&self, span: Range<usize>, key: String, message: String) {
        let position = self.position(span.start);
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MAX_REPORTED {
            problems.push(Problem { position, key, message });
        } else {
            self.omitted.set(self.omitted.get() + 1);
        }
    }

    fn position(&self, offset: usize) -> Position {
        let line = self.lines.partition_point(|start| *start <= offset);
        let line_start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        let column = self.text.get(line_start..offset).unwrap_or("").chars().count() + 1;
        Position { file: self.file.to_owned(), position: Some((self.lines_before + line, column)) }
    }
}

/// Keeps the first [`MAX_REPORTED`] problems and appends the number of the others, including `omitted`.
pub(crate) fn limit_reported(mut problems: Vec<Problem>, mut omitted: usize) -> Vec<Problem> {
    omitted += problems.len().saturating_sub(MAX_REPORTED);
    problems.truncate(MAX_REPORTED);
    if let (Some(last), 1..) = (problems.last(), omitted) {
        let message = format!("and {omitted} more problems");
        problems.push(Problem { position: last.position.clone(), key: String::new(), message });
    }
    problems
}

impl<'a> Section<'a> {
    fn of(document: &'a Document<'a>, path: String, span: Range<usize>, table: &'a DeTable<'a>) -> Self {
        Self { document, path, span, table, known: RefCell::default(), misplaced_keys: RefCell::default() }
    }

    /// Returns the value of `key` if it is set, and marks the key as known.
    pub(crate) fn get(&self, key: &'static str) -> Option<Node<'a>> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        drop(known);
        self.find(key)
    }

    fn find(&self, key: &str) -> Option<Node<'a>> {
        let value = self.table.get(key)?;
        Some(Node { document: self.document, key: self.path_of_known(key), span: value.span(), value: value.get_ref() })
    }

    /// Returns the value of `key`, and records a problem if it is missing.
    pub(crate) fn require(&self, key: &'static str, expected: &str) -> Option<Node<'a>> {
        let found = self.get(key);
        if found.is_none() {
            self.document.note(self.span.clone(), self.path_of_known(key), format!("is missing; expected {expected}"));
        }
        found
    }

    /// Returns the table `key` if it is set.
    pub(crate) fn section(&self, key: &'static str) -> Option<Self> {
        self.get(key)?.section("a table")
    }

    /// Returns the position of `key` in the table `table` below this one, if it is set.
    pub(crate) fn position_of(&self, table: &str, key: &str) -> Option<SourcedPath> {
        let table = self.find(table)?;
        let value = table.value.as_table()?.get(key)?;
        Some(SourcedPath { position: self.document.position(value.span().start), key: format!("{}.{key}", table.key) })
    }

    /// Registers keys that belong to another table, and the hint to report for them.
    pub(crate) fn add_misplaced_keys(&self, hint: &'static str, keys: &[&'static str]) {
        self.misplaced_keys.borrow_mut().extend(keys.iter().map(|key| (*key, hint)));
    }

    /// Records a problem for every key that was not read.
    pub(crate) fn finish(self) {
        let known = self.known.borrow();
        for (key, _) in self.table {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let misplaced_keys = self.misplaced_keys.borrow();
                let message = match misplaced_keys.iter().find(|(key, _)| *key == name) {
                    Some((_, hint)) => format!("does not belong here; {hint}"),
                    None => format!("unknown key; {}", suggestion(name, &known)),
                };
                self.document.note(key.span(), self.path_of(name), message);
            }
        }
    }

    /// The path of a key that the operator chose. It may be a misplaced secret.
    fn path_of(&self, key: &str) -> String {
        self.path_of_known(&shown::key_name(key))
    }

    fn path_of_known(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

impl<'a> Node<'a> {
    pub(crate) fn text(&self, expected: &str) -> Option<&'a str> {
        self.typed(self.value.as_str(), expected)
    }

    pub(crate) fn boolean(&self) -> Option<bool> {
        self.typed(self.value.as_bool(), "true or false")
    }

    pub(crate) fn integer(&self) -> Option<i64> {
        let integer = self.value.as_integer()?;
        i64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    /// A date and time with a UTC offset, quoted or unquoted.
    pub(crate) fn instant(&self) -> Option<OffsetDateTime> {
        let quoted = || self.value.as_str()?.parse().ok();
        let instant = self.value.as_datetime().copied().or_else(quoted).and_then(|datetime| {
            // TOML allows a space instead of the T, and omitted seconds.
            let text = datetime.to_string().replacen(' ', "T", 1);
            timestamp::parse(&text)
        });
        self.typed(instant, "a date and time with its offset, such as 2027-01-31T00:00:00Z")
    }

    pub(crate) fn section(&self, expected: &str) -> Option<Section<'a>> {
        let table = self.typed(self.value.as_table(), expected)?;
        Some(Section::of(self.document, self.key.clone(), self.span.clone(), table))
    }

    /// Returns the elements of an array.
    pub(crate) fn list(&self, expected: &str) -> Option<Vec<Self>> {
        let array = self.typed(self.value.as_array(), expected)?;
        let node = |(index, value): (usize, &'a toml::Spanned<DeValue<'a>>)| Node {
            document: self.document,
            key: format!("{}[{index}]", self.key),
            span: value.span(),
            value: value.get_ref(),
        };
        Some(array.iter().enumerate().map(node).collect())
    }

    /// Returns the elements of an array, or a single value as a list of one.
    pub(crate) fn one_or_list(&self) -> Vec<Self> {
        match self.value {
            DeValue::Array(_) => self.list("").unwrap_or_default(),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Table(_) => vec![self.clone()],
        }
    }

    /// Returns the value that belongs to one of `names`.
    pub(crate) fn choice<T: Copy>(&self, names: &[(&str, T)]) -> Option<T> {
        let expected = one_of(names.iter().map(|(name, _)| format!("{name:?}")));
        let text = self.text(&expected)?;
        let chosen = names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        self.typed(chosen, &expected)
    }

    /// Returns the same value under another key.
    pub(crate) fn with_key(&self, key: String) -> Self {
        Self { key, ..self.clone() }
    }

    pub(crate) fn is_boolean(&self) -> bool {
        self.value.is_bool()
    }

    pub(crate) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// Records that the value is not what was expected.
    pub(crate) fn expected(&self, expected: impl Display) {
        self.problem(format_args!("found {}, expected {expected}", self.found()));
    }

    /// Records a problem with the value.
    pub(crate) fn problem(&self, message: impl Display) {
        self.document.note(self.span.clone(), self.key.clone(), message.to_string());
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn position(&self) -> Position {
        self.document.position(self.span.start)
    }

    /// The value as far as an error may show it.
    pub(crate) fn found(&self) -> String {
        let written = self.document.text.get(self.span.clone()).unwrap_or("");
        let (kind, shown) = match self.value {
            DeValue::String(text) => ("a string", shown::string(written, text)),
            DeValue::Array(elements) if elements.is_empty() => ("a list", "[]".to_owned()),
            // The content may be a secret.
            DeValue::Array(_) => return "a list".to_owned(),
            DeValue::Table(_) => return "a table".to_owned(),
            DeValue::Integer(_) => ("a number", shown::number(written)),
            DeValue::Float(_) => ("a number", shown::number(written)),
            DeValue::Boolean(_) => ("a boolean", shown::bounded(written)),
            DeValue::Datetime(_) => ("a date", shown::bounded(written)),
        };
        if shown::is_secret(&self.key) { format!("{kind} that is not shown") } else { shown }
    }

    /// Records a file or an environment variable that the value names.
    pub(crate) fn record_location(&self, location: &Location, form: PathForm) {
        let source = SourcedPem { location: location.clone(), position: self.position(), key: self.key.clone() };
        self.document.named.borrow_mut().push(NamedLocation { source, form });
    }

    fn typed<T>(&self, value: Option<T>, expected: &str) -> Option<T> {
        if value.is_none() {
            self.expected(expected);
        }
        value
    }
}

/// After the first few errors the recovered parse is unreliable.
const MAX_SYNTAX_ERRORS: usize = 3;

/// Maximum number of problems reported for one file. A list of rules can have many.
const MAX_REPORTED: usize = 100;

fn is_punctuation(text: &str) -> bool {
    (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_punctuation())
}

/// The known name that was probably meant, or all of them.
pub(crate) fn suggestion(name: &str, known: &[&str]) -> String {
    let similar = |other: &&&str| strsim::damerau_levenshtein(name, other) <= 1 + name.len() / 4;
    match known.iter().filter(similar).min_by_key(|other| strsim::damerau_levenshtein(name, other)) {
        Some(meant) => format!("did you mean \"{meant}\"?"),
        None => format!("expected {}", one_of(known.iter().map(|key| (*key).to_owned()))),
    }
}

fn one_of(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => "no keys".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The problems of a table `rule` that may have a description and a value.
    fn problems(text: &str) -> Vec<String> {
        let document = Document::new(Path::new("x.toml"), text);
        let tree = document.parse().unwrap();
        let root = document.root(tree.get_ref());
        let rule = root.section("rule").unwrap();
        let _ = rule.get("description").and_then(|node| node.text("a text"));
        let _ = rule.get("value").and_then(|node| node.text("an address"));
        rule.finish();
        root.finish();
        document.into_problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unknown_key_of_an_inline_table_is_reported_with_position_and_suggestion() {
        assert_eq!(
            problems("\nrule = { description = \"x\", valeu = \"10.0.0.0/8\" }\n"),
            ["x.toml:2:29: rule.valeu: unknown key; did you mean \"value\"?"]
        );
    }

    #[test]
    fn column_counts_characters_not_bytes() {
        assert_eq!(
            problems("# Zoë\nrule = { description = \"Zoë — 鍵\", value = 1 }\n"),
            ["x.toml:2:43: rule.value: found 1, expected an address"]
        );
    }

    #[test]
    fn problems_beyond_the_maximum_are_counted() {
        let many: String = (0..MAX_REPORTED + 7).map(|number| format!("key-{number} = 0\n")).collect();
        let problems = problems(&format!("[rule]\n{many}"));
        assert_eq!(problems.len(), MAX_REPORTED + 1);
        assert!(problems[MAX_REPORTED].ends_with("and 7 more problems"), "{}", problems[MAX_REPORTED]);
    }
}
