//! Edits of the text of configuration files that keep comments and formatting.

pub(crate) mod clients;
pub(crate) mod sources;
pub(crate) mod tables;
pub(crate) mod tokens;
