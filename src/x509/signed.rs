//! Signatures on certificates and revocation lists (RFC 5280 §4.1 and §5.1). Both are a sequence of the signed part, the
//! algorithm and the signature.

use rustls::pki_types::SignatureVerificationAlgorithm;

use crate::x509::crypto::provider;
use crate::x509::der::element;

/// A signed structure, parsed only as far as verification needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signed<'der> {
    /// The signed part: `tbsCertificate` or `tbsCertList` with tag and length.
    pub(crate) message: &'der [u8],
    /// The contents of the `AlgorithmIdentifier`, as the crypto provider compares it.
    pub(crate) algorithm: &'der [u8],
    pub(crate) signature: &'der [u8],
}

impl<'der> Signed<'der> {
    /// Parses only the outer sequence, because a revocation list may be large.
    pub(crate) fn read(der: &'der [u8]) -> Option<Self> {
        let (contents, _) = element(der)?;
        let (_, rest) = element(contents)?;
        let message = contents.get(..contents.len().checked_sub(rest.len())?)?;
        let (algorithm, signature) = algorithm_and_bits(rest)?;
        Some(Self { message, algorithm, signature })
    }

    /// Whether the key, the contents of a `SubjectPublicKeyInfo`, is supported and fits the signature algorithm.
    pub(crate) fn fits(&self, key_info: &[u8]) -> bool {
        self.algorithms(key_info).next().is_some()
    }

    /// Verifies the signature with the key, the contents of a `SubjectPublicKeyInfo`.
    pub(crate) fn verify(&self, key_info: &[u8]) -> bool {
        let Some(key) = key_bits(key_info) else { return false };
        self.algorithms(key_info).any(|known| known.verify_signature(key, self.message, self.signature).is_ok())
    }

    fn algorithms(&self, key_info: &[u8]) -> impl Iterator<Item = &'static dyn SignatureVerificationAlgorithm> {
        let key_algorithm = algorithm_and_bits(key_info).map(|(algorithm, _)| algorithm);
        let known = provider().signature_verification_algorithms.all.iter().copied();
        known.filter(move |known| {
            known.signature_alg_id().as_ref() == self.algorithm
                && Some(known.public_key_alg_id().as_ref()) == key_algorithm
        })
    }

    /// Compares with the arguments of [`SignatureVerificationAlgorithm::verify_signature`].
    pub(crate) fn is(&self, message: &[u8], signature: &[u8]) -> bool {
        self.message == message && self.signature == signature
    }
}

/// The `subjectPublicKey` bits of the contents of a `SubjectPublicKeyInfo`.
pub(crate) fn key_bits(public_key_info: &[u8]) -> Option<&[u8]> {
    algorithm_and_bits(public_key_info).map(|(_, bits)| bits)
}

/// The contents of an `AlgorithmIdentifier` and of the `BIT STRING` behind it.
pub(crate) fn algorithm_and_bits(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (algorithm, rest) = element(der)?;
    match element(rest)?.0.split_first()? {
        (0, bits) => Some((algorithm, bits)),
        _ => None,
    }
}
