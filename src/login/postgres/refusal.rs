//! The ErrorResponse of a database that does not accept Portcullis.

use crate::login::contains;
use crate::printable::field;
use crate::protocol::postgres::startup::message::{First, Message};
use crate::protocol::postgres::{ADMIN_SHUTDOWN, CANNOT_CONNECT_NOW, INVALID_AUTHORIZATION, INVALID_PASSWORD, fatal};

/// An ErrorResponse before AuthenticationOk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The database rejects the user or the password (SQLSTATE 28P01 or 28000).
    pub(crate) wrong_password: bool,
    /// The database is starting, stopping or recovering (57P01, 57P02, 57P03).
    pub(crate) not_ready: bool,
    /// Whether the database had received a proof of the password. If not, another password changes nothing.
    pub(crate) password_was_sent: bool,
    /// The whole message, without its text if that contains the password.
    pub(crate) message: Vec<u8>,
}

impl Refusal {
    pub(crate) fn new(message: &Message<'_>, password: Option<&str>, password_was_sent: bool) -> Self {
        let state = message.field(b'C').unwrap_or_default();
        let is_one_of = |states: &[&str]| states.iter().any(|known| known.as_bytes() == state);
        Self {
            wrong_password: is_one_of(&[INVALID_PASSWORD, INVALID_AUTHORIZATION]),
            not_ready: is_one_of(&[ADMIN_SHUTDOWN, CRASH_SHUTDOWN, CANNOT_CONNECT_NOW]),
            password_was_sent,
            message: match password {
                Some(password) if contains(message.whole, password.as_bytes()) => {
                    fatal(&String::from_utf8_lossy(state), REVEALING, "")
                }
                _ => message.whole.to_vec(),
            },
        }
    }

    /// The text of the error for the log.
    pub(crate) fn text(&self) -> String {
        let text = match First::of(&self.message) {
            First::Whole(message, _) => message.field(b'M').unwrap_or_default(),
            First::Cut | First::Impossible => b"",
        };
        field(String::from_utf8_lossy(text))
    }
}

/// In the place of a text that must not be shown.
const REVEALING: &str = "the database refused the session with an error that contains its password";

/// SQLSTATE crash_shutdown.
const CRASH_SHUTDOWN: &str = "57P02";
