//! Type and size of keys, for errors about unsupported keys.

use std::fmt;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::x509::der::{INTEGER, OBJECT_IDENTIFIER, SEQUENCE, TAGGED_0, element, element_of};
use crate::x509::raw_certificate::RawCertificate;

/// The type and size of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyKind {
    family: Family,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Bits of the modulus.
    Rsa(usize),
    Supported,
    Unsupported,
}

impl KeyKind {
    /// `None` if the key cannot be parsed.
    pub fn of_private(key: &PrivateKeyDer<'_>) -> Option<Self> {
        match key {
            PrivateKeyDer::Pkcs1(key) => private_modulus(key.secret_pkcs1_der()).map(Self::rsa),
            PrivateKeyDer::Sec1(key) => {
                let (fields, _) = element_of(SEQUENCE, key.secret_sec1_der())?;
                let (_version, rest) = element_of(INTEGER, fields)?;
                let (_key, rest) = element(rest)?;
                Some(Self::ec(element_of(TAGGED_0, rest)?.0))
            }
            PrivateKeyDer::Pkcs8(key) => {
                let (fields, _) = element_of(SEQUENCE, key.secret_pkcs8_der())?;
                let (_version, rest) = element_of(INTEGER, fields)?;
                let (algorithm, rest) = element_of(SEQUENCE, rest)?;
                let (inner, _) = element(rest)?;
                Self::of_algorithm(algorithm, || private_modulus(inner))
            }
            _ => None,
        }
    }

    /// The public key of a certificate. `None` if it cannot be parsed.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let info = RawCertificate::read(der)?.public_key_info;
        let (algorithm, rest) = element_of(SEQUENCE, info)?;
        let (bits, _) = element(rest)?;
        Self::of_algorithm(algorithm, || {
            let (fields, _) = element_of(SEQUENCE, bits.get(1..)?)?;
            bits_of_first_integer(fields)
        })
    }

    /// Whether the key can sign and verify TLS handshakes and certificates.
    pub fn is_supported(&self) -> bool {
        match self.family {
            Family::Rsa(bits) => (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits),
            Family::Supported => true,
            Family::Unsupported => false,
        }
    }

    fn rsa(bits: usize) -> Self {
        Self { family: Family::Rsa(bits), name: format!("RSA of {bits} bits") }
    }

    fn of_algorithm(algorithm: &[u8], modulus: impl FnOnce() -> Option<usize>) -> Option<Self> {
        let (oid, parameters) = element_of(OBJECT_IDENTIFIER, algorithm)?;
        match KINDS.iter().find(|(known, _, _)| *known == oid) {
            Some((RSA, _, _)) => modulus().map(Self::rsa),
            Some((EC, _, _)) => Some(Self::ec(parameters)),
            Some((DSA, _, _)) => {
                let bits = element_of(SEQUENCE, parameters).and_then(|(fields, _)| bits_of_first_integer(fields));
                let name = bits.map_or("DSA".to_owned(), |bits| format!("DSA of {bits} bits"));
                Some(Self { family: Family::Unsupported, name })
            }
            Some((_, name, family)) => Some(Self { family: *family, name: (*name).to_owned() }),
            None => Some(Self { family: Family::Unsupported, name: "of an unknown type".to_owned() }),
        }
    }

    fn ec(parameters: &[u8]) -> Self {
        let curve = element_of(OBJECT_IDENTIFIER, parameters).map(|(curve, _)| curve);
        let known = CURVES.iter().find(|(known, _, _)| Some(*known) == curve);
        let (name, family) =
            known.map_or(("EC on an unknown curve", Family::Unsupported), |(_, name, family)| (*name, *family));
        Self { family, name: format!("EC on {name}") }
    }
}

/// The text follows "it is".
impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The supported keys, for error texts.
pub(crate) const USABLE_KEYS: &str = "RSA of 2048 to 8192 bits, EC on P-256, P-384 or P-521, or Ed25519";

/// Bits of the modulus of a PKCS #1 private key.
fn private_modulus(der: &[u8]) -> Option<usize> {
    let (fields, _) = element_of(SEQUENCE, der)?;
    let (_version, rest) = element_of(INTEGER, fields)?;
    bits_of_first_integer(rest)
}

fn bits_of_first_integer(der: &[u8]) -> Option<usize> {
    let (integer, _) = element_of(INTEGER, der)?;
    let start = integer.iter().position(|byte| *byte != 0)?;
    let significant = integer.get(start..)?;
    let zeros = usize::try_from(significant.first()?.leading_zeros()).ok()?;
    significant.len().checked_mul(8)?.checked_sub(zeros)
}

const MIN_RSA_BITS: usize = 2048;
const MAX_RSA_BITS: usize = 8192;

const RSA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
const EC: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
const DSA: &[u8] = b"\x2a\x86\x48\xce\x38\x04\x01";

/// Public key algorithms by the contents of their object identifiers.
const KINDS: [(&[u8], &str, Family); 12] = [
    (RSA, "RSA", Family::Unsupported),
    (EC, "EC", Family::Unsupported),
    (DSA, "DSA", Family::Unsupported),
    (
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a",
        "RSA-PSS (restricted to PSS; a plain RSA key can sign with PSS too)",
        Family::Unsupported,
    ),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x03\x01", "Diffie-Hellman", Family::Unsupported),
    (b"\x2b\x65\x6e", "X25519, which cannot sign", Family::Unsupported),
    (b"\x2b\x65\x6f", "X448, which cannot sign", Family::Unsupported),
    (b"\x2b\x65\x70", "Ed25519", Family::Supported),
    (b"\x2b\x65\x71", "Ed448", Family::Unsupported),
    (b"\x60\x86\x48\x01\x65\x03\x04\x03\x11", "ML-DSA-44", Family::Unsupported),
    (b"\x60\x86\x48\x01\x65\x03\x04\x03\x12", "ML-DSA-65", Family::Unsupported),
    (b"\x60\x86\x48\x01\x65\x03\x04\x03\x13", "ML-DSA-87", Family::Unsupported),
];

/// Named curves by the contents of their object identifiers.
const CURVES: [(&[u8], &str, Family); 9] = [
    (b"\x2a\x86\x48\xce\x3d\x03\x01\x01", "P-192", Family::Unsupported),
    (b"\x2b\x81\x04\x00\x21", "P-224", Family::Unsupported),
    (b"\x2a\x86\x48\xce\x3d\x03\x01\x07", "P-256", Family::Supported),
    (b"\x2b\x81\x04\x00\x22", "P-384", Family::Supported),
    (b"\x2b\x81\x04\x00\x23", "P-521", Family::Supported),
    (b"\x2b\x81\x04\x00\x0a", "secp256k1", Family::Unsupported),
    (b"\x2b\x24\x03\x03\x02\x08\x01\x01\x07", "brainpoolP256r1", Family::Unsupported),
    (b"\x2b\x24\x03\x03\x02\x08\x01\x01\x0b", "brainpoolP384r1", Family::Unsupported),
    (b"\x2b\x24\x03\x03\x02\x08\x01\x01\x0d", "brainpoolP512r1", Family::Unsupported),
];
