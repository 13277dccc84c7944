//! A TOML document in which every value knows its place, and which collects problems instead of stopping at the first.
//!
//! Serde would stop there, and an operator with three mistakes would need three attempts. So the tree is walked by hand:
//! a [`Section`] notes the keys it is asked for, and at the end every other key is unknown.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use time::OffsetDateTime;
use toml::de::{DeTable, DeValue};

use crate::config::files::Location;
use crate::config::problem::{Position, Problem, Problems};
use crate::config::{SourcedPath, SourcedPem, shown};
use crate::timestamp;

/// One file and what is wrong with it so far.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    file: &'a Path,
    text: &'a str,
    /// Lines of the file before the text.
    lines_before: usize,
    /// Offsets at which lines start, so that finding a place does not mean reading the file.
    lines: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
    /// Problems beyond those that are told.
    untold: Cell<usize>,
    /// What other files it names.
    named: RefCell<Vec<SourcedPem>>,
}

/// A value, with its key and place.
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
    /// Keys of features to come. Known, but not to be suggested.
    later: RefCell<Vec<&'static str>>,
    /// Keys of other tables that people write here, with what to do about it.
    misplaced_keys: RefCell<Vec<(&'static str, &'static str)>>,
}

impl<'a> Document<'a> {
    pub(crate) fn new(file: &'a Path, text: &'a str) -> Self {
        Self::part(file, text, 0)
    }

    /// A part of a file that begins behind so many lines and is a document by itself.
    pub(crate) fn part(file: &'a Path, text: &'a str, lines_before: usize) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        let (problems, untold, named) = Default::default();
        Self { file, text, lines_before, lines, problems, untold, named }
    }

    /// The top table.
    ///
    /// # Errors
    /// Every syntax error. What could be read around them is not looked at: a tree with holes makes for errors about the
    /// holes.
    pub(crate) fn parse(&self) -> Result<toml::Spanned<DeTable<'a>>, Problems> {
        let (root, errors) = self.parse_around_errors();
        errors.map_or(Ok(root), Err)
    }

    /// What could be read of the top table, and every syntax error if there are any.
    pub(crate) fn parse_around_errors(&self) -> (toml::Spanned<DeTable<'a>>, Option<Problems>) {
        let (root, errors) = DeTable::parse_recoverable(self.text);
        let problem = |error: &toml::de::Error| {
            let span = error.span().unwrap_or_default();
            let position = self.position(span.start);
            // Whether the text there is a key, a value or a part of one is not known, so it may be a secret.
            let is_key = error.message().trim() == "duplicate key";
            let found = self.text.get(span).map(str::trim).filter(|found| is_key || is_punctuation(found));
            let found = found.map(|found| format!(" at `{}`", shown::key_name(found))).unwrap_or_default();
            let message = format!("not valid TOML: {}{found}", error.message().trim());
            Problem { position, key: String::new(), message }
        };
        let problems = errors.iter().take(MOST_SYNTAX_ERRORS).map(problem).collect();
        (root, Problems::unless_any(problems, ()).err())
    }

    pub(crate) fn root(&'a self, table: &'a DeTable<'a>) -> Section<'a> {
        Section::of(self, String::new(), 0..0, table)
    }

    /// The files and environment variables that it names, with the places that do.
    pub(crate) fn take_named(&self) -> Vec<SourcedPem> {
        self.named.take()
    }

    /// What is wrong with it, ready to be told.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        let (problems, untold) = self.into_counted();
        told(problems, untold)
    }

    /// What is wrong with it, and how much more than that.
    pub(crate) fn into_counted(self) -> (Vec<Problem>, usize) {
        (self.problems.take(), self.untold.get())
    }

    fn note(&self, span: Range<usize>, key: String, message: String) {
        let position = self.position(span.start);
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MOST_TOLD {
            problems.push(Problem { position, key, message });
        } else {
            self.untold.set(self.untold.get() + 1);
        }
    }

    fn position(&self, offset: usize) -> Position {
        let line = self.lines.partition_point(|start| *start <= offset);
        let line_start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        let column = self.text.get(line_start..offset).unwrap_or("").chars().count() + 1;
        Position { file: self.file.to_owned(), position: Some((self.lines_before + line, column)) }
    }
}

