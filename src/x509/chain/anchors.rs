//! Trust anchors: the certificates of a bundle, indexed by subject, with the limits that apply to certificates below them.
//!
//! Every CA certificate of a bundle is a trust anchor. If the bundle also contains the issuer of an anchor, the issuer's path
//! length, name constraints and revocation lists apply to the whole path. The issuer's dates do not apply, because the
//! operator trusts the anchor itself.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, Der, TrustAnchor};
use time::OffsetDateTime;
use webpki::anchor_from_trusted_cert;

use crate::x509::ca_properties::{CaFault, CaProperties, KeyIds, Purpose};
use crate::x509::certificate::{Certificate, CertificateError};
use crate::x509::chain::settings::AnchorValidity;
use crate::x509::crypto::sha256_hex;
use crate::x509::digest::{Digest, digest_of};
use crate::x509::error::BuildError;
use crate::x509::raw_certificate::RawCertificate;

/// The trust anchors for clients or for the upstream of a listener. Immutable.
#[derive(Debug)]
pub(crate) struct AnchorSet {
    anchors: Vec<Anchor>,
    by_subject: HashMap<Box<[u8]>, Vec<usize>>,
    pub(crate) purpose: Purpose,
    validity: AnchorValidity,
}

#[derive(Debug)]
pub(crate) struct Anchor {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) sha256: Arc<str>,
    /// Digest of name, key and name constraints. A renewed certificate of the same CA has the same digest.
    pub(crate) authority: Digest,
    pub(crate) trust: TrustAnchor<'static>,
    pub(crate) properties: CaProperties,
    key_id: Option<Vec<u8>>,
    /// One entry per path from this anchor up to a certificate without an issuer in the bundle. Empty if all paths exceed
    /// [`MAX_ANCESTORS`]; then no certificate is accepted through this anchor.
    pub(crate) ancestries: Vec<Ancestry>,
}

/// The certificates above an anchor on one path, issuer first, and their combined limits.
#[derive(Debug, Default)]
pub(crate) struct Ancestry {
    pub(crate) ancestors: Vec<usize>,
    /// The subject of an ancestor that must not issue certificates, and why.
    pub(crate) fault: Option<(String, CaFault)>,
    /// The limit for the number of CAs below the anchor, from its own pathLenConstraint and those of its ancestors.
    pub(crate) path_length: PathLength,
    /// For each ancestor with name constraints: the anchor's name and key with these constraints.
    pub(crate) constrained: Vec<TrustAnchor<'static>>,
    /// The number of subtrees in `constrained`.
    pub(crate) subtrees: usize,
    /// Digest of the name constraints of the anchor and its ancestors.
    pub(crate) constraints: Digest,
}

/// The number of CAs allowed below a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PathLength {
    #[default]
    Any,
    AtMost(usize),
    /// The certificate itself exceeds the limit of a CA above it.
    Exceeded,
}

impl PathLength {
    fn of(stated: Option<usize>) -> Self {
        stated.map_or(Self::Any, Self::AtMost)
    }

    /// The limit that remains below a certificate issued under this limit. Self-issued certificates do not count.
    fn below(self, is_self_issued: bool) -> Self {
        match self {
            Self::AtMost(0) if !is_self_issued => Self::Exceeded,
            Self::AtMost(length) if !is_self_issued => Self::AtMost(length - 1),
            other => other,
        }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Exceeded, _) | (_, Self::Exceeded) => Self::Exceeded,
            (Self::Any, other) | (other, Self::Any) => other,
            (Self::AtMost(one), Self::AtMost(other)) => Self::AtMost(one.min(other)),
        }
    }

    pub(crate) fn allows(self, intermediates: usize) -> bool {
        match self {
            Self::Any => true,
            Self::AtMost(length) => intermediates <= length,
            Self::Exceeded => false,
        }
    }
}

