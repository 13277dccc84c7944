//! What commands for all members of a fleet have in common.

use std::time::Duration;

use serde_json::Value;

use crate::cli::Failure;
use crate::cli::client::json_view::JsonView;
use crate::config::values::parse_positive_duration;

/// Parses `--wait`.
pub(crate) fn parse_wait(text: &str) -> Result<Duration, String> {
    parse_positive_duration(text).map_err(|error| format!("expected {error}"))
}

/// Fails if members of the fleet have not confirmed a change. It is in force where it was made.
pub(crate) fn confirm(body: &Value, what: &str) -> Result<(), Failure> {
    let Some(missing) = body.get("missing").filter(|missing| !missing.is_null()) else { return Ok(()) };
    let missing = missing_members(missing);
    if missing.is_empty() {
        return Err(Failure::Failed(format!("{what}: done here, and the other members of the fleet cannot be asked")));
    }
    Err(Failure::Failed(format!("{what}: done here, and not confirmed by {missing}")))
}

/// `b (unknown), c (live)`.
pub(crate) fn missing_members(missing: &Value) -> String {
    let one = |member: &Value| {
        let member = JsonView(member);
        format!("{} ({})", member.text_or_dash("member"), member.text_or_dash("state"))
    };
    missing.as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join(", ")
}
