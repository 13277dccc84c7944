//! Building the terms of one listener: every file opened, every part tried, every problem noted.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use super::lineage::{Lineage, Moment};
use super::{Door, Terms, TlsInputs, with_roles};
use crate::addr::ListenAddr;
use crate::config::{CertificateFiles, Files, Listener, Location, NamedFile, NamedPem, Problem, Revoke};
use crate::policy::{
    AddressBook, ClientAuth, CrlExpired, Enforcement, Source, SourcePolicy, days_left, expiry_milestone,
};
use crate::protocol::{Protocol, postgres};
use crate::timestamp;
use crate::tls::{
    self, BuildError, Certificate, ClientTrust, Crl, EncryptedKeyError, Passphrase, PemError, ServerCertificate,
    ServerTls, SharedTicketer, StoredKey, TicketKeys, TrustParts,
};

/// Certificates with their facts.
type Certificates = Vec<(CertificateDer<'static>, Certificate)>;

/// What a listener judges client certificates by.
#[derive(Default)]
struct Clients {
    anchors: Certificates,
    pinned: Certificates,
    lists: Vec<Crl>,
}

impl Clients {
    fn parts(&self, listener: &Listener) -> TrustParts {
        let ders = |certificates: &Certificates| certificates.iter().map(|(der, _)| der.clone()).collect();
        TrustParts {
            auth: listener.tls.client_auth,
            anchors: ders(&self.anchors),
            pinned: ders(&self.pinned),
            crls: self.lists.clone(),
            crl_expired: listener.tls.crl_expired,
            clients: listener.tls.trusted_clients.clone(),
        }
    }
}

fn facts(certificates: Certificates) -> Vec<Certificate> {
    certificates.into_iter().map(|(_, facts)| facts).collect()
}

/// Builds one listener's terms and notes what it finds.
pub(super) struct Builder<'a> {
    pub(super) files: &'a mut Files,
    pub(super) problems: &'a mut Vec<Problem>,
    pub(super) warnings: &'a mut Vec<String>,
    /// The addresses of the hosts that rules trust.
    pub(super) book: &'a AddressBook,
    /// The generation being built.
    pub(super) now: Moment,
}

