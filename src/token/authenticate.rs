//! Which token a request presents, and whether it is valid.

use std::net::IpAddr;

use time::OffsetDateTime;

use crate::token::{Token, TokenDigest};

/// Why a presented token is refused. The caller is not to learn which: a client receives the same answer for all of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenRefusal {
    #[error("no token has this text")]
    Unknown,
    #[error("the token \"{name}\" has expired")]
    Expired { name: String },
    #[error("the token \"{name}\" may not be used from this source")]
    WrongSource { name: String },
}

impl TokenRefusal {
    /// The name of the token, if there is one.
    pub(crate) fn token_name(&self) -> Option<&str> {
        match self {
            Self::Unknown => None,
            Self::Expired { name } | Self::WrongSource { name } => Some(name),
        }
    }
}

/// Returns the token whose text is `presented`, if a client with the address `source` may use it.
///
/// The presented text is hashed first and compared with all tokens, so the duration depends on its length and on the number of
/// tokens only.
///
/// # Errors
/// When there is no such token, or it may not be used now or from this source.
pub(crate) fn authenticate<'t>(
    tokens: &'t [Token],
    presented: &[u8],
    source: IpAddr,
    now: OffsetDateTime,
) -> Result<&'t Token, TokenRefusal> {
    let digest = TokenDigest::of(presented);
    let same = |found, token: &'t Token| if token.digest == digest { Some(token) } else { found };
    let token = tokens.iter().fold(None, same).ok_or(TokenRefusal::Unknown)?;
    if token.is_expired(now) {
        return Err(TokenRefusal::Expired { name: token.name.clone() });
    }
    if !token.is_usable_from(source) {
        return Err(TokenRefusal::WrongSource { name: token.name.clone() });
    }
    Ok(token)
}

/// Returns the token in the value of an `Authorization` header of the form `Bearer TOKEN` (RFC 6750 §2.1), or `None` if the
/// value has another form or the token more than [`MAX_TOKEN`] bytes.
pub(crate) fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = header.split_at_checked(SCHEME.len())?;
    let token = rest.trim_ascii_start();
    let spaces = rest.strip_suffix(token)?;
    let is_bearer =
        scheme.eq_ignore_ascii_case(SCHEME) && !spaces.is_empty() && spaces.iter().all(|byte| *byte == b' ');
    (is_bearer && is_b64token(token) && token.len() <= MAX_TOKEN).then_some(token)
}

const SCHEME: &[u8] = b"Bearer";

/// In bytes.
const MAX_TOKEN: usize = 512;

