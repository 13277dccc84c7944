//! What the running program answered, read with tolerance: it may be older or newer than this command.

use serde_json::Value;
use time::OffsetDateTime;

use crate::timestamp;

use crate::printable;

/// An object of an answer. What is missing, `null` or of another type is not there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading<'a>(pub(crate) &'a Value);

impl<'a> Reading<'a> {
    /// A text that is safe to print on one line: names come from certificates, and those from anybody.
    pub(crate) fn text(self, key: &str) -> Option<String> {
        self.0.get(key)?.as_str().map(printable::field)
    }

    /// The same, or a dash.
    pub(crate) fn text_or_dash(self, key: &str) -> String {
        self.text(key).unwrap_or_else(|| DASH.to_owned())
    }

    /// A text of several lines.
    pub(crate) fn lines(self, key: &str) -> Vec<String> {
        let text = self.0.get(key).and_then(Value::as_str).unwrap_or("");
        text.lines().map(escaped).collect()
    }

    /// A number; 0 where there is none.
    pub(crate) fn number(self, key: &str) -> u64 {
        self.0.get(key).and_then(Value::as_u64).unwrap_or(0)
    }

    pub(crate) fn flag(self, key: &str) -> Option<bool> {
        self.0.get(key)?.as_bool()
    }

    pub(crate) fn time(self, key: &str) -> Option<OffsetDateTime> {
        timestamp::parse(self.0.get(key)?.as_str()?)
    }

    pub(crate) fn object(self, key: &str) -> Option<Self> {
        self.0.get(key).filter(|value| value.is_object()).map(Self)
    }

    /// The elements of a list.
    pub(crate) fn list(self, key: &str) -> impl Iterator<Item = Self> + Clone + use<'a> {
        self.0.get(key).and_then(Value::as_array).into_iter().flatten().map(Self)
    }

    /// The texts in a list.
    pub(crate) fn texts(self, key: &str) -> Vec<String> {
        self.list(key).filter_map(|element| element.0.as_str()).map(escaped).collect()
    }
}

/// What stands where nothing is known.
pub(crate) const DASH: &str = "-";

fn escaped(text: &str) -> String {
    printable::cut(text, usize::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_there_is_nothing() {
        for value in [json!({}), json!({ "x": null }), json!({ "x": {} }), json!([]), Value::Null] {
            let reading = Reading(&value);
            assert_eq!((reading.text("x"), reading.number("x"), reading.time("x")), (None, 0, None), "{value}");
            assert_eq!((reading.list("x").count(), reading.lines("x").len()), (0, 0), "{value}");
            assert_eq!(reading.text_or_dash("x"), "-");
        }
    }

    #[test]
    fn nothing_that_is_read_can_move_the_cursor() {
        let value = json!({ "x": "a\u{1b}[2Jb\u{202e}\nc" });
        assert_eq!(Reading(&value).text("x").unwrap(), "a\\u{1b}[2Jb\\u{202e}\\nc");
        assert_eq!(Reading(&value).lines("x"), ["a\\u{1b}[2Jb\\u{202e}", "c"]);
    }
}
