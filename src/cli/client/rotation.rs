//! `portcullis status --rotation`: which certificates, CAs and sources are unused and can be removed.

use std::fmt::Write as _;

use serde_json::Value;
use time::{Duration, OffsetDateTime};

use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::client::members::missing_members;
use crate::cli::output::moment::{NEAR, ago, minute, since};
use crate::cli::output::table::{Table, clipped};
use crate::printable;
use crate::x509::expiry::days_left;

/// Renders one table per listener.
pub(crate) fn to_text(body: &Value, now: OffsetDateTime) -> String {
    let items = JsonView(body).list("items");
    let silent = silent_members(body);
    let mut listeners: Vec<String> = Vec::new();
    for item in items.clone() {
        let listener = item.text_or_dash("listener");
        if !listeners.contains(&listener) {
            listeners.push(listener);
        }
    }
    let mut out =
        if silent.is_empty() { String::new() } else { format!("{silent}: their use is not in the numbers\n\n") };
    let is_empty = listeners.is_empty();
    for (index, listener) in listeners.iter().enumerate() {
        let mut table = Table::new(["KIND", "NAME", "EXPIRES", "OPEN", "LAST USED", "STATUS"]);
        for item in items.clone().filter(|item| item.text_or_dash("listener") == *listener) {
            let usage = if is_unknown(item) { format!("unknown: {silent}") } else { usage(item, now) };
            table.row([kind(item), name(item), expires(item, now), open(item), last_used(item, now), usage]);
        }
        let _ = write!(out, "{}listener {listener}\n{}", if index == 0 { "" } else { "\n" }, table.render("  "));
    }
    if is_empty { "no listener has certificates or sources\n".to_owned() } else { out }
}

fn kind(item: JsonView<'_>) -> String {
    match item.text("kind").as_deref() {
        Some("server_certificate") => "server",
        Some("client_ca") => "client CA",
        Some("client_certificate") => "client",
        Some("source") => "source",
        Some(UPSTREAM_PASSWORD) => "upstream password",
        Some(other) => return other.to_owned(),
        None => DASH,
    }
    .to_owned()
}

/// The name, followed by the start of the fingerprint (old and new certificates often share a name) or the description.
fn name(item: JsonView<'_>) -> String {
    let name = item.text_or_dash("name");
    match (item.text("sha256"), item.text("description")) {
        (None, Some(description)) => format!("{name} ({})", clipped(&description, MAX_NAME)),
        (Some(sha256), _) => {
            let short: String = sha256.chars().take(SHORT_FINGERPRINT).collect();
            format!("{} [{short}]", clipped(&name, MAX_NAME))
        }
        (None, None) => name,
    }
}

/// The expiry date, to the minute when it is less than two days away.
fn expires(item: JsonView<'_>, now: OffsetDateTime) -> String {
    // It is not known when the database stops accepting its own password.
    if is_upstream_password(item) {
        return DASH.to_owned();
    }
    let Some(end) = item.time("not_after") else { return "never".to_owned() };
    match end - now {
        left if left <= Duration::ZERO => format!("{}, EXPIRED", minute(end)),
        left if left < NEAR => format!("{}, {}", minute(end), since(now, end)),
        _ => format!("{}, {} d", end.date(), days_left(end, now)),
    }
}

fn open(item: JsonView<'_>) -> String {
    if is_upstream_password(item) {
        return DASH.to_owned();
    }
    if is_unknown(item) { "unknown".to_owned() } else { item.number("sessions").to_string() }
}

/// A password of the database. Connections to the database use it once, and open sessions do not rely on it.
fn is_upstream_password(item: JsonView<'_>) -> bool {
    item.text("kind").as_deref() == Some(UPSTREAM_PASSWORD)
}

/// Whether a member of the fleet that may use the item has not answered.
fn is_unknown(item: JsonView<'_>) -> bool {
    item.0.get("sessions").is_some_and(Value::is_null)
}

