//! The text of one `[[rule]]` table: written anew, or changed with its comments kept.

use std::borrow::Cow;
use std::fmt::Write as _;

use time::OffsetDateTime;
use toml_edit::{DocumentMut, Item, Table, Value};
use uuid::Uuid;

use crate::config::edit::sources::Field;
use crate::config::edit::sources::text::LineBreak;
use crate::source::rule::Rule;
use crate::timestamp;

/// A rule to be written.
#[derive(Clone, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) kind: &'a str,
    pub(crate) value: &'a str,
    pub(crate) description: Option<&'a str>,
    pub(crate) expires_at: Option<OffsetDateTime>,
    /// The UUID, and when the rule was added.
    pub(crate) identity: Option<(Uuid, OffsetDateTime)>,
}

impl Entry<'_> {
    /// The table, with LF line breaks.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("[[rule]]\ntype = {}\nvalue = {}\n", string(self.kind), string(self.value));
        let mut line = |key: &str, value: Value| {
            let _ = writeln!(text, "{key} = {value}");
        };
        self.description.into_iter().for_each(|description| line("description", string(description)));
        self.expires_at.into_iter().for_each(|end| line("expires_at", instant(end)));
        if let Some((uuid, created_at)) = self.identity {
            line("uuid", string(&uuid.to_string()));
            line("created_at", instant(created_at));
        }
        text
    }
}

/// Changes to a rule of the file.
#[derive(Clone, Debug)]
pub(crate) struct Update<'a> {
    /// A new spelling of the value.
    pub(crate) value: Option<&'a str>,
    pub(crate) description: Field<&'a str>,
    pub(crate) expires_at: Field<OffsetDateTime>,
    /// The UUID to state, if the rule states none.
    pub(crate) uuid: Option<Uuid>,
}

impl Update<'_> {
    pub(crate) const NOTHING: Self =
        Self { value: None, description: Field::Keep, expires_at: Field::Keep, uuid: None };

    pub(crate) fn changes_nothing(&self) -> bool {
        matches!(self, Self { value: None, description: Field::Keep, expires_at: Field::Keep, uuid: None })
    }

    /// Whether `new` is `old` with these changes, apart from its UUID.
    pub(crate) fn leads_to(&self, old: &Rule, new: &Rule) -> bool {
        let value = self.value.map_or_else(|| old.written_value(), Cow::from);
        (new.source.kind(), new.written_value(), &new.origin) == (old.source.kind(), value, &old.origin)
            && new.description.as_deref() == self.description.after(old.description.as_deref())
            && new.expires_at == self.expires_at.after(old.expires_at)
    }

    /// Returns the text of the table with the changes; `None` if the text is not one `[[rule]]` table.
    pub(crate) fn apply(&self, text: &str) -> Option<String> {
        let mut document: DocumentMut = text.parse().ok()?;
        let table = document.get_mut("rule")?.as_array_of_tables_mut()?.get_mut(0)?;
        if let Some(value) = self.value {
            set(table, "value", string(value));
        }
        match self.description {
            Field::Keep => {}
            Field::Clear => drop(table.remove("description")),
            Field::Set(description) => set(table, "description", string(description)),
        }
        match self.expires_at {
            Field::Keep => {}
            Field::Clear => drop(table.remove("expires_at")),
            Field::Set(end) => set(table, "expires_at", instant(end)),
        }
        if let Some(uuid) = self.uuid.filter(|_| !table.contains_key("uuid")) {
            set(table, "uuid", string(&uuid.to_string()));
        }
        Some(LineBreak::of(text).apply(document.to_string()))
    }
}

/// Sets a value and keeps the comment behind it.
fn set(table: &mut Table, key: &str, value: Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = value;
            *old.decor_mut() = decor;
        }
        None => drop(table.insert(key, Item::Value(value))),
    }
}

fn string(text: &str) -> Value {
    text.into()
}

/// In whole seconds.
fn instant(at: OffsetDateTime) -> Value {
    let text = timestamp::seconds(at);
    // A timestamp in UTC is a TOML datetime. If it were not, the quoted form is valid too.
    text.parse::<toml_edit::Datetime>().map_or_else(|_| text.into(), Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "# office\n[[rule]] # head\ntype='ip_addr'\nvalue = \"10.0.0.1\" # main\ndescription = 'x'\n# end\n";

    #[test]
    fn changed_table_keeps_its_comments_and_other_lines() {
        let uuid = Uuid::from_u128(7);
        let update = Update {
            value: Some("10.0.0.1/32"),
            description: Field::Set("a \"b\""),
            expires_at: Field::Set(OffsetDateTime::UNIX_EPOCH),
            uuid: Some(uuid),
        };
        let expected = format!(
            "# office\n[[rule]] # head\ntype='ip_addr'\nvalue = \"10.0.0.1/32\" # main\ndescription = 'a \"b\"'\n\
             expires_at = 1970-01-01T00:00:00Z\nuuid = \"{uuid}\"\n# end\n"
        );
        assert_eq!(update.apply(TEXT).as_deref(), Some(expected.as_str()));
        let crlf = |text: &str| text.replace('\n', "\r\n");
        assert_eq!(update.apply(&crlf(TEXT)), Some(crlf(&expected)));
        let clear = Update { description: Field::Clear, ..Update::NOTHING };
        assert_eq!(clear.apply(TEXT), Some(TEXT.replace("description = 'x'\n", "")));
        let other = Update { uuid: Some(Uuid::from_u128(8)), ..Update::NOTHING };
        assert_eq!(other.apply(&expected), Some(expected), "a stated UUID stays");
    }

    #[test]
    fn text_that_is_no_table_is_rejected() {
        for text in ["", "rule = []", "[[rule]", "x = 1\n"] {
            assert_eq!(Update::NOTHING.apply(text), None, "{text}");
        }
    }
}
