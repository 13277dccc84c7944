//! The CA with which clients verify a server.

use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;

use crate::issuing::authority::certificate_pem;
use crate::x509::certificate::Certificate;

/// Finds the trust anchor of each chain, leaf first: a self-signed certificate in it, or a certificate of `issuing`. Returns
/// each anchor once, as PEM.
///
/// # Errors
/// The index of the first chain whose anchor is not among these certificates.
pub(crate) fn find_anchors(
    chains: &[Vec<CertificateDer<'static>>],
    issuing: &[CertificateDer<'static>],
) -> Result<String, usize> {
    let mut anchors = Vec::new();
    for (index, chain) in chains.iter().enumerate() {
        let anchor = find_anchor(chain, issuing).ok_or(index)?;
        if !anchors.contains(&anchor) {
            anchors.push(anchor);
        }
    }
    Ok(anchors.into_iter().map(certificate_pem).collect())
}

fn find_anchor<'a>(
    chain: &'a [CertificateDer<'static>],
    issuing: &'a [CertificateDer<'static>],
) -> Option<&'a CertificateDer<'static>> {
    let is_root = |der: &&CertificateDer<'static>| Certificate::parse(der).is_ok_and(|facts| facts.self_signed);
    chain.iter().find(is_root).or_else(|| issuing.iter().find(|issuer| leads_to(chain, issuer)))
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
