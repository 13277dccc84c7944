//! `[[source_group]]`

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::document::{Node, Section};
use crate::config::rule_reader::RuleReader;
use crate::config::sources::GroupScope;
use crate::source::group::{GroupName, RuleOwner};
use crate::source::rule::Rule;

/// One `[[source_group]]`: trusted sources under a name, which listeners use.
#[derive(Clone, Debug)]
pub struct SourceGroup {
    /// Unique among the groups.
    pub name: GroupName,
    /// In configuration order. None of them names a group.
    pub rules: Arc<[Arc<Rule>]>,
    /// A file of further rules.
    pub sources_file: Option<PathBuf>,
}

/// Reads every valid group.
pub(crate) fn source_groups(root: &Section<'_>, reader: &mut RuleReader<'_>) -> Vec<SourceGroup> {
    let nodes = root.get("source_group");
    let nodes = nodes.and_then(|node| node.list("a list of tables: write [[source_group]], in double brackets"));
    let mut groups: Vec<SourceGroup> = Vec::new();
    for node in nodes.unwrap_or_default() {
        groups.extend(group(&node, reader, &groups));
    }
    groups
}

fn group(node: &Node<'_>, reader: &mut RuleReader<'_>, others: &[SourceGroup]) -> Option<SourceGroup> {
    let section = node.section("a [[source_group]] table")?;
    let name = section.require("name", NAME).and_then(|node| name(&node, others));
    let owner = RuleOwner::Group(name.as_ref().map_or("?", GroupName::as_str)).to_string();
    let read = reader.read(&section, &owner, GroupScope::InGroup);
    if !read.has_place {
        node.problem("has no sources; add trusted_sources = [\"10.0.0.0/8\"], or sources_file = \"FILE\"");
    }
    section.finish();
    Some(SourceGroup { name: name?, rules: read.rules, sources_file: read.file })
}

fn name(node: &Node<'_>, others: &[SourceGroup]) -> Option<GroupName> {
    let name: GroupName = node.text(NAME)?.parse().map_err(|_| node.expected(NAME)).ok()?;
    if others.iter().any(|other| other.name == name) {
        node.problem(format_args!(
            "found {}, which is already the name of another group; choose another name",
            node.found()
        ));
        return None;
    }
    Some(name)
}

const NAME: &str = "a name of 1 to 63 lower-case letters, digits and hyphens, such as \"web\"";
