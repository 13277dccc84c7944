//! Parses changes of trusted sources, for `/v1` and for DigitalOcean's API.

use serde::Deserialize;
use serde::de::IgnoredAny;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::config::edit::sources::{Field, NewRule, SourcesChange};
use crate::config::values::parse_positive_duration;
use crate::control::AdminRequest;
use crate::control::parameters::invalid;
use crate::control::request::{ChangeSources, json};
use crate::control::response::AdminResponse;
use crate::control::route::{Call, Operation};
use crate::timestamp;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(deserialize_with = "json::list::<_, _, MAX_RULES>")]
    rules: Vec<RuleBody>,
}

/// A rule as clients send it: with the fields that only the server sets, if the client has read the rule before.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleBody {
    #[serde(rename = "type", deserialize_with = "json::text")]
    kind: String,
    #[serde(deserialize_with = "json::text")]
    value: String,
    #[serde(default)]
    uuid: Option<String>,
    #[serde(default, deserialize_with = "json::present")]
    description: Option<Option<String>>,
    #[serde(default, deserialize_with = "json::present")]
    expires_at: Option<Option<String>>,
    #[serde(default)]
    ttl: Option<String>,
    #[serde(default, rename = "cluster_uuid")]
    _cluster_uuid: IgnoredAny,
    #[serde(default, rename = "created_at")]
    _created_at: IgnoredAny,
    #[serde(default)]
    origin: Option<String>,
    #[serde(default, rename = "sessions")]
    _sessions: IgnoredAny,
    #[serde(default, rename = "last_used")]
    _last_used: IgnoredAny,
    #[serde(default, rename = "state")]
    _state: IgnoredAny,
    #[serde(default, rename = "detail")]
    _detail: IgnoredAny,
    #[serde(default, rename = "addresses")]
    _addresses: IgnoredAny,
    #[serde(default, rename = "addresses_count")]
    _addresses_count: IgnoredAny,
    #[serde(default, rename = "objects")]
    _objects: IgnoredAny,
}

impl RuleBody {
    fn into_rule(self, index: usize, now: OffsetDateTime) -> Result<NewRule, AdminResponse> {
        let problem = |key: &str, why: String| invalid(format_args!("rules[{index}].{key}: {why}"));
        let expires_at = match (self.expires_at, self.ttl) {
            (Some(_), Some(_)) => return Err(problem("ttl", "expires_at is set as well; send one of them".to_owned())),
            (None, Some(ttl)) => {
                let ttl = parse_positive_duration(&ttl).map_err(|error| problem("ttl", format!("expected {error}")))?;
                Field::Set(timestamp::after(now, ttl))
            }
            (None, None) => Field::Keep,
            (Some(None), None) => Field::Clear,
            (Some(Some(text)), None) => {
                Field::Set(timestamp::parse(&text).ok_or_else(|| problem("expires_at", EXPIRES_AT.to_owned()))?)
            }
        };
        let description = match self.description {
            None => Field::Keep,
            Some(None) => Field::Clear,
            Some(Some(text)) if text.is_empty() => Field::Clear,
            Some(Some(text)) => Field::Set(text),
        };
        // A client may send the ID of a rule that another server or an earlier rule had.
        let uuid = self.uuid.and_then(|text| Uuid::parse_str(&text).ok());
        Ok(NewRule { kind: self.kind, value: self.value, uuid, description, expires_at })
    }
}

/// `POST …/sources`
///
/// # Errors
/// A response with status 400 or 422.
pub(crate) fn append(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let rules = rules(call.body)?;
    if rules.is_empty() {
        return Err(invalid("rules is empty; send at least one rule"));
    }
    change(call, SourcesChange::Append(rules))
}

/// `PUT …/sources`, and `PUT /v2/databases/{id}/firewall`
///
/// # Errors
/// A response with status 400 or 422.
pub(crate) fn replace(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    change(call, SourcesChange::Replace(rules(call.body)?))
}

/// `DELETE …/sources/{uuid}`
///
/// # Errors
/// A 422 response if the segment is not a UUID.
pub(crate) fn remove(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let text = call.segment(1);
    let uuid = Uuid::parse_str(&text)
        .map_err(|_| invalid(format_args!("{text:?} is not the UUID of a rule; take one from the list of sources")))?;
    change(call, SourcesChange::Remove(vec![uuid]))
}

