//! `portcullis status`: how the running program is.

use std::fmt::Write as _;

use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::client::Control;
use crate::cli::client::reading::{DASH, Reading};
use crate::cli::client::rotation;
use crate::cli::output::moment::{ago, ahead, since};
use crate::cli::output::table::Table;
use crate::cli::{Failure, Running, print, print_json};
use crate::timestamp;

pub(crate) fn status(running: &Running, with_rotation: bool, as_json: bool) -> Result<(), Failure> {
    let control = Control::find(running)?;
    let now = OffsetDateTime::now_utc();
    let (answer, words): (Value, fn(&Value, OffsetDateTime) -> String) = match with_rotation {
        false => (control.get("/v1/status")?, in_words),
        true => (control.get("/v1/rotation")?, rotation::in_words),
    };
    if as_json { print_json(&answer) } else { print(&words(&answer, now)) }
}

fn in_words(answer: &Value, now: OffsetDateTime) -> String {
    let status = Reading(answer);
    let mut out = String::new();
    let _ = writeln!(out, "Portcullis {}, process {}", status.text_or_dash("version"), status.number("pid"));
    let mut line = |key: &str, value: &str| writeln!(out, "  {key:<14} {value}");
    let at = |at: OffsetDateTime, words: &str| format!("{} ({words})", timestamp::seconds(at));
    if let Some(started) = status.time("started_at") {
        let _ = line("running since", &at(started, &since(started, now)));
    }
    let _ = line("configuration", &status.text_or_dash("config"));
    let loaded = status.time("loaded_at").map(|loaded| format!(", in force since {}", at(loaded, &since(loaded, now))));
    let _ = line("generation", &format!("{}{}", status.number("generation"), loaded.unwrap_or_default()));
    if let Some(connections) = descriptors(status, now) {
        let _ = line("connections", &connections);
    }
    if let Some(draining) = status.object("draining") {
        let time = |key: &str| draining.time(key).map_or(DASH.to_owned(), timestamp::seconds);
        let _ = line(
            "state",
            &format!("DRAINING since {}; the sessions left are ended at {}", time("since"), time("until")),
        );
    }
    let reload = status.object("last_reload");
    let _ = line("last reload", &reload.map_or("none yet".to_owned(), |reload| last_reload(reload, now)));
    for error in reload.iter().flat_map(|reload| reload.lines("error")) {
        let _ = writeln!(out, "    {error}");
    }
    let (upstreams, names) = (upstreams(status, now), names(status, now));
    let _ = write!(out, "{}\n{}{upstreams}{names}{}", faults(status, now), listeners(status), shields(status, now));
    out
}

/// How many connections the limit of open files leaves room for; nothing of a program that does not say.
fn descriptors(status: Reading<'_>, now: OffsetDateTime) -> Option<String> {
    let descriptors = status.object("descriptors")?;
    let [connections, max, limit] = ["connections", "max_connections", "limit"].map(|key| descriptors.number(key));
    let paused = descriptors.time("paused_since");
    let paused = paused.map(|at| format!("; ACCEPTING PAUSED for {}", since(at, now))).unwrap_or_default();
    Some(format!("{connections} of at most {max} (limit of open files: {limit}){paused}"))
}

/// Internal faults, which each need somebody to report them; nothing where there were none.
fn faults(status: Reading<'_>, now: OffsetDateTime) -> String {
    let mut table = Table::new(["INTERNAL FAULT IN", "LAST", "COUNT", "CODE", "MESSAGE"]);
    let mut some = false;
    for fault in status.list("faults") {
        some = true;
        table.row([
            fault.text_or_dash("part"),
            fault.time("at").map_or(DASH.to_owned(), |at| ago(at, now)),
            fault.number("count").to_string(),
            fault.text_or_dash("location"),
            fault.text_or_dash("message"),
        ]);
    }
    if some { format!("\n{}", table.render("")) } else { String::new() }
}

fn last_reload(reload: Reading<'_>, now: OffsetDateTime) -> String {
    let when = reload.time("at").map(|at| format!(", {}", ago(at, now))).unwrap_or_default();
    match reload.text("result").as_deref() {
        Some("rejected") => format!("REJECTED{when}; the previous policy stays in force:"),
        result => format!("{}{when}", result.unwrap_or(DASH)),
    }
}

