//! TODO

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
