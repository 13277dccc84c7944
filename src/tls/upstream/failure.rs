//! TLS errors with an upstream: which side rejected what, and the remedy.

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

/// Describes the error of a handshake. `own` is the client certificate of Portcullis.
pub(crate) fn explain_handshake(error: &io::Error, own: Option<&Certificate>) -> String {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    explain(error, own).unwrap_or_else(|| match error.kind() {
        UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe => CLOSED.to_owned(),
        TimedOut => TIMED_OUT.to_owned(),
        _ => error.to_string(),
    })
}

/// Describes the TLS error of a handshake or a read; `None` for other errors. `own` is the client certificate of Portcullis. The
/// text is escaped and truncated, because it contains names that the upstream chose.
pub(crate) fn explain(error: &io::Error, own: Option<&Certificate>) -> Option<String> {
    Some(printable::field(match tls_error(error)? {
        Error::AlertReceived(alert) => refused_by_upstream(*alert, own),
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
            match cause.downcast_ref::<UpstreamTlsError>() {
                Some(refusal) => refusal.text.clone(),
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

const TIMED_OUT: &str = "the upstream did not finish the TLS handshake in time; a Redis port without TLS never answers it: \
                         set address to its TLS port, or set tls = \"disable\"";

const PLAINTEXT: &str = "the upstream's response is not TLS; if this port does not use TLS, set address to its TLS port, or set \
                         tls = \"disable\"";

/// Why an upstream's certificate is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerFault {
    Chain(ChainError),
    /// The certificate is for another host.
    Name,
}

/// Why an upstream is rejected, as text, because its parts are known only during verification.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct UpstreamTlsError {
    text: String,
}

impl UpstreamTlsError {
    /// `name` is the expected server name. `of_system`: the anchors are those of the system, not of `ca`.
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
        Self { text: format!("the upstream's certificate {}: {cause}", describe_certificate(facts)) }
    }
}

/// Describes the fault of the upstream's chain, and the remedy.
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
            "it is a CA certificate, which is trusted as a server certificate only if ca contains that exact certificate; \
             install a server certificate on the upstream"
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

/// Names shown in an error.
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

/// The fault of the client certificate, as far as the alert shows it.
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
    let text = format!("the upstream ended TLS with the alert {}", alert_name(alert));
    if hint.is_empty() { text } else { format!("{text}: {hint}") }
}
