//! Why a peer's certificate is not accepted.

use rustls::{CertificateError, Error, OtherError};
use std::sync::Arc;
use time::OffsetDateTime;

use super::ca_properties::CaFault;
use super::path::{MAX_FAILED_CHECKS, MAX_SENT};
use crate::timestamp;

/// What is wrong with a chain of certificates, or with the path from it to a trust anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainError {
    /// The trust anchor is past its notAfter.
    AnchorExpired {
        /// RFC 4514 text.
        subject: String,
        /// The first moment in which it is no longer valid.
        at: OffsetDateTime,
    },
    /// The trust anchor is before its notBefore.
    AnchorNotYetValid {
        /// RFC 4514 text.
        subject: String,
        /// Its notBefore.
        from: OffsetDateTime,
    },
    /// A CA on the path must not issue certificates, or not for this purpose.
    Ca {
        /// RFC 4514 text.
        subject: String,
        /// Why not.
        fault: CaFault,
    },
    /// The certificate, or an intermediate, is past its notAfter.
    Expired,
    /// The bytes are no certificate.
    Malformed,
    /// The certificate, or an intermediate, is before its notBefore.
    NotYetValid,
    /// A CA on the path allows fewer CAs below it (basicConstraints pathLenConstraint).
    PathLength {
        /// The trust anchor the path leads to, as RFC 4514 text.
        anchor: String,
    },
    /// A revocation list names the certificate, or an intermediate.
    Revoked,
    /// The revocation list that would tell is past its nextUpdate, and `crl_expired` does not allow that.
    RevocationListExpired,
    /// The CA has revocation lists, and none of them is about a certificate of the path.
    RevocationUnknown {
        /// The certificate that no list is about, as RFC 4514 text.
        subject: String,
    },
    /// The peer sent more certificates than a chain needs.
    TooManyCertificates,
    /// The search for a path was given up.
    TooManyChecks,
    /// No trust anchor has issued it, directly or by way of what the peer sent.
    UnknownIssuer,
    /// Anything else that webpki finds.
    Webpki(webpki::Error),
}

impl ChainError {
    /// Whether a CA has revoked something: that is certain, whatever else the peer has sent.
    pub fn is_revocation(&self) -> bool {
        matches!(self, Self::Revoked)
    }
}

impl From<webpki::Error> for ChainError {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::BadDer | E::BadDerTime | E::TrailingData(_) => Self::Malformed,
            E::CertExpired { .. } | E::InvalidCertValidity => Self::Expired,
            E::CertNotValidYet { .. } => Self::NotYetValid,
            E::CertRevoked => Self::Revoked,
            // To the peer and the operator a CA of the same name with another key is an unknown CA all the same.
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => Self::UnknownIssuer,
            other => Self::Webpki(other),
        }
    }
}

/// What rustls tells the peer as a TLS alert.
impl From<ChainError> for Error {
    fn from(error: ChainError) -> Self {
        use webpki::Error as E;
        let told = match &error {
            ChainError::Expired | ChainError::AnchorExpired { .. } => CertificateError::Expired,
            ChainError::NotYetValid | ChainError::AnchorNotYetValid { .. } => CertificateError::NotValidYet,
            ChainError::Malformed => CertificateError::BadEncoding,
            ChainError::Revoked => CertificateError::Revoked,
            ChainError::RevocationListExpired => CertificateError::ExpiredRevocationList,
            ChainError::RevocationUnknown { .. } => CertificateError::UnknownRevocationStatus,
            ChainError::UnknownIssuer | ChainError::TooManyChecks | ChainError::Ca { .. } => {
                CertificateError::UnknownIssuer
            }
            ChainError::Webpki(E::RequiredEkuNotFoundContext(_)) => CertificateError::InvalidPurpose,
            ChainError::Webpki(_)
            | ChainError::PathLength { .. }
            | ChainError::TooManyCertificates => CertificateError::Other(OtherError(Arc::new(error))),
        };
        told.into()
    }
}

impl std::error::Error for ChainError {}

/// For the operator; each leg of a connection adds whose certificate it is and what to do about it.
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
                write!(f, "the CA certificate {subject} must not issue it: {fault}; use a certificate of another CA")
            }
            Self::Expired => f.write_str("the certificate, or an intermediate, has expired"),
            Self::Malformed => f.write_str("the certificate is malformed, or not of X.509 version 3"),
            Self::NotYetValid => f.write_str("the certificate, or an intermediate, is not valid yet"),
            Self::PathLength { anchor } => write!(
                f,
                "the chain has more intermediates than {anchor} or a CA below it allows (pathLenConstraint); \
                 use a certificate issued further up"
            ),
            Self::Revoked => f.write_str("a revocation list names the certificate, or an intermediate"),
            Self::RevocationListExpired => f.write_str("the revocation list of its CA has expired"),
            Self::RevocationUnknown { subject } => write!(
                f,
                "the CA of {subject} has revocation lists, and none of them is about this certificate (issuing \
                 distribution point); add a list that covers all certificates of the CA to client_crl"
            ),
            Self::TooManyCertificates => write!(
                f,
                "more than {MAX_SENT} certificates were sent beside its own; the file may hold a whole bundle, and should \
                 hold the certificate and the intermediates above it"
            ),
            Self::TooManyChecks => write!(
                f,
                "no issuer was found after {MAX_FAILED_CHECKS} failed signature checks; several CA certificates have the \
                 same name, and the certificate does not say which of them issued it (authorityKeyIdentifier)"
            ),
            Self::UnknownIssuer => f.write_str("no trusted CA has issued it"),
            Self::Webpki(error) => write!(f, "{error}"),
        }
    }
}
