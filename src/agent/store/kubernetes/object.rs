//! Keys of a fleet as objects of Kubernetes: names, labels, values.
//!
//! A ConfigMap or a Secret has one key. A Lease has both keys of a member: what it says about itself is an annotation, and who
//! holds it is in the spec.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::agent::kubernetes::collection::Versioned;
use crate::agent::store::limits::is_key;
use crate::digest::{hex, sha256};
use crate::fleet::store::{ALIVE, ANSWERS, CHUNKS, MEMBERS, SHARED};
use crate::jitter;

/// A ConfigMap, a Secret or a Lease. Only what the fleet uses of them is read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Object {
    #[serde(default)]
    pub(super) api_version: String,
    #[serde(default)]
    pub(super) kind: String,
    pub(super) metadata: ObjectMeta,
    /// Of a ConfigMap text, of a Secret base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spec: Option<Spec>,
}

/// The spec of a Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder_identity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease_duration_seconds: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renew_time: Option<String>,
}

impl Versioned for Object {
    fn version(&self) -> &str {
        self.metadata.resource_version.as_deref().unwrap_or_default()
    }
}

/// The kinds of objects that hold keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    ConfigMap,
    Secret,
    Lease,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::ConfigMap, Self::Secret, Self::Lease];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Lease => "Lease",
        }
    }

    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Lease => "leases",
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::ConfigMap | Self::Secret => "v1",
            Self::Lease => "coordination.k8s.io/v1",
        }
    }

    /// The path of its collection.
    pub(super) fn path(self, namespace: &str) -> String {
        let group = match self {
            Self::ConfigMap | Self::Secret => "/api/v1",
            Self::Lease => "/apis/coordination.k8s.io/v1",
        };
        format!("{group}/namespaces/{namespace}/{}", self.plural())
    }
}

/// Which part of an object has the value of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The data of a ConfigMap or a Secret.
    Data,
    /// The annotation of a Lease.
    State,
    /// The holder of a Lease.
    Holder,
}

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) kind: Kind,
    pub(super) part: Part,
    pub(super) name: String,
    /// In the annotation of the object: the key, or the member of both keys.
    pub(super) subject: String,
    label: &'static str,
}

impl Place {
    /// The place of a key; `None` if the fleet has no such key.
    pub(super) fn of(fleet: &str, key: &str) -> Option<Self> {
        let (label, kind, part, subject) = match key {
            _ if !is_key(key) => return None,
            TICKETS => ("tickets", Kind::Secret, Part::Data, key),
            _ => match (key.strip_prefix(MEMBERS), key.strip_prefix(ALIVE)) {
                (Some(member), _) => ("member", Kind::Lease, Part::State, member),
                (_, Some(member)) => ("member", Kind::Lease, Part::Holder, member),
                _ if key.starts_with(CHUNKS) => (CHUNKS_LABEL, Kind::ConfigMap, Part::Data, key),
                _ if key.starts_with(ANSWERS) => (ANSWERS_LABEL, Kind::ConfigMap, Part::Data, key),
                _ if key.starts_with(SHARED) => (SHARED_LABEL, Kind::ConfigMap, Part::Data, key),
                _ => return None,
            },
        };
        let last = key.rsplit_once('/').map_or(key, |(_, last)| last);
        Some(Self { kind, part, name: name(fleet, label, subject, last), subject: subject.to_owned(), label })
    }

    /// A new object for the key, without a value.
    pub(super) fn object(&self, fleet: &str, namespace: &str) -> Object {
        let fleet_label = label_value(fleet);
        let command = self.subject.strip_prefix(ANSWERS).and_then(|rest| rest.split_once('/'));
        let command = command.map(|(command, _)| label_value(command));
        let labels = [(MANAGED_BY, MANAGER), (FLEET, &fleet_label), (KIND, self.label)];
        let labels = labels.into_iter().chain(command.as_deref().map(|command| (COMMAND, command)));
        let text = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Object {
            api_version: self.kind.api_version().to_owned(),
            kind: self.kind.name().to_owned(),
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(namespace.to_owned()),
                labels: Some(labels.map(text).collect()),
                annotations: Some([(KEY, self.subject.as_str()), (FLEET, fleet)].map(text).into()),
                ..ObjectMeta::default()
            },
            data: None,
            spec: None,
        }
    }
}