/// The first of `problems`, and behind them how many there are beside, `untold` ones included.
pub(crate) fn told(mut problems: Vec<Problem>, mut untold: usize) -> Vec<Problem> {
    untold += problems.len().saturating_sub(MOST_TOLD);
    problems.truncate(MOST_TOLD);
    if let (Some(last), 1..) = (problems.last(), untold) {
        let message = format!("and {untold} more problems");
        problems.push(Problem { position: last.position.clone(), key: String::new(), message });
    }
    problems
}

impl<'a> Section<'a> {
    fn of(document: &'a Document<'a>, path: String, span: Range<usize>, table: &'a DeTable<'a>) -> Self {
        Self {
            document,
            path,
            span,
            table,
            known: RefCell::default(),
            later: RefCell::default(),
            misplaced_keys: RefCell::default(),
        }
    }

    /// The value of `key`, where it is set.
    pub(crate) fn get(&self, key: &'static str) -> Option<Node<'a>> {
        self.known.borrow_mut().push(key);
        self.find(key)
    }

    fn find(&self, key: &str) -> Option<Node<'a>> {
        let value = self.table.get(key)?;
        Some(Node { document: self.document, key: self.path_of(key), span: value.span(), value: value.get_ref() })
    }

    /// The value of `key`, which must be set.
    pub(crate) fn require(&self, key: &'static str, expected: &str) -> Option<Node<'a>> {
        let found = self.get(key);
        if found.is_none() {
            self.document.note(self.span.clone(), self.path_of(key), format!("is missing; expected {expected}"));
        }
        found
    }

    /// The table `key`; nothing where it is not set.
    pub(crate) fn section(&self, key: &'static str) -> Option<Self> {
        self.get(key)?.section("a table")
    }

    /// Where `key` of a table below this one stands, if it does.
    pub(crate) fn place_of(&self, table: &str, key: &str) -> Option<SourcedPath> {
        let table = self.find(table)?;
        let value = table.value.as_table()?.get(key)?;
        Some(SourcedPath { position: self.document.position(value.span().start), key: format!("{}.{key}", table.key) })
    }

    /// Keys of features to come: refused by name, so that none is taken for one that works.
    pub(crate) fn not_yet(&self, keys: &[&'static str]) {
        for key in keys {
            if let Some(node) = self.find(key) {
                node.problem(NOT_YET);
            }
            self.later.borrow_mut().push(key);
        }
    }

    /// Keys of other tables that people write here: whoever does is told where they belong.
    pub(crate) fn misplaced_keys(&self, hint: &'static str, keys: &[&'static str]) {
        self.misplaced_keys.borrow_mut().extend(keys.iter().map(|key| (*key, hint)));
    }

    /// Notes every key nobody asked for.
    pub(crate) fn finish(self) {
        let (known, later) = (self.known.borrow(), self.later.borrow());
        for (key, _) in self.table {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) && !later.contains(&name) {
                let misplaced_keys = self.misplaced_keys.borrow();
                let message = match misplaced_keys.iter().find(|(key, _)| *key == name) {
                    Some((_, hint)) => format!("does not belong here; {hint}"),
                    None => format!("unknown key; {}", suggestion(name, &known)),
                };
                self.document.note(key.span(), self.path_of(name), message);
            }
        }
    }

    fn path_of(&self, key: &str) -> String {
        let key = shown::key_name(key);
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
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

    /// A point in time, in quotes or without. It has to be written with its offset from UTC.
    pub(crate) fn instant(&self) -> Option<OffsetDateTime> {
        let quoted = || self.value.as_str()?.parse().ok();
        let instant = self.value.as_datetime().copied().or_else(quoted).and_then(|datetime| {
            // TOML lets a space stand for the T, and seconds be left out.
            let text = datetime.to_string().replacen(' ', "T", 1);
            timestamp::parse(&text)
        });
        self.typed(instant, "a date and time with its offset, such as 2027-01-31T00:00:00Z")
    }

    pub(crate) fn section(&self, expected: &str) -> Option<Section<'a>> {
        let table = self.typed(self.value.as_table(), expected)?;
        Some(Section::of(self.document, self.key.clone(), self.span.clone(), table))
    }

