//! systemd credentials: files in a private directory of the service, which systemd names in `$CREDENTIALS_DIRECTORY`.

use std::env;
use std::path::{Path, PathBuf};

/// Returns the name of the credential if a configured path refers to one.
pub(crate) fn named(path: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix))
}

/// Whether a name stays inside the credentials directory.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && name != "." && !name.contains("..") && !name.contains(['/', '\0'])
}

/// The credentials directory of this process, if systemd has set one.
pub(crate) fn directory() -> Option<PathBuf> {
    env::var_os("CREDENTIALS_DIRECTORY").filter(|directory| !directory.is_empty()).map(PathBuf::from)
}

/// Whether a file lies in the credentials directory.
pub(crate) fn holds(file: &Path) -> bool {
    directory().is_some_and(|directory| file.parent() == Some(&directory))
}

const PREFIXES: [&str; 3] = ["credential:", "$CREDENTIALS_DIRECTORY/", "${CREDENTIALS_DIRECTORY}/"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_path_with_any_prefix_yields_its_name() {
        for path in ["credential:key", "$CREDENTIALS_DIRECTORY/key", "${CREDENTIALS_DIRECTORY}/key"] {
            assert_eq!(named(path), Some("key"), "{path}");
        }
        for path in ["key", "/credential:key", "$CREDENTIALS_DIRECTORY", "$CREDENTIALS_DIRECTORY2/key", "$HOME/key"] {
            assert_eq!(named(path), None, "{path}");
        }
    }

    #[test]
    fn credential_name_with_slash_or_dots_is_rejected() {
        for name in ["key", "tls.key", ".key", "a b"] {
            assert!(is_name(name), "{name:?}");
        }
        for name in ["", ".", "..", "../key", "a/b", "/etc/passwd", "a..b", "a\0b"] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
