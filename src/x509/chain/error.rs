//! Why a peer's certificate is rejected.

use rustls::{CertificateError, Error, OtherError};
use std::sync::Arc;
use time::OffsetDateTime;

use crate::timestamp;
use crate::x509::ca_properties::CaFault;
use crate::x509::chain::path::{MAX_FAILED_CHECKS, MAX_SENT};
use crate::x509::raw_certificate::{MAX_ELEMENTS, MAX_LENGTH};

/// A fault of a certificate chain, or of its path to a trust anchor. Subjects are RFC 4514 text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainError {
    AnchorExpired {
        subject: String,
        /// One second after notAfter.
        at: OffsetDateTime,
    },
    AnchorNotYetValid {
        subject: String,
        /// notBefore.
        from: OffsetDateTime,
    },
    /// A CA on the path must not issue certificates, or not for this purpose.
    Ca {
        subject: String,
        fault: CaFault,
    },
    /// The certificate, or an intermediate, is past its notAfter.
    Expired,
    Malformed,
    /// The certificate, or an intermediate, is before its notBefore.
    NotYetValid,
    /// A CA on the path allows fewer CAs below it (basicConstraints pathLenConstraint).
    PathLength {
        /// The subject of the trust anchor.
        anchor: String,
    },
    /// A revocation list contains the certificate, or an intermediate.
    Revoked,
    /// The revocation list is past its nextUpdate, and `crl_expired = "refuse"`.
    RevocationListExpired,
    /// The CA has revocation lists, but none covers a certificate of the path.
    RevocationUnknown {
        /// The subject of the certificate that is not covered.
        subject: String,
    },
    /// The peer's certificate exceeds [`MAX_ELEMENTS`] or [`MAX_LENGTH`].
    TooLarge,
    /// The peer sent more than [`MAX_SENT`] certificates besides its own.
    TooManyCertificates,
    /// The search for a path reached [`MAX_FAILED_CHECKS`].
    TooManyChecks,
    /// Name constraints would need too many comparisons.
    TooManyNames,
    /// No path leads to a trust anchor.
    UnknownIssuer,
    /// A name in the certificate is outside the name constraints of a CA on the path.
    NameConstraints,
    /// The peer's own certificate has CA:TRUE.
    PeerIsCa,
    /// The key usage does not include digitalSignature.
    KeyUsage,
    /// The extended key usage lacks the purpose.
    Purpose {
        /// `clientAuth` or `serverAuth`.
        lacks: &'static str,
    },
    /// A certificate on the path has a critical extension that is not supported.
    CriticalExtension {
        subject: String,
        /// Its name in RFC 5280, or its object identifier.
        extension: String,
    },
    /// A certificate on the path uses an unsupported signature algorithm.
    SignatureAlgorithm,
    /// A certificate on the path is not of X.509 version 3.
    Version,
    /// Any other error of webpki.
    Unverifiable,
}

impl ChainError {
    /// Revocation is final: no other certificate that the peer sends can change it.
    pub fn is_revocation(&self) -> bool {
        matches!(self, Self::Revoked)
    }
}

impl From<webpki::Error> for ChainError {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::BadDer | E::BadDerTime | E::TrailingData(_) | E::ExtensionValueInvalid | E::MalformedExtensions => {
                Self::Malformed
            }
            E::CaUsedAsEndEntity => Self::PeerIsCa,
            E::CertExpired { .. } | E::InvalidCertValidity => Self::Expired,
            E::CertNotValidYet { .. } => Self::NotYetValid,
            E::CertRevoked => Self::Revoked,
            E::NameConstraintViolation
            | E::InvalidNetworkMaskConstraint
            | E::MalformedNameConstraint
            | E::MaximumNameConstraintComparisonsExceeded
            | E::UnsupportedNameType => Self::NameConstraints,
            E::PathLenConstraintViolated | E::MaximumPathDepthExceeded => Self::PathLength { anchor: String::new() },
            // For peer and operator, a CA with the same name and another key is an unknown CA.
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => Self::UnknownIssuer,
            E::UnsupportedCertVersion => Self::Version,
            E::UnsupportedSignatureAlgorithmContext(_)
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
            | E::SignatureAlgorithmMismatch => Self::SignatureAlgorithm,
            _ => Self::Unverifiable,
        }
    }
}

