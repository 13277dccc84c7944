//! Certificate revocation lists: what a CA has taken back before its time.
//!
//! rustls looks for the list of a certificate by the name of its issuer alone, takes the first one that fits, and refuses
//! the certificate if another key has signed that. So lists are sorted out before it sees them: which trust anchor has
//! signed which, and of several by the same issuer the newest. And it has to take every one of them, or nothing works; so
//! each is shown to it while it can still be said which file is wrong, and how.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, Der, TrustAnchor};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertRevocationListError, RootCertStore};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::num_bigint::BigUint;
use x509_parser::extensions::{DistributionPointName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{OID_X509_EXT_ISSUER_DISTRIBUTION_POINT, OID_X509_EXT_KEY_USAGE};
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::X509Version;

use super::der::{INTEGER, SEQUENCE, TAGGED_0, element, element_of};
use super::name::rfc4514;
use super::pem::{self, PemError};
use super::serials::{Serial, Serials};
use super::verified::{Digest, digest};
use super::{provider, sha256_hex};

/// One revocation list, of a kind that rustls can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Crl {
    /// Whose list it says it is, as RFC 4514 text.
    pub issuer: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub this_update: OffsetDateTime,
    /// When the next one is due, and this one has run out.
    #[serde(with = "time::serde::rfc3339")]
    pub next_update: OffsetDateTime,
    /// Which of its issuer's lists it is.
    pub number: Option<CrlNumber>,
    /// How many certificates it takes back.
    pub revoked: usize,
    /// Lower-case hex of the SHA-256 of the DER.
    pub sha256: String,
    /// The issuer as it is encoded.
    #[serde(skip)]
    issuer_raw: Vec<u8>,
    /// The part of the issuer's certificates it is about, as it is encoded; all of them where there is none.
    #[serde(skip)]
    scope: Option<Vec<u8>>,
    #[serde(skip)]
    content: Arc<Content>,
}

/// The list itself, which may be long and which all clones share, and what has been found out about it.
#[derive(Debug)]
struct Content {
    der: CertificateRevocationListDer<'static>,
    /// Read when the first of them is asked for; nothing, where they cannot be.
    serials: OnceLock<Option<Serials>>,
    signers: Mutex<HashMap<Digest, Signer>>,
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Content {}

/// What a certificate is to a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signer {
    /// Of another CA.
    Stranger,
    /// The list is signed with its key, though it is not for signing lists.
    Unentitled,
    /// The list is signed with its key.
    Entitled,
}

/// Up to twenty bytes, so no machine number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CrlNumber(BigUint);

impl fmt::Display for CrlNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Serialize for CrlNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a file of revocation lists cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// It is not the PEM it looks like, or holds no list.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// One of its lists is of no use.
    #[error("revocation list {position} {fault}")]
    Unusable {
        /// Its number among the lists of the file, from 1.
        position: usize,
        /// What is wrong with it.
        fault: CrlFault,
    },
}

/// What is wrong with a revocation list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlFault {
    /// Signed in a way that cannot be verified.
    #[error("is signed by {0}, which cannot be verified; SHA-256 and later with RSA or ECDSA, and Ed25519, can")]
    Algorithm(String),
    /// An extension that must not be passed over.
    #[error("has an extension that is marked as critical and not known here")]
    CriticalExtension,
    /// Only the changes since another one.
    #[error("is a delta list, which says only what has changed since another; give the complete list")]
    Delta,
    /// About certificates of other CAs.
    #[error("is an indirect list, for certificates that others have issued; give the lists these signed themselves")]
    Indirect,
    /// The bytes are no list.
    #[error("is not an X.509 revocation list: {0}")]
    Malformed(String),
    /// Of version 2, but without what version 2 is for.
    #[error("has no extensions, not even a number; {NUMBERED}")]
    NoExtensions,
    /// It would be good for ever.
    #[error("does not say when the next one is due (nextUpdate); openssl ca -gencrl does with -crldays")]
    NoNextUpdate,
    /// A number of another kind than there may be.
    #[error("has a crlNumber that is negative or of more than 20 bytes")]
    Number,
    /// Only some of the revocations, or of the certificates by an unusable name.
    #[error(
        "covers only a part of its issuer's certificates, and says by reason, or without the full name of a distribution \
         point, which; give one that covers all"
    )]
    Part,
    /// Something behind it.
    #[error("is followed by {0} bytes; a file in DER holds one list and nothing else")]
    TrailingBytes(usize),
    /// A version without extensions, or one that does not exist.
    #[error("is of version {0}, and version 2 is needed; {NUMBERED}")]
    Version(u32),
    /// Anything else rustls refuses.
    #[error("cannot be used: {0}")]
    Refused(String),
}

