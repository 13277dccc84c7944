//! The parsed fields of a certificate, for `check`, `certs inspect`, the audit log and selection by SNI.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

use crate::printable;
use crate::timestamp;
use crate::x509::fingerprint::CertificateFingerprint;
use crate::x509::name::{common_name, rfc4514};
use crate::x509::subject_name::SubjectName;

/// The fields of a certificate that are shown, compared and matched. Serialized, it is the form in JSON output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// RFC 4514 text, escaped and truncated. Compare [`subject_digest`](Self::subject_digest) instead.
    pub subject: String,
    /// RFC 4514 text, escaped and truncated.
    pub issuer: String,
    /// Of the complete DER-encoded subject.
    #[serde(skip)]
    pub subject_digest: NameDigest,
    /// Of the complete DER-encoded issuer.
    #[serde(skip)]
    pub issuer_digest: NameDigest,
    /// The X.509 version. openssl creates version 1 if it is given no extensions.
    pub version: u32,
    /// The most specific common name, not truncated. `None` if its RDN has several, or it is not plain text.
    #[serde(skip)]
    pub common_name: Option<String>,
    /// Whether subject and issuer are equal.
    pub self_signed: bool,
    /// basicConstraints CA:TRUE.
    pub ca: bool,
    /// Subject alternative names as `dns:…`, `ip:…`, `uri:…`, `email:…`: complete here, escaped and truncated in JSON.
    #[serde(serialize_with = "as_fields")]
    pub sans: Vec<String>,
    /// Inclusive.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// Inclusive; see [`end`](Self::end).
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// `EC`, `RSA`, `Ed25519`, … or the object identifier.
    pub key: String,
    /// Of the DER.
    pub sha256: CertificateFingerprint,
}

/// The SHA-256 of a DER-encoded distinguished name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameDigest([u8; 32]);

/// The bytes are not an X.509 certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an X.509 certificate: {0}")]
pub struct CertificateError(String);

impl CertificateError {
    pub(crate) fn unreadable() -> Self {
        Self("it cannot be read".to_owned())
    }
}

impl Certificate {
    /// # Errors
    /// If the bytes are not a certificate, or bytes follow its end.
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
            sha256: CertificateFingerprint::from_der(der),
        })
    }

    /// The DNS subject alternative names in lower case. A leading `*.` matches one label.
    pub fn dns_names(&self) -> impl Iterator<Item = String> {
        self.sans.iter().filter_map(|san| san.strip_prefix("dns:")).map(str::to_ascii_lowercase)
    }

    /// The names that `trusted_clients` can match.
    pub fn names(&self) -> impl Iterator<Item = SubjectName<'_>> {
        let common = self.common_name.as_deref().map(SubjectName::Common);
        common
            .into_iter()
            .chain(self.sans.iter().filter_map(|san| typed(san)))
            .chain([SubjectName::Sha256(self.sha256.as_str())])
    }

    /// Whether the certificate can be a trust anchor. webpki checks only name and key of an anchor, so without this check the
    /// holder of any leaf in the bundle could issue certificates. Versions 1 and 2 have no basicConstraints; there,
    /// self-signed certificates count as CAs.
    pub fn may_issue(&self) -> bool {
        self.ca || (self.version != 3 && self.self_signed)
    }

    /// The first moment after the validity period: one second after notAfter, which is inclusive.
    pub fn end(&self) -> OffsetDateTime {
        self.not_after.saturating_add(Duration::SECOND)
    }

    /// Compares with notBefore and notAfter, both inclusive.
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

fn as_fields<S: Serializer>(names: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(printable::field))
}

/// DER allows only UTC, but the parser accepts other offsets.
#[allow(clippy::disallowed_methods, reason = "the one place where such a date is read")]
pub(crate) fn moment(time: ASN1Time) -> OffsetDateTime {
    timestamp::utc(time.to_datetime())
}

fn subject_alternative_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension.value.general_names.iter().filter_map(san_text).collect()
}

fn san_text(name: &GeneralName<'_>) -> Option<String> {
    // The prefix keeps types apart: a URI must never match as a host name.
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
        // The peer chooses this value.
        _ => printable::quoted(oid),
    }
}
