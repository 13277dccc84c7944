//! The passwords of the database: `upstream_password_file`.

use std::fmt;

use zeroize::Zeroizing;

use crate::credential::password::MAX_LENGTH;

/// The passwords that may be valid at the database, in the order in which they are tried. Wiped from memory when they are dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct UpstreamPasswords(Vec<Zeroizing<String>>);

/// Why a file is rejected. Contains nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PasswordFileError {
    /// Counted from 1; `None` for the file as a whole.
    pub(crate) line: Option<usize>,
    pub(crate) why: WhyRejected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WhyRejected {
    #[error("has no password; write the password of the database into it, on a line of its own")]
    Empty,
    #[error("contains a NUL, which no password of a database has; remove it")]
    Nul,
    #[error("is not UTF-8; write the password in UTF-8")]
    NotUtf8,
    #[error("is longer than {MAX_LENGTH} bytes; write one password on each line")]
    Long,
    #[error("has more than {MAX_PASSWORDS} passwords; remove old ones")]
    Many,
}

impl UpstreamPasswords {
    /// Reads one password from each line. Empty lines are ignored; spaces belong to the password.
    ///
    /// # Errors
    /// If a line is no password, or there are none or too many.
    pub(crate) fn from_file(bytes: &[u8]) -> Result<Self, PasswordFileError> {
        let mut passwords = Vec::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() {
                passwords.push(password(line).map_err(|why| PasswordFileError { line: Some(index + 1), why })?);
            }
        }
        match passwords.len() {
            0 => Err(PasswordFileError { line: None, why: WhyRejected::Empty }),
            1..=MAX_PASSWORDS => Ok(Self(passwords)),
            _ => Err(PasswordFileError { line: None, why: WhyRejected::Many }),
        }
    }

    /// In the order of the file.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|password| password.as_str())
    }
}

fn password(line: &[u8]) -> Result<Zeroizing<String>, WhyRejected> {
    if line.contains(&0) {
        return Err(WhyRejected::Nul);
    }
    if line.len() > MAX_LENGTH {
        return Err(WhyRejected::Long);
    }
    let text = std::str::from_utf8(line).map_err(|_| WhyRejected::NotUtf8)?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Without the passwords.
impl fmt::Debug for UpstreamPasswords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpstreamPasswords({})", self.0.len())
    }
}

/// Each may be tried for a connection to the database.
const MAX_PASSWORDS: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &[u8]) -> Result<Vec<String>, PasswordFileError> {
        UpstreamPasswords::from_file(text).map(|passwords| passwords.iter().map(str::to_owned).collect())
    }

    #[test]
    fn each_line_is_a_password_with_its_spaces() {
        assert_eq!(read(b"one\n"), Ok(vec!["one".to_owned()]));
        let two = ["new pass ", " old#1"].map(str::to_owned).to_vec();
        assert_eq!(read(b"\nnew pass \r\n\r\n\n old#1"), Ok(two));
    }

    #[test]
    fn file_without_passwords_or_with_something_else_is_rejected_with_its_line() {
        let error = |line, why| Err(PasswordFileError { line, why });
        assert_eq!(read(b""), error(None, WhyRejected::Empty));
        assert_eq!(read(b"\r\n\n"), error(None, WhyRejected::Empty));
        assert_eq!(read(b"one\n\ntw\0o\n"), error(Some(3), WhyRejected::Nul));
        assert_eq!(read(b"\xff"), error(Some(1), WhyRejected::NotUtf8));
        assert_eq!(read(&[b'a'; MAX_LENGTH + 1]), error(Some(1), WhyRejected::Long));
        assert!(read("x\n".repeat(MAX_PASSWORDS).as_bytes()).is_ok());
        assert_eq!(read("x\n".repeat(MAX_PASSWORDS + 1).as_bytes()), error(None, WhyRejected::Many));
    }

    #[test]
    fn debug_output_has_no_password() {
        let passwords = UpstreamPasswords::from_file(b"hunter2\nhunter3\n").unwrap();
        assert_eq!(format!("{passwords:?}"), "UpstreamPasswords(2)");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_rejected(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200)) {
            if let Ok(passwords) = UpstreamPasswords::from_file(&bytes) {
                let lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
                let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
                prop_assert!(passwords.iter().map(str::as_bytes).eq(lines));
            }
        }
    }
}