const NUMBERED: &str = "openssl ca makes that when its configuration has a line crlnumber = FILE";

impl Crl {
    /// Every list of a file: of the `X509 CRL` blocks of a PEM file, or of a DER file, which is one list.
    ///
    /// # Errors
    /// When one of them cannot be used, or there is none.
    pub fn parse_all(bytes: &[u8]) -> Result<Vec<Self>, CrlError> {
        let lists = match bytes {
            // No text begins like this.
            [SEQUENCE, length, ..] if *length >= LONG => vec![CertificateRevocationListDer::from(bytes.to_vec())],
            _ => pem::revocation_lists(bytes)?,
        };
        let parse = |(position, der)| Self::parse(der).map_err(|fault| CrlError::Unusable { position, fault });
        (1..).zip(lists).map(parse).collect()
    }

    fn parse(der: CertificateRevocationListDer<'static>) -> Result<Self, CrlFault> {
        let (rest, list) =
            CertificateRevocationList::from_der(&der).map_err(|error| CrlFault::Malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CrlFault::TrailingBytes(rest.len()));
        }
        let next_update = next_update(&list)?;
        check_algorithm(&list, &der)?;
        check_scope(&list)?;
        check_with_rustls(&der)?;
        Ok(Self {
            issuer: rfc4514(list.issuer()),
            this_update: list.last_update().to_datetime(),
            next_update,
            number: list.crl_number().cloned().map(CrlNumber),
            revoked: list.iter_revoked_certificates().count(),
            sha256: sha256_hex(&der),
            issuer_raw: list.issuer().as_raw().to_vec(),
            scope: scope(&list).map(|extension| extension.value.to_vec()),
            content: Arc::new(Content { der: der.clone(), serials: OnceLock::new(), signers: Mutex::default() }),
        })
    }

    /// The list as rustls takes it.
    pub fn der(&self) -> &CertificateRevocationListDer<'static> {
        &self.content.der
    }

    /// Whether it says it is a list of the CA that this is a certificate of. Two CAs may have the same name; which of them
    /// it is only [`Self::is_signed_by`] tells.
    pub fn has_issuer(&self, anchor: &CertificateDer<'_>) -> bool {
        X509Certificate::from_der(anchor)
            .is_ok_and(|(_, certificate)| certificate.subject().as_raw() == self.issuer_raw.as_slice())
    }

    /// Whether it is a list of the CA that this is a certificate of.
    pub fn is_signed_by(&self, anchor: &CertificateDer<'_>) -> bool {
        self.signer(anchor) != Signer::Stranger
    }

    /// Whether it is a list of the CA that this is a certificate of, which may sign lists; of a trust anchor nobody asks that.
    pub(super) fn is_issued_by(&self, intermediate: &CertificateDer<'_>) -> bool {
        self.signer(intermediate) == Signer::Entitled
    }

    /// Whether it is of an issuer of this name, as it is encoded, without tag and length.
    pub(super) fn is_of(&self, name: &[u8]) -> bool {
        element(&self.issuer_raw).is_some_and(|(issuer, _)| issuer == name)
    }

    /// Whether it is about all certificates of its issuer.
    pub(super) fn is_whole(&self) -> bool {
        self.scope.is_none()
    }

    /// Whether it takes back the certificate with this serial number, as it is encoded; nothing, where that is for webpki to
    /// say.
    pub(super) fn takes_back(&self, serial: &[u8]) -> Option<bool> {
        let serials = self.content.serials.get_or_init(|| serials(&self.content.der, self.revoked)).as_ref()?;
        Some(serials.contain(Serial::new(serial)?))
    }

    /// What a certificate is to it. That is verified once: a list may be long, and is asked for by every snapshot and, where
    /// it is an intermediate's, for each client of that.
    fn signer(&self, certificate: &CertificateDer<'_>) -> Signer {
        let known_as = digest(certificate, &[]);
        if let Some(signer) = self.content.signers().get(&known_as) {
            return *signer;
        }
        if !self.has_issuer(certificate) {
            return Signer::Stranger;
        }
        let signer = match self.verifies_under_key_of(certificate) {
            Some(true) if may_sign_lists(certificate) => Signer::Entitled,
            Some(true) => Signer::Unentitled,
            Some(false) | None => Signer::Stranger,
        };
        let mut signers = self.content.signers();
        if signers.len() >= MOST_SIGNERS {
            signers.clear();
        }
        signers.insert(known_as, signer);
        signer
    }

    fn verifies_under_key_of(&self, anchor: &CertificateDer<'_>) -> Option<bool> {
        let (_, certificate) = X509Certificate::from_der(anchor).ok()?;
        let (key_info, _) = element(certificate.public_key().raw)?;
        let (key_kind, key) = algorithm_and_bits(key_info)?;
        let Signed { message, algorithm, signature } = Signed::read(self.der())?;
        let verifies = provider().signature_verification_algorithms.all.iter().any(|known| {
            known.signature_alg_id().as_ref() == algorithm
                && known.public_key_alg_id().as_ref() == key_kind
                && known.verify_signature(key, message, signature).is_ok()
        });
        Some(verifies)
    }

    /// Whether the next list should have come.
    pub fn is_expired_at(&self, now: OffsetDateTime) -> bool {
        self.next_update <= now
    }
}

