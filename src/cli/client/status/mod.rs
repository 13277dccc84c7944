//! `portcullis status`: the state of the running program.

mod listeners;

use std::fmt::Write as _;

use hyper::Method;
use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::client::AdminClient;
use crate::cli::client::args::Running;
use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::client::rotation;
use crate::cli::client::status::listeners::{DENIED_SINCE, listeners};
use crate::cli::output::moment::{ago, ahead, since};
use crate::cli::output::table::Table;
use crate::cli::{Failure, print, print_json};
use crate::timestamp;

/// What `status` shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) rotation: bool,
    /// With `rotation`, of all members of the fleet.
    pub(crate) fleet: bool,
    pub(crate) json: bool,
}

pub(crate) fn status(running: &Running, shown: Shown) -> Result<(), Failure> {
    let Shown { rotation: with_rotation, fleet, json: as_json } = shown;
    let client = AdminClient::find(running)?;
    let now = OffsetDateTime::now_utc();
    let body = client.get(match (with_rotation, fleet) {
        (true, true) => "/v1/rotation?fleet=true",
        (true, false) => "/v1/rotation",
        (false, _) => "/v1/status",
    })?;
    if as_json {
        return print_json(&body);
    }
    if with_rotation {
        return print(&rotation::to_text(&body, now));
    }
    let denials = client.send(Method::GET, &format!("/v1/denials?since={DENIED_SINCE}"), None)?;
    // A program of another version may not have them.
    let denials = Some(&denials.body).filter(|_| denials.is_success());
    print(&to_text(&body, denials, now))
}

/// The state of the last reload comes first.
fn to_text(body: &Value, denials: Option<&Value>, now: OffsetDateTime) -> String {
    let status = JsonView(body);
    let mut out = String::new();
    let _ = writeln!(out, "Portcullis {}, process {}", status.text_or_dash("version"), status.number("pid"));
    let at = |at: OffsetDateTime, age: &str| format!("{} ({age})", timestamp::seconds(at));
    let reload = status.object("last_reload");
    line(&mut out, "last reload", &reload.map_or("none yet".to_owned(), |reload| last_reload(reload, now)));
    for error in reload.iter().flat_map(|reload| reload.lines("error")) {
        let _ = writeln!(out, "    {error}");
    }
    if let Some(draining) = status.object("draining") {
        let time = |key: &str| draining.time(key).map_or(DASH.to_owned(), timestamp::seconds);
        let (since, until) = (time("since"), time("until"));
        line(&mut out, "state", &format!("DRAINING since {since}; remaining sessions are closed at {until}"));
    }
    if let Some(started) = status.time("started_at") {
        line(&mut out, "running since", &at(started, &since(started, now)));
    }
    line(&mut out, "configuration", &status.text_or_dash("config"));
    let loaded = status.time("loaded_at").map(|loaded| format!(", in force since {}", at(loaded, &since(loaded, now))));
    line(&mut out, "generation", &format!("{}{}", status.number("generation"), loaded.unwrap_or_default()));
    if let Some(connections) = descriptors(status, now) {
        line(&mut out, "connections", &connections);
    }
    if let Some(agent) = status.object("agent") {
        line(&mut out, "agent", &self::agent(agent, now));
    }
    if let Some(fleet) = status.object("fleet") {
        line(&mut out, "fleet", &self::fleet(fleet, now));
    }
    let _ = write!(out, "{}{}\n{}", fleet_rules(status), faults(status, now), listeners(status, denials, now));
    let _ = write!(out, "{}{}{}", upstreams(status, now), source_groups(status), dns_sources(status, now));
    let _ = write!(out, "{}{}", cloud_sources(status, now), shields(status, now));
    out
}

fn line(out: &mut String, key: &str, value: &str) {
    let _ = writeln!(out, "  {key:<14} {value}");
}

/// Connections and their maximum by the limit of open files; `None` if the program does not report them.
fn descriptors(status: JsonView<'_>, now: OffsetDateTime) -> Option<String> {
    let descriptors = status.object("descriptors")?;
    let [connections, max, limit] = ["connections", "max_connections", "limit"].map(|key| descriptors.number(key));
    let paused = descriptors.time("paused_since");
    let paused = paused.map(|at| format!("; ACCEPTING PAUSED for {}", since(at, now))).unwrap_or_default();
    Some(format!("{connections} of at most {max} (limit of open files: {limit}){paused}"))
}

