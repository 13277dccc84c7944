//! The CA with which the clients of a listener verify the server.

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
use crate::x509::pem;

#[derive(Debug)]
pub(crate) struct ServerCa {
    /// The prefix of the file names in the bundle.
    pub(crate) protocol: String,
    pub(crate) pem: String,
}

impl ServerCa {
    /// Returns the CA of `--server-ca` or `--listener`, if one is given.
    pub(crate) fn find(args: &IssueArgs) -> Result<Option<Self>, Failure> {
        if let Some(file) = &args.server_ca {
            let pem = read_certificates(file)?.iter().map(certificate_pem).collect();
            return Ok(Some(Self { protocol: args.protocol.clone().unwrap_or_else(|| "redis".to_owned()), pem }));
        }
        let Some(name) = &args.listener else { return Ok(None) };
        let config = &args.config.config;
        let mut files = Files::default();
        // Needs only the certificates of the listener: the keys may be on another machine.
        let loaded = Config::load(config, &mut files).map_err(Failure::Configuration)?;
        let Some(listener) = loaded.config.listeners.iter().find(|listener| listener.name == *name) else {
            Problems::unless_any(loaded.problems, ()).map_err(Failure::Configuration)?;
            let known: Vec<_> = loaded.config.listeners.iter().map(|listener| listener.name.as_str()).collect();
            let reason = format!("{} has no listener {name:?}; listeners: {}", config.display(), known.join(", "));
            return Err(Failure::Usage(reason));
        };
        let pem = listener_cas(listener, args, &mut files)?;
        Ok(Some(Self { protocol: listener.protocol.to_string(), pem }))
    }
}

/// The CA of each server certificate of a listener.
fn listener_cas(listener: &Listener, args: &IssueArgs, files: &mut Files) -> Result<String, Failure> {
    let tls = listener.tls.as_ref();
    let tls = tls.ok_or_else(|| {
        Failure::Usage(format!(
            "listener {:?} has tls = \"off\" and no certificate; pass the CA with --server-ca FILE",
            listener.name
        ))
    })?;
    let issuing = read_certificates(&args.ca)?;
    let mut pem = String::new();
    for configured in &tls.certificates {
        let cert = &configured.cert;
        let bytes = files.read(&cert.location).map_err(|error| Failure::Configuration(cert.problem(error).into()))?;
        let chain = pem::certificates(&bytes).map_err(|error| Failure::Configuration(cert.problem(error).into()))?;
        let Some(anchor) = anchor(&chain, &issuing) else {
            return Err(Failure::Failed(format!(
                "cannot find the CA of listener {:?}: {} contains no self-signed certificate and is not issued by {}; pass \
                 the CA with --server-ca FILE",
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

/// Finds the trust anchor of a chain, leaf first: a self-signed certificate in it, or a certificate of `issuing`.
fn anchor(chain: &[CertificateDer<'static>], issuing: &[CertificateDer<'static>]) -> Option<CertificateDer<'static>> {
    let is_root = |der: &&CertificateDer<'static>| Certificate::parse(der).is_ok_and(|facts| facts.self_signed);
    chain.iter().find(is_root).or_else(|| issuing.iter().find(|issuer| leads_to(chain, issuer))).cloned()
}

/// Whether a chain, leaf first, leads to this CA. Validity dates are not checked.
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
