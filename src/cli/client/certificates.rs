//! `portcullis certs list`: all certificates of the running program.

use serde_json::Value;
use time::OffsetDateTime;

use crate::cli::client::AdminClient;
use crate::cli::client::args::Running;
use crate::cli::client::json_view::{DASH, JsonView};
use crate::cli::output::moment::{NEAR, ago, minute, since};
use crate::cli::output::table::Table;
use crate::cli::{Failure, print, print_json};
use crate::x509::expiry::days_left;

pub(crate) fn list(running: &Running, as_json: bool) -> Result<(), Failure> {
    let body = AdminClient::find(running)?.get("/v1/certificates")?;
    if as_json { print_json(&body) } else { print(&to_text(&body, OffsetDateTime::now_utc())) }
}

fn to_text(body: &Value, now: OffsetDateTime) -> String {
    let mut table = Table::new(["LISTENER", "ROLE", "EXPIRES", "SESSIONS", "LAST USED", "SHA-256", "SUBJECT"]);
    let mut count = 0_usize;
    for certificate in JsonView(body).list("certificates") {
        count += 1;
        let sha256: String = certificate.text_or_dash("sha256").chars().take(SHORT_FINGERPRINT).collect();
        table.row([
            certificate.text_or_dash("listener"),
            certificate.text_or_dash("role").replace('_', " "),
            certificate.time("not_after").map_or(DASH.to_owned(), |end| expiry(end, now)),
            certificate.0.get("sessions").and_then(Value::as_u64).map_or(DASH.to_owned(), |count| count.to_string()),
            certificate.time("last_used").map_or(DASH.to_owned(), |used| ago(used, now)),
            sha256,
            certificate.text_or_dash("subject"),
        ]);
    }
    if count == 0 { "no certificates\n".to_owned() } else { table.render("") }
}

/// `2027-01-31 (60 d)`, to the minute when it is less than two days away, or `2026-11-30, EXPIRED`.
pub(crate) fn expiry(end: OffsetDateTime, now: OffsetDateTime) -> String {
    if end <= now {
        format!("{}, EXPIRED", end.date())
    } else if end - now < NEAR {
        format!("{} ({})", minute(end), since(now, end))
    } else {
        format!("{} ({} d)", end.date(), days_left(end, now))
    }
}

/// Hexadecimal digits, enough to distinguish two certificates.
const SHORT_FINGERPRINT: usize = 8;

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::Duration;

    use super::*;

    #[test]
    fn certificates_are_listed_and_expired_ones_marked() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::days(10);
        let certificate = |listener: Value, role: &str, not_after: &str, sessions: Value| {
            json!({
                "listener": listener, "role": role, "subject": "CN=db.test", "sha256": "77aa88bb99", "not_after": not_after,
                "sessions": sessions, "last_used": "1970-01-10T23:58:00Z",
            })
        };
        let body = json!({ "certificates": [
            certificate("cache".into(), "server", "1970-04-01T00:00:00Z", 3.into()),
            certificate("cache".into(), "client_ca", "1970-01-02T00:00:00Z", 0.into()),
            certificate(Value::Null, "admin", "1970-01-11T05:00:00Z", Value::Null),
        ] });
        let expected = "\
LISTENER  ROLE       EXPIRES                  SESSIONS  LAST USED  SHA-256   SUBJECT
cache     server     1970-04-01 (80 d)        3         2 min ago  77aa88bb  CN=db.test
cache     client ca  1970-01-02, EXPIRED      0         2 min ago  77aa88bb  CN=db.test
-         admin      1970-01-11 05:00Z (5 h)  -         2 min ago  77aa88bb  CN=db.test
";
        assert_eq!(to_text(&body, now), expected);
        assert_eq!(to_text(&json!({}), now), "no certificates\n");
    }
}
