//! The client certificate verifier of one handshake, which records its result.

use std::sync::{Arc, OnceLock};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DistinguishedName, Error};

use crate::identity::handshake_signature::verify_handshake_signatures;
use crate::identity::verified::VerifiedIdentity;
use crate::identity::verifier::ChainVerifier;
use crate::x509::certificate::Certificate;
use crate::x509::chain::error::ChainError;
use crate::x509::clock::moment;
use crate::x509::raw_certificate::RawCertificate;

/// The recorded result, for the audit log and the checks after the handshake.
#[derive(Debug, Default)]
pub(crate) struct HandshakeFindings {
    verified: OnceLock<(Arc<ChainVerifier>, Arc<VerifiedIdentity>)>,
    refused: OnceLock<RefusedClient>,
}

/// A rejected client certificate.
#[derive(Clone, Debug)]
pub struct RefusedClient {
    /// `None` if it cannot be parsed, or is too large to parse for an unauthenticated peer.
    pub certificate: Option<Certificate>,
    pub error: ChainError,
}

impl HandshakeFindings {
    pub(crate) fn refused(&self) -> Option<&RefusedClient> {
        self.refused.get()
    }

    /// Caches the verified identity. Call it only after the handshake, when the client has proved that it has the key.
    pub(crate) fn remember(&self) {
        if let Some((verifier, identity)) = self.verified.get() {
            verifier.remember(identity);
        }
    }
}

/// Verifies with a shared [`ChainVerifier`] and records the result.
#[derive(Debug)]
pub(crate) struct RecordingVerifier {
    verifier: Arc<ChainVerifier>,
    findings: Arc<HandshakeFindings>,
}

impl RecordingVerifier {
    pub(crate) fn new(verifier: Arc<ChainVerifier>, findings: Arc<HandshakeFindings>) -> Self {
        Self { verifier, findings }
    }
}

impl ClientCertVerifier for RecordingVerifier {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.verifier.verify(leaf, intermediates, moment(now)?) {
            Ok(identity) => {
                self.findings.verified.get_or_init(|| (Arc::clone(&self.verifier), identity));
                Ok(ClientCertVerified::assertion())
            }
            Err(error) => {
                // Unauthenticated peers can send it, so a large certificate is not parsed for the log.
                let is_short = RawCertificate::read(leaf).is_some_and(|raw| !raw.is_long_to_read());
                let certificate = if is_short { Certificate::parse(leaf).ok() } else { None };
                self.findings.refused.get_or_init(|| RefusedClient { certificate, error: error.clone() });
                Err(error.into())
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

    verify_handshake_signatures!();
}
