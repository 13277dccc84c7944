//! Client identity: verification of client certificates, revocation, pinned certificates and `trusted_clients`.
//!
//! A chain is verified when a client presents it ([`verifier`]). Sessions keep the verified path, so that a new policy checks
//! only dates and serial numbers for most of them.

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
