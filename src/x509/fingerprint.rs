//! The fingerprint by which people and programs name a certificate.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::x509::crypto::sha256_hex;

/// The SHA-256 of the DER of a certificate, in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct CertificateFingerprint(String);

/// A text is not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the SHA-256 of a certificate in 64 hexadecimal digits")]
pub struct FingerprintError;

impl CertificateFingerprint {
    pub(crate) fn from_der(der: &[u8]) -> Self {
        Self(sha256_hex(der))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first digits, which distinguish the certificates of one listener.
    pub(crate) fn short(&self) -> &str {
        self.0.get(..SHORT).unwrap_or(&self.0)
    }
}

/// Accepts upper case, and the colons that openssl prints between the bytes.
impl FromStr for CertificateFingerprint {
    type Err = FingerprintError;

    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digits = text.replace(':', "").to_ascii_lowercase();
        let is_sha256 = digits.len() == DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if is_sha256 { Ok(Self(digits)) } else { Err(FingerprintError) }
    }
}

impl fmt::Display for CertificateFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The length of every fingerprint.
pub(crate) const DIGITS: usize = 64;

const SHORT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_is_read_with_and_without_colons() {
        // printf %s abc | sha256sum
        let plain = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let of_abc = CertificateFingerprint::from_der(b"abc");
        assert_eq!(of_abc.to_string(), plain);
        assert_eq!(plain.parse(), Ok(of_abc));
        let spelled: CertificateFingerprint = ["AB"; 32].join(":").parse().unwrap();
        assert_eq!(spelled.as_str(), "ab".repeat(32));
        for text in ["app.crt", "", &"ab".repeat(31), &"ab".repeat(33), &"zz".repeat(32)] {
            assert_eq!(text.parse::<CertificateFingerprint>(), Err(FingerprintError), "{text}");
        }
    }
}
