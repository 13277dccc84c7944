//! Why a client is rejected, and which error it receives.

use crate::credential::scram::server::ServerError;
use crate::login::postgres::client::MAX_LENGTH;
use crate::login::postgres::password_rejected;
use crate::protocol::postgres::{FEATURE_NOT_SUPPORTED, INVALID_AUTHORIZATION, PROTOCOL_VIOLATION, fatal};

/// Why a client is rejected, for the log and the audit. The client does not receive the difference between
/// [`WrongPassword`](Self::WrongPassword) and [`UnknownUser`](Self::UnknownUser).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoginFailure {
    #[error("wrong password")]
    WrongPassword,
    #[error("unknown user, or user without a valid password")]
    UnknownUser,
    #[error("{0}")]
    Scram(ServerError),
    #[error("the client chose a SASL mechanism that was not offered")]
    Mechanism,
    #[error("malformed SASLInitialResponse")]
    Malformed,
    #[error("the client sent a message of type {0} instead of a SASL response")]
    Type(u8),
    #[error("the client sent a SASL response with length {0}, expected 4 to {MAX_LENGTH}")]
    Length(u32),
}

impl LoginFailure {
    /// Whether the client breaks the protocol. Otherwise it has the wrong credentials, or another certificate than Portcullis
    /// presents: somebody may be between them.
    pub(crate) fn is_violation(self) -> bool {
        !matches!(
            self,
            Self::WrongPassword | Self::UnknownUser | Self::Scram(ServerError::Binding | ServerError::Downgrade)
        )
    }

    /// The ErrorResponse for the client. Apart from the name of the user, it depends only on what the client sent.
    pub(crate) fn message(self, user: &[u8]) -> Vec<u8> {
        let expected;
        let (state, text) = match self {
            // PostgreSQL rejects a length in the same way.
            Self::WrongPassword | Self::UnknownUser | Self::Length(_) => return password_rejected(user),
            Self::Scram(error) => refusal(error),
            Self::Mechanism => (PROTOCOL_VIOLATION, "client selected an invalid SASL authentication mechanism"),
            Self::Malformed => (PROTOCOL_VIOLATION, "invalid message format"),
            Self::Type(kind) => {
                expected = format!("expected SASL response, got message type {kind}");
                (PROTOCOL_VIOLATION, expected.as_str())
            }
        };
        fatal(state, text, "")
    }
}

/// SQLSTATE and text.
fn refusal(error: ServerError) -> (&'static str, &'static str) {
    match error {
        ServerError::Malformed(_) | ServerError::WrongProof => (PROTOCOL_VIOLATION, "malformed SCRAM message"),
        ServerError::AuthorizationIdentity => {
            (FEATURE_NOT_SUPPORTED, "client uses authorization identity, but it is not supported")
        }
        ServerError::Extension => (FEATURE_NOT_SUPPORTED, "client requires an unsupported SCRAM extension"),
        ServerError::BindingType => (PROTOCOL_VIOLATION, "unsupported SCRAM channel-binding type"),
        ServerError::Downgrade => (INVALID_AUTHORIZATION, "SCRAM channel binding negotiation error"),
        ServerError::Binding => (INVALID_AUTHORIZATION, "SCRAM channel binding check failed"),
    }
}
