//! `portcullis sources list`.

use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::client::AdminClient;
use crate::cli::client::http::Call;
use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::client::sources::Place;
use crate::cli::output::moment::{NEAR, ago, ahead, minute};
use crate::cli::output::table::Table;
use crate::cli::{Failure, print, print_json};

pub(crate) fn list(client: &AdminClient, place: &Place) -> Result<(), Failure> {
    let body = client.call(Call::get(&place.target()))?.into_listener_body()?;
    if place.json { print_json(&body) } else { print(&to_text(&body, OffsetDateTime::now_utc())) }
}

fn to_text(body: &Value, now: OffsetDateTime) -> String {
    let heads = ["UUID", "TYPE", "VALUE", "ORIGIN", "STATE", "EXPIRES", "SESSIONS", "LAST USED", "DESCRIPTION"];
    let mut table = Table::new(heads);
    let mut count = 0_usize;
    for rule in JsonView(body).list("rules") {
        count += 1;
        table.row([
            rule.text_or_dash("uuid"),
            rule.text_or_dash("type"),
            rule.text_or_dash("value"),
            rule.text_or_dash("origin"),
            rule.text_or_dash("state"),
            expires(rule, now),
            rule.number("sessions").to_string(),
            rule.time("last_used").map_or(DASH.to_owned(), |used| ago(used, now)),
            description(rule),
        ]);
    }
    if count == 0 { "no rules: nobody is trusted\n".to_owned() } else { table.render("") }
}

fn expires(rule: JsonView<'_>, now: OffsetDateTime) -> String {
    match rule.time("expires_at") {
        None => "never".to_owned(),
        Some(end) if end <= now => "EXPIRED".to_owned(),
        Some(end) if end - now < NEAR => ahead(end, now),
        Some(end) => minute(end),
    }
}

/// The description, and why a host is not resolved.
fn description(rule: JsonView<'_>) -> String {
    match (rule.text("description"), rule.text("detail")) {
        (Some(description), Some(detail)) => format!("{description} ({detail})"),
        (Some(text), None) | (None, Some(text)) => text,
        (None, None) => DASH.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::*;

    #[test]
    fn rules_are_listed_with_their_use() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let body = json!({ "rules": [
            {
                "uuid": "3f2a9c41-0000-4000-8000-000000000001", "type": "ip_addr", "value": "203.0.113.7", "origin": "file",
                "state": "resolved", "expires_at": "1970-01-01T07:00:00Z", "sessions": 2,
                "last_used": "1970-01-01T04:58:00Z", "description": "office\u{1b}",
            },
            {
                "uuid": "3f2a9c41-0000-4000-8000-000000000002", "type": "dns", "value": "app", "origin": "config",
                "state": "unresolved", "expires_at": null, "sessions": 0, "last_used": null, "description": null,
                "detail": "no answer",
            },
        ] });
        let text = to_text(&body, now);
        let words = |line: &str| {
            line.split("  ").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let lines: Vec<_> = text.lines().map(words).collect();
        assert_eq!(
            lines[1],
            [
                "3f2a9c41-0000-4000-8000-000000000001",
                "ip_addr",
                "203.0.113.7",
                "file",
                "resolved",
                "in 2 h",
                "2",
                "2 min ago",
                "office\\u{1b}"
            ]
        );
        assert_eq!(lines[2][1..], ["dns", "app", "config", "unresolved", "never", "0", "-", "no answer"]);
        assert_eq!(to_text(&json!({ "rules": [] }), now), "no rules: nobody is trusted\n");
    }
}