/// The members of the fleet whose use is not all known: `no answer from b (unknown); incomplete answer from c`.
fn silent_members(body: &Value) -> String {
    let missing = body.get("missing").map(missing_members).filter(|missing| !missing.is_empty());
    let incomplete: Vec<_> =
        body.get("incomplete").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let incomplete = (!incomplete.is_empty()).then(|| printable::field(incomplete.join(", ")));
    let missing = missing.map(|missing| format!("no answer from {missing}"));
    let incomplete = incomplete.map(|incomplete| format!("incomplete answer from {incomplete}"));
    [missing, incomplete].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn last_used(item: JsonView<'_>, now: OffsetDateTime) -> String {
    if is_unknown(item) && item.time("last_used").is_none() {
        return "unknown".to_owned();
    }
    match (item.number("sessions"), item.time("last_used")) {
        (1.., None) => "now".to_owned(),
        // A line may be new in the file.
        (0, None) if is_from_start(item) && !is_upstream_password(item) => "never since start".to_owned(),
        (0, None) => "not yet".to_owned(),
        (_, Some(used)) => ago(used, now),
    }
}

/// Whether the item is in use or can be removed.
fn usage(item: JsonView<'_>, now: OffsetDateTime) -> String {
    let sessions = item.number("sessions");
    if is_upstream_password(item) {
        return verdicts(item, now);
    }
    if let (0, Some(fault)) = (sessions, item.text("fault")) {
        return format!("admits no client: {fault}");
    }
    match (sessions, item.time("last_used")) {
        (1, _) => format!("in use by 1 session{}", users(item)),
        (2.., _) => format!("in use by {sessions} sessions{}", users(item)),
        // A client that disconnected a moment ago is likely to reconnect.
        (0, Some(used)) if now - used < RECENT => {
            format!("no open session; last used {}{}", ago(used, now), last_users(item, now))
        }
        (0, Some(used)) => {
            format!("unused for {}: no open session uses it{}", since(used, now), last_users(item, now))
        }
        (0, None) => not_used(item, now),
    }
}

/// `rejected as app (1 min ago); accepted as app (3 h ago), job (4 h ago)`.
fn verdicts(item: JsonView<'_>, now: OffsetDateTime) -> String {
    let as_users = |verdict: &str, users: &str, at: &str| {
        let user = |user: JsonView<'_>| {
            let when = user.time(at).map(|time| format!(" ({})", ago(time, now))).unwrap_or_default();
            format!("{}{when}", user.text_or_dash("user"))
        };
        let users = some_of(item.list(users).map(user).collect());
        (!users.is_empty()).then(|| format!("{verdict} as {users}"))
    };
    let rejected = as_users("rejected", "rejected_users", "last_rejected");
    let accepted = as_users("accepted", "last_users", "last_used");
    let verdicts: Vec<_> = [rejected, accepted].into_iter().flatten().collect();
    if verdicts.is_empty() { "not tried at the database yet".to_owned() } else { verdicts.join("; ") }
}

/// The first of a list, and the number of the others.
fn some_of(mut all: Vec<String>) -> String {
    let more = all.len().saturating_sub(MAX_LAST_USERS);
    if more > 0 {
        all.truncate(MAX_LAST_USERS);
        all.push(format!("and {more} more"));
    }
    all.join(", ")
}

/// `; last users: CN=app from 10.0.0.5 (3 h ago), … and 2 more`.
fn last_users(item: JsonView<'_>, now: OffsetDateTime) -> String {
    let user = |user: JsonView<'_>| {
        let when = user.time("last_used").map(|used| format!(" ({})", ago(used, now))).unwrap_or_default();
        format!("{}{when}", client(user))
    };
    let users = some_of(item.list("last_users").map(user).collect());
    if users.is_empty() { users } else { format!("; last users: {users}") }
}

fn not_used(item: JsonView<'_>, now: OffsetDateTime) -> String {
    let added = item.time("since").map(|since| ago(since, now));
    if is_from_start(item) {
        format!("never used since the program started{}", added.map(|added| format!(" ({added})")).unwrap_or_default())
    } else {
        format!("not used since it was added{}", added.map(|added| format!(" {added}")).unwrap_or_default())
    }
}

/// Whether the item has been in force since the program started.
fn is_from_start(item: JsonView<'_>) -> bool {
    item.number("since_generation") <= 1
}

