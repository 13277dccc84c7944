//! Named sets of trusted sources that listeners share.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::source::rule::Source;
use crate::source::rule_set::RuleSet;

/// The name of a group, which has the form of a listener's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupName(Arc<str>);

impl GroupName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GroupName {
    type Err = GroupNameError;

    fn from_str(text: &str) -> Result<Self, GroupNameError> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_valid = (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(is_plain);
        is_valid.then(|| Self(text.into())).ok_or(GroupNameError)
    }
}

/// A text is not the name of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a group; use 1 to {MAX_NAME} lower-case letters, digits and hyphens")]
pub struct GroupNameError;

/// A group with its rules. All listeners that use the group share it.
#[derive(Debug)]
pub struct SourceGroup {
    pub name: GroupName,
    pub sources: Arc<RuleSet>,
}

impl SourceGroup {
    pub fn owner(&self) -> RuleOwner<'_> {
        RuleOwner::Group(self.name.as_str())
    }
}

/// What a list of rules belongs to. It is written as the name of a listener or as `group:NAME`, which cannot be equal, because
/// no name contains a colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleOwner<'a> {
    Listener(&'a str),
    Group(&'a str),
}

impl<'a> RuleOwner<'a> {
    /// The owner with this text.
    pub fn of(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((Source::GROUP, name)) => Self::Group(name),
            Some(_) | None => Self::Listener(text),
        }
    }

    /// The name, and the key under which audit events have it.
    pub const fn field(self) -> (&'static str, &'a str) {
        match self {
            Self::Listener(name) => ("listener", name),
            Self::Group(name) => ("group", name),
        }
    }
}

impl fmt::Display for RuleOwner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(name) => f.write_str(name),
            Self::Group(name) => write!(f, "{}:{name}", Source::GROUP),
        }
    }
}

/// The limit of listener names.
const MAX_NAME: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_has_the_form_of_a_listener_name() {
        for name in ["web", "web-1", "0", &"a".repeat(63)] {
            assert_eq!(name.parse::<GroupName>().unwrap().as_str(), name);
        }
        for text in ["", "Web", "web_1", "a:b", "a b", "ä", &"a".repeat(64)] {
            assert_eq!(text.parse::<GroupName>(), Err(GroupNameError), "{text:?}");
        }
    }

    #[test]
    fn owner_is_read_as_it_is_shown() {
        for (text, owner) in [("web", RuleOwner::Listener("web")), ("group:web", RuleOwner::Group("web"))] {
            assert_eq!((RuleOwner::of(text), owner.to_string().as_str()), (owner, text));
        }
    }
}
