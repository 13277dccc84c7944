//! TODO

pub(crate) mod anchors;
pub(crate) mod ca_properties;
pub(crate) mod check;
pub(crate) mod error;
pub(crate) mod path;
pub(crate) mod raw_certificate;
pub(crate) mod revocation;
pub(crate) mod rules;
pub(crate) mod settings;
pub(crate) mod signature_memo;
pub(crate) mod signed;
