//! Passwords.

use zeroize::Zeroizing;

use crate::agent::client::secret::{self, SecretError};
use crate::resolution::settings::Secret;

/// Reads a password where it is now: one line of text, which may have spaces.
///
/// # Errors
/// If it is missing or cannot be a password.
pub(crate) fn read_password(secret: &Secret) -> Result<Zeroizing<String>, SecretError> {
    let (text, place) = secret::read(secret)?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() || password.chars().any(char::is_control) {
        return Err(SecretError::Invalid { place, expected: EXPECTED });
    }
    Ok(Zeroizing::new(password.to_owned()))
}

const EXPECTED: &str = "password; a password is one line of text";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
}
