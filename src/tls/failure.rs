//! Handshakes that fail: the code for the auditor, and words that tell the operator whose fault it is and what to do.

use std::fmt::Write as _;
use std::io;

use rustls::{AlertDescription, Error};

use super::certificate::Certificate;
use super::chain_error::ChainError;
use super::peer_error::{Peer, alert_name, describe};
use super::witness::RefusedClient;
use crate::outcome::{Ending, Reason};
use crate::printable::quoted;
use crate::timestamp;

/// Explains a failed handshake. `shown` is the certificate the client was shown, `refused` the one that it showed and that we
/// refuse, where it came so far.
pub fn handshake_failure(error: &io::Error, shown: Option<&Certificate>, refused: Option<&RefusedClient>) -> Ending {
    if let Some(RefusedClient { certificate, error }) = refused {
        return Ending::new(reason_of(error), refused_by_us(error, certificate.as_ref()));
    }
    match tls_error(error) {
        Some(Error::AlertReceived(alert)) => Ending::new(Reason::HandshakeFailed, refused_by_client(*alert, shown)),
        Some(Error::NoCertificatesPresented) => Ending::new(
            Reason::ClientCertificateMissing,
            "no certificate was shown; client_auth = \"required\" lets nobody in without one",
        ),
        // The verifier tells of every other fault of a certificate.
        Some(Error::InvalidCertificate(_)) => Ending::new(
            Reason::ClientCertificateInvalid,
            "the client did not prove that it has the private key of its certificate",
        ),
        Some(error) => Ending::new(Reason::HandshakeFailed, describe(error, Peer::Client)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => Ending::new(
            Reason::HandshakeFailed,
            "the client closed the connection during the TLS handshake; some do so when they do not trust our certificate",
        ),
        None => Ending::new(Reason::HandshakeFailed, error),
    }
}

/// Whether the client ended a handshake because of the certificate it was shown.
pub fn is_refusal_of_ours(error: &io::Error) -> bool {
    matches!(tls_error(error), Some(Error::AlertReceived(alert)) if blames_certificate(*alert))
}

pub(super) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// The code for what is wrong with a client's certificate.
pub(super) fn reason_of(error: &ChainError) -> Reason {
    match error {
        ChainError::UnknownIssuer | ChainError::TooManyChecks => Reason::ClientCertificateUnknownCa,
        ChainError::Expired | ChainError::AnchorExpired { .. } => Reason::ClientCertificateExpired,
        ChainError::Revoked => Reason::ClientCertificateRevoked,
        ChainError::AnchorNotYetValid { .. }
        | ChainError::Ca { .. }
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

/// Whose certificate is refused, the error, and what to do about it.
pub(super) fn refused_by_us(error: &ChainError, refused: Option<&Certificate>) -> String {
    match refused {
        Some(certificate) => format!("client certificate {}: {}", in_words(certificate), in_short(error)),
        None => format!("client certificate that is too long or damaged to be named: {}", in_short(error)),
    }
}

/// The certificate with what an operator needs to find it. Its names are cut to leave room for the reason.
pub(super) fn in_words(certificate: &Certificate) -> String {
    let Certificate { subject, issuer, not_after, sha256, .. } = certificate;
    let [subject, issuer] = [subject, issuer].map(quoted);
    format!("{subject} (issued by {issuer}, valid until {}, sha256 {sha256})", timestamp::seconds(*not_after))
}

fn in_short(error: &ChainError) -> String {
    let words = match error {
        ChainError::RevocationListExpired => {
            "the revocation list of its CA has run out: put a new one into client_crl, \
             or set crl_expired = \"allow\" to go by the old one"
        }
        ChainError::UnknownIssuer => {
            "no certificate of client_ca has issued it, directly or by way of the intermediates the client sent, and it \
             is none of client_certificates"
        }
        ChainError::PeerIsCa => {
            "it is a CA certificate (basicConstraints CA:TRUE); pin it in client_certificates, or issue the client a \
             certificate from it"
        }
        ChainError::Purpose { .. } => {
            return format!("{error}; issue the client a certificate for client authentication");
        }
        ChainError::Expired => "it, or an intermediate it came by, has run out; the client needs a new certificate",
        ChainError::Revoked => {
            "a list of client_crl names it, or an intermediate it came by; the client needs a new certificate"
        }
        other => return other.to_string(),
    };
    words.to_owned()
}

fn refused_by_client(alert: AlertDescription, shown: Option<&Certificate>) -> String {
    let mut words = format!("the client ended the handshake with the TLS alert {}", alert_name(alert));
    if !blames_certificate(alert) {
        return words;
    }
    words.push_str(": it does not accept our certificate");
    if let Some(certificate) = shown {
        let _ = write!(words, " {}", in_words(certificate));
    }
    words.push_str(match alert {
        AlertDescription::CertificateExpired => "; replace it, or set the client's clock",
        _ => "; give the client the CA certificate that issued it (sslrootcert, --cacert), and let it connect by a name the certificate holds",
    });
    words
}

fn blames_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::UnsupportedCertificate
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::specimen::Authority;

    #[test]
    fn a_client_that_does_not_trust_us_is_explained() {
        let error = io::Error::new(io::ErrorKind::InvalidData, Error::AlertReceived(AlertDescription::UnknownCA));
        let ending = handshake_failure(&error, None, None);
        assert_eq!(ending.reason, Reason::HandshakeFailed);
        assert!(ending.detail.contains("does not accept our certificate"), "{}", ending.detail);
    }

    #[test]
    fn certificate_that_was_refused_is_explained_instead_of_the_alert() {
        let certificate = Certificate::parse(&Authority::new("Clients CA").der()).unwrap();
        let refused = RefusedClient { certificate: Some(certificate), error: ChainError::Revoked };
        let error = io::Error::new(io::ErrorKind::InvalidData, Error::AlertReceived(AlertDescription::UnknownCA));
        let ending = handshake_failure(&error, None, Some(&refused));
        assert_eq!(ending.reason, Reason::ClientCertificateRevoked);
        assert!(ending.detail.contains("CN=Clients CA"), "{}", ending.detail);
    }
}
