use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;

use proptest::prelude::*;
use time::Duration;

use super::*;
use crate::config::resolver::WrittenResolvers;
use crate::config::sources::GroupScope;
use crate::timestamp;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(20_000));
const PAST: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
const FUTURE: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(30_000));

fn target<'a>(rules: &'a [Arc<Rule>]) -> Target<'a> {
    let scope = RuleScope { resolvers: WrittenResolvers::NONE, groups: GroupScope::Named(&[]) };
    Target { file: Path::new("sources.toml"), owner: "cache", rules, scope }
}

fn read(text: &str) -> Vec<Rule> {
    let read = target(&[]).read(text, &mut RuleCache::default()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    // Whether a rule states its UUID may change.
    read.iter().map(|rule| Rule { has_stated_uuid: false, ..Rule::clone(rule) }).collect()
}

fn new(value: &str) -> NewRule {
    let kind = if value.contains("internal") { "dns" } else { "ip_addr" };
    NewRule { kind: kind.into(), value: value.into(), uuid: None, description: Field::Keep, expires_at: Field::Keep }
}

fn all(values: &[&str]) -> Vec<NewRule> {
    values.iter().map(|value| new(value)).collect()
}

fn edit(text: &str, change: SourcesChange) -> String {
    apply(text, &target(&[]), &change, NOW, &mut RuleCache::default()).unwrap().text
}

fn append(text: &str, values: &[&str]) -> String {
    edit(text, SourcesChange::Append(all(values)))
}

fn replace(text: &str, values: &[&str]) -> String {
    edit(text, SourcesChange::Replace(all(values)))
}

fn values(text: &str) -> Vec<String> {
    read(text).iter().map(|rule| rule.written_value().into_owned()).collect()
}

/// The text with the UUIDs of new rules as `…`.
fn without_uuids(text: &str) -> String {
    let line = |line: &str| if line.starts_with("uuid = ") { "uuid = …".to_owned() } else { line.to_owned() };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

const OFFICE: &str = "[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.0.0.1\"\ndescription = \"office\"\n";
const ADDED: &str = "[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.0.0.2\"\nuuid = …\ncreated_at = 2024-10-04T00:00:00Z\n";

#[test]
fn appended_rule_stands_at_the_end() {
    for (text, expected) in [
        (format!("# file\n\n{OFFICE}"), format!("# file\n\n{OFFICE}\n{ADDED}")),
        (format!("{OFFICE}\n# end"), format!("{OFFICE}\n# end\n\n{ADDED}")),
        (format!("{OFFICE}\n\n"), format!("{OFFICE}\n\n{ADDED}")),
        ("# file\nrule = [] # nobody\n".to_owned(), format!("# file\n\n# nobody\n\n{ADDED}")),
        ("rule = []".to_owned(), ADDED.to_owned()),
        ("# no rules\n".to_owned(), format!("# no rules\n\n{ADDED}")),
        (
            "rule = [{ type = 'ip_addr', value = '10.0.0.1' }] # x\n".to_owned(),
            format!("[[rule]]\ntype = 'ip_addr'\nvalue = '10.0.0.1'\n\n# x\n\n{ADDED}"),
        ),
    ] {
        assert_eq!(without_uuids(&append(&text, &["10.0.0.2"])), expected);
        let crlf = |text: &str| text.replace('\n', "\r\n");
        let edited = append(&crlf(&text), &["10.0.0.2"]);
        assert!(edited.replace("\r\n", "").find('\n').is_none() || !text.contains('\n'), "{edited:?}");
    }
}

#[test]
fn appended_rule_that_is_there_changes_nothing() {
    let escaped = OFFICE.replace("\"10.0.0.1\"", "\"10.0.0\\u002e1\"");
    let inline = "rule = [\n  { type = \"ip_addr\", value = \"10.0.0.1\" }, # x\n]\n".to_owned();
    for text in [OFFICE.to_owned(), escaped, OFFICE.replace("\"10.0.0.1\"", "'''10.0.0.1'''"), inline] {
        let edited =
            apply(&text, &target(&[]), &SourcesChange::Append(all(&["10.0.0.1"])), NOW, &mut RuleCache::default())
                .unwrap();
        assert_eq!(edited.text, text);
        assert_eq!(edited.affected, [read(&text)[0].uuid]);
    }
    assert_eq!(values(&append(OFFICE, &["10.0.0.1/32", "10.0.0.1/32"])), ["10.0.0.1", "10.0.0.1/32"]);
}

#[test]
fn appended_rule_renews_an_expired_one() {
    let text = format!("{OFFICE}expires_at = 1970-01-01T00:00:00Z # soon\n");
    let before = read(&text);
    let edited = append(&text, &["10.0.0.1"]);
    assert_eq!(edited, OFFICE);
    let until = NewRule { expires_at: Field::Set(FUTURE + Duration::milliseconds(7)), ..new("10.0.0.1") };
    let edited = edit(&text, SourcesChange::Append(vec![until]));
    assert_eq!(edited, format!("{OFFICE}expires_at = {} # soon\n", timestamp::seconds(FUTURE)));
    assert_eq!(read(&edited)[0].uuid, before[0].uuid);
}

#[test]
fn removed_last_rule_leaves_an_explicit_empty_list() {
    let text = format!("# file\n\n# office\n{OFFICE}# below\n\n# end\n");
    let uuid = read(&text)[0].uuid;
    assert_eq!(edit(&text, SourcesChange::Remove(vec![uuid])), "# file\n\n# end\nrule = []\n");
    assert_eq!(replace(OFFICE, &[]), "rule = []\n");
    assert_eq!(replace("rule = []\n", &[]), "rule = []\n");
    assert_eq!(values(&replace("rule = []\n", &["10.0.0.1"])), ["10.0.0.1"]);
}

#[test]
fn removed_rule_takes_its_comments_along_and_no_others() {
    let other = OFFICE.replace("10.0.0.1", "10.0.0.2");
    let text = format!("# file\n\n# office\n{OFFICE}\n# section\n\n# other\n{other}\n{}", OFFICE.replace(".1", ".3"));
    let rules = read(&text);
    let without = |index: usize| edit(&text, SourcesChange::Remove(vec![rules[index].uuid]));
    let last = OFFICE.replace(".1", ".3");
    assert_eq!(without(0), format!("# file\n\n# section\n\n# other\n{other}\n{last}"));
    assert_eq!(without(1), format!("# file\n\n# office\n{OFFICE}\n# section\n\n{last}"));
    assert_eq!(without(2), format!("# file\n\n# office\n{OFFICE}\n# section\n\n# other\n{other}"));
}

#[test]
fn unknown_uuid_is_named() {
    let uuid = Uuid::from_u128(7);
    let error =
        apply(OFFICE, &target(&[]), &SourcesChange::Remove(vec![uuid]), NOW, &mut RuleCache::default()).unwrap_err();
    assert_eq!(error, EditError::UnknownUuid(uuid));
    assert!(error.to_string().contains(&uuid.to_string()));
    let configured = Rule { uuid, ..read(OFFICE).remove(0) };
    let configured = [Arc::new(Rule { origin: Origin::Configuration, ..configured })];
    let error = apply(OFFICE, &target(&configured), &SourcesChange::Remove(vec![uuid]), NOW, &mut RuleCache::default())
        .unwrap_err();
    assert_eq!(error, EditError::Configured(uuid));
}

#[test]
fn uuid_survives_another_spelling_and_the_removal_of_a_duplicate() {
    let text = format!("{OFFICE}\n{OFFICE}\n{OFFICE}");
    let before = read(&text);
    let edited = edit(&text, SourcesChange::Remove(vec![before[0].uuid]));
    assert_eq!(read(&edited), before[1..]);
    let edited = replace(OFFICE, &["10.0.0.1/32"]);
    let after = read(&edited);
    assert_eq!((values(&edited), after[0].uuid), (vec!["10.0.0.1/32".to_owned()], before[0].uuid));
    assert_eq!(after[0].description.as_deref(), Some("office"));
    // The old spelling is a new rule, and the adopted UUID stays where it is.
    let both = read(&append(&edited, &["10.0.0.1"]));
    assert_eq!(both[0], after[0]);
    let by_hand = read(&format!("{edited}\n{OFFICE}"));
    assert_ne!(by_hand[1].uuid, by_hand[0].uuid);
}

#[test]
fn uuid_of_the_request_selects_among_spellings_of_one_address() {
    let text = format!("{OFFICE}\n{}", OFFICE.replace("10.0.0.1", "::ffff:10.0.0.1"));
    let before = read(&text);
    let sent = NewRule { uuid: Some(before[1].uuid), ..new("10.0.0.1/32") };
    let after = read(&edit(&text, SourcesChange::Replace(vec![sent])));
    assert_eq!(after.iter().map(|rule| rule.uuid).collect::<Vec<_>>(), [before[1].uuid]);
    let foreign = NewRule { uuid: Some(Uuid::from_u128(7)), ..new("10.0.0.9") };
    let after = read(&edit(&text, SourcesChange::Replace(vec![foreign])));
    assert_ne!(after[0].uuid, Uuid::from_u128(7));
}

#[test]
fn configured_rule_is_only_added_to_the_file_by_a_replacement() {
    let uuid = Uuid::from_u128(7);
    let rule = Rule { uuid, origin: Origin::Configuration, ..read(OFFICE).remove(0) };
    let configured = [Arc::new(rule)];
    let other = OFFICE.replace("10.0.0.1", "10.0.0.2");
    let append = SourcesChange::Append(all(&["10.0.0.1"]));
    let edited = apply(&other, &target(&configured), &append, NOW, &mut RuleCache::default()).unwrap();
    assert_eq!((edited.text.as_str(), edited.affected.as_slice()), (other.as_str(), &[uuid][..]));
    // A client that replaces the rules reads all of them again, each with a UUID of its own.
    let both = SourcesChange::Replace(all(&["10.0.0.2", "10.0.0.1"]));
    let edited = apply(&other, &target(&configured), &both, NOW, &mut RuleCache::default()).unwrap();
    assert_eq!(values(&edited.text), ["10.0.0.2", "10.0.0.1"]);
    assert!(!edited.affected.contains(&uuid));
    let configured_only = SourcesChange::Replace(vec![NewRule { uuid: Some(uuid), ..new("10.0.0.1") }]);
    assert_eq!(
        apply(OFFICE, &target(&configured), &configured_only, NOW, &mut RuleCache::default()).unwrap().text,
        "rule = []\n"
    );
}

#[test]
fn invalid_rule_is_described_for_the_caller() {
    let error = |rule: NewRule| {
        let rules = vec![new("10.0.0.2"), rule];
        let append = apply(OFFICE, &target(&[]), &SourcesChange::Append(rules.clone()), NOW, &mut RuleCache::default())
            .unwrap_err();
        let replace =
            apply(OFFICE, &target(&[]), &SourcesChange::Replace(rules), NOW, &mut RuleCache::default()).unwrap_err();
        assert_eq!(append, replace);
        append.to_string()
    };
    let kind = |kind: &str, value: &str| NewRule { kind: kind.into(), ..new(value) };
    let described = |text: &str| NewRule { description: Field::Set(text.into()), ..new("10.0.0.3") };
    assert_eq!(
        error(new("10.0.0.1/8")),
        "rules[1].value: found \"10.0.0.1/8\", which is an address with bits set beyond its prefix length; \
         did you mean \"10.0.0.0/8\"?"
    );
    for (rule, expected) in [
        (
            kind("ip_addr", "db.internal"),
            "rules[1].value: found \"db.internal\", which is not an IPv4 or IPv6 address or network; a host name needs type \"dns\"",
        ),
        (kind("dns", "10.0.0.1"), "rules[1].value: found \"10.0.0.1\", which is an address"),
        (
            kind("droplet", "123"),
            "rules[1].type: a source of type \"droplet\" needs [resolver.digitalocean]; add [resolver.digitalocean]",
        ),
        (
            kind("ipaddr", "10.0.0.1"),
            "rules[1].type: found \"ipaddr\", expected \"ip_addr\", \"dns\", \"group\", \"droplet\"",
        ),
        (kind("ip\n[[rule]]\0", "10.0.0.1"), "rules[1].type: found "),
        (new("10.0.0.1\0"), "rules[1].value: contains the control character U+0000; remove it"),
        (new(&"a".repeat(256)), "rules[1].value: has 256 characters; shorten it to at most 255"),
        (new(""), "rules[1].value: found \"\""),
        (described("a\nb"), "rules[1].description: contains the control character U+000A; remove it"),
        (described("a\u{202e}b"), "rules[1].description: contains the control character U+202E; remove it"),
        (described(&"ä".repeat(256)), "rules[1].description: has 256 characters; shorten it to at most 255"),
    ] {
        let error = error(rule);
        assert!(error.starts_with(expected), "{error}");
    }
    assert!(
        apply(
            OFFICE,
            &target(&[]),
            &SourcesChange::Append(vec![described(&"ä".repeat(255))]),
            NOW,
            &mut RuleCache::default()
        )
        .is_ok()
    );
}

#[test]
fn invalid_file_is_reported_and_not_edited() {
    for text in [
        "",
        " \n",
        "rule = 1",
        "[[rule]]\nvalue = \"10.0.0.1\"\n",
        "[[rule",
        "[[\"r\\u0075le\"]]\ntype = \"dns\"\nvalue = \"a\"\n",
    ] {
        let error =
            apply(text, &target(&[]), &SourcesChange::Replace(Vec::new()), NOW, &mut RuleCache::default()).unwrap_err();
        assert!(matches!(error, EditError::File(_) | EditError::Form(_)), "{text}: {error}");
    }
}

#[test]
fn description_and_expiry_survive_a_replacement_that_does_not_mention_them() {
    let text = format!("{OFFICE}expires_at = 2100-01-01T00:00:00Z\n");
    assert_eq!(replace(&text, &["10.0.0.1"]), text);
    for description in [Field::Clear, Field::Set(String::new())] {
        let clear = NewRule { description, expires_at: Field::Clear, ..new("10.0.0.1") };
        let edited = edit(&text, SourcesChange::Replace(vec![clear]));
        assert_eq!(edited, OFFICE.replace("description = \"office\"\n", ""));
    }
}

/// Values of which several name the same source.
const VALUES: [&str; 7] =
    ["10.0.0.1", "10.0.0.1/32", "::ffff:10.0.0.1", "10.0.0.2", "2001:DB8::2", "App.internal", "app.internal"];

/// A rule of a random file, with comments that are unique in the file.
fn random_table() -> impl Strategy<Value = String> {
    let comments = (any::<bool>(), any::<bool>(), any::<bool>());
    let fields = (any::<bool>(), prop_oneof![Just(None), Just(Some(PAST)), Just(Some(FUTURE))], any::<bool>());
    (0..VALUES.len(), comments, fields, any::<u64>()).prop_map(
        |(value, (free, attached, inner), (description, expires_at, identity), unique)| {
            let rule = new(VALUES[value]);
            let mut text = String::new();
            let _ = if free { write!(text, "# free {unique}\n\n") } else { Ok(()) };
            let _ = if attached { writeln!(text, "# attached {unique}") } else { Ok(()) };
            let _ = writeln!(text, "[[rule]]\ntype = '{}'", rule.kind);
            let _ = if inner { writeln!(text, "\n  # inner {unique}") } else { Ok(()) };
            let _ = writeln!(text, "value   = \"{}\" # value {unique}", rule.value);
            let _ = if description { writeln!(text, "description = \"{unique}\"") } else { Ok(()) };
            let _ = expires_at.map(|end| writeln!(text, "expires_at = {}", timestamp::seconds(end)));
            if identity {
                let _ = writeln!(text, "uuid = \"{}\"", Uuid::from_u128(u128::from(unique) + 1));
                let _ = writeln!(text, "created_at = 2026-01-01T00:00:00Z");
            }
            text + "\n"
        },
    )
}

fn random_file() -> impl Strategy<Value = String> {
    (proptest::collection::vec(random_table(), 0..8), any::<bool>(), any::<bool>()).prop_map(|(tables, crlf, cut)| {
        let mut text = if tables.is_empty() { "# none\nrule = []\n".to_owned() } else { tables.concat() };
        text = if cut { text.trim_end().to_owned() } else { text };
        if crlf { text.replace('\n', "\r\n") } else { text }
    })
}

fn random_rule() -> impl Strategy<Value = NewRule> {
    let description = prop_oneof![Just(Field::Keep), Just(Field::Clear), Just(Field::Set("new \"text\"".to_owned()))];
    let expires_at = prop_oneof![Just(Field::Keep), Just(Field::Clear), Just(Field::Set(FUTURE))];
    (0..VALUES.len(), description, expires_at).prop_map(|(value, description, expires_at)| NewRule {
        description,
        expires_at,
        ..new(VALUES[value])
    })
}

fn random_rules() -> impl Strategy<Value = Vec<NewRule>> {
    proptest::collection::vec(random_rule(), 0..8)
}

fn tables(text: &str) -> Vec<&str> {
    let table = |part| match part {
        Part::Rule(text) => Some(text),
        Part::Free(_) => None,
    };
    layout::parts(text).into_iter().filter_map(table).collect()
}

/// Rules that are the same before and after an edit have the same text, in the same order, and all free comments are left.
fn check_untouched(text: &str, edited: &str) -> Result<(), TestCaseError> {
    let (before, after) = (read(text), read(edited));
    let mut tables_after: Vec<_> = after.iter().zip(tables(edited)).collect();
    for (rule, table) in before.iter().zip(tables(text)) {
        if let Some(position) = tables_after.iter().position(|(other, _)| *other == rule) {
            // A derived UUID is stated if it would change otherwise.
            let stated = format!("uuid = \"{}\"", rule.uuid);
            let is_stated = |line: &&str| line.trim_end() != stated || table.contains(&stated);
            let after: String = tables_after[position].1.split_inclusive('\n').filter(is_stated).collect();
            prop_assert_eq!(table.trim_end(), after.trim_end());
            tables_after.drain(..=position);
        }
    }
    for line in text.lines().filter(|line| line.starts_with("# free") || line.starts_with("# none")) {
        prop_assert!(edited.contains(line), "{}", line);
    }
    Ok(())
}

fn distinct(rules: &[NewRule]) -> Vec<&NewRule> {
    let mut seen = HashSet::new();
    rules.iter().filter(|rule| seen.insert((&rule.kind, &rule.value))).collect()
}

/// The UUIDs of the rules for each source.
fn by_source<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> BTreeMap<String, BTreeSet<Uuid>> {
    let mut uuids: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for rule in rules {
        let source = rule.source.network().map_or_else(|| rule.source.value(), |network| network.net().to_string());
        uuids.entry(source).or_default().insert(rule.uuid);
    }
    uuids
}

proptest! {
    #[test]
    fn removal_leaves_all_other_rules(text in random_file(), chosen in proptest::collection::vec(any::<bool>(), 8)) {
        let before = read(&text);
        let (gone, left): (Vec<_>, Vec<_>) = before.iter().zip(chosen).partition(|(_, chosen)| *chosen);
        let uuids: Vec<_> = gone.iter().map(|(rule, _)| rule.uuid).collect();
        let edited = edit(&text, SourcesChange::Remove(uuids.clone()));
        prop_assert_eq!(&read(&edited), &left.iter().map(|(rule, _)| (*rule).clone()).collect::<Vec<_>>());
        check_untouched(&text, &edited)?;
        if uuids.is_empty() {
            prop_assert_eq!(edited, text);
        }
    }

    #[test]
    fn appended_rules_are_in_force_and_all_others_unchanged(text in random_file(), rules in random_rules()) {
        let before = read(&text);
        let change = SourcesChange::Append(rules.clone());
        let edited = apply(&text, &target(&[]), &change, NOW, &mut RuleCache::default()).unwrap();
        let after = read(&edited.text);
        check_untouched(&text, &edited.text)?;
        prop_assert_eq!(rules.len(), edited.affected.len());
        for (rule, uuid) in rules.iter().zip(&edited.affected) {
            let found = after.iter().find(|found| found.uuid == *uuid).unwrap();
            prop_assert_eq!((found.source.kind(), &*found.written_value()), (rule.kind.as_str(), rule.value.as_str()));
            prop_assert!(found.is_live(NOW));
        }
        for (old, new) in before.iter().zip(&after) {
            prop_assert_eq!((old.uuid, &old.source, &old.spelling, &old.origin), (new.uuid, &new.source, &new.spelling, &new.origin));
            prop_assert!(old == new || !old.is_live(NOW) && edited.affected.contains(&old.uuid));
        }
        for added in &after[before.len()..] {
            prop_assert_eq!(&added.origin, &Origin::SourcesFile { created_at: Some(NOW) });
            prop_assert!(!before.iter().any(|old| old.source.kind() == added.source.kind() && old.written_value() == added.written_value()));
        }
        let again = apply(&edited.text, &target(&[]), &change, NOW, &mut RuleCache::default()).unwrap();
        prop_assert_eq!(again, edited);
    }

    #[test]
    fn replaced_rules_keep_their_identity(text in random_file(), rules in random_rules()) {
        let before = read(&text);
        let change = SourcesChange::Replace(rules.clone());
        let edited = apply(&text, &target(&[]), &change, NOW, &mut RuleCache::default()).unwrap();
        let after = read(&edited.text);
        check_untouched(&text, &edited.text)?;
        let wanted = distinct(&rules);
        prop_assert_eq!(after.len(), wanted.len());
        for rule in &wanted {
            let found = after.iter().find(|found| found.source.kind() == rule.kind && found.written_value() == rule.value).unwrap();
            let old = before.iter().find(|old| old.uuid == found.uuid);
            let description = rule.description.clone().after(old.and_then(|old| old.description.clone()));
            prop_assert_eq!(&found.description, &description);
            prop_assert_eq!(found.expires_at, rule.expires_at.after(old.and_then(|old| old.expires_at)));
            let exact = before.iter().any(|old| old.source.kind() == rule.kind && old.written_value() == rule.value);
            prop_assert!(!exact || old.is_some_and(|old| old.written_value() == rule.value));
            prop_assert!(old.is_none_or(|old| old.origin == found.origin));
        }
        // As many UUIDs of each source survive as can.
        let (old, new) = (by_source(&before), by_source(&after));
        for (source, uuids) in &new {
            let known = old.get(source).map_or(0, BTreeSet::len);
            let kept = old.get(source).map_or(0, |known| known.intersection(uuids).count());
            prop_assert_eq!(kept, known.min(uuids.len()));
        }
        let again = apply(&edited.text, &target(&[]), &change, NOW, &mut RuleCache::default()).unwrap();
        prop_assert_eq!(again, edited);
    }

    #[test]
    fn any_text_is_edited_or_rejected(lines in proptest::collection::vec(
        "\\[\\[rule\\]\\]|type = 'dns'|value = \"[a-c]\"|rule = \\[\\]|rule = \\[|\\{ type = 'dns', value = 'a' \\},?|\\]|# x|'''|\\PC{0,6}|", 0..12,
    )) {
        let text = lines.join("\n");
        for change in [SourcesChange::Append(all(&["b.internal"])), SourcesChange::Replace(all(&["b.internal"]))] {
            if let Ok(edited) = apply(&text, &target(&[]), &change, NOW, &mut RuleCache::default()) {
                let cache = &mut RuleCache::default();
                prop_assert!(target(&[]).read(&text, cache).is_err() || target(&[]).read(&edited.text, cache).is_ok());
            }
        }
    }
}

/// Run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn edits_of_100_000_rules_are_measured() {
    let rule = |number: usize| {
        let (a, b) = (number / 256, number % 256);
        let uuid = Uuid::from_u128(number as u128 + 1);
        format!(
            "[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.{}.{}.{b}\"\ndescription = \"rule\"\nuuid = \"{uuid}\"\ncreated_at = 2026-01-01T00:00:00Z\n\n",
            a / 256,
            a % 256
        )
    };
    let text: String = (0..100_000).map(rule).collect();
    let measure = |what: &str, change: SourcesChange| {
        let start = std::time::Instant::now();
        let edited = apply(&text, &target(&[]), &change, NOW, &mut RuleCache::default()).unwrap();
        println!("{what}: {:?} ({} bytes)", start.elapsed(), edited.text.len());
    };
    let start = std::time::Instant::now();
    let rules = read(&text);
    println!("read: {:?} ({} rules, {} bytes each)", start.elapsed(), rules.len(), size_of::<Rule>());
    measure("append a new rule", SourcesChange::Append(all(&["192.0.2.1"])));
    measure("append a rule that is there", SourcesChange::Append(all(&["10.0.200.7"])));
    measure("remove one", SourcesChange::Remove(vec![rules[50_000].uuid]));
    let sent: Vec<_> = rules.iter().map(|rule| new(&rule.written_value())).collect();
    measure("replace with the same", SourcesChange::Replace(sent.clone()));
    measure("replace with one less", SourcesChange::Replace(sent[1..].to_vec()));
    measure("replace with one", SourcesChange::Replace(all(&["10.0.0.1"])));
}
