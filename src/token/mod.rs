//! Tokens of the admin API: who may use it over TCP, and for what.

pub(crate) mod authenticate;
pub(crate) mod failed_logins;
pub(crate) mod last_use;
pub(crate) mod secret;

use std::fmt;
use std::net::IpAddr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use time::OffsetDateTime;

use crate::digest::{Sha256, hex, sha256};
use crate::source::rule::Network;

/// A token as configured. The text of the token is known to its user only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Unique among all tokens; see [`is_name`].
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

impl Token {
    pub(crate) fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Whether the token may be used from an address. IPv4-mapped IPv6 addresses count as IPv4.
    pub(crate) fn is_usable_from(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        self.sources.is_empty() || self.sources.iter().any(|network| network.net().contains(&source))
    }
}

/// Whether a text is a valid name of a token: [`NAME`]. The text of a token is not, so that one that is written in the wrong
/// place is never shown as a name.
pub(crate) fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(is_allowed) && !text.starts_with(secret::PREFIX)
}

/// Completes "expected …".
pub(crate) const NAME: &str = "a name of 1 to 64 letters, digits and \"-\", \"_\", \".\", \"@\", such as \"ci\", that does not start with \"pcl_\"";

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
    pub(crate) const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Owner];

    /// The name in the configuration and in JSON.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Owner => "owner",
        }
    }

    /// The role with this name.
    pub(crate) fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.code() == code)
    }
}

/// The SHA-256 of the text of a token. Comparisons take the same time for all digests.
#[derive(Clone, Copy, Eq)]
pub struct TokenDigest(Sha256);

impl TokenDigest {
    /// The digest of the whole text of a token.
    pub(crate) fn of(text: &[u8]) -> Self {
        Self(sha256(text))
    }

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

impl PartialEq for TokenDigest {
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

/// Lower-case hexadecimal digits; with a precision, only as many.
impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex(&self.0))
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

#[cfg(test)]
pub(crate) mod fixtures {
    use super::{Role, Token, TokenDigest, TokenOrigin};

    /// A token of the role operator, without expiry and for all sources.
    pub(crate) fn token(name: &str, text: &str) -> Token {
        Token {
            name: name.to_owned(),
            role: Role::Operator,
            digest: TokenDigest::of(text.as_bytes()),
            created_at: None,
            expires_at: None,
            sources: Vec::new(),
            origin: TokenOrigin::TokensFile,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_the_sha256_of_the_text() {
        // printf %s abc | sha256sum
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(TokenDigest::of(b"abc").to_string(), hex);
        assert_eq!(format!("{:.8}", TokenDigest::of(b"abc")), "ba7816bf");
        assert_eq!(TokenDigest::from_hex(hex), Some(TokenDigest::of(b"abc")));
        assert_ne!(TokenDigest::from_hex(hex), Some(TokenDigest::of(b"abd")));
    }

    #[test]
    fn digest_needs_64_lower_case_digits() {
        let hex = "0f".repeat(32);
        assert!(TokenDigest::from_hex(&hex).is_some());
        for text in ["", &hex[..62], &hex[..63], &format!("{hex}0f"), &hex.to_uppercase(), &hex.replace('f', "g")] {
            assert_eq!(TokenDigest::from_hex(text), None, "{text:?}");
        }
    }

    #[test]
    fn token_in_the_place_of_a_name_is_rejected() {
        for name in ["ci", "a", "deploy@shop.example", "0-_.@", &"x".repeat(64)] {
            assert!(is_name(name), "{name:?}");
        }
        let token = format!("pcl_{}", "x".repeat(49));
        for name in ["", &"x".repeat(65), "a b", "a/b", "a\n", "é", "\"", &token] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn each_role_includes_those_before_it() {
        assert!(Role::ALL.is_sorted());
        assert!(Role::ALL.into_iter().all(|role| Role::from_code(role.code()) == Some(role)));
        assert_eq!(Role::from_code("Owner"), None);
    }
}
