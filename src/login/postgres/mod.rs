//! The authentication of a PostgreSQL session on both legs. The client proves one of its own passwords to Portcullis, and
//! Portcullis proves the database's password to the database.
//!
//! ```text
//! client                     Portcullis                      database
//!   StartupMessage ───────►  StartupParameters
//!                            rewritten ───────────────────►
//!   ◄── AuthenticationSASL   ClientLogin     UpstreamLogin  ◄── AuthenticationSASL, …
//!   SASLInitialResponse ──►                                 ──► SASLInitialResponse, PasswordMessage, …
//!   ◄── AuthenticationSASLFinal
//!   ◄── AuthenticationOk, ParameterStatus, … ◄───────────────── AuthenticationOk, ParameterStatus, …
//! ```
//!
//! Source: PostgreSQL documentation, "Start-up", "SASL Authentication" and "Message Formats". Errors to clients have the SQLSTATEs
//! and texts of PostgreSQL 15.

pub(crate) mod client;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod parameters;
pub(crate) mod refusal;
pub(crate) mod upstream;

#[cfg(test)]
mod tests;

use crate::login::shown_name;
use crate::protocol::postgres::{INVALID_PASSWORD, fatal};

/// The answer to a client with an unknown user or a wrong password. `user` is the name in the StartupMessage.
pub(crate) fn password_rejected(user: &[u8]) -> Vec<u8> {
    fatal(INVALID_PASSWORD, &format!("password authentication failed for user \"{}\"", shown_name(user)), "")
}

/// Codes of authentication requests.
const OK: u32 = 0;
const CLEARTEXT_PASSWORD: u32 = 3;
const MD5_PASSWORD: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// The type of PasswordMessage, SASLInitialResponse and SASLResponse.
const PASSWORD_MESSAGE: u8 = b'p';
