//! What a resolver saw of one source.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The result of one attempt to resolve a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Observation {
    /// A complete answer. It may be empty: no object matches.
    Addresses {
        #[serde(deserialize_with = "bounded")]
        addresses: Vec<ObjectAddress>,
        evidence: Evidence,
    },
    /// The object does not exist (404).
    Gone { detail: String, evidence: Evidence },
    /// The object exists and has no address that can be trusted, such as an app without dedicated egress addresses.
    Unresolvable { detail: String },
    /// No answer: the service failed, rejected the request, or its answer is not complete.
    Failed { error: String },
}

/// An address, and the object that has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ObjectAddress {
    pub ip: IpAddr,
    /// For people: `droplet web-1`, `pod shop/web-0`.
    pub object: Arc<str>,
}

/// How reliable it is that something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Evidence {
    /// An object is missing in a list, which may be wrong for a moment.
    List,
    /// A watch reported every deletion.
    Watch,
}

/// Reads at most [`MAX_ADDRESSES`] addresses. A longer list is an error before it takes memory.
fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ObjectAddress>, D::Error> {
    deserializer.deserialize_seq(BoundedList)
}

struct BoundedList;

impl<'de> Visitor<'de> for BoundedList {
    type Value = Vec<ObjectAddress>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_ADDRESSES} addresses")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut addresses = Vec::new();
        while let Some(address) = list.next_element()? {
            if addresses.len() >= MAX_ADDRESSES {
                return Err(A::Error::custom(format_args!("more than {MAX_ADDRESSES} addresses")));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }
}

/// The maximum number of addresses of one source.
pub(crate) const MAX_ADDRESSES: usize = 65_536;

/// The maximum length of an object's name, an error or a detail, in bytes.
pub(crate) const MAX_TEXT: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_longer_than_the_limit_is_an_error() {
        let message = |count: usize| {
            let address = r#"{"ip":"10.0.0.1","object":"droplet web-1"}"#;
            format!(r#"{{"addresses":{{"addresses":[{}],"evidence":"list"}}}}"#, vec![address; count].join(","))
        };
        let read = |count| serde_json::from_str::<Observation>(&message(count)).map_err(|error| error.to_string());
        assert!(read(MAX_ADDRESSES).is_ok());
        let error = read(MAX_ADDRESSES + 1).unwrap_err();
        assert!(error.starts_with("more than 65536 addresses"), "{error}");
    }
}
