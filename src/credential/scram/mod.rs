//! The messages of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), as PostgreSQL uses them: the user name of the SASL
//! messages is ignored, because the StartupMessage has it. Pure: messages in, messages out.

pub(crate) mod client;
pub(crate) mod server;

use std::num::NonZeroU32;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The SASL mechanism that a client has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mechanism {
    /// SCRAM-SHA-256
    Scram,
    /// SCRAM-SHA-256-PLUS, bound to the TLS connection by `tls-server-end-point` (RFC 5929 §4).
    ScramPlus,
}

impl Mechanism {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Scram => "SCRAM-SHA-256",
            Self::ScramPlus => "SCRAM-SHA-256-PLUS",
        }
    }

    pub(crate) fn by_name(name: &[u8]) -> Option<Self> {
        [Self::Scram, Self::ScramPlus].into_iter().find(|mechanism| mechanism.name().as_bytes() == name)
    }
}

/// A new nonce. `None` if the system has no random numbers.
pub(crate) fn nonce() -> Option<String> {
    let mut random = [0; NONCE];
    rand::fill(&mut random).ok()?;
    Some(STANDARD.encode(random))
}

/// The value of the attribute that a message begins with, and what follows its comma.
fn attribute(text: &str, name: char) -> Option<(&str, &str)> {
    let rest = text.strip_prefix(name)?.strip_prefix('=')?;
    Some(rest.split_once(',').unwrap_or((rest, "")))
}

/// Whether a nonce has printable characters only, without commas (RFC 5802 §7).
fn is_nonce(text: &str) -> bool {
    (1..=MAX_NONCE).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

fn iterations(text: &str) -> Option<NonZeroU32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The maximum length of a SASL message in bytes.
pub(crate) const MAX_MESSAGE: usize = 4096;

/// As PostgreSQL: 18 bytes, which are 24 characters.
const NONCE: usize = 18;

const MAX_NONCE: usize = 1024;

/// The channel binding type of RFC 5929 §4.
const END_POINT: &str = "tls-server-end-point";
