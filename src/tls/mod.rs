//! From the bytes of certificate files to rustls values, and from rustls' verdicts to ours.
//!
//! Takes bytes and options, never paths or configuration types. This is the only module that builds rustls
//! configurations, and so the only one that chooses the crypto provider: aws-lc-rs, with the hybrid X25519MLKEM768 key
//! exchange offered first.

mod anchors;
mod ca_properties;
mod certificate;
mod chain_check;
mod chain_error;
mod chooser;
mod clock;
mod credential;
mod crl;
mod crypto;
mod der;
mod digest;
mod encrypted_key;
mod error;
mod failure;
mod key_kind;
mod name;
mod own;
mod own_tickets;
mod parts;
mod path;
mod path_rules;
mod peer_error;
mod pem;
mod raw_certificate;
mod records;
mod refusal;
mod rehearsal;
mod revocation;
mod serials;
mod server;
mod signature;
mod signature_memo;
mod signed;
#[cfg(test)]
pub(crate) mod specimen;
mod tickets;
mod trust;
mod upstream;
mod verified;
mod verifier;
mod witness;

pub use ca_properties::CaFault;
pub use certificate::{Certificate, CertificateError, NameDigest};
pub use chain_check::{ChainFault, ShownTo, chain_faults, purpose_fault};
pub use chain_error::ChainError;
pub use credential::{Credential, Voucher};
pub use crl::{Crl, CrlError, CrlFault, CrlNumber, CrlSeries, KnownCrls, key_digest};
pub use crypto::sha256_hex;
pub use encrypted_key::{EncryptedKey, EncryptedKeyError, NoPassphrase, Passphrase};
pub use error::BuildError;
pub use failure::{handshake_failure, is_refusal_of_ours};
pub use key_kind::{KeyKind, USABLE_KEYS};
pub use own::OwnCertificate;
pub use parts::TrustParts;
pub use pem::{PemError, StoredKey, certificates, count_private_keys, private_key, stored_key};
pub use records::{Client, MOST_UNOPENED, Records, Server, Side, most_overhead};
pub use server::{Attempt, ServerTls};
pub use tickets::{SharedTicketer, TicketKeys, TicketKeysError};
pub use trust::{ClientTrust, Evidence, Identity};
pub use upstream::{Alpn, Anchors, UpstreamAttempt, UpstreamParts, UpstreamTls, system_roots};
pub use witness::RefusedClient;

use self::clock::{moment, unix_time};
use self::crypto::provider;
