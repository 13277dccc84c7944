//! Path search (RFC 5280 §6): the certificates that lead from a peer's certificate to a trust anchor.
//!
//! An unauthenticated peer chooses the input, so the search bounds its work. It compares names first, and then works from the
//! anchor down. The anchor's key verifies the first signature. A key that the peer sent is used only after its certificate has
//! been verified. A peer without a certificate of a known CA can cause at most [`MAX_FAILED_CHECKS`] signature checks. Each valid
//! certificate costs one more, and a peer can send at most [`MAX_SENT`] besides its own.

use std::ops::ControlFlow;

use rustls::pki_types::CertificateDer;

use crate::x509::chain::anchors::{Anchor, AnchorSet};
use crate::x509::chain::error::ChainError;
use crate::x509::chain::signature_memo::SignatureMemo;
use crate::x509::raw_certificate::RawCertificate;

/// Certificates that a peer may send besides its own; far more than a chain needs.
pub(crate) const MAX_SENT: usize = 6;

/// Sent certificates with the same subject. There are two while a CA is cross-signed or gets a new key.
const MAX_OF_ONE_SUBJECT: usize = 2;

/// Cost of invalid signatures at which a search ends with [`ChainError::TooManyChecks`]; see [`cost_of_failure`].
pub(crate) const MAX_FAILED_CHECKS: usize = 4;

/// The cost of an invalid signature for a key, given as the contents of its `SubjectPublicKeyInfo`. Keys on P-384 and P-521 and
/// RSA keys above 4096 bits take several times as long to verify with as others.
pub(crate) fn cost_of_failure(key_info: &[u8]) -> usize {
    match key_info.len() {
        MIN_P384..=MAX_P521 | MIN_RSA_ABOVE_4096.. => 2,
        _ => 1,
    }
}

/// Bytes of a `SubjectPublicKeyInfo`: Ed25519 below 89, P-256 89, P-384 118, P-521 155, RSA-2048 290, RSA-4096 546.
const MIN_P384: usize = 100;
const MAX_P521: usize = 200;
const MIN_RSA_ABOVE_4096: usize = 600;

/// Paths that one search passes to its callback.
const MAX_PATHS: usize = 4;

/// A search for paths through what one peer has sent.
#[derive(Debug)]
pub(crate) struct Search<'s> {
    anchors: &'s AnchorSet,
    /// The peer's own certificate first.
    certificates: Vec<RawCertificate<'s>>,
    /// For each certificate: whether a path down to the peer's certificate exists, by names only.
    leads_to_leaf: Vec<bool>,
    checked: Vec<Checked<'s>>,
    /// Shared results of signature checks; only for authenticated peers.
    memo: Option<&'s SignatureMemo>,
    failed: usize,
    offered: usize,
}

/// The result of one signature check.
#[derive(Debug)]
struct Checked<'s> {
    certificate: usize,
    key_info: &'s [u8],
    is_valid: bool,
}

/// Certificates that lead to an anchor, with valid signatures.
#[derive(Debug)]
pub(crate) struct Path<'s> {
    /// The peer's certificate first; each is issued by the next.
    pub(crate) certificates: Vec<RawCertificate<'s>>,
    /// Their positions in the chain of the [`Search`].
    pub(crate) positions: Vec<usize>,
    /// The issuer of the last certificate.
    pub(crate) anchor: &'s Anchor,
}

