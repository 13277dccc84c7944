//! Certification paths (RFC 5280 §6): which certificates lead from a peer's certificate to a trust anchor.
//!
//! A peer chooses what it sends, before it has proved anything, so the search bounds its own work. It goes by names first,
//! and then from the anchor down: the first signature is verified with the anchor's key, and a key that the peer sent is
//! used only after an anchor vouches for it. A peer without a certificate of a known CA can cause
//! [`MAX_FAILED_CHECKS`] signature checks, whatever it sends. Every certificate that does verify costs one more, and there are
//! at most [`MAX_SENT`] beside the peer's own.

use std::ops::ControlFlow;

use rustls::pki_types::CertificateDer;

use crate::x509::chain::anchors::{Anchor, AnchorSet};
use crate::x509::chain::error::ChainError;
use crate::x509::chain::signature_memo::SignatureMemo;
use crate::x509::raw_certificate::RawCertificate;

/// Certificates that a peer may send beside its own. Far more than a chain needs.
pub(crate) const MAX_SENT: usize = 6;

/// Of those, how many may have the same subject. Two do while a CA is cross-signed or gets a new key.
const MAX_OF_ONE_SUBJECT: usize = 2;

/// Signatures that may turn out wrong in one search, before it gives up. One by a key that is expensive to verify with counts
/// twice.
pub(crate) const MAX_FAILED_CHECKS: usize = 4;

/// What a wrong signature costs, by the key that it was verified with, the contents of a `SubjectPublicKeyInfo`. Those of
/// P-384, P-521 and RSA above 4096 bits take several times as long as others.
pub(crate) fn cost_of_failure(key_info: &[u8]) -> usize {
    match key_info.len() {
        MIN_P384..=MAX_P521 | MIN_RSA_ABOVE_4096.. => 2,
        _ => 1,
    }
}

/// Bytes: P-256 has 89 and Ed25519 fewer, P-384 118, P-521 155, RSA with 2048 bits 290, with 4096 bits 546.
const MIN_P384: usize = 100;
const MAX_P521: usize = 200;
const MIN_RSA_ABOVE_4096: usize = 600;

/// Paths that are offered to the visitor of one search.
const MAX_PATHS: usize = 4;

/// A search for paths through what one peer has sent.
#[derive(Debug)]
pub(crate) struct Search<'s> {
    anchors: &'s AnchorSet,
    /// The peer's own certificate, then what it sent along.
    certificates: Vec<RawCertificate<'s>>,
    /// Whether the peer's certificate can be reached downwards from each, by the names.
    leads_to_leaf: Vec<bool>,
    checked: Vec<Checked<'s>>,
    /// Where more is known of signatures; only for peers that have proved who they are.
    memo: Option<&'s SignatureMemo>,
    failed: usize,
    offered: usize,
}

/// A signature that has been verified: of which certificate, with which key, and whether it is good.
#[derive(Debug)]
struct Checked<'s> {
    certificate: usize,
    key_info: &'s [u8],
    is_valid: bool,
}

/// Certificates that lead to an anchor. All signatures on it are good.
#[derive(Debug)]
pub(crate) struct Path<'s> {
    /// The peer's certificate first, each issued by the next.
    pub(crate) certificates: Vec<RawCertificate<'s>>,
    /// Their positions in the chain of the [`Search`].
    pub(crate) positions: Vec<usize>,
    /// Has issued the last of them.
    pub(crate) anchor: &'s Anchor,
}

/// What a peer sent, without what can be of no use: each certificate once, no third of a subject, and only those that may lead
/// to its own by the names.
///
/// # Errors
/// [`ChainError::TooManyCertificates`]
pub(crate) fn relevant<'a>(
    leaf: &CertificateDer<'_>,
    sent: &'a [CertificateDer<'_>],
) -> Result<Vec<CertificateDer<'a>>, ChainError> {
    let mut distinct: Vec<&'a [u8]> = Vec::new();
    for der in sent {
        if der == leaf || distinct.contains(&der.as_ref()) {
            continue;
        }
        if distinct.len() == MAX_SENT {
            return Err(ChainError::TooManyCertificates);
        }
        distinct.push(der);
    }
    // What cannot be read is no issuer of anything, and nothing leads to what no issuer's name does.
    let readable: Vec<RawCertificate<'_>> = distinct.into_iter().filter_map(RawCertificate::read).collect();
    let leaf = RawCertificate::read(leaf).ok_or(ChainError::Malformed)?;
    let leads = leading_to_leaf(&[&[leaf], readable.as_slice()].concat());
    let mut subjects: Vec<&[u8]> = Vec::new();
    let mut relevant = Vec::new();
    for (raw, _) in readable.iter().zip(leads.iter().skip(1)).filter(|(_, leads)| **leads) {
        if subjects.iter().filter(|subject| **subject == raw.subject).count() < MAX_OF_ONE_SUBJECT {
            subjects.push(raw.subject);
            relevant.push(CertificateDer::from(raw.der));
        }
    }
    Ok(relevant)
}

