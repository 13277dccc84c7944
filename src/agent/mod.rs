//! The agent: a child process that holds the tokens of clouds and clusters and speaks to their APIs.
//!
//! The process that has the TLS keys and the sessions never makes these connections. Both processes treat each other's messages
//! as hostile input.

#[cfg(feature = "kubernetes")]
pub(crate) mod kubernetes;
#[allow(dead_code, unreachable_pub, reason = "the agent process uses it")]
pub(crate) mod message;
