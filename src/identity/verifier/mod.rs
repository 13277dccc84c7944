//! Verifies client certificate chains, by trust anchors or pinned certificates.
//!
//! A chain is verified completely when a client presents it. Sessions keep the path that was found. After a policy change,
//! dates and serial numbers are enough for most of them ([`ChainVerifier::reverify_from_path`]).

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::DistinguishedName;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::identity::auth_settings::ClientAuthSettings;
use crate::identity::cache::VerificationCache;
use crate::identity::settings::ClientAuth;
use crate::identity::verified::{TrustedBy, VerifiedIdentity};
use crate::x509::ca_properties::{Purpose, may_sign_handshakes};
use crate::x509::certificate::Certificate;
use crate::x509::chain::anchors::AnchorSet;
use crate::x509::chain::error::ChainError;
use crate::x509::chain::path::{Path, Search, is_unambiguous, relevant};
use crate::x509::chain::revocation::RevocationLists;
use crate::x509::chain::rules;
use crate::x509::chain::rules::{CheckedAnchor, NameBudget, Sent, check_validity, overlap};
use crate::x509::chain::signature_memo::SignatureMemo;
use crate::x509::digest::{Digest, digest_of, digest_of_chain};
use crate::x509::error::BuildError;
use crate::x509::raw_certificate::RawCertificate;

/// Verifies chains with one set of trust anchors, pinned certificates and revocation lists. The set is immutable.
#[derive(Debug)]
pub(crate) struct ChainVerifier {
    /// Unique in this process.
    id: u64,
    /// `client_auth = "required"`.
    pub(crate) mandatory: bool,
    anchors: AnchorSet,
    pinned: HashSet<Digest>,
    lists: RevocationLists,
    /// The CA names in the CertificateRequest message.
    pub(crate) hints: Vec<DistinguishedName>,
    cache: VerificationCache,
    memo: SignatureMemo,
}

/// A path that the policy accepts, or a pinned certificate, which needs none.
struct TrustedPath {
    trusted_by: TrustedBy,
    /// Positions in the chain. Empty for a pinned certificate.
    path: Box<[u8]>,
    sent: Sent,
    /// The period in which the result holds.
    good: Range<OffsetDateTime>,
    /// Whether a CA on the path or above it has name constraints.
    constrains_names: bool,
    /// Digest of the name constraints above the path.
    constraints: Digest,
}

