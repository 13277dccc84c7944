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
        UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe => HUNG_UP.to_owned(),
        TimedOut => SILENT.to_owned(),
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

const HUNG_UP: &str = "the upstream closed the connection during the TLS handshake; it may not speak TLS on this port, or it may \
                       want another certificate than ours";

const SILENT: &str = "the upstream did not finish the TLS handshake in time; if it does not speak TLS on this port it may be \
                      waiting for more, as redis does: give its TLS port, or set tls = \"disable\"";

const PLAINTEXT: &str = "what the upstream answers is not TLS; if it does not speak TLS on this port, give its TLS port, or set \
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
        ChainError::Expired if now >= facts.end() => "it has run out; the upstream needs a new one".to_owned(),
        ChainError::Expired => {
            "an intermediate the upstream sent with it has run out; the upstream needs a new one".to_owned()
        }
        ChainError::NotYetValid => {
            let from = timestamp::seconds(facts.not_before);
            format!(
                "it, or an intermediate sent with it, is not valid yet (its own time begins {from}); is the clock right?"
            )
        }
        ChainError::Purpose { .. } => {
            "its extended key usage does not let it be a server's; the upstream needs one with serverAuth".to_owned()
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
            format!("{error}: put that very certificate into ca")
        }
        _ if facts.version != 3 => format!(
            "it is of X.509 version {}, which is trusted only where ca holds that very certificate; better give the \
             upstream one of version 3",
            facts.version
        ),
        _ if facts.ca => {
            "it is a CA's certificate, which is trusted as a server's own only where ca holds that very certificate"
                .to_owned()
        }
        error => error.to_string(),
    }
}

fn unknown_issuer(facts: &Certificate, of_system: bool) -> &'static str {
    match (facts.self_signed, of_system) {
        (true, true) => "nobody but itself has issued it; set ca to a file that holds it",
        (true, false) => "nobody but itself has issued it, and it is not in ca; if it is the right one, put it there",
        (false, true) => {
            "none of the system's root certificates has issued it, directly or by way of the intermediates the upstream \
             sent; set ca to the bundle of the CA that has"
        }
        (false, false) => {
            "no certificate of ca has issued it, directly or by way of the intermediates the upstream sent; put the \
             certificate of the CA that has into ca"
        }
    }
}

fn not_named(facts: &Certificate, name: &str) -> String {
    let names = match (facts.sans.as_slice(), &facts.common_name) {
        ([], None) => "it names no host at all".to_owned(),
        ([], Some(common)) if common.eq_ignore_ascii_case(name) => format!(
            "its only name is the common name \"{}\", which counts for nothing below a CA with name constraints",
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
        "it is not for {name:?}; {names}. Set server_name to one of them, give the upstream a certificate for {name:?}, or let \
         every certificate of its CA do with tls = \"verify-ca\""
    )
}

/// Enough to see what kind of certificate it is.
const MAX_NAMES: usize = 10;

fn refused_by_upstream(alert: AlertDescription, own: Option<&Certificate>) -> String {
    use AlertDescription as A;
    match (alert, own) {
        (A::CertificateRequired, None) => {
            "the upstream asks for a client certificate; set cert and key of the upstream".to_owned()
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
            "it may ask for a client certificate, which cert and key of the upstream are for, or have no cipher suite in common \
             with us",
        ),
        (A::HandshakeFailure, Some(own)) => ended(
            alert,
            &format!(
                "it may not take our certificate {}, or have no cipher suite in common with us",
                describe_certificate(own)
            ),
        ),
        (A::DecryptError, Some(own)) => ended(
            alert,
            &format!(
                "it may not take our certificate {}; is its CA there by the same name with another key?",
                describe_certificate(own)
            ),
        ),
        (A::ProtocolVersion, _) => ended(alert, "it speaks neither TLS 1.2 nor TLS 1.3"),
        (A::UnrecognisedName, _) => ended(alert, "it does not know the host name it was asked for; set server_name"),
        (A::NoApplicationProtocol, _) => ended(alert, "it does not speak the protocol that ALPN asked for"),
        (
            A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown | A::UnknownCA | A::AccessDenied,
            None,
        ) => ended(alert, "it may ask for a client certificate, which cert and key of the upstream are for"),
        _ => ended(alert, ""),
    }
}

/// What is wrong with our certificate, as far as the alert says so.
fn hint(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateExpired => {
            ": it has run out, or not begun, by the upstream's clock; get a new one"
        }
        AlertDescription::CertificateRevoked => ": its CA has revoked it; get a new one",
        AlertDescription::UnknownCA => {
            ": the upstream does not know its CA; let it trust that CA, put the intermediates behind the certificate in cert, or \
             get one of a CA that the upstream trusts"
        }
        AlertDescription::UnsupportedCertificate => {
            ": it is not of a kind the upstream takes; its extended key usage may lack clientAuth"
        }
        AlertDescription::AccessDenied => ": it is good, but not one that the upstream lets in",
        AlertDescription::CertificateRequired => ": it asks for one, and takes none that we have",
        _ => "",
    }
}

fn ended(alert: AlertDescription, hint: &str) -> String {
    let words = format!("the upstream ended TLS with the alert {}", alert_name(alert));
    if hint.is_empty() { words } else { format!("{words}: {hint}") }
}
