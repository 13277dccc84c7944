//! The text of a `sources_file`, split at its `[[rule]]` tables without parsing them.

use std::ops::Range;

/// A piece of the text. All pieces together are the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// Blank lines, and comments that belong to no rule because a blank line follows.
    Free(&'a str),
    /// A `[[rule]]` table with the comments directly above its header and directly below its last key.
    Rule(&'a str),
}

/// Splits a text into its parts. A text without `[[rule]]` tables is one free part.
pub(crate) fn parts(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut end = 0;
    for rule in rules(text) {
        push(&mut parts, text, end..rule.start, Part::Free);
        end = rule.end;
        push(&mut parts, text, rule, Part::Rule);
    }
    push(&mut parts, text, end..text.len(), Part::Free);
    parts
}

fn push<'a>(parts: &mut Vec<Part<'a>>, text: &'a str, range: Range<usize>, part: fn(&'a str) -> Part<'a>) {
    parts.extend(text.get(range).filter(|text| !text.is_empty()).map(part));
}

/// The texts of the `[[rule]]` tables.
fn rules(text: &str) -> Vec<Range<usize>> {
    let mut rules: Vec<Range<usize>> = Vec::new();
    // Where the comments that precede the current line start, if no blank line separates them from it.
    let mut comments: Option<usize> = None;
    // Whether the line before those comments belongs to a rule.
    let mut follows_content = false;
    let mut inside = multiline_values(text).into_iter().peekable();
    let mut start = 0_usize;
    for line in text.split_inclusive('\n') {
        let end = start.saturating_add(line.len());
        while inside.next_if(|value| value.end <= start).is_some() {}
        let continues = inside.peek().is_some_and(|value| value.start < start);
        match if continues { Line::Content } else { Line::of(line) } {
            Line::Header => {
                rules.push(comments.take().unwrap_or(start)..end);
                follows_content = true;
            }
            Line::Content => {
                if let Some(rule) = rules.last_mut() {
                    rule.end = end;
                }
                (comments, follows_content) = (None, true);
            }
            Line::Comment => {
                comments.get_or_insert(start);
            }
            Line::Blank => {
                end_with_comments(&mut rules, comments.take().is_some() && follows_content, start);
                follows_content = false;
            }
        }
        start = end;
    }
    end_with_comments(&mut rules, comments.is_some() && follows_content, text.len());
    rules
}

fn end_with_comments(rules: &mut [Range<usize>], belong_to_rule: bool, end: usize) {
    if let Some(rule) = rules.last_mut().filter(|_| belong_to_rule) {
        rule.end = end;
    }
}

/// What a line is when it does not start inside a value.
enum Line {
    Blank,
    Comment,
    /// `[[rule]]`
    Header,
    Content,
}

impl Line {
    fn of(line: &str) -> Self {
        let line = line.trim_start_matches(BYTE_ORDER_MARK).trim();
        match line.chars().next() {
            None => Self::Blank,
            Some('#') => Self::Comment,
            Some('[') if is_rule_header(line) => Self::Header,
            Some(_) => Self::Content,
        }
    }
}

/// `[[rule]]`, with any spaces, quotes and comment that TOML allows.
fn is_rule_header(line: &str) -> bool {
    let inner = line.strip_prefix("[[").and_then(|rest| rest.split_once("]]")).map(|(name, _)| name.trim());
    matches!(inner, Some("rule" | "\"rule\"" | "'rule'"))
}

/// The values that span several lines, in order. They are rare, so texts without triple quotes are not parsed. A value of any
/// other kind that spans lines is not valid in a rule.
fn multiline_values(text: &str) -> Vec<Range<usize>> {
    if !has_multiline_strings(text) {
        return Vec::new();
    }
    let (root, _) = toml::de::DeTable::parse_recoverable(text);
    let tables = root.get_ref().get("rule").and_then(|rule| rule.get_ref().as_array());
    let values = tables.into_iter().flatten().filter_map(|table| table.get_ref().as_table()).flatten();
    let mut spans: Vec<_> = values.map(|(_, value)| value.span()).collect();
    spans.retain(|span| text.get(span.clone()).is_some_and(|value| value.contains('\n')));
    spans.sort_unstable_by_key(|span| span.start);
    spans
}

/// Whether the text may contain a string that spans lines.
pub(crate) fn has_multiline_strings(text: &str) -> bool {
    text.contains("\"\"\"") || text.contains("'''")
}

const BYTE_ORDER_MARK: char = '\u{feff}';

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules_of(text: &str) -> Vec<&str> {
        let rule = |part| match part {
            Part::Rule(text) => Some(text),
            Part::Free(_) => None,
        };
        parts(text).into_iter().filter_map(rule).collect()
    }

    #[test]
    fn comments_belong_to_the_rule_that_they_touch() {
        let text = "# file\n\n# a\n[[rule]]\nx = 1\n\ny = 2 # y\n# below a\n\n# section\n\n[[rule]]\nx = 1\n# c\n [[ rule ]] # d\n";
        assert_eq!(
            rules_of(text),
            ["# a\n[[rule]]\nx = 1\n\ny = 2 # y\n# below a\n", "[[rule]]\nx = 1\n", "# c\n [[ rule ]] # d\n"]
        );
    }

    #[test]
    fn last_rule_may_end_without_a_line_break_and_lines_with_crlf() {
        assert_eq!(rules_of("[[rule]]\r\nx = 1\r\n\r\n# b\r\n[[rule]]\r\nx = 1\r\n# end").len(), 2);
        assert_eq!(rules_of("\u{feff}[[rule]]\nx = 1\n# end"), ["\u{feff}[[rule]]\nx = 1\n# end"]);
        assert!(rules_of("# [[rule]]\nrule = []\n").is_empty());
        assert!(parts("").is_empty());
    }

    #[test]
    fn line_inside_a_string_is_not_a_header() {
        let text =
            "[[rule]]\nx = '''\n[[rule]]\n\n# no comment\n'''\n\n[[rule]]\nx = \"\"\"\n[[rule]]\n\"\"\"\ny = 1\n";
        assert_eq!(rules_of(text).len(), 2);
    }

    proptest! {
        #[test]
        fn parts_of_any_text_are_the_text(
            lines in proptest::collection::vec("\\PC*|\\[\\[rule\\]\\]|x = 1|#|x = '''|'''", 0..20),
        ) {
            let text = lines.join("\n");
            let joined: String = parts(&text).iter().map(|(Part::Free(text) | Part::Rule(text))| *text).collect();
            prop_assert_eq!(joined, text);
        }
    }
}
