//! Changes of `client_certificates`: where a certificate is written, and how it is removed from its file.

pub(crate) mod place;
pub(crate) mod text;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::config::files::PathKind;
use crate::control::error::ErrorKind;
use crate::control::request::PinChange;
use crate::control::response::AdminResponse;
use crate::issuing::authority::certificate_pem;
use crate::policy::pins::PinnedCertificate;
use crate::policy::{ListenerPolicy, Snapshot};
use crate::x509::fingerprint::CertificateFingerprint;

/// Finds the file that a change concerns.
///
/// # Errors
/// A 404 response if the certificate to remove is not pinned, a 409 response if no file can be changed.
pub(crate) fn find_file(policy: &ListenerPolicy, change: &PinChange) -> Result<PathBuf, AdminResponse> {
    let sha256 = change.sha256();
    match change {
        PinChange::Pin(_) => match policy.pins.of(sha256).next() {
            Some(pin) => Ok(pin.file.clone()),
            None => Ok(place::find_writable(policy).map_err(AdminResponse::conflict)?.file_of(sha256)),
        },
        PinChange::Unpin(_) => find_removable(policy, sha256).map(|pin| pin.file.clone()),
    }
}

/// Finds the pinned certificate to remove, which is in one file of a directory or pattern.
fn find_removable<'p>(
    policy: &'p ListenerPolicy,
    sha256: &CertificateFingerprint,
) -> Result<&'p PinnedCertificate, AdminResponse> {
    let mut entries = policy.pins.of(sha256);
    let Some(pin) = entries.next() else {
        let message = format_args!(
            "listener {} has no pinned client certificate {sha256}; list them with: portcullis certs list",
            policy.name
        );
        return Err(AdminResponse::error(ErrorKind::NotFound, message));
    };
    if let Some(other) = entries.find(|other| other.file != pin.file) {
        return Err(AdminResponse::conflict(format_args!(
            "{} and {} both hold this certificate; remove one of them by hand",
            pin.file.display(),
            other.file.display()
        )));
    }
    if policy.pins.places_of(&pin.file).any(|place| place.kind == PathKind::File) {
        return Err(AdminResponse::conflict(format_args!(
            "client_certificates names the file {} itself, so the API does not change it; edit the file or the configuration \
             and reload, or let client_certificates name its directory",
            pin.file.display()
        )));
    }
    Ok(pin)
}

/// Edits the content of the file; `None` is a missing file, and removes it.
///
/// # Errors
/// A 409 response if the file was edited by hand, or must not be removed.
pub(crate) fn edit_file(
    policy: &ListenerPolicy,
    change: &PinChange,
    file: &Path,
    content: Option<&[u8]>,
) -> Result<Option<Vec<u8>>, AdminResponse> {
    match (change, content) {
        (PinChange::Pin(client), None) => Ok(Some(certificate_pem(&client.der).into_bytes())),
        (PinChange::Pin(client), Some(content)) if policy.pins.contain(&client.certificate.sha256) => {
            Ok(Some(content.to_vec()))
        }
        (PinChange::Pin(_), Some(_)) => Err(AdminResponse::conflict(format_args!(
            "{} exists and does not hold this certificate; remove the file, or reload if it was edited",
            file.display()
        ))),
        (PinChange::Unpin(sha256), Some(content)) => remove_from_file(policy, sha256, file, content),
        (PinChange::Unpin(_), None) => {
            Err(AdminResponse::conflict(format_args!("{} no longer exists; reload", file.display())))
        }
    }
}

fn remove_from_file(
    policy: &ListenerPolicy,
    sha256: &CertificateFingerprint,
    file: &Path,
    content: &[u8],
) -> Result<Option<Vec<u8>>, AdminResponse> {
    let failed = |error| AdminResponse::conflict(format_args!("{} {error}", file.display()));
    let rest = text::remove_certificate(content, sha256).map_err(failed)?;
    if let (None, Some(pattern)) = (&rest, policy.pins.pattern_with_only(file)) {
        return Err(AdminResponse::conflict(format_args!(
            "{} is the last file that matches {}, and a pattern that matches no file is an error; let client_certificates \
             name the directory, which may be empty, or change client_auth",
            file.display(),
            pattern.path.display()
        )));
    }
    Ok(rest)
}

/// The listeners of `after` whose pinned certificates differ from those in `before`, in the order of the configuration.
pub(crate) fn changed_listeners(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    fn pinned(policy: &ListenerPolicy) -> HashSet<&CertificateFingerprint> {
        policy.pins.certificates.iter().map(|pin| &pin.certificate.sha256).collect()
    }
    let changed = after
        .listeners()
        .iter()
        .filter(|policy| pinned(policy) != before.named(&policy.name).map(|policy| pinned(policy)).unwrap_or_default());
    changed.map(|policy| policy.name.to_string()).collect()
}

/// Checks that a policy, which is built from the files as they are now, is the result of the change of `file`.
///
/// # Errors
/// A 409 response that names what was edited by hand.
pub(crate) fn check_effect(policy: &ListenerPolicy, change: &PinChange, file: &Path) -> Result<(), AdminResponse> {
    let holder = policy.pins.of(change.sha256()).next();
    let message = match (change, holder) {
        (PinChange::Pin(_), Some(_)) | (PinChange::Unpin(_), None) => return Ok(()),
        (PinChange::Pin(_), None) if policy.pins.places_of(file).next().is_none() => {
            format!(
                "the configuration was edited, and client_certificates no longer names {}; reload first",
                file.display()
            )
        }
        (PinChange::Pin(_), None) => format!(
            "{} was edited and no longer holds this certificate; reload, and pin the certificate again",
            file.display()
        ),
        (PinChange::Unpin(_), Some(other)) => format!(
            "the configuration or {} was edited, so that this file holds the certificate too; reload first",
            other.file.display()
        ),
    };
    Err(AdminResponse::conflict(message))
}