impl Object {
    fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    fn annotate(&mut self, name: &str, value: Option<String>) {
        let annotations = self.metadata.annotations.get_or_insert_default();
        match value {
            Some(value) => annotations.insert(name.to_owned(), value),
            None => annotations.remove(name),
        };
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// The key or member that the object is about; `None` if it does not belong to the fleet.
    pub(super) fn subject(&self, fleet: &str) -> Option<&str> {
        let is_ours = self.label(MANAGED_BY) == Some(MANAGER) && self.annotation(FLEET) == Some(fleet);
        self.annotation(KEY).filter(|_| is_ours)
    }

    /// Whether the object is that of this place, and not a foreign one with its name.
    pub(super) fn is_at(&self, fleet: &str, place: &Place) -> bool {
        self.subject(fleet) == Some(place.subject.as_str())
    }

    /// The value of a part; `None` if it has none.
    pub(super) fn value(&self, kind: Kind, part: Part) -> Option<Vec<u8>> {
        match part {
            // An object without readable data is there, and its key has no valid value.
            Part::Data => {
                let text = self.data.as_ref().and_then(|data| data.get(VALUE)).map_or("", String::as_str);
                Some(match kind {
                    Kind::Secret => STANDARD.decode(text).unwrap_or_default(),
                    Kind::ConfigMap | Kind::Lease => text.as_bytes().to_vec(),
                })
            }
            Part::State => self.annotation(STATE).map(|state| state.as_bytes().to_vec()),
            Part::Holder => self.holder().map(|holder| holder.as_bytes().to_vec()),
        }
    }

    pub(super) fn set(&mut self, kind: Kind, part: Part, value: &str) {
        match part {
            Part::Data => {
                let text = if kind == Kind::Secret { STANDARD.encode(value) } else { value.to_owned() };
                self.data = Some([(VALUE.to_owned(), text)].into());
            }
            Part::State => self.annotate(STATE, Some(value.to_owned())),
            Part::Holder => self.spec.get_or_insert_default().holder_identity = Some(value.to_owned()),
        }
    }

    /// Removes a part of a Lease. Returns whether anything is left.
    pub(super) fn clear(&mut self, part: Part) -> bool {
        match part {
            Part::Data => return false,
            Part::State => self.annotate(STATE, None),
            Part::Holder => self.spec = None,
        }
        self.annotation(STATE).is_some() || self.holder().is_some()
    }

    pub(super) fn holder(&self) -> Option<&str> {
        self.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
    }

    /// Seconds that the holder has.
    pub(super) fn duration(&self) -> u32 {
        self.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default()
    }

    /// What differs after each renewal.
    pub(super) fn renewal(&self) -> String {
        let renewed = self.spec.as_ref().and_then(|spec| spec.renew_time.as_deref()).unwrap_or_default();
        format!("{} {renewed}", self.holder().unwrap_or_default())
    }

    pub(super) fn renew(&mut self, now: String, seconds: u32) {
        let spec = self.spec.get_or_insert_default();
        (spec.renew_time, spec.lease_duration_seconds) = (Some(now), Some(seconds));
    }

    /// The object as far as its removal needs it.
    pub(super) fn without_data(&self) -> Self {
        let Self { api_version, kind, metadata, .. } = self;
        let (api_version, kind, metadata) = (api_version.clone(), kind.clone(), metadata.clone());
        Self { api_version, kind, metadata, data: None, spec: None }
    }

    /// After how many seconds the object may be removed.
    pub(super) fn lifetime(&self) -> Option<u32> {
        self.annotation(SECONDS)?.parse().ok()
    }

    /// Makes the object differ from what it was: the API server does not give an unchanged one a new version.
    pub(super) fn mark_as_written(&mut self) {
        self.annotate(WRITE, Some(format!("{:016x}", jitter::random())));
    }

    pub(super) fn set_lifetime(&mut self, seconds: Option<u32>) {
        self.annotate(SECONDS, seconds.map(|seconds| seconds.to_string()));
        let labels = self.metadata.labels.get_or_insert_default();
        match seconds {
            Some(_) => labels.insert(TEMPORARY.to_owned(), "true".to_owned()),
            None => labels.remove(TEMPORARY),
        };
    }
}

/// The selector of a fleet's objects whose keys may begin so.
pub(super) fn selector(fleet: &str, prefix: &str) -> String {
    let all = format!("{MANAGED_BY}={MANAGER},{FLEET}={}", label_value(fleet));
    // The chunks of long lists are left out wherever possible.
    if prefix.starts_with(CHUNKS) {
        format!("{all},{KIND}={CHUNKS_LABEL}")
    } else if let Some(rest) = prefix.strip_prefix(ANSWERS) {
        let command = rest.split_once('/').map(|(command, _)| format!(",{COMMAND}={}", label_value(command)));
        format!("{all},{KIND}={ANSWERS_LABEL}{}", command.unwrap_or_default())
    } else {
        all
    }
}

/// The selector of those that every member watches.
pub(super) fn shared_selector(fleet: &str) -> String {
    format!("{},{KIND}!={CHUNKS_LABEL},{KIND}!={ANSWERS_LABEL}", selector(fleet, ""))
}

/// The selector of those with a limited life that no member watches.
pub(super) fn temporary_selector(fleet: &str) -> String {
    format!("{},{KIND}!={SHARED_LABEL},{TEMPORARY}=true", selector(fleet, ""))
}

/// The name of an object: readable, and by its digest another one for each key.
fn name(fleet: &str, label: &str, subject: &str, last: &str) -> String {
    let digest = hex(&sha256(format!("{fleet}/{label}/{subject}").as_bytes()));
    let digest = digest.get(..DIGEST).unwrap_or_default();
    let readable = |text: &str| -> String {
        let lower = text.chars().take(MAX_READABLE).map(|sign| sign.to_ascii_lowercase());
        lower.map(|sign| if sign.is_ascii_alphanumeric() { sign } else { '-' }).collect()
    };
    format!("portcullis-{}-{label}-{}-{digest}", readable(fleet), readable(last))
}

/// The value of a label, which has at most 63 letters, digits, `-`, `_` and `.` in the middle.
fn label_value(text: &str) -> String {
    let is_end = |sign: Option<char>| sign.is_some_and(|sign| sign.is_ascii_alphanumeric());
    let is_valid = text.len() <= 63
        && is_end(text.chars().next())
        && is_end(text.chars().next_back())
        && text.chars().all(|sign| sign.is_ascii_alphanumeric() || matches!(sign, '-' | '_' | '.'));
    if is_valid {
        text.to_owned()
    } else {
        hex(&sha256(text.as_bytes())).get(..DIGEST * 2).unwrap_or_default().to_owned()
    }
}

const TICKETS: &str = "shared/tickets";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const MANAGER: &str = "portcullis";
const FLEET: &str = "portcullis/fleet";
const KIND: &str = "portcullis/kind";
const COMMAND: &str = "portcullis/command";
const SHARED_LABEL: &str = "shared";
const CHUNKS_LABEL: &str = "chunk";
const ANSWERS_LABEL: &str = "answer";
const TEMPORARY: &str = "portcullis/temporary";
const KEY: &str = "portcullis/key";
const STATE: &str = "portcullis/state";
const SECONDS: &str = "portcullis/seconds";
const WRITE: &str = "portcullis/write";
const VALUE: &str = "value";
const DIGEST: usize = 16;
const MAX_READABLE: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_has_one_place() {
        for (key, kind, part) in [
            ("shared/epoch", Kind::ConfigMap, Part::Data),
            ("shared/rules/cache", Kind::ConfigMap, Part::Data),
            ("shared/tickets", Kind::Secret, Part::Data),
            ("chunks/cache/0f", Kind::ConfigMap, Part::Data),
            ("answers/0a1b/web-1", Kind::ConfigMap, Part::Data),
            ("members/web-1", Kind::Lease, Part::State),
            ("alive/web-1", Kind::Lease, Part::Holder),
        ] {
            let place = Place::of("prod", key).unwrap();
            assert_eq!((place.kind, place.part), (kind, part), "{key}");
            assert!(place.name.starts_with("portcullis-prod-"), "{}", place.name);
        }
        assert_eq!(Place::of("prod", "members/a").unwrap().name, Place::of("prod", "alive/a").unwrap().name);
        for key in ["", "other", "share", "a\nb"] {
            assert_eq!(Place::of("prod", key), None, "{key:?}");
        }
    }