impl ChainVerifier {
    pub(crate) fn new(settings: &ClientAuthSettings) -> Result<Self, BuildError> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let anchors = AnchorSet::new(&settings.anchors, Purpose::ClientAuth, settings.anchor_validity)?;
        let hints = match settings.pinned.is_empty() {
            true => hints(&anchors),
            // A client with a pinned certificate may find none of its issuers in the hints, and would send no certificate.
            false => Vec::new(),
        };
        let lists = RevocationLists::new(&settings.crls, settings.crl_expired, &anchors);
        Ok(Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            mandatory: settings.auth == ClientAuth::Required,
            anchors,
            pinned: settings.pinned.iter().map(|der| digest_of([&**der].into_iter())).collect(),
            lists,
            hints,
            cache: VerificationCache::default(),
            memo: SignatureMemo::default(),
        })
    }

    /// Why no certificate is accepted through this anchor at `now`. `None` if certificates are accepted, or it is not an anchor.
    pub(crate) fn anchor_error(&self, der: &CertificateDer<'_>, now: OffsetDateTime) -> Option<ChainError> {
        let anchor = self.anchors.iter().find(|anchor| anchor.der == *der)?;
        self.check_anchor(&Path { certificates: Vec::new(), positions: Vec::new(), anchor }, now, None).err()
    }

    /// Verifies the chain of a client that has proved that it has the key, and caches an accepted chain.
    pub(crate) fn verify_and_remember(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Arc<VerifiedIdentity>, ChainError> {
        let identity = self.verify(leaf, sent, now)?;
        self.remember(&identity);
        Ok(identity)
    }

    /// Caches an identity verified by this verifier, of a client that has proved that it has the key.
    pub(crate) fn remember(&self, identity: &Arc<VerifiedIdentity>) {
        self.cache.insert(identity);
    }

    /// Verifies an identity again, with signature checks only if another path may apply.
    #[cfg(test)]
    pub(crate) fn reverify(
        &self,
        identity: &Arc<VerifiedIdentity>,
        now: OffsetDateTime,
    ) -> Result<Arc<VerifiedIdentity>, ChainError> {
        self.reverify_from_path(identity, now).unwrap_or_else(|| self.reverify_by_search(identity, now))
    }

    /// Verifies an identity again on every current path of its chain. Known signatures are not checked again.
    pub(crate) fn reverify_by_search(
        &self,
        identity: &Arc<VerifiedIdentity>,
        now: OffsetDateTime,
    ) -> Result<Arc<VerifiedIdentity>, ChainError> {
        let search = || Search::with_verified_path(&self.anchors, &identity.chain, &identity.path, &self.memo);
        let verified = self.verify_chain(&identity.chain, identity.digest, &search, now)?;
        self.remember(&verified);
        Ok(verified)
    }

    /// Verifies an identity again on its known path, without signature checks. `None` if the result is not certain: another path
    /// may be better, or the anchor has changed.
    pub(crate) fn reverify_from_path(
        &self,
        identity: &Arc<VerifiedIdentity>,
        now: OffsetDateTime,
    ) -> Option<Result<Arc<VerifiedIdentity>, ChainError>> {
        if identity.verifier_id == self.id && now < identity.until {
            return Some(Ok(Arc::clone(identity)));
        }
        if let Some(known) = self.cache.get(&identity.digest, now) {
            return Some(Ok(known));
        }
        let reverified = self.reverify_path(identity, now)?;
        Some(reverified.inspect(|identity| {
            if self.has_searched_all_paths(identity) {
                self.remember(identity);
            }
        }))
    }

    /// Whether this verifier has searched all paths of the identity's chain. Otherwise a path without name constraints may
    /// exist, on which the common name is usable.
    pub(crate) fn has_searched_all_paths(&self, identity: &VerifiedIdentity) -> bool {
        identity.verifier_id == self.id
    }

    fn reverify_path(
        &self,
        identity: &VerifiedIdentity,
        now: OffsetDateTime,
    ) -> Option<Result<Arc<VerifiedIdentity>, ChainError>> {
        let is_pinned = self.pins(identity.chain.first()?);
        let TrustedBy::Anchor { sha256, authority } = &identity.trusted_by else {
            let stands_alone = is_pinned && self.lists.is_empty();
            return stands_alone.then(|| {
                check_validity(&identity.validity, now)?;
                Ok(Arc::new(VerifiedIdentity { verifier_id: self.id, ..identity.clone() }))
            });
        };
        if is_pinned {
            return None;
        }
        let same = self.anchors.position(|anchor| anchor.sha256 == *sha256);
        let anchor = same.or_else(|| self.anchors.position(|anchor| anchor.authority == *authority));
        let anchor = anchor.and_then(|index| self.anchors.get(index))?;
        // The names were checked against other constraints than the current ones.
        if anchor.ancestries.iter().any(|ancestry| ancestry.constraints != identity.constraints) {
            return None;
        }
        let positions: Vec<usize> = identity.path.iter().map(|position| usize::from(*position)).collect();
        let on_path = positions.iter().map(|position| RawCertificate::read(identity.chain.get(*position)?));
        let path = Path { certificates: on_path.collect::<Option<_>>()?, positions, anchor };
        if !self.lists.knows_signers(&path) {
            return None;
        }
        let sent = Sent { validity: identity.validity.clone(), constrains_names: identity.constrains_names };
        let verified = check_validity(&sent.validity, now).and_then(|()| self.apply_policy(&path, sent, now, None));
        match verified {
            Ok(TrustedPath { trusted_by, good, .. }) => Some(Ok(Arc::new(VerifiedIdentity {
                trusted_by,
                from: good.start,
                until: good.end,
                verifier_id: if identity.constrains_names { identity.verifier_id } else { self.id },
                ..identity.clone()
            }))),
            // A fault of the leaf, or of the only possible path, is final.
            Err(error) => {
                let is_final = self.is_against_leaf(&path, now) || is_unambiguous(&self.anchors, &identity.chain);
                is_final.then_some(Err(error))
            }
        }
    }

    /// Whether the path is rejected because of the leaf, which every other path has too.
    fn is_against_leaf(&self, path: &Path<'_>, now: OffsetDateTime) -> bool {
        let validity = path.certificates.first().and_then(RawCertificate::validity);
        validity.is_none_or(|validity| !validity.contains(&now)) || self.lists.revokes_leaf(path, now)
    }

    /// Verifies a chain without caching the result. During the handshake the client has not yet proved that it has the key.
    /// Anyone who knows a valid certificate could otherwise fill the cache by adding different certificates to it.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Arc<VerifiedIdentity>, ChainError> {
        let mut chain = vec![CertificateDer::from(leaf.as_ref())];
        chain.extend(relevant(leaf, sent)?);
        let digest = digest_of_chain(&chain);
        if let Some(known) = self.cache.get(&digest, now) {
            return Ok(known);
        }
        self.verify_chain(&chain, digest, &|| Search::new(&self.anchors, &chain), now)
    }

    fn verify_chain<'s>(
        &'s self,
        chain: &'s [CertificateDer<'_>],
        digest: Digest,
        search: &dyn Fn() -> Result<Search<'s>, ChainError>,
        now: OffsetDateTime,
    ) -> Result<Arc<VerifiedIdentity>, ChainError> {
        let leaf = chain.first().ok_or(ChainError::Malformed)?;
        if self.pins(leaf) {
            return self.verify_pinned(chain, digest, search, now);
        }
        let trusted = rules::choose(
            search()?,
            now,
            |trusted: &TrustedPath| trusted.constrains_names,
            |path, names| {
                // Only a client with a certificate of an anchor gets here, so an exact error is safe.
                if path.certificates.first().is_some_and(RawCertificate::is_too_large) {
                    return Err(ChainError::TooLarge);
                }
                if path.certificates.first().is_some_and(|leaf| !may_sign_handshakes(&leaf.to_der())) {
                    return Err(ChainError::KeyUsage);
                }
                let sent = rules::check_sent(path, self.anchors.purpose, now, names)?;
                self.apply_policy(path, sent, now, Some(names))
            },
        )?;
        let certificate = Certificate::parse(leaf).map_err(|_| ChainError::Malformed)?;
        Ok(self.build_identity(chain, digest, certificate, trusted))
    }

    fn pins(&self, leaf: &CertificateDer<'_>) -> bool {
        !self.pinned.is_empty() && self.pinned.contains(&digest_of([&**leaf].into_iter()))
    }

    /// A pinned certificate is trusted without a CA, unless a CA that is also configured has revoked it.
    fn verify_pinned<'s>(
        &'s self,
        chain: &'s [CertificateDer<'_>],
        digest: Digest,
        search: &dyn Fn() -> Result<Search<'s>, ChainError>,
        now: OffsetDateTime,
    ) -> Result<Arc<VerifiedIdentity>, ChainError> {
        let leaf = chain.first().ok_or(ChainError::Malformed)?;
        let certificate = Certificate::parse(leaf).map_err(|_| ChainError::Malformed)?;
        let validity = certificate.not_before..certificate.end();
        check_validity(&validity, now)?;
        if !self.lists.is_empty() {
            let mut verified: Vec<Result<_, ChainError>> = Vec::new();
            // An incomplete search does not count against the certificate.
            let _ = search()?.run(&mut |path| {
                verified.push(self.lists.check_sent(path, now));
                ControlFlow::Continue(())
            });
            let is_revoked = verified.iter().any(|verified| verified.as_ref().is_err_and(ChainError::is_revocation));
            if is_revoked && !verified.iter().any(Result::is_ok) {
                return Err(ChainError::Revoked);
            }
        }
        let trusted = TrustedPath {
            trusted_by: TrustedBy::Pinned,
            path: Box::default(),
            sent: Sent { validity: validity.clone(), constrains_names: false },
            good: validity,
            constrains_names: false,
            constraints: Digest::default(),
        };
        Ok(self.build_identity(chain, digest, certificate, trusted))
    }

    /// Builds the identity of a chain that the policy accepts.
    fn build_identity(
        &self,
        chain: &[CertificateDer<'_>],
        digest: Digest,
        certificate: Certificate,
        trusted: TrustedPath,
    ) -> Arc<VerifiedIdentity> {
        Arc::new(VerifiedIdentity {
            certificate,
            trusted_by: trusted.trusted_by,
            from: trusted.good.start,
            until: trusted.good.end,
            constrains_names: trusted.constrains_names,
            validity: trusted.sent.validity,
            path: trusted.path,
            constraints: trusted.constraints,
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
            digest,
            verifier_id: self.id,
        })
    }

    /// Applies the parts of the policy that can change: the limits of the anchor, and the revocation lists. The rules for the
    /// certificates of the path were checked earlier.
    fn apply_policy(
        &self,
        path: &Path<'_>,
        sent: Sent,
        now: OffsetDateTime,
        names: Option<&NameBudget>,
    ) -> Result<TrustedPath, ChainError> {
        let lists_end = self.lists.check_sent(path, now)?;
        let CheckedAnchor { validity, constrains_names, constraints, more: above_end } =
            self.check_anchor(path, now, names)?;
        let mut good = overlap(sent.validity.clone(), &validity);
        // An expired list that is still used (`crl_expired = "allow"`) does not end the result.
        let ends = [lists_end, above_end].into_iter().flatten().filter(|end| *end > now);
        good.end = ends.fold(good.end, Ord::min);
        let anchor = path.anchor;
        let trusted_by = TrustedBy::Anchor { sha256: Arc::clone(&anchor.sha256), authority: anchor.authority };
        let positions = path.positions.iter().filter_map(|position| u8::try_from(*position).ok());
        let constrains_names = constrains_names || sent.constrains_names;
        Ok(TrustedPath { trusted_by, path: positions.collect(), sent, good, constrains_names, constraints })
    }

    /// Checks the anchor of a path and the certificates above it, including revocation.
    fn check_anchor(
        &self,
        path: &Path<'_>,
        now: OffsetDateTime,
        names: Option<&NameBudget>,
    ) -> Result<CheckedAnchor<Option<OffsetDateTime>>, ChainError> {
        let check_more = |ancestry: &_| self.lists.check_ancestors(path.anchor, ancestry, &self.anchors, now);
        rules::check_anchor(path, &self.anchors, now, names, &check_more)
    }
}

/// The distinct names of the CAs, by which clients choose a certificate. Empty above [`MAX_HINTS`]: the list is only a hint, a TLS
/// message can hold 64 KiB of it, and Java clients accept half of that.
fn hints(anchors: &AnchorSet) -> Vec<DistinguishedName> {
    let mut seen = HashSet::new();
    let subjects = anchors.iter().map(|anchor| anchor.trust.subject.as_ref()).filter(|subject| seen.insert(*subject));
    let hints: Vec<_> = subjects.map(DistinguishedName::in_sequence).collect();
    let length: usize = hints.iter().map(|hint| hint.as_ref().len() + 2).sum();
    if length > MAX_HINTS { Vec::new() } else { hints }
}

/// Bytes of CA names that are sent to clients.
const MAX_HINTS: usize = 16 << 10;