    /// The elements of an array.
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

    /// The elements of an array, or the one value that stands in its place.
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

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&self, names: &[(&str, T)]) -> Option<T> {
        let expected = one_of(names.iter().map(|(name, _)| format!("{name:?}")));
        let text = self.text(&expected)?;
        let chosen = names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        self.typed(chosen, &expected)
    }

    /// The same under another key.
    pub(crate) fn called(&self, key: String) -> Self {
        Self { key, ..self.clone() }
    }

    pub(crate) fn is_boolean(&self) -> bool {
        self.value.is_bool()
    }

    pub(crate) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// Notes that the value is not what was expected.
    pub(crate) fn expected(&self, expected: impl Display) {
        self.problem(format_args!("found {}, expected {expected}", self.found()));
    }

    /// Notes something about the value.
    pub(crate) fn problem(&self, message: impl Display) {
        self.document.note(self.span.clone(), self.key.clone(), message.to_string());
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn position(&self) -> Position {
        self.document.position(self.span.start)
    }

    /// The value, as far as an error may repeat it.
    pub(crate) fn found(&self) -> String {
        let written = self.document.text.get(self.span.clone()).unwrap_or("");
        let (kind, shown) = match self.value {
            DeValue::String(text) => ("a string", shown::string(written, text)),
            DeValue::Array(elements) if elements.is_empty() => ("a list", "[]".to_owned()),
            // What is inside may be a secret.
            DeValue::Array(_) => return "a list".to_owned(),
            DeValue::Table(_) => return "a table".to_owned(),
            DeValue::Integer(_) => ("a number", shown::bounded(written)),
            DeValue::Float(_) => ("a number", shown::bounded(written)),
            DeValue::Boolean(_) => ("a truth value", shown::bounded(written)),
            DeValue::Datetime(_) => ("a date", shown::bounded(written)),
        };
        if shown::is_secret(&self.key) { format!("{kind} that is not shown") } else { shown }
    }

    /// Notes a file or an environment variable that the value names.
    pub(crate) fn names(&self, location: &Location) {
        let named = SourcedPem { location: location.clone(), position: self.position(), key: self.key.clone() };
        self.document.named.borrow_mut().push(named);
    }

    fn typed<T>(&self, value: Option<T>, expected: &str) -> Option<T> {
        if value.is_none() {
            self.expected(expected);
        }
        value
    }
}

/// What a key or value of a later feature is answered.
pub(crate) const NOT_YET: &str =
    concat!("is not available in this version (", env!("CARGO_PKG_VERSION"), "); take it out");

/// Behind the first few the parser has lost its way.
const MOST_SYNTAX_ERRORS: usize = 3;

/// Problems of one file that are told one by one. Nobody mends more at a time, and a list of rules can have many.
const MOST_TOLD: usize = 100;

fn is_punctuation(text: &str) -> bool {
    (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_punctuation())
}

fn suggestion(name: &str, known: &[&'static str]) -> String {
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
        None => "nothing here".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a table `rule` that may have a description and a value.
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
    fn an_unknown_key_of_an_inline_table_has_its_place_and_a_suggestion() {
        assert_eq!(
            problems("\nrule = { description = \"x\", valeu = \"10.0.0.0/8\" }\n"),
            ["x.toml:2:29: rule.valeu: unknown key; did you mean \"value\"?"]
        );
    }

    #[test]
    fn a_column_counts_characters_and_not_bytes() {
        assert_eq!(
            problems("# Zoë\nrule = { description = \"Zoë — 鍵\", value = 1 }\n"),
            ["x.toml:2:43: rule.value: found 1, expected an address"]
        );
    }

    #[test]
    fn what_is_beyond_the_most_that_is_told_is_counted() {
        let many: String = (0..MOST_TOLD + 7).map(|number| format!("key-{number} = 0\n")).collect();
        let problems = problems(&format!("[rule]\n{many}"));
        assert_eq!(problems.len(), MOST_TOLD + 1);
        assert!(problems[MOST_TOLD].ends_with("and 7 more problems"), "{}", problems[MOST_TOLD]);
    }
}
