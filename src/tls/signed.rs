//! Signatures on certificates and revocation lists (RFC 5280 §4.1 and §5.1): both are a sequence of what is signed, the
//! algorithm, and the signature.

use super::der::element;
use super::provider;

/// A signed structure, taken apart no further than its signature needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signed<'der> {
    /// What the signature covers: `tbsCertificate` or `tbsCertList`, tag and length included.
    pub(super) message: &'der [u8],
    /// The contents of its `AlgorithmIdentifier`, which is how the crypto provider names it.
    pub(super) algorithm: &'der [u8],
    signature: &'der [u8],
}

/// The outcome of verifying a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verification {
    Valid,
    Invalid,
    /// The key cannot have made a signature of this algorithm, or the algorithm is not supported. Costs no cryptography.
    Mismatch,
}

impl<'der> Signed<'der> {
    /// Reads the outer sequence only: a revocation list may be very long.
    pub(super) fn read(der: &'der [u8]) -> Option<Self> {
        let (contents, _) = element(der)?;
        let (_, rest) = element(contents)?;
        let message = contents.get(..contents.len().checked_sub(rest.len())?)?;
        let (algorithm, signature) = algorithm_and_bits(rest)?;
        Some(Self { message, algorithm, signature })
    }

    /// Verifies the signature with a public key, given as the contents of a `SubjectPublicKeyInfo`.
    pub(super) fn verify(&self, public_key_info: &[u8]) -> Verification {
        let Some((key_algorithm, key)) = algorithm_and_bits(public_key_info) else { return Verification::Mismatch };
        let mut fitting = provider()
            .signature_verification_algorithms
            .all
            .iter()
            .filter(|known| {
                known.signature_alg_id().as_ref() == self.algorithm
                    && known.public_key_alg_id().as_ref() == key_algorithm
            })
            .peekable();
        if fitting.peek().is_none() {
            return Verification::Mismatch;
        }
        match fitting.any(|known| known.verify_signature(key, self.message, self.signature).is_ok()) {
            true => Verification::Valid,
            false => Verification::Invalid,
        }
    }

    /// Whether this is the signature that `verify_signature` of a provider is asked about.
    pub(super) fn is(&self, message: &[u8], signature: &[u8]) -> bool {
        self.message == message && self.signature == signature
    }
}

/// The `subjectPublicKey` bits of the contents of a `SubjectPublicKeyInfo`.
pub(super) fn key_bits(public_key_info: &[u8]) -> Option<&[u8]> {
    algorithm_and_bits(public_key_info).map(|(_, bits)| bits)
}

/// The contents of an `AlgorithmIdentifier` and of the `BIT STRING` behind it.
fn algorithm_and_bits(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (algorithm, rest) = element(der)?;
    match element(rest)?.0.split_first()? {
        (0, bits) => Some((algorithm, bits)),
        _ => None,
    }
}
