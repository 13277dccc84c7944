//! Certificates that a CA signs, for the commands and for the running program. Keys are ECDSA P-256, serial numbers random.

pub(crate) mod authority;
pub(crate) mod bundle;
pub(crate) mod client_request;
pub(crate) mod params;
pub(crate) mod server_ca;

/// A certificate, key or archive cannot be created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot create {what}: {why}")]
pub(crate) struct IssuingError {
    what: &'static str,
    why: String,
}

impl IssuingError {
    pub(crate) fn certificate(why: impl std::fmt::Display) -> Self {
        Self { what: "a certificate", why: why.to_string() }
    }

    pub(crate) fn archive(why: impl std::fmt::Display) -> Self {
        Self { what: "the ZIP file", why: why.to_string() }
    }
}
