//! Which client certificates are good, and why: webpki's verdict for one trust anchor at a time, certificates that are
//! trusted by themselves, and a memory of good verdicts.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use time::OffsetDateTime;

use super::certificate::Certificate;
use super::credential::{Credential, Voucher};
use super::crl::{Crl, CrlSet};
use super::error::BuildError;
use super::parts::TrustParts;
use super::provider;
use super::standing::{Chain, Lists, Standing};
use super::verified::{Digest, Verified, digest, digest_of};
use crate::policy::{ClientAuth, CrlExpired};

/// Where a refused certificate is left for the audit.
pub(super) type Refused = Arc<OnceLock<Certificate>>;

/// Judges clients' chains by one set of trust anchors, pinned certificates and revocation lists, which never changes.
#[derive(Debug)]
pub(super) struct ChainVerifier {
    /// Which of all that ever were in this process.
    number: u64,
    mandatory: bool,
    anchors: Vec<Anchor>,
    pinned: HashSet<Digest>,
    has_lists: bool,
    /// When revocation lists run out; empty where that makes no difference.
    list_ends: Vec<OffsetDateTime>,
    hints: Vec<DistinguishedName>,
    verified: Verified,
}

/// One trust anchor. Each has a verifier of its own: so it is known which of them vouches for a client, and of two with the
/// same name and different keys each goes by the revocation lists it has signed itself.
#[derive(Debug)]
struct Anchor {
    sha256: Arc<str>,
    /// Of all that webpki knows of it, which a renewed certificate of the same key has in common with the old one.
    authority: Digest,
    lists: Lists,
    /// Of the lists, and of how it goes by them.
    digest_of_lists: Digest,
    webpki: Arc<dyn ClientCertVerifier>,
}

impl Anchor {
    fn new(der: &CertificateDer<'static>, lists: &CrlSet, expired: CrlExpired) -> Result<Self, BuildError> {
        let mut root = RootCertStore::empty();
        root.add(der.clone()).map_err(BuildError::Anchor)?;
        let known = root.roots.first().cloned().ok_or(BuildError::Anchor(CertificateError::BadEncoding.into()))?;
        let lists: Vec<Crl> = lists.for_anchor(der).into_iter().cloned().collect();
        let how = [u8::from(expired == CrlExpired::Refuse)];
        let digest_of_lists = digest_of(lists.iter().map(|list| list.sha256.as_bytes()).chain([&how[..]]));
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(root), provider());
        if !lists.is_empty() {
            // A CA without a list is not checked.
            builder = builder.with_crls(lists.iter().map(|list| list.der().clone())).allow_unknown_revocation_status();
            if expired == CrlExpired::Refuse {
                builder = builder.enforce_revocation_expiration();
            }
        }
        let webpki = builder.build().map_err(|error| BuildError::ClientTrust(error.to_string()))?;
        let authority = digest_of_authority(&known);
        let lists = Lists::new(known, lists, expired);
        Ok(Self { sha256: super::sha256_hex(der).into(), authority, lists, digest_of_lists, webpki })
    }

    fn voucher(&self) -> Voucher {
        Voucher::Anchor { sha256: Arc::clone(&self.sha256), authority: self.authority, lists: self.digest_of_lists }
    }
}

fn digest_of_authority(anchor: &TrustAnchor<'_>) -> Digest {
    let TrustAnchor { subject, subject_public_key_info, name_constraints } = anchor;
    digest_of([subject, subject_public_key_info].into_iter().chain(name_constraints).map(|part| &**part))
}