fn listeners(status: Reading<'_>) -> String {
    let heads = ["LISTENER", "PROTOCOL", "UPSTREAM", "CLIENT AUTH", "SOURCES", "SESSIONS", "ADDRESSES"];
    let mut table = Table::new(heads);
    for listener in status.list("listeners") {
        let observing = listener.text("enforcement").as_deref() == Some("observe");
        let sources = listener.number("trusted_sources");
        table.row([
            listener.text_or_dash("name"),
            listener.text_or_dash("protocol"),
            listener.text_or_dash("upstream"),
            listener.text_or_dash("client_auth"),
            format!("{sources}{}", if observing { ", NOT ENFORCED" } else { "" }),
            sessions(listener),
            listener.texts("addresses").join(" "),
        ]);
    }
    let mut words = table.render("");
    for removed in status.list("removed_listeners") {
        let (name, sessions) = (removed.text_or_dash("name"), sessions(removed));
        let _ = writeln!(words, "sessions of the removed listener {name}: {sessions}");
    }
    words
}

/// `12`, or `12, 1 closing`.
fn sessions(listener: Reading<'_>) -> String {
    let (sessions, closing) = (listener.number("sessions"), listener.number("sessions_closing"));
    if closing == 0 { sessions.to_string() } else { format!("{sessions}, {closing} closing") }
}

/// The upstreams: whether each answers, and what the last dial brought.
fn upstreams(status: Reading<'_>, now: OffsetDateTime) -> String {
    let mut table = Table::new(["LISTENER", "UPSTREAM", "AT", "LAST DIAL", "STATE"]);
    let mut some = false;
    for listener in status.list("listeners") {
        for upstream in listener.list("upstreams") {
            some = true;
            table.row([
                listener.text_or_dash("name"),
                upstream.text_or_dash("address"),
                upstream.text_or_dash("socket"),
                upstream
                    .object("last_dial")
                    .and_then(|dial| dial.time("at"))
                    .map_or(DASH.to_owned(), |at| ago(at, now)),
                state(upstream, now),
            ]);
        }
    }
    if some { format!("\n{}", table.render("")) } else { String::new() }
}

fn state(upstream: Reading<'_>, now: OffsetDateTime) -> String {
    if let Some(error) = upstream.text("error") {
        let long = upstream.time("since").map(|at| format!(" for {}", since(at, now))).unwrap_or_default();
        return format!("UNHEALTHY{long}: {error}");
    }
    let state = match (upstream.flag("healthy"), upstream.text("role").as_deref()) {
        (None, _) => "unknown, not dialled yet".to_owned(),
        (Some(_), Some(role)) => format!("healthy, {role}"),
        (Some(_), None) => "healthy".to_owned(),
    };
    let dial = upstream.object("last_dial");
    let shortage = dial.filter(|dial| dial.text("result").as_deref() == Some("local_shortage"));
    match shortage.and_then(|dial| dial.text("error")) {
        Some(error) if upstream.flag("healthy").is_none() => format!("unknown; last dial failed: {error}"),
        Some(error) => format!("{state}; last dial failed: {error}"),
        None => state,
    }
}

/// The host names among the sources; nothing where there are none.
fn names(status: Reading<'_>, now: OffsetDateTime) -> String {
    let mut table = Table::new(["LISTENER", "SOURCE", "RESOLVED", "NEXT LOOKUP", "ADDRESSES"]);
    let mut some = false;
    for listener in status.list("listeners") {
        for name in listener.list("dns_sources") {
            some = true;
            let resolved = name.time("resolved_at").map_or("never".to_owned(), |at| ago(at, now));
            let word = if name.time("resolved_at").is_some() { "STALE" } else { "NOT RESOLVED" };
            let stale = name.text("error").map(|error| format!("{word}, {error}: "));
            let addresses = name.texts("addresses");
            let addresses = if addresses.is_empty() { "none (this rule admits no client)".to_owned() } else { addresses.join(" ") };
            table.row([
                listener.text_or_dash("name"),
                name.text_or_dash("rule"),
                resolved,
                name.time("next_lookup_at").map_or(DASH.to_owned(), |at| ahead(at, now)),
                format!("{}{addresses}", stale.unwrap_or_default()),
            ]);
        }
    }
    if some { format!("\n{}", table.render("")) } else { String::new() }
}

