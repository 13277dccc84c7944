//! A listener's side of TLS: its certificates, its versions, its trust in clients, as one rustls configuration.

use std::sync::Arc;

use rustls::server::ResolvesServerCert;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{Error, ServerConfig, SupportedProtocolVersion};

use crate::identity::client_verifier::ClientVerifier;
use crate::identity::recording::{HandshakeFindings, RefusedClient};
use crate::protocol::MinTlsVersion;
use crate::tls::cert_selector::{CertificateSelector, RecordedHello, RecordingResolver, SelectedCertificate};
use crate::tls::engine::TlsEngine;
use crate::tls::process_tickets::ProcessTicketer;
use crate::tls::self_test::self_test;
use crate::tls::tickets::SharedTicketer;
use crate::x509::certificate::Certificate;
use crate::x509::crypto::provider;
use crate::x509::error::BuildError;
use crate::x509::key_pair::CertifiedKeyPair;

/// Everything a listener needs to speak TLS. Immutable; a change of any part makes a new one, with fresh session tickets,
/// so that no ticket outlives the terms it was issued under.
#[derive(Debug)]
pub struct ServerTls {
    /// From which each handshake's own configuration is made.
    pattern: ServerConfig,
    min_version: MinTlsVersion,
    selector: Arc<CertificateSelector>,
    certificates: Vec<Arc<Certificate>>,
    trust: ClientVerifier,
}

fn versions(min_version: MinTlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match min_version {
        MinTlsVersion::Tls12 => ALL_VERSIONS,
        MinTlsVersion::Tls13 => TLS13_ONLY,
    }
}

static ALL_VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
static TLS13_ONLY: &[&SupportedProtocolVersion] = &[&TLS13];

impl ServerTls {
    /// Builds the configuration. `alpn` is what may be negotiated; where it is empty a client's offer is passed over. Without
    /// a `ticketer` there is one with keys of its own, which nobody else ever has.
    ///
    /// # Errors
    /// When no certificate is given or rustls refuses a part.
    pub fn new(
        certificates: &[CertifiedKeyPair],
        trust: ClientVerifier,
        min_version: MinTlsVersion,
        alpn: &[&[u8]],
        ticketer: Option<SharedTicketer>,
    ) -> Result<Self, BuildError> {
        if certificates.is_empty() {
            return Err(BuildError::EmptyChain);
        }
        let verifier = trust.verifier();
        let hints = verifier.offer_client_auth().then(|| verifier.root_hint_subjects());
        for certificate in certificates {
            self_test(certificate.key(), versions(min_version), hints).map_err(|error| BuildError::SelfTest {
                subject: certificate.leaf().subject.clone(),
                error: error.to_string(),
            })?;
        }
        let choices = certificates
            .iter()
            .map(|certificate| SelectedCertificate {
                key: Arc::clone(certificate.key()),
                names: certificate.leaf().dns_names().collect(),
            })
            .collect();
        let selector = Arc::new(CertificateSelector::new(choices));
        let unheard = Arc::new(RecordingResolver::new(&selector, &RecordedHello::default()));
        let mut config = assemble(Arc::clone(&verifier), unheard, min_version)?;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.ticketer = match ticketer {
            Some(shared) => Arc::new(shared),
            None => Arc::new(ProcessTicketer::new().map_err(|error| BuildError::Rustls(error.to_string()))?),
        };
        let certificates = certificates.iter().map(|certificate| Arc::new(certificate.leaf().clone())).collect();
        Ok(Self { pattern: config, min_version, selector, certificates, trust })
    }

    /// What one handshake needs. rustls forgets what a client asked for and the certificate it refuses, and the audit wants
    /// to name both; so each handshake has a resolver and a verifier of its own that remember.
    pub fn handshake(self: &Arc<Self>) -> ServerHandshake {
        let heard = RecordedHello::default();
        let resolver = Arc::new(RecordingResolver::new(&self.selector, &heard));
        let recording = |(verifier, findings)| {
            // rustls lets nobody exchange the verifier of a finished configuration. Whatever `new` sets besides has to be
            // carried over here.
            let mut config = assemble(verifier, Arc::clone(&resolver) as Arc<_>, self.min_version).ok()?;
            config.alpn_protocols.clone_from(&self.pattern.alpn_protocols);
            config.ticketer = Arc::clone(&self.pattern.ticketer);
            config.session_storage = Arc::clone(&self.pattern.session_storage);
            Some((config, Some(findings)))
        };
        let (config, findings) = self.trust.recording_verifier().and_then(recording).unwrap_or_else(|| {
            let mut config = self.pattern.clone();
            config.cert_resolver = Arc::clone(&resolver) as Arc<_>;
            (config, None)
        });
        ServerHandshake { config: Arc::new(config), tls: Arc::clone(self), heard, findings }
    }

    /// The leaves of all certificates, in the order of the configuration.
    pub fn certificates(&self) -> &[Arc<Certificate>] {
        &self.certificates
    }

    /// Which clients are accepted.
    pub fn trust(&self) -> &ClientVerifier {
        &self.trust
    }
}

/// One handshake's view of a [`ServerTls`].
#[derive(Debug)]
pub struct ServerHandshake {
    config: Arc<ServerConfig>,
    tls: Arc<ServerTls>,
    heard: RecordedHello,
    findings: Option<Arc<HandshakeFindings>>,
}

impl ServerHandshake {
    /// The engine of this handshake.
    ///
    /// # Errors
    /// When rustls cannot use the configuration.
    pub fn engine(&self) -> Result<TlsEngine, Error> {
        TlsEngine::new(Arc::clone(&self.config))
    }

    /// The host name the client asked for, once its hello has come.
    pub fn sni(&self) -> Option<&str> {
        self.heard.get()?.sni.as_deref()
    }

    /// The certificate the client was shown, once its hello has come.
    pub fn shown(&self) -> Option<&Arc<Certificate>> {
        self.tls.certificates.get(self.heard.get()?.shown)
    }

    /// The client certificate that was refused in this handshake, if one was.
    pub fn refused(&self) -> Option<&RefusedClient> {
        self.findings.as_ref()?.refused()
    }

    /// To be called once the handshake is over, and the client has proved to have its key: what was found out about its
    /// certificate need not be found out again.
    pub fn remember_client(&self) {
        if let Some(findings) = &self.findings {
            findings.remember();
        }
    }
}

fn assemble(
    verifier: Arc<dyn ClientCertVerifier>,
    resolver: Arc<dyn ResolvesServerCert>,
    min_version: MinTlsVersion,
) -> Result<ServerConfig, BuildError> {
    Ok(ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(min_version))
        .map_err(|error| BuildError::Rustls(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver))
}
