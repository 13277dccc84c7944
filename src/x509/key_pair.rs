//! Our own certificates, with their keys.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::x509::certificate::Certificate;
use crate::x509::crypto::provider;
use crate::x509::error::BuildError;
use crate::x509::key_kind::KeyKind;
use crate::x509::raw_certificate::RawCertificate;

/// A certificate chain with its key, known to belong together: what clients are shown, or an upstream that asks for it.
#[derive(Clone, Debug)]
pub struct CertifiedKeyPair {
    key: Arc<CertifiedKey>,
    leaf: Certificate,
}

impl CertifiedKeyPair {
    /// Joins a chain, leaf first, with its private key.
    ///
    /// # Errors
    /// When they do not belong together or cannot be used.
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
        // Compared byte for byte: whether the certificate can be verified is another question.
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

    /// The certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// What rustls signs with.
    pub(crate) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The facts of the leaf.
    pub fn leaf(&self) -> &Certificate {
        &self.leaf
    }
}

/// The chain says it all: the key is the one that belongs to its leaf.
impl PartialEq for CertifiedKeyPair {
    fn eq(&self, other: &Self) -> bool {
        self.chain() == other.chain()
    }
}

impl Eq for CertifiedKeyPair {}