impl<'s> Search<'s> {
    /// A search through a chain, the peer's certificate first, that has no more in it than [`relevant`] leaves.
    ///
    /// # Errors
    /// When the peer's own certificate cannot be read.
    pub(crate) fn new(anchors: &'s AnchorSet, chain: &'s [CertificateDer<'_>]) -> Result<Self, ChainError> {
        let certificates: Vec<_> = chain.iter().filter_map(|der| RawCertificate::read(der)).collect();
        if certificates.len() < chain.len() || certificates.is_empty() {
            return Err(ChainError::Malformed);
        }
        let leads_to_leaf = leading_to_leaf(&certificates);
        Ok(Self { anchors, certificates, leads_to_leaf, checked: Vec::new(), memo: None, failed: 0, offered: 0 })
    }

    /// The same for a peer that was accepted before, by the path at these positions of its chain, the signatures of which are
    /// good.
    ///
    /// # Errors
    /// When the peer's own certificate cannot be read.
    pub(crate) fn with_verified_path(
        anchors: &'s AnchorSet,
        chain: &'s [CertificateDer<'_>],
        path: &[u8],
        memo: &'s SignatureMemo,
    ) -> Result<Self, ChainError> {
        let mut search = Self::new(anchors, chain)?;
        let positions = || path.iter().map(|position| usize::from(*position));
        for (certificate, issuer) in positions().zip(positions().skip(1)) {
            let key_info = search.certificates.get(issuer).map(|issuer| issuer.public_key_info);
            let known = key_info.map(|key_info| Checked { certificate, key_info, is_valid: true });
            search.checked.extend(known);
        }
        search.memo = Some(memo);
        Ok(search)
    }

