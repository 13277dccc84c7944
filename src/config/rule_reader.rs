//! Reads the two places of rules that a listener and a group have: `trusted_sources` and `sources_file`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::document::Section;
use crate::config::files::Files;
use crate::config::problem::Problem;
use crate::config::resolver::WrittenResolvers;
use crate::config::sources::{GroupScope, RuleScope, RulesOf};
use crate::config::{SourcedFile, sources};
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
        let of = RulesOf { owner, scope: RuleScope { resolvers: self.resolvers, groups } };
        let list = section.get("trusted_sources");
        let mut rules = list.as_ref().map(|node| sources::configured(node, of)).unwrap_or_default();
        let named = section.get("sources_file");
        let has_place = list.is_some() || named.is_some();
        let file = named.and_then(|node| Some((node.path(self.directory)?, node)));
        if let Some((path, node)) = &file {
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

    /// The problems of the files that were read.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}
