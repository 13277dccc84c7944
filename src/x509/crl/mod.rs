//! Certificate revocation lists (RFC 5280 §5). A list is parsed once and shared.
//!
//! Lists are checked when they are parsed, so that `check` and a reload can name the faulty file. The module
//! [`revocation`](crate::x509::chain::revocation) decides which list applies to which certificate.

pub(crate) mod serials;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use webpki::BorrowedCertRevocationList;
use x509_parser::der_parser::num_bigint::BigUint;
use x509_parser::extensions::{DistributionPointName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::{X509Name, X509Version};

use crate::x509::ca_properties::full_names;
use crate::x509::certificate::moment;
use crate::x509::crl::serials::Serials;
use crate::x509::crypto::{provider, sha256_hex};
use crate::x509::der::{INTEGER, SEQUENCE, element, element_of, sequence};
use crate::x509::digest::{Digest, digest_of};
use crate::x509::name::rfc4514;
use crate::x509::pem;
use crate::x509::pem::PemError;
use crate::x509::prehash::Prehash;
use crate::x509::raw_certificate::RawCertificate;
use crate::x509::signed::Signed;

/// One revocation list, of a kind that rustls can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Crl {
    /// RFC 4514 text.
    pub issuer: String,
    /// The time of issue.
    #[serde(with = "time::serde::rfc3339")]
    pub this_update: OffsetDateTime,
    /// The list expires at this time.
    #[serde(with = "time::serde::rfc3339")]
    pub next_update: OffsetDateTime,
    /// cRLNumber; higher is newer.
    pub number: Option<CrlNumber>,
    /// The number of revoked certificates.
    pub revoked: usize,
    /// Lower-case hex of the SHA-256 of the DER.
    pub sha256: String,
    /// The issuer in DER, without tag and length.
    #[serde(skip)]
    issuer_raw: Vec<u8>,
    /// `None` if the list covers all certificates of its issuer.
    #[serde(skip)]
    pub(crate) scope: Option<Scope>,
    #[serde(skip)]
    content: Arc<Content>,
}

/// The certificates of its issuer that a partitioned list covers (issuing distribution point, RFC 5280 §5.2.5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Scope {
    pub(crate) only_user_certificates: bool,
    pub(crate) only_ca_certificates: bool,
    /// The URIs of the distribution point.
    pub(crate) uris: Vec<String>,
    /// The extension in DER.
    encoded: Vec<u8>,
}

/// Shared by all clones of a list, because a list may be large.
#[derive(Debug)]
struct Content {
    der: CertificateRevocationListDer<'static>,
    serials: Serials,
    /// The digest that the signature is verified from, if the algorithm signs a digest.
    prehash: Option<Prehash>,
    /// For each key: whether it signed the list. Each key is verified once, because a list may be large and is used for every
    /// client of its CA.
    signers: Mutex<HashMap<Digest, bool>>,
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Content {}

/// cRLNumber (RFC 5280 §5.2.3): up to 20 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CrlNumber(BigUint);

#[cfg(test)]
impl From<u32> for CrlNumber {
    fn from(number: u32) -> Self {
        Self(number.into())
    }
}

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
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("revocation list {position} {fault}")]
    Unusable {
        /// Position in the file, from 1.
        position: usize,
        fault: CrlFault,
    },
}

/// Identifies lists that replace each other: same issuer, same signing key, same scope. The newest one applies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CrlSeries {
    /// RFC 4514 text.
    pub issuer: String,
    /// Digest of the signing key, if it belongs to a trust anchor.
    pub signer: Option<String>,
    scope: Option<Scope>,
}

#[cfg(test)]
impl CrlSeries {
    /// The series of lists without a scope.
    pub(crate) fn complete(issuer: &str, signer: &str) -> Self {
        Self { issuer: issuer.to_owned(), signer: Some(signer.to_owned()), scope: None }
    }
}

/// Lower-case hex of the SHA-256 of a certificate's `SubjectPublicKeyInfo` contents.
pub(crate) fn key_digest(certificate: &CertificateDer<'_>) -> Option<String> {
    RawCertificate::read(certificate).map(|certificate| sha256_hex(certificate.public_key_info))
}

