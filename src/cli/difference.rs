//! What a reload would change, in words: for `reload --plan` and `check --diff`.

use std::fmt::Write as _;

use serde_json::Value;
use time::OffsetDateTime;

use crate::audit::changes::{NO_VALUE, WEAKENS};
use crate::cli::client::reading::Reading;
use crate::cli::client::sessions::client;
use crate::cli::output::table::Table;
use crate::x509::expiry::days_left;

/// The running program's plan.
pub(crate) fn in_words(answer: &Value, now: OffsetDateTime) -> String {
    let plan = Reading(answer);
    let weakened = weakened(plan);
    let changes = changes(plan, now);
    let kept = plan.number("sessions_kept");
    let ended = count(plan, "sessions_ended");
    let mut out = String::new();
    if changes.is_empty() && ended == 0 {
        let _ = writeln!(out, "nothing would change");
    } else if changes.is_empty() {
        // By the time that has passed, say.
        let _ = writeln!(out, "no setting, listener, certificate or source would change");
    } else {
        let _ = writeln!(out, "a reload would change:");
        for line in changes.iter().take(MOST_TOLD) {
            let _ = writeln!(out, "  {line}");
        }
        let lists = ["differences", "sources_added", "sources_removed"];
        let unlisted = lists.map(|key| count(plan, key) - plan.list(key).count());
        let all = unlisted.into_iter().fold(changes.len(), usize::saturating_add);
        let _ = untold(all).map_or(Ok(()), |more| writeln!(out, "  {more}"));
    }
    if weakened > 0 {
        let _ = writeln!(out, "settings that would weaken protection: {weakened}, marked !");
    }
    if ended == 0 {
        let _ = writeln!(out, "no open session would end; {kept} would stay");
    } else {
        let _ = writeln!(out, "sessions that would end: {ended}; {kept} would stay\n{}", sessions(plan));
    }
    for warning in plan.texts("warnings") {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// One line for each thing that comes or goes.
fn changes(plan: Reading<'_>, now: OffsetDateTime) -> Vec<String> {
    let names = |sign: &'static str, key: &str, more: &'static str| {
        plan.texts(key).into_iter().map(move |name| format!("{sign} listener     {name}{more}"))
    };
    let sources = |sign: &'static str, key: &str| {
        let line = move |rule: Reading<'_>| {
            format!("{sign} source       {}  {}", rule.text_or_dash("listener"), rule.text_or_dash("rule"))
        };
        plan.list(key).map(line)
    };
    let certificates = |sign: &'static str, key: &str| {
        plan.list(key).map(move |one| format!("{sign} certificate  {}", certificate(one, now)))
    };
    // What weakens protection comes first, so that no long list can hide it.
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

/// A key with both values: `! setting      cache  tls.client_auth: required -> optional (weakens protection)`.
pub(crate) fn setting(one: Reading<'_>) -> String {
    let weakens = one.flag("weakens") == Some(true);
    let listener = one.text("listener").map(|listener| format!("{listener}  ")).unwrap_or_default();
    let [old, new] = ["old", "new"].map(|key| one.text(key).unwrap_or_else(|| NO_VALUE.to_owned()));
    let (sign, mark) = if weakens { ("!", WEAKENS) } else { ("~", "") };
    format!("{sign} setting      {listener}{}: {old} -> {new}{mark}", one.text_or_dash("key"))
}

/// How many settings would weaken protection, those beyond the list included.
fn weakened(plan: Reading<'_>) -> usize {
    let listed = plan.list("differences").filter(|one| one.flag("weakens") == Some(true)).count();
    usize::try_from(plan.number("weakened_count")).unwrap_or(usize::MAX).max(listed)
}

fn certificate(one: Reading<'_>, now: OffsetDateTime) -> String {
    let role = one.text_or_dash("role").replace('_', " ");
    let print: String = one.text_or_dash("sha256").chars().take(SHORT_PRINT).collect();
    let until = one.time("not_after").map(|end| format!(", until {} ({} days)", end.date(), days_left(end, now)));
    let (listener, subject) = (one.text_or_dash("listener"), one.text_or_dash("subject"));
    format!("{listener}  {role}: {subject} [{print}]{}", until.unwrap_or_default())
}

fn sessions(plan: Reading<'_>) -> String {
    let mut table = Table::new(["SESSION", "LISTENER", "CLIENT", "CERTIFICATE", "WHY"]);
    let ended = plan.list("sessions_ended");
    for session in ended.clone().take(MOST_TOLD) {
        let detail = session.text("detail").filter(|detail| !detail.is_empty());
        let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
        table.row([
            session.number("session").to_string(),
            session.text_or_dash("listener"),
            client(session),
            session.text_or_dash("client_subject"),
            format!("{}{detail}", session.text_or_dash("reason")),
        ]);
    }
    let more = untold(count(plan, "sessions_ended")).map(|more| format!("  {more}\n"));
    table.render("  ") + &more.unwrap_or_default()
}

/// How many there are of what a list names, which may be only the first of many.
fn count(plan: Reading<'_>, list: &str) -> usize {
    let all = usize::try_from(plan.number(&format!("{list}_count"))).unwrap_or(usize::MAX);
    all.max(plan.list(list).count())
}

fn untold(count: usize) -> Option<String> {
    let more = count.checked_sub(MOST_TOLD).filter(|more| *more > 0)?;
    Some(format!("and {more} more; --json lists up to a thousand"))
}

/// More than a reader reads.
const MOST_TOLD: usize = 50;

/// As much of a fingerprint as tells two certificates apart.
const SHORT_PRINT: usize = 8;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn what_comes_what_goes_and_who_would_be_ended_is_told() {
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
            "sessions_kept": 120, "warnings": ["db: 0.0.0.0/0 trusts everybody"],
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
settings that would weaken protection: 1, marked !
sessions that would end: 1; 120 would stay
  SESSION  LISTENER  CLIENT          CERTIFICATE  WHY
  7        db        192.0.2.1:4242  CN=app       source_revoked: no rule trusts 192.0.2.1

warning: db: 0.0.0.0/0 trusts everybody
";
        assert_eq!(in_words(&plan, NOW), expected);
    }

    #[test]
    fn where_nothing_would_change_that_is_said() {
        let plan = json!({ "generation": 3, "sources_added": [], "sessions_kept": 2, "warnings": [] });
        assert_eq!(in_words(&plan, NOW), "nothing would change\nno open session would end; 2 would stay\n");
        let plan = json!({ "generation": 3, "sessions_ended": [{ "session": 7 }], "sessions_kept": 2 });
        let words = in_words(&plan, NOW);
        assert!(
            words
                .starts_with("no setting, listener, certificate or source would change\nsessions that would end: 1; 2"),
            "{words}"
        );
    }

    #[test]
    fn a_long_list_is_cut_and_counted() {
        let rules: Vec<Value> =
            (0..MOST_TOLD + 7).map(|number| json!({ "listener": "db", "rule": format!("{number}") })).collect();
        let words = in_words(&json!({ "sources_removed": rules }), NOW);
        assert!(words.contains("and 7 more; --json lists up to a thousand"), "{words}");
        assert_eq!(words.lines().filter(|line| line.contains("- source")).count(), MOST_TOLD);
    }
}
