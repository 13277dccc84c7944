//! The fixed farewell messages to PostgreSQL clients whose session ends. They leak no address, no rule and no name.
//!
//! The other protocols have none. A Redis client would take an unsolicited error line for the reply to its next command, so
//! close_notify alone ends the session.

use crate::outcome::Reason;
use crate::protocol::postgres;

/// The ErrorResponse for a session that has to end. Send it at a message boundary only (see [`FrameTracker`]).
///
/// [`FrameTracker`]: crate::protocol::postgres::frame::FrameTracker
pub(crate) fn farewell_message(reason: Reason) -> Vec<u8> {
    let (message, hint) = match reason {
        Reason::ListenerRemoved | Reason::RuleExpired | Reason::SourceRevoked | Reason::UntrustedSource => {
            ("terminating connection because it is no longer allowed", "Ask the operator for access.")
        }
        Reason::ClientCertificateExpired
        | Reason::ClientCertificateInvalid
        | Reason::ClientCertificateMissing
        | Reason::ClientCertificateRevoked
        | Reason::ClientCertificateUnknownCa
        | Reason::ClientNotTrusted => (
            "terminating connection because the client certificate is no longer accepted",
            "Connect again with a current certificate that this port trusts.",
        ),
        Reason::CredentialRevoked => (
            "terminating connection because the client certificate or the password is no longer accepted",
            "Connect again with a current certificate or password that this port trusts.",
        ),
        Reason::IdleTimeout => {
            ("terminating connection because it was idle for too long (idle_timeout)", "Connect again.")
        }
        Reason::Shutdown => ("terminating connection because the proxy is stopping", "Connect again."),
        Reason::ClosedByAdmin => (
            "terminating connection because an operator closed it",
            "Connect again, or ask the operator for the reason.",
        ),
        // No session is terminated for these reasons. The message covers the case all the same.
        Reason::AuthenticationFailed
        | Reason::ClientClosed
        | Reason::HalfCloseTimeout
        | Reason::HandshakeFailed
        | Reason::HandshakeLimit
        | Reason::HandshakeTimeout
        | Reason::IoError
        | Reason::PlaintextRefused
        | Reason::ProtocolViolation
        | Reason::ConnectionLimit
        | Reason::ProxyHeaderInvalid
        | Reason::ProxyHeaderMissing
        | Reason::RateLimited
        | Reason::SourceConnectionLimit
        | Reason::UpstreamAuthenticationFailed
        | Reason::UpstreamClosed
        | Reason::UpstreamTlsFailed
        | Reason::UpstreamUnreachable => ("terminating connection", "Connect again."),
    };
    postgres::fatal(postgres::ADMIN_SHUTDOWN, message, hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::postgres::frame::FrameTracker;

    #[test]
    fn farewell_is_one_complete_57p01_message_with_a_hint() {
        for reason in [
            Reason::ClosedByAdmin,
            Reason::CredentialRevoked,
            Reason::ListenerRemoved,
            Reason::RuleExpired,
            Reason::Shutdown,
            Reason::SourceRevoked,
        ] {
            let packet = farewell_message(reason);
            let has = |bytes: &[u8]| packet.windows(bytes.len()).any(|window| window == bytes);
            assert!(has(b"C57P01\0") && has(b"\0Mterminating connection because ") && has(b"\0H"), "{reason}");
            let mut tracker = FrameTracker::default();
            tracker.follow(&packet);
            assert!(tracker.is_at_boundary(), "{reason}");
        }
    }

    #[test]
    fn farewell_is_the_same_for_every_policy_reason() {
        let message = farewell_message(Reason::SourceRevoked);
        assert_eq!(message, farewell_message(Reason::RuleExpired));
        assert_eq!(message, farewell_message(Reason::ListenerRemoved));
    }
}
