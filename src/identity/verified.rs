//! What a client was let in with, kept so that the question can be put again.

use std::ops::Range;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::x509::certificate::Certificate;
use crate::x509::digest::Digest;
use crate::x509::subject_name::SubjectName;

/// A client certificate that was found good, with what leads from it to its trust anchor. Sessions of the same client share
/// one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedIdentity {
    /// The facts of the leaf.
    pub certificate: Certificate,
    /// What vouches for it.
    pub trusted_by: TrustedBy,
    /// From when on the question has to be put again, because a certificate or a revocation list has run out.
    pub until: OffsetDateTime,
    /// Whether a CA on its path limits the names below it. webpki holds subject alternative names to that, and not the common
    /// name.
    pub(crate) constrains_names: bool,
    /// While all certificates of the path are valid, those of the client alone.
    pub(crate) validity: Range<OffsetDateTime>,
    /// From when on all of them are, the anchor included.
    pub(crate) from: OffsetDateTime,
    /// What the client presented, leaf first, without what can be of no use.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Of the chain.
    pub(crate) digest: Digest,
    /// The positions in the chain of the path that was verified, leaf first. Empty for a pinned certificate.
    pub(crate) path: Box<[u8]>,
    /// The [name constraints](crate::x509::chain::anchors::Ancestry::constraints) above the path that its names were compared with.
    pub(crate) constraints: Digest,
    /// Which set of trust anchors judged it.
    pub(crate) verifier_id: u64,
}

/// Why a client certificate is trusted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TrustedBy {
    /// A trust anchor of `client_ca` has issued it.
    Anchor {
        /// The anchor's fingerprint.
        sha256: Arc<str>,
        /// Of its name, its key and its name constraints, which it keeps when its certificate is renewed.
        authority: [u8; 32],
    },
    /// It is one of `client_certificates` itself.
    Pinned,
}

impl VerifiedIdentity {
    /// The names by which `trusted_clients` may know the holder. A common name counts only where every CA on the path may issue
    /// for any name.
    pub fn names(&self) -> impl Iterator<Item = SubjectName<'_>> {
        let counts = |name: &SubjectName<'_>| !(self.constrains_names && matches!(name, SubjectName::Common(_)));
        self.certificate.names().filter(counts)
    }

    /// How many certificates came with it.
    pub fn sent(&self) -> usize {
        self.chain.len()
    }

    /// What sessions of the same client with the same chain have in common.
    pub fn chain_digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Whether its common name is left out of account.
    pub fn ignores_common_name(&self) -> bool {
        self.constrains_names && self.certificate.common_name.is_some()
    }
}
