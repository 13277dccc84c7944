//! Reads a CA from its files.

use std::path::Path;

use crate::cli::Failure;
use crate::cli::certs::inspect::read_certificates;
use crate::config::files::Files;
use crate::issuing::authority::{Authority, AuthorityError};
use crate::x509::pem;

/// Reads the CA certificate, whose file may contain further certificates, and its key.
pub(crate) fn read_authority(cert: &Path, key: &Path) -> Result<Authority, Failure> {
    let bundle = read_certificates(cert)?;
    let bytes = Files::default().read(key).map_err(|error| Failure::file(key, error))?;
    let private = pem::private_key(&bytes).map_err(|error| Failure::file(key, error))?;
    Authority::from_bundle(bundle, &private).map_err(|error| match error {
        AuthorityError::Key(_) => Failure::file(key, error),
        AuthorityError::OtherKey => Failure::file(
            cert,
            format_args!("no certificate in this file matches the key {}; use the key of one of them", key.display()),
        ),
        AuthorityError::NotACa { .. } => Failure::file(cert, error),
        AuthorityError::Certificate(error) => error.into(),
    })
}
