//! From the bytes of certificate files to rustls values, and from rustls' verdicts to ours.
//!
//! Takes bytes and options, never paths or configuration types. This is the only module that builds rustls
//! configurations, and so the only one that chooses the crypto provider: aws-lc-rs, with the hybrid X25519MLKEM768 key
//! exchange offered first.

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

use crate::x509::clock::{moment, unix_time};
use crate::x509::crypto::provider;
