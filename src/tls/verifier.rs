//! webpki's verifier, with one verdict put right.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::certificate::Certificate;

/// Where a refused certificate is left for the audit.
pub(super) type Refused = Arc<OnceLock<Certificate>>;

/// Verifies a client's chain.
///
/// A certificate whose issuer has the name of a trust anchor but another key, as after a CA was made anew under its old
/// name, is one of an unknown CA: that is what the client and the operator need to hear, not "bad signature".
pub(super) fn verify(
    verifier: &dyn ClientCertVerifier,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<ClientCertVerified, Error> {
    verifier.verify_client_cert(leaf, intermediates, now).map_err(|error| match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        other => other,
    })
}

/// The verifier of one handshake. It remembers the certificate it refuses.
#[derive(Debug)]
pub(super) struct Witness {
    verifier: Arc<dyn ClientCertVerifier>,
    refused: Refused,
}

impl Witness {
    pub(super) fn new(verifier: Arc<dyn ClientCertVerifier>, refused: Refused) -> Self {
        Self { verifier, refused }
    }
}

impl ClientCertVerifier for Witness {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify(&*self.verifier, leaf, intermediates, now).inspect_err(|_| {
            // One that cannot be read has nothing to say.
            if let Ok(facts) = Certificate::parse(leaf) {
                self.refused.get_or_init(|| facts);
            }
        })
    }

    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
