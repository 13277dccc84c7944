//! The outcome of a connection.
//!
//! Every phase of a connection fails with an [`Outcome`], and a connection that succeeds ends with one too, so that one place
//! writes the audit event.

use std::fmt;

use crate::printable;

/// Why a connection ended. The codes are public: auditors filter by them (docs/AUDIT.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The client's certificate has expired.
    ClientCertificateExpired,
    /// The client's certificate is malformed or not yet valid, or has a wrong purpose or a bad signature.
    ClientCertificateInvalid,
    /// The listener requires a client certificate and none was presented.
    ClientCertificateMissing,
    /// A revocation list contains the client's certificate or one of its intermediates.
    ClientCertificateRevoked,
    /// The client's certificate was not issued by a trust anchor of the listener.
    ClientCertificateUnknownCa,
    ClientClosed,
    /// The client's certificate is valid, but no name of it is in `trusted_clients`.
    ClientNotTrusted,
    /// An administrator ended the session.
    ClosedByAdmin,
    /// The listener has reached `max_connections`.
    ConnectionLimit,
    /// The policy no longer accepts the certificate or the password of an open session.
    CredentialRevoked,
    /// One side closed and the other was silent for `half_close_timeout`.
    HalfCloseTimeout,
    HandshakeFailed,
    /// The listener has reached `max_handshakes`.
    HandshakeLimit,
    /// The client did not complete the preface and TLS within `handshake_timeout`.
    HandshakeTimeout,
    /// No byte was relayed in either direction for `idle_timeout`.
    IdleTimeout,
    /// An I/O error or an internal fault ended an open connection.
    IoError,
    /// The listener was removed from the configuration.
    ListenerRemoved,
    /// The client sent plaintext where TLS is required.
    PlaintextRefused,
    /// The client's bytes do not follow the protocol of the listener.
    ProtocolViolation,
    /// The PROXY header of a load balancer is invalid.
    ProxyHeaderInvalid,
    /// A load balancer did not send the required PROXY header.
    ProxyHeaderMissing,
    /// The source exceeds `connection_rate_per_source`.
    RateLimited,
    /// The rule that admitted an open session has expired.
    RuleExpired,
    /// The process is stopping.
    Shutdown,
    /// The source has reached `max_connections_per_source`.
    SourceConnectionLimit,
    /// No rule trusts the address of an open session any longer.
    SourceRevoked,
    /// No rule trusts the client's address.
    UntrustedSource,
    UpstreamClosed,
    /// TLS with the upstream failed: either side rejected the other's certificate, or the upstream does not support TLS.
    UpstreamTlsFailed,
    UpstreamUnreachable,
}

impl Reason {
    /// All reasons, each at the index of its discriminant.
    pub(crate) const ALL: [Self; Self::UpstreamUnreachable as usize + 1] = [
        Self::ClientCertificateExpired,
        Self::ClientCertificateInvalid,
        Self::ClientCertificateMissing,
        Self::ClientCertificateRevoked,
        Self::ClientCertificateUnknownCa,
        Self::ClientClosed,
        Self::ClientNotTrusted,
        Self::ClosedByAdmin,
        Self::ConnectionLimit,
        Self::CredentialRevoked,
        Self::HalfCloseTimeout,
        Self::HandshakeFailed,
        Self::HandshakeLimit,
        Self::HandshakeTimeout,
        Self::IdleTimeout,
        Self::IoError,
        Self::ListenerRemoved,
        Self::PlaintextRefused,
        Self::ProtocolViolation,
        Self::ProxyHeaderInvalid,
        Self::ProxyHeaderMissing,
        Self::RateLimited,
        Self::RuleExpired,
        Self::Shutdown,
        Self::SourceConnectionLimit,
        Self::SourceRevoked,
        Self::UntrustedSource,
        Self::UpstreamClosed,
        Self::UpstreamTlsFailed,
        Self::UpstreamUnreachable,
    ];

    /// The stable code in audit events.
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

    /// Whether the policy ends an open session for this reason.
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

/// The end of a connection: the code for auditors and the detail for operators. The client sees neither; it receives a fixed
/// message in its own protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub reason: Reason,
    /// What happened and what to do, for the log. Empty where the code is sufficient. It is escaped and cut, because it may
    /// contain names and error messages of clients and upstreams.
    pub detail: String,
}

impl Outcome {
    pub fn new(reason: Reason, detail: impl fmt::Display) -> Self {
        Self { reason, detail: printable::field(detail) }
    }

    /// Appends to the detail.
    pub fn add(&mut self, text: impl fmt::Display) {
        self.detail = printable::field(format_args!("{}{text}", self.detail));
    }
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: String::new() }
    }
}

/// Bytes relayed so far. They are stored outside the relay's future, so that a session that ends with an error keeps its counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByteCounts {
    /// Bytes from the client to the upstream, as plaintext.
    pub inbound: u64,
    /// Bytes from the upstream to the client, as plaintext.
    pub outbound: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed_at_their_discriminants() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason}");
        }
    }
}
