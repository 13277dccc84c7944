//! What there is to say about a certificate: for `check`, `certs inspect`, the audit and the choice by SNI.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::Oid;
use x509_parser::oid_registry::asn1_rs::oid;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

use crate::printable;
use crate::timestamp;
use crate::x509::crypto::sha256_hex;
use crate::x509::name::{common_name, rfc4514};
use crate::x509::subject_name::SubjectName;

/// The facts of one certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// RFC 4514 text, escaped and cut. Comparisons use the digest.
    pub subject: String,
    /// RFC 4514 text, escaped and cut.
    pub issuer: String,
    /// The digest of the whole subject.
    #[serde(skip)]
    pub subject_digest: NameDigest,
    /// The digest of the whole name of the issuer.
    #[serde(skip)]
    pub issuer_digest: NameDigest,
    /// 3 for every certificate of today; 1 for those openssl makes without extensions.
    pub version: u32,
    /// The whole of the most specific common name of the subject, where it is plain text and the only one of its level.
    #[serde(skip)]
    pub common_name: Option<String>,
    /// Whether it names itself as its issuer, as a root does.
    pub self_signed: bool,
    /// Whether it may issue certificates (basicConstraints).
    pub ca: bool,
    /// Subject alternative names as `dns:…`, `ip:…`, `uri:…`, `email:…`. They are whole here, and escaped and cut in JSON.
    #[serde(serialize_with = "as_fields")]
    pub sans: Vec<String>,
    /// Valid from.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// Valid until.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// `EC`, `RSA`, `Ed25519`, … or the object identifier.
    pub key: String,
    /// Lower-case hex of the SHA-256 of the DER.
    pub sha256: String,
}

/// The SHA-256 of an encoded distinguished name. Names are compared by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameDigest([u8; 32]);

/// The bytes are no X.509 certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an X.509 certificate: {0}")]
pub struct CertificateError(String);

impl CertificateError {
    pub(crate) fn unreadable() -> Self {
        Self("it cannot be read".to_owned())
    }
}

impl Certificate {
    /// Reads the facts out of a DER certificate.
    ///
    /// # Errors
    /// When it is not one, or has bytes behind its end.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|error| CertificateError(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CertificateError(format!("{} bytes follow its end", rest.len())));
        }
        let validity = certificate.validity();
        Ok(Self {
            subject: rfc4514(certificate.subject()),
            issuer: rfc4514(certificate.issuer()),
            subject_digest: NameDigest::of(certificate.subject()),
            issuer_digest: NameDigest::of(certificate.issuer()),
            common_name: common_name(certificate.subject()),
            version: certificate.version().0 + 1,
            self_signed: certificate.subject().as_raw() == certificate.issuer().as_raw(),
            ca: certificate.is_ca(),
            sans: subject_alternative_names(&certificate),
            not_before: moment(validity.not_before),
            not_after: moment(validity.not_after),
            key: key_kind(&certificate),
            sha256: sha256_hex(der),
        })
    }

    /// Whether SCRAM can bind a password to a certificate: to its digest by the hash that its signature names (RFC 5929
    /// §4.1), and Ed25519 and Ed448 name none.
    pub fn can_be_bound_to(der: &CertificateDer<'_>) -> bool {
        const WITHOUT_HASH: [Oid<'static>; 2] = [oid!(1.3.101.112), oid!(1.3.101.113)];
        X509Certificate::from_der(der)
            .is_ok_and(|(_, certificate)| !WITHOUT_HASH.contains(&certificate.signature_algorithm.algorithm))
    }

    /// Host names of the certificate, lower case; a leading `*.` stands for one label.
    pub fn dns_names(&self) -> impl Iterator<Item = String> {
        self.sans.iter().filter_map(|san| san.strip_prefix("dns:")).map(str::to_ascii_lowercase)
    }

    /// The names by which `trusted_clients` may know the holder.
    pub fn names(&self) -> impl Iterator<Item = SubjectName<'_>> {
        let common = self.common_name.as_deref().map(SubjectName::Common);
        common
            .into_iter()
            .chain(self.sans.iter().filter_map(|san| typed(san)))
            .chain([SubjectName::Sha256(&self.sha256)])
    }

    /// Whether it can be the anchor of others. Of an anchor webpki asks nothing but its name and key, so that the holder of any
    /// certificate that is one could issue more. Before version 3 there was no word for it, and roots say nothing.
    pub fn may_issue(&self) -> bool {
        self.ca || (self.version != 3 && self.self_signed)
    }

    /// The first moment after its validity, whose last second belongs to it.
    pub fn end(&self) -> OffsetDateTime {
        self.not_after.saturating_add(Duration::SECOND)
    }

    /// Whether `now` lies within its validity.
    pub fn is_valid_at(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now < self.end()
    }
}

impl NameDigest {
    fn of(name: &X509Name<'_>) -> Self {
        let digest = digest(&SHA256, name.as_raw());
        Self(digest.as_ref().try_into().unwrap_or_default())
    }
}

/// Writes names as fields.
fn as_fields<S: Serializer>(names: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(printable::field))
}

/// DER allows UTC only, and the parser other offsets too.
#[allow(clippy::disallowed_methods, reason = "the one place where such a date is read")]
pub(crate) fn moment(time: ASN1Time) -> OffsetDateTime {
    timestamp::utc(time.to_datetime())
}

fn subject_alternative_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension.value.general_names.iter().filter_map(san_text).collect()
}

fn san_text(name: &GeneralName<'_>) -> Option<String> {
    // Only kinds that are names of hosts, services or people; each keeps its kind, so that one is never taken for another.
    let text = match name {
        GeneralName::DNSName(dns) => format!("dns:{dns}"),
        GeneralName::URI(uri) => format!("uri:{uri}"),
        GeneralName::RFC822Name(email) => format!("email:{email}"),
        GeneralName::IPAddress(bytes) => format!("ip:{}", ip_address(bytes)?),
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => return None,
    };
    Some(text)
}

/// A subject alternative name as a name that clients can be known by.
fn typed(san: &str) -> Option<SubjectName<'_>> {
    match san.split_once(':')? {
        ("dns", name) => Some(SubjectName::Dns(name)),
        ("email", name) => Some(SubjectName::Email(name)),
        ("uri", name) => Some(SubjectName::Uri(name)),
        _ => None,
    }
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn key_kind(certificate: &X509Certificate<'_>) -> String {
    let oid = certificate.public_key().algorithm.algorithm.to_id_string();
    match oid.as_str() {
        "1.2.840.10045.2.1" => "EC".to_owned(),
        "1.2.840.113549.1.1.1" => "RSA".to_owned(),
        "1.3.101.112" => "Ed25519".to_owned(),
        // The certificate's holder chooses it.
        _ => printable::quoted(oid),
    }
}
