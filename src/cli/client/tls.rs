//! TLS of a command towards the admin API. The certificate of the server is always verified.

use std::path::Path;
use std::sync::Arc;

use rustls::sign::SingleCertAndKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};

use crate::cli::Failure;
use crate::cli::certs::inspect::{read, read_certificates};
use crate::cli::client::args::RemoteArgs;
use crate::x509::crypto::provider;
use crate::x509::key_pair::CertifiedKeyPair;
use crate::x509::pem;

/// Builds the settings from `--cacert`, `--cert` and `--key`.
pub(crate) fn settings(args: &RemoteArgs) -> Result<Arc<ClientConfig>, Failure> {
    let roots = match &args.cacert {
        Some(file) => roots_in(file)?,
        None => system_roots()?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::Failed(format!("cannot set up TLS: {error}")))?
        .with_root_certificates(roots);
    let settings = match (&args.cert, &args.key) {
        (Some(cert), Some(key)) => {
            let key = pem::private_key(&read(key)?).map_err(|error| Failure::file(key, error))?;
            let pair = CertifiedKeyPair::new(read_certificates(cert)?, key);
            let pair = pair.map_err(|error| Failure::file(cert, error))?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(pair.key()))))
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(settings))
}

fn roots_in(file: &Path) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(file)? {
        roots.add(certificate).map_err(|error| Failure::file(file, format_args!("cannot be used as a CA: {error}")))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(Failure::Failed(NO_SYSTEM_ROOTS.to_owned())) } else { Ok(roots) }
}

/// Why TLS with `host` failed, and what to do.
pub(crate) fn explain(error: &Error, host: &str) -> String {
    match error {
        Error::InvalidCertificate(why) => explain_certificate(why, host),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the server requires a client certificate; pass one with --cert and --key".to_owned()
        }
        Error::AlertReceived(alert) => format!(
            "the server ended TLS with the alert {alert:?}; its log has the reason. If it is about the client certificate, \
             check --cert and --key"
        ),
        Error::InvalidMessage(_) => {
            "the server does not use TLS; configure [admin.tls], or for a loopback address use \
                                     http://"
                .to_owned()
        }
        other => format!("TLS failed: {other}"),
    }
}

fn explain_certificate(why: &CertificateError, host: &str) -> String {
    match why {
        CertificateError::UnknownIssuer => {
            "the certificate of the server is not trusted: its issuer is unknown; pass its CA with --cacert FILE"
                .to_owned()
        }
        // Several CAs may have one name; each development CA has the same.
        CertificateError::BadSignature => {
            "the certificate of the server is not trusted: a CA of another key and the same name as its issuer is trusted; \
             pass its CA with --cacert FILE"
                .to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "the certificate of the server is not for {host}; use a name in it, or issue one with {host} as a subject \
             alternative name"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate of the server has expired; replace the files in [admin.tls] certificates".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate of the server is not valid yet; check the clocks of both machines".to_owned()
        }
        other => format!("the certificate of the server is not accepted: {other}"),
    }
}

const NO_SYSTEM_ROOTS: &str =
    "the system has no root certificates; pass the CA of the server with --cacert FILE, or install ca-certificates";
