//! Tokens, and how they are sent.

use hyper::header::HeaderValue;
use zeroize::Zeroizing;

use crate::agent::client::secret::{self, SecretError};
use crate::resolution::settings::Secret;

/// A token for the header `Authorization`. It is not shown by `Debug`.
#[derive(Clone)]
pub(crate) struct Token(Zeroizing<String>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Token {
    /// Reads the token where it is now.
    ///
    /// # Errors
    /// If it is missing or cannot be a token.
    pub(crate) fn read(secret: &Secret) -> Result<Self, SecretError> {
        let (text, place) = secret::read(secret)?;
        Self::parse(&text).ok_or(SecretError::Invalid { place, expected: EXPECTED })
    }

    fn parse(text: &str) -> Option<Self> {
        let token = text.trim_ascii();
        let is_valid = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        is_valid.then(|| Self(Zeroizing::new(token.to_owned())))
    }

    /// The value of the header.
    pub(crate) fn bearer(&self) -> HeaderValue {
        let value = Zeroizing::new(format!("Bearer {}", self.0.as_str()));
        // A token has no character that a header cannot have.
        let mut value = HeaderValue::from_str(&value).unwrap_or(HeaderValue::from_static("Bearer"));
        value.set_sensitive(true);
        value
    }
}

const EXPECTED: &str = "token; a token is one line of printable ASCII";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn token_is_one_line_of_printable_ascii() {
        let bearer = |text: &str| Token::parse(text).map(|token| token.bearer().to_str().unwrap().to_owned());
        assert_eq!(bearer("dop_v1_abc\r\n").as_deref(), Some("Bearer dop_v1_abc"));
        for text in ["", "\n", "a b", "a\nb", "a\0", "ä"] {
            assert_eq!(bearer(text), None, "{text:?}");
        }
        let token = Token::parse("secret").unwrap();
        assert_eq!(format!("{token:?} {:?}", token.bearer()), "Token Sensitive");
    }

    #[test]
    fn token_of_a_file_is_read_anew_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let read = || Token::read(&Secret::File(file.clone())).map_err(|error| error.to_string());
        assert!(read().unwrap_err().ends_with("token: No such file or directory (os error 2)"));
        fs::write(&file, "one\n").unwrap();
        assert_eq!(read().unwrap(), Token::parse("one").unwrap());
        fs::write(&file, "two").unwrap();
        assert_eq!(read().unwrap(), Token::parse("two").unwrap());
        fs::write(&file, "a".repeat(secret::MAX_TOKEN)).unwrap();
        assert!(read().unwrap_err().contains("too long for a token"));
        fs::write(&file, "").unwrap();
        assert!(read().unwrap_err().contains("has no valid token"));
        let missing = Token::read(&Secret::Environment("PORTCULLIS_NO_SUCH_VARIABLE".to_owned())).unwrap_err();
        assert_eq!(missing.to_string(), "the environment variable PORTCULLIS_NO_SUCH_VARIABLE is not set");
    }
}
