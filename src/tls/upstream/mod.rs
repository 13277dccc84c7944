//! The TLS configuration towards an upstream: server verification and the client certificate.

pub(crate) mod failure;
#[cfg(test)]
mod tests;
pub(crate) mod verifier;

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, Error};
use time::OffsetDateTime;

use crate::identity::handshake_signature;
use crate::protocol::Verification;
use crate::tls::engine::{Client, TlsEngine};
use crate::tls::upstream::failure::{explain, explain_handshake};
use crate::tls::upstream::verifier::{Anchors, ServerVerifier};
use crate::x509::certificate::Certificate;
use crate::x509::chain::error::ChainError;
use crate::x509::chain::settings::AnchorValidity;
use crate::x509::crypto::provider;
use crate::x509::error::BuildError;
use crate::x509::fingerprint::CertificateFingerprint;
use crate::x509::key_pair::CertifiedKeyPair;

/// The input of [`UpstreamTls::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTlsSettings {
    /// The key `tls`.
    pub verification: Verification,
    /// The trust anchors and pinned certificates.
    pub anchors: Anchors,
    /// The key `anchor_validity`.
    pub anchor_validity: AnchorValidity,
    /// The client certificate.
    pub certificate: Option<CertifiedKeyPair>,
    /// The name for SNI and verification, instead of the dialed host.
    pub server_name: Option<String>,
    /// The offered protocol.
    pub alpn: Alpn,
}

/// The protocol offered by ALPN (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// ALPN is not sent.
    None,
    /// An upstream without ALPN is accepted too.
    Offered(&'static [u8]),
    /// The upstream must confirm the protocol.
    Required(&'static [u8]),
}

/// The client-side TLS of an upstream. Immutable. Each change creates a new value, which does not resume sessions of the old one.
pub struct UpstreamTls {
    config: Arc<ClientConfig>,
    sessions: Arc<ClientSessionMemoryCache>,
    verifier: Arc<ServerVerifier>,
    server_name: Option<ServerName<'static>>,
    alpn: Alpn,
    certificate: Option<Arc<Certificate>>,
    anchors: Vec<Arc<Certificate>>,
}

impl UpstreamTls {
    /// # Errors
    /// If a certificate cannot be a trust anchor, the client key cannot sign, or the server name is invalid.
    pub fn new(parts: &UpstreamTlsSettings) -> Result<Self, BuildError> {
        let verifier = Arc::new(ServerVerifier::new(parts.verification, &parts.anchors, parts.anchor_validity)?);
        let anchors: Result<Vec<_>, _> = match &parts.anchors {
            Anchors::Bundle(bundle) => bundle.iter().map(|der| Certificate::parse(der).map(Arc::new)).collect(),
            Anchors::None | Anchors::System(_) => Ok(Vec::new()),
        };
        if let Some(own) = &parts.certificate {
            handshake_signature::self_test(own.key()).map_err(|error| BuildError::CannotSign {
                subject: own.leaf().subject.clone(),
                error: error.to_string(),
            })?;
        }
        let sessions = Arc::new(ClientSessionMemoryCache::new(MAX_SESSIONS));
        Ok(Self {
            config: Arc::new(build_config(parts, &verifier, &sessions)?),
            sessions,
            verifier,
            server_name: parts.server_name.as_deref().map(server_name).transpose()?,
            alpn: parts.alpn,
            certificate: parts.certificate.as_ref().map(|own| Arc::new(own.leaf().clone())),
            anchors: anchors?,
        })
    }

    /// Prepares a handshake with the upstream at `host`, a host name or an IP address.
    ///
    /// # Errors
    /// [`BuildError::ServerName`] if `host` is not a valid server name and `server_name` is not set.
    pub fn handshake(self: &Arc<Self>, host: &str) -> Result<UpstreamHandshake, BuildError> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => server_name(host)?,
        };
        Ok(UpstreamHandshake { tls: Arc::clone(self), name })
    }

    /// Describes the error of a read; `None` if it is not a TLS error. In TLS 1.3, the handshake completes here before the upstream
    /// verifies the client certificate. The first read then reports the rejection.
    pub fn explain(&self, error: &io::Error) -> Option<String> {
        explain(error, self.certificate.as_deref())
    }

    /// Removes all stored sessions with this host, so that the next handshake is a full one.
    fn forget(&self, name: &ServerName<'static>) {
        self.sessions.remove_tls12_session(name);
        while self.sessions.take_tls13_ticket(name).is_some() {}
    }

    /// The client certificate.
    pub fn certificate(&self) -> Option<&Arc<Certificate>> {
        self.certificate.as_ref()
    }

    /// Whether `ca` contains exactly this certificate.
    pub fn has_in_bundle(&self, der: &CertificateDer<'_>) -> bool {
        let sha256 = CertificateFingerprint::from_der(der);
        self.anchors.iter().any(|anchor| anchor.sha256 == sha256)
    }

    /// For each of [`anchors`](Self::anchors): why no certificate is accepted through it at `now`. `None` if certificates are
    /// accepted, or it is a pinned server certificate.
    pub fn anchor_errors(&self, now: OffsetDateTime) -> Vec<Option<ChainError>> {
        self.anchors.iter().map(|anchor| self.verifier.anchor_error(anchor.sha256.as_str(), now)).collect()
    }

    /// The certificates of `ca`, in the order of the configuration. Empty with the roots of the system.
    pub fn anchors(&self) -> &[Arc<Certificate>] {
        &self.anchors
    }
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("UpstreamTls")
            .field("server_name", &self.server_name)
            .field("alpn", &self.alpn)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// One handshake with an upstream.
