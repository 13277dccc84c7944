//! From the bytes of certificate files to rustls values, and from rustls' verdicts to ours.
//!
//! Takes bytes and options, never paths or configuration types. This is the only module that builds rustls
//! configurations, and so the only one that chooses the crypto provider: aws-lc-rs, with the hybrid X25519MLKEM768 key
//! exchange offered first.

mod certificate;
mod chooser;
mod credential;
mod crl;
mod der;
mod encrypted_key;
mod error;
mod failure;
mod name;
mod own;
mod parts;
mod pem;
mod records;
mod rehearsal;
mod serials;
mod server;
#[cfg(test)]
pub(crate) mod specimen;
mod standing;
mod tickets;
mod trust;
mod upstream;
mod verified;
mod verifier;
mod witness;

pub use certificate::{Certificate, CertificateError};
pub use credential::{Credential, Voucher};
pub use crl::{Crl, CrlError, CrlFault, CrlNumber, CrlSet};
pub use encrypted_key::{EncryptedKey, EncryptedKeyError, NoPassphrase, Passphrase};
pub use error::BuildError;
pub use failure::{handshake_failure, is_refusal_of_ours};
pub use own::OwnCertificate;
pub use parts::TrustParts;
pub use pem::{PemError, StoredKey, certificates, count_private_keys, private_key, stored_key};
pub use records::{Client, MAX_UNOPENED_OF_CLIENT, MOST_UNOPENED, Records, Server, Side, most_overhead};
pub use server::{Attempt, ServerTls};
pub use tickets::{SharedTicketer, TicketKeys, TicketKeysError};
pub use trust::{ClientTrust, Evidence, Identity};
pub use upstream::{Alpn, Anchors, UpstreamAttempt, UpstreamParts, UpstreamTls, system_roots};

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;

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
