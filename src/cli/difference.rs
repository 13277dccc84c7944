//! The text of a reload plan, for `reload --plan` and `check --diff`.

use std::fmt::Write as _;

use serde_json::Value;
use time::OffsetDateTime;

use crate::audit::changes::{NO_VALUE, WEAKENS};
use crate::cli::client::json_view::JsonView;
use crate::cli::client::sessions::client_address;
use crate::cli::output::table::Table;
use crate::x509::expiry::days_left;

pub(crate) fn to_text(body: &Value, now: OffsetDateTime) -> String {
    let plan = JsonView(body);
    let weakened = weakened(plan);
    let changes = changes(plan, now);
    let kept = plan.number("sessions_kept");
    let ended = count(plan, "sessions_ended");
    let mut out = String::new();
    if changes.is_empty() && ended == 0 {
        let _ = writeln!(out, "nothing would change");
    } else if changes.is_empty() {
        // Sessions can end without a change, for example when a rule has expired.
        let _ = writeln!(out, "no setting, listener, certificate or source would change");
    } else {
        let _ = writeln!(out, "a reload would change:");
        for line in changes.iter().take(MAX_SHOWN) {
            let _ = writeln!(out, "  {line}");
        }
        let lists = ["differences", "sources_added", "sources_removed"];
        let unlisted = lists.map(|key| count(plan, key) - plan.list(key).count());
        let all = unlisted.into_iter().fold(changes.len(), usize::saturating_add);
        let _ = omitted(all).map_or(Ok(()), |more| writeln!(out, "  {more}"));
    }
    if weakened > 0 {
        let _ = writeln!(out, "settings that would weaken protection: {weakened} (marked !)");
    }
    if ended == 0 {
        let _ = writeln!(out, "no open session would be closed; {kept} would stay open");
    } else {
        let _ = writeln!(out, "sessions that would be closed: {ended}; {kept} would stay open\n{}", sessions(plan));
    }
    for warning in plan.texts("warnings") {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// One line per change.
fn changes(plan: JsonView<'_>, now: OffsetDateTime) -> Vec<String> {
    let names = |sign: &'static str, key: &str, more: &'static str| {
        plan.texts(key).into_iter().map(move |name| format!("{sign} listener     {name}{more}"))
    };
    let sources = |sign: &'static str, key: &str| {
        let line = move |rule: JsonView<'_>| {
            format!("{sign} source       {}  {}", rule.text_or_dash("listener"), rule.text_or_dash("rule"))
        };
        plan.list(key).map(line)
    };
    let certificates = |sign: &'static str, key: &str| {
        plan.list(key).map(move |one| format!("{sign} certificate  {}", certificate(one, now)))
    };
    // Changes that weaken protection come first, so that a long list cannot hide them.
    let (weaker, others): (Vec<_>, Vec<_>) =
        plan.list("differences").partition(|one| one.flag("weakens") == Some(true));
    weaker
        .into_iter()
        .chain(others)
        .map(setting)
        .chain(names("+", "listeners_added", ""))
        .chain(names("-", "listeners_removed", ""))
        .chain(names("~", "listeners_moved", ", to other addresses"))
        .chain(certificates("+", "certificates_in"))
        .chain(certificates("-", "certificates_out"))
        .chain(sources("+", "sources_added"))
        .chain(sources("-", "sources_removed"))
        .collect()
}

/// One line of a setting: `! setting      cache  tls.client_auth: required -> optional (weakens protection)`.
pub(crate) fn setting(one: JsonView<'_>) -> String {
    let weakens = one.flag("weakens") == Some(true);
    let listener = one.text("listener").map(|listener| format!("{listener}  ")).unwrap_or_default();
    let [old, new] = ["old", "new"].map(|key| one.text(key).unwrap_or_else(|| NO_VALUE.to_owned()));
    let (sign, mark) = if weakens { ("!", WEAKENS) } else { ("~", "") };
    format!("{sign} setting      {listener}{}: {old} -> {new}{mark}", one.text_or_dash("key"))
}

/// Counts the settings that would weaken protection, including those omitted from the list.
fn weakened(plan: JsonView<'_>) -> usize {
    let listed = plan.list("differences").filter(|one| one.flag("weakens") == Some(true)).count();
    usize::try_from(plan.number("weakened_count")).unwrap_or(usize::MAX).max(listed)
}

fn certificate(one: JsonView<'_>, now: OffsetDateTime) -> String {
    let role = one.text_or_dash("role").replace('_', " ");
    let fingerprint: String = one.text_or_dash("sha256").chars().take(SHORT_FINGERPRINT).collect();
    let until = one.time("not_after").map(|end| format!(", until {} ({} days)", end.date(), days_left(end, now)));
    let (listener, subject) = (one.text_or_dash("listener"), one.text_or_dash("subject"));
    format!("{listener}  {role}: {subject} [{fingerprint}]{}", until.unwrap_or_default())
}

