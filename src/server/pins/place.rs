//! Where the API writes a pinned certificate: the first directory or pattern of `client_certificates` that can be written to.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::files::PathKind;
use crate::identity::settings::ClientAuth;
use crate::permissions;
use crate::policy::ListenerPolicy;
use crate::policy::pins::PinPlace;
use crate::x509::fingerprint::{CertificateFingerprint, DIGITS};

/// A directory or pattern that can hold further certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WritablePlace {
    path: PathBuf,
    named_by: NamedBy,
}

/// How new files are named.
#[derive(Clone, Debug, PartialEq, Eq)]
enum NamedBy {
    Directory,
    /// A pattern that matches every name of a fingerprint between these texts.
    Pattern {
        prefix: String,
        suffix: String,
    },
}

/// Why no certificate can be pinned by the API, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotWritable(String);

impl fmt::Display for NotWritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl WritablePlace {
    /// As configured.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file for a certificate. Nothing in its name comes from the certificate's owner.
    pub(crate) fn file_of(&self, sha256: &CertificateFingerprint) -> PathBuf {
        match &self.named_by {
            NamedBy::Directory => self.path.join(format!("{sha256}.crt")),
            NamedBy::Pattern { prefix, suffix } => self.path.with_file_name(format!("{prefix}{sha256}{suffix}")),
        }
    }

    fn directory(&self) -> &Path {
        match self.named_by {
            NamedBy::Directory => &self.path,
            NamedBy::Pattern { .. } => {
                self.path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
            }
        }
    }

    /// `None` if the place can have no file for every fingerprint.
    fn from_place(place: &PinPlace) -> Option<Self> {
        let PinPlace { path, kind } = place;
        let named_by = match kind {
            PathKind::File => return None,
            PathKind::Directory => NamedBy::Directory,
            PathKind::Pattern => NamedBy::from_pattern(path)?,
        };
        Some(Self { path: path.clone(), named_by })
    }
}

impl NamedBy {
    /// Puts the fingerprint in place of the first `*`.
    fn from_pattern(pattern: &Path) -> Option<Self> {
        let (before, after) = pattern.file_name()?.to_str()?.split_once('*')?;
        let (prefix, suffix) = (before.replace('?', "0"), after.replace('*', "").replace('?', "0"));
        // No pattern matches a hidden file.
        let is_possible = !prefix.starts_with('.') && prefix.len() + DIGITS + suffix.len() <= MAX_NAME;
        is_possible.then_some(Self::Pattern { prefix, suffix })
    }
}

/// Finds where a new certificate is written.
///
/// # Errors
/// Why it can be written nowhere, and what to do.
pub(crate) fn find_writable(policy: &ListenerPolicy) -> Result<WritablePlace, NotWritable> {
    let name = &policy.name;
    if policy.tls.is_none() {
        return Err(NotWritable(format!(
            "listener {name} has tls = \"off\", so its clients present no certificate; configure [listener.tls] with \
             client_auth and client_certificates, and reload"
        )));
    }
    if policy.client_auth() == ClientAuth::None {
        return Err(NotWritable(format!(
            "listener {name} has client_auth = \"none\", so its clients present no certificate; set client_auth = \
             \"required\" and client_certificates to a directory, and reload"
        )));
    }
    if policy.pins.places.is_empty() {
        return Err(NotWritable(format!(
            "listener {name} has no client_certificates; create a directory that the program can write to, set \
             client_certificates = \"{name}.clients\" in [listener.tls], and reload"
        )));
    }
    let mut why = None;
    for place in policy.pins.places.iter().filter_map(WritablePlace::from_place) {
        match permissions::obstacle_to_creating(place.directory()) {
            None => return Ok(place),
            Some(obstacle) => _ = why.get_or_insert_with(|| format!("{} {obstacle}", place.directory().display())),
        }
    }
    Err(NotWritable(why.unwrap_or_else(|| {
        format!(
            "client_certificates of listener {name} names no directory and no pattern with * that can have further files; \
             add a directory to the list, and reload"
        )
    })))
}

/// Bytes: NAME_MAX of Linux without the dot and the ending of a temporary name.
const MAX_NAME: usize = 250;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::files::is_match;

    #[test]
    fn pattern_yields_a_name_that_it_matches() {
        let sha256 = CertificateFingerprint::from_der(b"");
        let name = |pattern: &str| {
            let place = PinPlace { path: pattern.into(), kind: PathKind::Pattern };
            let file = WritablePlace::from_place(&place)?.file_of(&sha256);
            assert!(is_match(Path::new(pattern), &file), "{pattern}: {}", file.display());
            Some(file.to_str().unwrap().replace(sha256.as_str(), "FP"))
        };
        let long = format!("clients/*{}", "x".repeat(200));
        let cases = [
            ("clients/*.crt", Some("clients/FP.crt")),
            ("*", Some("FP")),
            ("a*b*c?", Some("aFPbc0")),
            ("/etc/x/app-*-?.p*m", Some("/etc/x/app-FP-0.pm")),
            ("clients/?.crt", None),
            ("clients/.hidden*", None),
            (&long, None),
        ];
        for (pattern, expected) in cases {
            assert_eq!(name(pattern).as_deref(), expected, "{pattern}");
        }
    }
}
