//! The registry of live connections, and the revocation of sessions that the policy no longer admits.

pub(crate) mod registry;
pub mod revocation;