/// Why a revocation list cannot be used. The texts follow "revocation list N".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlFault {
    #[error(
        "uses signature algorithm {0}, which is not supported; supported: RSA or ECDSA with SHA-256 or stronger, Ed25519"
    )]
    Algorithm(String),
    #[error("has a critical extension that is not supported; use a CRL without it")]
    CriticalExtension,
    #[error("is a delta CRL, which contains only changes; use the complete CRL")]
    Delta,
    #[error("is an indirect CRL (for certificates of other issuers); use CRLs signed by the issuers themselves")]
    Indirect,
    #[error("is not an X.509 revocation list: {0}")]
    Malformed(String),
    #[error("has no extensions, not even a CRL number; {NUMBERED}")]
    NoExtensions,
    /// A list without nextUpdate would never expire.
    #[error("has no nextUpdate; set it with openssl ca -gencrl -crldays DAYS")]
    NoNextUpdate,
    #[error("has a crlNumber that is negative or longer than 20 bytes; use a number from 0 to 2^159 - 1")]
    Number,
    #[error(
        "is a partitioned CRL (limited by reason code, or by a distribution point without a full name); use a CRL that \
         covers all certificates of its issuer"
    )]
    Partitioned,
    #[error("has {0} bytes after its end; a DER file must hold exactly one CRL")]
    TrailingBytes(usize),
    #[error("has version {0}; version 2 is required; {NUMBERED}")]
    Version(u32),
    /// Anything else rustls refuses.
    #[error("cannot be used: {0}")]
    Refused(String),
}

const NUMBERED: &str = "set crlnumber = FILE in the configuration of openssl ca";

impl Crl {
    /// Parses all lists of a file: every `X509 CRL` block of a PEM file, or the one list of a DER file.
    ///
    /// # Errors
    /// If a list cannot be used, or the file holds none.
    pub fn parse_all(bytes: &[u8]) -> Result<Vec<Self>, CrlError> {
        Self::parse_all_knowing(bytes, &mut KnownCrls::default())
    }

    /// Like [`parse_all`](Self::parse_all), but shares lists that are in `known` instead of parsing them again. Adds new lists
    /// to `known`.
    ///
    /// # Errors
    /// If a list cannot be used, or the file holds none.
    pub fn parse_all_knowing(bytes: &[u8], known: &mut KnownCrls) -> Result<Vec<Self>, CrlError> {
        let lists = match bytes {
            // A text file cannot start with these bytes.
            [SEQUENCE, length, ..] if *length >= LONG => vec![CertificateRevocationListDer::from(bytes.to_vec())],
            _ => pem::revocation_lists(bytes)?,
        };
        let parse = |(position, der): (usize, CertificateRevocationListDer<'static>)| {
            if let Some(known) = known.by_sha256.get(&sha256_hex(&der)) {
                return Ok(known.clone());
            }
            let list = Self::parse(der).map_err(|fault| CrlError::Unusable { position, fault })?;
            known.by_sha256.insert(list.sha256.clone(), list.clone());
            Ok(list)
        };
        (1..).zip(lists).map(parse).collect()
    }

