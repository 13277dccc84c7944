//! The extensions of a CA certificate that limit what it may issue (RFC 5280 §4.2.1).

use std::ops::Range;

use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_CERTIFICATE_POLICIES, OID_X509_EXT_CRL_DISTRIBUTION_POINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_INHIBIT_ANY_POLICY, OID_X509_EXT_ISSUER_ALT_NAME,
    OID_X509_EXT_KEY_USAGE, OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_POLICY_CONSTRAINTS,
    OID_X509_EXT_POLICY_MAPPINGS, OID_X509_EXT_SUBJECT_ALT_NAME, Oid,
};
use x509_parser::prelude::FromDer as _;

use crate::x509::certificate::moment;
use crate::x509::name::rfc4514;

/// The purpose of a chain's leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Extended key usage clientAuth.
    ClientAuth,
    /// Extended key usage serverAuth.
    ServerAuth,
}

/// Why a certificate must not issue others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaFault {
    #[error("its extended key usage lacks {0}")]
    ExtendedKeyUsage(&'static str),
    #[error("its key usage lacks keyCertSign")]
    KeyUsage,
    /// basicConstraints is missing or has CA:FALSE.
    #[error("it is not a CA certificate (basicConstraints)")]
    NotACa,
}

/// The limits that one CA certificate sets on the certificates below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CaProperties {
    /// RFC 4514 text.
    pub(crate) subject: String,
    /// From notBefore to one second after notAfter, because notAfter is inclusive.
    pub(crate) validity: Range<OffsetDateTime>,
    pub(crate) fault: Option<CaFault>,
    /// pathLenConstraint: the number of CAs allowed below this one. `None`: no limit.
    pub(crate) path_length: Option<usize>,
    /// Also true if the name constraints cannot be parsed.
    pub(crate) constrains_names: bool,
    /// The number of permitted and excluded subtrees.
    pub(crate) subtrees: usize,
}

impl CaProperties {
    /// `None` if the bytes are not a certificate.
    pub(crate) fn read(der: &CertificateDer<'_>, purpose: Purpose) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let constraints = certificate.basic_constraints().ok().flatten();
        let is_ca = constraints.as_ref().is_some_and(|constraints| constraints.value.ca);
        let path_length = constraints.and_then(|constraints| constraints.value.path_len_constraint);
        let key_usage = KeyUsage::of(&certificate);
        let is_self_issued = certificate.subject().as_raw() == certificate.issuer().as_raw();
        // Versions 1 and 2 have no extensions, so a self-issued certificate of these versions counts as a CA.
        let fault = if !(is_ca || certificate.version().0 != 2 && is_self_issued) {
            Some(CaFault::NotACa)
        } else if !key_usage.may_sign_certificates {
            Some(CaFault::KeyUsage)
        } else {
            lacking_purpose(&certificate, purpose)
        };
        let validity = certificate.validity();
        let end = moment(validity.not_after).saturating_add(Duration::SECOND);
        Some(Self {
            subject: rfc4514(certificate.subject()),
            validity: moment(validity.not_before)..end,
            fault,
            path_length: path_length.map(|length| usize::try_from(length).unwrap_or(usize::MAX)),
            constrains_names: !matches!(certificate.name_constraints(), Ok(None)),
            subtrees: subtrees(&certificate),
        })
    }
}

fn subtrees(certificate: &X509Certificate<'_>) -> usize {
    let Ok(Some(constraints)) = certificate.name_constraints() else { return 0 };
    let lists = [&constraints.value.permitted_subtrees, &constraints.value.excluded_subtrees];
    lists.into_iter().flatten().map(Vec::len).sum()
}

/// The number of names in a certificate: the subject and all subject alternative names.
pub(crate) fn names(der: &[u8]) -> usize {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return 1 };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    alternative.map_or(1, |names| names.value.general_names.len().saturating_add(1))
}

/// Whether key usage includes cRLSign or is absent.
pub(crate) fn may_sign_lists(der: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| KeyUsage::of(&certificate).may_sign_lists)
}

/// The key usage extension. A certificate without it may sign both.
struct KeyUsage {
    may_sign_certificates: bool,
    may_sign_lists: bool,
}

impl KeyUsage {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let (may_sign_certificates, may_sign_lists) = match certificate.get_extension_unique(&OID_X509_EXT_KEY_USAGE) {
            Ok(None) => (true, true),
            Ok(Some(extension)) => match extension.parsed_extension() {
                ParsedExtension::KeyUsage(usage) => (usage.key_cert_sign(), usage.crl_sign()),
                _ => (false, false),
            },
            Err(_) => (false, false),
        };
        Self { may_sign_certificates, may_sign_lists }
    }
}

/// Whether the key usage of a certificate, where it has one, lets its key sign a TLS handshake (RFC 5246 §7.4.6).
pub(crate) fn may_sign_handshakes(der: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    match certificate.get_extension_unique(&OID_X509_EXT_KEY_USAGE) {
        Ok(None) => true,
        Ok(Some(extension)) => {
            matches!(extension.parsed_extension(), ParsedExtension::KeyUsage(usage) if usage.digital_signature())
        }
        Err(_) => false,
    }
}

impl Purpose {
    /// The name in RFC 5280 §4.2.1.12.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClientAuth => "clientAuth",
            Self::ServerAuth => "serverAuth",
        }
    }
}

