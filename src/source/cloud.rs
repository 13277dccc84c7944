//! Objects of a cloud or a cluster as trusted sources: droplets, tags, clusters, apps, nodes, pods and services.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// An object, or a set of objects, whose addresses a rule trusts. The agent resolves it. Its serialized form is that of
/// [`fmt::Display`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum CloudSource {
    /// A droplet of DigitalOcean, by its number.
    Droplet(u64),
    /// All droplets of DigitalOcean with a tag.
    Tag(Tag),
    /// The nodes of a Kubernetes cluster of DigitalOcean.
    Cluster(ObjectId),
    /// An app of DigitalOcean's App Platform with dedicated egress addresses.
    App(ObjectId),
    /// Objects of any Kubernetes API.
    Kubernetes(KubernetesSource),
}

/// Which API resolves a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resolver {
    DigitalOcean,
    Kubernetes,
}

impl Resolver {
    /// The name of its section below `[resolver]`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DigitalOcean => "digitalocean",
            Self::Kubernetes => "kubernetes",
        }
    }
}

impl CloudSource {
    /// The values of the `type` key.
    pub const KINDS: [&str; 5] = ["droplet", "tag", "k8s", "app", "kubernetes"];

    /// The value of the `type` key.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Droplet(_) => "droplet",
            Self::Tag(_) => "tag",
            Self::Cluster(_) => "k8s",
            Self::App(_) => "app",
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    /// The API that resolves it.
    pub const fn resolver(&self) -> Resolver {
        match self {
            Self::Droplet(_) | Self::Tag(_) | Self::Cluster(_) | Self::App(_) => Resolver::DigitalOcean,
            Self::Kubernetes(_) => Resolver::Kubernetes,
        }
    }

    /// The objects of a Kubernetes API.
    pub const fn kubernetes(&self) -> Option<&KubernetesSource> {
        match self {
            Self::Kubernetes(source) => Some(source),
            Self::Droplet(_) | Self::Tag(_) | Self::Cluster(_) | Self::App(_) => None,
        }
    }

    /// The `value` key.
    pub fn value(&self) -> String {
        match self {
            Self::Droplet(number) => number.to_string(),
            Self::Tag(tag) => tag.0.to_string(),
            Self::Cluster(id) | Self::App(id) => id.0.to_string(),
            Self::Kubernetes(source) => source.to_string(),
        }
    }

    /// Reads a `type` and a `value`; `None` for another type.
    pub fn parse(kind: &str, value: &str) -> Option<Result<Self, CloudSourceError>> {
        Some(match kind {
            "droplet" => droplet(value).map(Self::Droplet),
            "tag" => value.parse().map(Self::Tag),
            "k8s" => value.parse().map(Self::Cluster),
            "app" => value.parse().map(Self::App),
            "kubernetes" => value.parse().map(Self::Kubernetes),
            _ => return None,
        })
    }
}

/// The form in all logs and listings: `tag:backend`, `kubernetes:pods:shop:app=web`.
impl fmt::Display for CloudSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind(), self.value())
    }
}

impl From<CloudSource> for String {
    fn from(source: CloudSource) -> Self {
        source.to_string()
    }
}

impl TryFrom<String> for CloudSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (kind, value) = text.split_once(':').unwrap_or((&text, ""));
        let parsed = Self::parse(kind, value).ok_or_else(|| format!("{text:?} is not a kind of cloud source"))?;
        parsed.map_err(|error| format!("{text:?} is {error}"))
    }
}

/// A tag of DigitalOcean. Its API ignores case, and shows a tag as it was first created.
#[derive(Clone, Debug)]
pub struct Tag(Arc<str>);

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The bytes by which tags are compared.
    fn folded(&self) -> impl Iterator<Item = u8> {
        self.0.bytes().map(|byte| byte.to_ascii_lowercase())
    }
}

impl PartialEq for Tag {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Tag {}

impl Hash for Tag {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.folded().for_each(|byte| state.write_u8(byte));
        state.write_u8(0xff);
    }
}

impl Ord for Tag {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded().cmp(other.folded())
    }
}

impl PartialOrd for Tag {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for Tag {
    type Err = CloudSourceError;

    fn from_str(text: &str) -> Result<Self, CloudSourceError> {
        let is_tag = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':');
        let is_valid = (1..=MAX_TAG).contains(&text.len()) && text.bytes().all(is_tag);
        is_valid.then(|| Self(text.into())).ok_or(CloudSourceError::Tag)
    }
}

