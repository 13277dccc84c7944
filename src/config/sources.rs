//! Trusted sources as written in the table of a listener or a group, and in its `sources_file`.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::config::document::{self, Document, Node, Section, limit_reported};
use crate::config::files::Files;
use crate::config::problem::{Position, Problem, Problems};
use crate::config::resolver::WrittenResolvers;
use crate::config::rule_cache::{PartDigest, RuleCache};
use crate::config::shown;
use crate::source::cloud::{CloudSource, Resolver};
use crate::source::group::GroupName;
use crate::source::host::{Host, HostName};
use crate::source::id::{DerivedUuids, Place};
use crate::source::rule::{Network, NetworkError, Origin, Rule, Source};

/// The listener or the group whose rules are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RulesOf<'a> {
    /// The text of its [`RuleOwner`](crate::source::group::RuleOwner).
    pub owner: &'a str,
    pub scope: RuleScope<'a>,
}

/// What the rules may name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuleScope<'a> {
    /// The resolvers that the rules may need.
    pub resolvers: WrittenResolvers,
    pub groups: GroupScope<'a>,
}

/// The groups that rules may name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GroupScope<'a> {
    /// Those with these names.
    Named(&'a [GroupName]),
    /// None, because these are the rules of a group.
    InGroup,
}

impl GroupScope<'_> {
    fn has(self, name: &GroupName) -> bool {
        matches!(self, Self::Named(names) if names.contains(name))
    }
}

/// Reads the rules of `trusted_sources`.
pub(crate) fn configured(list: &Node<'_>, of: RulesOf<'_>) -> Vec<Arc<Rule>> {
    let nodes = list.list("a list of trusted sources such as [\"10.0.0.0/8\"]").unwrap_or_default();
    let mut uuids = DerivedUuids::new(of.owner, Place::Configuration, HashSet::new());
    let with_uuid = |rule: Rule| {
        let uuid = uuids.next(rule.source.kind(), &rule.written_value());
        Arc::new(Rule { uuid, ..rule })
    };
    nodes.iter().filter_map(|node| configured_rule(node, of.scope)).map(with_uuid).collect()
}

/// Reads the rules of a `sources_file`, or returns its problems. `configured` are the other rules of the same owner.
pub(crate) fn from_file(
    file: &Path,
    files: &mut Files,
    of: RulesOf<'_>,
    configured: &[Arc<Rule>],
) -> Result<Vec<Arc<Rule>>, Vec<Problem>> {
    let whole_file = |message: String| vec![Problem { position: Position::file(file), key: String::new(), message }];
    let bytes = files.read(file).map_err(whole_file)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| whole_file(format!("is not UTF-8: {error}")))?;
    let taken = configured.iter().map(|rule| rule.uuid).collect();
    from_text(file, text, of, taken, &mut files.rules)
}

/// Reads the rules from the text of a `sources_file`, or returns its problems. `taken` are the UUIDs of other rules of the same
/// owner. Parts of the text that `cache` knows are not parsed.
pub(crate) fn from_text(
    file: &Path,
    text: &str,
    of: RulesOf<'_>,
    mut taken: HashSet<Uuid>,
    cache: &mut RuleCache,
) -> Result<Vec<Arc<Rule>>, Vec<Problem>> {
    let RulesOf { owner, scope } = of;
    let whole_file = |message: String| vec![Problem { position: Position::file(file), key: String::new(), message }];
    if text.trim().is_empty() {
        // Editors and copies truncate a file before they write it. No client may lose access in between.
        return Err(whole_file(EMPTY.to_owned()));
    }
    let (mut rules, mut problems, mut omitted) = (Vec::new(), Vec::new(), 0);
    let (mut lines_before, mut rules_before) = (0, 0);
    let mut parsed = Vec::new();
    for part in parts(text) {
        let digest = PartDigest::of(owner, scope.resolvers, part);
        // A rule that repeats a UUID, or names an unknown group, is reported with its position.
        let is_valid = |rule: &Arc<Rule>| {
            !taken.contains(&rule.uuid) && rule.source.group().is_none_or(|group| scope.groups.has(group))
        };
        let known = cache.get(digest).filter(|known| known.iter().all(is_valid));
        if let Some(known) = known {
            taken.extend(known.iter().filter(|rule| rule.has_stated_uuid).map(|rule| rule.uuid));
            rules_before += known.len();
            rules.extend(known.iter().cloned());
        } else {
            let document = Document::part(file, part, lines_before);
            let tree = document.parse().map_err(Problems::into_vec)?;
            let root = document.root(tree.get_ref());
            let nodes = root.get("rule").and_then(|node| node.list("[[rule]] tables")).unwrap_or_default();
            let numbered =
                nodes.iter().enumerate().map(|(index, node)| node.with_key(format!("rule[{}]", rules_before + index)));
            let first = rules.len();
            rules.extend(numbered.filter_map(|node| file_rule(&node, &mut taken, scope)).map(Arc::new));
            root.finish();
            rules_before += nodes.len();
            parsed.push((digest, first..rules.len()));
            let (mut reported, more) = document.into_reported_and_omitted();
            problems.append(&mut reported);
            omitted += more;
        }
        lines_before += part.matches('\n').count();
    }
    if !problems.is_empty() {
        return Err(limit_reported(problems, omitted));
    }
    rules.shrink_to_fit();
    let mut uuids = DerivedUuids::new(owner, Place::SourcesFile, taken);
    for rule in rules.iter_mut().filter(|rule| !rule.has_stated_uuid) {
        let uuid = uuids.next(rule.source.kind(), &rule.written_value());
        if rule.uuid != uuid {
            Arc::make_mut(rule).uuid = uuid;
        }
    }
    for (digest, range) in parsed {
        cache.insert(digest, rules.get(range).unwrap_or_default());
    }
    Ok(rules)
}

