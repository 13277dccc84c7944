//! Verifies handshake signatures, also by certificates that webpki cannot parse: of version 1, or with an unknown critical
//! extension. A pinned peer, or one whose certificate is not verified, may have such a certificate. It must still prove that it
//! has the key.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme};
use x509_parser::asn1_rs::{Any, FromDer as _};
use x509_parser::certificate::X509Certificate;

use crate::x509::crypto::provider;

pub(crate) fn verify_tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if ParsedCertificate::try_from(certificate).is_ok() {
        return verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms);
    }
    verify(message, certificate, signed.scheme, signed.signature()).map(|()| HandshakeSignatureValid::assertion())
}

pub(crate) fn verify_tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = provider().signature_verification_algorithms;
    if ParsedCertificate::try_from(certificate).is_ok() {
        return verify_tls13_signature(message, certificate, signed, &algorithms);
    }
    let certificate = parse(certificate)?;
    let key = SubjectPublicKeyInfoDer::from(certificate.public_key().raw);
    verify_tls13_signature_with_raw_key(message, &key, signed, &algorithms)
}

/// The methods of a rustls client or server verifier that verify handshake signatures. Without arguments they support the schemes
/// of the provider.
macro_rules! verify_handshake_signatures {
    () => {
        $crate::identity::handshake_signature::verify_handshake_signatures!(
            self => $crate::x509::crypto::provider().signature_verification_algorithms.supported_schemes()
        );
    };
    ($self:ident => $schemes:expr) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &rustls::pki_types::CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            $crate::identity::handshake_signature::verify_tls12(message, certificate, signed)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &rustls::pki_types::CertificateDer<'_>,
            signed: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            $crate::identity::handshake_signature::verify_tls13(message, certificate, signed)
        }

        fn supported_verify_schemes(&$self) -> Vec<rustls::SignatureScheme> {
            $schemes
        }
    };
}
pub(crate) use verify_handshake_signatures;

/// Signs a message with the key, and verifies it with the certificate.
pub(crate) fn self_test(pair: &CertifiedKey) -> Result<(), Error> {
    const MESSAGE: &[u8] = b"self-test";
    let schemes = provider().signature_verification_algorithms.supported_schemes();
    let signer = pair.key.choose_scheme(&schemes);
    let signer = signer.ok_or_else(|| Error::General("the key supports no TLS signature scheme".to_owned()))?;
    verify(MESSAGE, pair.end_entity_cert()?, signer.scheme(), &signer.sign(MESSAGE)?)
}

/// Uses only the key of the certificate; ignores all other fields.
fn verify(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    scheme: SignatureScheme,
    signature: &[u8],
) -> Result<(), Error> {
    let certificate = parse(certificate)?;
    let key = certificate.public_key();
    let bad = |_| Error::from(CertificateError::BadEncoding);
    // SubjectPublicKeyInfo is a sequence; its first element is the AlgorithmIdentifier.
    let (_, information) = Any::from_der(key.raw).map_err(bad)?;
    let (_, algorithm) = Any::from_der(information.data).map_err(bad)?;
    let known = provider().signature_verification_algorithms.mapping;
    let mut of_scheme = known.iter().filter(|(known, _)| *known == scheme).flat_map(|(_, algorithms)| *algorithms);
    let mut fits = false;
    let verified = of_scheme.any(|candidate| {
        let fitting = candidate.public_key_alg_id().as_ref() == algorithm.data;
        fits |= fitting;
        fitting && candidate.verify_signature(&key.subject_public_key.data, message, signature).is_ok()
    });
    match (verified, fits) {
        (true, _) => Ok(()),
        (false, true) => Err(CertificateError::BadSignature.into()),
        (false, false) => Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()),
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}
