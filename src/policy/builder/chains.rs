//! Warnings about certificates presented to clients and the upstream, and about keys that cannot verify signatures.

use rustls::pki_types::CertificateDer;

use crate::config::SourcedPem;
use crate::policy::builder::reader::Reader;
use crate::x509::certificate::Certificate;
use crate::x509::chain::check::{ShownTo, chain_faults, purpose_fault};
use crate::x509::key_kind::{KeyKind, USABLE_KEYS};
use crate::x509::key_pair::CertifiedKeyPair;

impl Reader<'_> {
    /// Warns about a chain that peers may reject.
    pub(crate) fn warn_about_chain(&mut self, file: &SourcedPem, certificate: &CertifiedKeyPair, shown_to: ShownTo) {
        let subject = &certificate.leaf().subject;
        for fault in chain_faults(certificate.chain()) {
            self.warn(format_args!("the certificate chain in {}: {fault}", file.location));
        }
        let what = match shown_to {
            ShownTo::Clients => "server certificate",
            ShownTo::Upstream => "certificate for the upstream",
        };
        if let Some(fault) = certificate.chain().first().and_then(|leaf| purpose_fault(leaf, shown_to)) {
            self.warn(format_args!("the {what} {subject} {fault}"));
        }
    }

    /// Warns about a certificate whose key cannot verify signatures.
    pub(crate) fn warn_about_key(&mut self, what: &str, der: &CertificateDer<'_>, parsed: &Certificate) {
        if let Some(kind) = KeyKind::of_certificate(der).filter(|kind| !kind.is_supported()) {
            let subject = &parsed.subject;
            self.warn(format_args!(
                "the key of the {what} {subject} is {kind}, which cannot verify signatures; use {USABLE_KEYS}"
            ));
        }
    }
}
