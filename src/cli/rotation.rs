//! `portcullis status --rotation`: is it safe to remove the old one, and who still uses it?

use std::fmt::Write as _;

use serde_json::Value;
use time::OffsetDateTime;

use super::moment::{ago, since};
use super::reading::{DASH, Reading};
use super::table::{Table, clipped};
use crate::policy::days_left;

/// A table for each listener.
pub(super) fn in_words(answer: &Value, now: OffsetDateTime) -> String {
    let items = Reading(answer).list("items");
    let mut listeners: Vec<String> = Vec::new();
    for item in items.clone() {
        let listener = item.text_or_dash("listener");
        if !listeners.contains(&listener) {
            listeners.push(listener);
        }
    }
    let mut out = String::new();
    for (index, listener) in listeners.iter().enumerate() {
        let mut table = Table::new(["KIND", "NAME", "EXPIRES", "OPEN", "LAST USED", "CAN IT GO?"]);
        for item in items.clone().filter(|item| item.text_or_dash("listener") == *listener) {
            table.row([
                kind(item),
                name(item),
                expires(item, now),
                open(item),
                last_used(item, now),
                verdict(item, now),
            ]);
        }
        let _ = write!(out, "{}listener {listener}\n{}", if index == 0 { "" } else { "\n" }, table.render("  "));
    }
    if out.is_empty() { "no listener has a certificate or a source\n".to_owned() } else { out }
}

fn kind(item: Reading<'_>) -> String {
    match item.text("kind").as_deref() {
        Some("server_certificate") => "server",
        Some("client_ca") => "client CA",
        Some("client_certificate") => "client",
        Some("source") => "source",
        Some(other) => return other.to_owned(),
        None => DASH,
    }
    .to_owned()
}

/// The name and, where several may have it, as the old and the new one do, what tells them apart.
fn name(item: Reading<'_>) -> String {
    let name = item.text_or_dash("name");
    match item.text("sha256") {
        Some(print) => {
            let short: String = print.chars().take(SHORT_PRINT).collect();
            format!("{} [{short}]", clipped(&name, MOST_NAME))
        }
        None => name,
    }
}

fn expires(item: Reading<'_>, now: OffsetDateTime) -> String {
    let Some(end) = item.time("not_after") else { return "never".to_owned() };
    match days_left(end, now) {
        ..=0 => format!("{}, EXPIRED", end.date()),
        days => format!("{}, {days} d", end.date()),
    }
}

fn open(item: Reading<'_>) -> String {
    item.number("sessions").to_string()
}

fn last_used(item: Reading<'_>, now: OffsetDateTime) -> String {
    match (item.number("sessions"), item.time("last_used")) {
        (1.., None) => "now".to_owned(),
        (0, None) => "never since start".to_owned(),
        (_, Some(used)) => ago(used, now),
    }
}

/// The answer to the operator's question.
fn verdict(item: Reading<'_>, now: OffsetDateTime) -> String {
    if let (0, Some(fault)) = (item.number("sessions"), item.text("fault")) {
        return format!("vouches for nobody: {fault}");
    }
    match (item.number("sessions"), item.time("last_used")) {
        (1, _) => format!("in use by 1 session{}", users(item)),
        (count @ 2.., _) => format!("in use by {count} sessions{}", users(item)),
        (0, Some(used)) => format!("unused for {}: nothing open depends on it", since(used, now)),
        (0, None) => never_used(item, now),
    }
}

fn never_used(item: Reading<'_>, now: OffsetDateTime) -> String {
    let begun = item.time("since").map(|since| format!(" ({})", ago(since, now))).unwrap_or_default();
    match item.number("since_generation") {
        0 | 1 => format!("never used since the program started{begun}"),
        _ => format!("never used since it was added{begun}"),
    }
}

/// `: CN=app from 10.0.0.5 (8), … and 3 more clients`.
fn users(item: Reading<'_>) -> String {
    let user = |client: Reading<'_>| {
        let subject = client.text("subject").map(|subject| format!("{subject} ")).unwrap_or_default();
        format!("{subject}from {} ({})", client.text_or_dash("source"), client.number("sessions"))
    };
    let mut users: Vec<String> = item.list("clients").map(user).collect();
    match item.number("more_clients") {
        0 => {}
        1 => users.push("and 1 more client".to_owned()),
        more => users.push(format!("and {more} more clients")),
    }
    if users.is_empty() { String::new() } else { format!(": {}", users.join(", ")) }
}

/// As much of a fingerprint as tells two certificates apart.
const SHORT_PRINT: usize = 8;

/// As much of a subject as leaves room for the answer.
const MOST_NAME: usize = 24;

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::*;

    #[test]
    fn a_rotation_is_read_off_one_table() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::hours(5);
        let answer = json!({ "generation": 3, "items": [
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
            },
            {
                "listener": "db", "kind": "server_certificate", "name": "CN=db", "sha256": "0011223344",
                "not_after": "1970-01-01T04:00:00Z", "since": "1970-01-01T03:00:00Z", "since_generation": 1, "sessions": 0,
            },
        ]});
        let expected = "\
listener cache
  KIND       NAME                                 EXPIRES             OPEN  LAST USED          CAN IT GO?
  client CA  CN=Old CA [3fa9c1d2]                 1970-01-10, 9 d     12    2 min ago          in use by 12 sessions:
                                                                                               CN=app from 10.0.0.5 (8),
                                                                                               from 10.0.0.6 (1), and 3
                                                                                               more clients
  client CA  CN=A new CA with a name… [77aa88bb]  1980-01-01, 3652 d  0     never since start  never used since it was
                                                                                               added (1 h ago)
";
        let words = in_words(&answer, now);
        assert!(words.starts_with(expected), "{words}");
        let verdicts: Vec<String> = Reading(&answer).list("items").map(|item| verdict(item, now)).collect();
        assert_eq!(
            verdicts[1..],
            [
                "never used since it was added (1 h ago)",
                "unused for 3 h: nothing open depends on it",
                "never used since the program started (2 h ago)",
            ]
        );
        for word in ["ip_addr:10.0.0.0/8", "1970-01-01, EXPIRED", "never since start"] {
            assert!(words.contains(word), "no {word} in {words}");
        }
        assert!(words.lines().all(|line| line.chars().count() <= 120), "{words}");
    }
}
