//! Where rustls asks about a client's certificate, and what is remembered of the answer.

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

/// What a handshake's verifier found out about the client's certificate, for the audit and for what comes after the
/// handshake.
#[derive(Debug, Default)]
pub(crate) struct HandshakeFindings {
    verified: OnceLock<(Arc<ChainVerifier>, Arc<VerifiedIdentity>)>,
    refused: OnceLock<RefusedClient>,
}

/// A client certificate that was refused, and why.
#[derive(Clone, Debug)]
pub struct RefusedClient {
    /// Its facts; nothing of one that cannot be read, or takes long to be.
    pub certificate: Option<Certificate>,
    /// What is wrong with it.
    pub error: ChainError,
}

impl HandshakeFindings {
    pub(crate) fn refused(&self) -> Option<&RefusedClient> {
        self.refused.get()
    }

    /// Remembers the verdict for the client's next handshake, and for the questions after this one. To be called once the
    /// handshake is over, and the client has proved to have the key.
    pub(crate) fn remember(&self) {
        if let Some((verifier, identity)) = self.verified.get() {
            verifier.remember(identity);
        }
    }
}

/// The verifier of one handshake. It records what it finds.
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
                // Anybody can send it, so it costs no more to name than it is worth.
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
