//! The fixed words a client hears when it is turned away inside TLS. They leak nothing: no address, no rule, no cause.

use crate::outcome::Reason;
use crate::protocol::{Protocol, postgres, redis};

/// The bytes that tell a client of `protocol` why its connection ends, or `None` where the protocol has no words for it
/// or the client is past hearing them.
pub(crate) fn refusal(protocol: Protocol, reason: Reason) -> Option<Vec<u8>> {
    let words = Words::of(reason)?;
    match protocol {
        Protocol::Postgres => Some(postgres::fatal(words.sqlstate, words.message, words.hint)),
        Protocol::Redis => Some(match words.sqlstate {
            postgres::INVALID_AUTHORIZATION => redis::denied(words.message),
            postgres::TOO_MANY_CONNECTIONS => redis::TOO_MANY_CLIENTS.to_vec(),
            postgres::CANNOT_CONNECT_NOW => redis::loading(words.message),
            _ => redis::error(words.message),
        }),
        Protocol::Tcp => None,
    }
}

struct Words {
    sqlstate: &'static str,
    message: &'static str,
    hint: &'static str,
}

impl Words {
    fn of(reason: Reason) -> Option<Self> {
        let (sqlstate, message, hint) = match reason {
            Reason::ListenerRemoved | Reason::RuleExpired | Reason::SourceRevoked | Reason::UntrustedSource => {
                (postgres::INVALID_AUTHORIZATION, "this connection is not allowed", "Ask the operator for access.")
            }
            Reason::ClientCertificateExpired
            | Reason::ClientCertificateInvalid
            | Reason::ClientCertificateMissing
            | Reason::ClientCertificateRevoked
            | Reason::ClientCertificateUnknownCa
            | Reason::CredentialRevoked => (
                postgres::INVALID_AUTHORIZATION,
                "the client certificate is not accepted",
                "Present a current certificate that this port trusts.",
            ),
            Reason::ClientNotTrusted => (
                postgres::INVALID_AUTHORIZATION,
                "this client is not allowed",
                "Ask the operator for access, or present a certificate that has it.",
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
            Reason::UpstreamTlsFailed | Reason::UpstreamUnreachable => {
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
        Some(Self { sqlstate, message, hint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_protocol_hears_an_unreachable_upstream_in_its_own_words() {
        let told = |protocol| refusal(protocol, Reason::UpstreamUnreachable);
        assert_eq!(
            told(Protocol::Redis).as_deref(),
            Some(&b"-LOADING the database behind this proxy cannot be reached\r\n"[..])
        );
        let packet = told(Protocol::Postgres).unwrap();
        assert!(packet.windows(7).any(|window| window == b"C57P03\0"), "{packet:?}");
        assert_eq!(told(Protocol::Tcp), None);
    }

    /// redis-py and others compare the whole line.
    #[test]
    fn limit_is_answered_with_the_line_of_redis_itself() {
        for reason in [Reason::ConnectionLimit, Reason::SourceConnectionLimit, Reason::RateLimited] {
            let told = refusal(Protocol::Redis, reason).unwrap();
            assert_eq!(told, b"-ERR max number of clients reached\r\n", "{reason}");
            let told = refusal(Protocol::Postgres, reason).unwrap();
            assert!(told.windows(7).any(|window| window == b"C53300\0"), "{reason}");
        }
    }

    #[test]
    fn a_refusal_is_denied_on_redis_and_28000_on_postgres() {
        for reason in [Reason::ClientCertificateExpired, Reason::ClientCertificateRevoked, Reason::ClientNotTrusted] {
            let told = |protocol| refusal(protocol, reason).unwrap();
            assert!(told(Protocol::Redis).starts_with(b"-DENIED "), "{reason}");
            assert!(told(Protocol::Postgres).windows(7).any(|window| window == b"C28000\0"), "{reason}");
        }
    }
}
