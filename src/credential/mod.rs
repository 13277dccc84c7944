//! Passwords: what a new one must have, verifiers that are stored in their place, and the exchange of SCRAM-SHA-256.

pub(crate) mod password;
pub(crate) mod scram;
pub(crate) mod verifier;