    fn parse(der: CertificateRevocationListDer<'static>) -> Result<Self, CrlFault> {
        // The parser allocates several times per entry, ten times the size of the list, so it gets the list without entries.
        let head = without_entries(&der);
        let (rest, list) = CertificateRevocationList::from_der(head.as_deref().unwrap_or(&der))
            .map_err(|error| CrlFault::Malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CrlFault::TrailingBytes(rest.len()));
        }
        let next_update = next_update(&list)?;
        check_algorithm(&list, &der)?;
        let scope = scope(&list)?;
        let serials = serials(&der)?;
        let sha256 = sha256_hex(&der);
        Ok(Self {
            issuer: rfc4514(list.issuer()),
            this_update: moment(list.last_update()),
            next_update,
            number: list.crl_number().cloned().map(CrlNumber),
            revoked: serials.len(),
            issuer_raw: element(list.issuer().as_raw()).map(|(name, _)| name.to_vec()).unwrap_or_default(),
            scope,
            sha256,
            content: Arc::new(Content {
                der: CertificateRevocationListDer::from(der.to_vec()),
                serials,
                prehash: Signed::read(&der).and_then(|signed| Prehash::new(&signed)),
                signers: Mutex::default(),
            }),
        })
    }

    /// The complete list, signature included.
    pub fn der(&self) -> &CertificateRevocationListDer<'static> {
        &self.content.der
    }

    /// The issuer in DER, without tag and length.
    pub(crate) fn issuer_name(&self) -> &[u8] {
        &self.issuer_raw
    }

    /// Whether the issuer has this name, given as DER without tag and length. A CA may use one string type in its certificate
    /// and another in its list. RFC 5280 §7.1 compares names without regard to case and repeated spaces.
    pub(crate) fn is_of(&self, name: &[u8]) -> bool {
        name == self.issuer_raw.as_slice() || name_text(name).is_some_and(|name| folded(&name) == folded(&self.issuer))
    }

    /// Compares the issuer with the subject of a CA certificate. Two CAs may have the same name; [`Self::is_signed_by`] also
    /// checks the key.
    pub fn has_issuer(&self, anchor: &CertificateDer<'_>) -> bool {
        RawCertificate::read(anchor).is_some_and(|anchor| self.is_of(anchor.subject))
    }

    /// Whether the CA with this certificate issued and signed the list.
    pub fn is_signed_by(&self, anchor: &CertificateDer<'_>) -> bool {
        RawCertificate::read(anchor)
            .is_some_and(|anchor| self.is_of(anchor.subject) && self.is_signed_with(anchor.public_key_info))
    }

    /// Whether this key, the contents of a `SubjectPublicKeyInfo`, signed the list.
    pub(crate) fn is_signed_with(&self, key_info: &[u8]) -> bool {
        if let Some(is_signer) = self.is_known_signer(key_info) {
            return is_signer;
        }
        let is_signer = Signed::read(self.der()).is_some_and(|signed| match &self.content.prehash {
            Some(prehash) => prehash.is_signed_with(&signed, key_info),
            None => signed.verify(key_info),
        });
        let mut signers = self.content.signers();
        // The keys of the bundle come first, and clients' keys never replace them.
        if signers.len() < MAX_SIGNERS {
            signers.insert(digest_of([key_info].into_iter()), is_signer);
        }
        is_signer
    }

    /// Whether this key signed the list; `None` if that was not verified before.
    pub(crate) fn is_known_signer(&self, key_info: &[u8]) -> Option<bool> {
        self.content.signers().get(&digest_of([key_info].into_iter())).copied()
    }

    /// Whether the list contains this serial number, given as the contents of its DER INTEGER.
    pub(crate) fn revokes(&self, serial: &[u8]) -> bool {
        self.content.serials.contain(serial)
    }

    /// The series of the list. The signer is searched among these trust anchors.
    pub fn series(&self, anchors: &[CertificateDer<'_>]) -> CrlSeries {
        let signer = anchors.iter().find(|anchor| self.is_signed_by(anchor)).and_then(key_digest);
        CrlSeries { issuer: self.issuer.clone(), signer, scope: self.scope.clone() }
    }

    /// Whether the list covers only a part of its issuer's certificates.
    pub fn is_scoped(&self) -> bool {
        self.scope.is_some()
    }

    /// Whether nextUpdate has passed.
    pub fn is_expired_at(&self, now: OffsetDateTime) -> bool {
        self.next_update <= now
    }
}

/// The text of a name, given as DER without tag and length.
fn name_text(name: &[u8]) -> Option<String> {
    let encoded = sequence(&[name])?;
    let (_, name) = X509Name::from_der(&encoded).ok()?;
    Some(rfc4514(&name))
}