/// The process that resolves cloud sources and reaches the store of the fleet.
fn agent(agent: JsonView<'_>, now: OffsetDateTime) -> String {
    let age = agent.time("since").map(|at| format!(" for {}", since(at, now))).unwrap_or_default();
    let restarts = match agent.number("restarts") {
        0 => String::new(),
        1 => "; restarted once".to_owned(),
        count => format!("; restarted {count} times"),
    };
    let error = agent.text("last_error").map(|error| format!("; last error: {error}")).unwrap_or_default();
    match agent.text("state").as_deref() {
        Some("up") => format!("up{age}{restarts}{error}"),
        _ => format!(
            "DOWN{age}: cloud sources keep their last good addresses, and the rules of the fleet stay in force{restarts}{error}"
        ),
    }
}

/// The fleet and its store.
fn fleet(fleet: JsonView<'_>, now: OffsetDateTime) -> String {
    let age = fleet.time("since").map(|at| format!(" for {}", since(at, now))).unwrap_or_default();
    let state = fleet.text_or_dash("store");
    let detail = fleet.text("detail").map(|detail| format!(": {detail}")).unwrap_or_default();
    let store = match state.as_str() {
        "up" => format!("store up{age}"),
        _ => format!("store {}{age}; the last good rules stay in force{detail}", state.to_uppercase()),
    };
    let members = fleet.object("members");
    let count = |key: &str| members.map_or(0, |members| members.number(key));
    let members = match count("unknown") {
        0 => format!("{} members", count("live")),
        unknown => format!("{} members, {unknown} UNKNOWN", count("live").saturating_add(unknown)),
    };
    let duplicate = match fleet.flag("duplicate") {
        Some(true) => "; ANOTHER PROCESS HAS THE NAME OF THIS MEMBER",
        Some(false) | None => "",
    };
    format!("{}, {members}, {store}{duplicate}", fleet.text_or_dash("name"))
}

/// A line for each listener whose rules in the store are not in force; empty if there is none.
fn fleet_rules(status: JsonView<'_>) -> String {
    let mut out = String::new();
    for listener in status.list("listeners") {
        let Some(rules) = listener.object("fleet_rules") else { continue };
        let state = rules.text_or_dash("state");
        let what = match (state.as_str(), rules.flag("has_copy")) {
            ("in_force", _) => continue,
            (_, Some(false)) => {
                format!("{state}: no rules of the fleet are known here, so none of them admits a client")
            }
            _ => format!("{state}: the last good rules stay in force"),
        };
        let detail = rules.text("detail").map(|detail| format!(" ({detail})")).unwrap_or_default();
        line(&mut out, "fleet rules", &format!("{} {what}{detail}", listener.text_or_dash("name")));
    }
    out
}

/// Internal faults, which are defects of Portcullis to report; empty if there are none.
fn faults(status: JsonView<'_>, now: OffsetDateTime) -> String {
    let mut table = Table::new(["INTERNAL FAULT IN", "LAST", "COUNT", "CODE", "MESSAGE"]);
    let mut has_rows = false;
    for fault in status.list("faults") {
        has_rows = true;
        table.row([
            fault.text_or_dash("part"),
            fault.time("at").map_or(DASH.to_owned(), |at| ago(at, now)),
            fault.number("count").to_string(),
            fault.text_or_dash("location"),
            fault.text_or_dash("message"),
        ]);
    }
    if has_rows { format!("\n{}", table.render("")) } else { String::new() }
}

fn last_reload(reload: JsonView<'_>, now: OffsetDateTime) -> String {
    let when = reload.time("at").map(|at| format!(", {}", ago(at, now))).unwrap_or_default();
    match reload.text("result").as_deref() {
        Some("rejected") => format!("REJECTED{when}; the previous policy stays in force:"),
        result => format!("{}{when}", result.unwrap_or(DASH)),
    }
}

/// The source groups and the listeners that use them.
fn source_groups(status: JsonView<'_>) -> String {
    let mut table = Table::new(["SOURCE GROUP", "RULES", "LISTENERS"]);
    let mut has_rows = false;
    for group in status.list("source_groups") {
        has_rows = true;
        let listeners = Some(group.texts("listeners").join(", ")).filter(|names| !names.is_empty());
        table.row([
            group.text_or_dash("name"),
            group.number("rules").to_string(),
            listeners.unwrap_or_else(|| DASH.to_owned()),
        ]);
    }
    if has_rows { format!("\n{}", table.render("")) } else { String::new() }
}

