//! The token that a command sends over TCP.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use hyper::header::HeaderValue;
use zeroize::Zeroizing;

use crate::cli::Failure;

/// A token and where it was read from. Neither `Debug` nor an error shows the token.
#[derive(Clone, Debug)]
pub(crate) struct AccessToken {
    /// The value of the `Authorization` header, which hyper marks as sensitive.
    pub(crate) authorization: HeaderValue,
    pub(crate) origin: TokenOrigin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenOrigin {
    Variable,
    File(PathBuf),
}

impl AccessToken {
    /// Reads the first line of `file`, or else `$PORTCULLIS_TOKEN`.
    ///
    /// # Errors
    /// Without a token (exit code 2), or if it cannot be read or sent.
    pub(crate) fn read(file: Option<&Path>) -> Result<Self, Failure> {
        Self::from(file, std::env::var_os(VARIABLE))
    }

    fn from(file: Option<&Path>, variable: Option<OsString>) -> Result<Self, Failure> {
        let (text, origin) = match (file, variable.filter(|text| !text.is_empty())) {
            (Some(file), _) => {
                let line =
                    first_line(file).map_err(|error| Failure::file(file, format_args!("{error}; {FIX_FILE}")))?;
                (line, TokenOrigin::File(file.to_owned()))
            }
            (None, Some(text)) => {
                let text = text.into_string().map_err(|_| Failure::Failed(not_a_token(&TokenOrigin::Variable)))?;
                (Zeroizing::new(text), TokenOrigin::Variable)
            }
            (None, None) => return Err(Failure::Usage(MISSING.to_owned())),
        };
        let text = text.trim();
        // RFC 6750 §2.1
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if text.is_empty() || !text.bytes().all(is_token) {
            return Err(Failure::Failed(not_a_token(&origin)));
        }
        let header = HeaderValue::try_from(Zeroizing::new(format!("Bearer {text}")).as_str());
        let mut authorization = header.map_err(|_| Failure::Failed(not_a_token(&origin)))?;
        authorization.set_sensitive(true);
        Ok(Self { authorization, origin })
    }
}

/// The form in errors: `the token in $PORTCULLIS_TOKEN`.
impl fmt::Display for TokenOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable => write!(f, "the token in ${VARIABLE}"),
            Self::File(file) => write!(f, "the token in {}", file.display()),
        }
    }
}

fn first_line(file: &Path) -> std::io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::with_capacity(MAX_LINE));
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    BufReader::new(File::open(file)?).take(limit).read_line(&mut line)?;
    Ok(line)
}

fn not_a_token(origin: &TokenOrigin) -> String {
    format!("{origin} is empty or has characters that a token cannot have; {FIX_FILE}")
}

const VARIABLE: &str = "PORTCULLIS_TOKEN";

/// Bytes.
const MAX_LINE: usize = 4096;

const FIX_FILE: &str = "it must be one line, as \"portcullis token new\" prints it";

const MISSING: &str =
    "--url requires a token: set it in $PORTCULLIS_TOKEN, or name a file with --token-file whose first line it is";

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str) -> Result<AccessToken, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, text).unwrap();
        AccessToken::from(Some(&file), Some("pcl_other".into()))
    }

    #[test]
    fn file_takes_precedence_and_only_its_first_line_counts() {
        let token = from_file(" pcl_abc-_.~+/= \nnote\n").unwrap();
        assert_eq!(token.authorization.to_str().unwrap(), "Bearer pcl_abc-_.~+/=");
        assert!(!format!("{token:?}").contains("pcl_"), "{token:?}");
        let token = AccessToken::from(None, Some("pcl_other".into())).unwrap();
        assert_eq!(token.authorization, "Bearer pcl_other");
        assert_eq!(token.origin.to_string(), "the token in $PORTCULLIS_TOKEN");
    }

    #[test]
    fn unusable_token_is_rejected_without_being_shown() {
        for text in ["", "\npcl_second", "pcl_a secret", "pcl_\u{e9}", "pcl_\u{0}"] {
            let Failure::Failed(message) = from_file(text).unwrap_err() else { panic!("{text:?}") };
            assert!(message.contains("/token") && !message.contains("pcl_"), "{message}");
        }
        for variable in [None, Some(OsString::new())] {
            assert!(matches!(AccessToken::from(None, variable).unwrap_err(), Failure::Usage(_)));
        }
    }
}
