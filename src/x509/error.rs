//! Errors in certificates, keys and trust anchors.

use crate::x509::certificate::{Certificate, CertificateError};
use crate::x509::key_kind::{KeyKind, USABLE_KEYS};

/// Why the TLS configuration of a listener or upstream cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BuildError {
    #[error("cannot be used as a trust anchor: {0}")]
    Anchor(String),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("cannot set up client authentication: {0}")]
    ClientTrust(String),
    #[error("no certificate")]
    EmptyChain,
    /// Any other error of the crypto provider.
    #[error("the private key cannot be used: {0}")]
    Key(String),
    /// The type or size of the key is not supported.
    #[error("the private key cannot be used: it is {0}; use {USABLE_KEYS}")]
    KeyKind(KeyKind),
    #[error("the private key does not belong to the certificate {subject}; replace both files together")]
    KeyMismatch { subject: String },
    #[error(
        "the private key belongs to certificate {position} of the file; put that certificate first, then its issuers"
    )]
    LeafNotFirst {
        /// From 1.
        position: usize,
    },
    /// TLS libraries do not accept certificates of versions 1 and 2.
    #[error(
        "{subject} is an X.509 version {version} certificate; version 3 is required; issue one with \
         openssl x509 -req -extfile FILE, where FILE has a line subjectAltName = DNS:…"
    )]
    Version { subject: String, version: u32 },
    #[error("handshake self-test failed for certificate {subject}: {error}")]
    SelfTest { subject: String, error: String },
    /// The key cannot sign, or its certificate does not verify the signature.
    #[error("the private key of {subject} cannot sign: {error}")]
    CannotSign { subject: String, error: String },
    #[error("the system has no root certificates ({why}); install the package ca-certificates, or set ca")]
    NoSystemRoots { why: String },
    #[error(
        "{name:?} is not a valid server name; set server_name to a host name (xn-- form if it is not ASCII) or an IP address"
    )]
    ServerName { name: String },
    /// An internal error of the crypto provider.
    #[error("cannot derive the session ticket keys")]
    Tickets,
    /// Any other error of rustls.
    #[error("cannot set up TLS: {0}")]
    Rustls(String),
}

impl Certificate {
    /// Checks that the X.509 version is 3. TLS libraries reject peer certificates of earlier versions.
    ///
    /// # Errors
    /// [`BuildError::Version`]
    pub fn require_v3(&self) -> Result<(), BuildError> {
        match self.version {
            3 => Ok(()),
            version => Err(BuildError::Version { subject: self.subject.clone(), version }),
        }
    }
}
