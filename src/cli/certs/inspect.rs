//! `portcullis certs inspect`: shows every certificate in each file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use crate::cli::check::describe;
use crate::cli::{Failure, print};
use crate::config::files::Files;
use crate::x509::certificate::Certificate;
use crate::x509::pem;
use crate::x509::pem::PemError;

pub(crate) fn inspect(paths: &[PathBuf]) -> Result<(), Failure> {
    let mut out = String::new();
    for path in paths {
        let bytes = read(path)?;
        let keys = pem::count_private_keys(&bytes);
        let certificates = match pem::certificates(&bytes) {
            Err(PemError::NoCertificate) if keys > 0 => Vec::new(),
            certificates => certificates.map_err(|error| Failure::file(path, error))?,
        };
        let keys_note = if keys > 0 { format!(", {} (not shown)", count(keys, "private key")) } else { String::new() };
        let _ = writeln!(out, "{}: {}{keys_note}", path.display(), count(certificates.len(), "certificate"));
        for (index, der) in certificates.iter().enumerate() {
            let facts = Certificate::parse(der)
                .map_err(|error| Failure::file(path, format_args!("certificate {}: {error}", index + 1)))?;
            let _ = write!(out, "  {}\n{}", index + 1, describe(&facts, "    "));
        }
    }
    print(&out)
}

pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    pem::certificates(&read(path)?).map_err(|error| Failure::file(path, error))
}

pub(crate) fn read(path: &Path) -> Result<Arc<[u8]>, Failure> {
    Files::default().read(path).map_err(|error| Failure::file(path, error))
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