/// Splits the text into documents of at most [`MAX_PART`] rules. The tree of a large file would take twenty times the memory of
/// the file at every reload.
///
/// Where a part ends depends on the text of its last rule, so that parts before and after a changed rule stay the same.
fn parts(text: &str) -> Vec<&str> {
    // A line inside a multi-line string could look like the start of a rule.
    if text.contains("\"\"\"") || text.contains("'''") {
        return vec![text];
    }
    let starts = text.match_indices("\n[[rule]]").map(|(newline, _)| newline + 1);
    let (mut parts, mut begin, mut rule, mut rules) = (Vec::new(), 0, 0, 0);
    for start in starts {
        rules += 1;
        let last = text.get(rule..start).unwrap_or_default();
        if rules == MAX_PART || ends_part(last) {
            parts.extend(text.get(begin..start));
            (begin, rules) = (start, 0);
        }
        rule = start;
    }
    parts.extend(text.get(begin..));
    parts
}

/// Whether a part ends after a rule with this text: one of [`MEAN_PART`] by its hash.
fn ends_part(rule: &str) -> bool {
    // FNV-1a of the beginning, which has the value. An operator who defeats it gets parts of the maximum size.
    let hash = rule
        .bytes()
        .take(HASHED)
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash >> 32) % MEAN_PART == 0
}

fn configured_rule(node: &Node<'_>, scope: RuleScope<'_>) -> Option<Rule> {
    if !node.is_table() {
        return string_rule(node, scope);
    }
    let section = node.section("a trusted source")?;
    let rule = table_rule(&section, Origin::Configuration, scope);
    section.finish();
    rule
}

fn file_rule(node: &Node<'_>, taken: &mut HashSet<Uuid>, scope: RuleScope<'_>) -> Option<Rule> {
    let section = node.section("a [[rule]] table")?;
    let uuid = section.get("uuid").map(|node| uuid(&node, taken));
    let created_at = section.get("created_at").and_then(|node| node.instant());
    let rule = table_rule(&section, Origin::SourcesFile { created_at }, scope);
    section.finish();
    let has_stated_uuid = uuid.is_some();
    Some(Rule { uuid: uuid.unwrap_or(Some(Uuid::nil()))?, has_stated_uuid, ..rule? })
}

/// Reads a UUID that is not in `taken`, and adds it.
fn uuid(node: &Node<'_>, taken: &mut HashSet<Uuid>) -> Option<Uuid> {
    let parsed = Uuid::try_parse(node.text(UUID)?).ok().filter(|uuid| !uuid.is_nil());
    if parsed.is_none() {
        node.expected(UUID);
    }
    let uuid = parsed?;
    if !taken.insert(uuid) {
        node.problem(format_args!(
            "found \"{uuid}\", which another rule of the same list has; remove the uuid of one of them"
        ));
        return None;
    }
    Some(uuid)
}