/// The health and role of each upstream address, and its last dial.
fn upstreams(status: JsonView<'_>, now: OffsetDateTime) -> String {
    let mut table = Table::new(["LISTENER", "UPSTREAM", "AT", "LAST DIAL", "STATE"]);
    let mut has_rows = false;
    for listener in status.list("listeners") {
        for upstream in listener.list("upstreams") {
            has_rows = true;
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
    if has_rows { format!("\n{}", table.render("")) } else { String::new() }
}

fn state(upstream: JsonView<'_>, now: OffsetDateTime) -> String {
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

/// The sources of type `dns`; empty if there are none.
fn dns_sources(status: JsonView<'_>, now: OffsetDateTime) -> String {
    let mut table = Table::new(["LISTENER", "SOURCE", "RESOLVED", "NEXT LOOKUP", "ADDRESSES"]);
    let mut has_rows = false;
    for listener in status.list("listeners") {
        for source in listener.list("dns_sources") {
            has_rows = true;
            let resolved = source.time("resolved_at").map_or("never".to_owned(), |at| ago(at, now));
            let word = if source.time("resolved_at").is_some() { "STALE" } else { "NOT RESOLVED" };
            let stale = source.text("error").map(|error| format!("{word}, {error}: "));
            let addresses = source.texts("addresses");
            let addresses =
                if addresses.is_empty() { "none (this rule admits no client)".to_owned() } else { addresses.join(" ") };
            table.row([
                listener.text_or_dash("name"),
                source.text_or_dash("rule"),
                resolved,
                source.time("next_lookup_at").map_or(DASH.to_owned(), |at| ahead(at, now)),
                format!("{}{addresses}", stale.unwrap_or_default()),
            ]);
        }
    }
    if has_rows { format!("\n{}", table.render("")) } else { String::new() }
}

/// The cloud sources; empty if there are none.
fn cloud_sources(status: JsonView<'_>, now: OffsetDateTime) -> String {
    let mut table = Table::new(["LISTENER", "SOURCE", "STATE", "ANSWERED", "ADDRESSES", "DETAIL"]);
    let mut has_rows = false;
    for listener in status.list("listeners") {
        for source in listener.list("cloud_sources") {
            has_rows = true;
            let state = source.text_or_dash("state");
            table.row([
                listener.text_or_dash("name"),
                source.text_or_dash("rule"),
                if state == "resolved" { state } else { state.to_uppercase() },
                source.time("resolved_at").map_or("never".to_owned(), |at| ago(at, now)),
                source.number("addresses_count").to_string(),
                source.text_or_dash("detail"),
            ]);
        }
    }
    if has_rows { format!("\n{}", table.render("")) } else { String::new() }
}

/// The kernel source filters; empty if `shield` is off on every listener.
fn shields(status: JsonView<'_>, now: OffsetDateTime) -> String {
    let mut table = Table::new(["LISTENER", "SHIELD", "DROPPED", "STATE"]);
    let mut has_rows = false;
    for listener in status.list("listeners") {
        let Some(shield) = listener.object("shield") else { continue };
        let mode = shield.text_or_dash("mode");
        if mode == "off" {
            continue;
        }
        has_rows = true;
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
    if has_rows { format!("\n{}", table.render("")) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::*;

    fn body(last_reload: &Value) -> Value {
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
    fn status_begins_with_the_last_reload() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let applied = json!({ "result": "applied", "at": "1970-01-01T04:58:00Z", "error": null });
        let expected = "\
Portcullis 0.1.0, process 42
  last reload    applied, 2 min ago
  running since  1970-01-01T00:00:00Z (5 h)
  configuration  /etc/portcullis/portcullis.toml
  generation     3, in force since 1970-01-01T03:00:00Z (2 h)

LISTENER  PROTOCOL  ";
        let text = to_text(&body(&applied), None, now);
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn internal_faults_are_listed_with_location_and_count() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let fault = json!({
            "at": "1970-01-01T04:58:00Z", "part": "reload", "location": "src/timestamp.rs:7:17",
            "message": "local datetime out of valid range", "count": 3,
        });
        let text = to_text(&json!({ "faults": [fault] }), None, now);
        let expected = "
INTERNAL FAULT IN  LAST       COUNT  CODE                   MESSAGE
reload             2 min ago  3      src/timestamp.rs:7:17  local datetime out of valid range
";
        assert!(text.contains(expected), "{text}");
        assert!(!to_text(&json!({ "faults": [] }), None, now).contains("FAULT"));
    }

    #[test]
    fn cloud_sources_show_their_state() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let good = json!({
            "rule": "tag:web", "state": "resolved", "detail": null, "addresses_count": 3,
            "resolved_at": "1970-01-01T04:59:50Z",
        });
        let never = json!({
            "rule": "app:x", "state": "unresolved", "detail": "no answer\u{1b} yet", "addresses_count": 0,
            "resolved_at": null,
        });
        let status = json!({ "listeners": [{ "name": "db", "cloud_sources": [good, never] }] });
        let text = cloud_sources(JsonView(&status), now);
        assert!(text.contains("db        tag:web  resolved    10 s ago  3          -"), "{text}");
        assert!(text.contains("db        app:x    UNRESOLVED  never     0          no answer\\u{1b} yet"), "{text}");
    }

    #[test]
    fn dns_sources_show_addresses_and_their_age() {
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
        let text = to_text(&json!({ "listeners": [{ "name": "db", "dns_sources": [good, stale, never] }] }), None, now);
        let expected = "
LISTENER  SOURCE            RESOLVED  NEXT LOOKUP  ADDRESSES
db        dns:app.internal  10 s ago  in 5 s       10.0.0.1 2001:db8::1
db        dns:jobs          3 h ago   now          STALE, Name or service not known: 10.0.0.9
db        dns:new           never     -            NOT RESOLVED, no answer: none (this rule admits no client)
";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn shields_are_listed_unless_off() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let text = to_text(
            &json!({ "listeners": [
                { "name": "a", "shield": { "mode": "on", "active_since": "1970-01-01T04:58:00Z", "dropped": 7 } },
                { "name": "b", "shield": { "mode": "auto", "active_since": null, "dropped": 0, "unavailable_reason": null } },
                { "name": "c", "shield": { "mode": "on", "dropped": null, "unavailable_reason": "too many" } },
                { "name": "d", "shield": { "mode": "off", "dropped": 0 } },
            ] }),
            None,
            now,
        );
        let expected = "
LISTENER  SHIELD  DROPPED  STATE
a         on      7        active for 2 min
b         auto    0        inactive
c         on      -        UNAVAILABLE: too many
";
        assert!(text.ends_with(expected), "{text}");
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
        let text = to_text(
            &json!({ "listeners": [
                { "name": "cache", "upstreams": [one] },
                { "name": "db", "upstreams": [dead, standby, primary, untried, short] },
            ] }),
            None,
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
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn connections_are_shown_with_their_maximum_and_a_pause() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let descriptors = |paused: Value| {
            let status = json!({ "limit": 64, "connections": 11, "max_connections": 11, "paused_since": paused });
            json!({ "descriptors": status })
        };
        let text = to_text(&descriptors("1970-01-01T04:58:00Z".into()), None, now);
        let line = "\n  connections    11 of at most 11 (limit of open files: 64)";
        assert!(text.contains(&format!("{line}; ACCEPTING PAUSED for 2 min\n")), "{text}");
        assert!(to_text(&descriptors(Value::Null), None, now).contains(&format!("{line}\n")));
        assert!(!to_text(&json!({}), None, now).contains("connections"));
    }

    #[test]
    fn rejected_reload_shows_every_error() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let rejected =
            json!({ "result": "rejected", "at": "1970-01-01T04:59:30Z", "error": "a.toml:1: one\na.toml:2: two" });
        let text = to_text(&body(&rejected), None, now);
        let expected =
            "REJECTED, 30 s ago; the previous policy stays in force:\n    a.toml:1: one\n    a.toml:2: two\n";
        assert!(text.contains(expected), "{text}");
        assert!(to_text(&body(&Value::Null), None, now).contains("last reload    none yet\n"));
        let mut draining = body(&Value::Null);
        draining["draining"] = json!({ "since": "1970-01-01T04:59:30Z", "until": "1970-01-01T05:00:00Z" });
        let expected =
            "state          DRAINING since 1970-01-01T04:59:30Z; remaining sessions are closed at 1970-01-01T05:00:00Z";
        assert!(to_text(&draining, None, now).contains(expected), "{}", to_text(&draining, None, now));
    }

    #[test]
    fn empty_reply_is_rendered_without_a_panic() {
        assert!(to_text(&json!({}), None, OffsetDateTime::UNIX_EPOCH).contains("process 0"));
    }
}
