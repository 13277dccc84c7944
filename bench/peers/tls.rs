//! The TLS parameters of the clients. They are the same for every target, so that all do the same cryptography.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::fault::Result;
use crate::pki::Pair;

/// The TLS options of one client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) certificate: bool,
    /// Offer X25519MLKEM768 before X25519. OpenSSL 3.0 does not support it.
    pub(crate) hybrid: bool,
    /// Resume sessions with tickets.
    pub(crate) resume: bool,
}

impl Offer {
    /// TLS 1.3 with AES-128-GCM only. Every call creates a separate ticket cache.
    pub(crate) fn config(self, ca: &CertificateDer<'static>, client: Option<&Pair>) -> Result<Arc<ClientConfig>> {
        let mut groups: Vec<&'static dyn SupportedKxGroup> = vec![aws_lc_rs::kx_group::X25519];
        if self.hybrid {
            groups.insert(0, aws_lc_rs::kx_group::X25519MLKEM768);
        }
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: groups,
            ..aws_lc_rs::default_provider()
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots);
        let mut config = match client.filter(|_| self.certificate) {
            Some(client) => builder.with_client_auth_cert(vec![client.der.clone()], client.key_der.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        config.resumption = if self.resume { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        Ok(Arc::new(config))
    }
}
