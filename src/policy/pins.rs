//! The pinned client certificates of a listener, and the files that hold them.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;

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
    pub(crate) der: CertificateDer<'static>,
    pub certificate: Certificate,
    pub(crate) file: PathBuf,
}

impl PinPlace {
    /// Whether the path names a file.
    fn names(&self, file: &Path) -> bool {
        match self.kind {
            PathKind::File => self.path == file,
            PathKind::Pattern => is_match(&self.path, file),
            PathKind::Directory => file.parent() == Some(&self.path),
        }
    }
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

    /// The configured paths that name a file.
    pub(crate) fn places_of(&self, file: &Path) -> impl Iterator<Item = &PinPlace> {
        self.places.iter().filter(move |place| place.names(file))
    }

    /// The pattern that matches no file with a certificate but this one.
    pub(crate) fn pattern_with_only(&self, file: &Path) -> Option<&PinPlace> {
        let has_other =
            |place: &PinPlace| self.certificates.iter().any(|other| other.file != file && place.names(&other.file));
        self.places_of(file).find(|place| place.kind == PathKind::Pattern && !has_other(place))
    }
}
