//! Trusted sources as written in the listener's table and in its `sources_file`.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use crate::config::document::{Document, NOT_YET, Node, Section, limit_reported};
use crate::config::files::Files;
use crate::config::problem::{Position, Problem, Problems};
use crate::config::shown;
use crate::source::host::{Host, HostName};
use crate::source::id::{DerivedUuids, Place};
use crate::source::rule::{Network, NetworkError, Origin, Rule, Source};

/// Reads the rules of `trusted_sources` of a listener.
pub(crate) fn configured(list: &Node<'_>, listener: &str) -> Vec<Rule> {
    let nodes = list.list("a list of trusted sources such as [\"10.0.0.0/8\"]").unwrap_or_default();
    let mut rules = nodes.iter().filter_map(configured_rule).collect();
    derive_uuids(&mut rules, DerivedUuids::new(listener, Place::Configuration, HashSet::new()));
    rules
}

/// Reads the rules of a `sources_file`, or returns its problems. `configured` are the other rules of the listener.
pub(crate) fn from_file(
    file: &Path,
    files: &mut Files,
    listener: &str,
    configured: &[Rule],
) -> Result<Vec<Rule>, Vec<Problem>> {
    let whole_file = |message: String| vec![Problem { position: Position::file(file), key: String::new(), message }];
    let bytes = files.read(file).map_err(whole_file)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| whole_file(format!("is not UTF-8: {error}")))?;
    from_text(file, text, listener, configured.iter().map(|rule| rule.uuid).collect())
}

/// Reads the rules from the text of a `sources_file`, or returns its problems. `taken` are the UUIDs of other rules of the
/// listener.
pub(crate) fn from_text(
    file: &Path,
    text: &str,
    listener: &str,
    mut taken: HashSet<Uuid>,
) -> Result<Vec<Rule>, Vec<Problem>> {
    let whole_file = |message: String| vec![Problem { position: Position::file(file), key: String::new(), message }];
    if text.trim().is_empty() {
        // Editors and copies truncate a file before they write it. No client may lose access in between.
        return Err(whole_file(EMPTY.to_owned()));
    }
    let (mut rules, mut problems, mut omitted) = (Vec::new(), Vec::new(), 0);
    let (mut lines_before, mut rules_before) = (0, 0);
    for piece in pieces(text) {
        let document = Document::part(file, piece, lines_before);
        let tree = document.parse().map_err(Problems::into_vec)?;
        let root = document.root(tree.get_ref());
        let nodes = root.get("rule").and_then(|node| node.list("[[rule]] tables")).unwrap_or_default();
        let numbered =
            nodes.iter().enumerate().map(|(index, node)| node.with_key(format!("rule[{}]", rules_before + index)));
        rules.extend(numbered.filter_map(|node| file_rule(&node, &mut taken)));
        root.finish();
        rules_before += nodes.len();
        lines_before += piece.matches('\n').count();
        let (mut reported, more) = document.into_reported_and_omitted();
        problems.append(&mut reported);
        omitted += more;
    }
    if !problems.is_empty() {
        return Err(limit_reported(problems, omitted));
    }
    derive_uuids(&mut rules, DerivedUuids::new(listener, Place::SourcesFile, taken));
    Ok(rules)
}

/// Replaces the nil UUIDs of rules that state none.
fn derive_uuids(rules: &mut Vec<Rule>, mut uuids: DerivedUuids) {
    rules.shrink_to_fit();
    for rule in rules.iter_mut().filter(|rule| rule.uuid.is_nil()) {
        rule.uuid = uuids.next(rule.source.kind(), &rule.written_value());
    }
}

/// Splits the text into documents of at most [`MAX_PIECE`] rules. The tree of a large file would take twenty times the memory
/// of the file at every reload.
fn pieces(text: &str) -> Vec<&str> {
    // A line inside a multi-line string could look like the start of a rule.
    if text.contains("\"\"\"") || text.contains("'''") {
        return vec![text];
    }
    let starts = text.match_indices("\n[[rule]]").map(|(newline, _)| newline + 1);
    let (mut pieces, mut rest, mut begin) = (Vec::new(), text, 0);
    for cut in starts.skip(MAX_PIECE - 1).step_by(MAX_PIECE) {
        let (piece, tail) = rest.split_at(cut - begin);
        pieces.push(piece);
        (rest, begin) = (tail, cut);
    }
    pieces.push(rest);
    pieces
}

fn configured_rule(node: &Node<'_>) -> Option<Rule> {
    if !node.is_table() {
        return string_rule(node);
    }
    let section = node.section("a trusted source")?;
    let rule = table_rule(&section, Origin::Configuration);
    section.finish();
    rule
}

fn file_rule(node: &Node<'_>, taken: &mut HashSet<Uuid>) -> Option<Rule> {
    let section = node.section("a [[rule]] table")?;
    let uuid = section.get("uuid").map(|node| uuid(&node, taken));
    let created_at = section.get("created_at").and_then(|node| node.instant());
    let rule = table_rule(&section, Origin::SourcesFile { created_at });
    section.finish();
    Some(Rule { uuid: uuid.unwrap_or(Some(Uuid::nil()))?, ..rule? })
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
            "found \"{uuid}\", which another rule of the listener has; remove the uuid of one of them"
        ));
        return None;
    }
    Some(uuid)
}