/// The identifier of a cluster or an app, which is safe in the path of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(Arc<str>);

impl ObjectId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectId {
    type Err = CloudSourceError;

    fn from_str(text: &str) -> Result<Self, CloudSourceError> {
        let is_valid =
            (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_valid.then(|| Self(text.into())).ok_or(CloudSourceError::Id)
    }
}

/// Objects of a Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KubernetesSource {
    /// Nodes that the selector matches.
    Nodes { selector: Option<Selector> },
    /// Pods of a namespace that the selector matches.
    Pods { namespace: KubernetesName, selector: Option<Selector> },
    /// The endpoints of a service.
    Service { namespace: KubernetesName, name: KubernetesName },
}

impl fmt::Display for KubernetesSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let selector = |selector: &Option<Selector>| selector.as_ref().map(|s| format!(":{}", s.0)).unwrap_or_default();
        match self {
            Self::Nodes { selector: chosen } => write!(f, "nodes{}", selector(chosen)),
            Self::Pods { namespace, selector: chosen } => write!(f, "pods:{}{}", namespace.0, selector(chosen)),
            Self::Service { namespace, name } => write!(f, "service:{}/{}", namespace.0, name.0),
        }
    }
}

impl FromStr for KubernetesSource {
    type Err = CloudSourceError;

    fn from_str(text: &str) -> Result<Self, CloudSourceError> {
        let (what, rest) = text.split_once(':').map_or((text, None), |(what, rest)| (what, Some(rest)));
        match (what, rest) {
            ("nodes", selector) => Ok(Self::Nodes { selector: selector.map(str::parse).transpose()? }),
            ("pods", Some(rest)) => {
                let (namespace, selector) =
                    rest.split_once(':').map_or((rest, None), |(name, rest)| (name, Some(rest)));
                Ok(Self::Pods { namespace: namespace.parse()?, selector: selector.map(str::parse).transpose()? })
            }
            ("service", Some(rest)) => {
                let (namespace, name) = rest.split_once('/').ok_or(CloudSourceError::Kubernetes)?;
                Ok(Self::Service { namespace: namespace.parse()?, name: name.parse()? })
            }
            _ => Err(CloudSourceError::Kubernetes),
        }
    }
}

/// The name of a namespace or a service: a DNS label or subdomain (RFC 1123), which is safe in the path of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KubernetesName(Arc<str>);

impl KubernetesName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KubernetesName {
    type Err = CloudSourceError;

    fn from_str(text: &str) -> Result<Self, CloudSourceError> {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_label = |label: &str| {
            label.bytes().all(|byte| is_inner(byte) || byte == b'-')
                && label.bytes().next().is_some_and(is_inner)
                && label.bytes().last().is_some_and(is_inner)
        };
        let is_valid = text.len() <= MAX_NAME && text.split('.').all(is_label);
        is_valid.then(|| Self(text.into())).ok_or(CloudSourceError::KubernetesName)
    }
}

/// A label selector of Kubernetes, such as `app=web,tier!=test` or `env in (a, b)`. The API server parses it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector(Arc<str>);

impl Selector {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Selector {
    type Err = CloudSourceError;

    fn from_str(text: &str) -> Result<Self, CloudSourceError> {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-,=!() ".contains(&byte);
        // An empty selector matches every object, which nobody would write that way.
        let is_valid = (1..=MAX_SELECTOR).contains(&text.len())
            && text.bytes().all(is_part)
            && text.bytes().any(|byte| byte.is_ascii_alphanumeric());
        is_valid.then(|| Self(text.into())).ok_or(CloudSourceError::Selector)
    }
}

/// Why a value names no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloudSourceError {
    #[error("not the number of a droplet; use its ID such as \"3164444\"")]
    Droplet,
    #[error("not a tag; use 1 to {MAX_TAG} letters, digits, \"-\", \"_\" or \":\"")]
    Tag,
    #[error("not an identifier; use the UUID that the cloud's API shows")]
    Id,
    #[error(
        "not a Kubernetes source; use \"nodes\", \"nodes:SELECTOR\", \"pods:NAMESPACE\", \"pods:NAMESPACE:SELECTOR\" or \
         \"service:NAMESPACE/NAME\""
    )]
    Kubernetes,
    #[error("not a Kubernetes source: a name has lower-case letters, digits, \"-\" and \".\" only")]
    KubernetesName,
    #[error("not a Kubernetes source: the label selector is not valid; write it as \"app=web\" or \"env in (a, b)\"")]
    Selector,
}

