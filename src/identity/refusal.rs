//! Rejected client certificates: the reason code for the audit log, and the explanation for operators.

use crate::outcome::Reason;
use crate::printable::quoted;
use crate::timestamp;
use crate::x509::certificate::Certificate;
use crate::x509::chain::error::ChainError;

/// The reason code for the audit log.
pub(crate) fn reason_of(error: &ChainError) -> Reason {
    match error {
        ChainError::UnknownIssuer | ChainError::TooManyChecks => Reason::ClientCertificateUnknownCa,
        ChainError::Expired | ChainError::AnchorExpired { .. } => Reason::ClientCertificateExpired,
        ChainError::Revoked => Reason::ClientCertificateRevoked,
        ChainError::AnchorNotYetValid { .. }
        | ChainError::Ca { .. }
        | ChainError::KeyUsage
        | ChainError::Malformed
        | ChainError::NotYetValid
        | ChainError::CriticalExtension { .. }
        | ChainError::NameConstraints
        | ChainError::PathLength { .. }
        | ChainError::PeerIsCa
        | ChainError::Purpose { .. }
        | ChainError::RevocationListExpired
        | ChainError::RevocationUnknown { .. }
        | ChainError::SignatureAlgorithm
        | ChainError::TooManyCertificates
        | ChainError::TooManyNames
        | ChainError::TooLarge
        | ChainError::Unverifiable
        | ChainError::Version => Reason::ClientCertificateInvalid,
    }
}

/// Names the certificate, the error and the remedy.
pub(crate) fn describe_refusal(error: &ChainError, refused: Option<&Certificate>) -> String {
    match refused {
        Some(certificate) => {
            format!("client certificate {}: {}", describe_certificate(certificate), explain_error(error))
        }
        None => format!("client certificate (too large or malformed to show its subject): {}", explain_error(error)),
    }
}

/// The fields by which an operator finds the certificate. Long names are truncated to leave room for the error.
pub(crate) fn describe_certificate(certificate: &Certificate) -> String {
    let Certificate { subject, issuer, not_after, sha256, .. } = certificate;
    let [subject, issuer] = [subject, issuer].map(quoted);
    format!("{subject} (issued by {issuer}, valid until {}, sha256 {sha256})", timestamp::seconds(*not_after))
}

fn explain_error(error: &ChainError) -> String {
    let text = match error {
        ChainError::RevocationListExpired => {
            "the revocation list of its CA has expired; add a new one to client_crl, \
             or set crl_expired = \"allow\" to use the expired one"
        }
        ChainError::UnknownIssuer => {
            "not issued by any CA in client_ca (including via the intermediates the client sent) and not listed in \
             client_certificates"
        }
        ChainError::PeerIsCa => {
            "it is a CA certificate (basicConstraints CA:TRUE); pin it in client_certificates, or issue the client a \
             certificate from it"
        }
        ChainError::Purpose { .. } => {
            return format!("{error}; issue the client a certificate for client authentication");
        }
        ChainError::Expired => "the certificate or one of its intermediates has expired; issue the client a new one",
        ChainError::Revoked => {
            "the certificate or one of its intermediates is revoked by a list in client_crl; issue the client a new one"
        }
        other => return other.to_string(),
    };
    text.to_owned()
}
