//! The text of a planned change of trusted sources.

use std::fmt::Write as _;

use serde_json::Value;

use crate::cli::client::json_view::JsonView;
use crate::cli::client::members::missing_members;
use crate::cli::difference::{MAX_SHOWN, count, omitted, sessions};
use crate::cli::{Failure, print, print_json};

pub(crate) fn show(body: &Value, listener: &str, as_json: bool) -> Result<(), Failure> {
    if as_json { print_json(body) } else { print(&to_text(body, listener)) }
}

fn to_text(body: &Value, listener: &str) -> String {
    let plan = JsonView(body);
    let (added, removed) = (count(plan, "rules_added"), count(plan, "rules_removed"));
    let mut out = String::new();
    if added + removed == 0 {
        let _ = writeln!(out, "{listener}: no rule would change");
    } else {
        let _ = writeln!(out, "{listener}: this would change:");
    }
    for (sign, key) in [('+', "rules_added"), ('-', "rules_removed")] {
        for rule in plan.list(key).take(MAX_SHOWN) {
            let _ = writeln!(out, "  {sign} {}", named(rule));
        }
        let _ = omitted(count(plan, key)).map_or(Ok(()), |more| writeln!(out, "  {sign} {more}"));
    }
    let ended = match count(plan, "sessions_ended") {
        0 => "no session would end".to_owned(),
        1 => "1 session would end".to_owned(),
        ended => format!("{ended} sessions would end"),
    };
    if plan.flag("admits_nobody") == Some(true) {
        let _ = writeln!(out, "no one can connect after this; {ended}");
    } else {
        let _ = writeln!(out, "{ended}");
    }
    if let Some(fleet) = plan.object("fleet") {
        let _ = writeln!(out, "{}", at_members(fleet));
    }
    if plan.list("sessions_ended").next().is_some() {
        out.push_str(&sessions(plan));
    }
    for warning in plan.texts("warnings") {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

/// The sessions of all members of the fleet, this one included.
fn at_members(fleet: JsonView<'_>) -> String {
    match fleet.0.get("sessions_ended_count").and_then(Value::as_u64) {
        Some(1) => "in the fleet: 1 session would end".to_owned(),
        Some(count) => format!("in the fleet: {count} sessions would end"),
        None => {
            let missing = fleet.0.get("missing").map(missing_members).filter(|missing| !missing.is_empty());
            let why = missing.map(|missing| format!(": no answer from {missing}")).unwrap_or_default();
            format!("in the fleet: unknown{why}")
        }
    }
}

/// `ip_addr:203.0.113.7 (office)`.
fn named(rule: JsonView<'_>) -> String {
    let name = format!("{}:{}", rule.text_or_dash("type"), rule.text_or_dash("value"));
    match rule.text("description") {
        Some(description) => format!("{name} ({description})"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plan_lists_rules_and_sessions() {
        let plan = json!({
            "rules_added": [{ "type": "ip_addr", "value": "0.0.0.0/0" }],
            "rules_removed": [{ "type": "ip_addr", "value": "10.0.0.1", "description": "office" }],
            "sessions_ended": [{
                "session": 7, "listener": "cache", "source": "10.0.0.1", "source_port": 4242, "client_subject": null,
                "reason": "source_revoked",
            }],
            "admits_nobody": false, "warnings": ["ip_addr:0.0.0.0/0 trusts every address of its family"],
        });
        let expected = "\
cache: this would change:
  + ip_addr:0.0.0.0/0
  - ip_addr:10.0.0.1 (office)
1 session would end
  SESSION  LISTENER  CLIENT         CERTIFICATE  REASON
  7        cache     10.0.0.1:4242  -            source_revoked
warning: ip_addr:0.0.0.0/0 trusts every address of its family
";
        assert_eq!(to_text(&plan, "cache"), expected);
    }

    #[test]
    fn plan_names_the_members_without_an_answer() {
        let text = |fleet: Value| to_text(&json!({ "fleet": fleet }), "cache");
        let missing = json!([{ "member": "b", "state": "unknown" }, { "member": "c", "state": "live" }]);
        for (fleet, expected) in [
            (json!({ "sessions_ended_count": 1, "missing": [] }), "in the fleet: 1 session would end\n"),
            (json!({ "sessions_ended_count": 0, "missing": [] }), "in the fleet: 0 sessions would end\n"),
            (
                json!({ "sessions_ended_count": null, "missing": missing }),
                "in the fleet: unknown: no answer from b (unknown), c (live)\n",
            ),
            (json!({ "sessions_ended_count": null, "missing": null }), "in the fleet: unknown\n"),
        ] {
            let text = text(fleet);
            assert!(text.ends_with(expected), "{text}");
        }
        assert!(!to_text(&json!({}), "cache").contains("fleet"), "without a fleet");
    }

    #[test]
    fn plan_that_admits_nobody_is_marked() {
        let plan = json!({ "admits_nobody": true, "rules_removed_count": 2000, "sessions_ended_count": 3 });
        let text = to_text(&plan, "cache");
        assert!(text.contains("\nno one can connect after this; 3 sessions would end\n"), "{text}");
        assert!(text.contains("\n  - and 1950 more"), "{text}");
        assert_eq!(to_text(&json!({}), "cache"), "cache: no rule would change\nno session would end\n");
    }
}
