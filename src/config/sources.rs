//! Trusted sources as they are written: in the listener's own table, and in its `sources_file`.

use std::path::Path;

use super::document::{Document, NOT_YET, Node, Section};
use super::files::Files;
use super::problem::{Place, Problem};
use crate::policy::{Network, Origin, Rule};

/// The rules of `trusted_sources`.
pub(super) fn configured(list: &Node<'_>) -> Vec<Rule> {
    let nodes = list.list("a list of trusted sources such as [\"10.0.0.0/8\"]").unwrap_or_default();
    nodes.iter().filter_map(configured_rule).collect()
}

/// The rules of a `sources_file`, and what is wrong with it.
pub(super) fn from_file(file: &Path, files: &mut Files) -> Result<Vec<Rule>, Vec<Problem>> {
    let whole_file = |message: String| vec![Problem { place: Place::file(file), key: String::new(), message }];
    let bytes = files.read(file).map_err(whole_file)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| whole_file(format!("is not UTF-8: {error}")))?;
    if text.trim().is_empty() {
        // An editor or a copy truncates first and writes second; nobody may lose access in between.
        return Err(whole_file(EMPTY.to_owned()));
    }
    let document = Document::new(file, text);
    let tree = document.parse().map_err(|problems| problems.into_vec())?;
    let root = document.root(tree.get_ref());
    let nodes = root.get("rule").and_then(|node| node.list("[[rule]] tables")).unwrap_or_default();
    let rules = nodes.iter().filter_map(file_rule).collect();
    root.finish();
    let problems = document.into_problems();
    if problems.is_empty() { Ok(rules) } else { Err(problems) }
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

fn file_rule(node: &Node<'_>) -> Option<Rule> {
    let section = node.section("a [[rule]] table")?;
    let uuid = section.get("uuid").and_then(|node| node.text("a text")).map(str::to_owned);
    // Kept by the programs that write the file; nothing is decided by it here.
    let _ = section.get("created_at").and_then(|node| node.instant());
    let rule = table_rule(&section, Origin::SourcesFile { uuid });
    section.finish();
    rule
}

/// `"10.0.0.0/8"` or `"ip_addr:10.0.0.0/8"`.
fn string_rule(node: &Node<'_>) -> Option<Rule> {
    let text = node.text(SOURCE)?;
    let value = match text.split_once(':') {
        Some(("ip_addr", value)) => value,
        Some((kind, _)) if LATER_KINDS.contains(&kind) => {
            node.problem(format_args!("a source of type \"{kind}\" {NOT_YET}"));
            return None;
        }
        _ => text,
    };
    let network = network(node, value)?;
    Some(Rule { network, description: None, expires_at: None, origin: Origin::Configuration })
}

fn table_rule(section: &Section<'_>, origin: Origin) -> Option<Rule> {
    let kind = section.require("type", "\"ip_addr\"");
    let value = section.require("value", "an IP address or network");
    let description = section.get("description").and_then(|node| node.text("a text")).map(str::to_owned);
    let expires_at = match section.get("expires_at") {
        // A rule whose end cannot be read must not become one without end.
        Some(node) => Some(node.instant()?),
        None => None,
    };
    let kind = kind?;
    match kind.text(SOURCE_TYPE)? {
        "ip_addr" => {
            let value = value?;
            let network = network(&value, value.text(SOURCE)?)?;
            Some(Rule { network, description, expires_at, origin })
        }
        later if LATER_KINDS.contains(&later) => {
            section.not_yet(&["refresh"]);
            kind.problem(format_args!("a source of type \"{later}\" {NOT_YET}"));
            None
        }
        _ => {
            kind.expected(SOURCE_TYPE);
            None
        }
    }
}

fn network(node: &Node<'_>, text: &str) -> Option<Network> {
    text.parse().map_err(|error| node.problem(format_args!("found {}, which is {error}", node.found()))).ok()
}

const SOURCE: &str = "an IP address or network such as \"10.1.2.3\", \"10.0.0.0/8\" or \"2001:db8::/32\"";
const SOURCE_TYPE: &str = "\"ip_addr\"";
const LATER_KINDS: [&str; 5] = ["dns", "droplet", "k8s", "tag", "app"];
const EMPTY: &str = "is empty, which is taken for a file that is still being written; \
                     write \"rule = []\" for a list without rules";
