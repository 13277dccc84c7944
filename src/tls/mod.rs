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
mod credential;
mod crl;
mod der;
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

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::Error;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::UnixTime;
use time::OffsetDateTime;

/// SHA-256 of `bytes` in lower-case hex, the form every fingerprint of this program has.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn provider() -> Arc<CryptoProvider> {
    // Made once: where clients are asked for certificates each handshake wants it.
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            kx_groups: vec![
                aws_lc_rs::kx_group::X25519MLKEM768,
                aws_lc_rs::kx_group::X25519,
                aws_lc_rs::kx_group::SECP256R1,
                aws_lc_rs::kx_group::SECP384R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

/// The time as rustls and webpki take it.
fn unix_time(moment: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(moment.unix_timestamp()).unwrap_or(0)))
}

/// The time as rustls tells it to a verifier.
fn moment(now: UnixTime) -> Result<OffsetDateTime, Error> {
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
    now.ok_or(Error::FailedToGetCurrentTime)
}
