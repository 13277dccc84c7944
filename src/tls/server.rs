//! The TLS configuration of a listener: certificates, versions and client authentication.

use std::sync::Arc;

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
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

/// The server-side TLS of a listener. Immutable. Each change creates a new value with new ticket keys, so that a ticket is valid
/// only for the settings under which it was issued.
#[derive(Debug)]
pub struct ServerTls {
    /// The configuration of each handshake is a copy of this one.
    template: ServerConfig,
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
    /// `alpn` lists the protocols that can be negotiated; if it is empty, ALPN is ignored. Without a `ticketer`, the process
    /// generates its own ticket keys.
    ///
    /// # Errors
    /// If `certificates` is empty, a certificate fails its self-test, or rustls rejects a setting.
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
        let resolver = Arc::new(RecordingResolver::new(&selector, &RecordedHello::default()));
        let mut config = build_config(Arc::clone(&verifier), resolver, min_version)?;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.ticketer = match ticketer {
            Some(shared) => Arc::new(shared),
            None => Arc::new(ProcessTicketer::new().map_err(|error| BuildError::Rustls(error.to_string()))?),
        };
        let certificates = certificates.iter().map(|certificate| Arc::new(certificate.leaf().clone())).collect();
        Ok(Self { template: config, min_version, selector, certificates, trust })
    }

    /// The same, without session tickets and sessions that can be resumed.
    #[must_use]
    pub(crate) fn without_resumption(mut self) -> Self {
        self.template.send_tls13_tickets = 0;
        self.template.ticketer = Arc::new(NoTickets);
        self.template.session_storage = Arc::new(NoServerSessionStorage {});
        self
    }

    /// Creates the configuration of one handshake. The audit log needs the requested server name and a rejected client
    /// certificate. rustls keeps neither, so each handshake has its own recording resolver and verifier.
    pub fn handshake(self: &Arc<Self>) -> ServerHandshake {
        let hello = RecordedHello::default();
        let resolver = Arc::new(RecordingResolver::new(&self.selector, &hello));
        let recording = |(verifier, findings)| {
            // rustls cannot replace the verifier of a complete configuration. All other settings of `new` must be copied here.
            let mut config = build_config(verifier, Arc::clone(&resolver) as Arc<_>, self.min_version).ok()?;
            config.alpn_protocols.clone_from(&self.template.alpn_protocols);
            config.ticketer = Arc::clone(&self.template.ticketer);
            config.session_storage = Arc::clone(&self.template.session_storage);
            config.send_tls13_tickets = self.template.send_tls13_tickets;
            Some((config, Some(findings)))
        };
        let (config, findings) = self.trust.recording_verifier().and_then(recording).unwrap_or_else(|| {
            let mut config = self.template.clone();
            config.cert_resolver = Arc::clone(&resolver) as Arc<_>;
            (config, None)
        });
        ServerHandshake { config: Arc::new(config), tls: Arc::clone(self), hello, findings }
    }

    /// The leaf certificates in the order of the configuration.
    pub fn certificates(&self) -> &[Arc<Certificate>] {
        &self.certificates
    }

    /// The verifier of client certificates.
    pub fn trust(&self) -> &ClientVerifier {
        &self.trust
    }
}

/// Issues and accepts no session ticket.
#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// One handshake of a [`ServerTls`].
#[derive(Debug)]
pub struct ServerHandshake {
    config: Arc<ServerConfig>,
    tls: Arc<ServerTls>,
    hello: RecordedHello,
    findings: Option<Arc<HandshakeFindings>>,
}

impl ServerHandshake {
    /// Creates the engine of this handshake.
    ///
    /// # Errors
    /// If rustls rejects the configuration.
    pub fn engine(&self) -> Result<TlsEngine, Error> {
        TlsEngine::new(Arc::clone(&self.config))
    }

    /// The requested host name. `None` before the ClientHello arrives.
    pub fn sni(&self) -> Option<&str> {
        self.hello.get()?.sni.as_deref()
    }

    /// The selected server certificate. `None` before the ClientHello arrives.
    pub fn shown(&self) -> Option<&Arc<Certificate>> {
        self.tls.certificates.get(self.hello.get()?.shown)
    }

    /// The client certificate that this handshake rejected.
    pub fn refused(&self) -> Option<&RefusedClient> {
        self.findings.as_ref()?.refused()
    }

    /// Caches the verified client identity. Call it only after the handshake, when the client has proved that it has the key.
    pub fn remember_client(&self) {
        if let Some(findings) = &self.findings {
            findings.remember();
        }
    }
}

fn build_config(
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