pub(crate) fn sessions(plan: JsonView<'_>) -> String {
    let mut table = Table::new(["SESSION", "LISTENER", "CLIENT", "CERTIFICATE", "REASON"]);
    let ended = plan.list("sessions_ended");
    for session in ended.clone().take(MAX_SHOWN) {
        let detail = session.text("detail").filter(|detail| !detail.is_empty());
        let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
        table.row([
            session.number("session").to_string(),
            session.text_or_dash("listener"),
            client_address(session),
            session.text_or_dash("client_subject"),
            format!("{}{detail}", session.text_or_dash("reason")),
        ]);
    }
    let more = omitted(count(plan, "sessions_ended")).map(|more| format!("  {more}\n"));
    table.render("  ") + &more.unwrap_or_default()
}

/// The full count of a list that may be truncated.
pub(crate) fn count(plan: JsonView<'_>, list: &str) -> usize {
    let all = usize::try_from(plan.number(&format!("{list}_count"))).unwrap_or(usize::MAX);
    all.max(plan.list(list).count())
}

pub(crate) fn omitted(count: usize) -> Option<String> {
    let more = count.checked_sub(MAX_SHOWN).filter(|more| *more > 0)?;
    Some(format!("and {more} more; --json lists up to 1000"))
}

/// Changes and sessions shown as text.
pub(crate) const MAX_SHOWN: usize = 50;

/// Hexadecimal digits, enough to distinguish two certificates.
const SHORT_FINGERPRINT: usize = 8;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn plan_lists_changes_and_sessions_to_close() {
        let plan = json!({
            "generation": 4, "listeners_added": ["fresh"], "listeners_removed": ["gone"], "listeners_moved": ["db"],
            "sources_added": [{ "listener": "db", "rule": "ip_addr:10.0.0.0/8" }],
            "sources_removed": [{ "listener": "db", "rule": "ip_addr:192.0.2.1" }],
            "certificates_in": [
                { "listener": "db", "role": "client_ca", "subject": "CN=New CA", "sha256": "77aa88bb99", "not_after": "1970-01-10T00:00:00Z" },
            ],
            "certificates_out": [],
            "differences": [
                { "listener": null, "key": "shutdown.drain", "old": "30s", "new": "5s", "weakens": false },
                { "listener": "db", "key": "tls.client_auth", "old": "required", "new": "optional", "weakens": true },
            ],
            "sessions_ended": [
                {
                    "session": 7, "listener": "db", "source": "192.0.2.1", "source_port": 4242, "client_subject": "CN=app",
                    "reason": "source_revoked", "detail": "no rule trusts 192.0.2.1",
                },
            ],
            "sessions_kept": 120, "warnings": ["db: 0.0.0.0/0 trusts every address"],
        });
        let expected = "\
a reload would change:
  ! setting      db  tls.client_auth: required -> optional (weakens protection)
  ~ setting      shutdown.drain: 30s -> 5s
  + listener     fresh
  - listener     gone
  ~ listener     db, to other addresses
  + certificate  db  client ca: CN=New CA [77aa88bb], until 1970-01-10 (9 days)
  + source       db  ip_addr:10.0.0.0/8
  - source       db  ip_addr:192.0.2.1
settings that would weaken protection: 1 (marked !)
sessions that would be closed: 1; 120 would stay open
  SESSION  LISTENER  CLIENT          CERTIFICATE  REASON
  7        db        192.0.2.1:4242  CN=app       source_revoked: no rule trusts 192.0.2.1

warning: db: 0.0.0.0/0 trusts every address
";
        assert_eq!(to_text(&plan, NOW), expected);
    }

    #[test]
    fn plan_without_changes_reports_that_nothing_would_change() {
        let plan = json!({ "generation": 3, "sources_added": [], "sessions_kept": 2, "warnings": [] });
        assert_eq!(to_text(&plan, NOW), "nothing would change\nno open session would be closed; 2 would stay open\n");
        let plan = json!({ "generation": 3, "sessions_ended": [{ "session": 7 }], "sessions_kept": 2 });
        let text = to_text(&plan, NOW);
        assert!(
            text.starts_with(
                "no setting, listener, certificate or source would change\nsessions that would be closed: 1; 2"
            ),
            "{text}"
        );
    }

    #[test]
    fn long_list_is_cut_and_counted() {
        let rules: Vec<Value> =
            (0..MAX_SHOWN + 7).map(|number| json!({ "listener": "db", "rule": format!("{number}") })).collect();
        let text = to_text(&json!({ "sources_removed": rules }), NOW);
        assert!(text.contains("and 7 more; --json lists up to 1000"), "{text}");
        assert_eq!(text.lines().filter(|line| line.contains("- source")).count(), MAX_SHOWN);
    }
}
