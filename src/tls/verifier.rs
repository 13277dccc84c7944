//! webpki's verifier, with one verdict put right and good verdicts remembered.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::certificate::Certificate;
use super::verified::{Verified, digest};

/// Where a refused certificate is left for the audit.
pub(super) type Refused = Arc<OnceLock<Certificate>>;

/// Verifies clients' chains against one set of trust anchors, which never changes.
#[derive(Debug)]
pub(super) struct ChainVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    verified: Verified,
}

impl ChainVerifier {
    pub(super) fn new(webpki: Arc<dyn ClientCertVerifier>) -> Self {
        Self { webpki, verified: Verified::default() }
    }

    /// Verifies the chain of a client that has shown to have its key, and names the holder. A good verdict is remembered.
    pub(super) fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Arc<Certificate>, Error> {
        let chain = digest(leaf, intermediates);
        if let Some(facts) = self.verified.recall(&chain, now) {
            return Ok(facts);
        }
        self.ask_webpki(leaf, intermediates, now)?;
        let facts = Arc::new(Certificate::parse(leaf).map_err(|_| CertificateError::BadEncoding)?);
        self.verified.remember(chain, &facts, intermediates);
        Ok(facts)
    }

    /// Verifies a chain during the handshake. Nobody has shown to have its key yet, so the verdict is not remembered:
    /// otherwise who only knows a good certificate could fill the memory with it and ever new ones behind it.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        match self.verified.recall(&digest(leaf, intermediates), now) {
            Some(_) => Ok(()),
            None => self.ask_webpki(leaf, intermediates, now),
        }
    }

    /// A certificate whose issuer has the name of a trust anchor but another key, as after a CA was made anew under its old
    /// name, is one of an unknown CA: that is what the client and the operator need to hear, not "bad signature".
    fn ask_webpki(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let verdict = self.webpki.verify_client_cert(leaf, intermediates, now).map_err(|error| match error {
            Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
            other => other,
        });
        verdict.map(|_| ())
    }

    /// webpki's own, for what is no question of trust.
    pub(super) fn webpki(&self) -> &Arc<dyn ClientCertVerifier> {
        &self.webpki
    }
}

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
        match self.verifier.verify(leaf, intermediates, now) {
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
        self.verifier.webpki().offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.webpki().client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.webpki().root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.webpki().verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.webpki().verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.webpki().supported_verify_schemes()
    }
}
