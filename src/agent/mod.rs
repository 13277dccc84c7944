//! The agent: a child process that holds the tokens of clouds and clusters and speaks to their APIs.
//!
//! The process that has the TLS keys and the sessions never makes these connections. Both processes treat each other's messages
//! as hostile input.

pub(crate) mod message;
