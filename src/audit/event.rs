//! One event: a name and flat fields, as a JSON object or as text.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;

use crate::addr::{ClientAddr, ClientOrigin};
use crate::audit::line::Line;
use crate::outcome::{Outcome, Reason};
use crate::printable;
use crate::source::group::{GroupName, RuleOwner};
use crate::source::host::HostName;
use crate::source::rule::{Rule, Source};
use crate::source::trusted::{MatchingRule, SourceMatch};
use crate::timestamp;

/// The audit fields of a connection. Each phase adds what it learns.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionFields {
    /// The session id, unique within this process. An untrusted source has none.
    pub session: Option<u64>,
    pub listener: Arc<str>,
    pub client: ClientAddr,
    /// The load balancer that the connection comes from, if any.
    pub via: Option<ClientAddr>,
    /// The address that the client connected to, as announced by a load balancer. It is sent to the upstream and not logged.
    pub destination: Option<SocketAddr>,
    /// Whether the peer is a load balancer that sends health checks.
    pub is_health_checker: bool,
    /// Whether it is a PostgreSQL CancelRequest.
    pub is_cancel: bool,
    /// Why its source is admitted.
    pub source_match: Option<SourceMatch>,
    pub sni: Option<Box<str>>,
    /// Such as `TLSv1.3`.
    pub tls_version: Option<&'static str>,
    /// The IANA name.
    pub cipher: Option<&'static str>,
    /// In RFC 4514 form.
    pub client_subject: Option<Box<str>>,
    /// SHA-256 of the leaf certificate in lower-case hex.
    pub client_sha256: Option<Box<str>>,
    /// The user that the client authenticated as, or that it claims to be before that.
    pub user: Option<Box<str>>,
    pub upstream: Option<Arc<str>>,
}

impl ConnectionFields {
    /// The fields of a connection that was just accepted.
    pub(crate) fn new(session: Option<u64>, listener: Arc<str>, client: ClientAddr) -> Self {
        Self {
            session,
            listener,
            client,
            via: None,
            destination: None,
            is_health_checker: false,
            is_cancel: false,
            source_match: None,
            sni: None,
            tls_version: None,
            cipher: None,
            client_subject: None,
            client_sha256: None,
            user: None,
            upstream: None,
        }
    }

    pub(crate) fn origin(&self) -> ClientOrigin {
        ClientOrigin { client: self.client, via: self.via }
    }

    /// Whether a connection that ended for this reason was a health check: it sent no byte, and announced no client.
    pub(crate) fn is_health_check(&self, reason: Reason) -> bool {
        let without_a_byte = match reason {
            // Nothing is read from an untrusted source.
            Reason::UntrustedSource => true,
            Reason::ClientClosed => self.tls_version.is_none() && self.sni.is_none(),
            _ => false,
        };
        self.is_health_checker && without_a_byte && self.origin().proxy().is_none()
    }

    /// Sets the certificate that the client presents.
    pub(crate) fn name(&mut self, subject: &str, sha256: &str) {
        self.client_subject = Some(subject.into());
        self.client_sha256 = Some(sha256.into());
    }
}

/// A certificate that expires soon or has expired.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpiringCertificate<'a> {
    /// `server` or `client_ca`.
    pub role: &'static str,
    /// In RFC 4514 form.
    pub subject: &'a str,
    /// SHA-256 of the DER in lower-case hex.
    pub sha256: &'a str,
    pub not_after: OffsetDateTime,
    /// Whole days until then; negative after it.
    pub days_left: i64,
}

/// The level of an event in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// An audit event: a name, a time and fields.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    at: OffsetDateTime,
    name: &'static str,
    fields: Vec<(&'static str, Value)>,
}

