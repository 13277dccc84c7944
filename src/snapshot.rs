//! The terms in force: one immutable value per generation, built whole or not at all.
//!
//! Everything that can fail happens here, on private values, before anybody sees the result: files are read and parsed,
//! keys matched with certificates, TLS configurations built. What `portcullis check` checks is this very code.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::addr::ListenAddr;
use crate::audit::Changes;
use crate::config::{CertificateFiles, Config, Files, Limits, Listener, NamedFile, Problem, Problems, Upstream};
use crate::policy::{ClientAuth, Rule, SourcePolicy};
use crate::protocol::{MinTlsVersion, Protocol, postgres};
use crate::timestamp;
use crate::tls::{self, Certificate, ClientTrust, ServerCertificate, ServerTls};

/// Where the current snapshot is read from.
pub type Current = watch::Receiver<Arc<Snapshot>>;

/// The policy of one generation.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts applied configurations, from 1.
    pub generation: u64,
    /// The configuration it was built from.
    pub config: Arc<Config>,
    terms: Vec<Arc<Terms>>,
    by_name: HashMap<Arc<str>, usize>,
    by_door: HashMap<Door, usize>,
}

/// One bound address, whoever it belongs to. With port 0 the kernel chooses, and every listener gets its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Door {
    /// The address as configured.
    pub address: ListenAddr,
    /// Listener and position, for addresses with port 0 only.
    ephemeral: Option<(Arc<str>, usize)>,
}

/// The terms of one listener.
#[derive(Debug)]
pub struct Terms {
    /// The listener's name.
    pub name: Arc<str>,
    /// What clients speak inside TLS.
    pub protocol: Protocol,
    /// Where it listens.
    pub doors: Vec<Door>,
    /// Whose connections it takes.
    pub sources: SourcePolicy,
    /// Its side of TLS.
    pub tls: Arc<ServerTls>,
    /// Facts of its trust anchors, in the order of the files.
    pub anchors: Vec<Certificate>,
    /// Its database.
    pub upstream: Upstream,
    /// The upstream's address as audit events show it.
    pub upstream_name: Arc<str>,
    /// Its time limits.
    pub limits: Limits,
    /// Whether a CancelRequest may come without TLS.
    pub plaintext_cancel: bool,
    tls_inputs: TlsInputs,
}

/// What a [`ServerTls`] is made of. Where nothing of it changes the old one is kept, and session tickets stay good.
/// Keys are not part of it: a key that fits an unchanged certificate is the same key.
#[derive(Debug, PartialEq, Eq)]
struct TlsInputs {
    chains: Vec<Vec<CertificateDer<'static>>>,
    anchors: Vec<CertificateDer<'static>>,
    client_auth: ClientAuth,
    min_version: MinTlsVersion,
    protocol: Protocol,
}

/// A snapshot that could be built, and what about it deserves a look.
#[derive(Debug)]
pub struct Built {
    /// The policy.
    pub snapshot: Snapshot,
    /// Nothing that stops it, in words for the operator.
    pub warnings: Vec<String>,
}

impl Snapshot {
    /// Builds the policy that `config` describes, following `previous`.
    ///
    /// # Errors
    /// Everything that is wrong with the files it names.
    pub fn build(config: Config, files: &mut Files, previous: Option<&Self>) -> Result<Built, Problems> {
        let mut problems = Vec::new();
        let mut warnings = Vec::new();
        let mut terms = Vec::with_capacity(config.listeners.len());
        for listener in &config.listeners {
            let before = previous.and_then(|snapshot| snapshot.named(&listener.name));
            let mut builder = Builder { files, problems: &mut problems, warnings: &mut warnings };
            terms.extend(builder.terms(listener, before.map(|before| &**before)).map(Arc::new));
        }
        let generation = previous.map_or(1, |snapshot| snapshot.generation + 1);
        let snapshot = Self::of(generation, config, terms);
        Problems::unless_any(problems, Built { snapshot, warnings })
    }

    fn of(generation: u64, config: Config, terms: Vec<Arc<Terms>>) -> Self {
        let by_name = terms.iter().enumerate().map(|(index, terms)| (Arc::clone(&terms.name), index)).collect();
        let doors = |(index, terms): (usize, &Arc<Terms>)| {
            terms.doors.iter().map(move |door| (door.clone(), index)).collect::<Vec<_>>()
        };
        let by_door = terms.iter().enumerate().flat_map(doors).collect();
        Self { generation, config: Arc::new(config), terms, by_name, by_door }
    }

