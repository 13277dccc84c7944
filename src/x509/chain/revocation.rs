//! Revocation status of a certificate (RFC 5280 §6.3): which lists apply to it, and whether they contain it.
//!
//! The signature of a list is verified once per key. After that, a check is a search for a serial number, so thousands of
//! sessions can be checked at once.

use std::collections::{BTreeMap, HashMap, HashSet};

use time::OffsetDateTime;

use crate::x509::ca_properties::{DistributionPoints, may_sign_lists};
use crate::x509::certificate::Certificate;
use crate::x509::chain::anchors::{Ancestry, Anchor, AnchorSet};
use crate::x509::chain::error::ChainError;
use crate::x509::chain::path::Path;
use crate::x509::chain::settings::CrlExpired;
use crate::x509::crl::{Crl, Scope};
use crate::x509::raw_certificate::RawCertificate;

/// All revocation lists of a listener.
#[derive(Debug, Default)]
pub(crate) struct RevocationLists {
    /// Key: the issuer in DER, without tag and length.
    by_issuer: HashMap<Vec<u8>, Vec<Crl>>,
    expired: CrlExpired,
}

/// The issuer of the checked certificate.
#[derive(Clone, Copy, Debug)]
enum Issuer<'a> {
    Anchor(&'a Anchor),
    /// An intermediate that the peer sent.
    Sent(&'a RawCertificate<'a>),
}

