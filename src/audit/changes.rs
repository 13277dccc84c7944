//! What a new policy changes, as `reload.applied` and `policy.weakened` report it.

use std::fmt;

use serde::Serialize;

use crate::audit::event::Event;
use crate::printable;
use crate::source::group::RuleOwner;

/// The changes of a reload: settings by value, everything else by count, name or fingerprint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The number of the policy in force. It starts at 1.
    pub generation: u64,
    pub listeners_added: Vec<String>,
    pub listeners_removed: Vec<String>,
    /// Listeners whose addresses have changed.
    pub listeners_moved: Vec<String>,
    pub sources_added: usize,
    pub sources_removed: usize,
    /// SHA-256 fingerprints of new server certificates and trust anchors.
    pub certificates_in: Vec<String>,
    /// SHA-256 fingerprints of removed server certificates and trust anchors.
    pub certificates_out: Vec<String>,
    /// Keys whose effective value has changed, those of the process first.
    pub differences: Vec<Difference>,
}

/// A configuration key whose effective value has changed. Defaults count as values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The listener's name, or `group:NAME`; `None` for a setting of the process.
    pub listener: Option<String>,
    /// The key, relative to its `[[listener]]` or `[[source_group]]` where it has one: `tls.client_auth`, `reload.poll`.
    pub key: &'static str,
    /// The value before, if there was one.
    pub old: Option<String>,
    /// The value after, if there is one.
    pub new: Option<String>,
    /// Whether the new value protects less than the old one.
    pub weakens: bool,
}

impl Difference {
    /// Builds a difference. The values are escaped and cut.
    pub fn new(listener: Option<&str>, key: &'static str, old: Option<String>, new: Option<String>) -> Self {
        let [old, new] = [old, new].map(|value| value.map(printable::fitted));
        Self { listener: listener.map(str::to_owned), key, old, new, weakens: false }
    }

    pub(crate) fn event(&self) -> Event {
        let event = Event::new("policy.weakened");
        let event = match &self.listener {
            Some(owner) => event.with_owner(RuleOwner::of(owner)),
            None => event,
        };
        event.with("key", self.key).with("old", self.old.as_deref()).with("new", self.new.as_deref())
    }
}

/// `cache tls.client_auth: required -> optional (weakens protection)`.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listener, key, old, new, weakens } = self;
        if let Some(listener) = listener {
            write!(f, "{listener} ")?;
        }
        let [old, new] = [old, new].map(|value| value.as_deref().unwrap_or(NO_VALUE));
        write!(f, "{key}: {old} -> {new}{}", if *weakens { WEAKENS } else { "" })
    }
}

impl Changes {
    pub(crate) fn event(&self) -> Event {
        let differences: Vec<_> = self.differences.iter().take(MAX_DIFFERENCES).map(ToString::to_string).collect();
        let event = Event::new("reload.applied")
            .with("generation", self.generation)
            .with_list("listeners_added", &self.listeners_added)
            .with_list("listeners_removed", &self.listeners_removed)
            .with_list("listeners_moved", &self.listeners_moved)
            .with("sources_added", self.sources_added)
            .with("sources_removed", self.sources_removed)
            .with_list("certificates_in", &self.certificates_in)
            .with_list("certificates_out", &self.certificates_out);
        if differences.is_empty() {
            return event;
        }
        event
            .with("differences_count", self.differences.len())
            .with("weakened_count", self.weakened().count())
            .with_long("differences", &differences.join("\n"))
    }

    /// The differences that weaken protection.
    pub fn weakened(&self) -> impl Iterator<Item = &Difference> {
        self.differences.iter().filter(|difference| difference.weakens)
    }
}

/// Shown in text where there is no value.
pub(crate) const NO_VALUE: &str = "none";

/// Marks a difference that weakens protection in text.
pub(crate) const WEAKENS: &str = " (weakens protection)";

/// Maximum number of differences that one event or answer lists.
pub(crate) const MAX_DIFFERENCES: usize = 1_000;

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn difference() -> Difference {
        let [old, new] = ["required", "optional"].map(|value| Some(value.to_owned()));
        Difference { weakens: true, ..Difference::new(Some("cache"), "tls.client_auth", old, new) }
    }

    fn parsed(event: &Event) -> Value {
        let value: Value = serde_json::from_str(&event.json(None)).unwrap();
        assert!(value.as_object().unwrap().values().all(|field| !field.is_object() && !field.is_array()), "{value}");
        value
    }

    #[test]
    fn weakening_difference_is_an_event_with_both_values() {
        let event = parsed(&difference().event());
        for (field, value) in [
            ("event", "policy.weakened"),
            ("listener", "cache"),
            ("key", "tls.client_auth"),
            ("old", "required"),
            ("new", "optional"),
        ] {
            assert_eq!(event[field], value);
        }
        let of_group = Difference { listener: Some("group:web".to_owned()), ..difference() };
        let event = parsed(&of_group.event());
        assert_eq!((event.get("listener"), &event["group"]), (None, &Value::from("web")));
        let removed = Difference { listener: None, new: None, ..difference() };
        let event = parsed(&removed.event());
        assert_eq!((event.get("listener"), &event["new"]), (None, &Value::Null));
    }

    #[test]
    fn applied_reload_lists_differences_and_bounds_them() {
        let drain = Difference::new(None, "shutdown.drain", Some("30s".into()), Some("5s".into()));
        let mut changes = Changes { differences: vec![drain, difference()], ..Changes::default() };
        let event = parsed(&changes.event());
        let expected = "shutdown.drain: 30s -> 5s\ncache tls.client_auth: required -> optional (weakens protection)";
        assert_eq!(event["differences"], expected);
        assert_eq!((&event["differences_count"], &event["weakened_count"]), (&2.into(), &1.into()));
        changes.differences = vec![difference(); 3 * MAX_DIFFERENCES];
        let event = changes.event().json(None);
        assert!(event.len() <= 64 << 10, "{}", event.len());
        assert!(event.contains(printable::MARK) && event.contains("\"differences_count\":3000"), "{event}");
        assert!(parsed(&Changes::default().event()).get("differences").is_none());
    }
}
