//! Handshakes that fail: the code for the auditor, and words that tell the operator whose fault it is and what to do.

use std::fmt::Write as _;
use std::io;

use rustls::{AlertDescription, CertificateError, Error, OtherError};

use super::certificate::Certificate;
use super::verifier::LongChain;
use crate::outcome::{Ending, Reason};
use crate::timestamp;

/// Explains a failed handshake. `shown` is the certificate the client was shown, `refused` the one that it showed and that we
/// refuse, where it came so far.
pub fn handshake_failure(error: &io::Error, shown: Option<&Certificate>, refused: Option<&Certificate>) -> Ending {
    match tls_error(error) {
        Some(Error::AlertReceived(alert)) => Ending::new(Reason::HandshakeFailed, refused_by_client(*alert, shown)),
        Some(error) => Ending::new(certificate_reason(error), refused_by_us(error, refused)),
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

/// The reason for what rustls has against a client or its certificate.
pub(super) fn certificate_reason(error: &Error) -> Reason {
    let Error::InvalidCertificate(certificate) = error else {
        return match error {
            Error::NoCertificatesPresented => Reason::ClientCertificateMissing,
            // A list that cannot be used says nothing good about the certificate.
            Error::InvalidCertRevocationList(_) => Reason::ClientCertificateInvalid,
            _ => Reason::HandshakeFailed,
        };
    };
    match certificate {
        CertificateError::UnknownIssuer => Reason::ClientCertificateUnknownCa,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reason::ClientCertificateExpired,
        CertificateError::Revoked => Reason::ClientCertificateRevoked,
        _ => Reason::ClientCertificateInvalid,
    }
}

/// Whose certificate is refused, the error, and what to do about it.
pub(super) fn refused_by_us(error: &Error, refused: Option<&Certificate>) -> String {
    match refused {
        Some(certificate) => format!("client certificate {}: {}", in_words(certificate), in_short(error)),
        None => in_short(error),
    }
}

/// The certificate with what an operator needs to find it.
pub(super) fn in_words(certificate: &Certificate) -> String {
    let Certificate { subject, issuer, not_after, sha256, .. } = certificate;
    format!("{subject} (issued by {issuer}, valid until {}, sha256 {sha256})", timestamp::seconds(*not_after))
}

fn in_short(error: &Error) -> String {
    if let Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) = error {
        if let Some(long) = cause.downcast_ref::<LongChain>() {
            return long.to_string();
        }
        return "the certificate is malformed, or not of X.509 version 3".to_owned();
    }
    if is_old_list(error) {
        return "the revocation list of its CA has run out: put a new one into client_crl, \
                or set crl_expired = \"allow\" to go by the old one"
            .to_owned();
    }
    let words = match certificate_reason(error) {
        Reason::ClientCertificateMissing => {
            "no certificate was shown; client_auth = \"required\" lets nobody in without one"
        }
        Reason::ClientCertificateUnknownCa => {
            "no certificate of client_ca has issued it, directly or by way of the intermediates the client sent, and it \
             is none of client_certificates"
        }
        Reason::ClientCertificateExpired => {
            "it, or an intermediate it came by, has run out; the client needs a new certificate"
        }
        Reason::ClientCertificateRevoked => {
            "a list of client_crl names it, or an intermediate it came by; the client needs a new certificate"
        }
        _ => return error.to_string(),
    };
    words.to_owned()
}

fn is_old_list(error: &Error) -> bool {
    use CertificateError::{ExpiredRevocationList, ExpiredRevocationListContext};
    matches!(error, Error::InvalidCertificate(ExpiredRevocationList | ExpiredRevocationListContext { .. }))
}

fn refused_by_client(alert: AlertDescription, shown: Option<&Certificate>) -> String {
    let mut words = format!("the client ended the handshake with the TLS alert {alert:?}");
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

    #[test]
    fn a_client_that_does_not_trust_us_is_explained() {
        let error = io::Error::new(io::ErrorKind::InvalidData, Error::AlertReceived(AlertDescription::UnknownCA));
        let ending = handshake_failure(&error, None, None);
        assert_eq!(ending.reason, Reason::HandshakeFailed);
        assert!(ending.detail.contains("does not accept our certificate"), "{}", ending.detail);
    }

    #[test]
    fn each_kind_of_bad_client_certificate_has_its_reason() {
        let reason = |error| certificate_reason(&Error::InvalidCertificate(error));
        assert_eq!(reason(CertificateError::UnknownIssuer), Reason::ClientCertificateUnknownCa);
        assert_eq!(reason(CertificateError::Expired), Reason::ClientCertificateExpired);
        assert_eq!(reason(CertificateError::NotValidYet), Reason::ClientCertificateInvalid);
        assert_eq!(reason(CertificateError::BadSignature), Reason::ClientCertificateInvalid);
        assert_eq!(certificate_reason(&Error::NoCertificatesPresented), Reason::ClientCertificateMissing);
    }
}