impl Issuer<'_> {
    fn key_info(&self) -> &[u8] {
        match self {
            Self::Anchor(anchor) => &anchor.trust.subject_public_key_info,
            Self::Sent(certificate) => certificate.public_key_info,
        }
    }

    /// By key usage (cRLSign). Trust anchors are not checked.
    fn may_sign_lists(&self) -> bool {
        match self {
            Self::Anchor(_) => true,
            Self::Sent(certificate) => may_sign_lists(&certificate.to_der()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A client or server certificate.
    Leaf,
    Ca,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Not revoked. The time is when the list expires, if expiry matters.
    Good(Option<OffsetDateTime>),
    Revoked,
    /// The issuer has lists, but none covers the certificate.
    Unknown,
    /// The list that covers the certificate has expired.
    ListExpired,
}

impl RevocationLists {
    /// The lists, each under its issuer's name and under every name of a trust anchor that is equal to it.
    pub(crate) fn new(lists: &[Crl], expired: CrlExpired, anchors: &AnchorSet) -> Self {
        let mut by_issuer: HashMap<Vec<u8>, Vec<Crl>> = HashMap::new();
        for list in lists {
            let of_anchors = anchors.iter().filter(|anchor| list.is_of(&anchor.trust.subject));
            let mut names = HashSet::from([list.issuer_name()]);
            for anchor in of_anchors {
                names.insert(&anchor.trust.subject);
                // Verified now, so that no session waits for it.
                list.is_signed_with(&anchor.trust.subject_public_key_info);
            }
            for name in names {
                by_issuer.entry(name.to_vec()).or_default().push(list.clone());
            }
        }
        Self { by_issuer, expired }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_issuer.is_empty()
    }

    /// Checks every certificate of the path that the peer sent. Returns when the first list used expires.
    ///
    /// # Errors
    /// If a certificate is revoked, or its status is unknown.
    pub(crate) fn check_sent(
        &self,
        path: &Path<'_>,
        now: OffsetDateTime,
    ) -> Result<Option<OffsetDateTime>, ChainError> {
        let issuers = path.certificates.iter().skip(1).map(Issuer::Sent).chain([Issuer::Anchor(path.anchor)]);
        let roles = [Role::Leaf].into_iter().chain(std::iter::repeat(Role::Ca));
        let links = path.certificates.iter().zip(issuers).zip(roles);
        self.check(links.map(|((certificate, issuer), role)| (*certificate, role, issuer)), now)
    }

    /// Whether the signatures of all lists that apply to a path were verified with its keys before. A check of the path then
    /// verifies none.
    pub(crate) fn knows_signers(&self, path: &Path<'_>) -> bool {
        let issuers = path.certificates.iter().skip(1).map(Issuer::Sent).chain([Issuer::Anchor(path.anchor)]);
        path.certificates.iter().zip(issuers).all(|(certificate, issuer)| {
            let of_its_name = self.by_issuer.get(certificate.issuer);
            of_its_name.is_none_or(|lists| lists.iter().all(|list| list.is_known_signer(issuer.key_info()).is_some()))
        })
    }

    /// Whether its issuer has revoked the peer's own certificate. This is final, because every other path has the same issuer
    /// key.
    pub(crate) fn revokes_leaf(&self, path: &Path<'_>, now: OffsetDateTime) -> bool {
        let issuer = path.certificates.get(1).map_or(Issuer::Anchor(path.anchor), Issuer::Sent);
        path.certificates.first().is_some_and(|leaf| self.status(leaf, Role::Leaf, issuer, now) == Status::Revoked)
    }

    /// Checks an anchor and the certificates above it.
    ///
    /// # Errors
    /// If a certificate is revoked, or its status is unknown.
    pub(crate) fn check_ancestors(
        &self,
        anchor: &Anchor,
        ancestry: &Ancestry,
        anchors: &AnchorSet,
        now: OffsetDateTime,
    ) -> Result<Option<OffsetDateTime>, ChainError> {
        let above: Vec<&Anchor> = ancestry.ancestors.iter().filter_map(|index| anchors.get(*index)).collect();
        let issued = [anchor].into_iter().chain(above.iter().copied());
        let links = issued.zip(above.iter().copied()).filter_map(|(issued, issuer)| {
            Some((RawCertificate::read(&issued.der)?, Role::Ca, Issuer::Anchor(issuer)))
        });
        self.check(links, now)
    }

    fn check<'a>(
        &self,
        links: impl Iterator<Item = (RawCertificate<'a>, Role, Issuer<'a>)>,
        now: OffsetDateTime,
    ) -> Result<Option<OffsetDateTime>, ChainError> {
        let mut first_end: Option<OffsetDateTime> = None;
        let mut doubt = None;
        for (certificate, role, issuer) in links {
            match self.status(&certificate, role, issuer, now) {
                Status::Good(end) => first_end = [first_end, end].into_iter().flatten().min(),
                Status::Revoked => return Err(ChainError::Revoked),
                Status::ListExpired => doubt = doubt.or(Some(ChainError::RevocationListExpired)),
                Status::Unknown => {
                    let subject =
                        Certificate::parse(&certificate.to_der()).map_or_else(|_| String::new(), |one| one.subject);
                    doubt = doubt.or(Some(ChainError::RevocationUnknown { subject }));
                }
            }
        }
        doubt.map_or(Ok(first_end), Err)
    }

    fn status(&self, certificate: &RawCertificate<'_>, role: Role, issuer: Issuer<'_>, now: OffsetDateTime) -> Status {
        let Some(of_its_name) = self.by_issuer.get(certificate.issuer) else { return Status::Good(None) };
        let signed: Vec<&Crl> = of_its_name.iter().filter(|list| list.is_signed_with(issuer.key_info())).collect();
        // A list whose thisUpdate is in the future does not replace a current one.
        let in_force = |list: &&Crl| list.this_update <= now || signed.iter().all(|list| list.this_update > now);
        // A list from the future applies from its thisUpdate on, so the result expires at that time.
        let upcoming = signed.iter().map(|list| list.this_update).filter(|from| *from > now).min();
        let own = newest(signed.iter().copied().filter(in_force));
        if own.is_empty() {
            // Another key of the same name signed the lists, as after a CA key change. RFC 5280 §6.3.3 (f) requires list and
            // certificate under one trust anchor. Listed certificates are revoked; the status of others is unknown.
            let is_named = of_its_name.iter().any(|list| list.revokes(certificate.serial));
            return if is_named { Status::Revoked } else { Status::Unknown };
        }
        let is_named = |list: &&Crl| list.revokes(certificate.serial);
        let points = own.iter().any(|list| list.is_scoped()).then(|| DistributionPoints::read(certificate.der));
        let covers = |list: &&Crl| match (&list.scope, &points) {
            (Some(scope), Some(points)) => scope.covers(role, points),
            (_, _) => true,
        };
        let covering: Vec<&Crl> = own.iter().copied().filter(covers).collect();
        // A list that contains the certificate revokes it, whatever its scope.
        if own.iter().any(is_named) {
            return Status::Revoked;
        }
        if covering.is_empty() || !issuer.may_sign_lists() {
            return Status::Unknown;
        }
        if self.expired == CrlExpired::Allow {
            return Status::Good(upcoming);
        }
        // One complete list is enough. Partitioned lists may each cover another part, so all must be current.
        let complete = covering.iter().find(|list| !list.is_scoped() && !list.is_expired_at(now));
        let end = match complete {
            Some(complete) => Some(complete.next_update),
            None => covering.iter().map(|list| list.next_update).min(),
        };
        if end.is_none_or(|end| end <= now) {
            return Status::ListExpired;
        }
        Status::Good([end, upcoming].into_iter().flatten().min())
    }
}

impl Scope {
    /// A certificate without distribution points may be in any partition.
    fn covers(&self, role: Role, points: &DistributionPoints) -> bool {
        let excluded = match role {
            Role::Leaf => self.only_ca_certificates,
            Role::Ca => self.only_user_certificates,
        };
        !excluded
            && match points {
                DistributionPoints::Unstated => true,
                DistributionPoints::Uris(uris) => uris.iter().any(|uri| self.uris.contains(uri)),
            }
    }
}

/// The newest list of each scope. Old and new lists may be configured together.
fn newest<'set>(lists: impl Iterator<Item = &'set Crl>) -> Vec<&'set Crl> {
    let mut series: BTreeMap<_, Vec<&Crl>> = BTreeMap::new();
    for list in lists {
        series.entry(&list.scope).or_default().push(list);
    }
    series.values().filter_map(|series| newest_of(series)).collect()
}

/// By CRL number if all lists have one, else by thisUpdate. Ties go to the list that revokes more.
fn newest_of<'set>(series: &[&'set Crl]) -> Option<&'set Crl> {
    let numbered = series.iter().all(|list| list.number.is_some());
    let age = |list: &&Crl| (numbered.then(|| list.number.clone()), list.this_update, list.revoked);
    series.iter().copied().max_by_key(age)
}
