//! The table of listeners in `portcullis status`.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::client::certificates::expiry;
use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::output::table::Table;

/// `denials` is the answer of `GET /v1/denials`, or `None` if the program has none.
pub(super) fn listeners(status: JsonView<'_>, denials: Option<&Value>, now: OffsetDateTime) -> String {
    let heads =
        ["LISTENER", "PROTOCOL", "TLS", "UPSTREAM TLS", "SOURCES", "SESSIONS", "DENIED", "CERT EXPIRES", "ADDRESSES"];
    let mut table = Table::new(heads);
    let denied = denials.map(counts);
    for listener in status.list("listeners") {
        let name = listener.text_or_dash("name");
        let denied = denied.as_ref().map(|denied| denied.get(&name).copied().unwrap_or_default());
        let expires = listener.object("next_certificate_expiry").and_then(|next| next.time("not_after"));
        table.row([
            name,
            listener.text_or_dash("protocol"),
            tls(listener),
            on_or_off(listener.flag("upstream_tls")),
            sources(listener),
            sessions(listener),
            denied.map_or(DASH.to_owned(), |denied| denied.to_string()),
            expires.map_or(DASH.to_owned(), |end| expiry(end, now)),
            listener.texts("addresses").join(" "),
        ]);
    }
    let mut out = table.render("");
    if denied.is_some_and(|denied| !denied.is_empty()) {
        let _ = writeln!(out, "DENIED counts the last {DENIED_SINCE}; portcullis denials lists them");
    }
    for removed in status.list("removed_listeners") {
        let (name, sessions) = (removed.text_or_dash("name"), sessions(removed));
        let _ = writeln!(out, "sessions of the removed listener {name}: {sessions}");
    }
    out
}

/// `off`, `on`, or `on, cert required`.
fn tls(listener: JsonView<'_>) -> String {
    let client_auth = listener.text("client_auth").filter(|client_auth| client_auth != "none");
    match (listener.flag("tls"), client_auth) {
        (Some(true), Some(client_auth)) => format!("on, cert {client_auth}"),
        (on, _) => on_or_off(on),
    }
}

fn on_or_off(on: Option<bool>) -> String {
    on.map_or(DASH, |on| if on { "on" } else { "off" }).to_owned()
}

fn sources(listener: JsonView<'_>) -> String {
    let sources = listener.number("trusted_sources");
    match listener.text("enforcement").as_deref() {
        Some("observe") => format!("{sources}, NOT ENFORCED"),
        _ => sources.to_string(),
    }
}

/// `12`, or `12, 1 closing`.
fn sessions(listener: JsonView<'_>) -> String {
    let (sessions, closing) = (listener.number("sessions"), listener.number("sessions_closing"));
    if closing == 0 { sessions.to_string() } else { format!("{sessions}, {closing} closing") }
}

/// The number of denials per listener.
fn counts(denials: &Value) -> HashMap<String, u64> {
    let mut counts: HashMap<_, u64> = HashMap::new();
    for denial in JsonView(denials).list("denials") {
        let count = counts.entry(denial.text_or_dash("listener")).or_default();
        *count = count.saturating_add(denial.number("count"));
    }
    counts
}

/// For how long denials are recent.
pub(super) const DENIED_SINCE: &str = "10m";

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::*;

    #[test]
    fn listeners_show_tls_sources_sessions_denials_and_expiry() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::days(10);
        let status = json!({ "listeners": [
            {
                "name": "cache", "protocol": "redis", "addresses": ["0.0.0.0:6380", "[::1]:6380"], "tls": true,
                "upstream_tls": false, "client_auth": "required", "enforcement": "enforce", "trusted_sources": 2,
                "sessions": 12, "next_certificate_expiry": { "role": "server", "not_after": "1970-04-01T00:00:00Z" },
            },
            {
                "name": "db", "protocol": "postgres", "addresses": ["0.0.0.0:6432"], "tls": true, "upstream_tls": true,
                "client_auth": "none", "enforcement": "observe", "trusted_sources": 0, "sessions": 2, "sessions_closing": 1,
                "next_certificate_expiry": { "role": "client_ca", "not_after": "1970-01-02T00:00:00Z" },
            },
            { "name": "side", "protocol": "tcp", "addresses": ["unix:/run/s"], "tls": false, "next_certificate_expiry": null },
        ] });
        let denial = |count: u64| json!({ "listener": "cache", "count": count });
        let denials = json!({ "denials": [denial(30), denial(1)] });
        let expected = "\
LISTENER  PROTOCOL  TLS                UPSTREAM TLS  SOURCES          SESSIONS      DENIED  CERT EXPIRES         ADDRESSES
cache     redis     on, cert required  off           2                12            31      1970-04-01 (80 d)    0.0.0.0:6380 [::1]:6380
db        postgres  on                 on            0, NOT ENFORCED  2, 1 closing  0       1970-01-02, EXPIRED  0.0.0.0:6432
side      tcp       off                -             0                0             0       -                    unix:/run/s
DENIED counts the last 10m; portcullis denials lists them
";
        assert_eq!(listeners(JsonView(&status), Some(&denials), now), expected);
        assert!(!listeners(JsonView(&status), None, now).contains("DENIED counts"));
    }

    #[test]
    fn removed_listeners_are_counted_separately() {
        let status = json!({ "removed_listeners": [{ "name": "old", "sessions": 3, "sessions_closing": 0 }] });
        let text = listeners(JsonView(&status), None, OffsetDateTime::UNIX_EPOCH);
        assert!(text.ends_with("\nsessions of the removed listener old: 3\n"), "{text}");
    }
}
