//! What can be wrong with certificates, keys and trust anchors.

use super::certificate::CertificateError;

/// Why a listener's TLS cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BuildError {
    /// A certificate of the client CA bundle cannot be a trust anchor.
    #[error("cannot be used as a trust anchor: {0}")]
    Anchor(rustls::Error),
    /// Bytes that are no certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The client trust cannot be built.
    #[error("client trust cannot be built: {0}")]
    ClientTrust(String),
    /// No certificate at all.
    #[error("there is no server certificate")]
    EmptyChain,
    /// The key is of a kind or size that is not supported.
    #[error("the private key cannot be used: {0}")]
    Key(String),
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the certificate {subject}")]
    KeyMismatch {
        /// Subject of the chain's first certificate.
        subject: String,
    },
    /// The key belongs to a certificate further down the chain.
    #[error(
        "the private key belongs to certificate {position} of the file; the server's own certificate must come first, then its issuers"
    )]
    LeafNotFirst {
        /// Its number, from 1.
        position: usize,
    },
    /// A certificate that today's clients and TLS libraries do not take.
    #[error(
        "{subject} is an X.509 version {version} certificate, and version 3 is needed; \
         openssl x509 -req makes one with -extfile and a line subjectAltName = DNS:…"
    )]
    Version {
        /// Subject of the certificate.
        subject: String,
        /// Its version.
        version: u32,
    },
    /// A handshake with the certificate fails.
    #[error("no client could shake hands with {subject}: {error}")]
    Rehearsal {
        /// Subject of the certificate.
        subject: String,
        /// What the handshake fails with.
        error: String,
    },
    /// The provider cannot do what it always could.
    #[error("the keys of session tickets cannot be derived")]
    Tickets,
    /// Anything else rustls refuses.
    #[error("TLS cannot be set up: {0}")]
    Rustls(String),
}