    /// The terms of every listener, in the order of the configuration.
    pub fn listeners(&self) -> &[Arc<Terms>] {
        &self.terms
    }

    /// The terms of the listener of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Terms>> {
        self.terms.get(*self.by_name.get(name)?)
    }

    /// The terms of the listener that has this address.
    pub fn behind(&self, door: &Door) -> Option<&Arc<Terms>> {
        self.terms.get(*self.by_door.get(door)?)
    }

    /// Every address that is to be bound.
    pub fn doors(&self) -> impl Iterator<Item = &Door> {
        self.terms.iter().flat_map(|terms| &terms.doors)
    }

    /// What is different from `previous`.
    pub fn changes_since(&self, previous: &Self) -> Changes {
        let names = |snapshot: &Self| snapshot.terms.iter().map(|terms| terms.name.to_string()).collect::<Vec<_>>();
        let moved = |terms: &&Arc<Terms>| previous.named(&terms.name).is_some_and(|before| before.doors != terms.doors);
        let (old, new) = (names(previous), names(self));
        let (old_prints, new_prints) = (previous.fingerprints(), self.fingerprints());
        let mut changes = Changes {
            listeners_added: without(&new, &old),
            listeners_removed: without(&old, &new),
            listeners_moved: self.terms.iter().filter(moved).map(|terms| terms.name.to_string()).collect(),
            certificates_in: without(&new_prints, &old_prints),
            certificates_out: without(&old_prints, &new_prints),
            ..Changes::default()
        };
        for (_, added, removed) in self.source_changes_since(previous) {
            changes.sources_added += added.len();
            changes.sources_removed += removed.len();
        }
        changes
    }

    /// For each listener the rules that are new and those that are gone.
    pub fn source_changes_since<'a>(&'a self, previous: &'a Self) -> Vec<SourceChanges<'a>> {
        let names = self.terms.iter().chain(&previous.terms).map(|terms| &terms.name);
        let mut names: Vec<&Arc<str>> = names.collect();
        names.sort_unstable();
        names.dedup();
        let rules = |snapshot: &'a Self, name: &str| {
            snapshot.named(name).map_or(&[][..], |terms| terms.sources.sources.rules())
        };
        let changes = |name: &'a Arc<str>| {
            let (old, new) = (rules(previous, name), rules(self, name));
            (&**name, rules_without(new, old), rules_without(old, new))
        };
        names.into_iter().map(changes).collect()
    }

    /// Fingerprints of all server certificates and trust anchors.
    fn fingerprints(&self) -> Vec<String> {
        let of = |terms: &Arc<Terms>| {
            terms.certificates().map(|(_, certificate)| certificate.sha256.clone()).collect::<Vec<_>>()
        };
        self.terms.iter().flat_map(of).collect()
    }
}

/// A listener's name, its new rules and its former rules.
pub type SourceChanges<'a> = (&'a str, Vec<&'a Rule>, Vec<&'a Rule>);

impl Terms {
    /// Every certificate of the listener with its role, `server` or `client_ca`.
    pub fn certificates(&self) -> impl Iterator<Item = (&'static str, &Certificate)> {
        let server = self.tls.certificates().iter().map(|certificate| ("server", certificate));
        server.chain(self.anchors.iter().map(|certificate| ("client_ca", certificate)))
    }

    /// Whether it asks clients for certificates.
    pub fn client_auth(&self) -> ClientAuth {
        self.tls_inputs.client_auth
    }

    /// The lowest TLS version it takes.
    pub fn min_version(&self) -> MinTlsVersion {
        self.tls_inputs.min_version
    }
}

/// Builds one listener's terms and notes what it finds.
struct Builder<'a> {
    files: &'a mut Files,
    problems: &'a mut Vec<Problem>,
    warnings: &'a mut Vec<String>,
}

