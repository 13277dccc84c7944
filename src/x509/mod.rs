//! Parses and verifies certificates, keys and revocation lists (RFC 5280, RFC 8018).
//!
//! Functions take bytes, not paths. Only this folder selects the crypto provider ([`crypto`]).

pub(crate) mod ca_properties;
pub(crate) mod certificate;
pub(crate) mod chain;
pub(crate) mod channel_binding;
pub(crate) mod clock;
pub(crate) mod crl;
pub(crate) mod crypto;
pub(crate) mod der;
pub(crate) mod digest;
pub(crate) mod encrypted_key;
pub(crate) mod error;
pub(crate) mod expiry;
pub(crate) mod fingerprint;
pub(crate) mod key_kind;
pub(crate) mod key_pair;
pub(crate) mod name;
pub(crate) mod pem;
pub(crate) mod pinned;
pub(crate) mod prehash;
pub(crate) mod raw_certificate;
pub(crate) mod signed;
pub(crate) mod subject_name;
