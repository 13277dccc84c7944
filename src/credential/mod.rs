//! Passwords: what a new one must have, verifiers that are stored in their place, the clients of a listener, and the exchange of
//! SCRAM-SHA-256.

pub(crate) mod certificate_owners;
pub(crate) mod check;
pub(crate) mod clients;
pub(crate) mod credentials;
pub(crate) mod login;
pub(crate) mod mock;
pub(crate) mod new_password;
pub(crate) mod password;
pub(crate) mod scram;
pub(crate) mod upstream_passwords;
pub(crate) mod verifier;
