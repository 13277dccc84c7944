//! Reads the two places of rules that a listener and a group have: `trusted_sources` and `sources_file`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::document::{Node, Section};
use crate::config::files::Files;
use crate::config::problem::Problem;
use crate::config::resolver::WrittenResolvers;
use crate::config::sources::{GroupScope, RuleScope, RulesOf};
use crate::config::{SourcedFile, sources};
use crate::digest::{hex, sha256};
use crate::source::rule::Rule;

/// Reads rules and collects the problems of the files.
#[derive(Debug)]
pub(crate) struct RuleReader<'a> {
    pub(crate) directory: &'a Path,
    files: &'a mut Files,
    /// The resolvers that rules may need.
    resolvers: WrittenResolvers,
    /// Problems in `sources_file` files.
    problems: Vec<Problem>,
}

/// The rules of a listener or a group.
#[derive(Debug, Default)]
pub(crate) struct ReadRules {
    pub(crate) rules: Arc<[Arc<Rule>]>,
    /// `None` without the key, and if the path is not valid.
    pub(crate) file: Option<PathBuf>,
    /// Whether one of the two keys is set.
    pub(crate) has_place: bool,
}

impl<'a> RuleReader<'a> {
    pub(crate) fn new(directory: &'a Path, files: &'a mut Files, resolvers: WrittenResolvers) -> Self {
        Self { directory, files, resolvers, problems: Vec::new() }
    }

    /// Reads the rules of the table `section`, which belong to `owner`.
    pub(crate) fn read(&mut self, section: &Section<'_>, owner: &str, groups: GroupScope<'_>) -> ReadRules {
        self.read_with(section, owner, groups, None)
    }

    /// The same for a listener whose further rules are in the store of the fleet. `copy` is the last good copy and the key that
    /// says so. Without a copy, the rules are not known yet.
    pub(crate) fn read_with(
        &mut self,
        section: &Section<'_>,
        owner: &str,
        groups: GroupScope<'_>,
        copy: Option<(PathBuf, Node<'_>)>,
    ) -> ReadRules {
        let of = RulesOf { owner, scope: RuleScope { resolvers: self.resolvers, groups } };
        let list = section.get("trusted_sources");
        let mut rules = list.as_ref().map(|node| sources::configured(node, of)).unwrap_or_default();
        let named = section.get("sources_file");
        let has_place = list.is_some() || named.is_some();
        let named = named.and_then(|node| Some((node.path(self.directory)?, node)));
        let is_stored = copy.is_some();
        if let (Some(_), Some((_, node))) = (&named, &copy) {
            node.problem("is set beside sources_file; remove one of them");
        }
        let file = named.or(copy);
        let is_absent = |files: &mut Files, path: &Path| is_stored && matches!(files.read_if_present(path), Ok(None));
        if let Some((path, node)) = &file
            && !is_absent(self.files, path)
        {
            match sources::from_file(path, self.files, of, &rules) {
                Ok(more) => rules.extend(more),
                Err(problems) => {
                    for problem in problems {
                        match problem.position.position {
                            Some(_) => self.problems.push(problem),
                            None => {
                                let named = SourcedFile {
                                    path: path.clone(),
                                    position: node.position(),
                                    key: node.key().to_owned(),
                                };
                                node.problem(named.unreadable(&problem.message).message);
                            }
                        }
                    }
                }
            }
        }
        ReadRules { rules: rules.into(), file: file.map(|(path, _)| path), has_place }
    }

    /// The digest of a file; `None` if it cannot be read.
    pub(crate) fn digest_of(&mut self, path: &Path) -> Option<String> {
        self.files.read_if_present(path).ok().flatten().map(|text| hex(&sha256(&text)))
    }

    /// The problems of the files that were read.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}
