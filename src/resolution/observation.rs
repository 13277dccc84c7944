//! What a resolver saw of one source.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The result of one attempt to resolve a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Observation {
    /// A complete answer. It may be empty: no object matches.
    Addresses { addresses: Vec<ObjectAddress>, evidence: Evidence },
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

/// The maximum number of addresses of one source.
pub(crate) const MAX_ADDRESSES: usize = 65_536;

/// The maximum length of an object's name, an error or a detail, in bytes.
pub(crate) const MAX_TEXT: usize = 512;