impl ChainVerifier {
    pub(super) fn new(parts: &TrustParts) -> Result<Self, BuildError> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let lists = CrlSet::new(parts.crls.clone());
        let anchors: Result<Vec<_>, _> =
            parts.anchors.iter().map(|der| Anchor::new(der, &lists, parts.crl_expired)).collect();
        let anchors = anchors?;
        let hints = match parts.pinned.is_empty() {
            true => anchors.iter().flat_map(|anchor| anchor.webpki.root_hint_subjects()).cloned().collect(),
            // A client that is known by itself need not have any of our issuers, and would send nothing.
            false => Vec::new(),
        };
        let list_ends = match parts.crl_expired {
            CrlExpired::Refuse => {
                anchors.iter().flat_map(|anchor| anchor.lists.iter()).map(|list| list.next_update).collect()
            }
            CrlExpired::Allow => Vec::new(),
        };
        Ok(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            mandatory: parts.auth == ClientAuth::Required,
            anchors,
            pinned: parts.pinned.iter().map(|der| digest(der, &[])).collect(),
            has_lists: !parts.crls.is_empty(),
            list_ends,
            hints,
            verified: Verified::default(),
        })
    }

    /// Judges the chain of a client that has shown to have its key. A good verdict is remembered.
    pub(super) fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Arc<Credential>, Error> {
        let chain = digest(leaf, intermediates);
        match self.verified.recall(&chain, now) {
            Some(credential) => Ok(credential),
            None => self.judge_anew(chain, leaf, intermediates, now),
        }
    }

    /// Judges a credential again, which costs nothing where it was this verifier that found it good, and little where its
    /// trust anchor is still there.
    pub(super) fn judge_again(
        &self,
        credential: &Arc<Credential>,
        now: OffsetDateTime,
    ) -> Result<Arc<Credential>, Error> {
        if credential.judge == self.number && now < credential.until {
            return Ok(Arc::clone(credential));
        }
        let Some((leaf, intermediates)) = credential.chain.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        let chain = digest(leaf, intermediates);
        if let Some(known) = self.verified.recall(&chain, now) {
            return Ok(known);
        }
        let Some(voucher) = self.ask_lists(credential, leaf, intermediates, now) else {
            return self.judge_anew(chain, leaf, intermediates, now);
        };
        let until = self.until(credential.in_time.end, now);
        let renewed = Credential { voucher: voucher?, until, judge: self.number, ..(**credential).clone() };
        let renewed = Arc::new(renewed);
        self.verified.remember(chain, &renewed);
        Ok(renewed)
    }

    fn judge_anew(
        &self,
        chain: Digest,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Arc<Credential>, Error> {
        let voucher = self.ask(leaf, intermediates, now)?;
        let certificate = Certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
        // webpki passes over an intermediate that it has no use for, even if it cannot be read: then it has no dates either.
        let others: Vec<_> = intermediates.iter().filter_map(|der| Certificate::parse(der).ok()).collect();
        let whole = || [&certificate].into_iter().chain(&others);
        let from = whole().map(|certificate| certificate.not_before).max().unwrap_or(now);
        // One that has ended already was not needed for the verdict, and does not end it.
        let end = whole().map(Certificate::end).filter(|end| *end > now).min().unwrap_or(now);
        let credential = Arc::new(Credential {
            voucher,
            until: self.until(end, now),
            in_time: from..end,
            chain: [leaf].into_iter().chain(intermediates).map(|der| der.clone().into_owned()).collect(),
            judge: self.number,
            certificate,
        });
        self.verified.remember(chain, &credential);
        Ok(credential)
    }

    /// How long a verdict of this moment counts, if its chain is in its time until `end`.
    fn until(&self, end: OffsetDateTime, now: OffsetDateTime) -> OffsetDateTime {
        self.list_ends.iter().copied().filter(|end| *end > now).fold(end, Ord::min)
    }

    /// What is to be said of a credential without verifying its chain again, because the anchor that vouched for it is still
    /// there; nothing, where that is not enough.
    fn ask_lists(
        &self,
        credential: &Credential,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Option<Result<Voucher, Error>> {
        let Voucher::Anchor { sha256, authority, lists } = &credential.voucher else { return None };
        let is_pinned = || self.pinned.contains(&digest(leaf, &[]));
        if !credential.in_time.contains(&now) || !self.pinned.is_empty() && is_pinned() {
            return None;
        }
        let same = self.anchors.iter().find(|anchor| anchor.sha256 == *sha256);
        let anchor = same.or_else(|| self.anchors.iter().find(|anchor| anchor.authority == *authority))?;
        if anchor.digest_of_lists == *lists && now < credential.until {
            return Some(Ok(anchor.voucher()));
        }
        let others = distinct(leaf, intermediates).ok()?;
        let chain = Chain::read(leaf, &others)?;
        match anchor.lists.standing(&chain, now)? {
            Standing::Good => Some(Ok(anchor.voucher())),
            Standing::Revoked => {
                let mut others = self.anchors.iter().filter(|other| other.authority != anchor.authority);
                // To the others it may be good all the same.
                let is_of_another = others.any(|other| other.lists.may_have_issued_of(&chain));
                (!is_of_another).then(|| Err(CertificateError::Revoked.into()))
            }
        }
    }

    /// Verifies a chain during the handshake. Nobody has shown to have its key yet, so the verdict is not remembered:
    /// otherwise who only knows a good certificate could fill the memory with it and ever new ones behind it.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        match self.verified.recall(&digest(leaf, intermediates), now) {
            Some(_) => Ok(()),
            None => self.ask(leaf, intermediates, now).map(|_| ()),
        }
    }

    fn ask(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Voucher, Error> {
        let intermediates = &distinct(leaf, intermediates)?;
        if !self.pinned.contains(&digest(leaf, &[])) {
            return self.ask_anchors(leaf, intermediates, now);
        }
        in_its_time(leaf, now)?;
        // Trusted by itself, but not against the word of the CA it comes from, where that is known here too. It is asked about
        // the certificate alone as well: a client may send along what webpki finds worse than revoked, and says instead.
        let ways: &[&[_]] = if self.has_lists { &[intermediates, &[]] } else { &[] };
        let mut words = ways.iter().filter_map(|way| self.ask_anchors(leaf, way, now).err());
        match words.find(is_revocation) {
            Some(revoked) => Err(revoked),
            None => Ok(Voucher::Pinned),
        }
    }

    /// The first anchor that vouches for the chain or, where none does, what says most about why not.
    fn ask_anchors(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Voucher, Error> {
        let mut refusal = None;
        for anchor in &self.anchors {
            match anchor.webpki.verify_client_cert(leaf, intermediates, unix_time(now)) {
                Ok(_) => return Ok(anchor.voucher()),
                // Not of this anchor. With its name but another key, as after a CA was made anew under its old name, the
                // signature is what fails; to the client and the operator that CA is unknown all the same.
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {}
                // That an anchor has taken it back is certain; what else there is to say depends on what was sent along.
                Err(error) if refusal.is_none() || is_revocation(&error) => refusal = Some(error),
                Err(_) => {}
            }
        }
        if refusal.is_none() {
            // Also where there is no anchor at all to say so.
            in_its_time(leaf, now)?;
        }
        Err(refusal.unwrap_or_else(|| CertificateError::UnknownIssuer.into()))
    }
}

fn is_revocation(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Revoked))
}

