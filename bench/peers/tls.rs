//! What the clients offer in a handshake. The same to every target, so that all do the same cryptography.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::fault::Result;
use crate::pki::Pair;

/// What one client brings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) certificate: bool,
    /// X25519MLKEM768 before X25519. Nobody's OpenSSL 3.0 knows it.
    pub(crate) hybrid: bool,
    /// Remember tickets, and use them.
    pub(crate) resume: bool,
}

impl Offer {
    /// TLS 1.3 and AES-128-GCM only. Every call makes a memory for tickets of its own.
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