impl Content {
    fn signers(&self) -> MutexGuard<'_, HashMap<Digest, Signer>> {
        self.signers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// More certificates of one name than a CA has. Past it all are forgotten, and verified anew.
const MOST_SIGNERS: usize = 1024;

/// By its keyUsage; without one a certificate is for everything.
fn may_sign_lists(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    match certificate.get_extension_unique(&OID_X509_EXT_KEY_USAGE) {
        Ok(None) => true,
        Ok(Some(usage)) => matches!(usage.parsed_extension(), ParsedExtension::KeyUsage(usage) if usage.crl_sign()),
        Err(_) => false,
    }
}

/// The serial numbers of a list, of which there should be so many.
fn serials(der: &[u8], count: usize) -> Option<Serials> {
    let (list, _) = element(Signed::read(der)?.message)?;
    let (_version, rest) = element_of(INTEGER, list)?;
    let (_algorithm, rest) = element_of(SEQUENCE, rest)?;
    let (_issuer, rest) = element_of(SEQUENCE, rest)?;
    let (_this_update, rest) = element(rest)?;
    let (_next_update, rest) = element(rest)?;
    let mut entries = match *rest.first()? {
        SEQUENCE => element(rest)?.0,
        // It takes back nothing.
        TAGGED_0 => &[],
        _ => return None,
    };
    let mut serials = Vec::with_capacity(count);
    while !entries.is_empty() {
        let (entry, rest) = element_of(SEQUENCE, entries)?;
        let (serial, _) = element_of(INTEGER, entry)?;
        serials.push(Serial::new(serial)?);
        entries = rest;
    }
    (serials.len() == count).then(|| Serials::new(serials))
}

/// Checks that the list is of the version that rustls knows, and complete.
fn next_update(list: &CertificateRevocationList<'_>) -> Result<OffsetDateTime, CrlFault> {
    let version = list.version().unwrap_or(X509Version::V1);
    if version != X509Version::V2 {
        return Err(CrlFault::Version(version.0.saturating_add(1)));
    }
    if list.extensions().is_empty() {
        return Err(CrlFault::NoExtensions);
    }
    Ok(list.next_update().ok_or(CrlFault::NoNextUpdate)?.to_datetime())
}

/// rustls would find out at the first client that shows a certificate of this CA.
fn check_algorithm(list: &CertificateRevocationList<'_>, der: &[u8]) -> Result<(), CrlFault> {
    let Signed { algorithm, .. } =
        Signed::read(der).ok_or_else(|| CrlFault::Malformed("its signature cannot be read".to_owned()))?;
    let known = provider().signature_verification_algorithms.all;
    if known.iter().any(|known| known.signature_alg_id().as_ref() == algorithm) {
        return Ok(());
    }
    Err(CrlFault::Algorithm(list.signature_algorithm.algorithm.to_id_string()))
}

/// rustls has no words for this.
fn check_scope(list: &CertificateRevocationList<'_>) -> Result<(), CrlFault> {
    let point = match scope(list).map(X509Extension::parsed_extension) {
        None => return Ok(()),
        Some(ParsedExtension::IssuingDistributionPoint(point)) => point,
        Some(_) => return Err(CrlFault::Malformed("its issuingDistributionPoint cannot be read".to_owned())),
    };
    if point.indirect_crl {
        return Err(CrlFault::Indirect);
    }
    let named = matches!(point.distribution_point, Some(DistributionPointName::FullName(_)));
    if named && point.only_some_reasons.is_none() { Ok(()) } else { Err(CrlFault::Part) }
}

/// The extension that says which part of its issuer's certificates the list is about.
fn scope<'list>(list: &'list CertificateRevocationList<'_>) -> Option<&'list X509Extension<'list>> {
    list.extensions().iter().find(|extension| extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT)
}