    #[test]
    fn name_is_a_dns_label_and_differs_for_each_key() {
        let long = format!("shared/rules/{}", "x".repeat(200));
        let keys =
            ["shared/rules/Cache", "shared/rules/cache", "shared/rules/c\u{e4}che", "shared/commands/cache", &long];
        let names: std::collections::BTreeSet<_> =
            keys.iter().map(|key| Place::of("Prod_1", key).unwrap().name).collect();
        assert_eq!(names.len(), keys.len());
        for name in names {
            let is_valid = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit() || sign == '-';
            assert!(name.len() <= 253 && name.chars().all(is_valid), "{name}");
            assert!(!name.ends_with('-') && !name.starts_with('-'), "{name}");
        }
    }

    #[test]
    fn fleet_name_that_is_no_label_is_a_digest() {
        assert_eq!(label_value("prod-1.eu_A"), "prod-1.eu_A");
        for name in ["", "-a", "a-", "a b", "\u{e4}", &"a".repeat(64)] {
            let value = label_value(name);
            assert!(value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}: {value}");
        }
    }

    #[test]
    fn object_has_its_key_and_value() {
        for key in ["shared/tickets", "shared/epoch", "members/a", "alive/a"] {
            let place = Place::of("prod", key).unwrap();
            let mut object = place.object("prod", "shop");
            object.set(place.kind, place.part, "a\u{e4}b");
            let text = serde_json::to_string(&object).unwrap();
            let read: Object = serde_json::from_str(&text).unwrap();
            assert!(read.is_at("prod", &place) && !read.is_at("test", &place), "{text}");
            assert_eq!(read.value(place.kind, place.part).as_deref(), Some("a\u{e4}b".as_bytes()), "{text}");
        }
    }

    #[test]
    fn lease_is_empty_when_both_parts_are_removed() {
        let place = Place::of("prod", "alive/a").unwrap();
        let mut object = place.object("prod", "shop");
        object.set(place.kind, Part::State, "{}");
        object.set(place.kind, Part::Holder, "process 1");
        assert!(object.clear(Part::Holder));
        assert_eq!(object.value(place.kind, Part::Holder), None);
        assert!(!object.clear(Part::State));
    }
}