impl Event {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { at: OffsetDateTime::now_utc(), name, fields: Vec::with_capacity(16) }
    }

    pub(crate) fn of_connection(name: &'static str, fields: &ConnectionFields) -> Self {
        let matching = fields.source_match.as_ref().and_then(SourceMatch::rule);
        Self::new(name)
            .with("listener", &*fields.listener)
            .with("source", fields.client.source())
            .with_some("source_port", fields.client.port())
            .with_some("balancer", fields.via.map(ClientAddr::source))
            .with_some("balancer_port", fields.via.and_then(ClientAddr::port))
            .with_some("rule", matching.map(|matching| matching.rule.to_string()))
            .with_some("object", matching.and_then(|matching| matching.object.as_deref()))
            .with_some("group", matching.and_then(MatchingRule::group).map(GroupName::as_str))
            .with_some("sni", fields.sni.as_deref())
            .with_some("tls_version", fields.tls_version)
            .with_some("cipher", fields.cipher)
            .with_some("client_subject", fields.client_subject.as_deref())
            .with_some("client_sha256", fields.client_sha256.as_deref())
            .with_some("user", fields.user.as_deref())
            .with_upstream(fields.upstream.as_deref())
    }

    pub(crate) fn of_rule(name: &'static str, owner: RuleOwner<'_>, rule: &Rule) -> Self {
        Self::new(name)
            .with_owner(owner)
            .with("rule", rule.to_string())
            .with_some("description", rule.description.as_deref())
            .with_some("expires_at", rule.expires_at.map(timestamp::seconds))
    }

    pub(crate) fn of_addresses(
        name: &'static str,
        owner: RuleOwner<'_>,
        host: &HostName,
        addresses: &[IpAddr],
    ) -> Self {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        Self::of_source(name, owner, format!("{}:{host}", Source::DNS)).with_list("addresses", &addresses)
    }

    /// About a rule, in its form `type:value`.
    pub(crate) fn of_source(name: &'static str, owner: RuleOwner<'_>, rule: String) -> Self {
        Self::new(name).with_owner(owner).with("rule", rule)
    }

    /// Adds `listener` or `group`.
    pub(crate) fn with_owner(self, owner: RuleOwner<'_>) -> Self {
        let (key, name) = owner.field();
        self.with(key, name)
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The name of the listener that the event is about, if it is about one.
    pub(crate) fn listener(&self) -> Option<&str> {
        self.text_of("listener")
    }

    /// The listener, or `group:NAME` of an event about a source group alone.
    pub(crate) fn owner(&self) -> Option<String> {
        let group = || self.text_of("group").map(|group| format!("group:{group}"));
        self.listener().map(str::to_owned).or_else(group)
    }

    fn text_of(&self, name: &str) -> Option<&str> {
        self.fields.iter().find_map(|(key, value)| if *key == name { value.as_str() } else { None })
    }

    /// Adds a field. Text is escaped and cut.
    pub(crate) fn with(self, key: &'static str, value: impl Into<Value>) -> Self {
        self.with_whole(key, as_fields(value.into()))
    }

    /// Adds a text that only an operator can make long, such as configuration errors. It is escaped, and cut only if the line
    /// would be too long.
    pub(crate) fn with_long(self, key: &'static str, text: &str) -> Self {
        self.with_whole(key, printable::lines(text).into())
    }

    fn with_upstream(self, upstream: Option<&str>) -> Self {
        match upstream {
            Some(upstream) => self.with_long("upstream", upstream),
            None => self,
        }
    }

    pub(crate) fn with_list(self, key: &'static str, items: &[String]) -> Self {
        if items.is_empty() { self } else { self.with_long(key, &items.join(",")) }
    }

    fn with_whole(mut self, key: &'static str, value: Value) -> Self {
        self.fields.push((key, value));
        self
    }

    pub(crate) fn with_some(self, key: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }

    /// Adds the reason for which the connection would be denied, if it is admitted only because of observe mode.
    pub(crate) fn would_deny(self, fields: &ConnectionFields) -> Self {
        self.with_some(
            "would_deny",
            (fields.source_match == Some(SourceMatch::Observed)).then_some(Reason::UntrustedSource.code()),
        )
    }

    pub(crate) fn ended(self, outcome: &Outcome) -> Self {
        let detail = Some(outcome.detail.as_str()).filter(|detail| !detail.is_empty());
        self.with("reason", outcome.reason.code()).with_some("detail", detail)
    }

    pub(crate) fn lasted(self, duration: Duration) -> Self {
        self.with("duration_ms", u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// One line of JSON. In the log it also has a level and a target.
    pub(crate) fn json(&self, log: Option<(Level, &str)>) -> String {
        let mut line = Line::new();
        let _ = write!(line, "{{\"ts\":\"{}\"", timestamp::milliseconds(self.at));
        if let Some((level, target)) = log {
            let _ = write!(line, ",\"level\":\"{}\",\"target\":\"{target}\"", level.name());
        }
        let _ = write!(line, ",\"event\":\"{}\"", self.name);
        for (key, value) in &self.fields {
            line.json_field(key, value);
        }
        let _ = write!(line, "}}");
        line.end()
    }

    /// One line of text. Strings that are not plain words are quoted and escaped.
    pub(crate) fn text(&self, level: Level) -> String {
        let mut line = Line::new();
        let _ = write!(line, "{} {:>5} {}", timestamp::milliseconds(self.at), level.name(), self.name);
        for (key, value) in &self.fields {
            line.text_field(key, value);
        }
        line.end()
    }
}

/// Escapes and cuts every text in a value.
fn as_fields(value: Value) -> Value {
    match value {
        Value::String(text) => printable::fitted(text).into(),
        Value::Array(items) => items.into_iter().map(as_fields).collect(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(sni: &str) -> Event {
        let client = ClientAddr::new("[::ffff:10.1.2.3]:4711".parse().unwrap());
        let mut fields = ConnectionFields::new(Some(7), "cache".into(), client);
        fields.sni = Some(sni.into());
        Event::of_connection("connection.denied", &fields).ended(&Outcome::new(Reason::IoError, "a b"))
    }

    #[test]
    fn event_is_one_flat_json_object_on_one_line() {
        let line = denied("a\"b\nc\u{0}").json(Some((Level::Warn, "audit")));
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        let value: Value = serde_json::from_str(&line).unwrap();
        let object = value.as_object().unwrap();
        assert!(object.values().all(|value| !value.is_object() && !value.is_array()));
        assert_eq!(object["source"], "10.1.2.3");
        assert_eq!(object["source_port"], 4711);
        assert_eq!(object["sni"], "a\"b\\nc\\u{0}");
        assert_eq!(object["reason"], "io_error");
        assert_eq!(object["level"], "WARN");
    }

    #[test]
    fn client_text_cannot_end_a_line_or_forge_a_field() {
        let line = denied("x reason=shutdown\nfake").text(Level::Warn);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        assert!(line.contains(r#"sni="x reason=shutdown\\nfake""#), "{line}");
        assert!(line.contains(" reason=io_error detail=\"a b\""), "{line}");
    }
}
