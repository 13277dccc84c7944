//! Trust anchors: the certificates of a bundle, found by name, with everything that binds what is issued below them.
//!
//! Every certificate of a bundle is an anchor of its own. An anchor whose issuer is in the bundle too stays bound by it: the
//! issuer's path length, name constraints and revocation lists count for the whole path. The issuer's dates do not, because
//! the operator trusts the anchor itself.

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

/// The trust anchors of one side of a listener. Never changes.
#[derive(Debug)]
pub(crate) struct AnchorSet {
    anchors: Vec<Anchor>,
    by_subject: HashMap<Box<[u8]>, Vec<usize>>,
    pub(crate) purpose: Purpose,
    validity: AnchorValidity,
}

/// One trust anchor.
#[derive(Debug)]
pub(crate) struct Anchor {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) sha256: Arc<str>,
    /// Of its name, key and name constraints, which a renewed certificate of the same CA has in common with the old one.
    pub(crate) authority: Digest,
    pub(crate) trust: TrustAnchor<'static>,
    pub(crate) properties: CaProperties,
    key_id: Option<Vec<u8>>,
    /// What stands above it in the bundle: one for each way to a certificate that has no issuer there. None where every way is
    /// longer than is followed; then it vouches for nobody.
    pub(crate) ancestries: Vec<Ancestry>,
}

/// The certificates of the bundle above an anchor, its issuer first, and what they require together.
#[derive(Debug, Default)]
pub(crate) struct Ancestry {
    pub(crate) ancestors: Vec<usize>,
    /// One of them that must not issue certificates, and why.
    pub(crate) fault: Option<(String, CaFault)>,
    /// How many CAs may follow below the anchor, by its own word and by theirs; none at all where even the anchor is one too
    /// many.
    pub(crate) path_length: PathLength,
    /// The anchor with the name constraints of each ancestor that has some.
    pub(crate) constrained: Vec<TrustAnchor<'static>>,
    /// By how many subtrees these limit names.
    pub(crate) subtrees: usize,
    /// Of the name constraints of the anchor and of these ancestors.
    pub(crate) constraints: Digest,
}

/// How many CAs may follow below a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PathLength {
    #[default]
    Any,
    AtMost(usize),
    /// The certificate itself is below a CA that allows no further CA.
    Exceeded,
}

impl PathLength {
    fn of(stated: Option<usize>) -> Self {
        stated.map_or(Self::Any, Self::AtMost)
    }

    /// That of an issuer, seen from below a certificate it has issued.
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
    /// The anchors of a bundle. Certificates that are no CA's are left out: they vouch for nobody.
    ///
    /// # Errors
    /// When one of the others cannot be a trust anchor.
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

    /// Those of the system's root certificates that can be read. Each is a root.
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

    pub(crate) fn position(&self, is_it: impl Fn(&Anchor) -> bool) -> Option<usize> {
        self.anchors.iter().position(is_it)
    }

    /// The positions of the anchors of this name, as it is encoded, without tag and length.
    pub(crate) fn named(&self, subject: &[u8]) -> &[usize] {
        self.by_subject.get(subject).map_or(&[], Vec::as_slice)
    }

    /// The anchors that may have issued a certificate by its issuer's name. Those with the key that it names come first: a
    /// certificate authority that was made anew under its old name is there twice.
    pub(crate) fn candidates(&self, certificate: &RawCertificate<'_>) -> Vec<usize> {
        let mut candidates = self.named(certificate.issuer).to_vec();
        // Anybody may have sent it, so one that is long to read is not read for a hint.
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

    /// While an anchor counts.
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

    /// Whether it, or something above it, limits the names of what is issued below.
    pub(crate) fn constrains_names(&self, ancestry: &Ancestry) -> bool {
        self.properties.constrains_names || !ancestry.constrained.is_empty()
    }
}

/// Finds out which anchors have issued which others. The signatures are verified here, once.
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

/// The other anchors that have issued this one; none for a root.
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

/// All ways from the last of `way` to an anchor without an issuer.
fn climb(index: usize, issuers: &[Vec<usize>], way: &mut Vec<usize>, ways: &mut Vec<Vec<usize>>) {
    let mut is_top = true;
    for issuer in issuers.get(index).into_iter().flatten().copied() {
        if way.contains(&issuer) {
            continue;
        }
        is_top = false;
        // What is further up would bind it too, so a way that is cut off is none.
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

/// What the certificates of a way, the anchor first, require of what the anchor issues.
fn ancestry(way: &[usize], anchors: &[Anchor]) -> Option<Ancestry> {
    let way_up: Option<Vec<&Anchor>> = way.iter().map(|index| anchors.get(*index)).collect();
    let (anchor, above) = way_up?.split_first().map(|(anchor, above)| (*anchor, above.to_vec()))?;
    let fault = above.iter().find_map(|one| Some((one.properties.subject.clone(), one.properties.fault?)));
    // From the top down: what an issuer allows, less the certificate below it.
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

/// What tells whether two sets of anchors limit names in the same way.
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

/// Bytes. Longer than certificates are.
const MAX_READ_FOR_A_HINT: usize = 4 << 10;

/// Certificates of a bundle above one another.
const MAX_ANCESTORS: usize = 8;

/// Ways up from one anchor, as cross-signed roots have several.
const MAX_ANCESTRIES: usize = 8;