impl Builder<'_> {
    pub(super) fn terms(&mut self, listener: &Listener, before: Option<&Terms>) -> Option<Terms> {
        let certificates: Vec<_> =
            listener.tls.certificates.iter().filter_map(|files| self.certificate(listener, files)).collect();
        // Everything is looked at before anything is given up, so that all of it is told.
        let clients = self.clients(listener)?;
        let parts = clients.parts(listener);
        let trust = self.trust(listener, &parts, before)?;
        if certificates.len() < listener.tls.certificates.len() {
            return None;
        }
        let inputs = TlsInputs {
            chains: certificates.iter().map(|certificate| certificate.chain().to_vec()).collect(),
            trust: parts,
            tickets: self.tickets(listener)?,
            min_version: listener.tls.min_version,
            protocol: listener.protocol,
        };
        let tls = match before {
            Some(before) if *before.tls_inputs == inputs => Arc::clone(&before.tls),
            Some(_) | None => Arc::new(self.server_tls(listener, &certificates, trust, &inputs)?),
        };
        self.warn_about(listener, &certificates);
        self.warn_about_clients(listener, &clients);
        let name: Arc<str> = listener.name.as_str().into();
        let [anchors, pinned] = [clients.anchors, clients.pinned].map(facts);
        let lineage = Lineage::after(before, self.now, with_roles(tls.certificates(), &anchors, &pinned));
        Some(Terms {
            doors: doors(listener, &name),
            name,
            protocol: listener.protocol,
            sources: self.sources(listener),
            tls,
            anchors,
            pinned,
            upstream: listener.upstream.clone(),
            resolving: before
                .map_or_else(|| Arc::new(Semaphore::new(MOST_LOOKUPS)), |before| Arc::clone(&before.resolving)),
            upstream_name: listener.upstream.address.to_string().into(),
            limits: listener.limits,
            revoke: listener.revoke,
            plaintext_cancel: listener.plaintext_cancel,
            lineage,
            usage: before.map_or_else(Arc::default, |before| Arc::clone(&before.usage)),
            tls_inputs: Arc::new(inputs),
        })
    }

    fn sources(&self, listener: &Listener) -> SourcePolicy {
        let sources = listener.sources.clone();
        match sources.trusted.with_addresses(self.book) {
            Some(trusted) => SourcePolicy { trusted: Arc::new(trusted), ..sources },
            None => sources,
        }
    }

    fn certificate(&mut self, listener: &Listener, files: &CertificateFiles) -> Option<ServerCertificate> {
        let chain = self.pem(&files.cert, tls::certificates);
        let key = self.private_key(listener, files);
        match ServerCertificate::new(chain?, key?) {
            Ok(certificate) => {
                for issuer in certificate.chain().iter().skip(1).filter_map(|der| Certificate::parse(der).ok()) {
                    self.warn_about_dates(listener, "intermediate certificate", &issuer);
                }
                Some(certificate)
            }
            Err(error) => {
                let key = &files.key.location;
                self.problems.push(files.cert.problem(format_args!("with key {key}: {error}")));
                None
            }
        }
    }

    fn private_key(&mut self, listener: &Listener, files: &CertificateFiles) -> Option<PrivateKeyDer<'static>> {
        let CertificateFiles { cert: _, key, key_passphrase_file } = files;
        let stored = self.pem(key, tls::stored_key);
        self.warn_about_readers(listener, "key", &key.location);
        let Some(file) = key_passphrase_file else {
            return match stored? {
                StoredKey::Plain(key) => Some(key),
                StoredKey::Encrypted(_) => {
                    self.problems.push(key.problem(PASSPHRASE_NEEDED));
                    None
                }
            };
        };
        let passphrase = self.parse(file, Passphrase::from_file);
        self.warn_about_readers(listener, "passphrase", &Location::from(&file.path));
        match (stored?, passphrase?) {
            (StoredKey::Plain(plain), _) => {
                let words = format_args!("the key {} needs no passphrase; take key_passphrase_file out", key.location);
                self.warn(listener, words);
                Some(plain)
            }
            (StoredKey::Encrypted(encrypted), passphrase) => {
                let problem = |error| match error {
                    EncryptedKeyError::WrongPassphrase => {
                        file.problem(format_args!("does not hold the passphrase of {}", key.location))
                    }
                    other => key.problem(other),
                };
                encrypted.decrypt(&passphrase).map_err(|error| self.problems.push(problem(error))).ok()
            }
        }
    }

    fn warn_about_readers(&mut self, listener: &Listener, what: &str, location: &Location) {
        if self.files.is_open_to_others(location) {
            let words = format_args!("the {what} {location} can be read by group or others; chmod 600 it");
            self.warn(listener, words);
        }
    }

    /// Everything by which client certificates are judged.
    fn clients(&mut self, listener: &Listener) -> Option<Clients> {
        let mut clients = Clients::default();
        let mut whole = true;
        for file in &listener.tls.client_ca {
            match self.parse(file, tls::certificates).and_then(|ders| self.anchors(listener, file, ders)) {
                Some(anchors) => clients.anchors.extend(anchors),
                None => whole = false,
            }
        }
        for file in &listener.tls.client_certificates {
            match self.pinned(listener, file) {
                Some(pinned) => clients.pinned.extend(pinned),
                None => whole = false,
            }
        }
        for file in &listener.tls.client_crl {
            match self.lists(listener, file, &clients.anchors) {
                Some(lists) => clients.lists.extend(lists),
                None => whole = false,
            }
        }
        whole.then_some(clients)
    }

    fn anchors(
        &mut self,
        listener: &Listener,
        file: &NamedFile,
        ders: Vec<CertificateDer<'static>>,
    ) -> Option<Certificates> {
        let mut anchors = Vec::new();
        for (index, der) in ders.into_iter().enumerate() {
            let facts = Certificate::parse(&der).map_err(BuildError::from);
            match facts.and_then(|facts| ClientTrust::check_anchor(&der).map(|()| facts)) {
                Ok(facts) => {
                    self.warn_about_dates(listener, "client CA certificate", &facts);
                    if !facts.ca && facts.version == 3 {
                        let subject = &facts.subject;
                        self.warn(listener, format_args!("the client CA certificate {subject} may not issue certificates, so it vouches for nobody"));
                    }
                    anchors.push((der, facts));
                }
                Err(error) => {
                    self.problems.push(file.problem(format_args!("certificate {}: {error}", index + 1)));
                    return None;
                }
            }
        }
        Some(anchors)
    }

    /// Client certificates that need no CA: all of each file, but those that are there as the chain of another.
    fn pinned(&mut self, listener: &Listener, pattern: &NamedFile) -> Option<Certificates> {
        let mut pinned = Vec::new();
        for file in self.matching(pattern)? {
            let ders = self.parse(&file, tls::certificates)?;
            let facts: Result<Vec<_>, BuildError> = ders
                .iter()
                .map(|der| Certificate::parse(der).map_err(BuildError::from).and_then(BuildError::unless_version_3))
                .collect();
            let facts = facts.map_err(|error| self.problems.push(file.problem(error))).ok()?;
            let has_issued =
                |one: &Certificate| facts.iter().any(|other| !other.self_signed && other.issuer == one.subject);
            for (der, facts) in ders.into_iter().zip(&facts).filter(|(_, facts)| !has_issued(facts)) {
                self.warn_about_dates(listener, "client certificate", facts);
                pinned.push((der, facts.clone()));
            }
        }
        Some(pinned)
    }

    fn lists(&mut self, listener: &Listener, pattern: &NamedFile, anchors: &Certificates) -> Option<Vec<Crl>> {
        let mut all = Vec::new();
        for file in self.matching(pattern)? {
            for list in self.parse(&file, Crl::parse_all)? {
                let Crl { issuer, next_update, .. } = &list;
                let mut of_its_name = anchors.iter().filter(|(anchor, _)| list.has_issuer(anchor)).peekable();
                if of_its_name.peek().is_none() {
                    self.warn(listener, format_args!("{} is of {issuer}, which is not in client_ca: it counts for an intermediate of that name only", file.path.display()));
                } else if !of_its_name.any(|(anchor, _)| list.is_signed_by(anchor)) {
                    // Left to webpki it would refuse every certificate of that CA, one by one.
                    self.problems.push(file.problem(format_args!(
                        "says it is of {issuer}, but no certificate of that name in client_ca has signed it; \
                         if the CA was made anew under its old name, give the list that goes with the certificate in client_ca"
                    )));
                    return None;
                }
                if list.is_expired_at(OffsetDateTime::now_utc()) {
                    let meaning = match listener.tls.crl_expired {
                        CrlExpired::Refuse => "the certificates of its CA are refused (crl_expired = \"refuse\")",
                        CrlExpired::Allow => "it counts all the same (crl_expired = \"allow\")",
                    };
                    let end = timestamp::seconds(*next_update);
                    self.warn(
                        listener,
                        format_args!(
                            "the revocation list of {issuer} in {} ran out at {end}: {meaning}",
                            file.path.display()
                        ),
                    );
                }
                all.push(list);
            }
        }
        Some(all)
    }

    /// The files that a pattern names.
    fn matching(&mut self, pattern: &NamedFile) -> Option<Vec<NamedFile>> {
        let paths = self.files.matching(&pattern.path).map_err(|error| self.problems.push(pattern.problem(error)));
        Some(paths.ok()?.into_iter().map(|path| NamedFile { path, ..pattern.clone() }).collect())
    }

    fn trust(&mut self, listener: &Listener, parts: &TrustParts, before: Option<&Terms>) -> Option<ClientTrust> {
        if let Some(before) = before.filter(|before| before.tls_inputs.trust == *parts) {
            // What it has verified need not be verified again.
            return Some(before.tls.trust().clone());
        }
        match (ClientTrust::new(parts), listener.tls.client_ca.first()) {
            (Ok(trust), _) => Some(trust),
            (Err(error), Some(file)) => {
                self.problems.push(file.problem(error));
                None
            }
            // Without a bundle there is no trust to fail.
            (Err(_), None) => None,
        }
    }

    /// The shared keys of session tickets; `Some(None)` where there are none.
    fn tickets(&mut self, listener: &Listener) -> Option<Option<TicketKeys>> {
        let Some(file) = &listener.tls.ticket_keys else { return Some(None) };
        let keys = self.parse(file, TicketKeys::parse)?;
        self.warn_about_readers(listener, "ticket keys", &Location::from(&file.path));
        Some(Some(keys))
    }

    fn server_tls(
        &mut self,
        listener: &Listener,
        certificates: &[ServerCertificate],
        trust: ClientTrust,
        inputs: &TlsInputs,
    ) -> Option<ServerTls> {
        let alpn: &[&[u8]] = match listener.protocol {
            Protocol::Postgres => &[postgres::ALPN],
            Protocol::Redis | Protocol::Tcp => &[],
        };
        let binding = inputs.trust.binding(&listener.name);
        let ticketer = inputs.tickets.as_ref().map(|keys| SharedTicketer::new(keys, &binding)).transpose();
        let built =
            ticketer.and_then(|ticketer| ServerTls::new(certificates, trust, listener.tls.min_version, alpn, ticketer));
        match built {
            Ok(tls) => Some(tls),
            Err(error) => {
                self.problems.extend(listener.tls.certificates.first().map(|files| files.cert.problem(error)));
                None
            }
        }
    }

    fn parse<T, E: std::fmt::Display>(&mut self, file: &NamedFile, parse: fn(&[u8]) -> Result<T, E>) -> Option<T> {
        let bytes = self.files.read(&file.path).map_err(|error| self.problems.push(file.problem(error))).ok()?;
        parse(&bytes).map_err(|error| self.problems.push(file.problem(error))).ok()
    }

    fn pem<T>(&mut self, text: &NamedPem, parse: fn(&[u8]) -> Result<T, PemError>) -> Option<T> {
        let bytes = self.files.read(&text.location).map_err(|error| self.problems.push(text.problem(error))).ok()?;
        parse(&bytes).map_err(|error| self.problems.push(text.problem(error))).ok()
    }

    fn warn_about(&mut self, listener: &Listener, certificates: &[ServerCertificate]) {
        for certificate in certificates {
            self.warn_about_dates(listener, "server certificate", certificate.leaf());
            if !certificate.leaf().sans.iter().any(|san| san.starts_with("dns:") || san.starts_with("ip:")) {
                let subject = &certificate.leaf().subject;
                self.warn(listener, format_args!("the server certificate {subject} names no host (subjectAltName); clients that verify names will refuse it"));
            }
            if listener.protocol == Protocol::Postgres && certificate.leaf().key == "Ed25519" {
                self.warn(
                    listener,
                    "an Ed25519 server certificate has no channel binding: clients with channel_binding=require fail",
                );
            }
        }
        if listener.listen.iter().any(|address| listener.upstream.address.reaches(address)) {
            self.warn(listener, format_args!("its upstream {} is the listener itself", listener.upstream.address));
        }
        if listener.sources.enforcement == Enforcement::Observe {
            self.warn(listener, "enforcement = \"observe\" lets untrusted sources in");
        } else if listener.sources.trusted.rules().is_empty() {
            self.warn(listener, "no source is trusted, so nobody gets in");
        }
        for rule in listener.sources.trusted.rules() {
            if matches!(&rule.source, Source::Network(network) if network.net().prefix_len() == 0) {
                self.warn(listener, format_args!("the rule {rule} trusts every address of its family"));
            }
        }
        if listener.protocol == Protocol::Postgres
            && listener.plaintext_cancel
            && listener.tls.client_auth == ClientAuth::Required
        {
            self.warn(listener, "a CancelRequest needs no client certificate (libpq before 17 sends it in plaintext); postgres.plaintext_cancel = false refuses those");
        }
    }

    fn warn_about_clients(&mut self, listener: &Listener, clients: &Clients) {
        if listener.tls.client_auth == ClientAuth::Optional && !listener.tls.trusted_clients.patterns().is_empty() {
            self.warn(listener, "trusted_clients says nothing of a client without a certificate, which client_auth = \"optional\" lets in; \"required\" does not");
        }
        if listener.revoke == Revoke::Keep {
            self.warn(listener, "revoke = \"keep\": open sessions go on, for days if need be, though their source or certificate is no longer let in");
        }
        if clients.lists.is_empty() {
            return;
        }
        for (anchor, Certificate { subject, ca, .. }) in &clients.anchors {
            if *ca && !clients.lists.iter().any(|list| list.is_signed_by(anchor)) {
                self.warn(
                    listener,
                    format_args!(
                        "no list of client_crl is of the client CA {subject}, so nothing it has revoked is refused"
                    ),
                );
            }
        }
    }

    fn warn_about_dates(&mut self, listener: &Listener, what: &str, certificate: &Certificate) {
        let now = OffsetDateTime::now_utc();
        let Certificate { subject, not_before, not_after, .. } = certificate;
        if now > *not_after {
            self.warn(listener, format_args!("the {what} {subject} expired at {}", timestamp::seconds(*not_after)));
        } else if now < *not_before {
            self.warn(
                listener,
                format_args!("the {what} {subject} is not valid before {}", timestamp::seconds(*not_before)),
            );
        } else if expiry_milestone(*not_after, now).is_some() {
            let (left, end) = (days_left(*not_after, now), timestamp::seconds(*not_after));
            let days = if left == 1 { "day" } else { "days" };
            self.warn(listener, format_args!("the {what} {subject} expires in {left} {days}, at {end}"));
        }
    }

    fn warn(&mut self, listener: &Listener, words: impl std::fmt::Display) {
        self.warnings.push(format!("listener {}: {words}", listener.name));
    }
}

fn doors(listener: &Listener, name: &Arc<str>) -> Vec<Door> {
    let door = |(index, address): (usize, &ListenAddr)| Door {
        address: *address,
        ephemeral: (address.socket.port() == 0).then(|| (Arc::clone(name), index)),
    };
    listener.listen.iter().enumerate().map(door).collect()
}

const PASSPHRASE_NEEDED: &str = "holds a private key that is protected by a passphrase; \
                                 name the file whose first line is the passphrase in key_passphrase_file beside it";

/// Name lookups of one listener at once. A resolver that answers in 10 ms serves 3,200 new sessions a second by these; one
/// that hangs takes no more than this many of the 512 threads a worker has for all listeners.
const MOST_LOOKUPS: usize = 32;