/// The form in which names are compared: lower case, single spaces.
fn folded(name: &str) -> String {
    name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Lists that are already parsed, by digest.
#[derive(Debug, Default)]
pub struct KnownCrls {
    by_sha256: HashMap<String, Crl>,
}

impl FromIterator<Crl> for KnownCrls {
    fn from_iter<I: IntoIterator<Item = Crl>>(lists: I) -> Self {
        Self { by_sha256: lists.into_iter().map(|list| (list.sha256.clone(), list)).collect() }
    }
}

impl Content {
    fn signers(&self) -> MutexGuard<'_, HashMap<Digest, bool>> {
        self.signers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keys per list; more than CAs share one name. At this size the map is cleared.
const MAX_SIGNERS: usize = 1024;

/// The list without its entries, of which there may be a million. `None` if it has none, or is malformed.
fn without_entries(der: &[u8]) -> Option<Vec<u8>> {
    let (contents, trailing) = element_of(SEQUENCE, der)?;
    let (signed, signature) = element_of(SEQUENCE, contents)?;
    // version, signature, issuer, thisUpdate, nextUpdate
    let mut rest = element_of(INTEGER, signed)?.1;
    for _ in 0..2 {
        rest = element_of(SEQUENCE, rest)?.1;
    }
    rest = element(rest)?.1;
    if rest.first().is_some_and(|kind| TIMES.contains(kind)) {
        rest = element(rest)?.1;
    }
    let before = signed.get(..signed.len().checked_sub(rest.len())?)?;
    let (_, after) = element_of(SEQUENCE, rest)?;
    let signed = sequence(&[before, after])?;
    Some([&sequence(&[&signed, signature])?, trailing].concat())
}

/// Parses the list with webpki, which checks it and every entry.
fn serials(der: &CertificateRevocationListDer<'_>) -> Result<Serials, CrlFault> {
    let list = BorrowedCertRevocationList::from_der(der)?;
    let mut serials = Serials::default();
    for entry in &list {
        serials.add(entry?.serial_number);
    }
    serials.sort();
    Ok(serials)
}

/// Checks version and extensions, and returns nextUpdate.
fn next_update(list: &CertificateRevocationList<'_>) -> Result<OffsetDateTime, CrlFault> {
    let version = list.version().unwrap_or(X509Version::V1);
    if version != X509Version::V2 {
        return Err(CrlFault::Version(version.0.saturating_add(1)));
    }
    if list.extensions().is_empty() {
        return Err(CrlFault::NoExtensions);
    }
    list.next_update().map(moment).ok_or(CrlFault::NoNextUpdate)
}

/// Without this check, rustls would fail at the first client with a certificate of this CA.
fn check_algorithm(list: &CertificateRevocationList<'_>, der: &[u8]) -> Result<(), CrlFault> {
    let Signed { algorithm, .. } =
        Signed::read(der).ok_or_else(|| CrlFault::Malformed("its signature cannot be read".to_owned()))?;
    let known = provider().signature_verification_algorithms.all;
    if known.iter().any(|known| known.signature_alg_id().as_ref() == algorithm) {
        return Ok(());
    }
    Err(CrlFault::Algorithm(list.signature_algorithm.algorithm.to_id_string()))
}

/// The scope of a list. Checked here because webpki reports unsupported scopes without details.
fn scope(list: &CertificateRevocationList<'_>) -> Result<Option<Scope>, CrlFault> {
    let is_scope = |extension: &&X509Extension<'_>| extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
    let Some(extension) = list.extensions().iter().find(is_scope) else { return Ok(None) };
    let ParsedExtension::IssuingDistributionPoint(point) = extension.parsed_extension() else {
        return Err(CrlFault::Malformed("its issuingDistributionPoint cannot be read".to_owned()));
    };
    if point.indirect_crl {
        return Err(CrlFault::Indirect);
    }
    let is_named = matches!(point.distribution_point, Some(DistributionPointName::FullName(_)));
    if !is_named || point.only_some_reasons.is_some() {
        return Err(CrlFault::Partitioned);
    }
    Ok(Some(Scope {
        only_user_certificates: point.only_contains_user_certs,
        only_ca_certificates: point.only_contains_ca_certs,
        uris: full_names(point.distribution_point.as_ref()),
        encoded: extension.value.to_vec(),
    }))
}

impl From<webpki::Error> for CrlFault {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::InvalidCrlNumber => Self::Number,
            E::MalformedExtensions | E::BadDer | E::BadDerTime | E::TrailingData(_) => {
                Self::Malformed("its encoding is invalid".to_owned())
            }
            E::UnsupportedCriticalExtension => Self::CriticalExtension,
            E::UnsupportedDeltaCrl => Self::Delta,
            E::UnsupportedIndirectCrl => Self::Indirect,
            error => Self::Refused(error.to_string()),
        }
    }
}

/// Tags of UTCTime and GeneralizedTime.
const TIMES: [u8; 2] = [0x17, 0x18];

/// First length byte of elements with more than 127 bytes.
const LONG: u8 = 0x80;
