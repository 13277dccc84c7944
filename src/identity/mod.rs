//! Who a client is: verification of client certificates, their revocation, pins and `trusted_clients`.
//!
//! A chain is verified once, when a client presents it ([`verifier`]); sessions keep the verified path, so that a new policy
//! needs only dates and serial numbers for most of them.

pub(crate) mod auth_settings;
pub(crate) mod cache;
pub(crate) mod client_verifier;
pub(crate) mod handshake_signature;
pub(crate) mod recording;
pub(crate) mod refusal;
pub(crate) mod settings;
pub(crate) mod trusted_clients;
pub(crate) mod verified;
pub(crate) mod verifier;
