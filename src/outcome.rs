//! How a connection can end.
//!
//! Every room of a connection's life fails with an [`Outcome`], and a life that goes well ends with one too, so that there
//! is one door out and one place that writes the audit event.

use std::fmt;

use crate::printable;

/// Why a connection ended. The codes are public: auditors filter by them (docs/AUDIT.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The client's certificate has expired.
    ClientCertificateExpired,
    /// The client's certificate cannot be used: malformed, not yet valid, wrong purpose, bad signature.
    ClientCertificateInvalid,
    /// The listener requires a client certificate and none was presented.
    ClientCertificateMissing,
    /// A revocation list names the client's certificate, or one between it and its CA.
    ClientCertificateRevoked,
    /// No trust anchor of the listener vouches for the client's certificate.
    ClientCertificateUnknownCa,
    /// The client ended the connection.
    ClientClosed,
    /// The client's certificate is good, but `trusted_clients` names none of its names.
    ClientNotTrusted,
    /// An administrator ended the session.
    ClosedByAdmin,
    /// The listener has as many sessions as it may have.
    ConnectionLimit,
    /// The policy no longer accepts the certificate an open session was let in with.
    CredentialRevoked,
    /// One side ended and the other stayed silent for too long.
    HalfCloseTimeout,
    /// The TLS handshake failed.
    HandshakeFailed,
    /// The listener has as many connections in their handshake as it may have.
    HandshakeLimit,
    /// The client did not finish preface and TLS in time.
    HandshakeTimeout,
    /// No byte moved either way for too long.
    IdleTimeout,
    /// The network failed under an open connection, or this program did.
    IoError,
    /// The listener was taken out of the configuration.
    ListenerRemoved,
    /// The client spoke plaintext where TLS must begin.
    PlaintextRefused,
    /// The client's bytes are not of the listener's protocol.
    ProtocolViolation,
    /// A load balancer's PROXY header cannot be made sense of.
    ProxyHeaderInvalid,
    /// A load balancer that has to say where its client comes from did not.
    ProxyHeaderMissing,
    /// The source connects more often than it may.
    RateLimited,
    /// The rule that let an open session in has come to its end.
    RuleExpired,
    /// The process was told to stop.
    Shutdown,
    /// The source has as many sessions as it may have.
    SourceConnectionLimit,
    /// No rule trusts the address of an open session any more.
    SourceRevoked,
    /// No rule trusts the client's address.
    UntrustedSource,
    /// The upstream ended the connection.
    UpstreamClosed,
    /// TLS with the upstream failed: it, or we, refused the other's certificate, or it speaks none.
    UpstreamTlsFailed,
    /// The upstream could not be reached.
    UpstreamUnreachable,
}

impl Reason {
    /// The stable code that audit events carry.
    pub const fn code(self) -> &'static str {
        match self {
            Self::ClientCertificateExpired => "client_certificate_expired",
            Self::ClientCertificateInvalid => "client_certificate_invalid",
            Self::ClientCertificateMissing => "client_certificate_missing",
            Self::ClientCertificateRevoked => "client_certificate_revoked",
            Self::ClientCertificateUnknownCa => "client_certificate_unknown_ca",
            Self::ClientClosed => "client_closed",
            Self::ClientNotTrusted => "client_not_trusted",
            Self::ClosedByAdmin => "closed_by_admin",
            Self::ConnectionLimit => "connection_limit",
            Self::CredentialRevoked => "credential_revoked",
            Self::HalfCloseTimeout => "half_close_timeout",
            Self::HandshakeFailed => "handshake_failed",
            Self::HandshakeLimit => "handshake_limit",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::IoError => "io_error",
            Self::ListenerRemoved => "listener_removed",
            Self::PlaintextRefused => "plaintext_refused",
            Self::ProtocolViolation => "protocol_violation",
            Self::ProxyHeaderInvalid => "proxy_header_invalid",
            Self::ProxyHeaderMissing => "proxy_header_missing",
            Self::RateLimited => "rate_limited",
            Self::RuleExpired => "rule_expired",
            Self::Shutdown => "shutdown",
            Self::SourceConnectionLimit => "source_connection_limit",
            Self::SourceRevoked => "source_revoked",
            Self::UntrustedSource => "untrusted_source",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamTlsFailed => "upstream_tls_failed",
            Self::UpstreamUnreachable => "upstream_unreachable",
        }
    }

    /// Whether the policy ends an open session for this.
    pub const fn is_revocation(self) -> bool {
        matches!(
            self,
            Self::ClientCertificateExpired
                | Self::CredentialRevoked
                | Self::ListenerRemoved
                | Self::RuleExpired
                | Self::SourceRevoked
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// The end of a connection: the code for the auditor and the words for the operator. The client is told neither; it gets
/// a fixed message of its own protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The stable code.
    pub reason: Reason,
    /// What happened and what to do about it, for the log. Empty where the code says it all. Escaped and cut, because it may
    /// contain names and error texts of clients and upstreams.
    pub detail: String,
}

impl Outcome {
    /// An ending that needs words.
    pub fn new(reason: Reason, detail: impl fmt::Display) -> Self {
        Self { reason, detail: printable::field(detail) }
    }

    /// Adds words to the detail.
    pub fn add(&mut self, words: impl fmt::Display) {
        self.detail = printable::field(format_args!("{}{words}", self.detail));
    }
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: String::new() }
    }
}

/// Bytes relayed so far. Kept outside the relay's future, so that a session ended by an error still tells its counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByteCounts {
    /// Bytes from the client to the upstream, as plaintext.
    pub inbound: u64,
    /// Bytes from the upstream to the client, as plaintext.
    pub outbound: u64,
}
