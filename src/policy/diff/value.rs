//! Effective values of configuration keys, and how much access each grants.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use time::OffsetDateTime;

use crate::credential::upstream_passwords::UpstreamPasswords;
use crate::identity::trusted_clients::ClientPattern;
use crate::printable;
use crate::tls::tickets::TicketKeys;
use crate::x509::crl::CrlSeries;

/// The effective value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// An optional key that is not set.
    Unset,
    /// One value, as the configuration writes it.
    One(String),
    /// A list.
    Many(Vec<String>),
    /// A file of ticket keys, which are compared and never shown.
    TicketKeys { file: String, keys: TicketKeys },
    /// A file of passwords, which are compared and never shown.
    Passwords { file: String, passwords: UpstreamPasswords },
}

/// How much access a setting grants, for the comparison of two values of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exposure {
    /// The key has no effect on protection.
    None,
    /// Several measures. A higher value of any is weaker.
    Degrees(Vec<u64>),
    /// Networks whose PROXY headers are accepted.
    Networks(Vec<IpNet>),
    /// Clients that are admitted; all if the list is empty.
    Clients(Vec<ClientPattern>),
    /// CRLs that are enforced.
    Revocation {
        /// The thisUpdate of the newest CRL of each series.
        lists: BTreeMap<CrlSeries, OffsetDateTime>,
        /// Digests of the keys of the trust anchors.
        anchors: Vec<String>,
    },
}

impl Exposure {
    pub(crate) fn degree(degree: impl Into<u64>) -> Self {
        Self::Degrees(vec![degree.into()])
    }

    /// Whether this grants access that `old` does not.
    pub(crate) fn exceeds(&self, old: &Self) -> bool {
        match (old, self) {
            (Self::Degrees(old), Self::Degrees(new)) => old.iter().zip(new).any(|(old, new)| new > old),
            (Self::Networks(old), Self::Networks(new)) => {
                let old = IpNet::aggregate(old);
                !new.iter().all(|new| old.iter().any(|old| old.contains(new)))
            }
            (Self::Clients(old), Self::Clients(new)) => {
                !old.is_empty() && (new.is_empty() || !new.iter().all(|new| old.iter().any(|old| old.includes(new))))
            }
            (
                Self::Revocation { lists: old, anchors: old_anchors },
                Self::Revocation { lists: new, anchors: new_anchors },
            ) => old.iter().any(|(series, made)| {
                // The CRL of a CA that is no longer trusted has no effect.
                let is_removed =
                    series.signer.as_ref().is_some_and(|key| old_anchors.contains(key) && !new_anchors.contains(key));
                !is_removed && new.get(series).is_none_or(|newer| newer < made)
            }),
            _ => false,
        }
    }
}

/// Formats two values that differ. Long lists show only the elements that the other list lacks.
pub(crate) fn to_text(old: Option<&Value>, new: Option<&Value>) -> (Option<String>, Option<String>) {
    if let (Some(Value::Many(old)), Some(Value::Many(new))) = (old, new)
        && [old, new].into_iter().any(|list| list.join(SEPARATOR).len() > printable::MAX_FIELD)
    {
        let only = |list: &[String], other: &[String]| {
            let other: HashSet<&String> = other.iter().collect();
            let differing: Vec<_> = list.iter().filter(|element| !other.contains(element)).cloned().collect();
            let common = list.len() - differing.len();
            let rest = (common > 0).then(|| format!("{common} unchanged"));
            Some(differing.into_iter().chain(rest).collect::<Vec<_>>().join(SEPARATOR))
        };
        return (only(old, new), only(new, old));
    }
    let changed = match (old, new) {
        (Some(Value::TicketKeys { file: old, .. }), Some(Value::TicketKeys { file: new, .. })) if old == new => {
            " (keys changed)"
        }
        (Some(Value::Passwords { file: old, .. }), Some(Value::Passwords { file: new, .. })) if old == new => {
            " (passwords changed)"
        }
        _ => "",
    };
    let shown = |value: &Value| match value {
        Value::Unset => None,
        Value::One(text) => Some(text.clone()),
        Value::Many(list) => Some(list.join(SEPARATOR)).filter(|list| !list.is_empty()),
        Value::TicketKeys { file, .. } | Value::Passwords { file, .. } => Some(file.clone()),
    };
    (old.and_then(shown), new.and_then(shown).map(|new| new + changed))
}

/// Formats a duration as in the configuration: `1m30s`.
pub(crate) fn duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, size) in UNITS {
        if rest >= size {
            text.push_str(&format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Returns a duration in milliseconds, as a degree.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns an absolute path: the two configurations may be named relative to different directories.
pub(crate) fn path(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

const SEPARATOR: &str = ", ";

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
