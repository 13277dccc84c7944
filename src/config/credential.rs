//! systemd's credentials: files in a directory of the service's own, which systemd names in `$CREDENTIALS_DIRECTORY`.

use std::env;
use std::path::{Path, PathBuf};

/// The name of the credential that a path of the configuration means, if it means one.
pub(crate) fn named(path: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix))
}

/// Whether a name cannot lead out of the directory.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && name != "." && !name.contains("..") && !name.contains(['/', '\0'])
}

/// Where this process finds its credentials, if it was given any.
pub(crate) fn directory() -> Option<PathBuf> {
    env::var_os("CREDENTIALS_DIRECTORY").filter(|directory| !directory.is_empty()).map(PathBuf::from)
}

/// Whether a file is a credential.
pub(crate) fn holds(file: &Path) -> bool {
    directory().is_some_and(|directory| file.parent() == Some(&directory))
}

const PREFIXES: [&str; 3] = ["credential:", "$CREDENTIALS_DIRECTORY/", "${CREDENTIALS_DIRECTORY}/"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_named_in_three_ways() {
        for path in ["credential:key", "$CREDENTIALS_DIRECTORY/key", "${CREDENTIALS_DIRECTORY}/key"] {
            assert_eq!(named(path), Some("key"), "{path}");
        }
        for path in ["key", "/credential:key", "$CREDENTIALS_DIRECTORY", "$CREDENTIALS_DIRECTORY2/key", "$HOME/key"] {
            assert_eq!(named(path), None, "{path}");
        }
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        for name in ["key", "tls.key", ".key", "a b"] {
            assert!(is_name(name), "{name:?}");
        }
        for name in ["", ".", "..", "../key", "a/b", "/etc/passwd", "a..b", "a\0b"] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
