//! TLS towards the upstream.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use crate::config;
use crate::policy::ListenerPolicy;
use crate::policy::builder::Builder;
use crate::protocol::{Negotiation, Protocol, Verification, postgres};
use crate::tls::upstream::verifier::Anchors;
use crate::tls::upstream::{Alpn, UpstreamTls, UpstreamTlsSettings};
use crate::x509::certificate::Certificate;
use crate::x509::chain::check::ShownTo;
use crate::x509::channel_binding;
use crate::x509::error::BuildError;
use crate::x509::pem;

/// TLS towards the upstream, and the settings it was built from.
type Tls = (Arc<UpstreamTls>, UpstreamTlsSettings);

impl Builder<'_> {
    /// Builds TLS towards the upstream, or keeps the previous one with its resumable sessions if nothing has changed.
    /// `Some(None)` for plaintext.
    ///
    /// `shown` are the chains that the listener presents to clients; empty if its TLS is off.
    pub(crate) fn upstream(
        &mut self,
        before: Option<&ListenerPolicy>,
        shown: &[Vec<CertificateDer<'static>>],
    ) -> Option<Option<Tls>> {
        let Some(wanted) = &self.listener.upstream.tls else { return Some(None) };
        let anchors = self.upstream_anchors(wanted);
        let certificate = match &wanted.identity {
            Some(files) => self.reader.certificate(files, ShownTo::Upstream).map(Some),
            None => Some(None),
        };
        let settings = UpstreamTlsSettings {
            verification: wanted.verification,
            anchors: anchors?,
            anchor_validity: wanted.anchor_validity,
            certificate: certificate?,
            server_name: wanted.server_name.clone(),
            alpn: match (self.listener.protocol, wanted.negotiation) {
                (Protocol::Postgres, Negotiation::Postgres) => Alpn::Offered(postgres::ALPN),
                (Protocol::Postgres, Negotiation::Direct) => Alpn::Required(postgres::ALPN),
                (Protocol::Redis | Protocol::Tcp, _) => Alpn::None,
            },
        };
        let former = before.and_then(|before| before.upstream.tls.as_ref());
        let tls = match former.filter(|(_, former)| *former == settings) {
            Some((former, _)) => Arc::clone(former),
            None => match UpstreamTls::new(&settings) {
                Ok(tls) => Arc::new(tls),
                Err(error) => {
                    let problem = wanted.ca.first().map(|file| file.problem(&error));
                    let problem = problem.or_else(|| wanted.identity.as_ref().map(|files| files.cert.problem(&error)));
                    self.reader.problems.extend(problem);
                    return None;
                }
            },
        };
        self.warn_about_upstream(wanted, &tls, shown);
        Some(Some((tls, settings)))
    }

    fn upstream_anchors(&mut self, wanted: &config::UpstreamTls) -> Option<Anchors> {
        let mut bundle = Vec::new();
        let mut is_complete = true;
        for file in &wanted.ca {
            match self.reader.parse(file, pem::certificates) {
                Some(ders) => {
                    for (index, der) in ders.iter().enumerate() {
                        match Certificate::parse(der).map_err(BuildError::from) {
                            Ok(parsed) => self.reader.warn_about_key("upstream CA certificate", der, &parsed),
                            Err(error) => {
                                self.reader
                                    .problems
                                    .push(file.problem(format_args!("certificate {}: {error}", index + 1)));
                                is_complete = false;
                            }
                        }
                    }
                    bundle.extend(ders);
                }
                None => is_complete = false,
            }
        }
        if !is_complete {
            return None;
        }
        let bundle = (!wanted.ca.is_empty()).then_some(bundle);
        match Anchors::new(bundle, wanted.verification, || self.reader.files.system_roots()) {
            Ok(anchors) => Some(anchors),
            Err(error) => {
                self.reader.problems.push(wanted.position.problem(error));
                None
            }
        }
    }

    fn warn_about_upstream(
        &mut self,
        wanted: &config::UpstreamTls,
        tls: &UpstreamTls,
        shown: &[Vec<CertificateDer<'static>>],
    ) {
        for (anchor, error) in tls.anchors().iter().zip(tls.anchor_errors(self.now.at)) {
            match error {
                Some(error) => {
                    self.reader.warn(format_args!(
                        "the upstream CA certificate {} authenticates no upstream: {error}",
                        anchor.subject
                    ));
                }
                None => self.reader.warn_about_dates("upstream CA certificate", anchor),
            }
        }
        if let Some(certificate) = tls.certificate() {
            self.reader.warn_about_dates("certificate for the upstream", certificate);
        }
        if wanted.verification == Verification::Require && wanted.ca.is_empty() {
            self.reader
                .warn("upstream.tls = \"require\" without ca does not authenticate the upstream; use \"verify-full\"");
        }
        self.warn_about_channel_binding(tls, shown);
    }

    /// libpq binds its password to the certificate it receives, and the server compares that with its own (RFC 5929 §4).
    fn warn_about_channel_binding(&mut self, upstream: &UpstreamTls, shown: &[Vec<CertificateDer<'static>>]) {
        // With credentials, clients authenticate to Portcullis.
        let is_passed = self.listener.protocol == Protocol::Postgres && self.listener.credentials.is_none();
        if shown.is_empty() || !is_passed {
            return;
        }
        // If the bundle contains the listener's certificate, the upstream presents the same one.
        let same: Vec<_> =
            shown.iter().filter_map(|chain| chain.first()).filter(|leaf| upstream.has_in_bundle(leaf)).collect();
        for leaf in same.iter().filter(|leaf| !channel_binding::has_end_point(leaf)) {
            let Ok(Certificate { subject, .. }) = Certificate::parse(leaf) else { continue };
            self.reader.warn(format_args!(
                "the certificate {subject} is signed with Ed25519 or Ed448, which SCRAM channel binding does not support, so libpq \
                 fails unless it has channel_binding=disable; use a certificate signed with ECDSA or RSA"
            ));
        }
        if same.is_empty() {
            self.reader.warn(
                "with TLS on both sides, SCRAM channel binding (preferred by libpq) fails unless the upstream presents this listener's \
                 certificate; use one certificate for both and add it to upstream.ca, set channel_binding=disable in clients, or \
                 connect to the upstream over a Unix socket",
            );
        }
    }
}