/// Without sign and leading zeros, so that each droplet has one spelling.
fn droplet(text: &str) -> Result<u64, CloudSourceError> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| is_plain).ok_or(CloudSourceError::Droplet)
}

/// The limit of DigitalOcean.
const MAX_TAG: usize = 255;

/// A UUID has 36 bytes.
const MAX_ID: usize = 64;

/// RFC 1123 subdomain, the limit of Kubernetes.
const MAX_NAME: usize = 253;

/// Longer than any selector that an operator writes, and short enough for the URL of a request.
const MAX_SELECTOR: usize = 1024;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn shown(kind: &str, value: &str) -> Result<String, CloudSourceError> {
        CloudSource::parse(kind, value).unwrap().map(|source| source.to_string())
    }

    #[test]
    fn source_is_shown_as_written() {
        for (kind, value) in [
            ("droplet", "3164444"),
            ("tag", "env:prod_eu-1"),
            ("k8s", "bd5f5959-5e1e-4205-a714-a914373942af"),
            ("app", "4f6c71e2-1e90-4762-9fee-6cc4a0a9f2cf"),
            ("kubernetes", "nodes"),
            ("kubernetes", "nodes:node-role.kubernetes.io/worker=,!gpu"),
            ("kubernetes", "pods:shop"),
            ("kubernetes", "pods:shop:app=web,tier in (a, b)"),
            ("kubernetes", "service:shop/web.v1"),
        ] {
            assert_eq!(shown(kind, value), Ok(format!("{kind}:{value}")));
        }
        assert_eq!(CloudSource::parse("ip_addr", "10.0.0.1"), None);
    }

    #[test]
    fn invalid_value_is_rejected_with_its_reason() {
        use CloudSourceError::{Droplet, Id, Kubernetes, KubernetesName, Selector, Tag};
        for (kind, value, error) in [
            ("droplet", "", Droplet),
            ("droplet", "0", Droplet),
            ("droplet", "007", Droplet),
            ("droplet", "+7", Droplet),
            ("droplet", "18446744073709551616", Droplet),
            ("tag", "", Tag),
            ("tag", "a b", Tag),
            ("tag", "a/b", Tag),
            ("tag", &"a".repeat(256), Tag),
            ("k8s", "../droplets", Id),
            ("app", "a?b", Id),
            ("kubernetes", "", Kubernetes),
            ("kubernetes", "node", Kubernetes),
            ("kubernetes", "pods", Kubernetes),
            ("kubernetes", "service:web", Kubernetes),
            ("kubernetes", "pods:", KubernetesName),
            ("kubernetes", "pods:Shop", KubernetesName),
            ("kubernetes", "pods:../x", KubernetesName),
            ("kubernetes", "service:shop/a/b", KubernetesName),
            ("kubernetes", "nodes:", Selector),
            ("kubernetes", "nodes:,", Selector),
            ("kubernetes", "nodes:a=b&limit=1", Selector),
            ("kubernetes", "nodes:a=\u{202e}b", Selector),
        ] {
            assert_eq!(shown(kind, value), Err(error), "{kind}:{value}");
        }
    }

    #[test]
    fn tags_are_compared_without_case_and_shown_as_written() {
        let [written, other, longer] =
            ["Web", "wEB", "web1"].map(|tag| CloudSource::parse("tag", tag).unwrap().unwrap());
        assert_eq!(written, other);
        assert_eq!(BTreeSet::from([written.clone(), other.clone(), longer.clone()]).len(), 2);
        assert_eq!(HashSet::from([written.clone(), other.clone(), longer]).len(), 2);
        assert_eq!([written.to_string(), other.to_string()], ["tag:Web", "tag:wEB"]);
    }

    proptest! {
        #[test]
        fn accepted_source_parses_again(kind in 0..5_usize, value in "[a-z0-9:/=., A-Z-]{1,12}") {
            let kind = CloudSource::KINDS[kind];
            if let Some(Ok(source)) = CloudSource::parse(kind, &value) {
                prop_assert_eq!(source.kind(), kind);
                prop_assert_eq!(source.value(), value.clone());
                prop_assert_eq!(CloudSource::parse(kind, &source.value()), Some(Ok(source)));
            }
        }
    }
}
