//! TODO

pub(crate) mod registry;
pub mod revocation;
