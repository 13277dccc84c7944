//! Rules for a path besides valid signatures (RFC 5280 §6.1): dates, CA properties, path length, names, purpose.
//!
//! webpki applies its rules to the certificates that the peer sent. This module adds what webpki does not check: key usage,
//! and all properties of anchors except name, key and name constraints.

use std::cell::Cell;
use std::ops::{ControlFlow, Range};

use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm, TrustAnchor,
};
use time::{OffsetDateTime, PrimitiveDateTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::x509::ca_properties::{CaProperties, Purpose, names, unsupported_extension};
use crate::x509::chain::anchors::{Ancestry, Anchor, AnchorSet};
use crate::x509::chain::error::ChainError;
use crate::x509::chain::path::{Path, Search};
use crate::x509::clock::unix_time;
use crate::x509::crypto::provider;
use crate::x509::digest::Digest;
use crate::x509::raw_certificate::RawCertificate;
use crate::x509::signed::key_bits;

/// The result of checking the certificates of a path that the peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The period in which all of them are valid.
    pub(crate) validity: Range<OffsetDateTime>,
    /// Whether one of them has name constraints.
    pub(crate) constrains_names: bool,
}

/// Returns the first path that `check` accepts. Paths without name constraints are preferred.
///
/// # Errors
/// The most specific reason, if `check` accepts no path.
pub(crate) fn choose<T>(
    mut search: Search<'_>,
    now: OffsetDateTime,
    constrains_names: impl Fn(&T) -> bool,
    check: impl Fn(&Path<'_>, &NameBudget) -> Result<T, ChainError>,
) -> Result<T, ChainError> {
    let names = NameBudget::default();
    let mut found: Option<T> = None;
    let mut refusal: Option<ChainError> = None;
    let searched = search.run(&mut |path| {
        match check(path, &names) {
            Ok(accepted) => {
                if !constrains_names(&accepted) {
                    found = Some(accepted);
                    return ControlFlow::Break(());
                }
                found.get_or_insert(accepted);
            }
            // Revocation is final. Other faults depend on the certificates that the peer sent.
            Err(error) if refusal.is_none() || error.is_revocation() => refusal = Some(error),
            Err(_) => {}
        }
        ControlFlow::Continue(())
    });
    if let Some(found) = found {
        return Ok(found);
    }
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    // An expired certificate is reported as expired even if no anchor is found.
    check_validity(&search.leaf().and_then(RawCertificate::validity).ok_or(ChainError::Malformed)?, now)?;
    searched?;
    Err(ChainError::UnknownIssuer)
}

/// # Errors
/// [`ChainError::NotYetValid`] or [`ChainError::Expired`]
pub(crate) fn check_validity(validity: &Range<OffsetDateTime>, now: OffsetDateTime) -> Result<(), ChainError> {
    if now < validity.start {
        Err(ChainError::NotYetValid)
    } else if now >= validity.end {
        Err(ChainError::Expired)
    } else {
        Ok(())
    }
}

/// Applies the rules to the certificates of the path that the peer sent.
///
/// # Errors
/// The violated rule.
pub(crate) fn check_sent(
    path: &Path<'_>,
    purpose: Purpose,
    now: OffsetDateTime,
    names: &NameBudget,
) -> Result<Sent, ChainError> {
    let Some((leaf, intermediates)) = path.certificates.split_first() else { return Err(ChainError::Malformed) };
    let mut sent = Sent { validity: leaf.validity().ok_or(ChainError::Malformed)?, constrains_names: false };
    let mut subtrees = path.anchor.properties.subtrees;
    for intermediate in intermediates {
        let der = intermediate.to_der();
        let properties = CaProperties::read(&der, purpose).ok_or(ChainError::Malformed)?;
        if let Some(fault) = properties.fault {
            return Err(ChainError::Ca { subject: properties.subject, fault });
        }
        sent.constrains_names |= properties.constrains_names;
        subtrees = subtrees.saturating_add(properties.subtrees);
        sent.validity = overlap(sent.validity, &properties.validity);
    }
    names.subtract(path, subtrees)?;
    with_webpki(path, &path.anchor.trust, purpose, now)?;
    Ok(sent)
}

/// The remaining comparisons of names with name constraints for all paths of one search.
#[derive(Debug)]
pub(crate) struct NameBudget(Cell<usize>);

impl Default for NameBudget {
    fn default() -> Self {
        Self(Cell::new(MAX_NAME_COMPARISONS))
    }
}

impl NameBudget {
    /// Subtracts the comparisons of a path's names with `subtrees` subtrees.
    fn subtract(&self, path: &Path<'_>, subtrees: usize) -> Result<(), ChainError> {
        let left = self.0.get().checked_sub(comparisons(path, subtrees)).ok_or(ChainError::TooManyNames)?;
        self.0.set(left);
        Ok(())
    }
}

/// The maximum number of comparisons of a name with a subtree.
fn comparisons(path: &Path<'_>, subtrees: usize) -> usize {
    if subtrees == 0 {
        return 0;
    }
    // A name takes at least three bytes. Names are counted only if this bound is too coarse.
    let bytes: usize = path.certificates.iter().map(|certificate| certificate.der.len()).sum();
    let bound = subtrees.saturating_mul(bytes / 3);
    if bound <= MAX_NAME_COMPARISONS {
        return bound;
    }
    let names: usize = path.certificates.iter().map(|certificate| names(certificate.der)).sum();
    subtrees.saturating_mul(names)
}

/// They take a few tenths of a millisecond.
const MAX_NAME_COMPARISONS: usize = 2_500;

/// The period in which the anchor may issue certificates.
fn anchor_validity(
    anchor: &Anchor,
    anchors: &AnchorSet,
    now: OffsetDateTime,
) -> Result<Range<OffsetDateTime>, ChainError> {
    let CaProperties { subject, fault, .. } = &anchor.properties;
    if let Some(fault) = *fault {
        return Err(ChainError::Ca { subject: subject.clone(), fault });
    }
    let Some(validity) = anchors.validity_of(anchor) else { return Ok(ALWAYS) };
    if now >= validity.end {
        return Err(ChainError::AnchorExpired { subject: subject.clone(), at: validity.end });
    }
    if now < validity.start {
        return Err(ChainError::AnchorNotYetValid { subject: subject.clone(), from: validity.start });
    }
    Ok(validity)
}

const ALWAYS: Range<OffsetDateTime> = PrimitiveDateTime::MIN.assume_utc()..PrimitiveDateTime::MAX.assume_utc();

/// The result of checking the anchor of a path.
pub(crate) struct CheckedAnchor<T> {
    /// The period in which the anchor may issue certificates.
    pub(crate) validity: Range<OffsetDateTime>,
    /// Whether the anchor or an ancestor has name constraints.
    pub(crate) constrains_names: bool,
    /// Digest of these name constraints.
    pub(crate) constraints: Digest,
    /// The result of `check_more`.
    pub(crate) more: T,
}

/// Applies the limits of a path's anchor, and of one path up from it in the bundle that `check_more` accepts too. `names: None`
/// means that the names were already compared with these constraints.
///
/// # Errors
/// The violated rule, if every path up violates one.
pub(crate) fn check_anchor<T>(
    path: &Path<'_>,
    anchors: &AnchorSet,
    now: OffsetDateTime,
    names: Option<&NameBudget>,
    check_more: &dyn Fn(&Ancestry) -> Result<T, ChainError>,
) -> Result<CheckedAnchor<T>, ChainError> {
    let anchor = path.anchor;
    let validity = anchor_validity(anchor, anchors, now)?;
    let mut refusal = None;
    for ancestry in &anchor.ancestries {
        match check_ancestry(path, ancestry, anchors.purpose, now, names).and_then(|()| check_more(ancestry)) {
            Ok(more) => {
                let (constrains_names, constraints) = (anchor.constrains_names(ancestry), ancestry.constraints);
                return Ok(CheckedAnchor { validity, constrains_names, constraints, more });
            }
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.unwrap_or_else(|| ChainError::PathLength { anchor: anchor.properties.subject.clone() }))
}

/// Applies the limits of the anchor and the certificates above it to the path below.
fn check_ancestry(
    path: &Path<'_>,
    ancestry: &Ancestry,
    purpose: Purpose,
    now: OffsetDateTime,
    names: Option<&NameBudget>,
) -> Result<(), ChainError> {
    if let Some((subject, fault)) = &ancestry.fault {
        return Err(ChainError::Ca { subject: subject.clone(), fault: *fault });
    }
    let counted = path.certificates.iter().skip(1).filter(|intermediate| !intermediate.is_self_issued()).count();
    if !ancestry.path_length.allows(counted) {
        return Err(ChainError::PathLength { anchor: path.anchor.properties.subject.clone() });
    }
    let Some(names) = names.filter(|_| !ancestry.constrained.is_empty()) else { return Ok(()) };
    names.subtract(path, ancestry.subtrees)?;
    ancestry.constrained.iter().try_for_each(|anchor| with_webpki(path, anchor, purpose, now))
}

/// Verifies the path with webpki. The signatures are already verified, so this costs no cryptography.
fn with_webpki(
    path: &Path<'_>,
    anchor: &TrustAnchor<'static>,
    purpose: Purpose,
    now: OffsetDateTime,
) -> Result<(), ChainError> {
    let ders: Vec<CertificateDer<'_>> = path.certificates.iter().map(|certificate| certificate.to_der()).collect();
    let Some((leaf, intermediates)) = ders.split_first() else { return Err(ChainError::Malformed) };
    let explain = |error: webpki::Error| explain(error, path, purpose);
    let leaf = EndEntityCert::try_from(leaf).map_err(explain)?;
    let verified: Vec<VerifiedSignatures<'_>> = provider()
        .signature_verification_algorithms
        .all
        .iter()
        .map(|algorithm| VerifiedSignatures { algorithm: *algorithm, path })
        .collect();
    let algorithms: Vec<&dyn SignatureVerificationAlgorithm> = verified.iter().map(|one| one as _).collect();
    let usage = match purpose {
        Purpose::ClientAuth => KeyUsage::client_auth(),
        Purpose::ServerAuth => KeyUsage::server_auth(),
    };
    let anchor = std::slice::from_ref(anchor);
    leaf.verify_for_usage(&algorithms, anchor, intermediates, unix_time(now), usage, None, None)
        .map(|_| ())
        .map_err(explain)
}

/// Converts an error of webpki and adds the details that it lacks.
fn explain(error: webpki::Error, path: &Path<'_>, purpose: Purpose) -> ChainError {
    use webpki::Error as E;
    match error {
        E::UnsupportedCriticalExtension => {
            let ders = path.certificates.iter().map(|certificate| certificate.to_der());
            let found = ders.into_iter().find_map(|der| unsupported_extension(&der));
            found.map_or(ChainError::Unverifiable, |(subject, extension)| ChainError::CriticalExtension {
                subject,
                extension,
            })
        }
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => ChainError::Purpose { lacks: purpose.name() },
        E::PathLenConstraintViolated | E::MaximumPathDepthExceeded => {
            ChainError::PathLength { anchor: path.anchor.properties.subject.clone() }
        }
        other => other.into(),
    }
}

/// An algorithm of the provider that accepts the already verified signatures of a path.
#[derive(Debug)]
struct VerifiedSignatures<'p> {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    path: &'p Path<'p>,
}

impl SignatureVerificationAlgorithm for VerifiedSignatures<'_> {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let mut keys = self.path.issuer_keys();
        let is_known = self.path.certificates.iter().any(|certificate| {
            let key = keys.next().and_then(key_bits);
            key == Some(public_key) && certificate.is_signed_as(message, signature)
        });
        if is_known { Ok(()) } else { self.algorithm.verify_signature(public_key, message, signature) }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

impl Path<'_> {
    /// For each certificate of the path: the key that signed it, as the contents of a `SubjectPublicKeyInfo`.
    pub(crate) fn issuer_keys(&self) -> impl Iterator<Item = &[u8]> {
        let issuers = self.certificates.iter().skip(1).map(|issuer| issuer.public_key_info);
        issuers.chain([self.anchor.trust.subject_public_key_info.as_ref()])
    }
}

/// The intersection of two validity periods.
pub(crate) fn overlap(one: Range<OffsetDateTime>, other: &Range<OffsetDateTime>) -> Range<OffsetDateTime> {
    one.start.max(other.start)..one.end.min(other.end)
}