/// Shows the list to rustls as a verifier will.
fn check_with_rustls(der: &CertificateRevocationListDer<'static>) -> Result<(), CrlFault> {
    // It wants an anchor. This one vouches for nobody.
    let nobody = TrustAnchor {
        subject: Der::from_slice(&[]),
        subject_public_key_info: Der::from_slice(&[]),
        name_constraints: None,
    };
    let roots = Arc::new(RootCertStore { roots: vec![nobody] });
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider()).with_crls([der.clone()]);
    match builder.build() {
        Ok(_) => Ok(()),
        Err(VerifierBuilderError::InvalidCrl(error)) => Err(error.into()),
        Err(error) => Err(CrlFault::Refused(error.to_string())),
    }
}

impl From<CertRevocationListError> for CrlFault {
    fn from(error: CertRevocationListError) -> Self {
        match error {
            CertRevocationListError::InvalidCrlNumber => Self::Number,
            CertRevocationListError::ParseError => Self::Malformed("it is not encoded as it has to be".to_owned()),
            CertRevocationListError::UnsupportedCriticalExtension => Self::CriticalExtension,
            CertRevocationListError::UnsupportedDeltaCrl => Self::Delta,
            CertRevocationListError::UnsupportedIndirectCrl => Self::Indirect,
            error => Self::Refused(format!("{error:?}")),
        }
    }
}

/// What a signature is about, and the signature.
struct Signed<'der> {
    message: &'der [u8],
    /// The contents of its `AlgorithmIdentifier`, which is how the provider names it.
    algorithm: &'der [u8],
    signature: &'der [u8],
}

impl<'der> Signed<'der> {
    /// Takes a list apart, as little as is needed: it may be very long.
    fn read(der: &'der [u8]) -> Option<Self> {
        let (list, _) = element(der)?;
        let (_, rest) = element(list)?;
        let message = list.get(..list.len().checked_sub(rest.len())?)?;
        let (algorithm, signature) = algorithm_and_bits(rest)?;
        Some(Self { message, algorithm, signature })
    }
}

/// The contents of an `AlgorithmIdentifier` and of the `BIT STRING` behind it.
fn algorithm_and_bits(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (algorithm, rest) = element(der)?;
    match element(rest)?.0.split_first()? {
        (0, bits) => Some((algorithm, bits)),
        _ => None,
    }
}

/// The first byte of the length of anything that has more than 127 bytes.
const LONG: u8 = 0x80;

/// Every list that a listener was given, from which each trust anchor gets those that count under it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrlSet(Vec<Crl>);

impl CrlSet {
    /// All of them count, where they belong.
    pub fn new(lists: Vec<Crl>) -> Self {
        Self(lists)
    }

    /// The lists for a verifier that has this one trust anchor: those that it signed, and those of issuers with another
    /// name, which are there for the intermediates between it and a client. Those of another CA with its name are left
    /// out, because rustls would ask them about its certificates.
    ///
    /// An intermediate that is a trust anchor too has its lists here as well: otherwise what it has taken back would get
    /// in by way of the root above it.
    ///
    /// Of several by the same issuer there is the newest only, so that a new list may be put beside the old one.
    pub fn for_anchor(&self, anchor: &CertificateDer<'_>) -> Vec<&Crl> {
        newest(self.0.iter().filter(|list| !list.has_issuer(anchor) || list.is_signed_by(anchor)))
    }
}

/// The newest list of each issuer. Lists about different parts of its certificates stand side by side; the newest come
/// first, as rustls takes the first that fits.
fn newest<'set>(lists: impl Iterator<Item = &'set Crl>) -> Vec<&'set Crl> {
    let mut series: BTreeMap<_, Vec<&Crl>> = BTreeMap::new();
    for list in lists {
        series.entry((&list.issuer_raw, &list.scope)).or_default().push(list);
    }
    let mut newest: Vec<&Crl> = series.values().filter_map(|series| newest_of(series)).collect();
    newest.sort_by_key(|list| Reverse(list.this_update));
    newest
}