impl Builder<'_> {
    fn terms(&mut self, listener: &Listener, before: Option<&Terms>) -> Option<Terms> {
        let certificates: Vec<_> =
            listener.tls.certificates.iter().filter_map(|files| self.certificate(listener, files)).collect();
        let anchors: Vec<_> =
            listener.tls.client_ca.iter().flat_map(|file| self.anchors(listener, file).unwrap_or_default()).collect();
        let trust = self.trust(listener, &anchors)?;
        if certificates.len() < listener.tls.certificates.len() {
            return None;
        }
        let inputs = TlsInputs {
            chains: certificates.iter().map(|certificate| certificate.chain().to_vec()).collect(),
            anchors: anchors.iter().map(|(der, _)| der.clone()).collect(),
            client_auth: listener.tls.client_auth,
            min_version: listener.tls.min_version,
            protocol: listener.protocol,
        };
        let tls = match before {
            Some(before) if before.tls_inputs == inputs => Arc::clone(&before.tls),
            Some(_) | None => Arc::new(self.server_tls(listener, &certificates, trust)?),
        };
        self.warn_about(listener, &certificates);
        let name: Arc<str> = listener.name.as_str().into();
        Some(Terms {
            doors: doors(listener, &name),
            name,
            protocol: listener.protocol,
            sources: listener.sources.clone(),
            tls,
            anchors: anchors.into_iter().map(|(_, facts)| facts).collect(),
            upstream: listener.upstream.clone(),
            upstream_name: listener.upstream.address.to_string().into(),
            limits: listener.limits,
            plaintext_cancel: listener.plaintext_cancel,
            tls_inputs: inputs,
        })
    }

    fn certificate(&mut self, listener: &Listener, files: &CertificateFiles) -> Option<ServerCertificate> {
        let chain = self.parse(&files.cert, tls::certificates);
        let key = self.parse(&files.key, tls::private_key);
        if self.files.is_open_to_others(&files.key.path) {
            self.warn(
                listener,
                format_args!("the key {} can be read by group or others; chmod 600 it", files.key.path.display()),
            );
        }
        match ServerCertificate::new(chain?, key?) {
            Ok(certificate) => Some(certificate),
            Err(error) => {
                let key_file = files.key.path.display();
                self.problems.push(files.cert.problem(format_args!("with key {key_file}: {error}")));
                None
            }
        }
    }

    fn anchors(
        &mut self,
        listener: &Listener,
        file: &NamedFile,
    ) -> Option<Vec<(CertificateDer<'static>, Certificate)>> {
        let mut anchors = Vec::new();
        for (index, der) in self.parse(file, tls::certificates)?.into_iter().enumerate() {
            match Certificate::parse(&der) {
                Ok(facts) => {
                    self.warn_about_dates(listener, "client CA certificate", &facts);
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

    fn trust(
        &mut self,
        listener: &Listener,
        anchors: &[(CertificateDer<'static>, Certificate)],
    ) -> Option<ClientTrust> {
        let ders: Vec<_> = anchors.iter().map(|(der, _)| der.clone()).collect();
        match (ClientTrust::new(listener.tls.client_auth, &ders), listener.tls.client_ca.first()) {
            (Ok(trust), _) => Some(trust),
            (Err(error), Some(file)) => {
                self.problems.push(file.problem(error));
                None
            }
            // Without a bundle there is no trust to fail.
            (Err(_), None) => None,
        }
    }

    fn server_tls(
        &mut self,
        listener: &Listener,
        certificates: &[ServerCertificate],
        trust: ClientTrust,
    ) -> Option<ServerTls> {
        let alpn: &[&[u8]] = match listener.protocol {
            Protocol::Postgres => &[postgres::ALPN],
            Protocol::Redis | Protocol::Tcp => &[],
        };
        match ServerTls::new(certificates, trust, listener.tls.min_version, alpn) {
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

    fn warn_about(&mut self, listener: &Listener, certificates: &[ServerCertificate]) {
        for certificate in certificates {
            self.warn_about_dates(listener, "server certificate", certificate.leaf());
            if listener.protocol == Protocol::Postgres && certificate.leaf().key == "Ed25519" {
                self.warn(
                    listener,
                    "an Ed25519 server certificate has no channel binding: clients with channel_binding=require fail",
                );
            }
        }
        if listener.sources.sources.rules().is_empty() {
            self.warn(listener, "no source is trusted, so nobody gets in");
        }
        for rule in listener.sources.sources.rules() {
            if rule.network.net().prefix_len() == 0 {
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

/// What is in `all` and not in `others`.
fn without(all: &[String], others: &[String]) -> Vec<String> {
    let others: std::collections::HashSet<&String> = others.iter().collect();
    let mut rest: Vec<String> = all.iter().filter(|name| !others.contains(name)).cloned().collect();
    rest.sort_unstable();
    rest.dedup();
    rest
}

fn rules_without<'a>(all: &'a [Arc<Rule>], others: &[Arc<Rule>]) -> Vec<&'a Rule> {
    let others: std::collections::HashSet<_> = others.iter().map(|rule| (rule.network, rule.expires_at)).collect();
    all.iter().map(|rule| &**rule).filter(|rule| !others.contains(&(rule.network, rule.expires_at))).collect()
}
