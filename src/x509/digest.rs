//! SHA-256 digests as keys for certificates and chains.

use aws_lc_rs::digest::{Context, SHA256};
use rustls::pki_types::CertificateDer;

pub(crate) type Digest = [u8; 32];

pub(crate) fn digest_of_chain(chain: &[CertificateDer<'_>]) -> Digest {
    digest_of(chain.iter().map(|certificate| &**certificate))
}

/// Includes the length of each part, so that different splits have different digests.
pub(crate) fn digest_of<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Digest {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(context.finish().as_ref());
    digest
}