/// By number where all have one, else by date. Between two that claim the same, the one that takes back more.
fn newest_of<'set>(series: &[&'set Crl]) -> Option<&'set Crl> {
    let numbered = series.iter().all(|list| list.number.is_some());
    let age = |list: &&Crl| (numbered.then(|| list.number.clone()), list.this_update, list.revoked);
    series.iter().copied().max_by_key(age)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use rcgen::{
        CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, SerialNumber,
    };
    use rustls::CertificateError;
    use rustls::Error::InvalidCertificate;
    use rustls::pki_types::UnixTime;
    use time::Duration;

    use super::*;
    use crate::tls::certificates;
    use crate::tls::specimen::{Authority, revoking};

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(20_000));

    fn read(bytes: &[u8]) -> Crl {
        let mut lists = Crl::parse_all(bytes).unwrap();
        assert_eq!(lists.len(), 1);
        lists.remove(0)
    }

    fn list(authority: &Authority, params: &CertificateRevocationListParams) -> Crl {
        read(authority.list(params).der())
    }

    fn client(authority: &Authority) -> CertificateDer<'static> {
        authority.client("app", NOW, NOW + Duration::HOUR).der()
    }

    fn fault(bytes: &[u8]) -> CrlFault {
        match Crl::parse_all(bytes) {
            Err(CrlError::Unusable { position: 1, fault }) => fault,
            other => panic!("{other:?}"),
        }
    }

    /// What rustls says of a chain, leaf first, under an anchor with the lists that count there.
    fn verdict(anchor: &Authority, set: &CrlSet, chain: &[CertificateDer<'static>]) -> Result<(), CertificateError> {
        let mut roots = RootCertStore::empty();
        roots.add(anchor.der()).unwrap();
        let lists = set.for_anchor(&anchor.der()).into_iter().map(|list| list.der().clone());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .with_crls(lists)
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration()
            .build()
            .unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW.unix_timestamp().unsigned_abs()));
        match verifier.verify_client_cert(&chain[0], &chain[1..], now) {
            Ok(_) => Ok(()),
            Err(InvalidCertificate(error)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_facts_of_a_list_are_read_in_either_form() {
        let authority = Authority::new("Clients CA");
        let revoked = [client(&authority), client(&authority)];
        let signed = authority.list(&revoking(&revoked, 4096, NOW));
        let list = read(signed.der());
        assert_eq!(list, read(signed.pem().unwrap().as_bytes()));
        assert_eq!((list.issuer.as_str(), list.revoked), ("CN=Clients CA", 2));
        assert_eq!((list.this_update, list.next_update), (NOW, NOW + Duration::DAY));
        let shown = serde_json::to_value(&list).unwrap();
        assert_eq!(shown["number"], "4096");
        assert_eq!(shown["next_update"], "2024-10-05T00:00:00Z");
        assert_eq!(shown["sha256"], sha256_hex(signed.der()));
        assert_eq!(shown.as_object().unwrap().len(), 6, "{shown}");
    }

    #[test]
    fn a_file_cut_off_anywhere_but_between_two_lists_is_an_error() {
        let authority = Authority::new("Clients CA");
        let block = authority.list(&revoking(&[], 1, NOW)).pem().unwrap().replace("\r\n", "\n");
        let whole = block.repeat(2);
        let ends = [block.len(), whole.len()];
        for cut in 0..=whole.len() {
            let count = Crl::parse_all(&whole.as_bytes()[..cut]).map(|lists| lists.len());
            // With the line break behind it or without.
            match ends.iter().position(|end| cut == *end || cut + 1 == *end) {
                Some(before) => assert_eq!(count, Ok(before + 1), "cut at {cut}"),
                None => assert!(count.is_err(), "cut at {cut}"),
            }
        }
    }

    #[test]
    fn a_file_in_der_is_one_list_and_nothing_else() {
        let authority = Authority::new("Clients CA");
        let signed = authority.list(&revoking(&[client(&authority)], 1, NOW));
        let der = signed.der();
        for cut in 0..der.len() {
            assert!(Crl::parse_all(&der[..cut]).is_err(), "cut at {cut}");
        }
        assert_eq!(fault(&[der, &b"\n"[..]].concat()), CrlFault::TrailingBytes(1));
        assert_eq!(fault(&[&der[..], der].concat()), CrlFault::TrailingBytes(der.len()));
        assert!(matches!(fault(&authority.der()), CrlFault::Malformed(_)));
        assert_eq!(Crl::parse_all(b""), Err(CrlError::Pem(PemError::Empty)));
        assert_eq!(Crl::parse_all(b"0 lists"), Err(CrlError::Pem(PemError::NoRevocationList)));
    }

    #[test]
    fn a_bad_list_among_good_ones_is_named() {
        let block = Authority::new("Clients CA").list(&revoking(&[], 1, NOW)).pem().unwrap();
        let text = format!("{block}-----BEGIN X509 CRL-----\nAAEC\n-----END X509 CRL-----\n{block}");
        let error = Crl::parse_all(text.as_bytes()).unwrap_err();
        assert!(error.to_string().starts_with("revocation list 2 is not an X.509 revocation list"), "{error}");
    }

    #[test]
    fn of_two_cas_with_one_name_a_list_belongs_to_the_one_that_signed_it() {
        let [ours, impostor, other] = ["Clients CA", "Clients CA", "Another CA"].map(Authority::new);
        let list = list(&ours, &revoking(&[], 1, NOW));
        let judged = |authority: &Authority| (list.has_issuer(&authority.der()), list.is_signed_by(&authority.der()));
        assert_eq!(judged(&ours), (true, true));
        assert_eq!(judged(&impostor), (true, false));
        assert_eq!(judged(&other), (false, false));
        assert!(!list.is_signed_by(&CertificateDer::from(b"no certificate".to_vec())));
    }

    #[test]
    fn an_altered_list_is_signed_by_nobody() {
        let authority = Authority::new("Clients CA");
        let mut der = authority.list(&revoking(&[client(&authority)], 1, NOW)).der().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        let list = read(&der);
        assert!(list.has_issuer(&authority.der()) && !list.is_signed_by(&authority.der()));
    }

    #[test]
    fn each_anchor_gets_its_own_lists_and_those_of_other_names() {
        let [ours, impostor, other] = ["Clients CA", "Clients CA", "Another CA"].map(Authority::new);
        let lists = [&ours, &impostor, &other].map(|authority| list(authority, &revoking(&[], 1, NOW)));
        let set = CrlSet::new(lists.to_vec());
        let given = |authority: &Authority| {
            let given = set.for_anchor(&authority.der());
            lists.each_ref().map(|list| given.contains(&list))
        };
        assert_eq!(given(&ours), [true, false, true]);
        assert_eq!(given(&impostor), [false, true, true]);
        assert_eq!(given(&Authority::new("A third CA")).iter().filter(|given| **given).count(), 2);
    }

    #[test]
    fn a_list_takes_back_the_numbers_that_are_on_it_and_no_others() {
        let authority = Authority::new("Clients CA");
        let numbered = |serials: &[&[u8]]| {
            let mut params = revoking(&vec![client(&authority); serials.len()], 1, NOW);
            for (entry, serial) in params.revoked_certs.iter_mut().zip(serials) {
                entry.serial_number = SerialNumber::from_slice(serial);
            }
            list(&authority, &params)
        };
        let some = numbered(&[&[9], &[1, 2, 3], &[0x7f; 21], &[4]]);
        for (serial, expected) in [
            (&[9][..], Some(true)),
            (&[1, 2, 3], Some(true)),
            (&[0x7f; 21], Some(true)),
            (&[1, 2], Some(false)),
            (&[0, 9], Some(false)),
            (&[0x7f; 20], Some(false)),
            (&[0x7f; 22], None),
        ] {
            assert_eq!(some.takes_back(serial), expected, "{serial:?}");
        }
        assert_eq!(numbered(&[]).takes_back(&[9]), Some(false));
        assert_eq!(numbered(&[&[9], &[0x7f; 22]]).takes_back(&[9]), None, "one is longer than any may be");
    }

    #[test]
    fn the_newest_list_of_a_ca_counts() {
        let authority = Authority::new("Clients CA");
        let revoked = [client(&authority)];
        let (old, new) = (revoking(&[], 9, NOW), revoking(&revoked, 10, NOW - Duration::HOUR));
        let [old, new] = [old, new].map(|params| list(&authority, &params));
        // Of an impostor, and newer still: it does not stand in the way.
        let forged = list(&Authority::new("Clients CA"), &revoking(&[], 11, NOW));
        for lists in [[&old, &new, &forged], [&forged, &new, &old]] {
            let set = CrlSet::new(lists.map(Clone::clone).to_vec());
            assert_eq!(set.for_anchor(&authority.der()), [&new]);
            assert_eq!(verdict(&authority, &set, &revoked), Err(CertificateError::Revoked));
        }
        let set = CrlSet::new(vec![old.clone()]);
        assert_eq!(verdict(&authority, &set, &revoked), Ok(()));
        // One that takes back more, of the same number and date.
        let same = list(&authority, &revoking(&revoked, 9, NOW));
        for lists in [[&old, &same], [&same, &old]] {
            assert_eq!(newest(lists.into_iter()), [&same]);
        }
    }

    #[test]
    fn without_numbers_the_latest_list_counts() {
        let of = |number: Option<u32>, hours| Crl {
            number: number.map(|number| CrlNumber(number.into())),
            ..list(&Authority::new("Clients CA"), &revoking(&[], 1, NOW + Duration::hours(hours)))
        };
        let [early, late] = [of(Some(7), 0), of(None, 1)];
        for lists in [[&early, &late], [&late, &early]] {
            assert_eq!(newest(lists.into_iter()), [&late]);
        }
    }

    #[test]
    fn what_an_intermediate_takes_back_is_refused_by_every_way() {
        let root = Authority::new("Root CA");
        let between = root.intermediate("Clients CA");
        let chain = [client(&between), between.der()];
        let by_intermediate = list(&between, &revoking(&chain[..1], 1, NOW));
        let by_root = list(&root, &revoking(&chain[1..], 1, NOW));
        let set = CrlSet::new(vec![by_intermediate]);
        // Also where it is an anchor itself, and so its list is one of an anchor's.
        for anchor in [&root, &between] {
            assert_eq!(verdict(anchor, &set, &chain), Err(CertificateError::Revoked));
        }
        let set = CrlSet::new(vec![by_root]);
        assert_eq!(verdict(&root, &set, &chain), Err(CertificateError::Revoked));
        assert_eq!(verdict(&between, &set, &chain), Ok(()), "an anchor vouches for itself");
        assert_eq!(verdict(&root, &CrlSet::default(), &chain), Ok(()));
    }

    #[test]
    fn lists_about_different_certificates_of_a_ca_stand_side_by_side() {
        let authority = Authority::new("Clients CA");
        let revoked = [client(&authority)];
        let about = |scope, certificates, number, hours| {
            let mut params = revoking(certificates, number, NOW - Duration::hours(hours));
            let distribution_point = CrlDistributionPoint { uris: vec!["http://ca.test/list".to_owned()] };
            params.issuing_distribution_point = Some(CrlIssuingDistributionPoint { distribution_point, scope });
            list(&authority, &params)
        };
        let users = about(Some(CrlScope::UserCertsOnly), &revoked[..], 3, 2);
        let authorities = about(Some(CrlScope::CaCertsOnly), &[], 7, 1);
        let set = CrlSet::new(vec![users.clone(), authorities.clone()]);
        assert_eq!(set.for_anchor(&authority.der()), [&authorities, &users], "the newest first");
        assert_eq!(verdict(&authority, &set, &revoked), Err(CertificateError::Revoked));
    }

    #[test]
    fn a_list_runs_out_when_rustls_says_so() {
        let authority = Authority::new("Clients CA");
        let chain = [client(&authority)];
        for (early, expected) in [(Duration::DAY, false), (Duration::DAY - Duration::SECOND, true)] {
            let list = list(&authority, &revoking(&[], 1, NOW - early));
            let verdict = verdict(&authority, &CrlSet::new(vec![list.clone()]), &chain);
            assert_eq!((verdict.is_ok(), !list.is_expired_at(NOW)), (expected, expected), "{verdict:?}");
        }
    }

    #[test]
    fn a_list_that_never_runs_out_is_refused() {
        let authority = Authority::new("Clients CA");
        let revoked = vec![client(&authority); 20];
        let mut der = authority.list(&revoking(&revoked, 1, NOW)).der().to_vec();
        // Its second date is cut out, and the lengths of the list and of what is signed are made good.
        let date = der.windows(2).enumerate().filter(|(_, begin)| *begin == b"\x17\x0d").nth(1).unwrap().0;
        der.drain(date..date + 15);
        for length in [2, 6] {
            let shorter = u16::from_be_bytes([der[length], der[length + 1]]) - 15;
            der[length..length + 2].copy_from_slice(&shorter.to_be_bytes());
        }
        assert_eq!(fault(&der), CrlFault::NoNextUpdate);
    }

    /// A CA of openssl's, in a directory of its own.
    struct OpensslCa(tempfile::TempDir);

    impl OpensslCa {
        fn new(key: &[&str]) -> Self {
            let ca = Self(tempfile::tempdir().unwrap());
            let request = ["req", "-x509", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=Clients CA"];
            ca.run(&[&request, key].concat());
            fs::write(ca.path("crlnumber"), "1000\n").unwrap();
            fs::write(ca.path("index.txt"), "R\t360101000000Z\t250101000000Z,keyCompromise\t01\tunknown\t/CN=app\n")
                .unwrap();
            ca
        }

        /// A list as `openssl ca` makes it with these lines and extensions.
        fn list(&self, lines: &str, extensions: &str) -> Vec<u8> {
            let section = "[ca]\ndefault_ca = this\n[this]\ndatabase = index.txt\ndefault_md = sha256\n";
            let configuration = format!("{section}{lines}\n[extensions]\n{extensions}\n");
            fs::write(self.path("ca.cnf"), configuration).unwrap();
            let order = ["ca", "-gencrl", "-config", "ca.cnf", "-cert", "ca.crt", "-keyfile", "ca.key"];
            self.run(&[&order[..], &["-crldays", "30", "-out", "list.pem"]].concat());
            fs::read(self.path("list.pem")).unwrap()
        }

        fn der(&self) -> CertificateDer<'static> {
            certificates(&fs::read(self.path("ca.crt")).unwrap()).unwrap().remove(0)
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            let directory: &Path = self.0.path();
            directory.join(name)
        }

        fn run(&self, arguments: &[&str]) {
            let done = Command::new("openssl").args(arguments).current_dir(self.0.path()).output().unwrap();
            assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        }
    }

    const NUMBER: &str = "crlnumber = crlnumber";
    const EC: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    const RSA: &[&str] = &["-newkey", "rsa:2048"];

    #[test]
    fn what_openssl_makes_is_read_and_found_signed() {
        for key in [EC, RSA, &["-newkey", "ed25519"]] {
            let ca = OpensslCa::new(key);
            let pem = ca.list(NUMBER, "");
            let numbered = read(&pem);
            assert_eq!(numbered.issuer, "CN=Clients CA");
            assert_eq!((numbered.number.as_ref().unwrap().to_string(), numbered.revoked), ("4096".to_owned(), 1));
            assert_eq!(numbered.next_update - numbered.this_update, Duration::days(30));
            assert!(numbered.is_signed_by(&ca.der()), "{key:?}");
            ca.run(&["crl", "-in", "list.pem", "-outform", "DER", "-out", "list.der"]);
            assert_eq!(read(&fs::read(ca.path("list.der")).unwrap()), numbered);
            ca.run(&["crl", "-in", "list.pem", "-text", "-out", "list.txt"]);
            assert_eq!(read(&fs::read(ca.path("list.txt")).unwrap()), numbered, "behind its text");
            let unnumbered = read(&ca.list("crl_extensions = extensions", "authorityKeyIdentifier = keyid"));
            assert_eq!(unnumbered.number, None);
            assert!(unnumbered.is_signed_by(&ca.der()), "{key:?}");
        }
    }

    #[test]
    fn what_openssl_makes_and_rustls_does_not_take_is_refused_in_words() {
        let ca = OpensslCa::new(RSA);
        let extended = format!("{NUMBER}\ncrl_extensions = extensions");
        let points = |more: &str| format!("issuingDistributionPoint = critical,@points\n[points]\n{more}");
        let cases = [
            ("", String::new(), CrlFault::NoExtensions),
            (&extended, "2.5.29.27 = critical,ASN1:INTEGER:1".to_owned(), CrlFault::Delta),
            (&extended, points("fullname = URI:http://ca.test/list\nindirectCRL = TRUE"), CrlFault::Indirect),
            (&extended, points("fullname = URI:http://ca.test/list\nonlysomereasons = keyCompromise"), CrlFault::Part),
            (&extended, points("relativename = name\n[name]\nCN = list"), CrlFault::Part),
            (&extended, points("onlyuser = TRUE"), CrlFault::Part),
            (&extended, "1.2.3.4 = critical,ASN1:NULL".to_owned(), CrlFault::CriticalExtension),
            ("crl_extensions = extensions", "2.5.29.20 = ASN1:INTEGER:-1".to_owned(), CrlFault::Number),
            (
                "default_md = sha1\ncrlnumber = crlnumber",
                String::new(),
                CrlFault::Algorithm("1.2.840.113549.1.1.5".to_owned()),
            ),
        ];
        for (lines, extensions, expected) in cases {
            assert_eq!(fault(&ca.list(lines, &extensions)), expected, "{lines} {extensions}");
        }
        fs::write(ca.path("index.txt"), "").unwrap();
        assert_eq!(fault(&ca.list("", "")), CrlFault::Version(1), "without anything of version 2");
    }
}
