//! Verification of signatures on long structures from a digest that is computed once.
//!
//! A revocation list may have megabytes, and clients choose the keys that it is verified with. With the digest, each key costs
//! one signature check, regardless of the length of the list.

use aws_lc_rs::digest::{self, Digest, SHA256, SHA384, SHA512};
use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rustls::pki_types::{AlgorithmIdentifier, alg_id};

use crate::x509::signed::{Signed, algorithm_and_bits, key_bits};

/// The digest of what a signature covers.
#[derive(Clone, Debug)]
pub(crate) struct Prehash(Digest);

impl Prehash {
    /// `None` if the algorithm signs the whole message, as Ed25519 does.
    pub(crate) fn new(signed: &Signed<'_>) -> Option<Self> {
        let (_, _, _, hash) = ALGORITHMS.iter().find(|(_, id, ..)| id.as_ref() == signed.algorithm)?;
        Some(Self(digest::digest(hash, signed.message)))
    }

    /// Whether a key, the contents of a `SubjectPublicKeyInfo`, made the signature.
    pub(crate) fn is_signed_with(&self, signed: &Signed<'_>, key_info: &[u8]) -> bool {
        let (Some(key), Some((kind, _))) = (key_bits(key_info), algorithm_and_bits(key_info)) else { return false };
        let mut fitting = ALGORITHMS
            .iter()
            .filter(|(key_id, id, ..)| key_id.as_ref() == kind && id.as_ref() == signed.algorithm)
            .map(|(_, _, algorithm, _)| *algorithm);
        fitting.any(|algorithm| UnparsedPublicKey::new(algorithm, key).verify_digest(&self.0, signed.signature).is_ok())
    }
}

type Row = (AlgorithmIdentifier, AlgorithmIdentifier, &'static dyn VerificationAlgorithm, &'static digest::Algorithm);

/// Algorithms of the crypto provider: key, signature, verification, digest.
static ALGORITHMS: [Row; 15] = [
    (alg_id::ECDSA_P256, alg_id::ECDSA_SHA256, &signature::ECDSA_P256_SHA256_ASN1, &SHA256),
    (alg_id::ECDSA_P256, alg_id::ECDSA_SHA384, &signature::ECDSA_P256_SHA384_ASN1, &SHA384),
    (alg_id::ECDSA_P256, alg_id::ECDSA_SHA512, &signature::ECDSA_P256_SHA512_ASN1, &SHA512),
    (alg_id::ECDSA_P384, alg_id::ECDSA_SHA256, &signature::ECDSA_P384_SHA256_ASN1, &SHA256),
    (alg_id::ECDSA_P384, alg_id::ECDSA_SHA384, &signature::ECDSA_P384_SHA384_ASN1, &SHA384),
    (alg_id::ECDSA_P384, alg_id::ECDSA_SHA512, &signature::ECDSA_P384_SHA512_ASN1, &SHA512),
    (alg_id::ECDSA_P521, alg_id::ECDSA_SHA256, &signature::ECDSA_P521_SHA256_ASN1, &SHA256),
    (alg_id::ECDSA_P521, alg_id::ECDSA_SHA384, &signature::ECDSA_P521_SHA384_ASN1, &SHA384),
    (alg_id::ECDSA_P521, alg_id::ECDSA_SHA512, &signature::ECDSA_P521_SHA512_ASN1, &SHA512),
    (alg_id::RSA_ENCRYPTION, alg_id::RSA_PKCS1_SHA256, &signature::RSA_PKCS1_2048_8192_SHA256, &SHA256),
    (alg_id::RSA_ENCRYPTION, alg_id::RSA_PKCS1_SHA384, &signature::RSA_PKCS1_2048_8192_SHA384, &SHA384),
    (alg_id::RSA_ENCRYPTION, alg_id::RSA_PKCS1_SHA512, &signature::RSA_PKCS1_2048_8192_SHA512, &SHA512),
    (alg_id::RSA_ENCRYPTION, alg_id::RSA_PSS_SHA256, &signature::RSA_PSS_2048_8192_SHA256, &SHA256),
    (alg_id::RSA_ENCRYPTION, alg_id::RSA_PSS_SHA384, &signature::RSA_PSS_2048_8192_SHA384, &SHA384),
    (alg_id::RSA_ENCRYPTION, alg_id::RSA_PSS_SHA512, &signature::RSA_PSS_2048_8192_SHA512, &SHA512),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::crypto::provider;

    #[test]
    fn table_holds_every_algorithm_of_the_provider_that_signs_a_digest() {
        for known in provider().signature_verification_algorithms.all {
            let (key, id) = (known.public_key_alg_id(), known.signature_alg_id());
            let is_listed = ALGORITHMS.iter().any(|(listed_key, listed, ..)| (*listed_key, *listed) == (key, id));
            // Ed25519 and ML-DSA, which have one identifier for key and signature.
            let takes_message = key == id;
            // RSA without parameters (RFC 4055 tolerates it) is verified from the whole message.
            let has_no_parameters = key == alg_id::RSA_ENCRYPTION && id.as_ref().len() == 11;
            assert!(is_listed || takes_message || has_no_parameters, "{known:?}");
        }
    }
}
