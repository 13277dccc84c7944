//! `portcullis reload`: reloads the running program and reports the result.

use std::fmt::Write as _;
use std::path::Path;

use hyper::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::cli::client::AdminClient;
use crate::cli::client::args::Running;
use crate::cli::client::json_view::JsonView;
use crate::cli::output::moment::ago;
use crate::cli::{Failure, difference, print, print_json};
use crate::timestamp;

pub(crate) fn reload(running: &Running, as_json: bool) -> Result<(), Failure> {
    let reply = AdminClient::find(running)?.send(Method::POST, "/v1/reload", None)?;
    if reply.status == UNPROCESSABLE {
        let summary = "the reload was rejected; the previous policy stays in force";
        return Err(Failure::Failed(format!("{summary}:\n{}", reply.message())));
    }
    let body = reply.into_body()?;
    if as_json { print_json(&body) } else { print(&to_text(&body, OffsetDateTime::now_utc())) }
}

/// Prints what a reload of the running configuration would change.
pub(crate) fn plan(running: &Running, as_json: bool) -> Result<(), Failure> {
    let plan = request_plan(&AdminClient::find(running)?, None)?;
    if as_json { print_json(&plan) } else { print(&difference::to_text(&plan, OffsetDateTime::now_utc())) }
}

/// Requests what would change if the running program loaded `file`.
pub(crate) fn plan_for(client: &AdminClient, file: &Path) -> Result<Value, Failure> {
    // The running program has another working directory.
    let absolute = std::path::absolute(file).map_err(|error| Failure::file(file, error))?;
    let path = absolute.to_str().ok_or_else(|| Failure::file(file, "the path is not UTF-8; rename the file"))?;
    request_plan(client, Some(&json!({ "file": path })))
}

fn request_plan(client: &AdminClient, body: Option<&Value>) -> Result<Value, Failure> {
    let reply = client.send(Method::POST, "/v1/reload?plan=true", body)?;
    if reply.status == UNPROCESSABLE {
        return Err(Failure::Failed(format!(
            "the running program would reject this configuration:\n{}",
            reply.message()
        )));
    }
    reply.into_body()
}

fn to_text(body: &Value, now: OffsetDateTime) -> String {
    let generation = JsonView(body).number("generation");
    let mut out = match JsonView(body).time("in_force_since") {
        // The file watcher has already applied the change, or nothing has changed.
        Some(since) => format!(
            "already in force since {} ({}): no file has changed since then; generation {generation} is in force\n",
            timestamp::seconds(since),
            ago(since, now)
        ),
        None => format!("applied: generation {generation} is in force\n"),
    };
    let counts = ["generation", "in_force_since", "differences", "differences_count", "weakened_count"];
    for (key, value) in body.as_object().into_iter().flatten().filter(|(key, _)| !counts.contains(&key.as_str())) {
        let shown = match value {
            Value::Number(count) if count.as_u64() != Some(0) => count.to_string(),
            Value::Array(list) if !list.is_empty() => match JsonView(body).texts(key) {
                names if names.is_empty() => list.len().to_string(),
                names => names.join(", "),
            },
            _ => continue,
        };
        let _ = writeln!(out, "  {}: {shown}", key.replace('_', " "));
    }
    for difference in JsonView(body).list("differences").take(MAX_SHOWN) {
        let _ = writeln!(out, "  {}", difference::setting(difference));
    }
    let count = usize::try_from(JsonView(body).number("differences_count")).unwrap_or(usize::MAX);
    if count > MAX_SHOWN {
        let _ = writeln!(out, "  and {} more; --json lists up to 1000", count - MAX_SHOWN);
    }
    out
}

const UNPROCESSABLE: u16 = 422;

/// Setting changes shown as text.
const MAX_SHOWN: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applied_reload_lists_changes_and_omits_zero_counts() {
        let body = json!({
            "result": "applied", "generation": 4, "sources_added": 3, "sources_removed": 0, "listeners_added": ["db", "cache"],
            "listeners_removed": [], "sessions_ended": 2,
            "differences": [{ "listener": "db", "key": "tls", "old": "on", "new": "off", "weakens": true }],
            "differences_count": 1, "weakened_count": 1,
        });
        let expected = "applied: generation 4 is in force\n  listeners added: db, cache\n  sessions ended: 2\n  sources added: 3\n  \
                        ! setting      db  tls: on -> off (weakens protection)\n";
        assert_eq!(to_text(&body, OffsetDateTime::UNIX_EPOCH), expected);
    }

    #[test]
    fn reload_without_changes_shows_since_when_the_files_are_in_force() {
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(5);
        let body = json!({ "result": "applied", "generation": 4, "in_force_since": "1970-01-01T00:00:03Z" });
        let expected = "already in force since 1970-01-01T00:00:03Z (2 s ago): no file has changed since then; \
                        generation 4 is in force\n";
        assert_eq!(to_text(&body, now), expected);
    }
}