/// `: CN=app from 10.0.0.5 (8), … and 3 more clients`.
fn users(item: JsonView<'_>) -> String {
    let user = |user: JsonView<'_>| format!("{} ({})", client(user), user.number("sessions"));
    let mut users: Vec<String> = item.list("clients").map(user).collect();
    match item.number("more_clients") {
        0 => {}
        1 => users.push("and 1 more client".to_owned()),
        more => users.push(format!("and {more} more clients")),
    }
    if users.is_empty() { String::new() } else { format!(": {}", users.join(", ")) }
}

/// `CN=app from 10.0.0.5`, `app from 10.0.0.5`, or `CN=app as app from 10.0.0.5` with certificate and login.
fn client(client: JsonView<'_>) -> String {
    let name = match (client.text("subject"), client.text("user")) {
        (Some(subject), Some(user)) => format!("{subject} as {user} "),
        (Some(name), None) | (None, Some(name)) => format!("{name} "),
        (None, None) => String::new(),
    };
    format!("{name}from {}", client.text_or_dash("source"))
}

/// The kind of a line of `upstream_password_file`.
const UPSTREAM_PASSWORD: &str = "upstream_password";

/// Last users shown per item; the JSON has more.
const MAX_LAST_USERS: usize = 3;

/// Below this age, an item counts as just used.
const RECENT: Duration = Duration::minutes(1);

/// Hexadecimal digits, enough to distinguish two certificates.
const SHORT_FINGERPRINT: usize = 8;

/// Characters of a name; leaves space for the last column.
const MAX_NAME: usize = 24;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_whose_use_is_not_all_known_are_named_once_and_unused_is_unknown() {
        let item = |sessions: Value, name: &str| {
            json!({
                "listener": "cache", "kind": "source", "name": name, "sha256": null, "not_after": null,
                "since": "1970-01-01T00:00:00Z", "since_generation": 1, "sessions": sessions, "last_used": null,
            })
        };
        let body = json!({
            "items": [item(2.into(), "ip_addr:10.0.0.1"), item(Value::Null, "ip_addr:10.0.0.2")],
            "missing": [{ "member": "b", "state": "unknown" }],
            "incomplete": ["c"],
        });
        let text = to_text(&body, OffsetDateTime::UNIX_EPOCH + Duration::hours(5));
        let silent = "no answer from b (unknown); incomplete answer from c";
        assert!(text.starts_with(&format!("{silent}: their use is not in the numbers\n\nlistener cache\n")), "{text}");
        let row =
            |name: &str| text.lines().find(|line| line.contains(name)).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(row("10.0.0.1")[3..5], ["2", "now"], "{text}");
        assert_eq!(row("10.0.0.2")[3..6], ["unknown", "unknown", "unknown:"], "{text}");
    }

    #[test]
    fn rotation_table_shows_who_uses_each_item() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let body = json!({ "generation": 3, "items": [
            {
                "listener": "cache", "kind": "client_ca", "name": "CN=Old CA", "sha256": "3fa9c1d2e4", "issuer": "CN=Old CA",
                "not_after": "1970-01-10T05:00:00Z", "since": "1970-01-01T00:00:00Z", "since_generation": 1, "sessions": 12,
                "first_used": "1970-01-01T00:01:00Z", "last_used": "1970-01-01T04:58:00Z", "more_clients": 3,
                "clients": [
                    { "subject": "CN=app", "source": "10.0.0.5", "sessions": 8 },
                    { "subject": null, "source": "10.0.0.6", "sessions": 1 },
                ],
            },
            {
                "listener": "cache", "kind": "client_ca", "name": "CN=A new CA with a name that is very long,O=Example",
                "sha256": "77aa88bb", "not_after": "1980-01-01T00:00:00Z", "since": "1970-01-01T04:00:00Z",
                "since_generation": 3, "sessions": 0, "first_used": null, "last_used": null, "clients": [],
            },
            {
                "listener": "db", "kind": "source", "name": "ip_addr:10.0.0.0/8", "sha256": null, "not_after": null,
                "since": "1970-01-01T00:00:00Z", "since_generation": 1, "sessions": 0, "last_used": "1970-01-01T02:00:00Z",
                "last_users": [{ "subject": null, "source": "10.0.0.7", "last_used": "1970-01-01T02:00:00Z" }],
            },
            {
                "listener": "db", "kind": "server_certificate", "name": "CN=db", "sha256": "0011223344",
                "not_after": "1970-01-01T04:00:00Z", "since": "1970-01-01T03:00:00Z", "since_generation": 1, "sessions": 0,
            },
        ]});
        let expected = "\
listener cache
  KIND       NAME                                 EXPIRES             OPEN  LAST USED  STATUS
  client CA  CN=Old CA [3fa9c1d2]                 1970-01-10, 9 d     12    2 min ago  in use by 12 sessions: CN=app
                                                                                       from 10.0.0.5 (8), from 10.0.0.6
                                                                                       (1), and 3 more clients
  client CA  CN=A new CA with a name… [77aa88bb]  1980-01-01, 3652 d  0     not yet    not used since it was added 1 h
                                                                                       ago
