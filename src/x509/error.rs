//! What can be wrong with certificates, keys and trust anchors.

use crate::x509::certificate::{Certificate, CertificateError};
use crate::x509::key_kind::{KeyKind, USABLE_KEYS};

/// Why a listener's TLS cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BuildError {
    /// A certificate of the client CA bundle cannot be a trust anchor.
    #[error("cannot be used as a trust anchor: {0}")]
    Anchor(String),
    /// Bytes that are no certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The client trust cannot be built.
    #[error("cannot set up client authentication: {0}")]
    ClientTrust(String),
    /// No certificate at all.
    #[error("no certificate")]
    EmptyChain,
    /// The key is of a kind or size that is not supported.
    #[error("the private key cannot be used: {0}")]
    Key(String),
    /// The key is of a kind or size that neither signs nor verifies here.
    #[error("the private key cannot be used: it is {0}; use {USABLE_KEYS}")]
    KeyKind(KeyKind),
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the certificate {subject}")]
    KeyMismatch {
        /// Subject of the chain's first certificate.
        subject: String,
    },
    /// The key belongs to a certificate further down the chain.
    #[error(
        "the private key belongs to certificate {position} of the file; put that certificate first, then its issuers"
    )]
    LeafNotFirst {
        /// Its number, from 1.
        position: usize,
    },
    /// A certificate that today's clients and TLS libraries do not take.
    #[error(
        "{subject} is an X.509 version {version} certificate; version 3 is required; issue one with \
         openssl x509 -req -extfile FILE, where FILE has a line subjectAltName = DNS:…"
    )]
    Version {
        /// Subject of the certificate.
        subject: String,
        /// Its version.
        version: u32,
    },
    /// A handshake with the certificate fails.
    #[error("handshake self-test failed for certificate {subject}: {error}")]
    SelfTest {
        /// Subject of the certificate.
        subject: String,
        /// What the handshake fails with.
        error: String,
    },
    /// What the key signs is not what its certificate verifies.
    #[error("the private key of {subject} cannot sign: {error}")]
    CannotSign {
        /// Subject of the certificate.
        subject: String,
        /// What signing or verifying fails with.
        error: String,
    },
    /// The system trusts nobody.
    #[error("the system has no root certificates ({why}); install the package ca-certificates, or set ca")]
    NoSystemRoots {
        /// What is known of that.
        why: String,
    },
    /// What is to be a server's name can be none.
    #[error(
        "{name:?} is not a valid server name; set server_name to a host name (xn-- form if it is not ASCII) or an IP address"
    )]
    ServerName {
        /// As it is written.
        name: String,
    },
    /// The provider cannot do what it always could.
    #[error("cannot derive the session ticket keys")]
    Tickets,
    /// Anything else rustls refuses.
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
