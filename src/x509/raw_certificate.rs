//! The fields of a certificate that path building needs, as raw DER: names, key, serial number and signature.
//!
//! Unauthenticated peers send certificates, so parsing reads only a few lengths. Extensions are parsed after a trust anchor's
//! signature is verified ([`CaProperties`](crate::x509::ca_properties::CaProperties)).

use std::ops::Range;

use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use crate::x509::certificate::moment;
use crate::x509::der::{INTEGER, SEQUENCE, TAGGED_0, element, element_of};
use crate::x509::signed::Signed;

/// The fields of a certificate (RFC 5280 §4.1) without tags and lengths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawCertificate<'der> {
    pub(crate) der: &'der [u8],
    pub(crate) serial: &'der [u8],
    pub(crate) issuer: &'der [u8],
    validity: &'der [u8],
    pub(crate) subject: &'der [u8],
    /// The contents of its `SubjectPublicKeyInfo`.
    pub(crate) public_key_info: &'der [u8],
    /// The fields after the key: unique identifiers and extensions.
    optional: &'der [u8],
    signed: Signed<'der>,
}

impl<'der> RawCertificate<'der> {
    pub(crate) fn read(der: &'der [u8]) -> Option<Self> {
        let signed = Signed::read(der)?;
        let (fields, _) = element_of(SEQUENCE, signed.message)?;
        // Version 1 certificates omit the version field.
        let fields = element_of(TAGGED_0, fields).map_or(fields, |(_version, rest)| rest);
        let (serial, rest) = element_of(INTEGER, fields)?;
        let (_algorithm, rest) = element_of(SEQUENCE, rest)?;
        let (issuer, rest) = element_of(SEQUENCE, rest)?;
        let (validity, rest) = element_of(SEQUENCE, rest)?;
        let (subject, rest) = element_of(SEQUENCE, rest)?;
        let (public_key_info, optional) = element_of(SEQUENCE, rest)?;
        Some(Self { der, serial, issuer, validity, subject, public_key_info, optional, signed })
    }

    /// From notBefore to one second after notAfter, which is inclusive. `None` if they cannot be parsed.
    pub(crate) fn validity(&self) -> Option<Range<OffsetDateTime>> {
        let (rest, not_before) = ASN1Time::from_der(self.validity).ok()?;
        let (_, not_after) = ASN1Time::from_der(rest).ok()?;
        Some(moment(not_before)..moment(not_after).saturating_add(Duration::SECOND))
    }

    /// Whether parsing the whole certificate takes longer than verifying a signature, because of many names or extensions or
    /// a large extension. Usual client certificates are far below these limits.
    pub(crate) fn is_long_to_read(&self) -> bool {
        let extensions = elements(self.optional).filter(|element| !element.is_empty()).last().unwrap_or_default();
        let extensions = element_of(SEQUENCE, extensions).map_or(&[][..], |(extensions, _)| extensions);
        elements(self.subject).nth(MAX_PARTS).is_some()
            || elements(self.issuer).nth(MAX_PARTS).is_some()
            || elements(extensions).nth(MAX_PARTS).is_some()
            || elements(extensions).any(|extension| extension.len() > MAX_EXTENSION)
    }

    /// Whether parsing costs as much as several handshakes. A valid signature does not prevent that: a CA may sign whatever its
    /// client requests.
    pub(crate) fn is_too_large(&self) -> bool {
        self.der.len() > MAX_LENGTH
            || count_elements(self.issuer)
                .saturating_add(count_elements(self.subject))
                .saturating_add(count_elements(self.optional))
                > MAX_ELEMENTS
    }

    /// Whether the type of the key fits the signature algorithm. Costs no cryptography.
    pub(crate) fn may_be_signed_with(&self, key_info: &[u8]) -> bool {
        self.signed.fits(key_info)
    }

    pub(crate) fn is_signed_with(&self, key_info: &[u8]) -> bool {
        self.signed.verify(key_info)
    }

    /// `key_info` is a complete `SubjectPublicKeyInfo`.
    pub(crate) fn has_public_key(&self, key_info: &[u8]) -> bool {
        element_of(SEQUENCE, key_info).is_some_and(|(contents, _)| contents == self.public_key_info)
    }