fn rules(body: &[u8]) -> Result<Vec<NewRule>, AdminResponse> {
    let Body { rules } = json::object(body)?;
    let now = OffsetDateTime::now_utc();
    rules
        .into_iter()
        .enumerate()
        // A rule of the configuration stays as it is.
        .filter(|(_, rule)| rule.origin.as_deref() != Some("config"))
        .map(|(index, rule)| rule.into_rule(index, now))
        .collect()
}

fn change(call: &Call<'_>, change: SourcesChange) -> Result<Operation, AdminResponse> {
    let if_match = call.if_match()?;
    Ok(Operation::Request(AdminRequest::ChangeSources(ChangeSources {
        listener: call.segment(0),
        change,
        if_match,
        plan: call.query.flag("plan", false)?,
        wait: call.query.wait()?,
    })))
}

/// Rules of one request. Putting more in force would delay other callers and the next revocation for seconds.
const MAX_RULES: usize = 200_000;

const EXPIRES_AT: &str = "must be a date and time with its offset such as \"2027-01-31T00:00:00Z\", or null";

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> String {
        let error = rules(body.as_bytes()).unwrap_err();
        match error.content {
            crate::control::response::Content::Error { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn absent_and_null_fields_differ() {
        let body = r#"{"rules": [
            {"type": "ip_addr", "value": "10.0.0.1"},
            {"type": "ip_addr", "value": "10.0.0.2", "description": null, "expires_at": null, "uuid": ""},
            {"type": "ip_addr", "value": "10.0.0.3", "description": "", "cluster_uuid": "cache", "created_at": "0001-01-01T00:00:00Z"},
            {"type": "ip_addr", "value": "10.0.0.4", "description": "office", "expires_at": "2036-01-01T00:00:00Z"},
            {"type": "ip_addr", "value": "10.0.0.5", "origin": "config", "sessions": 3, "last_used": null, "state": "resolved"},
            {"type": "dns", "value": "app", "origin": "config", "detail": null, "addresses": ["10.0.0.6"]}
        ]}"#;
        let rules = rules(body.as_bytes()).unwrap();
        let fields: Vec<_> = rules.iter().map(|rule| (rule.description.clone(), rule.expires_at)).collect();
        let end = timestamp::parse("2036-01-01T00:00:00Z").unwrap();
        assert_eq!(
            fields,
            [
                (Field::Keep, Field::Keep),
                (Field::Clear, Field::Clear),
                (Field::Clear, Field::Keep),
                (Field::Set("office".to_owned()), Field::Set(end)),
            ]
        );
        assert!(rules.iter().all(|rule| rule.uuid.is_none()));
    }

    #[test]
    fn invalid_bodies_are_named() {
        for (body, word) in [
            ("", "empty"),
            ("{", "not JSON"),
            ("[]", "not as expected"),
            (r#"{"rules": null}"#, "not as expected"),
            ("{}", "`rules`"),
            (r#"{"rules": [], "rules": []}"#, "duplicate field `rules`"),
            (r#"{"rules": [], "x": 1}"#, "unknown field `x`"),
            (r#"[[{"type": "ip_addr", "value": "10.0.0.1"}]]"#, "expected an object"),
            (r#"{"rules": [["ip_addr", "10.0.0.1"]]}"#, "expected an object"),
            (r#"{"rules": [{"type": "ip_addr"}]}"#, "`value`"),
            (r#"{"rules": [{"type": "ip_addr", "value": 7}]}"#, "a string"),
            (r#"{"rules": [{"type": "ip_addr", "value": "a\u0000b"}]}"#, "NUL"),
            (r#"{"rules": [{"type": "ip_addr", "value": "10.0.0.1", "ttl": "soon"}]}"#, "rules[0].ttl"),
            (r#"{"rules": [{"type": "ip_addr", "value": "10.0.0.1", "ttl": "0s"}]}"#, "rules[0].ttl"),
            (r#"{"rules": [{"type": "ip_addr", "value": "10.0.0.1", "expires_at": "soon"}]}"#, "rules[0].expires_at"),
        ] {
            let message = message(body);
            assert!(message.contains(word), "{body}: {message}");
        }
        let many =
            format!(r#"{{"rules": [{}]}}"#, vec![r#"{"type":"ip_addr","value":"10.0.0.1"}"#; MAX_RULES + 1].join(","));
        assert!(message(&many).contains("at most 200000"));
        let deep = format!("{{\"rules\": {}{}}}", "[".repeat(200), "]".repeat(200));
        assert!(message(&deep).contains("expected an object"));
    }
}
