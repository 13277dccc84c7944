//! Rewrites `rule = [{ … }, …]` as `[[rule]]` tables, with all comments.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::config::edit::sources::text::LineBreak;

/// Returns the text with `[[rule]]` tables in the place of the array `rule`. A text without that array is returned as it is,
/// and of an empty array only the comments are left.
///
/// Returns `None` if the text is not valid TOML, or the array holds something other than tables.
pub(crate) fn to_tables(text: &str) -> Option<String> {
    let root = DeTable::parse(text).ok()?;
    let Some((key, array)) = root.get_ref().get_key_value("rule") else { return Some(text.to_owned()) };
    let before = text.get(..key.span().start)?;
    let mut out = Lines { text: before.to_owned() };
    out.blank_line();
    // The opening bracket and what follows up to the first element, then each element with what follows it.
    let mut gap = array.span().start..array.span().start;
    let elements: Vec<_> = array.get_ref().as_array()?.iter().collect();
    let mut leading = Vec::new();
    for (index, element) in elements.iter().enumerate() {
        gap.end = element.span().start;
        let next = elements.get(index.saturating_add(1)).map_or(array.span().end, |next| next.span().start);
        leading.extend(comments(text.get(gap)?));
        let (same_line, rest) = rest_of_line(text, element.span().end..next);
        leading.extend(comments(text.get(same_line)?));
        out.table(text, element.get_ref().as_table()?, element.span(), &leading)?;
        leading.clear();
        gap = rest;
    }
    gap.end = array.span().end;
    let trailing = comments(text.get(gap)?);
    let after = text.get(array.span().end..)?;
    trailing.iter().for_each(|comment| out.line(comment));
    if !trailing.is_empty() {
        out.blank_line();
    }
    out.text.push_str(after.trim_start());
    Some(out.text)
}

/// Splits a range behind an element into the rest of its line and the lines below.
fn rest_of_line(text: &str, range: Range<usize>) -> (Range<usize>, Range<usize>) {
    let length = text.get(range.clone()).and_then(|rest| rest.find('\n')).unwrap_or(0);
    let end = range.start.saturating_add(length);
    (range.start..end, end..range.end)
}

/// The comments in a text between two values, which has no other `#`.
fn comments(between: &str) -> Vec<&str> {
    between.lines().filter_map(|line| line.find('#').and_then(|start| line.get(start..))).map(str::trim_end).collect()
}

struct Lines {
    text: String,
}

impl Lines {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Ends the last line and adds a blank one, unless there is one or the text is empty.
    fn blank_line(&mut self) {
        LineBreak::Lf.end_with_blank_line(&mut self.text);
    }

    fn table(&mut self, text: &str, table: &DeTable<'_>, span: Range<usize>, leading: &[&str]) -> Option<()> {
        let mut pairs: Vec<_> = table.iter().collect();
        pairs.sort_unstable_by_key(|(key, _)| key.span().start);
        // Comments inside the braces are valid since TOML 1.1.
        let mut inner = Vec::new();
        let mut end = span.start;
        for (key, value) in &pairs {
            inner.extend(comments(text.get(end..key.span().start)?));
            inner.extend(comments(text.get(key.span().end..value.span().start)?));
            end = value.span().end;
        }
        inner.extend(comments(text.get(end..span.end)?));
        leading.iter().chain(&inner).for_each(|comment| self.line(comment));
        self.line("[[rule]]");
        for (key, value) in pairs {
            if matches!(value.get_ref(), DeValue::Table(_)) {
                return None;
            }
            self.line(&format!("{} = {}", key.get_ref(), text.get(value.span())?));
        }
        self.blank_line();
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_becomes_tables_with_its_comments() {
        let text = "# file\nrule = [ # all\n  # first\n  { type = \"a\", value = 'b' }, # office\n\
                    { value = \"#\" # inner\n, type = \"c\" },\n  # last\n] # end\n# eof\n";
        let tables = "# file\n\n# all\n# first\n# office\n[[rule]]\ntype = \"a\"\nvalue = 'b'\n\n\
                      # inner\n[[rule]]\nvalue = \"#\"\ntype = \"c\"\n\n# last\n\n# end\n# eof\n";
        assert_eq!(to_tables(text).as_deref(), Some(tables));
    }

    #[test]
    fn empty_array_leaves_its_comments() {
        assert_eq!(to_tables("rule = []\n").as_deref(), Some(""));
        assert_eq!(to_tables("# file\n\nrule = [] # nobody").as_deref(), Some("# file\n\n# nobody"));
        assert_eq!(to_tables("rule = [\n# nobody\n]\n").as_deref(), Some("# nobody\n\n"));
        assert_eq!(to_tables("# file\n").as_deref(), Some("# file\n"));
    }

    #[test]
    fn text_that_is_no_list_of_rules_is_rejected() {
        for text in ["rule = 1", "rule = [1]", "rule = [{ a = { b = 1 } }]", "rule ="] {
            assert_eq!(to_tables(text), None, "{text}");
        }
    }
}
