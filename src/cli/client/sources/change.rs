//! `portcullis sources append` and `sources replace`.

use hyper::Method;
use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime};

use crate::cli::client::AdminClient;
use crate::cli::client::http::{Call, encoded};
use crate::cli::client::json_view::JsonView;
use crate::cli::client::members::confirm;
use crate::cli::client::reply::Reply;
use crate::cli::client::sources::rule::GivenRule;
use crate::cli::client::sources::{Options, Place, plan};
use crate::cli::{Failure, hint, print, print_json};
use crate::source::group::RuleOwner;
use crate::timestamp;

/// Rules to add, and what they have in common.
#[derive(Debug)]
pub(crate) struct Addition<'a> {
    pub(crate) rules: &'a [GivenRule],
    pub(crate) description: Option<&'a str>,
    /// A duration such as `2h`.
    pub(crate) ttl: Option<&'a str>,
}

impl Addition<'_> {
    fn in_json(&self) -> Value {
        let rule = |rule: &GivenRule| {
            let mut body = rule.in_json();
            if let Some(fields) = body.as_object_mut() {
                let text = |text: &str| Value::from(text);
                let given = [("description", self.description.map(text)), ("ttl", self.ttl.map(text))];
                fields.extend(
                    given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect::<Map<_, _>>(),
                );
            }
            body
        };
        json!({ "rules": self.rules.iter().map(rule).collect::<Vec<_>>() })
    }
}

pub(crate) fn append(client: &AdminClient, place: &Place, new: &Addition<'_>, options: Options) -> Result<(), Failure> {
    let call = Change { method: Method::POST, target: place.target(), body: Some(new.in_json()), if_match: None };
    let Some(body) = call.send(client, place, options)? else { return Ok(()) };
    if place.json {
        print_json(&body)?;
        return confirm(&body, &place.listener);
    }
    let now = OffsetDateTime::now_utc();
    let rules = JsonView(&body).list("rules");
    print(&rules.clone().map(|rule| added(&place.listener, rule, new.ttl, now)).collect::<String>())?;
    if new.ttl.is_some() && rules.clone().any(|rule| was_there(rule, new.ttl, now)) {
        hint("a rule that was there already keeps its expiry time; remove it first to change that");
    }
    confirm(&body, &place.listener)
}

/// `cache: added ip_addr:203.0.113.7 (3f2a9c41), expires in 2h`. A rule that was there before has its own expiry time.
fn added(listener: &str, rule: JsonView<'_>, ttl: Option<&str>, now: OffsetDateTime) -> String {
    let (what, end) = match (was_there(rule, ttl, now), ttl, rule.time("expires_at")) {
        (false, Some(ttl), _) => ("added", format!(", expires in {ttl}")),
        (false, None, _) => ("added", String::new()),
        (true, _, Some(end)) => ("already has", format!(", expires at {}", timestamp::seconds(end))),
        (true, _, None) => ("already has", String::new()),
    };
    format!("{listener}: {what} {}{end}\n", named(rule))
}

/// Whether the rule existed before. The program does not report that, but a new rule has just been created and has exactly the
/// expiry time that was asked for.
fn was_there(rule: JsonView<'_>, ttl: Option<&str>, now: OffsetDateTime) -> bool {
    let is_configured = rule.text("origin").as_deref() == Some("config");
    let is_old = rule.time("created_at").is_some_and(|at| now - at > CLOCK_DIFFERENCE);
    is_configured || is_old || rule.time("expires_at").is_some() != ttl.is_some()
}

/// `ip_addr:203.0.113.7 (3f2a9c41)`.
pub(crate) fn named(rule: JsonView<'_>) -> String {
    let uuid: String = rule.text_or_dash("uuid").chars().take(SHORT_UUID).collect();
    format!("{}:{} ({uuid})", rule.text_or_dash("type"), rule.text_or_dash("value"))
}

pub(crate) fn replace(
    client: &AdminClient,
    place: &Place,
    rules: &[GivenRule],
    options: Options,
) -> Result<(), Failure> {
    let body = json!({ "rules": rules.iter().map(GivenRule::in_json).collect::<Vec<_>>() });
    let call = Change { method: Method::PUT, target: place.target(), body: Some(body), if_match: None };
    let Some(body) = call.send(client, place, options)? else { return Ok(()) };
    let count = match rules {
        [] => "no rules".to_owned(),
        [rule] => format!("1 rule ({rule})"),
        rules => format!("{} rules", rules.len()),
    };
    report(client, place, &format!("{}: now has {count} besides those of the configuration\n", place.listener))?;
    confirm(&body, &place.listener)
}

