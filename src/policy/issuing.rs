//! `issuing_ca`: the CA with which the admin API issues client certificates.

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::identity::client_verifier::{ClientVerifier, PresentedIdentity};
use crate::issuing::authority::Authority;
use crate::issuing::client_request::ClientRequest;
use crate::outcome::{Outcome, Reason};

/// A CA, and whether its listener accepts the certificates that it issues.
#[derive(Debug)]
pub(crate) struct IssuingCa {
    pub(crate) authority: Authority,
    /// Why the listener would reject a client certificate of the CA.
    pub(crate) refusal: Option<String>,
}

impl IssuingCa {
    pub(crate) fn new(authority: Authority, trust: &ClientVerifier) -> Self {
        let refusal = find_refusal(&authority, trust);
        Self { authority, refusal }
    }
}

/// Why the listener would reject a client certificate that the CA issues; `None` if it would accept one. Issues a certificate
/// to find out, because many properties of a CA and its path matter. `trusted_clients` depends on the name, so it does not count.
fn find_refusal(authority: &Authority, trust: &ClientVerifier) -> Option<String> {
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
