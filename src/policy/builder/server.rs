//! TLS towards clients: the server certificates and the settings that client certificates are verified with.

use std::sync::Arc;

use time::OffsetDateTime;

use crate::config::files::Location;
use crate::config::{Revoke, SharedTicketKeys, SourcedFile, Tls};
use crate::identity::auth_settings::ClientAuthSettings;
use crate::identity::client_verifier::ClientVerifier;
use crate::identity::settings::ClientAuth;
use crate::policy::builder::{Builder, Certificates, issuing};
use crate::policy::issuing::IssuingCa;
use crate::policy::pins::{PinPlace, PinnedCertificate, Pins};
use crate::policy::{ListenerPolicy, TlsInputs};
use crate::printable;
use crate::protocol::{Protocol, postgres};
use crate::timestamp;
use crate::tls::server::ServerTls;
use crate::tls::tickets::{SharedTicketer, TicketKeys};
use crate::x509::certificate::Certificate;
use crate::x509::chain::check::ShownTo;
use crate::x509::chain::settings::CrlExpired;
use crate::x509::channel_binding;
use crate::x509::crl::Crl;
use crate::x509::key_pair::CertifiedKeyPair;
use crate::x509::pem;
use crate::x509::pinned::select_pinned;

/// The inputs of client certificate verification.
#[derive(Default)]
struct Clients {
    anchors: Certificates,
    pins: Pins,
    lists: Vec<Crl>,
}

impl Clients {
    fn settings(&self, tls: &Tls) -> ClientAuthSettings {
        let anchors = self.anchors.iter().map(|(der, _)| der.clone()).collect();
        ClientAuthSettings {
            auth: tls.client_auth,
            anchors,
            pinned: self.pins.certificates.iter().map(|pin| pin.der.clone()).collect(),
            crls: self.lists.clone(),
            crl_expired: tls.crl_expired,
            anchor_validity: tls.anchor_validity,
            clients: tls.trusted_clients.clone(),
        }
    }
}

fn parsed(certificates: Certificates) -> Vec<Certificate> {
    certificates.into_iter().map(|(_, parsed)| parsed).collect()
}

/// TLS towards clients.
#[derive(Debug, Default)]
pub(crate) struct Server {
    /// `None` if TLS is off.
    pub(crate) tls: Option<Arc<ServerTls>>,
    pub(crate) anchors: Vec<Certificate>,
    pub(crate) pins: Pins,
    pub(crate) issuing: Option<Arc<IssuingCa>>,
    pub(crate) inputs: Option<TlsInputs>,
}