/// Reads `"10.0.0.0/8"`, `"ip_addr:10.0.0.0/8"` or `"dns:db.internal"`.
fn string_rule(node: &Node<'_>) -> Option<Rule> {
    let text = node.text(SOURCE)?;
    let with_type = |name: &HostName| format!("write a host name as \"dns:{name}\"");
    let (source, value) = match text.split_once(':') {
        Some((Source::IP_ADDR, value)) => (network(node, value, with_type)?, value),
        Some((Source::DNS, value)) => (Source::Host(Host { name: host_name(node, value)?, refresh: REFRESH }), value),
        Some((kind, _)) if LATER_KINDS.contains(&kind) => {
            node.problem(format_args!("a source of type \"{kind}\" {NOT_YET}"));
            return None;
        }
        _ => (network(node, text, with_type)?, text),
    };
    Some(Rule { spelling: spelling(&source, value), ..Rule::of(source, Origin::Configuration) })
}

fn spelling(source: &Source, written: &str) -> Option<Box<str>> {
    (source.value() != written).then(|| written.into())
}

fn table_rule(section: &Section<'_>, origin: Origin) -> Option<Rule> {
    let kind = section.require("type", SOURCE_TYPE);
    let value = section.require("value", "an IP address or network, or a host name");
    let refresh = section.get("refresh");
    let description = section.get("description").and_then(|node| node.text("a text")).map(str::to_owned);
    let expires_at = match section.get("expires_at") {
        // A rule with an invalid expiry must not become a rule without expiry.
        Some(node) => Some(node.instant()?),
        None => None,
    };
    let kind = kind?;
    let (source, value) = match kind.text(SOURCE_TYPE)? {
        Source::IP_ADDR => {
            if let Some(node) = refresh {
                node.problem("applies to type \"dns\" only; remove it");
                return None;
            }
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
        later if LATER_KINDS.contains(&later) => {
            kind.problem(format_args!("a source of type \"{later}\" {NOT_YET}"));
            return None;
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

fn refresh_time(node: &Node<'_>) -> Option<Duration> {
    let refresh = node.duration()?;
    if refresh < MIN_REFRESH {
        node.expected("a duration of at least 1s");
        return None;
    }
    Some(refresh)
}

/// Maximum number of rules parsed at a time; their tree takes about one megabyte.
const MAX_PIECE: usize = 1_000;

pub(crate) const SOURCE: &str = "an IP address or network such as \"10.1.2.3\", \"10.0.0.0/8\" or \"2001:db8::/32\"";
const HOST_NAME: &str = "a host name such as \"db.internal\"";
const SOURCE_TYPE: &str = "\"ip_addr\" or \"dns\"";
const UUID: &str = "a UUID such as \"7d444840-9dc0-41d1-b245-5ffdce74fad2\"";

/// Source types of managed databases, which operators may copy from there. They get their own error.
const LATER_KINDS: [&str; 4] = ["droplet", "k8s", "tag", "app"];

/// Default interval between lookups of a host.
const REFRESH: Duration = Duration::from_secs(30);
const MIN_REFRESH: Duration = Duration::from_secs(1);

const EMPTY: &str = "is empty or not completely written; \
                     write \"rule = []\" for a list without rules";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Rule>, Vec<Problem>> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sources.toml");
        std::fs::write(&file, text).unwrap();
        from_file(&file, &mut Files::default(), "cache", &[])
    }

    fn rule(number: usize) -> String {
        let (a, b) = (number / 256, number % 256);
        format!("[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.0.{a}.{b}\"\ndescription = \"rule {number}\"\n\n")
    }

    #[test]
    fn file_of_many_pieces_is_read_completely_and_in_order() {
        for count in [1, MAX_PIECE - 1, MAX_PIECE, MAX_PIECE + 1, 2 * MAX_PIECE, 2 * MAX_PIECE + 7] {
            let text: String = std::iter::once("# rules\n".to_owned()).chain((0..count).map(rule)).collect();
            assert_eq!(pieces(&text).concat(), text);
            let rules = read(&text).unwrap();
            assert_eq!(rules.len(), count);
            for (number, rule) in rules.iter().enumerate() {
                assert_eq!(rule.description.as_deref(), Some(format!("rule {number}").as_str()));
            }
        }
    }

    #[test]
    fn problem_in_a_later_piece_has_its_position_in_the_file() {
        let mut text: String = (0..2 * MAX_PIECE + 1).map(rule).collect();
        text.push_str("[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.0.0.1/8\"\n");
        let problems = read(&text).unwrap_err();
        let last_line = text.matches('\n').count();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].position.position, Some((last_line, 9)));
        assert_eq!(problems[0].key, format!("rule[{}].value", 2 * MAX_PIECE + 1));
    }

    #[test]
    fn line_inside_a_multiline_string_is_not_a_rule() {
        let text = "[[rule]]\ntype = \"ip_addr\"\nvalue = \"10.0.0.1\"\ndescription = '''\n[[rule]]\n'''\n"
            .repeat(MAX_PIECE + 1);
        assert_eq!(read(&text).unwrap().len(), MAX_PIECE + 1);
    }
}