/// Each of the intermediates once. Some clients send their own certificate again, and of anything that came twice there
/// would be twice as many paths.
fn distinct<'a>(
    leaf: &CertificateDer<'_>,
    intermediates: &'a [CertificateDer<'_>],
) -> Result<Vec<CertificateDer<'a>>, Error> {
    let mut distinct: Vec<CertificateDer<'a>> = Vec::new();
    for der in intermediates {
        if der == leaf || distinct.contains(der) {
            continue;
        }
        if distinct.len() == MOST_INTERMEDIATES {
            return Err(CertificateError::Other(OtherError(Arc::new(LongChain))).into());
        }
        distinct.push(CertificateDer::from(der.as_ref()));
    }
    Ok(distinct)
}

/// More certificates than a chain can need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the client sent more than {MOST_INTERMEDIATES} certificates beside its own; its certificate file may hold a whole bundle, \
     and should hold its own certificate and the intermediates above that"
)]
pub(super) struct LongChain;

/// As many as webpki follows. Anybody can send certificates of one name and with many keys, and of every one more there are
/// many times as many paths to try, before the client has shown to have any key.
const MOST_INTERMEDIATES: usize = 6;

fn in_its_time(leaf: &CertificateDer<'_>, now: OffsetDateTime) -> Result<(), Error> {
    let facts = Certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?;
    if now < facts.not_before {
        Err(CertificateError::NotValidYet.into())
    } else if now >= facts.end() {
        Err(CertificateError::Expired.into())
    } else {
        Ok(())
    }
}

fn unix_time(moment: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(moment.unix_timestamp()).unwrap_or(0)))
}

/// The verifier of one handshake. It remembers the certificate it refuses.
#[derive(Debug)]
pub(super) struct RefusalWitness {
    verifier: Arc<ChainVerifier>,
    refused: Refused,
}

impl RefusalWitness {
    pub(super) fn new(verifier: Arc<ChainVerifier>, refused: Refused) -> Self {
        Self { verifier, refused }
    }
}

impl ClientCertVerifier for RefusalWitness {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let now = i64::try_from(now.as_secs()).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
        let now = now.ok_or(Error::FailedToGetCurrentTime)?;
        match self.verifier.verify(leaf, intermediates, now) {
            Ok(()) => Ok(ClientCertVerified::assertion()),
            Err(error) => {
                // One that cannot be read has nothing to say.
                if let Ok(facts) = Certificate::parse(leaf) {
                    self.refused.get_or_init(|| facts);
                }
                Err(error)
            }
        }
    }

    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.verifier.hints
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
