//! `portcullis sources edit`.

use hyper::Method;
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::cli::client::AdminClient;
use crate::cli::client::json_view::JsonView;
use crate::cli::client::sources::change::Change;
use crate::cli::client::sources::remove::{RuleSelector, Selection, change_selected};
use crate::cli::client::sources::{Options, Place, is_changeable};

/// New values of a rule. What is `None` stays as it is.
#[derive(Debug)]
pub(crate) struct Edit<'a> {
    /// Empty to clear it.
    pub(crate) description: Option<&'a str>,
    pub(crate) expiry: Option<Expiry<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Expiry<'a> {
    /// A duration from now, such as `2h`.
    Ttl(&'a str),
    /// RFC 3339.
    At(&'a str),
    Never,
}

/// Changes description and expiry of one rule in place. Its sessions stay open.
pub(crate) fn edit(
    client: &AdminClient,
    place: &Place,
    selector: &RuleSelector,
    edit: &Edit<'_>,
    options: Options,
) -> Result<(), Failure> {
    let selection = Selection { place, rules: std::slice::from_ref(selector), done: "changed" };
    change_selected(client, &selection, options, |_, list, if_match| {
        let rules = JsonView(list).list("rules").filter(|rule| is_changeable(*rule));
        let rules: Vec<Value> = rules.map(|rule| edit.in_json(rule, selector.selects(rule))).collect();
        Change { method: Method::PUT, target: place.target(), body: Some(json!({ "rules": rules })), if_match }
    })
}

impl Edit<'_> {
    /// The rule in a request. Description and expiry stay as they are if they are not sent.
    fn in_json(&self, rule: JsonView<'_>, is_selected: bool) -> Value {
        let mut body = json!({});
        if let Some(fields) = body.as_object_mut() {
            for key in ["uuid", "type", "value"] {
                fields.insert(key.to_owned(), rule.0.get(key).cloned().unwrap_or_default());
            }
            if is_selected {
                let description = self.description.map(|text| ("description", Value::from(text)));
                let expiry = self.expiry.map(|expiry| match expiry {
                    Expiry::Ttl(ttl) => ("ttl", Value::from(ttl)),
                    Expiry::At(at) => ("expires_at", Value::from(at)),
                    Expiry::Never => ("expires_at", Value::Null),
                });
                fields.extend(description.into_iter().chain(expiry).map(|(key, value)| (key.to_owned(), value)));
            }
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_given_values_of_the_selected_rule_are_sent() {
        let rule = json!({ "uuid": "u", "type": "ip_addr", "value": "10.0.0.1", "description": "old", "sessions": 3 });
        let sent = |edit: &Edit<'_>, is_selected| edit.in_json(JsonView(&rule), is_selected);
        let base = || json!({ "uuid": "u", "type": "ip_addr", "value": "10.0.0.1" });
        let edit = Edit { description: Some(""), expiry: Some(Expiry::Never) };
        assert_eq!(sent(&edit, false), base());
        let mut expected = base();
        expected["description"] = json!("");
        expected["expires_at"] = Value::Null;
        assert_eq!(sent(&edit, true), expected);
        let edit = Edit { description: None, expiry: Some(Expiry::Ttl("2h")) };
        let mut expected = base();
        expected["ttl"] = json!("2h");
        assert_eq!(sent(&edit, true), expected);
    }
}
