//! `issuing_ca`: the CA with which the admin API issues client certificates.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::config::Tls;
use crate::identity::client_verifier::{ClientVerifier, PresentedIdentity};
use crate::issuing::authority::Authority;
use crate::issuing::client_request::ClientRequest;
use crate::outcome::{Outcome, Reason};
use crate::policy::builder::Builder;
use crate::x509::pem;

impl Builder<'_> {
    /// Reads `issuing_ca`; `Some(None)` if it is not set.
    pub(crate) fn issuing_ca(&mut self, tls: &Tls) -> Option<Option<Arc<Authority>>> {
        let Some(files) = &tls.issuing_ca else { return Some(None) };
        // Reads both before returning, so that all problems are reported.
        let (bundle, key) = (self.reader.pem(&files.cert, pem::certificates), self.reader.private_key(files));
        let (bundle, key) = (bundle?, key?);
        let authority = match Authority::of_bundle(bundle, &key) {
            Ok(authority) => authority,
            Err(error) => {
                let key = &files.key.location;
                self.reader.problems.push(files.cert.problem(format_args!("with key {key}: {error}")));
                return None;
            }
        };
        if let Some(fault) = authority.fault() {
            let subject = &authority.facts().subject;
            let problem = files
                .cert
                .problem(format_args!("cannot issue client certificates with {subject}: {fault}; use a CA that may"));
            self.reader.problems.push(problem);
            return None;
        }
        Some(Some(Arc::new(authority)))
    }

    pub(crate) fn warn_about_issuing(&mut self, tls: &Tls, authority: &Authority, trust: &ClientVerifier) {
        let subject = &authority.facts().subject;
        if let Some(files) = &tls.issuing_ca {
            self.reader.warn(format_args!(
                "the key of the CA {subject} is on this machine ({}, issuing_ca): whoever gets it can issue certificates for \
                 every client; it is better kept elsewhere",
                files.key.location
            ));
        }
        self.reader.warn_about_dates("issuing CA certificate", authority.facts());
        if let Some(why) = refusal_of_issued(authority, trust) {
            self.reader.warn(format_args!(
                "a client certificate issued by {subject} (issuing_ca) would be rejected: {why}; add the CA to client_ca"
            ));
        }
    }
}

/// Why the listener would reject a client certificate that the CA issues; `None` if it would accept one. Issues a certificate
/// to find out, because many properties of a CA and its path matter. `trusted_clients` depends on the name, so it does not count.
fn refusal_of_issued(authority: &Authority, trust: &ClientVerifier) -> Option<String> {
    let request = ClientRequest::new(PROBE.to_owned(), Some(1), Vec::new()).ok()?;
    let issued = match request.issue(authority) {
        Ok(issued) => issued,
        Err(error) => return Some(error.to_string()),
    };
    let chain: Vec<CertificateDer<'_>> =
        std::iter::once(issued.der().clone()).chain(authority.intermediates().into_iter().cloned()).collect();
    match trust.verify(PresentedIdentity::Chain(&chain), OffsetDateTime::now_utc()) {
        Ok(_) | Err(Outcome { reason: Reason::ClientNotTrusted, .. }) => None,
        Err(outcome) => Some(format!("{}: {}", outcome.reason.code(), outcome.detail)),
    }
}

/// The common name of a certificate that is never stored.
const PROBE: &str = "portcullis-probe";