/// Filters the certificates that a peer sent besides its own. Keeps each certificate once, at most [`MAX_OF_ONE_SUBJECT`] per
/// subject, and only those that lead to the peer's certificate by names.
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
    // A certificate that cannot be parsed cannot be an issuer, so it is skipped.
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
    /// A search through a chain that is already reduced by [`relevant`], the peer's certificate first.
    ///
    /// # Errors
    /// [`ChainError::Malformed`] if a certificate cannot be parsed.
    pub(crate) fn new(anchors: &'s AnchorSet, chain: &'s [CertificateDer<'_>]) -> Result<Self, ChainError> {
        let certificates: Vec<_> = chain.iter().filter_map(|der| RawCertificate::read(der)).collect();
        if certificates.len() < chain.len() || certificates.is_empty() {
            return Err(ChainError::Malformed);
        }
        let leads_to_leaf = leading_to_leaf(&certificates);
        Ok(Self { anchors, certificates, leads_to_leaf, checked: Vec::new(), memo: None, failed: 0, offered: 0 })
    }

    /// Like [`new`](Self::new), for a peer that was accepted earlier. The signatures on `path`, given as positions in `chain`,
    /// count as verified.
    ///
    /// # Errors
    /// [`ChainError::Malformed`] if a certificate cannot be parsed.
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

    /// Calls `on_path` with each path, shorter paths below an anchor first, until it breaks or [`MAX_PATHS`] is reached.
    ///
    /// # Errors
    /// [`ChainError::TooManyChecks`] if the search ended before it had tried all paths.
    pub(crate) fn run(&mut self, on_path: &mut impl FnMut(&Path<'s>) -> ControlFlow<()>) -> Result<(), ChainError> {
        for (top, certificate) in self.certificates.clone().into_iter().enumerate() {
            if !self.leads_to_leaf.get(top).copied().unwrap_or(false) {
                continue;
            }
            for index in self.anchors.candidates(&certificate) {
                let Some(anchor) = self.anchors.get(index) else { continue };
                let key_info = anchor.trust.subject_public_key_info.as_ref();
                if top != LEAF && is_of(&certificate, anchor) {
                    // The anchor's own certificate would only lengthen the path.
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

    /// The number of signature checks, and the cost of the invalid ones.
    #[cfg(test)]
    pub(crate) fn checks(&self) -> (usize, usize) {
        (self.checked.len(), self.failed)
    }

    /// Extends the path downwards; its topmost certificate comes first.
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

    /// Whether the path already has a certificate with the same name and key (RFC 4158 §5.2).
    fn repeats(&self, path: &[usize], certificate: &RawCertificate<'_>) -> bool {
        let mut on_path = path.iter().filter_map(|index| self.certificates.get(*index));
        on_path.any(|other| certificate.is_same_entity(other.subject, other.public_key_info))
    }

    /// Verifies the signature on a certificate with a key. Each combination is verified once.
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

/// Whether the certificate has the anchor's name and key.
fn is_of(certificate: &RawCertificate<'_>, anchor: &Anchor) -> bool {
    certificate.is_same_entity(&anchor.trust.subject, &anchor.trust.subject_public_key_info)
}

/// Position of the peer's own certificate in a chain.
const LEAF: usize = 0;

/// For each certificate: whether a path leads down from it to the first, by names only.
fn leading_to_leaf(certificates: &[RawCertificate<'_>]) -> Vec<bool> {
    let mut leading: Vec<bool> = (0..certificates.len()).map(|index| index == LEAF).collect();
    // Each round finds the certificates one level further up.
    for _ in 0..certificates.len() {
        let reached: Vec<&[u8]> =
            certificates.iter().zip(&leading).filter(|(_, leads)| **leads).map(|(one, _)| one.issuer).collect();
        for (leads, one) in leading.iter_mut().zip(certificates) {
            *leads |= reached.contains(&one.subject);
        }
    }
    leading
}

/// Whether at most one path exists, by names only. Then a fault of that path is final.
pub(crate) fn is_unambiguous(anchors: &AnchorSet, chain: &[CertificateDer<'_>]) -> bool {
    let certificates: Vec<_> = chain.iter().filter_map(|der| RawCertificate::read(der)).collect();
    let Some((leaf, others)) = certificates.split_first() else { return true };
    let mut current = leaf;
    // More steps than certificates mean a loop.
    for _ in 0..certificates.len() {
        let as_anchor = anchors.named(current.issuer);
        // A root that the peer sent leads only to itself.
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