/// Prints the result of a change without a reply, and warns if nobody is admitted now.
pub(crate) fn report(client: &AdminClient, place: &Place, text: &str) -> Result<(), Failure> {
    if place.json {
        return Ok(());
    }
    print(text)?;
    let owner = &place.listener;
    let effect = match RuleOwner::of(owner) {
        RuleOwner::Listener(name) if !has_source(client, name)? => "so no one can connect now",
        RuleOwner::Group(name) if !has_rule(client, name)? => "so no one is admitted through it now",
        RuleOwner::Listener(_) | RuleOwner::Group(_) => return Ok(()),
    };
    hint(&format!(
        "warning: {owner} has no trusted source, {effect}; add one with portcullis sources append {owner} TYPE:VALUE"
    ));
    Ok(())
}

/// Whether a listener admits anyone.
fn has_source(client: &AdminClient, name: &str) -> Result<bool, Failure> {
    let listener = client.get(&format!("/v1/listeners/{}", encoded(name)))?;
    let view = JsonView(&listener);
    Ok(view.number("trusted_sources") > 0 || view.text("enforcement").as_deref() != Some("enforce"))
}

fn has_rule(client: &AdminClient, name: &str) -> Result<bool, Failure> {
    let groups = client.get("/v1/source-groups")?;
    let mut groups = JsonView(&groups).list("source_groups");
    Ok(groups.any(|group| group.text("name").as_deref() == Some(name) && group.number("rules") > 0))
}

/// A request that changes the sources of a listener or a group.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) body: Option<Value>,
    pub(crate) if_match: Option<String>,
}

impl Change {
    /// Sends the change and returns the body of the reply. With `--plan`, prints the plan and returns `None`.
    pub(crate) fn send(self, client: &AdminClient, place: &Place, options: Options) -> Result<Option<Value>, Failure> {
        let reply = self.reply(client, options)?;
        let body = reply.into_listener_body()?;
        if options.plan.plan {
            plan::show(&body, &place.listener, place.json)?;
            return Ok(None);
        }
        Ok(Some(body))
    }

    /// Sends the change.
    pub(crate) fn reply(self, client: &AdminClient, options: Options) -> Result<Reply, Failure> {
        let Self { method, target, body, if_match } = self;
        let target = options.query(&target);
        client.call(Call { method, target: &target, body: body.as_ref(), if_match: if_match.as_deref() })
    }
}

/// Digits of a UUID, enough to distinguish the rules of a listener.
const SHORT_UUID: usize = 8;

/// A rule that was created longer ago was there before this command. The clocks of two machines may differ.
const CLOCK_DIFFERENCE: Duration = Duration::minutes(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_has_only_what_was_given() {
        let rules = ["203.0.113.7".parse().unwrap(), "dns:app".parse().unwrap()];
        let addition = Addition { rules: &rules, description: Some("office"), ttl: Some("2h") };
        let expected = json!({ "rules": [
            { "type": "ip_addr", "value": "203.0.113.7", "description": "office", "ttl": "2h" },
            { "type": "dns", "value": "app", "description": "office", "ttl": "2h" },
        ] });
        assert_eq!(addition.in_json(), expected);
        let addition = Addition { rules: &rules[..1], description: None, ttl: None };
        assert_eq!(addition.in_json(), json!({ "rules": [{ "type": "ip_addr", "value": "203.0.113.7" }] }));
    }

    #[test]
    fn added_rule_is_one_line_with_its_expiry() {
        let now = timestamp::parse("2026-11-30T14:00:00.4Z").unwrap();
        let rule = |created_at: &str, expires_at: Value| {
            json!({
                "uuid": "3f2a9c41-0000-4000-8000-000000000001", "type": "ip_addr", "value": "203.0.113.7",
                "origin": "file", "created_at": created_at, "expires_at": expires_at,
            })
        };
        let line = |rule: Value, ttl| added("cache", JsonView(&rule), ttl, now);
        let (new, old) = ("2026-11-30T14:00:00Z", "2026-11-29T14:00:00Z");
        let end = || Value::from("2026-11-30T16:00:00Z");
        assert_eq!(line(rule(new, end()), Some("2h")), "cache: added ip_addr:203.0.113.7 (3f2a9c41), expires in 2h\n");
        assert_eq!(line(rule(new, Value::Null), None), "cache: added ip_addr:203.0.113.7 (3f2a9c41)\n");
        assert_eq!(
            line(rule(old, end()), Some("9h")),
            "cache: already has ip_addr:203.0.113.7 (3f2a9c41), expires at 2026-11-30T16:00:00Z\n"
        );
        for (created_at, ttl) in [(old, None), (new, Some("2h"))] {
            let text = line(rule(created_at, Value::Null), ttl);
            assert_eq!(text, "cache: already has ip_addr:203.0.113.7 (3f2a9c41)\n");
        }
    }
}