/// `b64token` of RFC 6750 §2.1: at least one character, and `=` only at the end.
fn is_b64token(text: &[u8]) -> bool {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    let characters = text.iter().take_while(|byte| is_allowed(byte)).count();
    characters > 0 && text.iter().skip(characters).all(|byte| *byte == b'=')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::fixtures::token;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn from(ip: &str) -> IpAddr {
        ip.parse().unwrap()
    }

    #[test]
    fn token_is_found_by_its_whole_text() {
        let tokens = [token("one", "first"), token("two", "second"), token("three", "third")];
        let name = |text: &str| {
            authenticate(&tokens, text.as_bytes(), from("192.0.2.1"), NOW).map(|token| token.name.as_str())
        };
        assert_eq!([name("first"), name("second"), name("third")], [Ok("one"), Ok("two"), Ok("three")]);
        for text in ["", "firs", "first ", "First", &tokens[0].digest.to_string(), "one"] {
            assert_eq!(name(text), Err(TokenRefusal::Unknown), "{text:?}");
        }
        assert_eq!(authenticate(&[], b"first", from("192.0.2.1"), NOW), Err(TokenRefusal::Unknown));
    }

    #[test]
    fn token_is_refused_from_its_expiry_on() {
        let second = time::Duration::seconds(1);
        let tokens = [Token { expires_at: Some(NOW), ..token("ci", "text") }];
        let at = |now| authenticate(&tokens, b"text", from("192.0.2.1"), now);
        assert_eq!(at(NOW - second), Ok(&tokens[0]));
        let refusal = TokenRefusal::Expired { name: "ci".to_owned() };
        assert_eq!(at(NOW), Err(refusal.clone()));
        assert_eq!(at(NOW + second), Err(refusal));
    }

    #[test]
    fn token_is_refused_outside_its_networks() {
        let sources = ["10.0.0.0/8", "2001:db8::/32"].map(|network| network.parse().unwrap()).to_vec();
        let tokens = [Token { sources, ..token("ci", "text") }];
        let refusal = TokenRefusal::WrongSource { name: "ci".to_owned() };
        for ip in ["10.0.0.0", "10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"] {
            assert_eq!(authenticate(&tokens, b"text", from(ip), NOW), Ok(&tokens[0]), "{ip}");
        }
        for ip in ["11.0.0.1", "::ffff:11.0.0.1", "2001:db9::1", "::", "::10.1.2.3"] {
            assert_eq!(authenticate(&tokens, b"text", from(ip), NOW), Err(refusal.clone()), "{ip}");
        }
        assert_eq!(refusal.token_name(), Some("ci"));
    }

    #[test]
    fn token_for_all_ipv6_addresses_is_not_for_ipv4() {
        let tokens = [Token { sources: vec!["::/0".parse().unwrap()], ..token("ci", "text") }];
        assert!(authenticate(&tokens, b"text", from("::1"), NOW).is_ok());
        assert!(authenticate(&tokens, b"text", from("::ffff:10.1.2.3"), NOW).is_err());
    }

    #[test]
    fn header_of_another_form_has_no_token() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bEARER   a-._~+/9=="), Some(&b"a-._~+/9=="[..]));
        for header in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer  ",
            "Bearerabc",
            "Bearer\tabc",
            "Bearer \tabc",
            " Bearer abc",
            "Bearer abc ",
            "Bearer abc def",
            "Bearer abc,",
            "Bearer \"abc\"",
            "Bearer =",
            "Bearer a=b",
            "Bearer ab\0",
            "Bearer ab\n",
            "Bearer é",
            "Basic abc",
            "Token abc",
            "Bearer: abc",
            "Bearer Bearer abc",
        ] {
            assert_eq!(bearer(header.as_bytes()), None, "{header:?}");
        }
        assert_eq!(bearer(b"Bearer ab\xff"), None);
    }

    #[test]
    fn longest_token_has_512_bytes() {
        let header = |length| format!("Bearer {}", "a".repeat(length));
        assert_eq!(bearer(header(MAX_TOKEN).as_bytes()).map(<[u8]>::len), Some(MAX_TOKEN));
        assert_eq!(bearer(header(MAX_TOKEN + 1).as_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_header_gives_a_token_of_its_end_or_none(header: Vec<u8>) {
            if let Some(token) = bearer(&header) {
                prop_assert!(header.ends_with(token));
                prop_assert!(is_b64token(token));
            }
        }

        #[test]
        fn header_with_a_b64token_gives_that_token(
            scheme in "[Bb][Ee][Aa][Rr][Ee][Rr]",
            spaces in " {1,5}",
            token in "[A-Za-z0-9._~+/-]{1,400}={0,3}",
        ) {
            let header = format!("{scheme}{spaces}{token}");
            prop_assert_eq!(bearer(header.as_bytes()), Some(token.as_bytes()));
        }

        #[test]
        fn character_outside_of_b64token_is_rejected(
            before in "[A-Za-z0-9._~+/-]{0,20}",
            other in "[^A-Za-z0-9._~+/= -]",
            after in "[A-Za-z0-9._~+/-]{1,20}",
        ) {
            let header = format!("Bearer {before}{other}{after}");
            prop_assert_eq!(bearer(header.as_bytes()), None);
        }
    }
}
