//! Writes one line of the log or the audit file, of at most [`MAX_LINE`] bytes.

use std::fmt::{self, Write as _};

use serde_json::Value;

use crate::printable;

/// Maximum size of a line in bytes, with its line feed. Text that a client or an upstream chooses is cut long before. This limit
/// is for long lists, such as fingerprints or the errors of a configuration.
pub(crate) const MAX_LINE: usize = 64 << 10;

/// Bytes reserved for the fields after a long one: names, numbers and marks.
const RESERVE: usize = 2 << 10;

/// A line under construction. Its texts are already escaped.
#[derive(Debug)]
pub(crate) struct Line(String);

impl Line {
    pub(crate) fn new() -> Self {
        Self(String::with_capacity(320))
    }

    /// Adds a field in JSON after others.
    pub(crate) fn json_field(&mut self, key: &str, value: &Value) {
        let _ = write!(self.0, ",\"{key}\":");
        self.value(value);
    }

    /// Adds a field of the text format. A text that is not a plain word is quoted.
    pub(crate) fn text_field(&mut self, key: &str, value: &Value) {
        let _ = write!(self.0, " {key}=");
        match value {
            Value::String(text) if is_word(text) && text.len() <= self.space() => self.0.push_str(text),
            _ => self.value(value),
        }
    }

    /// Adds a message of the text format, without quotes.
    pub(crate) fn message(&mut self, text: &str) {
        let text = printable::cut(text, self.space());
        self.0.push_str(&text);
    }

    /// Ends the line.
    pub(crate) fn end(mut self) -> String {
        self.0.push('\n');
        self.0
    }

    fn value(&mut self, value: &Value) {
        let space = self.space();
        // `Value` writes itself as JSON.
        let _ = match value {
            Value::String(text) if printable::size_in_json(text) > space => {
                write!(self.0, "{}", Value::from(printable::cut_lines(text, space)))
            }
            Value::Array(items) if value.to_string().len() > space => write!(self.0, "{}", beginning(items, space)),
            _ => write!(self.0, "{value}"),
        };
    }

    /// Bytes that the next value may take.
    fn space(&self) -> usize {
        MAX_LINE.saturating_sub(self.0.len() + RESERVE)
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(text)
    }
}

/// The first items that fit, and the mark.
fn beginning(items: &[Value], space: usize) -> Value {
    let mut size = printable::MARK.len() + "[\"\"]".len();
    let fits = |item: &&Value| {
        size += item.to_string().len() + ",".len();
        size <= space
    };
    items.iter().take_while(fits).cloned().chain([Value::from(printable::MARK)]).collect()
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_with_long_fields_is_cut_and_stays_json() {
        for long in
            [Value::from("x".repeat(200_000)), Value::from("\\\"\n".repeat(80_000)), vec!["y".repeat(900); 200].into()]
        {
            let mut line = Line::new();
            let _ = write!(line, "{{\"event\":\"x\"");
            // More fields than any event has.
            for key in ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"] {
                line.json_field(key, &long);
                line.json_field("number", &u64::MAX.into());
            }
            let _ = write!(line, "}}");
            let line = line.end();
            assert!(line.len() <= MAX_LINE, "{}", line.len());
            assert!(line.len() > MAX_LINE - 2 * RESERVE, "{}", line.len());
            let value: Value = serde_json::from_str(&line).unwrap();
            assert!(["one", "ten"].iter().all(|key| value[key].to_string().contains(printable::MARK)));
            assert_eq!(value["number"], u64::MAX);
        }
    }

    #[test]
    fn long_message_is_cut() {
        let mut line = Line::new();
        line.message(&"word ".repeat(40_000));
        line.text_field("key", &Value::from("x".repeat(200_000)));
        let line = line.end();
        assert!(line.len() <= MAX_LINE && line.contains(printable::MARK), "{}", line.len());
    }
}
