//! `portcullis certs inspect`: every certificate of every file, not only the first.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;

use super::check::describe;
use super::{Failure, print};
use crate::config::Files;
use crate::tls::{self, Certificate};

pub(super) fn inspect(paths: &[PathBuf]) -> Result<(), Failure> {
    let mut out = String::new();
    for path in paths {
        let certificates = read_certificates(path)?;
        let _ = writeln!(out, "{}: {}", path.display(), count(certificates.len()));
        for (index, der) in certificates.iter().enumerate() {
            let facts = Certificate::parse(der)
                .map_err(|error| Failure::file(path, format_args!("certificate {}: {error}", index + 1)))?;
            let _ = write!(out, "  {}\n{}", index + 1, describe(&facts, "    "));
        }
    }
    print(&out)
}

/// All certificates of a PEM file.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let bytes = Files::default().read(path).map_err(|error| Failure::file(path, error))?;
    tls::certificates(&bytes).map_err(|error| Failure::file(path, error))
}

fn count(certificates: usize) -> String {
    format!("{certificates} certificate{}", if certificates == 1 { "" } else { "s" })
}
