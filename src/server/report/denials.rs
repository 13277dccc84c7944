//! The JSON of denied sources, each with what would admit it.

use serde_json::{Value, json};

use crate::addr::SourceKey;
use crate::audit::denials::DeniedGroup;
use crate::outcome::Reason;
use crate::policy::Snapshot;
use crate::timestamp::seconds;

pub(crate) fn list(denials: &[DeniedGroup], replaced: u64, current: &Snapshot) -> Value {
    json!({
        "denials": denials.iter().map(|group| denial(group, current)).collect::<Vec<_>>(),
        // Groups that made room for newer ones since the start. If it grows, the list is incomplete.
        "replaced": replaced,
    })
}

fn denial(group: &DeniedGroup, current: &Snapshot) -> Value {
    let DeniedGroup { listener, source, reason, count, first, last, last_address, detail } = group;
    // Only an untrusted source is admitted by a rule; another reason would stay.
    let value = last_address.filter(|_| *reason == Reason::UntrustedSource).map(|address| address.to_string());
    let has_file = current
        .config
        .listeners
        .iter()
        .any(|configured| *configured.name == **listener && configured.sources_file.is_some());
    let command = value
        .as_ref()
        .filter(|_| has_file)
        .map(|value| format!("portcullis sources append {listener} ip_addr:{value}"));
    json!({
        "listener": &**listener,
        "network": source.map_or_else(|| "unix".to_owned(), network),
        "last_address": last_address,
        "reason": reason.code(),
        "count": count,
        "first": seconds(*first),
        "last": seconds(*last),
        "detail": detail.as_deref(),
        "rule": value.map(|value| json!({ "type": "ip_addr", "value": value })),
        "command": command,
    })
}

/// An IPv4 address, or the /64 of an IPv6 address.
fn network(source: SourceKey) -> String {
    source.to_string()
}
