//! The only crypto provider, and hex digests.

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;

use crate::digest::{hex, sha256};

/// SHA-256 in lower-case hex, the format of every fingerprint.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

/// aws-lc-rs, with the hybrid key exchange X25519MLKEM768 first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    // Created once: with client authentication, each handshake needs it.
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
