//! The fixed words that tell a PostgreSQL client why its session is over. They leak nothing: no address, no rule, no name.
//!
//! The other protocols have none. A Redis client takes whatever comes for the answer to its next command, so that an error
//! line that answers nothing would do harm; close_notify says enough.

use crate::outcome::Reason;
use crate::protocol::postgres;

/// The ErrorResponse for a session that has to end. To be sent between two messages only (see [`FrameTracker`]).
///
/// [`FrameTracker`]: crate::protocol::postgres::frame::FrameTracker
pub(crate) fn farewell_message(reason: Reason) -> Vec<u8> {
    let (message, hint) = match reason {
        Reason::ListenerRemoved | Reason::RuleExpired | Reason::SourceRevoked | Reason::UntrustedSource => {
            ("terminating connection because it is not allowed any more", "Ask the operator for access.")
        }
        Reason::ClientCertificateExpired
        | Reason::ClientCertificateInvalid
        | Reason::ClientCertificateMissing
        | Reason::ClientCertificateRevoked
        | Reason::ClientCertificateUnknownCa
        | Reason::ClientNotTrusted
        | Reason::CredentialRevoked => (
            "terminating connection because the client certificate is not accepted any more",
            "Connect again with a current certificate that this port trusts.",
        ),
        Reason::IdleTimeout => {
            ("terminating connection because nothing was said for too long (idle_timeout)", "Connect again.")
        }
        Reason::Shutdown => ("terminating connection because the proxy is stopping", "Connect again."),
        Reason::ClosedByAdmin => (
            "terminating connection because an operator has closed it",
            "Connect again, or ask the operator for the reason.",
        ),
        // Nobody is shown out for these; whoever is all the same deserves an answer.
        Reason::ClientClosed
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
    fn every_goodbye_is_one_whole_message_of_class_57p01_with_something_to_do() {
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
            let mut boundary = FrameTracker::default();
            boundary.follow(&packet);
            assert!(boundary.is_at_boundary(), "{reason}");
        }
    }

    #[test]
    fn the_client_does_not_learn_what_the_policy_says_of_it() {
        let told = farewell_message(Reason::SourceRevoked);
        assert_eq!(told, farewell_message(Reason::RuleExpired));
        assert_eq!(told, farewell_message(Reason::ListenerRemoved));
    }
}