impl AnchorSet {
    /// The anchors of a bundle. Certificates that are not CA certificates are skipped.
    ///
    /// # Errors
    /// If a CA certificate cannot be a trust anchor.
    pub(crate) fn new(
        bundle: &[CertificateDer<'static>],
        purpose: Purpose,
        validity: AnchorValidity,
    ) -> Result<Self, BuildError> {
        let mut anchors = Vec::new();
        for der in bundle {
            if Certificate::parse(der)?.may_issue() {
                anchors.push(Anchor::new(der, purpose)?);
            }
        }
        connect(&mut anchors);
        Ok(Self::indexed(anchors, purpose, validity))
    }

    /// The system's root certificates. Those that cannot be parsed are skipped. All are roots, so none has ancestors.
    pub(crate) fn of_system(roots: &[CertificateDer<'static>], purpose: Purpose, validity: AnchorValidity) -> Self {
        let anchors = roots.iter().filter_map(|der| Anchor::new(der, purpose).ok()).collect();
        Self::indexed(anchors, purpose, validity)
    }

    fn indexed(anchors: Vec<Anchor>, purpose: Purpose, validity: AnchorValidity) -> Self {
        let mut by_subject: HashMap<Box<[u8]>, Vec<usize>> = HashMap::new();
        for (index, anchor) in anchors.iter().enumerate() {
            by_subject.entry(anchor.trust.subject.as_ref().into()).or_default().push(index);
        }
        Self { anchors, by_subject, purpose, validity }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Anchor> {
        self.anchors.iter()
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Anchor> {
        self.anchors.get(index)
    }

    pub(crate) fn position(&self, predicate: impl Fn(&Anchor) -> bool) -> Option<usize> {
        self.anchors.iter().position(predicate)
    }

    /// The positions of the anchors with this subject: DER without tag and length.
    pub(crate) fn named(&self, subject: &[u8]) -> &[usize] {
        self.by_subject.get(subject).map_or(&[], Vec::as_slice)
    }

    /// The anchors whose subject is the certificate's issuer. Those that match its authorityKeyIdentifier come first: after a
    /// CA was recreated under the same name, the bundle may contain both keys.
    pub(crate) fn candidates(&self, certificate: &RawCertificate<'_>) -> Vec<usize> {
        let mut candidates = self.named(certificate.issuer).to_vec();
        // Unauthenticated peers send certificates, so a large one is not parsed for a mere hint.
        if candidates.len() > 1 && certificate.der.len() <= MAX_READ_FOR_A_HINT {
            let issuer = KeyIds::read(certificate.der).issuer;
            candidates.sort_by_key(|index| {
                let key_id = self.get(*index).and_then(|anchor| anchor.key_id.as_ref());
                match (key_id, &issuer) {
                    (Some(one), Some(other)) if one == other => 0,
                    (Some(_), Some(_)) => 2,
                    _ => 1,
                }
            });
        }
        candidates
    }

    /// `None` if the dates of anchors are ignored.
    pub(crate) fn validity_of(&self, anchor: &Anchor) -> Option<Range<OffsetDateTime>> {
        match self.validity {
            AnchorValidity::Enforce => Some(anchor.properties.validity.clone()),
            AnchorValidity::Ignore => None,
        }
    }
}

impl Anchor {
    fn new(der: &CertificateDer<'static>, purpose: Purpose) -> Result<Self, BuildError> {
        let unreadable = || BuildError::Certificate(CertificateError::unreadable());
        let trust = anchor_from_trusted_cert(der).map_err(|error| BuildError::Anchor(error.to_string()))?.to_owned();
        let properties = CaProperties::read(der, purpose).ok_or_else(unreadable)?;
        let TrustAnchor { subject, subject_public_key_info, name_constraints } = &trust;
        let authority =
            digest_of([subject, subject_public_key_info].into_iter().chain(name_constraints).map(|part| &**part));
        let path_length = PathLength::of(properties.path_length);
        let ancestry = Ancestry { path_length, constraints: constraints([&trust].into_iter()), ..Ancestry::default() };
        Ok(Self {
            der: der.clone(),
            sha256: sha256_hex(der).into(),
            authority,
            key_id: KeyIds::read(der).own,
            trust,
            properties,
            ancestries: vec![ancestry],
        })
    }

    /// Whether the anchor or an ancestor has name constraints.
    pub(crate) fn constrains_names(&self, ancestry: &Ancestry) -> bool {
        self.properties.constrains_names || !ancestry.constrained.is_empty()
    }
}

/// Finds which anchors issued which others, and sets their ancestries. Each signature is verified once, here.
fn connect(anchors: &mut [Anchor]) {
    let issuers: Vec<Vec<usize>> = (0..anchors.len()).map(|index| issuers_of(index, anchors)).collect();
    let ways: Vec<Vec<Vec<usize>>> = (0..anchors.len())
        .map(|index| {
            let mut ways = Vec::new();
            climb(index, &issuers, &mut vec![index], &mut ways);
            ways
        })
        .collect();
    let ancestries: Vec<Vec<Ancestry>> =
        ways.iter().map(|ways| ways.iter().filter_map(|way| ancestry(way, anchors)).collect::<Vec<_>>()).collect();
    for (anchor, ancestries) in anchors.iter_mut().zip(ancestries) {
        anchor.ancestries = ancestries;
    }
}

/// The other anchors that issued this one. Empty for a root.
fn issuers_of(index: usize, anchors: &[Anchor]) -> Vec<usize> {
    let Some(anchor) = anchors.get(index) else { return Vec::new() };
    let Some(raw) = RawCertificate::read(&anchor.der) else { return Vec::new() };
    let is_issuer = |other: &Anchor| {
        raw.issuer == other.trust.subject.as_ref()
            && !raw.is_same_entity(&other.trust.subject, &other.trust.subject_public_key_info)
    };
    if raw.is_self_issued() && raw.is_signed_with(raw.public_key_info) {
        return Vec::new();
    }
    let candidates = anchors.iter().enumerate().filter(|(_, other)| is_issuer(other));
    candidates
        .filter(|(_, other)| raw.is_signed_with(&other.trust.subject_public_key_info))
        .map(|(index, _)| index)
        .collect()
}

/// Collects all paths from the last anchor of `way` up to an anchor without an issuer.
fn climb(index: usize, issuers: &[Vec<usize>], way: &mut Vec<usize>, ways: &mut Vec<Vec<usize>>) {
    let mut is_top = true;
    for issuer in issuers.get(index).into_iter().flatten().copied() {
        if way.contains(&issuer) {
            continue;
        }
        is_top = false;
        // Ancestors beyond the limit would apply too, so a truncated path must not be used.
        if way.len() >= MAX_ANCESTORS || ways.len() >= MAX_ANCESTRIES {
            continue;
        }
        way.push(issuer);
        climb(issuer, issuers, way, ways);
        way.pop();
    }
    if is_top && ways.len() < MAX_ANCESTRIES {
        ways.push(way.clone());
    }
}

/// The combined limits of a path, anchor first.
fn ancestry(way: &[usize], anchors: &[Anchor]) -> Option<Ancestry> {
    let way_up: Option<Vec<&Anchor>> = way.iter().map(|index| anchors.get(*index)).collect();
    let (anchor, above) = way_up?.split_first().map(|(anchor, above)| (*anchor, above.to_vec()))?;
    let fault = above.iter().find_map(|one| Some((one.properties.subject.clone(), one.properties.fault?)));
    // From the top down: each certificate uses up one of its issuer's path length.
    let chain: Vec<&Anchor> = [anchor].into_iter().chain(above.iter().copied()).collect();
    let path_length = chain.iter().rev().fold(PathLength::Any, |from_above, one| {
        let is_self_issued = RawCertificate::read(&one.der).is_some_and(|raw| raw.is_self_issued());
        from_above.below(is_self_issued).and(PathLength::of(one.properties.path_length))
    });
    let bound = |one: &&Anchor| {
        let name_constraints = one.trust.name_constraints.clone()?;
        Some(TrustAnchor { name_constraints: Some(name_constraints), ..unconstrained(&anchor.trust) })
    };
    let constrained: Vec<_> = above.iter().filter_map(bound).collect();
    Some(Ancestry {
        ancestors: way.get(1..)?.to_vec(),
        fault,
        path_length,
        subtrees: above.iter().map(|one| one.properties.subtrees).fold(0, usize::saturating_add),
        constraints: constraints([&anchor.trust].into_iter().chain(&constrained)),
        constrained,
    })
}

/// Equal digests mean equal name constraints.
fn constraints<'a>(anchors: impl Iterator<Item = &'a TrustAnchor<'static>>) -> Digest {
    digest_of(anchors.filter_map(|anchor| anchor.name_constraints.as_deref()))
}

fn unconstrained(anchor: &TrustAnchor<'static>) -> TrustAnchor<'static> {
    let copy = |der: &Der<'static>| der.clone();
    TrustAnchor {
        subject: copy(&anchor.subject),
        subject_public_key_info: copy(&anchor.subject_public_key_info),
        name_constraints: None,
    }
}

/// Bytes; above the size of usual certificates.
const MAX_READ_FOR_A_HINT: usize = 4 << 10;

/// Certificates on one path up from an anchor, the anchor included.
const MAX_ANCESTORS: usize = 8;

/// Paths up from one anchor. Cross-signed roots have several.
const MAX_ANCESTRIES: usize = 8;
