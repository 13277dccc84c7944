//! How a client stands that was let in before, when only the revocation lists of its trust anchor have changed.
//!
//! The signatures of a chain that has been verified are as good as they were. So its certificates need only be looked up in
//! the lists; for thousands of clients that are judged again after a reload that is a moment, and to verify them would be
//! seconds. What is said here is what webpki would say. Where that is not plain nothing is said, and webpki has to be asked.

use rustls::pki_types::{CertificateDer, TrustAnchor};
use time::OffsetDateTime;

use super::certificate::Certificate;
use super::crl::Crl;
use super::der::{INTEGER, SEQUENCE, TAGGED_0, element_of};
use crate::policy::CrlExpired;

/// What the lists say of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// None of them takes back any of it.
    Good,
    /// One of its certificates is taken back.
    Revoked,
}

/// The revocation lists that one trust anchor goes by.
#[derive(Debug)]
pub(super) struct Lists {
    anchor: TrustAnchor<'static>,
    lists: Vec<Crl>,
    expired: CrlExpired,
}

impl Lists {
    /// Those of the anchor's name have to be signed by it.
    pub(super) fn new(anchor: TrustAnchor<'static>, lists: Vec<Crl>, expired: CrlExpired) -> Self {
        Self { anchor, lists, expired }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Crl> {
        self.lists.iter()
    }

    /// Whether the anchor has the name by which a certificate of the chain calls its issuer.
    pub(super) fn may_have_issued_of(&self, chain: &Chain<'_>) -> bool {
        chain.links().any(|link| link.issuer == &*self.anchor.subject)
    }

    /// The standing of a chain that the anchor has vouched for, and whose certificates are all in their time.
    pub(super) fn standing(&self, chain: &Chain<'_>, now: OffsetDateTime) -> Option<Standing> {
        let path = chain.path_to(&self.anchor)?;
        let issuers = path.iter().skip(1).map(|issuer| Some(*issuer)).chain([None]);
        let taken_back = path.iter().zip(issuers).map(|(link, issuer)| self.take_back(link, issuer, now));
        if !taken_back.collect::<Option<Vec<_>>>()?.contains(&true) {
            return Some(Standing::Good);
        }
        // One past its time webpki finds worse than a revocation, and says so instead.
        let copies_in_time = chain.others.iter().filter(|link| link.is(&self.anchor)).all(|copy| copy.is_valid_at(now));
        copies_in_time.then_some(Standing::Revoked)
    }

    /// Whether a certificate is taken back by its issuer, which is the anchor where none is named.
    fn take_back(&self, link: &Link<'_>, issuer: Option<&Link<'_>>, now: OffsetDateTime) -> Option<bool> {
        let mut lists = self.lists.iter().filter(|list| list.is_of(link.issuer));
        let Some(list) = lists.next() else { return Some(false) };
        let one_and_whole = lists.next().is_none() && list.is_whole();
        let in_time = self.expired == CrlExpired::Allow || !list.is_expired_at(now);
        let its_own = issuer.is_none_or(|issuer| list.is_issued_by(issuer.der));
        if one_and_whole && in_time && its_own { list.takes_back(link.serial) } else { None }
    }
}

/// A chain as a client presented it, but each certificate once.
#[derive(Debug)]
pub(super) struct Chain<'der> {
    leaf: Link<'der>,
    others: Vec<Link<'der>>,
}

impl<'der> Chain<'der> {
    pub(super) fn read(leaf: &'der CertificateDer<'der>, others: &'der [CertificateDer<'der>]) -> Option<Self> {
        Some(Self { leaf: Link::read(leaf)?, others: others.iter().map(Link::read).collect::<Option<_>>()? })
    }

    fn links(&self) -> impl Iterator<Item = &Link<'der>> {
        [&self.leaf].into_iter().chain(&self.others)
    }

    /// From the leaf to what the anchor has issued, if by the names there is only this one way. A certificate of the
    /// anchor's own may be among the others, and is no other way: it has the same key.
    fn path_to(&self, anchor: &TrustAnchor<'_>) -> Option<Vec<&Link<'der>>> {
        let between: Vec<_> = self.others.iter().filter(|link| !link.is(anchor)).collect();
        let mut path = vec![&self.leaf];
        loop {
            let name = path.last()?.issuer;
            let mut issuers = between.iter().filter(|link| link.subject == name);
            match (issuers.next(), issuers.next(), name == &*anchor.subject) {
                (None, None, true) => return Some(path),
                // More of them than there are would be a circle.
                (Some(issuer), None, false) if path.len() <= between.len() => path.push(issuer),
                _ => return None,
            }
        }
    }
}

/// One certificate of a chain: what webpki compares, byte for byte as it is encoded, without tags and lengths.
#[derive(Debug)]
struct Link<'der> {
    der: &'der CertificateDer<'der>,
    serial: &'der [u8],
    issuer: &'der [u8],
    subject: &'der [u8],
    key: &'der [u8],
}

impl<'der> Link<'der> {
    fn read(der: &'der CertificateDer<'der>) -> Option<Self> {
        let (certificate, _) = element_of(SEQUENCE, der)?;
        let (signed, _) = element_of(SEQUENCE, certificate)?;
        let (_version, rest) = element_of(TAGGED_0, signed)?;
        let (serial, rest) = element_of(INTEGER, rest)?;
        let (_algorithm, rest) = element_of(SEQUENCE, rest)?;
        let (issuer, rest) = element_of(SEQUENCE, rest)?;
        let (_validity, rest) = element_of(SEQUENCE, rest)?;
        let (subject, rest) = element_of(SEQUENCE, rest)?;
        let (key, _) = element_of(SEQUENCE, rest)?;
        Some(Self { der, serial, issuer, subject, key })
    }

    /// Whether it is a certificate of this anchor's name and key.
    fn is(&self, anchor: &TrustAnchor<'_>) -> bool {
        self.subject == &*anchor.subject && self.key == &*anchor.subject_public_key_info
    }

    fn is_valid_at(&self, now: OffsetDateTime) -> bool {
        Certificate::parse(self.der).is_ok_and(|facts| facts.is_valid_at(now))
    }
}