/// Where the kernel turns strangers away, or might; nothing where it never does.
fn shields(status: Reading<'_>, now: OffsetDateTime) -> String {
    let mut table = Table::new(["LISTENER", "SHIELD", "DROPPED", "STATE"]);
    let mut some = false;
    for listener in status.list("listeners") {
        let Some(shield) = listener.object("shield") else { continue };
        let mode = shield.text_or_dash("mode");
        if mode == "off" {
            continue;
        }
        some = true;
        let state = match (shield.time("active_since"), shield.text("unavailable_reason")) {
            (Some(at), None) => format!("active for {}", since(at, now)),
            (Some(at), Some(why)) => format!("active for {}, not on all addresses: {why}", since(at, now)),
            (None, Some(why)) => format!("UNAVAILABLE: {why}"),
            (None, None) => "inactive".to_owned(),
        };
        let dropped = shield.0.get("dropped").and_then(Value::as_u64);
        let dropped = dropped.map_or_else(|| DASH.to_owned(), |dropped| dropped.to_string());
        table.row([listener.text_or_dash("name"), mode, dropped, state]);
    }
    if some { format!("\n{}", table.render("")) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::*;

    fn answer(last_reload: &Value) -> Value {
        json!({
            "version": "0.1.0", "pid": 42, "started_at": "1970-01-01T00:00:00Z", "generation": 3,
            "config": "/etc/portcullis/portcullis.toml", "loaded_at": "1970-01-01T03:00:00Z", "last_reload": last_reload,
            "listeners": [
                {
                    "name": "cache", "protocol": "redis", "addresses": ["0.0.0.0:6380", "[::1]:6380"],
                    "upstream": "127.0.0.1:6379", "client_auth": "required", "enforcement": "enforce",
                    "trusted_sources": 2, "sessions": 12,
                },
                {
                    "name": "db", "protocol": "postgres", "addresses": ["0.0.0.0:6432"], "upstream": "unix:/run/pg",
                    "client_auth": "none", "enforcement": "observe", "trusted_sources": 0, "sessions": 0,
                },
            ],
        })
    }

    #[test]
    fn what_is_served_and_what_became_of_the_last_reload_is_on_one_screen() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let applied = json!({ "result": "applied", "at": "1970-01-01T04:58:00Z", "error": null });
        let expected = "\
Portcullis 0.1.0, process 42
  running since  1970-01-01T00:00:00Z (5 h)
  configuration  /etc/portcullis/portcullis.toml
  generation     3, in force since 1970-01-01T03:00:00Z (2 h)
  last reload    applied, 2 min ago

LISTENER  PROTOCOL  UPSTREAM        CLIENT AUTH  SOURCES          SESSIONS  ADDRESSES
cache     redis     127.0.0.1:6379  required     2                12        0.0.0.0:6380 [::1]:6380
db        postgres  unix:/run/pg    none         0, NOT ENFORCED  0         0.0.0.0:6432
";
        assert_eq!(in_words(&answer(&applied), now), expected);
    }

    #[test]
    fn sessions_that_are_closing_and_those_of_removed_listeners_are_counted_apart() {
        let words = in_words(
            &json!({
                "listeners": [{ "name": "db", "sessions": 2, "sessions_closing": 1 }],
                "removed_listeners": [{ "name": "old", "sessions": 3, "sessions_closing": 0 }],
            }),
            OffsetDateTime::UNIX_EPOCH,
        );
        assert!(words.contains("  2, 1 closing"), "{words}");
        assert!(words.ends_with("\nsessions of the removed listener old: 3\n"), "{words}");
    }

    #[test]
    fn internal_faults_are_listed_with_their_place_and_count() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let fault = json!({
            "at": "1970-01-01T04:58:00Z", "part": "reload", "location": "src/timestamp.rs:7:17",
            "message": "local datetime out of valid range", "count": 3,
        });
        let words = in_words(&json!({ "faults": [fault] }), now);
        let expected = "
INTERNAL FAULT IN  LAST       COUNT  CODE                   MESSAGE
reload             2 min ago  3      src/timestamp.rs:7:17  local datetime out of valid range
";
        assert!(words.contains(expected), "{words}");
        assert!(!in_words(&json!({ "faults": [] }), now).contains("FAULT"));
    }

    #[test]
    fn host_names_are_told_with_their_addresses_and_how_old_those_are() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let good = json!({
            "rule": "dns:app.internal", "addresses": ["10.0.0.1", "2001:db8::1"], "resolved_at": "1970-01-01T04:59:50Z",
            "stale": false, "error": null, "next_lookup_at": "1970-01-01T05:00:05Z",
        });
        let stale = json!({
            "rule": "dns:jobs", "addresses": ["10.0.0.9"], "resolved_at": "1970-01-01T02:00:00Z", "stale": true,
            "error": "Name or service not known", "next_lookup_at": "1970-01-01T04:59:59Z",
        });
        let never =
            json!({ "rule": "dns:new", "addresses": [], "resolved_at": null, "stale": true, "error": "no answer" });
        let words = in_words(&json!({ "listeners": [{ "name": "db", "dns_sources": [good, stale, never] }] }), now);
        let expected = "
LISTENER  SOURCE            RESOLVED  NEXT LOOKUP  ADDRESSES
db        dns:app.internal  10 s ago  in 5 s       10.0.0.1 2001:db8::1
db        dns:jobs          3 h ago   now          STALE, Name or service not known: 10.0.0.9
db        dns:new           never     -            NOT RESOLVED, no answer: none (this rule admits no client)
";
        assert!(words.ends_with(expected), "{words}");
    }

    #[test]
    fn a_shield_is_told_where_there_may_be_one() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let words = in_words(
            &json!({ "listeners": [
                { "name": "a", "shield": { "mode": "on", "active_since": "1970-01-01T04:58:00Z", "dropped": 7 } },
                { "name": "b", "shield": { "mode": "auto", "active_since": null, "dropped": 0, "unavailable_reason": null } },
                { "name": "c", "shield": { "mode": "on", "dropped": null, "unavailable_reason": "too many" } },
                { "name": "d", "shield": { "mode": "off", "dropped": 0 } },
            ] }),
            now,
        );
        let expected = "
