//! What a client was let in with, kept so that the question can be put again.

use std::ops::Range;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::certificate::Certificate;

/// A client certificate that was found good, with what leads from it to its trust anchor. Sessions of the same client share
/// one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The facts of the leaf.
    pub certificate: Certificate,
    /// What vouches for it.
    pub voucher: Voucher,
    /// From when on the question has to be put again, because a certificate or a revocation list has run out.
    pub until: OffsetDateTime,
    /// While all certificates of the chain are in their time.
    pub(super) in_time: Range<OffsetDateTime>,
    /// As the client presented it, leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Which set of trust anchors judged it.
    pub(super) judge: u64,
}

/// Why a client certificate is trusted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Voucher {
    /// A trust anchor of `client_ca` has issued it.
    Anchor {
        /// The anchor's fingerprint.
        sha256: Arc<str>,
        /// Of its name, its key and its name constraints, which it keeps when its certificate is renewed.
        authority: [u8; 32],
        /// Of the revocation lists by which it was judged.
        lists: [u8; 32],
    },
    /// It is one of `client_certificates` itself.
    Pinned,
}
