//! Parameters of new certificates.

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use time::{Duration, OffsetDateTime};

use crate::issuing::IssuingError;

pub(crate) fn new_key() -> Result<KeyPair, IssuingError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(IssuingError::certificate)
}

pub(crate) fn client_params(name: &str, days: u32) -> CertificateParams {
    let mut params = named(name, days);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

pub(crate) fn named(common_name: &str, days: u32) -> CertificateParams {
    let mut params = dated(days.into());
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    params
}

/// Common parameters. The validity starts 5 minutes ago, for clients whose clock is slow.
pub(crate) fn dated(days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    params.not_before = now.saturating_sub(Duration::minutes(5));
    params.not_after = now.saturating_add(Duration::days(days));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A DNS name, which may have a wildcard; `None` for other text. The last label has a letter: a name that ends with digits is
/// an IPv4 address to many clients, and a bare `*` matches no name.
pub(crate) fn dns_name(name: &str) -> Option<SanType> {
    let plain = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_*".contains(&byte))
    };
    let is_address = |last: &str| !last.bytes().any(|byte| byte.is_ascii_alphabetic());
    if name.len() > MAX_DNS_NAME || !name.split('.').all(plain) || name.rsplit('.').next().is_none_or(is_address) {
        return None;
    }
    name.try_into().map(SanType::DnsName).ok()
}

/// Bytes of a host name and of one of its labels (RFC 1035 §2.3.4, as text).
pub(crate) const MAX_DNS_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// What [`dns_name`] accepts, except the length, as a regular expression for callers.
pub(crate) const DNS_NAME_PATTERN: &str = r"^([A-Za-z0-9_*-]{1,63}\.)*[A-Za-z0-9_*-]*[A-Za-z][A-Za-z0-9_*-]*$";
