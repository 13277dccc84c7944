//! `portcullis fleet`: the members of the fleet and its store.

use std::fmt::Write as _;

use clap::Subcommand;
use hyper::Method;
use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::client::AdminClient;
use crate::cli::client::args::Running;
use crate::cli::client::http::encoded;
use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::output::moment::{ago, since};
use crate::cli::output::table::Table;
use crate::cli::{Failure, print, print_json};

#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// Show the members of the fleet, what each has in force, and the store
    Status {
        #[command(flatten)]
        running: Running,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Accept the store as it is, for all members, after it was restored from a backup or replaced
    #[command(long_about = ACCEPT)]
    Accept {
        #[command(flatten)]
        running: Running,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Remove a member that is gone for good, so that nobody waits for it
    Forget {
        #[command(flatten)]
        running: Running,
        /// Name of the member, which must be unknown
        #[arg(value_name = "MEMBER")]
        member: String,
    },
}

pub(crate) fn run(command: &FleetCommand) -> Result<(), Failure> {
    match command {
        FleetCommand::Status { running, json } => {
            let body = AdminClient::find(running)?.get("/v1/fleet")?;
            if *json { print_json(&body) } else { print(&to_text(&body, OffsetDateTime::now_utc())) }
        }
        FleetCommand::Accept { running, json } => {
            let body = AdminClient::find(running)?.send(Method::POST, "/v1/fleet/accept", None)?.into_body()?;
            if *json { print_json(&body) } else { print(&accepted(&body)) }
        }
        FleetCommand::Forget { running, member } => {
            let target = format!("/v1/fleet/members/{}", encoded(member));
            AdminClient::find(running)?.send(Method::DELETE, &target, None)?.into_body()?;
            print(&format!("{member} is no longer a member\n"))
        }
    }
}

fn accepted(body: &Value) -> String {
    let view = JsonView(body);
    let mut out = format!("the store is accepted (acceptance {})\n", view.number("epoch"));
    for listener in view.texts("rules_written") {
        let _ = writeln!(out, "{listener}: the last good rules were written to the store");
    }
    if view.flag("in_use") == Some(false) {
        out.push_str("it is not in use here yet; see portcullis fleet status\n");
    }
    out
}

fn to_text(body: &Value, now: OffsetDateTime) -> String {
    let fleet = JsonView(body);
    let mut out = String::new();
    let _ = writeln!(out, "fleet {}, this member is {}", fleet.text_or_dash("name"), fleet.text_or_dash("member"));
    if fleet.flag("duplicate") == Some(true) {
        let _ = writeln!(out, "  ANOTHER PROCESS HAS THE NAME OF THIS MEMBER; give each member its own name");
    }
    if let Some(store) = fleet.object("store") {
        let state = store.text_or_dash("state");
        let state = if state == "up" { state } else { state.to_uppercase() };
        let age = store.time("since").map(|at| format!(" for {}", since(at, now))).unwrap_or_default();
        let revision = store.number("revision");
        let _ = writeln!(out, "  store: {}, {state}{age}, revision {revision}", store.text_or_dash("engine"));
        if let Some(detail) = store.text("detail") {
            let _ = writeln!(out, "    {detail}");
        }
    }
    if let Some(error) = fleet.object("tickets").and_then(|tickets| tickets.text("error")) {
        let _ = writeln!(out, "  ticket keys: NOT SHARED: {error}");
    }
    let rules = body.get("rules").and_then(Value::as_object);
    for (listener, rules) in rules.into_iter().flatten() {
        let rules = JsonView(rules);
        let detail = rules.text("detail").map(|detail| format!(": {detail}")).unwrap_or_default();
        let (state, sequence) = (rules.text_or_dash("state"), rules.number("sequence"));
        let _ = writeln!(out, "  rules of {listener}: {state}, number {sequence}{detail}");
    }
    let mut table = Table::new(["MEMBER", "STATE", "LAST SEEN", "POLICY", "SESSIONS"]);
    for member in fleet.list("members") {
        let hash: String = member.text("policy_hash").unwrap_or_default().chars().take(SHORT_HASH).collect();
        let sessions = member.0.get("sessions").and_then(Value::as_u64);
        table.row([
            member.text_or_dash("member"),
            member.text_or_dash("state"),
            member.time("last_seen").map_or(DASH.to_owned(), |at| ago(at, now)),
            if hash.is_empty() { DASH.to_owned() } else { hash },
            sessions.map_or_else(|| "unknown".to_owned(), |sessions| sessions.to_string()),
        ]);
    }
    let _ = write!(out, "\n{}", table.render(""));
    out
}

const ACCEPT: &str = "\
Accept the store as it is, for all members. After a restore from a backup, the rules of the backup come into force everywhere. \
Rules that the store has lost altogether are written to it from the last good copy of this member; they are never replaced by an \
empty list.";

/// Digits of a policy hash, enough to see that two members differ.
const SHORT_HASH: usize = 12;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_and_store_are_shown() {
        let now = OffsetDateTime::UNIX_EPOCH + time::Duration::minutes(2);
        let body = json!({
            "name": "prod", "member": "a", "duplicate": false,
            "store": { "engine": "etcd", "state": "refused", "since": "1970-01-01T00:01:00Z", "revision": 7,
                       "detail": "the store is another one than before" },
            "rules": { "cache": { "state": "in_force", "sequence": 3 } },
            "members": [
                { "member": "a", "state": "live", "last_seen": "1970-01-01T00:02:00Z", "policy_hash": "0123456789abcdef", "sessions": 4 },
                { "member": "b", "state": "unknown", "last_seen": "1970-01-01T00:01:00Z", "policy_hash": null, "sessions": null },
            ],
        });
        let text = to_text(&body, now);
        for part in
            ["fleet prod, this member is a\n", "REFUSED for 1 min", "another one", "rules of cache: in_force, number 3"]
        {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(text.contains("0123456789ab ") && text.contains("unknown"), "{text}");
    }
}
