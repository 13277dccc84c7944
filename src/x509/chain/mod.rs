//! Certification paths (RFC 5280 §6) from a certificate to a trust anchor. The work that a peer can cause is bounded.

pub(crate) mod anchors;
pub(crate) mod check;
pub(crate) mod error;
pub(crate) mod path;
pub(crate) mod revocation;
pub(crate) mod rules;
pub(crate) mod settings;
pub(crate) mod signature_memo;
