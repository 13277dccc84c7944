//! A listener's TLS towards its upstream: whom it takes for the upstream, and by what certificate it is known there.

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

use crate::tls::upstream::verifier::Anchors;

use crate::identity::handshake_signature;
use crate::protocol::Verification;
use crate::tls::engine::{Client, TlsEngine};
use crate::tls::upstream::failure::{explain, explain_handshake};
use crate::tls::upstream::verifier::ServerVerifier;
use crate::x509::certificate::Certificate;
use crate::x509::chain::error::ChainError;
use crate::x509::chain::settings::AnchorValidity;
use crate::x509::crypto::{provider, sha256_hex};
use crate::x509::error::BuildError;
use crate::x509::key_pair::CertifiedKeyPair;

/// What an [`UpstreamTls`] is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTlsSettings {
    /// How much of the upstream's certificate is verified.
    pub verification: Verification,
    /// By whom.
    pub anchors: Anchors,
    /// What the dates of the anchors mean.
    pub anchor_validity: AnchorValidity,
    /// What we are known by, where the upstream asks.
    pub certificate: Option<CertifiedKeyPair>,
    /// The host to ask for and to verify, in place of the one that is dialled.
    pub server_name: Option<String>,
    /// The protocol to offer.
    pub alpn: Alpn,
}

/// Which protocol is offered by ALPN (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// None.
    None,
    /// This one; an upstream that says nothing to that is as good.
    Offered(&'static [u8]),
    /// This one, and nothing else tells that the upstream speaks it.
    Required(&'static [u8]),
}

/// Everything a listener needs to speak TLS with its upstream. Immutable; a change of any part makes a new one, which takes up
/// no session of the old one.
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
    /// Builds the configuration.
    ///
    /// # Errors
    /// When an anchor cannot be one, our key cannot sign, or the server name is none.
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
            config: Arc::new(assemble(parts, &verifier, &sessions)?),
            sessions,
            verifier,
            server_name: parts.server_name.as_deref().map(server_name).transpose()?,
            alpn: parts.alpn,
            certificate: parts.certificate.as_ref().map(|own| Arc::new(own.leaf().clone())),
            anchors: anchors?,
        })
    }

    /// A handshake with the upstream at `host`, a host name or an address.
    ///
    /// # Errors
    /// When that can be no server's name, and the configuration has no other.
    pub fn handshake(self: &Arc<Self>, host: &str) -> Result<UpstreamHandshake, BuildError> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => server_name(host)?,
        };
        Ok(UpstreamHandshake { tls: Arc::clone(self), name })
    }

    /// Says of an error of a read which side refused what, and what to do; nothing where it is not of TLS. In TLS 1.3 an
    /// upstream refuses our certificate after the handshake is over for us, so the first read hears of it.
    pub fn explain(&self, error: &io::Error) -> Option<String> {
        explain(error, self.certificate.as_deref())
    }

    /// Forgets every session with this host, so that the next handshake is a full one.
    fn forget(&self, name: &ServerName<'static>) {
        self.sessions.remove_tls12_session(name);
        while self.sessions.take_tls13_ticket(name).is_some() {}
    }

    /// What we are known by.
    pub fn certificate(&self) -> Option<&Arc<Certificate>> {
        self.certificate.as_ref()
    }

    /// Whether this certificate is in its bundle, byte for byte.
    pub fn has_in_bundle(&self, der: &CertificateDer<'_>) -> bool {
        let sha256 = sha256_hex(der);
        self.anchors.iter().any(|anchor| anchor.sha256 == sha256)
    }

    /// Why each of [`anchors`](Self::anchors) vouches for nobody at this time; nothing where it does, or where it is a server's
    /// own certificate.
    pub fn anchor_errors(&self, now: OffsetDateTime) -> Vec<Option<ChainError>> {
        self.anchors.iter().map(|anchor| self.verifier.anchor_error(&anchor.sha256, now)).collect()
    }

    /// The trust anchors of its bundle, in the order of the configuration; those of the system are not told.
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
    /// The engine of this handshake.
    ///
    /// # Errors
    /// When rustls cannot use the configuration.
    pub fn engine(&self) -> Result<TlsEngine<Client>, Error> {
        TlsEngine::connect(Arc::clone(&self.tls.config), self.name.clone())
    }

    /// Judges what the handshake came to, once it is over. rustls asks nobody about a session that it takes up, so the chain
    /// that this brings back is verified as of now.
    ///
    /// # Errors
    /// Why the upstream is not to be talked to; [`explain`](Self::explain) has the words.
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
                // The upstream may show a better one, if it is not spared that again.
                verified.inspect_err(|_| self.tls.forget(&self.name)).map_err(refused)
            }
            [] => Err(refused(Error::NoCertificatesPresented)),
        }
    }

    /// Says of an error of this handshake, or of [`verify`](Self::verify), which side refused what, and what to do. A handshake that
    /// was given up is a [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn explain(&self, error: &io::Error) -> String {
        explain_handshake(error, self.tls.certificate.as_deref())
    }
}

/// An error like those that the stream has of rustls.
fn refused(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn server_name(name: &str) -> Result<ServerName<'static>, BuildError> {
    ServerName::try_from(name.to_owned()).map_err(|_| BuildError::ServerName { name: name.to_owned() })
}

fn assemble(
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

/// How many sessions are kept to be taken up again, of all addresses together; rustls keeps eight of each name.
const MAX_SESSIONS: usize = 256;