";
        let text = to_text(&body, now);
        assert!(text.starts_with(expected), "{text}");
        let statuses: Vec<String> = JsonView(&body).list("items").map(|item| usage(item, now)).collect();
        assert_eq!(
            statuses[1..],
            [
                "not used since it was added 1 h ago",
                "unused for 3 h: no open session uses it; last users: from 10.0.0.7 (3 h ago)",
                "never used since the program started (2 h ago)",
            ]
        );
        for word in ["ip_addr:10.0.0.0/8", "1970-01-01 04:00Z, EXPIRED", "never since start"] {
            assert!(text.contains(word), "no {word} in {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    }

    #[test]
    fn password_of_the_database_shows_its_users_with_the_last_verdict() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let user = |user: &str, key: &str, time: &str| json!({ "user": user, key: format!("1970-01-01T{time}:00Z") });
        let row = |line: usize, accepted: Value, rejected: Value| {
            json!({
                "listener": "db", "kind": "upstream_password", "name": format!("line {line}"), "line": line, "sessions": 0,
                "last_used": accepted[0]["last_used"], "last_users": accepted,
                "last_rejected": rejected[0]["last_rejected"], "rejected_users": rejected,
            })
        };
        let old = row(1, json!([user("app", "last_used", "02:00")]), json!([user("app", "last_rejected", "04:59")]));
        let four = ["04:58", "04:57", "04:56", "04:55"].map(|time| user("job", "last_used", time));
        let body = json!({ "items": [old, row(2, json!(four), json!([])), row(4, json!([]), json!([]))] });
        let expected = "\
listener db
  KIND               NAME    EXPIRES  OPEN  LAST USED  STATUS
  upstream password  line 1  -        -     3 h ago    rejected as app (1 min ago); accepted as app (3 h ago)
  upstream password  line 2  -        -     2 min ago  accepted as job (2 min ago), job (3 min ago), job (4 min ago),
                                                       and 1 more
  upstream password  line 4  -        -     not yet    not tried at the database yet
";
        assert_eq!(to_text(&body, now), expected);
        let passwords = json!({ "listener": "db", "kind": "password", "name": "app p1", "sessions": 1,
            "clients": [{ "subject": null, "user": "app", "source": "10.0.0.5", "sessions": 1 }] });
        assert_eq!(usage(JsonView(&passwords), now), "in use by 1 session: app from 10.0.0.5 (1)");
        let both = json!({ "subject": "CN=app", "user": "web", "source": "10.0.0.5" });
        assert_eq!(client(JsonView(&both)), "CN=app as web from 10.0.0.5");
    }

    #[test]
    fn rule_that_expires_soon_shows_minute_and_description() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let text = |end: &str| {
            let rule = json!({ "listener": "db", "kind": "source", "name": "ip_addr:10.0.0.1", "description": "office",
                               "not_after": end });
            to_text(&json!({ "items": [rule] }), now)
        };
        for (end, shown) in [
            ("1970-01-01T00:45:30Z", "1970-01-01 00:45Z, 45 min"),
            ("1970-01-02T09:05:00Z", "1970-01-02 09:05Z, 33 h"),
            ("1970-01-04T00:00:00Z", "1970-01-04, 3 d"),
            ("1969-12-31T23:59:00Z", "1969-12-31 23:59Z, EXPIRED"),
        ] {
            let text = text(end);
            assert!(text.contains(&format!("ip_addr:10.0.0.1 (office)  {shown}")), "no {shown} in {text}");
        }
    }
}
