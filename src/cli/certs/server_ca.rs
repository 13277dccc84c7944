//! The CA with which the clients of a listener verify the server.

use std::path::Path;

use crate::cli::certs::inspect::read_certificates;
use crate::cli::{Failure, LocalIssue};
use crate::config::files::Files;
use crate::config::problem::Problems;
use crate::config::{CertificateFiles, Config, Listener};
use crate::issuing::authority::certificate_pem;
use crate::issuing::server_ca::find_anchors;
use crate::x509::pem;

#[derive(Debug)]
pub(crate) struct ServerCa {
    /// The prefix of the file names in the bundle.
    pub(crate) protocol: String,
    pub(crate) pem: String,
}

impl ServerCa {
    /// Returns the CA of `--server-ca` or `--listener`, if one is given.
    pub(crate) fn find(local: &LocalIssue<'_>) -> Result<Option<Self>, Failure> {
        let args = local.args;
        if let Some(file) = &args.server_ca {
            let pem = read_certificates(file)?.iter().map(certificate_pem).collect();
            return Ok(Some(Self { protocol: args.protocol.clone().unwrap_or_else(|| "redis".to_owned()), pem }));
        }
        let Some(name) = &args.listener else { return Ok(None) };
        let config = &args.running.config.config;
        let mut files = Files::default();
        // Needs only the certificates of the listener: the keys may be on another machine.
        let loaded = Config::load(config, &mut files).map_err(Failure::Configuration)?;
        let Some(listener) = loaded.config.listeners.iter().find(|listener| listener.name == *name) else {
            Problems::unless_any(loaded.problems, ()).map_err(Failure::Configuration)?;
            let known: Vec<_> = loaded.config.listeners.iter().map(|listener| listener.name.as_str()).collect();
            let reason = format!("{} has no listener {name:?}; listeners: {}", config.display(), known.join(", "));
            return Err(Failure::Usage(reason));
        };
        let pem = listener_cas(listener, local.ca, &mut files)?;
        Ok(Some(Self { protocol: listener.protocol.to_string(), pem }))
    }
}

/// The CA of each server certificate of a listener.
fn listener_cas(listener: &Listener, ca: &Path, files: &mut Files) -> Result<String, Failure> {
    let tls = listener.tls.as_ref();
    let tls = tls.ok_or_else(|| {
        Failure::Usage(format!(
            "listener {:?} has tls = \"off\" and no certificate; pass the CA with --server-ca FILE",
            listener.name
        ))
    })?;
    let issuing = read_certificates(ca)?;
    let mut chains = Vec::new();
    for CertificateFiles { cert, .. } in &tls.certificates {
        let bytes = files.read(&cert.location).map_err(|error| Failure::Configuration(cert.problem(error).into()))?;
        chains.push(pem::certificates(&bytes).map_err(|error| Failure::Configuration(cert.problem(error).into()))?);
    }
    find_anchors(&chains, &issuing).map_err(|index| {
        let file = tls.certificates.get(index).map(|files| files.cert.location.to_string()).unwrap_or_default();
        Failure::Failed(format!(
            "cannot find the CA of listener {:?}: {file} contains no self-signed certificate and is not issued by {}; pass \
             the CA with --server-ca FILE",
            listener.name,
            ca.display()
        ))
    })
}
