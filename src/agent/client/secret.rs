//! The content of secrets: files and environment variables.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::{env, io};

use zeroize::Zeroizing;

use crate::resolution::settings::Secret;

/// Why a secret is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("{0}: {1}")]
    File(String, #[source] io::Error),
    #[error("the environment variable {0} is not set")]
    Variable(String),
    #[error("{place} has no valid {expected}")]
    Invalid { place: String, expected: &'static str },
}

/// The content of a secret now, and where it is.
///
/// # Errors
/// If it is missing.
pub(super) fn read(secret: &Secret) -> Result<(Zeroizing<String>, String), SecretError> {
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
pub(super) const MAX_TOKEN: usize = 16 << 10;