/// Selects the TLS alert that rustls sends to the peer.
impl From<ChainError> for Error {
    fn from(error: ChainError) -> Self {
        let error = match &error {
            ChainError::Expired | ChainError::AnchorExpired { .. } => CertificateError::Expired,
            ChainError::NotYetValid | ChainError::AnchorNotYetValid { .. } => CertificateError::NotValidYet,
            ChainError::Malformed | ChainError::Version => CertificateError::BadEncoding,
            ChainError::CriticalExtension { .. } => CertificateError::UnhandledCriticalExtension,
            ChainError::Revoked => CertificateError::Revoked,
            ChainError::RevocationListExpired => CertificateError::ExpiredRevocationList,
            ChainError::RevocationUnknown { .. } => CertificateError::UnknownRevocationStatus,
            ChainError::UnknownIssuer | ChainError::TooManyChecks | ChainError::Ca { .. } => {
                CertificateError::UnknownIssuer
            }
            ChainError::KeyUsage | ChainError::Purpose { .. } => CertificateError::InvalidPurpose,
            ChainError::NameConstraints
            | ChainError::PeerIsCa
            | ChainError::SignatureAlgorithm
            | ChainError::Unverifiable
            | ChainError::PathLength { .. }
            | ChainError::TooLarge
            | ChainError::TooManyCertificates
            | ChainError::TooManyNames => CertificateError::Other(OtherError(Arc::new(error))),
        };
        error.into()
    }
}

impl std::error::Error for ChainError {}

/// The text for operators. Callers add whose certificate it is.
impl std::fmt::Display for ChainError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AnchorExpired { subject, at } => write!(
                f,
                "the CA certificate {subject} expired at {}; replace it, or set anchor_validity = \"ignore\"",
                timestamp::seconds(*at)
            ),
            Self::AnchorNotYetValid { subject, from } => write!(
                f,
                "the CA certificate {subject} is not valid before {}; check the clock, or set anchor_validity = \"ignore\"",
                timestamp::seconds(*from)
            ),
            Self::Ca { subject, fault } => {
                write!(f, "the CA certificate {subject} must not issue certificates: {fault}; use a certificate of another CA")
            }
            Self::Expired => f.write_str("the certificate, or an intermediate, has expired"),
            Self::CriticalExtension { subject, extension } => write!(
                f,
                "{subject} has the critical extension {extension}, which is not supported, so its chain cannot be verified; \
                 use a certificate in which the extension is not critical, or pin the certificate itself"
            ),
            Self::Malformed => f.write_str("the certificate, or one sent with it, is malformed; issue a new one"),
            Self::NameConstraints => f.write_str(
                "a name in the certificate is outside the name constraints of its CA, or of a type whose constraints cannot be \
                 checked (email address, URI, directory name); use a certificate with names that its CA permits",
            ),
            Self::PeerIsCa => f.write_str("it is a CA certificate (basicConstraints CA:TRUE), which cannot identify a peer"),
            Self::KeyUsage => f.write_str("its key usage does not include digitalSignature, which TLS requires; issue one with digitalSignature"),
            Self::Purpose { lacks } => write!(f, "its extended key usage lacks {lacks}"),
            Self::SignatureAlgorithm => f.write_str(
                "the certificate, or an intermediate, uses a signature algorithm that is not supported; supported: RSA or ECDSA \
                 with SHA-256 or stronger, Ed25519",
            ),
            Self::Version => {
                f.write_str("the certificate, or an intermediate, has X.509 version 1; use a certificate of version 3")
            }
            Self::Unverifiable => f.write_str("it cannot be verified"),
            Self::NotYetValid => f.write_str("the certificate, or an intermediate, is not valid yet; check the clock"),
            Self::PathLength { anchor } => write!(
                f,
                "the chain has more intermediates than {anchor} or a CA below it allows (pathLenConstraint); \
                 use a certificate with a shorter chain"
            ),
            Self::Revoked => f.write_str("a revocation list contains the certificate, or an intermediate"),
            Self::RevocationListExpired => f.write_str("the revocation list of its CA has expired"),
            Self::RevocationUnknown { subject } => write!(
                f,
                "no revocation list of the CA of {subject} covers this certificate (another issuing distribution point, or \
                 another key of the CA signed the list); add a CRL to client_crl that covers all certificates of the CA and is \
                 signed by the key that issued this certificate"
            ),
            Self::TooLarge => write!(
                f,
                "the certificate is too large: more than {MAX_ELEMENTS} elements of names and extensions, or {MAX_LENGTH} \
                 bytes; use a certificate with fewer names, or pin the certificate itself"
            ),
            Self::TooManyCertificates => write!(
                f,
                "the peer sent more than {MAX_SENT} certificates besides its own; send only the certificate and its \
                 intermediates, not a whole bundle"
            ),
            Self::TooManyChecks => write!(
                f,
                "no issuer found after {MAX_FAILED_CHECKS} failed signature checks; several CA certificates have the same \
                 name; use a certificate with authorityKeyIdentifier, which identifies its issuer"
            ),
            Self::TooManyNames => f.write_str(
                "comparing its names with the name constraints of its CAs takes too many comparisons; use a certificate \
                 with fewer names, or a CA with fewer constraints",
            ),
            Self::UnknownIssuer => f.write_str("no trusted CA has issued the certificate"),
        }
    }
}
