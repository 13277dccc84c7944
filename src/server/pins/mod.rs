//! Changes of `client_certificates`: where a certificate is written, and how it is removed from its file.

pub(crate) mod place;
pub(crate) mod text;

use std::path::PathBuf;

use crate::config::files::PathKind;
use crate::control::error::ErrorKind;
use crate::control::response::AdminResponse;
use crate::policy::ListenerPolicy;
use crate::policy::pins::PinnedCertificate;
use crate::server::reload::change::conflict;
use crate::x509::fingerprint::CertificateFingerprint;

/// A change of the pinned certificates of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PinChange {
    Pin { sha256: CertificateFingerprint },
    Unpin { sha256: CertificateFingerprint },
}

/// The file that the change concerns.
///
/// # Errors
/// A 404 response if the certificate to remove is not pinned, a 409 response if no file can be changed.
pub(crate) fn file(policy: &ListenerPolicy, change: &PinChange) -> Result<PathBuf, AdminResponse> {
    match change {
        PinChange::Pin { sha256 } => match policy.pins.of(sha256).next() {
            Some(pin) => Ok(pin.file.clone()),
            None => Ok(place::writable(policy).map_err(conflict)?.file_of(sha256)),
        },
        PinChange::Unpin { sha256 } => removable(policy, sha256).map(|pin| pin.file.clone()),
    }
}

/// Whether the policy is the result of the change.
pub(crate) fn is_effective(policy: &ListenerPolicy, change: &PinChange) -> bool {
    match change {
        PinChange::Pin { sha256 } => policy.pins.contain(sha256),
        PinChange::Unpin { sha256 } => !policy.pins.contain(sha256),
    }
}

/// The pinned certificate to remove, which is in one file of a directory or pattern.
fn removable<'p>(
    policy: &'p ListenerPolicy,
    sha256: &CertificateFingerprint,
) -> Result<&'p PinnedCertificate, AdminResponse> {
    let mut entries = policy.pins.of(sha256);
    let Some(pin) = entries.next() else {
        let message =
            format_args!("listener {} has no pinned client certificate {sha256}; list them first", policy.name);
        return Err(AdminResponse::error(ErrorKind::NotFound, message));
    };
    if let Some(other) = entries.find(|other| other.file != pin.file) {
        return Err(conflict(format_args!(
            "{} and {} both hold this certificate; remove one of them by hand",
            pin.file.display(),
            other.file.display()
        )));
    }
    if policy.pins.places_of(&pin.file).any(|place| place.kind == PathKind::File) {
        return Err(conflict(format_args!(
            "client_certificates names the file {} itself, so the API does not change it; edit the file or the configuration \
             and reload, or let client_certificates name its directory",
            pin.file.display()
        )));
    }
    Ok(pin)
}

/// The content of a file without a certificate; `None` if the file is to be removed.
///
/// # Errors
/// A 409 response if the file, or the last file of a pattern, must not be removed.
pub(crate) fn without(
    policy: &ListenerPolicy,
    pin: &PinnedCertificate,
    content: &[u8],
) -> Result<Option<Vec<u8>>, AdminResponse> {
    let file = pin.file.display();
    let rest =
        text::without(content, &pin.certificate.sha256).map_err(|error| conflict(format_args!("{file} {error}")))?;
    if rest.is_some() {
        return Ok(rest);
    }
    let is_only = |pattern: &&crate::policy::pins::PinPlace| {
        pattern.kind == PathKind::Pattern
            && policy.pins.certificates.iter().all(|other| {
                other.file == pin.file || !policy.pins.places_of(&other.file).any(|place| place == *pattern)
            })
    };
    if let Some(pattern) = policy.pins.places_of(&pin.file).find(is_only) {
        return Err(conflict(format_args!(
            "{file} is the last file that matches {}, and a pattern that matches no file is an error; let client_certificates \
             name the directory, which may be empty, or change client_auth",
            pattern.path.display()
        )));
    }
    Ok(None)
}
