//! Failed client handshakes: the reason code for the audit log, and a text with cause and remedy.

use std::fmt::Write as _;
use std::io;

use rustls::{AlertDescription, Error};

use crate::identity::recording::RefusedClient;
use crate::identity::refusal::{describe_certificate, describe_refusal, reason_of};
use crate::outcome::{Outcome, Reason};
use crate::tls::peer_error::{Peer, alert_name, describe};
use crate::x509::certificate::Certificate;

/// `shown` is the server certificate that the client received, `refused` the client certificate that was rejected, if the
/// handshake got that far.
pub(crate) fn handshake_failure(
    error: &io::Error,
    shown: Option<&Certificate>,
    refused: Option<&RefusedClient>,
) -> Outcome {
    if let Some(RefusedClient { certificate, error }) = refused {
        return Outcome::new(reason_of(error), describe_refusal(error, certificate.as_ref()));
    }
    match tls_error(error) {
        Some(Error::AlertReceived(alert)) => Outcome::new(Reason::HandshakeFailed, refused_by_client(*alert, shown)),
        Some(Error::NoCertificatesPresented) => Outcome::new(
            Reason::ClientCertificateMissing,
            "the client sent no certificate; client_auth = \"required\" rejects clients without one",
        ),
        // The verifier records every other fault of a certificate.
        Some(Error::InvalidCertificate(_)) => Outcome::new(
            Reason::ClientCertificateInvalid,
            "the client did not prove that it has the private key of its certificate",
        ),
        Some(error) => Outcome::new(Reason::HandshakeFailed, describe(error, Peer::Client)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => Outcome::new(
            Reason::HandshakeFailed,
            "the client closed the connection during the TLS handshake; some clients do so when they do not trust the server certificate",
        ),
        None => Outcome::new(Reason::HandshakeFailed, error),
    }
}

/// Whether the client rejected the server certificate.
pub(crate) fn is_refusal_of_ours(error: &io::Error) -> bool {
    matches!(tls_error(error), Some(Error::AlertReceived(alert)) if blames_certificate(*alert))
}

pub(crate) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn refused_by_client(alert: AlertDescription, shown: Option<&Certificate>) -> String {
    let mut text = format!("the client ended the handshake with the TLS alert {}", alert_name(alert));
    if !blames_certificate(alert) {
        return text;
    }
    text.push_str(": it does not accept our certificate");
    if let Some(certificate) = shown {
        let _ = write!(text, " {}", describe_certificate(certificate));
    }
    text.push_str(match alert {
        AlertDescription::CertificateExpired => "; replace the certificate, or correct the client's clock",
        _ => "; give the client the issuing CA certificate (sslrootcert, --cacert), and connect by a name in the certificate",
    });
    text
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
    use crate::tls::fixtures::Authority;
    use crate::x509::chain::error::ChainError;

    #[test]
    fn unknown_ca_alert_of_a_client_is_reported_as_rejected_server_certificate() {
        let error = io::Error::new(io::ErrorKind::InvalidData, Error::AlertReceived(AlertDescription::UnknownCA));
        let ending = handshake_failure(&error, None, None);
        assert_eq!(ending.reason, Reason::HandshakeFailed);
        assert!(ending.detail.contains("does not accept our certificate"), "{}", ending.detail);
    }

    #[test]
    fn rejected_client_certificate_is_reported_instead_of_the_alert() {
        let certificate = Certificate::parse(&Authority::new("Clients CA").der()).unwrap();
        let refused = RefusedClient { certificate: Some(certificate), error: ChainError::Revoked };
        let error = io::Error::new(io::ErrorKind::InvalidData, Error::AlertReceived(AlertDescription::UnknownCA));
        let ending = handshake_failure(&error, None, Some(&refused));
        assert_eq!(ending.reason, Reason::ClientCertificateRevoked);
        assert!(ending.detail.contains("CN=Clients CA"), "{}", ending.detail);
    }
}
