//! The pinned client certificates of a listener, and the files that hold them.

use std::path::PathBuf;

use crate::config::files::{PathKind, is_match};
use crate::x509::certificate::Certificate;
use crate::x509::fingerprint::CertificateFingerprint;

/// `client_certificates`.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// The paths as configured, in their order.
    pub(crate) places: Vec<PinPlace>,
    /// In the order of the files. A certificate that several files hold is listed for each.
    pub certificates: Vec<PinnedCertificate>,
}

/// One path of `client_certificates`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PinPlace {
    pub(crate) path: PathBuf,
    pub(crate) kind: PathKind,
}

/// A pinned client certificate.
#[derive(Clone, Debug)]
pub struct PinnedCertificate {
    pub certificate: Certificate,
    pub(crate) file: PathBuf,
}

impl Pins {
    /// The entries of a certificate.
    pub(crate) fn of<'s>(&'s self, sha256: &CertificateFingerprint) -> impl Iterator<Item = &'s PinnedCertificate> {
        self.certificates.iter().filter(move |pin| pin.certificate.sha256 == *sha256)
    }

    /// Whether a certificate is pinned.
    pub(crate) fn contain(&self, sha256: &CertificateFingerprint) -> bool {
        self.of(sha256).next().is_some()
    }

    /// The configured paths that name this file.
    pub(crate) fn places_of(&self, file: &PathBuf) -> impl Iterator<Item = &PinPlace> {
        self.places.iter().filter(move |PinPlace { path, kind }| match kind {
            PathKind::File => path == file,
            PathKind::Pattern => is_match(path, file),
            PathKind::Directory => file.parent() == Some(path.as_path()),
        })
    }
}
