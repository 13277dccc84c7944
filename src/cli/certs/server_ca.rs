//! The CA with which a client of a listener verifies the server.

use crate::x509::pem;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;

use crate::cli::certs::authority::certificate_pem;
use crate::cli::certs::inspect::read_certificates;
use crate::cli::{Failure, IssueArgs};
use crate::config::files::Files;
use crate::config::problem::Problems;
use crate::config::{Config, Listener};
use crate::x509::certificate::Certificate;

/// What a client is given to verify the server with.
#[derive(Debug)]
pub(crate) struct ServerCa {
    /// What the client speaks: the first part of the names of its files.
    pub(crate) protocol: String,
    /// Certificates.
    pub(crate) pem: String,
}

impl ServerCa {
    /// The one that `--server-ca` or `--listener` names, if any.
    pub(crate) fn find(args: &IssueArgs) -> Result<Option<Self>, Failure> {
        if let Some(file) = &args.server_ca {
            let pem = read_certificates(file)?.iter().map(certificate_pem).collect();
            return Ok(Some(Self { protocol: args.protocol.clone().unwrap_or_else(|| "redis".to_owned()), pem }));
        }
        let Some(name) = &args.listener else { return Ok(None) };
        let config = &args.config.config;
        let mut files = Files::default();
        // Only the listener's certificates are needed here: its keys may be on another machine.
        let loaded = Config::load(config, &mut files).map_err(Failure::Configuration)?;
        let Some(listener) = loaded.config.listeners.iter().find(|listener| listener.name == *name) else {
            Problems::unless_any(loaded.problems, ()).map_err(Failure::Configuration)?;
            return Err(Failure::Usage(format!("{} has no listener {name:?}", config.display())));
        };
        let pem = of_listener(listener, args, &mut files)?;
        Ok(Some(Self { protocol: listener.protocol.to_string(), pem }))
    }
}

/// The CA of each certificate that a listener shows.
fn of_listener(listener: &Listener, args: &IssueArgs, files: &mut Files) -> Result<String, Failure> {
    let tls = listener.tls.as_ref();
    let tls = tls.ok_or_else(|| Failure::Usage(format!("listener {:?} has no TLS", listener.name)))?;
    let issuing = read_certificates(&args.ca)?;
    let mut pem = String::new();
    for shown in &tls.certificates {
        let cert = &shown.cert;
        let bytes = files.read(&cert.location).map_err(|error| Failure::Configuration(cert.problem(error).into()))?;
        let chain = pem::certificates(&bytes).map_err(|error| Failure::Configuration(cert.problem(error).into()))?;
        let Some(anchor) = anchor(&chain, &issuing) else {
            return Err(Failure::Failed(format!(
                "the CA of listener {:?} is not known: {} has no self-signed certificate, and {} did not issue it; name the \
                 CA with --server-ca FILE",
                listener.name,
                cert.location,
                args.ca.display()
            )));
        };
        let anchor = certificate_pem(&anchor);
        if !pem.contains(&anchor) {
            pem.push_str(&anchor);
        }
    }
    Ok(pem)
}

/// What verifies a chain, leaf first: its own self-signed certificate, or the one of `issuing` that it leads to.
fn anchor(chain: &[CertificateDer<'static>], issuing: &[CertificateDer<'static>]) -> Option<CertificateDer<'static>> {
    let is_root = |der: &&CertificateDer<'static>| Certificate::parse(der).is_ok_and(|facts| facts.self_signed);
    chain.iter().find(is_root).or_else(|| issuing.iter().find(|issuer| leads_to(chain, issuer))).cloned()
}

/// Whether a chain, leaf first, leads to this CA. When they are valid plays no part.
fn leads_to(chain: &[CertificateDer<'static>], issuer: &CertificateDer<'static>) -> bool {
    let [leaf, intermediates @ ..] = chain else { return false };
    let mut roots = RootCertStore::empty();
    let (Ok(parsed), Ok(())) = (ParsedCertificate::try_from(leaf), roots.add(issuer.clone())) else { return false };
    let begin = |der| Certificate::parse(der).ok().map(|facts| facts.not_before);
    let begin = [begin(leaf), begin(issuer)].into_iter().flatten().max();
    let seconds = begin.and_then(|begin| u64::try_from(begin.unix_timestamp()).ok()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let algorithms = default_provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms).is_ok()
}
