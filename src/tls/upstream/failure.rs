//! What goes wrong in TLS with an upstream: which side refused what, and what to do.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, OtherError};
use time::OffsetDateTime;

use crate::identity::refusal::describe_certificate;
use crate::printable;
use crate::printable::quoted;
use crate::timestamp;
use crate::tls::failure::tls_error;
use crate::tls::peer_error::{Peer, alert_name, describe};
use crate::x509::certificate::Certificate;
use crate::x509::chain::error::ChainError;

/// Explains what a handshake failed with.
pub(crate) fn explain_handshake(error: &io::Error, own: Option<&Certificate>) -> String {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    explain(error, own).unwrap_or_else(|| match error.kind() {
        UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe => CLOSED.to_owned(),
        TimedOut => TIMED_OUT.to_owned(),
        _ => error.to_string(),
    })
}

/// Explains what a handshake or a read failed with, where it is TLS that failed. `own` is our certificate. The
/// text is escaped and cut, because it contains names that the upstream chose.
pub(crate) fn explain(error: &io::Error, own: Option<&Certificate>) -> Option<String> {
    Some(printable::field(match tls_error(error)? {
        Error::AlertReceived(alert) => refused_by_upstream(*alert, own),
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
            match cause.downcast_ref::<UpstreamTlsError>() {
                Some(refusal) => refusal.words.clone(),
                None => UNPROVED.to_owned(),
            }
        }
        Error::InvalidCertificate(_) => UNPROVED.to_owned(),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => PLAINTEXT.to_owned(),
        error => describe(error, Peer::Upstream),
    }))
}

const UNPROVED: &str = "the upstream did not prove that it has the private key of its certificate";

const CLOSED: &str = "the upstream closed the connection during the TLS handshake; it may not use TLS on this port, or may \
                      require another client certificate";

const TIMED_OUT: &str = "the upstream did not finish the TLS handshake in time; Redis waits like this on a port without TLS: \
                         set address to its TLS port, or set tls = \"disable\"";

const PLAINTEXT: &str = "the upstream's response is not TLS; if this port does not use TLS, set address to its TLS port, or set \
                         tls = \"disable\"";

/// What is wrong with a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerFault {
    /// Nothing that is trusted vouches for it.
    Chain(ChainError),
    /// It is another server's.
    Name,
}

/// Why a server is refused, in words, because what they are made of is known only while it is verified.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{words}")]
pub(crate) struct UpstreamTlsError {
    words: String,
}

impl UpstreamTlsError {
    /// Of a server with this certificate that is called `name`, by anchors that are the system's or a bundle's.
    pub(crate) fn of(
        fault: ServerFault,
        facts: &Certificate,
        name: &str,
        of_system: bool,
        now: OffsetDateTime,
    ) -> Self {
        let cause = match fault {
            ServerFault::Chain(error) => chain_refused(&error, facts, of_system, now),
            ServerFault::Name => not_named(facts, name),
        };
        Self { words: format!("the upstream's certificate {}: {cause}", describe_certificate(facts)) }
    }
}

/// What is wrong with the chain of the upstream, and what to do.
fn chain_refused(error: &ChainError, facts: &Certificate, of_system: bool, now: OffsetDateTime) -> String {
    match error {
        ChainError::UnknownIssuer => unknown_issuer(facts, of_system).to_owned(),
        ChainError::Expired if now >= facts.end() => "it has expired; install a new one on the upstream".to_owned(),
        ChainError::Expired => {
            "an intermediate that the upstream sent has expired; install a new one on the upstream".to_owned()
        }
        ChainError::NotYetValid => {
            let from = timestamp::seconds(facts.not_before);
            format!(
                "it, or an intermediate sent with it, is not valid yet (the certificate is valid from {from}); check the clock"
            )
        }
        ChainError::Purpose { .. } => {
            "its extended key usage does not include serverAuth; install one with serverAuth on the upstream".to_owned()
        }
        ChainError::AnchorExpired { .. }
        | ChainError::AnchorNotYetValid { .. }
        | ChainError::Ca { .. }
        | ChainError::PathLength { .. }
        | ChainError::TooManyCertificates
        | ChainError::TooManyChecks
        | ChainError::TooManyNames
        | ChainError::TooLarge => error.to_string(),
        ChainError::CriticalExtension { .. } => {
            format!("{error}: add that exact certificate to ca")
        }
        _ if facts.version != 3 => format!(
            "it is of X.509 version {}, which is trusted only if ca contains that exact certificate; install a certificate \
             of version 3 on the upstream",
            facts.version
        ),
        _ if facts.ca => {
            "it is a CA certificate, which is trusted as a server certificate only if ca contains that exact certificate"
                .to_owned()
        }
        error => error.to_string(),
    }
}

