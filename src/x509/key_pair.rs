//! A configured certificate chain with its private key.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::x509::certificate::Certificate;
use crate::x509::crypto::provider;
use crate::x509::error::BuildError;
use crate::x509::key_kind::KeyKind;
use crate::x509::raw_certificate::RawCertificate;

/// A certificate chain with the private key of its leaf: a server certificate, or the client certificate for an upstream.
#[derive(Clone, Debug)]
pub struct CertifiedKeyPair {
    key: Arc<CertifiedKey>,
    leaf: Certificate,
}

impl CertifiedKeyPair {
    /// `chain` has the leaf first.
    ///
    /// # Errors
    /// If chain and key do not belong together, or one of them cannot be used.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, BuildError> {
        let leaf_der = chain.first().ok_or(BuildError::EmptyChain)?;
        let leaf = Certificate::parse(leaf_der)?;
        leaf.require_v3()?;
        for rest in chain.iter().skip(1) {
            Certificate::parse(rest)?;
        }
        let kind = KeyKind::of_private(&key);
        let key = provider().key_provider.load_private_key(key).map_err(|error| match kind {
            Some(kind) if !kind.is_supported() => BuildError::KeyKind(kind),
            Some(_) | None => BuildError::Key(error.to_string()),
        })?;
        // Compared byte by byte, so that it works for certificates that webpki cannot parse.
        let public_key = key.public_key().ok_or_else(|| BuildError::Key("it has no public key".to_owned()))?;
        let belongs =
            |der: &CertificateDer<'_>| RawCertificate::read(der).is_some_and(|raw| raw.has_public_key(&public_key));
        if !belongs(leaf_der) {
            return Err(match chain.iter().skip(1).position(belongs) {
                Some(index) => BuildError::LeafNotFirst { position: index + 2 },
                None => BuildError::KeyMismatch { subject: leaf.subject },
            });
        }
        Ok(Self { key: Arc::new(CertifiedKey::new(chain, key)), leaf })
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    pub(crate) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    pub fn leaf(&self) -> &Certificate {
        &self.leaf
    }
}

/// Compares the chains only: the key always belongs to the leaf.
impl PartialEq for CertifiedKeyPair {
    fn eq(&self, other: &Self) -> bool {
        self.chain() == other.chain()
    }
}

impl Eq for CertifiedKeyPair {}
