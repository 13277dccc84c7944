//! What there is to say about a certificate: for `check`, `certs inspect`, the audit and the choice by SNI.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::Oid;
use x509_parser::oid_registry::asn1_rs::oid;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use super::name::{common_name, rfc4514};
use super::sha256_hex;
use crate::policy::ClientName;
use crate::timestamp;

/// The facts of one certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// RFC 4514 text.
    pub subject: String,
    /// RFC 4514 text.
    pub issuer: String,
    /// 3 for every certificate of today; 1 for those openssl makes without extensions.
    pub version: u32,
    /// The most specific common name of the subject, where it is plain text and the only one of its level.
    #[serde(skip)]
    pub common_name: Option<String>,
    /// Whether it names itself as its issuer, as a root does.
    pub self_signed: bool,
    /// Whether it may issue certificates (basicConstraints).
    pub ca: bool,
    /// Subject alternative names as `dns:…`, `ip:…`, `uri:…`, `email:…`.
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

/// The bytes are no X.509 certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an X.509 certificate: {0}")]
pub struct CertificateError(String);

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
    pub fn names(&self) -> impl Iterator<Item = ClientName<'_>> {
        let common = self.common_name.as_deref().map(ClientName::Common);
        common
            .into_iter()
            .chain(self.sans.iter().filter_map(|san| typed(san)))
            .chain([ClientName::Sha256(&self.sha256)])
    }

    /// Whether it can be the anchor of others. Of an anchor webpki asks nothing but its name and key, so that the holder of any
    /// certificate that is one could issue more. Before version 3 there was no word for it, and roots say nothing.
    pub fn may_issue(&self) -> bool {
        self.ca || (self.version != 3 && self.self_signed)
    }

    /// Whether it is a CA's that may not issue for every name, or nobody can tell.
    pub fn is_constrained(der: &CertificateDer<'_>) -> bool {
        X509Certificate::from_der(der)
            .map_or(true, |(_, certificate)| !matches!(certificate.name_constraints(), Ok(None)))
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

/// DER allows UTC only, and the parser other offsets too.
pub(super) fn moment(time: ASN1Time) -> OffsetDateTime {
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
fn typed(san: &str) -> Option<ClientName<'_>> {
    match san.split_once(':')? {
        ("dns", name) => Some(ClientName::Dns(name)),
        ("email", name) => Some(ClientName::Email(name)),
        ("uri", name) => Some(ClientName::Uri(name)),
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
        _ => oid,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, NameConstraints};

    use super::*;
    use crate::tls::specimen::{Authority, Specimen};

    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;

    fn read(kind: u8, text: &str) -> Option<String> {
        let der = [&[kind, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let time = ASN1Time::from_der(&der).ok()?.1;
        Some(timestamp::seconds(moment(time)))
    }

    #[test]
    fn date_of_a_certificate_is_read_in_utc() {
        for (kind, text, expected) in [
            (UTC_TIME, "270131000000Z", "2027-01-31T00:00:00Z"),
            (UTC_TIME, "491231235959-0500", "2050-01-01T04:59:59Z"),
            (UTC_TIME, "500101000000+2359", "1949-12-31T00:01:00Z"),
            (GENERALIZED_TIME, "99991231235959Z", "9999-12-31T23:59:59Z"),
            (GENERALIZED_TIME, "00000101000000Z", "0000-01-01T00:00:00Z"),
        ] {
            assert_eq!(read(kind, text).as_deref(), Some(expected), "{text}");
        }
        for text in ["99991231235959-0500", "99999931235959Z", "Z", ""] {
            assert_eq!(read(GENERALIZED_TIME, text), None, "{text}");
        }
        let end = timestamp::parse("9999-12-31T23:59:59Z").unwrap();
        let beyond = end.replace_offset(time::UtcOffset::from_hms(-5, 0, 0).unwrap());
        assert!(moment(ASN1Time::new(beyond)) >= end, "should a later parser let it pass");
    }

    #[test]
    fn certificate_without_a_well_defined_end_is_valid_for_ever() {
        // RFC 5280 §4.1.2.5
        let end = timestamp::parse("9999-12-31T23:59:59Z").unwrap();
        let leaf = Authority::new("CA").client("app", OffsetDateTime::UNIX_EPOCH, end);
        let facts = Certificate::parse(&leaf.der()).unwrap();
        assert_eq!(facts.not_after, end);
        assert!(facts.end() > end);
        assert!(facts.is_valid_at(OffsetDateTime::now_utc()) && facts.is_valid_at(end));
        assert!(serde_json::to_string(&facts).unwrap().contains("9999-12-31T23:59:59Z"));
    }
    proptest! {
        #[test]
        fn certificate_with_other_bytes_is_read_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
                let mut params = CertificateParams::new(["app.test".to_owned(), "10.0.0.1".to_owned()]).unwrap();
                params.distinguished_name.push(DnType::OrganizationName, "Example");
                params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 99]), "odd");
                params.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName("test".to_owned())],
                    excluded_subtrees: Vec::new(),
                });
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
                Specimen::alone(&params).der().to_vec()
            });
            let mut der = WHOLE.clone();
            for (place, byte) in changes {
                *place.get_mut(&mut der) = byte;
            }
            for der in [&der[..], &der[..cut.index(der.len())]] {
                let der = CertificateDer::from(der);
                if let Ok(facts) = Certificate::parse(&der) {
                    prop_assert!(serde_json::to_string(&facts).is_ok());
                    prop_assert!(facts.end() >= facts.not_after && facts.names().count() > 0);
                }
                let _ = (Certificate::is_constrained(&der), Certificate::can_be_bound_to(&der));
            }
        }
    }
}