/// The first critical extension that is not supported. Returns the subject of the certificate and the name of the extension.
pub(crate) fn unsupported_extension(der: &CertificateDer<'_>) -> Option<(String, String)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let is_supported = |oid: &Oid<'_>| SUPPORTED_EXTENSIONS.iter().any(|supported| supported == oid);
    let extension = certificate.extensions().iter().find(|one| one.critical && !is_supported(&one.oid))?;
    let known = NAMED_EXTENSIONS.iter().find(|(oid, _)| *oid == extension.oid);
    let name = known.map_or_else(|| extension.oid.to_id_string(), |(_, name)| (*name).to_owned());
    Some((rfc4514(certificate.subject()), name))
}

/// The extensions that webpki evaluates.
static SUPPORTED_EXTENSIONS: [Oid<'static>; 6] = [
    OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_SUBJECT_ALT_NAME,
    OID_X509_EXT_BASIC_CONSTRAINTS,
    OID_X509_EXT_NAME_CONSTRAINTS,
    OID_X509_EXT_CRL_DISTRIBUTION_POINTS,
    OID_X509_EXT_EXTENDED_KEY_USAGE,
];

/// Unsupported extensions that are critical in practice, with their names in RFC 5280.
static NAMED_EXTENSIONS: [(Oid<'static>, &str); 5] = [
    (OID_X509_EXT_CERTIFICATE_POLICIES, "certificatePolicies"),
    (OID_X509_EXT_POLICY_MAPPINGS, "policyMappings"),
    (OID_X509_EXT_POLICY_CONSTRAINTS, "policyConstraints"),
    (OID_X509_EXT_INHIBIT_ANY_POLICY, "inhibitAnyPolicy"),
    (OID_X509_EXT_ISSUER_ALT_NAME, "issuerAltName"),
];

fn lacking_purpose(certificate: &X509Certificate<'_>, purpose: Purpose) -> Option<CaFault> {
    let allowed = match certificate.extended_key_usage() {
        Ok(None) => true,
        Ok(Some(usage)) => {
            usage.value.any
                || match purpose {
                    Purpose::ClientAuth => usage.value.client_auth,
                    Purpose::ServerAuth => usage.value.server_auth,
                }
        }
        Err(_) => false,
    };
    (!allowed).then_some(CaFault::ExtendedKeyUsage(purpose.name()))
}

/// The types of name constraints (RFC 5280 §4.2.1.10) in this CA certificate that webpki cannot check. Certificates with names of
/// these types are rejected. Every certificate has a directory name: its subject.
pub(crate) fn unchecked_constraints(der: &CertificateDer<'_>) -> Vec<&'static str> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Vec::new() };
    let Ok(Some(constraints)) = certificate.name_constraints() else { return Vec::new() };
    let subtrees = [&constraints.value.permitted_subtrees, &constraints.value.excluded_subtrees];
    let bases = subtrees.into_iter().flatten().flatten().map(|subtree| &subtree.base);
    let mut kinds: Vec<_> = bases
        .filter_map(|base| match base {
            GeneralName::DNSName(_) | GeneralName::IPAddress(_) => None,
            GeneralName::DirectoryName(_) => Some(DIRECTORY_NAMES),
            GeneralName::RFC822Name(_) => Some("email addresses"),
            GeneralName::URI(_) => Some("URIs"),
            _ => Some("names of another kind"),
        })
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// The type in [`unchecked_constraints`] that every certificate has.
pub(crate) const DIRECTORY_NAMES: &str = "directory names";

/// The subject and authority key identifiers of a certificate (RFC 5280 §4.2.1.1 and §4.2.1.2). They are hints only: the creator
/// of a certificate chooses them freely.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyIds {
    pub(crate) own: Option<Vec<u8>>,
    pub(crate) issuer: Option<Vec<u8>>,
}

impl KeyIds {
    pub(crate) fn read(der: &[u8]) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Self::default() };
        let mut ids = Self::default();
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => ids.own = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    ids.issuer = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        ids
    }
}

/// The CRL distribution points of a certificate (RFC 5280 §4.2.1.13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DistributionPoints {
    /// The certificate has no such extension.
    Unstated,
    /// The URIs of the points that cover all reasons and name no other CRL issuer; may be empty.
    Uris(Vec<String>),
}

impl DistributionPoints {
    pub(crate) fn read(der: &[u8]) -> Self {
        const OID: &Oid<'static> = &OID_X509_EXT_CRL_DISTRIBUTION_POINTS;
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Self::Uris(Vec::new()) };
        match certificate.get_extension_unique(OID) {
            Ok(None) => Self::Unstated,
            Ok(Some(extension)) => match extension.parsed_extension() {
                ParsedExtension::CRLDistributionPoints(points) => {
                    let whole = points.iter().filter(|point| point.reasons.is_none() && point.crl_issuer.is_none());
                    Self::Uris(whole.flat_map(|point| full_names(point.distribution_point.as_ref())).collect())
                }
                _ => Self::Uris(Vec::new()),
            },
            Err(_) => Self::Uris(Vec::new()),
        }
    }
}

/// The URIs of a distribution point's full name. Names of other types are skipped.
pub(crate) fn full_names(name: Option<&DistributionPointName<'_>>) -> Vec<String> {
    let Some(DistributionPointName::FullName(names)) = name else { return Vec::new() };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.iter().filter_map(uri).collect()
}
