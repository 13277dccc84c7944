//! `portcullis sources remove`.

use std::str::FromStr;

use hyper::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::Failure;
use crate::cli::client::AdminClient;
use crate::cli::client::http::{Call, encoded};
use crate::cli::client::json_view::JsonView;
use crate::cli::client::members::confirm;
use crate::cli::client::sources::change::{Change, named, report};
use crate::cli::client::sources::rule::{GivenRule, GivenRuleError};
use crate::cli::client::sources::{Options, Place, is_changeable, plan};

/// A rule of a listener, by its UUID or its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RuleSelector {
    Uuid(Uuid),
    Source(GivenRule),
}

impl FromStr for RuleSelector {
    type Err = GivenRuleError;

    fn from_str(text: &str) -> Result<Self, GivenRuleError> {
        // No rule has a form of a UUID.
        Uuid::try_parse(text).map_or_else(|_| text.parse().map(Self::Source), |uuid| Ok(Self::Uuid(uuid)))
    }
}

impl std::fmt::Display for RuleSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::Source(rule) => rule.fmt(f),
        }
    }
}

impl RuleSelector {
    pub(crate) fn selects(&self, rule: JsonView<'_>) -> bool {
        let raw = |key: &str| rule.0.get(key).and_then(Value::as_str).unwrap_or_default();
        match self {
            Self::Uuid(uuid) => Uuid::try_parse(raw("uuid")).is_ok_and(|found| found == *uuid),
            Self::Source(source) => source.is_same_source(raw("type"), raw("value")),
        }
    }
}

/// Removes all the rules or none.
pub(crate) fn remove(
    client: &AdminClient,
    place: &Place,
    removals: &[RuleSelector],
    options: Options,
) -> Result<(), Failure> {
    let selection = Selection { place, rules: removals, done: "removed" };
    change_selected(client, &selection, options, |split, _, etag| split.removal(place, etag))
}

/// Rules of a listener that a command changes.
#[derive(Debug)]
pub(crate) struct Selection<'a> {
    pub(crate) place: &'a Place,
    pub(crate) rules: &'a [RuleSelector],
    /// What happens to them, such as "removed".
    pub(crate) done: &'static str,
}

/// Sends the change of selected rules that `change` makes of them, of the whole list, and of its entity tag.
///
/// A concurrent change of another rule makes the list outdated, and the program answers 412. Each attempt starts with the new
/// list, so it changes the same rules and keeps those that the other change has added.
pub(crate) fn change_selected(
    client: &AdminClient,
    selection: &Selection<'_>,
    options: Options,
    change: impl Fn(&Split<'_>, &Value, Option<String>) -> Change,
) -> Result<(), Failure> {
    let Selection { place, rules, done } = *selection;
    for _ in 0..MAX_ATTEMPTS {
        let reply = client.call(Call::get(&place.target()))?;
        let etag = reply.etag.clone();
        let list = reply.into_listener_body()?;
        let split =
            Split::of(&list, rules, done).map_err(|why| Failure::Failed(format!("{}: {why}", place.listener)))?;
        let reply = change(&split, &list, etag).reply(client, options)?;
        if reply.status == PRECONDITION_FAILED {
            continue;
        }
        let body = reply.into_body()?;
        if options.plan.plan {
            return plan::show(&body, &place.listener, place.json);
        }
        let lines = split.selected.iter().map(|rule| format!("{}: {done} {}\n", place.listener, named(*rule)));
        report(client, place, &lines.collect::<String>())?;
        return confirm(&body, &place.listener);
    }
    Err(Failure::Failed(format!(
        "{}: nothing was {done}: other clients changed the rules during each of {MAX_ATTEMPTS} attempts; try again",
        place.listener
    )))
}

/// The rules of a `sources_file` that are selected, and the others.
#[derive(Debug)]
pub(crate) struct Split<'a> {
    selected: Vec<JsonView<'a>>,
    others: Vec<JsonView<'a>>,
}

