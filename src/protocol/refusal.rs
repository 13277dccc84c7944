//! The fixed messages to clients that are rejected inside TLS. They leak no address, no rule and no cause.

use crate::outcome::Reason;
use crate::protocol::{Protocol, postgres, redis};

/// The error message of `protocol` for a rejected client. `None` where the protocol has no such message, or where the client
/// no longer reads.
pub(crate) fn refusal(protocol: Protocol, reason: Reason) -> Option<Vec<u8>> {
    let message = Message::of(reason)?;
    match protocol {
        Protocol::Postgres => Some(postgres::fatal(message.sqlstate, message.text, message.hint)),
        Protocol::Redis => Some(match message.sqlstate {
            postgres::INVALID_AUTHORIZATION => redis::denied(message.text),
            postgres::TOO_MANY_CONNECTIONS => redis::TOO_MANY_CLIENTS.to_vec(),
            postgres::CANNOT_CONNECT_NOW => redis::loading(message.text),
            _ => redis::error(message.text),
        }),
        Protocol::Tcp => None,
    }
}

struct Message {
    sqlstate: &'static str,
    text: &'static str,
    hint: &'static str,
}

impl Message {
    fn of(reason: Reason) -> Option<Self> {
        let (sqlstate, text, hint) = match reason {
            Reason::ListenerRemoved | Reason::RuleExpired | Reason::SourceRevoked | Reason::UntrustedSource => {
                (postgres::INVALID_AUTHORIZATION, "this connection is not allowed", "Ask the operator for access.")
            }
            Reason::ClientCertificateExpired
            | Reason::ClientCertificateInvalid
            | Reason::ClientCertificateMissing
            | Reason::ClientCertificateRevoked
            | Reason::ClientCertificateUnknownCa => (
                postgres::INVALID_AUTHORIZATION,
                "the client certificate is not accepted",
                "Present a current certificate that this port trusts.",
            ),
            Reason::CredentialRevoked => (
                postgres::INVALID_AUTHORIZATION,
                "the client certificate or the password is no longer accepted",
                "Use a current certificate or password that this port trusts.",
            ),
            // The phase that authenticates has the message with the user name.
            Reason::AuthenticationFailed => (postgres::INVALID_PASSWORD, "password authentication failed", ""),
            Reason::ClientNotTrusted => (
                postgres::INVALID_AUTHORIZATION,
                "this client is not allowed",
                "Ask the operator for access, or present a certificate that has access.",
            ),
            Reason::ConnectionLimit => (
                postgres::TOO_MANY_CONNECTIONS,
                "too many connections",
                "Close connections that are not needed, or try again later.",
            ),
            Reason::RateLimited => {
                (postgres::TOO_MANY_CONNECTIONS, "too many connections in a short time", "Try again later.")
            }
            Reason::SourceConnectionLimit => (
                postgres::TOO_MANY_CONNECTIONS,
                "too many connections from this address",
                "Close connections that are not needed, or try again later.",
            ),
            Reason::UpstreamAuthenticationFailed | Reason::UpstreamTlsFailed | Reason::UpstreamUnreachable => {
                (postgres::CANNOT_CONNECT_NOW, "the database behind this proxy cannot be reached", "Try again later.")
            }
            Reason::ProtocolViolation => {
                (postgres::PROTOCOL_VIOLATION, "a StartupMessage or CancelRequest was expected here", "")
            }
            Reason::ClientClosed
            | Reason::ClosedByAdmin
            | Reason::HalfCloseTimeout
            | Reason::HandshakeFailed
            | Reason::HandshakeLimit
            | Reason::HandshakeTimeout
            | Reason::IdleTimeout
            | Reason::IoError
            | Reason::PlaintextRefused
            | Reason::ProxyHeaderInvalid
            | Reason::ProxyHeaderMissing
            | Reason::Shutdown
            | Reason::UpstreamClosed => return None,
        };
        Some(Self { sqlstate, text, hint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreachable_upstream_is_loading_on_redis_and_57p03_on_postgres() {
        let message = |protocol| refusal(protocol, Reason::UpstreamUnreachable);
        assert_eq!(
            message(Protocol::Redis).as_deref(),
            Some(&b"-LOADING the database behind this proxy cannot be reached\r\n"[..])
        );
        let packet = message(Protocol::Postgres).unwrap();
        assert!(packet.windows(7).any(|window| window == b"C57P03\0"), "{packet:?}");
        assert_eq!(message(Protocol::Tcp), None);
    }

    /// redis-py and other clients compare the whole line.
    #[test]
    fn limit_is_answered_with_the_line_of_redis_itself() {
        for reason in [Reason::ConnectionLimit, Reason::SourceConnectionLimit, Reason::RateLimited] {
            let line = refusal(Protocol::Redis, reason).unwrap();
            assert_eq!(line, b"-ERR max number of clients reached\r\n", "{reason}");
            let packet = refusal(Protocol::Postgres, reason).unwrap();
            assert!(packet.windows(7).any(|window| window == b"C53300\0"), "{reason}");
        }
    }

    #[test]
    fn rejected_client_gets_denied_on_redis_and_28000_on_postgres() {
        for reason in [Reason::ClientCertificateExpired, Reason::ClientCertificateRevoked, Reason::ClientNotTrusted] {
            let message = |protocol| refusal(protocol, reason).unwrap();
            assert!(message(Protocol::Redis).starts_with(b"-DENIED "), "{reason}");
            assert!(message(Protocol::Postgres).windows(7).any(|window| window == b"C28000\0"), "{reason}");
        }
    }
}
