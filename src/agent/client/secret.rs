//! Tokens: where they are, and how they are sent.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::{env, io};

use hyper::header::HeaderValue;
use zeroize::Zeroizing;

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

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("{0}: {1}")]
    File(String, #[source] io::Error),
    #[error("the environment variable {0} is not set")]
    Variable(String),
    #[error("{0} has no valid token; a token is one line of printable ASCII")]
    Invalid(String),
    #[error("{0} has no valid password; a password is one line of text")]
    Password(String),
}

impl Token {
    /// Reads the token where it is now.
    ///
    /// # Errors
    /// If it is missing or cannot be a token.
    pub(crate) fn read(secret: &Secret) -> Result<Self, SecretError> {
        let (text, place) = read(secret)?;
        Self::parse(&text).ok_or(SecretError::Invalid(place))
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

/// Reads a password where it is now: one line of text, which may have spaces.
///
/// # Errors
/// If it is missing or cannot be a password.
pub(crate) fn read_password(secret: &Secret) -> Result<Zeroizing<String>, SecretError> {
    let (text, place) = read(secret)?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() || password.chars().any(char::is_control) {
        return Err(SecretError::Password(place));
    }
    Ok(Zeroizing::new(password.to_owned()))
}

/// The content of a secret, and where it is.
fn read(secret: &Secret) -> Result<(Zeroizing<String>, String), SecretError> {
    match secret {
        Secret::File(path) => {
            let place = path.display().to_string();
            Ok((read_file(path).map_err(|error| SecretError::File(place.clone(), error))?, place))
        }
        Secret::Environment(name) => {
            let value = env::var(name).map_err(|_| SecretError::Variable(name.clone()))?;
            Ok((Zeroizing::new(value), format!("the environment variable {name}")))
        }
    }
}

fn read_file(path: &Path) -> io::Result<Zeroizing<String>> {
    // Opening a FIFO must not wait for a writer.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut text = Zeroizing::new(String::with_capacity(MAX_TOKEN));
    file.take(u64::try_from(MAX_TOKEN).unwrap_or(u64::MAX)).read_to_string(&mut text)?;
    if text.len() == MAX_TOKEN {
        return Err(io::Error::other("too long for a token"));
    }
    Ok(text)
}

/// Longer than any token, in bytes: those of Kubernetes are the longest.
const MAX_TOKEN: usize = 16 << 10;

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
    fn password_is_one_line_of_text() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        for (text, expected) in [
            ("a b\n", Some("a b")),
            (" ä\r\n", Some(" ä")),
            ("a", Some("a")),
            ("", None),
            ("\n", None),
            ("a\nb\n", None),
            ("a\0", None),
        ] {
            fs::write(&file, text).unwrap();
            let read = read_password(&Secret::File(file.clone()));
            assert_eq!(read.as_ref().ok().map(|password| password.as_str()), expected, "{text:?}");
        }
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
        fs::write(&file, "a".repeat(MAX_TOKEN)).unwrap();
        assert!(read().unwrap_err().contains("too long for a token"));
        fs::write(&file, "").unwrap();
        assert!(read().unwrap_err().contains("has no valid token"));
        let missing = Token::read(&Secret::Environment("PORTCULLIS_NO_SUCH_VARIABLE".to_owned())).unwrap_err();
        assert_eq!(missing.to_string(), "the environment variable PORTCULLIS_NO_SUCH_VARIABLE is not set");
    }
}