/// Reads `"10.0.0.0/8"`, `"ip_addr:10.0.0.0/8"`, `"dns:db.internal"`, `"group:web"` or `"tag:backend"`.
fn string_rule(node: &Node<'_>, scope: RuleScope<'_>) -> Option<Rule> {
    let text = node.text(SOURCE)?;
    let with_type = |name: &HostName| format!("write a host name as \"dns:{name}\"");
    let (source, value) = match text.split_once(':') {
        Some((Source::IP_ADDR, value)) => (network(node, value, with_type)?, value),
        Some((Source::DNS, value)) => (Source::Host(Host { name: host_name(node, value)?, refresh: REFRESH }), value),
        Some((Source::GROUP, value)) => (group(node, value, scope.groups)?, value),
        Some((kind, value)) if CloudSource::KINDS.contains(&kind) => {
            (cloud_source(kind, value, [node, node], scope.resolvers)?, value)
        }
        _ => (network(node, text, with_type)?, text),
    };
    Some(Rule { spelling: spelling(&source, value), ..Rule::of(source, Origin::Configuration) })
}

fn spelling(source: &Source, written: &str) -> Option<Box<str>> {
    (source.value() != written).then(|| written.into())
}

fn table_rule(section: &Section<'_>, origin: Origin, scope: RuleScope<'_>) -> Option<Rule> {
    let kind = section.require("type", SOURCE_TYPE);
    let value = section.require("value", "an IP address or network, or a name");
    let refresh = section.get("refresh");
    let description = section.get("description").and_then(|node| node.text("a text")).map(str::to_owned);
    let expires_at = match section.get("expires_at") {
        // A rule with an invalid expiry must not become a rule without expiry.
        Some(node) => Some(node.instant()?),
        None => None,
    };
    let kind = kind?;
    let (source, value) = match kind.text(SOURCE_TYPE)? {
        word if refresh.is_some() && ([Source::IP_ADDR, Source::GROUP].contains(&word) || is_cloud(word)) => {
            refresh?.problem("applies to type \"dns\" only; remove it");
            return None;
        }
        Source::IP_ADDR => {
            let value = value?;
            let text = value.text(SOURCE)?;
            (network(&value, text, |_| "a host name needs type \"dns\"".to_owned())?, text)
        }
        Source::DNS => {
            // Reads both before returning, so that all problems are reported.
            let refresh = refresh.map_or(Some(REFRESH), |node| refresh_time(&node));
            let value = value?;
            let text = value.text(HOST_NAME)?;
            let name = host_name(&value, text);
            (Source::Host(Host { name: name?, refresh: refresh? }), text)
        }
        Source::GROUP => {
            let value = value?;
            let text = value.text(GROUP)?;
            (group(&value, text, scope.groups)?, text)
        }
        word if is_cloud(word) => {
            let value = value?;
            let text = value.text(OBJECT)?;
            (cloud_source(word, text, [&kind, &value], scope.resolvers)?, text)
        }
        _ => {
            kind.expected(SOURCE_TYPE);
            return None;
        }
    };
    Some(Rule { spelling: spelling(&source, value), description, expires_at, ..Rule::of(source, origin) })
}

/// Reads a network. If the text is a host name, the problem includes `hint`.
fn network(node: &Node<'_>, text: &str, hint: impl Fn(&HostName) -> String) -> Option<Source> {
    let problem = |error: NetworkError| {
        let hint = match text.parse::<HostName>() {
            Ok(name) if error == NetworkError::Syntax && !shown::is_cut(text) => {
                format!("; {}", hint(&name))
            }
            Ok(_) | Err(_) => String::new(),
        };
        node.problem(format_args!("found {}, which is {error}{hint}", node.found()));
    };
    text.parse::<Network>().map(Source::Network).map_err(problem).ok()
}

fn host_name(node: &Node<'_>, text: &str) -> Option<HostName> {
    text.parse().map_err(|error| node.problem(format_args!("found {}, which is {error}", node.found()))).ok()
}

/// Reads the name of a group that exists.
fn group(node: &Node<'_>, text: &str, groups: GroupScope<'_>) -> Option<Source> {
    let problem = |why: fmt::Arguments<'_>| node.problem(format_args!("found {}, {why}", node.found()));
    let known = match groups {
        GroupScope::Named(known) => known,
        GroupScope::InGroup => {
            problem(format_args!(
                "but a group cannot contain a group; list its sources here, or name both in the listener"
            ));
            return None;
        }
    };
    let name: GroupName = text.parse().map_err(|error| problem(format_args!("which is {error}"))).ok()?;
    if known.contains(&name) {
        return Some(Source::Group(name));
    }
    let names: Vec<_> = known.iter().map(GroupName::as_str).collect();
    let fix = match names.as_slice() {
        [] => "add one".to_owned(),
        names => document::suggestion(name.as_str(), names),
    };
    problem(format_args!("but there is no [[source_group]] with this name; {fix}"));
    None
}

