use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use crate::addr::ListenAddr;
use crate::audit::changes::Difference;
use crate::policy::Snapshot;
use crate::policy::diff::value;
use crate::policy::diff::value::{Exposure, Value};
use crate::policy::fixtures::{ConfigDir, listener};
use crate::x509::crl::CrlSeries;

fn config_dir() -> ConfigDir {
    let dir = ConfigDir::new();
    dir.install("db", OffsetDateTime::now_utc() + time::Duration::days(365));
    dir
}

fn differences(after: &Snapshot, before: &Snapshot) -> Vec<Difference> {
    after.differences_since(before, OffsetDateTime::now_utc())
}

/// The differences of one listener whose rules change, as text.
fn of_rules(before: &str, after: &str) -> Vec<String> {
    let dir = config_dir();
    let [before, after] = [before, after].map(|rules| dir.snapshot(listener("db", 1001, rules), None));
    differences(&after, &before).iter().map(ToString::to_string).collect()
}

#[test]
fn same_policy_has_no_differences() {
    let dir = config_dir();
    let snapshot = dir.snapshot(listener("db", 1001, r#""10.0.0.0/8""#), None);
    assert_eq!(differences(&snapshot, &snapshot), []);
}

#[test]
fn relative_and_absolute_path_of_a_socket_are_the_same() {
    let dir = config_dir();
    let config = |admin: &str| format!("admin.listen = \"unix:{admin}\"\n{}", listener("db", 1001, ""));
    let mut before = dir.snapshot(config("admin.sock"), None);
    let Some(admin) = &mut Arc::make_mut(&mut before.config).admin else { panic!("[admin] is set") };
    admin.listen = vec![ListenAddr::Unix("admin.sock".into())];
    let here = std::env::current_dir().unwrap().join("admin.sock");
    assert_eq!(differences(&dir.snapshot(config(here.to_str().unwrap()), None), &before), []);
}

#[test]
fn policy_built_from_the_same_files_is_the_same_only_with_the_same_socket_group() {
    let dir = config_dir();
    let config = "[[listener]]\nname = \"db\"\nprotocol = \"tcp\"\nupstream = \"127.0.0.1:1\"\ntls = \"off\"\n\
                  listen = { address = \"unix:db.sock\", mode = \"0660\", group = \"0\" }\n";
    let before = dir.snapshot(config, None);
    let mut again = dir.snapshot(config, Some(&before));
    assert!(again.is_same_policy(&before));
    // As if the group had been given another number.
    let policy = Arc::make_mut(&mut again.policies[0]);
    policy.socket_files.values_mut().for_each(|access| access.group = Some(1));
    assert!(!again.is_same_policy(&before));
}

#[test]
fn policy_with_other_certificates_or_names_is_not_the_same() {
    let dir = config_dir();
    let config = listener("db", 1001, "");
    let before = dir.snapshot(&config, None);
    dir.install("db", OffsetDateTime::now_utc() + time::Duration::days(365));
    assert!(!dir.snapshot(&config, Some(&before)).is_same_policy(&before));
    let unrelated = dir.snapshot(&config, None);
    assert!(!unrelated.is_same_policy(&before), "its TLS would not resume sessions");
    assert!(unrelated.is_same_policy(&unrelated));
}

#[test]
fn rule_with_later_or_no_expiry_weakens() {
    let until = |end: &str| format!(r#"{{ type = "ip_addr", value = "0.0.0.0/0", expires_at = {end} }}"#);
    let [soon, late] = ["2998-01-31T00:00:00Z", "2999-01-31T00:00:00Z"].map(until);
    let never = r#""0.0.0.0/0""#;
    for (before, after, weakens) in
        [(soon.as_str(), never, true), (&soon, &late, true), (&late, &soon, false), (never, &soon, false)]
    {
        let reported = of_rules(before, after);
        assert_eq!(reported.len(), 1, "{reported:?}");
        assert_eq!(reported[0].contains("(weakens protection)"), weakens, "{reported:?}");
        assert!(reported[0].contains(" until 299") && reported[0].contains("ip_addr:0.0.0.0/0"), "{reported:?}");
    }
}

#[test]
fn wider_source_weakens_and_another_host_does_not() {
    for (before, after, expected) in [
        (r#""10.0.0.0/8""#, r#""0.0.0.0/0""#, "ip_addr:10.0.0.0/8 -> ip_addr:0.0.0.0/0"),
        (r#""10.1.0.0/16", "192.0.2.1""#, r#""192.0.2.0/24""#, "ip_addr:192.0.2.1/32 -> ip_addr:192.0.2.0/24"),
        (r#""10.1.2.0/24""#, r#""10.1.2.0/24", "172.16.0.0/12""#, "ip_addr:10.1.2.0/24 -> ip_addr:172.16.0.0/12"),
        (r#""10.0.0.0/8""#, r#""10.0.0.0/8", "::/0""#, "none -> ip_addr:::/0"),
        ("", r#""10.0.0.0/8""#, "none -> ip_addr:10.0.0.0/8"),
    ] {
        assert_eq!(of_rules(before, after), [format!("db trusted_sources: {expected} (weakens protection)")]);
    }
    for (before, after) in [
        (r#""10.0.0.0/8""#, r#""10.0.0.0/8", "192.0.2.1""#),
        (r#""10.0.0.0/8""#, r#""10.1.0.0/16""#),
        (r#""0.0.0.0/0""#, r#""0.0.0.0/0", "10.0.0.0/8""#),
        ("", r#""192.0.2.1", "2001:db8::1""#),
        (
            r#""10.0.0.0/8""#,
            r#""10.0.0.0/8", { type = "ip_addr", value = "0.0.0.0/0", expires_at = 2020-01-01T00:00:00Z }"#,
        ),
    ] {
        assert_eq!(of_rules(before, after), Vec::<String>::new(), "{before} {after}");
    }
}

#[test]
fn rule_with_another_description_is_a_difference() {
    let rule = |rest: &str| format!(r#"{{ type = "ip_addr", value = "192.0.2.1"{rest} }}"#);
    let expected = "db trusted_sources: ip_addr:192.0.2.1 -> ip_addr:192.0.2.1 (office)";
    assert_eq!(of_rules(&rule(""), &rule(r#", description = "office""#)), [expected]);
}

#[test]
fn listener_that_takes_over_an_address_is_compared_with_its_predecessor() {
    let dir = config_dir();
    dir.install("renamed", OffsetDateTime::now_utc() + time::Duration::days(365));
    let before = dir.snapshot(listener("db", 1001, ""), None);
    let observing = listener("renamed", 1001, "").replace("tls.", "enforcement = \"observe\"\ntls.");
    let differences = differences(&dir.snapshot(observing, None), &before);
    let weaker: Vec<_> = differences.iter().filter(|one| one.weakens).map(ToString::to_string).collect();
    assert_eq!(weaker, ["renamed enforcement: enforce -> observe (weakens protection)"]);
    assert!(differences.iter().any(|one| one.key == "name" && one.old.as_deref() == Some("db")), "{differences:?}");
}

#[test]
fn higher_degree_of_any_measure_is_weaker() {
    let exceeds = |old: &[u64], new: &[u64]| Exposure::Degrees(new.into()).exceeds(&Exposure::Degrees(old.into()));
    assert!(exceeds(&[1], &[2]) && exceeds(&[1, 5], &[0, 6]));
    assert!(!exceeds(&[2], &[1]) && !exceeds(&[2, 2], &[2, 2]) && !Exposure::None.exceeds(&Exposure::None));
}

#[test]
fn networks_with_more_addresses_are_weaker() {
    let exceeds = |old: &[&str], new: &[&str]| {
        let [old, new] = [old, new].map(|all| Exposure::Networks(all.iter().map(|net| net.parse().unwrap()).collect()));
        new.exceeds(&old)
    };
    assert!(exceeds(&["10.0.0.1/32"], &["10.0.0.0/24"]) && exceeds(&[], &["10.0.0.1/32"]));
    assert!(!exceeds(&["10.0.0.0/24"], &["10.0.0.1/32"]) && !exceeds(&["10.0.0.0/24"], &[]));
    assert!(!exceeds(&["10.0.0.0/25", "10.0.0.128/25"], &["10.0.0.0/24"]));
}

#[test]
fn added_client_pattern_or_empty_list_is_weaker() {
    let exceeds = |old: &[&str], new: &[&str]| {
        let [old, new] =
            [old, new].map(|all| Exposure::Clients(all.iter().map(|pattern| pattern.parse().unwrap()).collect()));
        new.exceeds(&old)
    };
    assert!(exceeds(&["cn:app"], &[]) && exceeds(&["cn:app"], &["cn:app", "cn:jobs"]));
    assert!(exceeds(&["uri:spiffe://prod/app"], &["uri:spiffe://prod/*"]));
    assert!(!exceeds(&["cn:app", "cn:jobs"], &["cn:app"]) && !exceeds(&[], &["cn:app"]));
    assert!(!exceeds(&["uri:spiffe://prod/*", "dns:*.app"], &["uri:spiffe://prod/app", "dns:a.app"]));
}

#[test]
fn removed_or_older_crl_is_weaker() {
    let at = |day: i64| OffsetDateTime::UNIX_EPOCH + time::Duration::days(day);
    let exposure = |lists: &[(&str, i64)], anchors: &[&str]| Exposure::Revocation {
        lists: lists.iter().map(|(key, day)| (CrlSeries::complete("CN=A", key), at(*day))).collect::<BTreeMap<_, _>>(),
        anchors: anchors.iter().map(|anchor| (*anchor).to_owned()).collect(),
    };
    let old = exposure(&[("old key", 5), ("new key", 9)], &["old key", "new key"]);
    for (lists, anchors, weaker) in [
        (&[("old key", 6), ("new key", 9)][..], &["old key", "new key"][..], false),
        (&[("old key", 4), ("new key", 9)], &["old key", "new key"], true),
        (&[("new key", 10)], &["old key", "new key"], true),
        (&[("new key", 9)], &["new key"], false),
        (&[], &["other key"], false),
    ] {
        assert_eq!(exposure(lists, anchors).exceeds(&old), weaker, "{lists:?} {anchors:?}");
    }
}

#[test]
fn long_lists_show_only_differing_elements() {
    let names = |from: usize, to: usize| Value::Many((from..to).map(|number| format!("cn:client-{number}")).collect());
    let (old, new) = value::to_text(Some(&names(0, 200)), Some(&names(1, 201)));
    assert_eq!(
        (old.as_deref(), new.as_deref()),
        (Some("cn:client-0, 199 unchanged"), Some("cn:client-200, 199 unchanged"))
    );
}

#[test]
fn durations_are_written_as_in_the_configuration() {
    for (milliseconds, text) in [(0, "0s"), (250, "250ms"), (90_000, "1m30s"), (300_000, "5m"), (90_000_000, "1d1h")] {
        assert_eq!(value::duration(Duration::from_millis(milliseconds)), text);
    }
}

/// The differences of a listener and a group that change together, as text.
fn of_groups(before: [&str; 2], after: [&str; 2]) -> Vec<String> {
    let dir = config_dir();
    let config = |[own, web]: [&str; 2]| {
        let group = format!("[[source_group]]\nname = \"web\"\ntrusted_sources = [{web}]\n");
        dir.snapshot(format!("{group}{}", listener("db", 1001, own)), None)
    };
    differences(&config(after), &config(before)).iter().map(ToString::to_string).collect()
}

#[test]
fn wider_rule_in_a_group_weakens_the_group() {
    assert_eq!(
        of_groups(["\"group:web\"", "\"10.1.0.0/16\""], ["\"group:web\"", "\"10.1.0.0/16\", \"10.0.0.0/8\""]),
        ["group:web trusted_sources: ip_addr:10.1.0.0/16 -> ip_addr:10.0.0.0/8 (weakens protection)"]
    );
    assert_eq!(
        of_groups(["\"group:web\"", "\"10.1.0.0/16\""], ["\"group:web\"", "\"10.1.0.0/16\", \"10.2.0.1\""]),
        Vec::<String>::new()
    );
}

#[test]
fn group_with_a_wider_rule_weakens_the_listener_that_names_it() {
    let own = "\"10.1.0.0/16\"";
    let with_group = "\"10.1.0.0/16\", \"group:web\"";
    assert_eq!(
        of_groups([own, "\"10.1.2.3\", \"10.0.0.0/8\""], [with_group, "\"10.1.2.3\", \"10.0.0.0/8\""]),
        ["db trusted_sources: ip_addr:10.1.0.0/16 -> group:web with ip_addr:10.0.0.0/8 (weakens protection)"]
    );
    assert_eq!(of_groups([own, "\"10.1.2.3\""], [with_group, "\"10.1.2.3\""]), Vec::<String>::new());
    assert_eq!(
        of_groups([with_group, "\"10.0.0.0/8\""], ["\"10.0.0.0/9\"", "\"10.0.0.0/8\""]),
        Vec::<String>::new(),
        "the group trusted it before"
    );
}

#[test]
fn added_group_is_a_difference() {
    let dir = config_dir();
    let before = dir.snapshot(listener("db", 1001, "\"10.0.0.1\""), None);
    let group = "[[source_group]]\nname = \"web\"\ntrusted_sources = [\"10.0.0.2\"]\n";
    let after = dir.snapshot(format!("{group}{}", listener("db", 1001, "\"10.0.0.1\"")), None);
    let shown: Vec<_> = differences(&after, &before).iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["source_group: none -> web"]);
}