    pub(crate) fn is_signed_as(&self, message: &[u8], signature: &[u8]) -> bool {
        self.signed.is(message, signature)
    }

    /// Whether the certificate has this name and key. The issuers may differ.
    pub(crate) fn is_same_entity(&self, subject: &[u8], public_key_info: &[u8]) -> bool {
        self.subject == subject && self.public_key_info == public_key_info
    }

    pub(crate) fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    pub(crate) fn to_der(self) -> CertificateDer<'der> {
        CertificateDer::from(self.der)
    }
}

/// The contents of consecutive elements.
fn elements(der: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = der;
    std::iter::from_fn(move || {
        let (contents, behind) = element(rest)?;
        rest = behind;
        Some(contents)
    })
}

/// The number of elements at all depths; stops above [`MAX_ELEMENTS`]. Contents of octet strings count too, because extensions
/// are wrapped in them.
fn count_elements(der: &[u8]) -> usize {
    let mut left = vec![der];
    let mut count = 0_usize;
    while let Some(mut rest) = left.pop() {
        while let (Some(tag), Some((contents, behind))) = (rest.first(), element(rest)) {
            count += 1;
            if count > MAX_ELEMENTS {
                return count;
            }
            if tag & CONSTRUCTED != 0 || *tag == OCTET_STRING {
                left.push(contents);
            }
            rest = behind;
        }
    }
    count
}

const CONSTRUCTED: u8 = 0x20;
const OCTET_STRING: u8 = 0x04;

/// Bytes of a peer's certificate. Usual certificates have one or two thousand.
pub(crate) const MAX_LENGTH: usize = 32 << 10;

/// Elements of names and extensions. A subject alternative name is one element, an attribute of a subject four. Usual certificates
/// have about a hundred.
pub(crate) const MAX_ELEMENTS: usize = 1_200;

/// Attributes of a name, or extensions.
const MAX_PARTS: usize = 64;

/// Bytes of an extension. Three bytes can hold a name.
const MAX_EXTENSION: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CustomExtension, DnType, SanType};

    use super::*;
    use crate::tls::fixtures::{IssuedCertificate, named};

    fn is_long(params: &CertificateParams) -> bool {
        RawCertificate::read(&IssuedCertificate::self_signed(params).der()).unwrap().is_long_to_read()
    }

    #[test]
    fn certificate_of_many_elements_or_bytes_is_too_large() {
        let is_too_large = |params: &CertificateParams| {
            RawCertificate::read(&IssuedCertificate::self_signed(params).der()).unwrap().is_too_large()
        };
        let names = |count: usize| {
            let mut params = named(CertificateParams::default(), "app");
            let name = |number| SanType::DnsName(format!("n{number}.test").try_into().unwrap());
            params.subject_alt_names = (0..count).map(name).collect();
            params
        };
        assert!(!is_too_large(&names(1_000)) && is_too_large(&names(MAX_ELEMENTS)));
        let mut subject = named(CertificateParams::default(), "app");
        for number in 0..MAX_ELEMENTS / 4 {
            subject.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, u64::try_from(number).unwrap()]), "x");
        }
        assert!(is_too_large(&subject));
        assert!(is_too_large(&named(CertificateParams::default(), &"n".repeat(MAX_LENGTH))));
    }

    #[test]
    fn certificate_with_many_names_or_extensions_is_long_to_read() {
        assert!(!is_long(&named(CertificateParams::default(), &"n".repeat(60_000))), "one long name is cut");
        let names = |count: usize| {
            let mut params = named(CertificateParams::default(), "app");
            let name = |number| SanType::DnsName(format!("n{number}.test").try_into().unwrap());
            params.subject_alt_names = (0..count).map(name).collect();
            params
        };
        assert!(!is_long(&names(100)));
        assert!(is_long(&names(1_000)));
        let mut subject = named(CertificateParams::default(), "app");
        for number in 0..100 {
            subject.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, number]), "x");
        }
        assert!(is_long(&subject));
        let mut extensions = named(CertificateParams::default(), "app");
        for number in 0..100 {
            extensions.custom_extensions.push(CustomExtension::from_oid_content(&[1, 2, number], vec![5, 0]));
        }
        assert!(is_long(&extensions));
    }
}
