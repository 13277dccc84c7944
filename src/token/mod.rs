//! Tokens of the admin API: who may use it over TCP, and for what.

use std::fmt;

use time::OffsetDateTime;

use crate::source::rule::Network;

/// A token as configured. The text of the token is known to its user only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Unique among all tokens.
    pub name: String,
    pub role: Role,
    pub digest: TokenDigest,
    /// `None` for a token of the configuration file that states no time.
    pub created_at: Option<OffsetDateTime>,
    /// From this time on the token is invalid; `None` means that it does not expire.
    pub expires_at: Option<OffsetDateTime>,
    /// The networks from which it may be used; empty for all.
    pub sources: Vec<Network>,
    pub origin: TokenOrigin,
}

/// What a user of the admin API may do. Each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Also changes sources, closes sessions and reloads.
    Operator,
    /// Also manages tokens.
    Owner,
}

impl Role {
    /// The name in the configuration and in JSON.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Owner => "owner",
        }
    }
}

/// The SHA-256 of the text of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenDigest(pub [u8; 32]);

impl TokenDigest {
    /// Reads 64 hexadecimal digits in lower case.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let pairs: Option<Vec<u8>> = text
            .as_bytes()
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                _ => None,
            })
            .collect();
        Some(Self(pairs?.try_into().ok()?))
    }
}

/// Lower-case hexadecimal digits.
impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The place where a token is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenOrigin {
    /// An `[[admin.token]]` table.
    Configuration,
    /// The `tokens_file`, which API and CLI rewrite.
    TokensFile,
}
