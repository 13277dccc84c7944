//! The verified identity of a client, kept so that it can be verified again.

use std::ops::Range;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::x509::certificate::Certificate;
use crate::x509::digest::Digest;
use crate::x509::subject_name::SubjectName;

/// A verified client certificate with its path to a trust anchor. Sessions with the same chain share one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedIdentity {
    /// The leaf.
    pub certificate: Certificate,
    pub trusted_by: TrustedBy,
    /// When the identity must be verified again, because a certificate or a revocation list expires.
    pub until: OffsetDateTime,
    /// Whether a CA on the path has name constraints. webpki checks them for subject alternative names, not for the common
    /// name.
    pub(crate) constrains_names: bool,
    /// The period in which all presented certificates of the path are valid.
    pub(crate) validity: Range<OffsetDateTime>,
    /// Start of the period in which the path is valid, the anchor included.
    pub(crate) from: OffsetDateTime,
    /// The presented certificates, leaf first, without unrelated ones.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Digest of `chain`.
    pub(crate) digest: Digest,
    /// The verified path as positions in `chain`, leaf first. Empty for a pinned certificate.
    pub(crate) path: Box<[u8]>,
    /// Digest of the [name constraints](crate::x509::chain::anchors::Ancestry::constraints) that were checked.
    pub(crate) constraints: Digest,
    /// The verifier that searched all paths of the chain.
    pub(crate) verifier_id: u64,
}

/// Why a client certificate is trusted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TrustedBy {
    /// A path leads to a trust anchor of `client_ca`.
    Anchor {
        /// The anchor's fingerprint.
        sha256: Arc<str>,
        /// Digest of the anchor's name, key and name constraints. A renewed certificate of the same CA has the same digest.
        authority: [u8; 32],
    },
    /// It is listed in `client_certificates`.
    Pinned,
}

impl VerifiedIdentity {
    /// The names that `trusted_clients` can match. The common name is left out if a CA on the path has name constraints.
    pub fn names(&self) -> impl Iterator<Item = SubjectName<'_>> {
        let counts = |name: &SubjectName<'_>| !(self.constrains_names && matches!(name, SubjectName::Common(_)));
        self.certificate.names().filter(counts)
    }

    /// The number of presented certificates, the leaf included.
    pub fn sent(&self) -> usize {
        self.chain.len()
    }

    /// Equal for all sessions with the same chain.
    pub fn chain_digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Whether [`names`](Self::names) leaves out the common name.
    pub fn ignores_common_name(&self) -> bool {
        self.constrains_names && self.certificate.common_name.is_some()
    }
}