#[derive(Debug)]
pub struct UpstreamHandshake {
    tls: Arc<UpstreamTls>,
    name: ServerName<'static>,
}

impl UpstreamHandshake {
    /// Creates the engine of this handshake.
    ///
    /// # Errors
    /// If rustls rejects the configuration.
    pub fn engine(&self) -> Result<TlsEngine<Client>, Error> {
        TlsEngine::connect(Arc::clone(&self.tls.config), self.name.clone())
    }

    /// Verifies the complete handshake: ALPN and the server's chain. rustls does not verify the chain of a resumed session, so it
    /// is verified here at `now`.
    ///
    /// # Errors
    /// Why the upstream is rejected; [`explain`](Self::explain) describes it.
    pub fn verify(&self, engine: &TlsEngine<Client>, now: OffsetDateTime) -> io::Result<()> {
        if let Alpn::Required(protocol) = self.tls.alpn
            && engine.alpn() != Some(protocol)
        {
            let protocol = String::from_utf8_lossy(protocol);
            return Err(refused(Error::General(format!(
                "the upstream did not confirm {protocol:?} by ALPN; it may be too old for negotiation = \"direct\""
            ))));
        }
        match engine.server_chain() {
            [leaf, intermediates @ ..] => {
                let verified = self.tls.verifier.verify(leaf, intermediates, &self.name, now);
                // A full handshake may present a valid certificate, so the session must not be resumed again.
                verified.inspect_err(|_| self.tls.forget(&self.name)).map_err(refused)
            }
            [] => Err(refused(Error::NoCertificatesPresented)),
        }
    }

    /// Describes an error of this handshake or of [`verify`](Self::verify). A timeout is [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn explain(&self, error: &io::Error) -> String {
        explain_handshake(error, self.tls.certificate.as_deref())
    }
}

/// Wraps an error as the TLS stream wraps errors of rustls.
fn refused(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn server_name(name: &str) -> Result<ServerName<'static>, BuildError> {
    ServerName::try_from(name.to_owned()).map_err(|_| BuildError::ServerName { name: name.to_owned() })
}

fn build_config(
    parts: &UpstreamTlsSettings,
    verifier: &Arc<ServerVerifier>,
    sessions: &Arc<ClientSessionMemoryCache>,
) -> Result<ClientConfig, BuildError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| BuildError::Rustls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(verifier) as Arc<_>);
    let mut config = match &parts.certificate {
        Some(own) => {
            let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(Arc::clone(own.key())));
            builder.with_client_cert_resolver(resolver)
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = match parts.alpn {
        Alpn::None => Vec::new(),
        Alpn::Offered(protocol) | Alpn::Required(protocol) => vec![protocol.to_vec()],
    };
    config.resumption = Resumption::store(Arc::clone(sessions) as Arc<_>);
    Ok(config)
}

/// Sessions kept for resumption, for all addresses together. rustls keeps eight per name.
const MAX_SESSIONS: usize = 256;