impl Builder<'_> {
    /// Builds TLS towards clients, or keeps the previous one if nothing has changed.
    pub(crate) fn server(&mut self, before: Option<&ListenerPolicy>) -> Option<Server> {
        let Some(tls) = &self.listener.tls else { return Some(Server::default()) };
        let certificates: Vec<_> =
            tls.certificates.iter().filter_map(|files| self.reader.certificate(files, ShownTo::Clients)).collect();
        // Checks everything before returning, so that all problems are reported.
        let (clients, authority) = (self.clients(tls), self.issuing_authority(tls));
        let (clients, authority) = (clients?, authority?);
        let settings = clients.settings(tls);
        let trust = self.trust(tls, &settings, before)?;
        if certificates.len() < tls.certificates.len() {
            return None;
        }
        let inputs = TlsInputs {
            chains: certificates.iter().map(|certificate| certificate.chain().to_vec()).collect(),
            trust: settings,
            tickets: self.tickets(tls)?,
            min_version: tls.min_version,
            protocol: self.listener.protocol,
        };
        let same = before.filter(|before| before.tls_inputs.as_deref() == Some(&inputs));
        let built = match same.and_then(|before| before.tls.as_ref()) {
            Some(tls) => Arc::clone(tls),
            None => Arc::new(self.server_tls(tls, &certificates, trust, &inputs)?),
        };
        self.warn_about_certificates(&certificates);
        self.warn_about_clients(tls, &clients);
        self.warn_about_anchors(&clients.anchors, built.trust());
        let issuing = authority.map(|authority| issuing::judge(authority, &inputs.trust, built.trust(), before));
        if let Some(issuing) = &issuing {
            self.warn_about_issuing(tls, issuing);
        }
        let (anchors, pins) = (parsed(clients.anchors), clients.pins);
        Some(Server { tls: Some(built), anchors, pins, issuing, inputs: Some(inputs) })
    }

    /// Reads everything that client certificates are verified with.
    fn clients(&mut self, tls: &Tls) -> Option<Clients> {
        let mut clients = Clients::default();
        let mut is_complete = true;
        for file in &tls.client_ca {
            match self.reader.parse(file, pem::certificates).and_then(|ders| self.reader.anchors(file, ders)) {
                Some(anchors) => clients.anchors.extend(anchors),
                None => is_complete = false,
            }
        }
        for named in &tls.client_certificates {
            is_complete &= self.pins(named, &mut clients).is_some();
        }
        for file in &tls.client_crl {
            match self.lists(tls, file, &clients.anchors) {
                Some(lists) => clients.lists.extend(lists),
                None => is_complete = false,
            }
        }
        is_complete.then_some(clients)
    }

    /// Reads the pinned client certificates that a path names.
    fn pins(&mut self, named: &SourcedFile, clients: &mut Clients) -> Option<()> {
        let (kind, files) = self.reader.named(named)?;
        clients.pins.places.push(PinPlace { path: named.path.clone(), kind });
        for file in files {
            let ders = self.reader.parse(&file, pem::certificates)?;
            let pinned = select_pinned(ders).map_err(|error| self.reader.problems.push(file.problem(error))).ok()?;
            if pinned.len() > 1 {
                let subjects: Vec<_> = pinned.iter().map(|(_, certificate)| certificate.subject.as_str()).collect();
                self.reader.warn(format_args!(
                    "{} pins {} client certificates ({}), because none of them issued another one; to pin one only, remove the \
                     others from the file",
                    file.path.display(),
                    subjects.len(),
                    printable::quoted(subjects.join("; "))
                ));
            }
            for (der, certificate) in pinned {
                self.reader.warn_about_dates("client certificate", &certificate);
                self.reader.warn_about_key("client certificate", &der, &certificate);
                clients.pins.certificates.push(PinnedCertificate { der, certificate, file: file.path.clone() });
            }
        }
        Some(())
    }

    fn lists(&mut self, tls: &Tls, pattern: &SourcedFile, anchors: &Certificates) -> Option<Vec<Crl>> {
        let mut all = Vec::new();
        for file in self.reader.matching(pattern)? {
            for list in self.reader.revocation_lists(&file)? {
                let Crl { issuer, next_update, .. } = &list;
                let mut namesakes = anchors.iter().filter(|(anchor, _)| list.has_issuer(anchor)).peekable();
                if namesakes.peek().is_none() {
                    self.reader.warn(format_args!(
                        "the CRL {} is issued by {issuer}, which is not in client_ca; it applies only to an intermediate CA of that name",
                        file.path.display()
                    ));
                } else if !namesakes.any(|(anchor, _)| list.is_signed_by(anchor)) {
                    // With this list, webpki would reject every certificate of that CA at its handshake.
                    self.reader.problems.push(file.problem(format_args!(
                        "names {issuer} as its issuer, but no certificate of that name in client_ca signed it; \
                         if the CA has a new key, use the CRL signed by the certificate in client_ca"
                    )));
                    return None;
                }
                if list.is_expired_at(OffsetDateTime::now_utc()) {
                    let meaning = match tls.crl_expired {
                        CrlExpired::Refuse => "certificates of this CA are rejected (crl_expired = \"refuse\")",
                        CrlExpired::Allow => "it is still used (crl_expired = \"allow\")",
                    };
                    let end = timestamp::seconds(*next_update);
                    self.reader.warn(format_args!(
                        "the CRL of {issuer} in {} expired at {end}: {meaning}; replace the file",
                        file.path.display()
                    ));
                }
                if list.is_scoped() {
                    self.reader.warn(format_args!(
                        "the CRL of {issuer} in {} covers only some of its certificates (issuing distribution point); \
                         certificates that no CRL covers are rejected; add a CRL that covers all of them",
                        file.path.display()
                    ));
                }
                all.push(list);
            }
        }
        Some(all)
    }

    fn trust(
        &mut self,
        tls: &Tls,
        settings: &ClientAuthSettings,
        before: Option<&ListenerPolicy>,
    ) -> Option<ClientVerifier> {
        let same =
            |before: &&ListenerPolicy| before.tls_inputs.as_ref().is_some_and(|inputs| inputs.trust == *settings);
        if let Some(before) = before.filter(same).and_then(|before| before.tls.as_ref()) {
            // Keeps the cache of verified chains.
            return Some(before.trust().clone());
        }
        match (ClientVerifier::new(settings), tls.client_ca.first()) {
            (Ok(trust), _) => Some(trust),
            (Err(error), Some(file)) => {
                self.reader.problems.push(file.problem(error));
                None
            }
            // Cannot happen: only a bundle can be invalid.
            (Err(_), None) => None,
        }
    }

    /// Reads the shared session ticket keys; `Some(None)` if there are none.
    fn tickets(&mut self, tls: &Tls) -> Option<Option<TicketKeys>> {
        let file = match &tls.ticket_keys {
            None => return Some(None),
            // Until the keys of the fleet are known, the listener has its own.
            Some(SharedTicketKeys::Fleet) => return Some(self.fleet.tickets.as_ref().map(|(_, keys)| keys.clone())),
            Some(SharedTicketKeys::File(file)) => file,
        };
        let keys = self.reader.parse(file, TicketKeys::parse)?;
        self.reader.warn_about_readers("ticket keys", &Location::from(&file.path));
        Some(Some(keys))
    }

    fn server_tls(
        &mut self,
        tls: &Tls,
        certificates: &[CertifiedKeyPair],
        trust: ClientVerifier,
        inputs: &TlsInputs,
    ) -> Option<ServerTls> {
        let alpn: &[&[u8]] = match self.listener.protocol {
            Protocol::Postgres => &[postgres::ALPN],
            Protocol::Redis | Protocol::Tcp => &[],
        };
        let binding = inputs.trust.binding(&self.listener.name);
        let ticketer = inputs.tickets.as_ref().map(|keys| SharedTicketer::new(keys, &binding)).transpose();
        let built = ticketer.and_then(|ticketer| ServerTls::new(certificates, trust, tls.min_version, alpn, ticketer));
        match built {
            Ok(tls) => Some(tls),
            Err(error) => {
                self.reader.problems.extend(tls.certificates.first().map(|files| files.cert.problem(error)));
                None
            }
        }
    }

    fn warn_about_clients(&mut self, tls: &Tls, clients: &Clients) {
        if tls.client_auth == ClientAuth::Optional && !tls.trusted_clients.patterns().is_empty() {
            self.reader.warn("client_auth = \"optional\" admits clients without a certificate even when trusted_clients is set; use \"required\" to prevent this");
        }
        if self.listener.revoke == Revoke::Keep {
            self.reader.warn("revoke = \"keep\": open sessions continue after their source or certificate is no longer admitted; set \"disconnect\" to close them");
        }
        if clients.pins.certificates.is_empty() && !clients.pins.places.is_empty() {
            let meaning = match (tls.client_auth, clients.anchors.is_empty()) {
                (ClientAuth::Required, true) => "every client is rejected",
                _ => "it admits no client",
            };
            self.reader.warn(format_args!(
                "client_certificates holds no certificate, so {meaning}; pin one with: portcullis certs pin {} FILE",
                self.listener.name
            ));
        }
        if clients.lists.is_empty() {
            return;
        }
        for (anchor, Certificate { subject, ca, sha256, .. }) in &clients.anchors {
            if *ca && !clients.lists.iter().any(|list| list.is_signed_by(anchor)) {
                if clients.lists.iter().any(|list| list.has_issuer(anchor)) {
                    self.reader.warn(format_args!(
                        "the CRLs in client_crl with the name of the client CA {subject} (sha256 {}) are signed by another key, \
                         so certificates issued by this CA are rejected; add the CRL signed by its key, or remove the \
                         certificate from client_ca",
                        sha256.short()
                    ));
                    continue;
                }
                self.reader.warn(format_args!(
                    "client_crl contains no CRL of the client CA {subject}, so certificates revoked by this CA are accepted; add its CRL"
                ));
            }
        }
    }

    fn warn_about_anchors(&mut self, anchors: &Certificates, trust: &ClientVerifier) {
        for (der, parsed) in anchors {
            match trust.anchor_error(der, self.now.at) {
                Some(error) => {
                    self.reader.warn(format_args!(
                        "the client CA certificate {} authenticates no client: {error}",
                        parsed.subject
                    ));
                }
                None => self.reader.warn_about_dates("client CA certificate", parsed),
            }
            if let Some(warning) = ClientVerifier::unchecked_constraints(der) {
                self.reader.warn(format_args!("the client CA certificate {} {warning}", parsed.subject));
            }
        }
    }

    fn warn_about_certificates(&mut self, certificates: &[CertifiedKeyPair]) {
        for certificate in certificates {
            self.reader.warn_about_dates("server certificate", certificate.leaf());
            if !certificate.leaf().sans.iter().any(|san| san.starts_with("dns:") || san.starts_with("ip:")) {
                let subject = &certificate.leaf().subject;
                self.reader.warn(format_args!("the server certificate {subject} names no host (subjectAltName), so clients that verify names reject it; issue one with subjectAltName"));
            }
            // As the offer of SCRAM-SHA-256-PLUS: by the signature of the certificate, whatever its own key is.
            let has_end_point = certificate.chain().first().is_some_and(|leaf| channel_binding::has_end_point(leaf));
            if self.listener.protocol == Protocol::Postgres && !has_end_point {
                let subject = &certificate.leaf().subject;
                self.reader.warn(format_args!(
                    "the server certificate {subject} has a signature that SCRAM channel binding does not support, such as \
                     Ed25519, so clients with channel_binding=require fail; use a certificate signed with ECDSA or RSA"
                ));
            }
        }
    }
}
