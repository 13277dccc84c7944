//! `portcullis denials`: who was denied, and the command that would admit each source.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use clap::Args;
use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::client::AdminClient;
use crate::cli::client::args::Running;
use crate::cli::client::http::Call;
use crate::cli::client::http::with_query;
use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::output::moment::ago;
use crate::cli::output::table::Table;
use crate::cli::{Failure, parse_duration_text, print, print_json};

#[derive(Debug, Args)]
pub(crate) struct DenialsArgs {
    #[command(flatten)]
    running: Running,
    /// Only the denials of this listener
    #[arg(value_name = "LISTENER")]
    listener: Option<String>,
    /// Only the denials of this last time, such as 10m; default: all that are known
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_text)]
    since: Option<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn denials(args: &DenialsArgs) -> Result<(), Failure> {
    let client = AdminClient::find(&args.running)?;
    let parameters = [("listener", args.listener.as_deref()), ("since", args.since.as_deref())];
    let body = client.call(Call::get(&with_query("/v1/denials", &parameters)))?.into_listener_body()?;
    if args.json { print_json(&body) } else { print(&to_text(&body, OffsetDateTime::now_utc())) }
}

fn to_text(body: &Value, now: OffsetDateTime) -> String {
    let mut table = Table::new(["LISTENER", "NETWORK", "REASON", "COUNT", "LAST"]);
    let denials = JsonView(body).list("denials");
    if denials.clone().next().is_none() {
        return "no denials\n".to_owned();
    }
    for denial in denials.clone() {
        table.row([
            denial.text_or_dash("listener"),
            denial.text_or_dash("network"),
            denial.text_or_dash("reason"),
            denial.number("count").to_string(),
            denial.time("last").map_or(DASH.to_owned(), |last| ago(last, now)),
        ]);
    }
    let mut out = table.render("");
    let commands: BTreeSet<_> = denials.filter_map(|denial| denial.text("command")).collect();
    if !commands.is_empty() {
        let _ = writeln!(out, "\nto trust one of these sources:");
    }
    for command in commands {
        let _ = writeln!(out, "  {command}");
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::*;

    #[test]
    fn denials_are_followed_by_the_commands_that_admit_their_sources() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let denial = |network: &str, reason: &str, command: Value| {
            json!({
                "listener": "cache", "network": network, "reason": reason, "count": 12, "last": "1970-01-01T04:58:00Z",
                "command": command,
            })
        };
        let body = json!({ "denials": [
            denial("203.0.113.7", "untrusted_source", "portcullis sources append cache ip_addr:203.0.113.7".into()),
            denial("2001:db8::/64", "rate_limited", Value::Null),
        ] });
        let expected = "\
LISTENER  NETWORK        REASON            COUNT  LAST
cache     203.0.113.7    untrusted_source  12     2 min ago
cache     2001:db8::/64  rate_limited      12     2 min ago

to trust one of these sources:
  portcullis sources append cache ip_addr:203.0.113.7
";
        assert_eq!(to_text(&body, now), expected);
        assert_eq!(to_text(&json!({ "denials": [] }), now), "no denials\n");
    }
}
