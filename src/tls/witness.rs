//! Where rustls asks about a client's certificate, and what is remembered of the answer.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::certificate::Certificate;
use super::provider;
use super::verifier::{ChainVerifier, moment};

/// Where a refused certificate is left for the audit.
pub(super) type Refused = Arc<OnceLock<Certificate>>;

/// The verifier of one handshake. It remembers the certificate it refuses.
#[derive(Debug)]
pub(super) struct RefusalWitness {
    verifier: Arc<ChainVerifier>,
    refused: Refused,
}

impl RefusalWitness {
    pub(super) fn new(verifier: Arc<ChainVerifier>, refused: Refused) -> Self {
        Self { verifier, refused }
    }
}

impl ClientCertVerifier for RefusalWitness {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.verifier.verify(leaf, intermediates, moment(now)?) {
            Ok(()) => Ok(ClientCertVerified::assertion()),
            Err(error) => {
                // One that cannot be read has nothing to say.
                if let Ok(facts) = Certificate::parse(leaf) {
                    self.refused.get_or_init(|| facts);
                }
                Err(error)
            }
        }
    }

    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.verifier.hints
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