    /// Offers every path to `visit`, the shorter ones below each anchor first, until that stops the search.
    ///
    /// # Errors
    /// [`ChainError::TooManyChecks`], where the search gave up before it had tried everything.
    pub(crate) fn run(&mut self, on_path: &mut impl FnMut(&Path<'s>) -> ControlFlow<()>) -> Result<(), ChainError> {
        for (top, certificate) in self.certificates.clone().into_iter().enumerate() {
            if !self.leads_to_leaf.get(top).copied().unwrap_or(false) {
                continue;
            }
            for index in self.anchors.candidates(&certificate) {
                let Some(anchor) = self.anchors.get(index) else { continue };
                let key_info = anchor.trust.subject_public_key_info.as_ref();
                if top != LEAF && is_of(&certificate, anchor) {
                    // A path over it would be a detour.
                    continue;
                }
                if self.verify_signature(top, key_info)? && self.descend(&mut vec![top], anchor, on_path)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The peer's own certificate.
    pub(crate) fn leaf(&self) -> Option<&RawCertificate<'s>> {
        self.certificates.get(LEAF)
    }

    /// How many signatures were verified, and how many of those were wrong.
    #[cfg(test)]
    pub(crate) fn checks(&self) -> (usize, usize) {
        (self.checked.len(), self.failed)
    }

    /// Follows the path further down, the topmost certificate first.
    fn descend(
        &mut self,
        path: &mut Vec<usize>,
        anchor: &'s Anchor,
        on_path: &mut impl FnMut(&Path<'s>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ChainError> {
        let Some(lowest) = path.last().copied() else { return Ok(ControlFlow::Break(())) };
        if lowest == LEAF {
            self.offered += 1;
            let positions: Vec<usize> = path.iter().rev().copied().collect();
            let certificates = positions.iter().filter_map(|index| self.certificates.get(*index).copied()).collect();
            let flow = on_path(&Path { certificates, positions, anchor });
            return Ok(if self.offered < MAX_PATHS { flow } else { ControlFlow::Break(()) });
        }
        let Some(issuer) = self.certificates.get(lowest).copied() else { return Ok(ControlFlow::Break(())) };
        for (index, certificate) in self.certificates.clone().into_iter().enumerate() {
            let is_next = certificate.issuer == issuer.subject
                && self.leads_to_leaf.get(index).copied().unwrap_or(false)
                && !self.repeats(path, &certificate)
                && (index == LEAF || !is_of(&certificate, anchor));
            if is_next && self.verify_signature(index, issuer.public_key_info)? {
                path.push(index);
                let flow = self.descend(path, anchor, on_path)?;
                path.pop();
                if flow.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whether a certificate of the same name and key is on the path already (RFC 4158 §5.2).
    fn repeats(&self, path: &[usize], certificate: &RawCertificate<'_>) -> bool {
        let mut on_path = path.iter().filter_map(|index| self.certificates.get(*index));
        on_path.any(|other| certificate.is_same_entity(other.subject, other.public_key_info))
    }

    /// Whether the key has signed a certificate. Asked twice, it costs once.
    fn verify_signature(&mut self, certificate: usize, key_info: &'s [u8]) -> Result<bool, ChainError> {
        let known = self.checked.iter().find(|known| known.certificate == certificate && known.key_info == key_info);
        if let Some(known) = known {
            return Ok(known.is_valid);
        }
        let (Some(leaf), Some(raw)) = (self.certificates.get(LEAF), self.certificates.get(certificate)) else {
            return Ok(false);
        };
        if self.failed >= MAX_FAILED_CHECKS {
            return Err(ChainError::TooManyChecks);
        }
        let is_valid = match self.memo {
            _ if !raw.may_be_signed_with(key_info) => false,
            Some(memo) => memo
                .is_signed(leaf.der, raw.der, key_info, || raw.is_signed_with(key_info))
                .ok_or(ChainError::TooManyChecks)?,
            None => {
                let is_valid = raw.is_signed_with(key_info);
                self.failed += if is_valid { 0 } else { cost_of_failure(key_info) };
                is_valid
            }
        };
        self.checked.push(Checked { certificate, key_info, is_valid });
        Ok(is_valid)
    }
}

/// Whether it is a certificate of the anchor's name and key.
fn is_of(certificate: &RawCertificate<'_>, anchor: &Anchor) -> bool {
    certificate.is_same_entity(&anchor.trust.subject, &anchor.trust.subject_public_key_info)
}

/// The position of the peer's own certificate.
const LEAF: usize = 0;

/// From which of the certificates the first can be reached, going by names only.
fn leading_to_leaf(certificates: &[RawCertificate<'_>]) -> Vec<bool> {
    let mut leading: Vec<bool> = (0..certificates.len()).map(|index| index == LEAF).collect();
    // Each round finds those that are one step further up.
    for _ in 0..certificates.len() {
        let reached: Vec<&[u8]> =
            certificates.iter().zip(&leading).filter(|(_, leads)| **leads).map(|(one, _)| one.issuer).collect();
        for (leads, one) in leading.iter_mut().zip(certificates) {
            *leads |= reached.contains(&one.subject);
        }
    }
    leading
}

/// Whether there is one path at most, by the names alone: then what is wrong with it cannot be right with another.
pub(crate) fn is_unambiguous(anchors: &AnchorSet, chain: &[CertificateDer<'_>]) -> bool {
    let certificates: Vec<_> = chain.iter().filter_map(|der| RawCertificate::read(der)).collect();
    let Some((leaf, others)) = certificates.split_first() else { return true };
    let mut current = leaf;
    // More steps than certificates are a circle.
    for _ in 0..certificates.len() {
        let as_anchor = anchors.named(current.issuer);
        // A root that was sent along leads nowhere but to itself.
        let is_root = |one: &RawCertificate<'_>| {
            let mut anchors = as_anchor.iter().filter_map(|index| anchors.get(*index));
            one.is_self_issued() && anchors.any(|anchor| is_of(one, anchor))
        };
        let mut issuers = others.iter().filter(|other| other.subject == current.issuer && !is_root(other));
        match (as_anchor, issuers.next(), issuers.next()) {
            ([] | [_], None, None) => return true,
            ([], Some(issuer), None) => current = issuer,
            _ => return false,
        }
    }
    false
}
