//! TLS with clients and upstreams: rustls configurations, engines, certificate selection, tickets, and handshake errors.
//!
//! Functions take bytes and options, not paths or configuration types.

pub(crate) mod cert_selector;
pub(crate) mod engine;
pub(crate) mod failure;
#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod peer_error;
pub(crate) mod process_tickets;
pub(crate) mod self_test;
pub(crate) mod server;
pub(crate) mod tickets;
pub(crate) mod upstream;