fn unknown_issuer(facts: &Certificate, of_system: bool) -> &'static str {
    match (facts.self_signed, of_system) {
        (true, true) => "it is self-signed and not trusted; set ca to a file that contains it",
        (true, false) => "it is self-signed and not trusted; if it is the right one, add it to ca",
        (false, true) => {
            "not issued by any root certificate of the system (including via the intermediates the upstream sent); set ca \
             to the bundle of the issuing CA"
        }
        (false, false) => {
            "not issued by any CA in ca (including via the intermediates the upstream sent); add the issuing CA \
             certificate to ca"
        }
    }
}

fn not_named(facts: &Certificate, name: &str) -> String {
    let names = match (facts.sans.as_slice(), &facts.common_name) {
        ([], None) => "it contains no host name".to_owned(),
        ([], Some(common)) if common.eq_ignore_ascii_case(name) => format!(
            "its only name is the common name \"{}\", which is ignored below a CA with name constraints",
            quoted(common)
        ),
        ([], Some(common)) => format!("its only name is the common name \"{}\"", quoted(common)),
        (sans, _) => {
            let more = if sans.len() > MAX_NAMES { ", …" } else { "" };
            let names: Vec<_> = sans.iter().take(MAX_NAMES).map(quoted).collect();
            format!("its names are {}{more}", quoted(names.join(", ")))
        }
    };
    format!(
        "it is not for {name:?}; {names}. Set server_name to one of them, install a certificate for {name:?} on the upstream, \
         or accept every certificate of its CA with tls = \"verify-ca\""
    )
}

/// Enough to see what kind of certificate it is.
const MAX_NAMES: usize = 10;

fn refused_by_upstream(alert: AlertDescription, own: Option<&Certificate>) -> String {
    use AlertDescription as A;
    match (alert, own) {
        (A::CertificateRequired, None) => {
            "the upstream requires a client certificate; set upstream.cert and upstream.key".to_owned()
        }
        (
            A::CertificateRequired
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied,
            Some(own),
        ) => format!(
            "the upstream refused our certificate {} with the TLS alert {}{}",
            describe_certificate(own),
            alert_name(alert),
            hint(alert)
        ),
        (A::HandshakeFailure, None) => ended(
            alert,
            "it may require a client certificate (upstream.cert and upstream.key), or share no cipher suite with Portcullis",
        ),
        (A::HandshakeFailure, Some(own)) => ended(
            alert,
            &format!(
                "it may not accept our certificate {}, or share no cipher suite with Portcullis",
                describe_certificate(own)
            ),
        ),
        (A::DecryptError, Some(own)) => ended(
            alert,
            &format!(
                "it may not accept our certificate {}; check that its CA is trusted there with the same key, not only the \
                 same name",
                describe_certificate(own)
            ),
        ),
        (A::ProtocolVersion, _) => ended(alert, "it supports neither TLS 1.2 nor TLS 1.3"),
        (A::UnrecognisedName, _) => ended(alert, "it does not know the requested host name; set server_name"),
        (A::NoApplicationProtocol, _) => ended(alert, "it does not support the protocol requested by ALPN"),
        (
            A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown | A::UnknownCA | A::AccessDenied,
            None,
        ) => ended(alert, "it may require a client certificate; set upstream.cert and upstream.key"),
        _ => ended(alert, ""),
    }
}

/// What is wrong with our certificate, as far as the alert says so.
fn hint(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateExpired => {
            ": it has expired, or is not valid yet, by the upstream's clock; use a new one"
        }
        AlertDescription::CertificateRevoked => ": its CA has revoked it; use a new one",
        AlertDescription::UnknownCA => {
            ": the upstream does not know its CA; trust that CA on the upstream, append the intermediates to the certificate \
             in upstream.cert, or use a certificate of a CA that the upstream trusts"
        }
        AlertDescription::UnsupportedCertificate => {
            ": the upstream does not support its type; its extended key usage may lack clientAuth"
        }
        AlertDescription::AccessDenied => ": it is valid, but the upstream does not authorize it",
        AlertDescription::CertificateRequired => ": the upstream requires a certificate and does not accept this one",
        _ => "",
    }
}

fn ended(alert: AlertDescription, hint: &str) -> String {
    let words = format!("the upstream ended TLS with the alert {}", alert_name(alert));
    if hint.is_empty() { words } else { format!("{words}: {hint}") }
}
