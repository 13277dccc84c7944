//! The CA with which clients verify a server.

use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;

use crate::x509::certificate::Certificate;

/// Finds the trust anchor of a chain, leaf first: a self-signed certificate in it, or a certificate of `issuing`.
pub(crate) fn anchor(
    chain: &[CertificateDer<'static>],
    issuing: &[CertificateDer<'static>],
) -> Option<CertificateDer<'static>> {
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
