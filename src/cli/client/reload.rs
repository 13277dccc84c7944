//! `portcullis reload`: has the running program reload, and tells what became of it.

use std::fmt::Write as _;
use std::path::Path;

use hyper::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::cli::client::Control;
use crate::cli::client::reading::Reading;
use crate::cli::output::moment::ago;
use crate::cli::{Failure, Running, difference, print, print_json};
use crate::timestamp;

pub(crate) fn reload(running: &Running, as_json: bool) -> Result<(), Failure> {
    let reply = Control::find(running)?.ask(Method::POST, "/v1/reload", None)?;
    if reply.status == UNPROCESSABLE {
        let words = "the reload was rejected; the previous policy stays in force";
        return Err(Failure::Failed(format!("{words}:\n{}", reply.message())));
    }
    let answer = reply.done()?;
    if as_json { print_json(&answer) } else { print(&in_words(&answer, OffsetDateTime::now_utc())) }
}

/// What a reload of the program's own configuration would change.
pub(crate) fn plan(running: &Running, as_json: bool) -> Result<(), Failure> {
    let plan = ask_for_plan(&Control::find(running)?, None)?;
    if as_json { print_json(&plan) } else { print(&difference::in_words(&plan, OffsetDateTime::now_utc())) }
}

/// What the running program would change if `file` were its configuration.
pub(crate) fn plan_of(control: &Control, file: &Path) -> Result<Value, Failure> {
    // The program has a working directory of its own.
    let absolute = std::path::absolute(file).map_err(|error| Failure::file(file, error))?;
    let path = absolute.to_str().ok_or_else(|| Failure::file(file, "has a name that is not UTF-8"))?;
    ask_for_plan(control, Some(&json!({ "file": path })))
}

fn ask_for_plan(control: &Control, body: Option<&Value>) -> Result<Value, Failure> {
    let reply = control.ask(Method::POST, "/v1/reload?plan=true", body)?;
    if reply.status == UNPROCESSABLE {
        return Err(Failure::Failed(format!("the running program would reject this:\n{}", reply.message())));
    }
    reply.done()
}

fn in_words(answer: &Value, now: OffsetDateTime) -> String {
    let generation = Reading(answer).number("generation");
    let mut out = match Reading(answer).time("in_force_since") {
        // The watcher was faster, or nothing has changed.
        Some(since) => format!(
            "already in force since {} ({}): the files have not changed since then; generation {generation} is in force\n",
            timestamp::seconds(since),
            ago(since, now)
        ),
        None => format!("applied: generation {generation} is in force\n"),
    };
    let counts = ["generation", "in_force_since", "differences", "differences_count", "weakened_count"];
    for (key, value) in answer.as_object().into_iter().flatten().filter(|(key, _)| !counts.contains(&key.as_str())) {
        let told = match value {
            Value::Number(count) if count.as_u64() != Some(0) => count.to_string(),
            Value::Array(list) if !list.is_empty() => match Reading(answer).texts(key) {
                names if names.is_empty() => list.len().to_string(),
                names => names.join(", "),
            },
            _ => continue,
        };
        let _ = writeln!(out, "  {}: {told}", key.replace('_', " "));
    }
    for difference in Reading(answer).list("differences").take(MAX_TOLD) {
        let _ = writeln!(out, "  {}", difference::setting(difference));
    }
    let count = usize::try_from(Reading(answer).number("differences_count")).unwrap_or(usize::MAX);
    if count > MAX_TOLD {
        let _ = writeln!(out, "  and {} more; --json lists up to a thousand", count - MAX_TOLD);
    }
    out
}

const UNPROCESSABLE: u16 = 422;

/// More than a reader reads.
const MAX_TOLD: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_told_and_what_did_not_is_left_out() {
        let answer = json!({
            "result": "applied", "generation": 4, "sources_added": 3, "sources_removed": 0, "listeners_added": ["db", "cache"],
            "listeners_removed": [], "sessions_ended": 2,
            "differences": [{ "listener": "db", "key": "tls", "old": "on", "new": "off", "weakens": true }],
            "differences_count": 1, "weakened_count": 1,
        });
        let expected = "applied: generation 4 is in force\n  listeners added: db, cache\n  sessions ended: 2\n  sources added: 3\n  \
                        ! setting      db  tls: on -> off (weakens protection)\n";
        assert_eq!(in_words(&answer, OffsetDateTime::UNIX_EPOCH), expected);
    }

    #[test]
    fn reload_that_the_watcher_has_done_before_says_since_when() {
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(5);
        let answer = json!({ "result": "applied", "generation": 4, "in_force_since": "1970-01-01T00:00:03Z" });
        let expected = "already in force since 1970-01-01T00:00:03Z (2 s ago): the files have not changed since then; \
                        generation 4 is in force\n";
        assert_eq!(in_words(&answer, now), expected);
    }
}