fn is_cloud(kind: &str) -> bool {
    CloudSource::KINDS.contains(&kind)
}

/// Reads a cloud source. The nodes are those of its type and of its value.
fn cloud_source(kind: &str, value: &str, nodes: [&Node<'_>; 2], resolvers: WrittenResolvers) -> Option<Source> {
    let [kind_node, value_node] = nodes;
    let problem = |error| value_node.problem(format_args!("found {}, which is {error}", value_node.found()));
    let source = CloudSource::parse(kind, value)?.map_err(problem).ok()?;
    let resolver = source.resolver();
    if !resolvers.has(resolver) {
        let how = match resolver {
            Resolver::DigitalOcean => "with token_file = \"FILE\"",
            Resolver::Kubernetes => "which is empty inside a cluster, else with kubeconfig = \"FILE\"",
        };
        let name = resolver.name();
        kind_node.problem(format_args!(
            "a source of type \"{kind}\" needs [resolver.{name}]; add [resolver.{name}] to the configuration, {how}"
        ));
        return None;
    }
    Some(Source::Cloud(source))
}

/// A duration of at least [`MIN_REFRESH`].
pub(crate) fn refresh_time(node: &Node<'_>) -> Option<Duration> {
    let refresh = node.duration()?;
    if refresh < MIN_REFRESH {
        node.expected("a duration of at least 1s");
        return None;
    }
    Some(refresh)
}

/// Maximum number of rules parsed at a time; their tree takes about one megabyte.
const MAX_PART: usize = 1_000;

/// Bytes at the beginning of a rule that decide whether a part ends there.
const HASHED: usize = 96;

/// Usual number of rules parsed at a time.
const MEAN_PART: u64 = 256;

pub(crate) const SOURCE: &str = "an IP address or network such as \"10.1.2.3\", \"10.0.0.0/8\" or \"2001:db8::/32\"";
const HOST_NAME: &str = "a host name such as \"db.internal\"";
const OBJECT: &str = "the name or ID of an object such as \"backend\"";
const GROUP: &str = "the name of a [[source_group]] such as \"web\"";
const SOURCE_TYPE: &str = "\"ip_addr\", \"dns\", \"group\", \"droplet\", \"tag\", \"k8s\", \"app\" or \"kubernetes\"";
const UUID: &str = "a UUID such as \"7d444840-9dc0-41d1-b245-5ffdce74fad2\"";

/// Default interval between lookups of a host.
const REFRESH: Duration = Duration::from_secs(30);
const MIN_REFRESH: Duration = Duration::from_secs(1);

const EMPTY: &str = "is empty or not completely written; \
                     write \"rule = []\" for a list without rules";

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: RuleScope<'_> = RuleScope { resolvers: WrittenResolvers::NONE, groups: GroupScope::Named(&[]) };
    const CACHE: RulesOf<'_> = RulesOf { owner: "cache", scope: SCOPE };

    fn read(text: &str) -> Result<Vec<Arc<Rule>>, Vec<Problem>> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sources.toml");
        std::fs::write(&file, text).unwrap();
        from_file(&file, &mut Files::default(), CACHE, &[])
    }

    fn rule(number: usize) -> String {
        let (a, b) = (number / 256, number % 256);
        format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.0.{a}.{b}\"\ndescription = \"rule {number}\"\n\n")
    }

    #[test]
    fn file_of_many_parts_is_read_completely_and_in_order() {
        for count in [1, MAX_PART - 1, MAX_PART, MAX_PART + 1, 2 * MAX_PART, 2 * MAX_PART + 7] {
            let text: String = std::iter::once("# rules\n".to_owned()).chain((0..count).map(rule)).collect();
            assert_eq!(parts(&text).concat(), text);
            let rules = read(&text).unwrap();
            assert_eq!(rules.len(), count);
            for (number, rule) in rules.iter().enumerate() {
                assert_eq!(rule.description.as_deref(), Some(format!("rule {number}").as_str()));
            }
        }
    }

    #[test]
    fn problem_in_a_later_part_has_its_position_in_the_file() {
        let mut text: String = (0..2 * MAX_PART + 1).map(rule).collect();
        text.push_str("[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.0.0.1/8\"\n");
        let problems = read(&text).unwrap_err();
        let last_line = text.matches('\n').count();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].position.position, Some((last_line, 9)));
        assert_eq!(problems[0].key, format!("rule[{}].value", 2 * MAX_PART + 1));
    }

    fn read_with(cache: &mut RuleCache, text: &str) -> Result<Vec<Arc<Rule>>, Vec<Problem>> {
        from_text(Path::new("sources.toml"), text, CACHE, HashSet::new(), cache)
    }

    #[test]
    fn changed_rule_leaves_all_others_the_same_values() {
        let all: Vec<String> = (0..3 * MAX_PART).map(rule).collect();
        let mut cache = RuleCache::default();
        let before = read_with(&mut cache, &all.concat()).unwrap();
        let changed: String =
            all.iter().enumerate().filter(|(n, _)| *n != MAX_PART).map(|(_, rule)| rule.as_str()).collect();
        let mut cache = cache.begin_load();
        let after = read_with(&mut cache, &changed).unwrap();
        let same = before.iter().filter(|rule| after.iter().any(|other| Arc::ptr_eq(rule, other))).count();
        assert!(same > 2 * MAX_PART, "{same}");
        let plain = read_with(&mut RuleCache::default(), &changed).unwrap();
        assert_eq!(after, plain, "the cache changes no result");
    }

    #[test]
    fn value_with_a_hidden_character_is_a_problem() {
        for (kind, value) in [("ip_addr", "10.0.0.1"), ("ip_addr", "2001:db8::1"), ("dns", "db.internal")] {
            for hidden in ["\\u001B", "\\u202E", "\\u200B", "\\u00AD", "\\u200D", " "] {
                for value in [format!("{hidden}{value}"), format!("{value}{hidden}")] {
                    let text = format!("[[rule]]\ntype = \"{kind}\"\nvalue = \"{value}\"\n");
                    assert_eq!(read(&text).unwrap_err()[0].key, "rule[0].value", "{value}");
                }
            }
        }
    }

    #[test]
    fn repeated_uuid_is_found_in_known_text_too() {
        let with_uuid = |value: &str| {
            format!(
                "[[rule]]\ntype = \"ip_addr\"\nvalue = \"{value}\"\nuuid = \"7d444840-9dc0-41d1-b245-5ffdce74fad2\"\n"
            )
        };
        let (one, two) = (with_uuid("10.0.0.1"), with_uuid("10.0.0.2"));
        let mut cache = RuleCache::default();
        read_with(&mut cache, &one).unwrap();
        let problems = read_with(&mut cache, &format!("{one}{two}")).unwrap_err();
        assert_eq!(problems[0].position.position, Some((8, 8)));
        let taken = HashSet::from(["7d444840-9dc0-41d1-b245-5ffdce74fad2".parse().unwrap()]);
        let problems = from_text(Path::new("x"), &one, CACHE, taken, &mut cache).unwrap_err();
        assert_eq!(problems[0].position.position, Some((4, 8)));
    }

    #[test]
    fn unknown_group_is_found_in_known_text_too() {
        let text = "[[rule]]\ntype = \"group\"\nvalue = \"web\"\n";
        let mut cache = RuleCache::default();
        let names = ["web".parse().unwrap(), "office".parse().unwrap()];
        let mut read = |names: &[GroupName]| {
            let scope = RuleScope { groups: GroupScope::Named(names), ..SCOPE };
            from_text(Path::new("x"), text, RulesOf { scope, ..CACHE }, HashSet::new(), &mut cache)
        };
        assert_eq!(read(&names).unwrap()[0].to_string(), "group:web");
        let problems = read(&names[1..]).unwrap_err();
        assert_eq!((problems[0].key.as_str(), problems[0].position.position), ("rule[0].value", Some((3, 9))));
        assert!(problems[0].message.ends_with("no [[source_group]] with this name; expected office"));
    }

    #[test]
    fn line_inside_a_multiline_string_is_not_a_rule() {
        let text = "[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.0.0.1\"\ndescription = '''\n[[rule]]\n'''\n"
            .repeat(MAX_PART + 1);
        assert_eq!(read(&text).unwrap().len(), MAX_PART + 1);
    }
}
