//! Live connections: the registry of them, and the revocation of sessions that the policy no longer admits.

pub(crate) mod registry;
pub mod revocation;