LISTENER  SHIELD  DROPPED  STATE
a         on      7        active for 2 min
b         auto    0        inactive
c         on      -        UNAVAILABLE: too many
";
        assert!(words.ends_with(expected), "{words}");
    }

    #[test]
    fn upstreams_are_listed_with_their_health_and_last_dial() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let dialled = |at: &str, result: &str, error: Value| json!({ "at": at, "result": result, "error": error });
        let connected = dialled("1970-01-01T04:59:57Z", "connected", Value::Null);
        let one =
            json!({ "address": "10.0.0.1:6379", "socket": "10.0.0.1:6379", "healthy": true, "last_dial": connected });
        let dead = json!({
            "address": "db:5432", "socket": "10.0.0.2:5432", "healthy": false, "since": "1970-01-01T04:58:00Z",
            "error": "Connection refused", "last_dial": dialled("1970-01-01T04:59:50Z", "failed", "refused".into()),
        });
        let standby = json!({ "address": "db:5432", "socket": "10.0.0.3:5432", "healthy": true, "role": "replica" });
        let primary = json!({ "address": "db2:5432", "socket": "10.0.0.4:5432", "healthy": true, "role": "primary" });
        let untried = json!({ "address": "unix:/run/db", "healthy": null });
        let shortage = dialled("1970-01-01T04:59:59Z", "local_shortage", "no file".into());
        let short = json!({ "address": "db3:1", "socket": "10.0.0.5:1", "healthy": true, "last_dial": shortage });
        let words = in_words(
            &json!({ "listeners": [
                { "name": "cache", "upstreams": [one] },
                { "name": "db", "upstreams": [dead, standby, primary, untried, short] },
            ] }),
            now,
        );
        let expected = "
LISTENER  UPSTREAM       AT             LAST DIAL  STATE
cache     10.0.0.1:6379  10.0.0.1:6379  3 s ago    healthy
db        db:5432        10.0.0.2:5432  10 s ago   UNHEALTHY for 2 min: Connection refused
db        db:5432        10.0.0.3:5432  -          healthy, replica
db        db2:5432       10.0.0.4:5432  -          healthy, primary
db        unix:/run/db   -              -          unknown, not dialled yet
db        db3:1          10.0.0.5:1     1 s ago    healthy; last dial failed: no file
";
        assert!(words.ends_with(expected), "{words}");
    }

    #[test]
    fn connections_are_shown_with_their_maximum_and_a_pause() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let descriptors = |paused: Value| {
            let standing = json!({ "limit": 64, "connections": 11, "max_connections": 11, "paused_since": paused });
            json!({ "descriptors": standing })
        };
        let words = in_words(&descriptors("1970-01-01T04:58:00Z".into()), now);
        let line = "\n  connections    11 of at most 11 (limit of open files: 64)";
        assert!(words.contains(&format!("{line}; ACCEPTING PAUSED for 2 min\n")), "{words}");
        assert!(in_words(&descriptors(Value::Null), now).contains(&format!("{line}\n")));
        assert!(!in_words(&json!({}), now).contains("connections"));
    }

    #[test]
    fn every_error_of_a_rejected_reload_is_told() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let rejected =
            json!({ "result": "rejected", "at": "1970-01-01T04:59:30Z", "error": "a.toml:1: one\na.toml:2: two" });
        let words = in_words(&answer(&rejected), now);
        let told =
            "REJECTED, 30 s ago; the previous policy stays in force:\n    a.toml:1: one\n    a.toml:2: two\n";
        assert!(words.contains(told), "{words}");
        assert!(in_words(&answer(&Value::Null), now).contains("last reload    none yet\n"));
        let mut draining = answer(&Value::Null);
        draining["draining"] = json!({ "since": "1970-01-01T04:59:30Z", "until": "1970-01-01T05:00:00Z" });
        let told =
            "state          DRAINING since 1970-01-01T04:59:30Z; the sessions left are ended at 1970-01-01T05:00:00Z";
        assert!(in_words(&draining, now).contains(told), "{}", in_words(&draining, now));
    }

    #[test]
    fn an_answer_with_nothing_in_it_is_no_disaster() {
        assert!(in_words(&json!({}), OffsetDateTime::UNIX_EPOCH).contains("process 0"));
    }
}