impl<'a> Split<'a> {
    /// `done` is what would happen to them, such as "removed".
    ///
    /// # Errors
    /// If one of the selectors selects no rule of the file.
    fn of(list: &'a Value, selectors: &[RuleSelector], done: &str) -> Result<Self, String> {
        let (in_file, elsewhere): (Vec<_>, Vec<_>) =
            JsonView(list).list("rules").partition(|rule| is_changeable(*rule));
        for selector in selectors {
            if in_file.iter().any(|rule| selector.selects(*rule)) {
                continue;
            }
            return Err(match elsewhere.iter().find(|rule| selector.selects(**rule)) {
                Some(rule) if rule.text("origin").as_deref() == Some("config") => {
                    format!("nothing was {done}: {selector} is in the configuration file; edit it there and reload")
                }
                Some(_) => {
                    format!("nothing was {done}: {selector} cannot be changed by commands; edit it where it is set")
                }
                None => format!("nothing was {done}: there is no rule {selector}; see portcullis sources list"),
            });
        }
        let (selected, others) =
            in_file.into_iter().partition(|rule| selectors.iter().any(|selector| selector.selects(*rule)));
        Ok(Self { selected, others })
    }

    /// A single rule is removed by itself, whatever happens to others. Several are removed by one atomic replacement.
    fn removal(&self, place: &Place, etag: Option<String>) -> Change {
        let field = |rule: &JsonView<'_>, key: &str| rule.0.get(key).cloned().unwrap_or_default();
        match self.selected.as_slice() {
            [one] => {
                let uuid = one.0.get("uuid").and_then(Value::as_str).unwrap_or_default();
                let target = format!("{}/{}", place.target(), encoded(uuid));
                Change { method: Method::DELETE, target, body: None, if_match: None }
            }
            _ => {
                // Description and expiry stay as they are if they are not sent.
                let rule = |rule: &JsonView<'_>| json!({ "uuid": field(rule, "uuid"), "type": field(rule, "type"), "value": field(rule, "value") });
                let body = json!({ "rules": self.others.iter().map(rule).collect::<Vec<_>>() });
                Change { method: Method::PUT, target: place.target(), body: Some(body), if_match: etag }
            }
        }
    }
}

const PRECONDITION_FAILED: u16 = 412;

/// Each failed attempt means that another client has made progress.
const MAX_ATTEMPTS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    const UUIDS: [&str; 3] = [
        "3f2a9c41-0000-4000-8000-000000000001",
        "3f2a9c41-0000-4000-8000-000000000002",
        "3f2a9c41-0000-4000-8000-000000000003",
    ];

    fn list() -> Value {
        let rule = |uuid: &str, value: &str, origin: &str| json!({ "uuid": uuid, "type": "ip_addr", "value": value, "origin": origin });
        json!({ "rules": [
            rule(UUIDS[0], "10.0.0.1/32", "file"), rule(UUIDS[1], "10.0.0.2", "file"), rule(UUIDS[2], "10.0.0.3", "config"),
        ] })
    }

    fn removed(arguments: &[&str]) -> Result<Vec<String>, String> {
        let removals: Vec<RuleSelector> = arguments.iter().map(|text| text.parse().unwrap()).collect();
        let list = list();
        let split = Split::of(&list, &removals, "removed")?;
        assert_eq!(split.selected.len() + split.others.len(), 2);
        Ok(split.selected.iter().map(|rule| rule.text_or_dash("value")).collect())
    }

    #[test]
    fn rules_are_found_by_uuid_and_by_any_spelling() {
        assert_eq!(removed(&[UUIDS[1]]).unwrap(), ["10.0.0.2"]);
        assert_eq!(removed(&[&UUIDS[1].to_uppercase()]).unwrap(), ["10.0.0.2"]);
        assert_eq!(removed(&["10.0.0.1", "ip_addr:10.0.0.2/32"]).unwrap(), ["10.0.0.1/32", "10.0.0.2"]);
        assert_eq!(removed(&["::ffff:10.0.0.1"]).unwrap(), ["10.0.0.1/32"]);
    }

    #[test]
    fn nothing_is_removed_if_one_rule_cannot_be() {
        for (argument, word) in [("10.0.0.3", "configuration"), ("10.0.0.9", "no rule"), (UUIDS[2], "configuration")] {
            let error = removed(&["10.0.0.1", argument]).unwrap_err();
            assert!(error.contains(word) && error.contains(argument), "{error}");
        }
    }

    #[test]
    fn uuid_differs_from_a_rule() {
        assert!(matches!(UUIDS[0].parse(), Ok(RuleSelector::Uuid(_))));
        for text in ["10.0.0.1", "dns:3f2a9c41-0000-4000-8000-000000000001", "2001:db8::1"] {
            assert!(matches!(text.parse(), Ok(RuleSelector::Source(_))), "{text}");
        }
        assert!("3f2a9c41-0000-4000-8000".parse::<RuleSelector>().is_err());
    }
}
