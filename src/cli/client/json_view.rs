//! Tolerant access to the JSON of the running program, which may have another version than this command.

use serde_json::Value;
use time::OffsetDateTime;

use crate::printable;
use crate::timestamp;

/// A JSON object. A key that is missing, `null` or of another type reads as absent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonView<'a>(pub(crate) &'a Value);

impl<'a> JsonView<'a> {
    /// A string, escaped for one line of a terminal: clients choose the names in their certificates.
    pub(crate) fn text(self, key: &str) -> Option<String> {
        self.0.get(key)?.as_str().map(printable::field)
    }

    /// The same as [`text`](Self::text), or a dash.
    pub(crate) fn text_or_dash(self, key: &str) -> String {
        self.text(key).unwrap_or_else(|| DASH.to_owned())
    }

    /// The lines of a string, escaped.
    pub(crate) fn lines(self, key: &str) -> Vec<String> {
        let text = self.0.get(key).and_then(Value::as_str).unwrap_or("");
        text.lines().map(escaped).collect()
    }

    /// A number, or 0 if absent.
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

    pub(crate) fn list(self, key: &str) -> impl Iterator<Item = Self> + Clone + use<'a> {
        self.0.get(key).and_then(Value::as_array).into_iter().flatten().map(Self)
    }

    /// The strings in a list, escaped.
    pub(crate) fn texts(self, key: &str) -> Vec<String> {
        self.list(key).filter_map(|element| element.0.as_str()).map(escaped).collect()
    }
}

/// Shown for an absent value.
pub(crate) const DASH: &str = "-";

fn escaped(text: &str) -> String {
    printable::cut(text, usize::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_value_reads_as_nothing() {
        for value in [json!({}), json!({ "x": null }), json!({ "x": {} }), json!([]), Value::Null] {
            let view = JsonView(&value);
            assert_eq!((view.text("x"), view.number("x"), view.time("x")), (None, 0, None), "{value}");
            assert_eq!((view.list("x").count(), view.lines("x").len()), (0, 0), "{value}");
            assert_eq!(view.text_or_dash("x"), "-");
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        let value = json!({ "x": "a\u{1b}[2Jb\u{202e}\nc" });
        assert_eq!(JsonView(&value).text("x").unwrap(), "a\\u{1b}[2Jb\\u{202e}\\nc");
        assert_eq!(JsonView(&value).lines("x"), ["a\\u{1b}[2Jb\\u{202e}", "c"]);
    }
}
