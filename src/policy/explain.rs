//! The questions a connection is asked, put to one that does not exist: for `portcullis explain` and `/v1/explain`.

use std::fmt;

use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::addr::{ClientAddr, ListenAddr};
use crate::config::Shield;
use crate::identity::client_verifier::{ClientIdentity, PresentedIdentity};
use crate::identity::settings::ClientAuth;
use crate::identity::verified::TrustedBy;
use crate::outcome::{Outcome, Reason};
use crate::policy::{ListenerPolicy, Snapshot};
use crate::printable;
use crate::source::rule::Rule;
use crate::source::trusted::SourceMatch;
use crate::timestamp;
use crate::transport::unix_socket::Access;
use crate::x509::crl::Crl;

/// What becomes of a connection, step by step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    steps: Vec<(&'static str, String)>,
    /// Why it is refused.
    refused: Option<Reason>,
    /// The rule that trusts the source.
    rule: Option<String>,
}

/// Why there is no explanation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// There is no such listener.
    #[error("there is no listener {asked:?}; there is {known}")]
    UnknownListener {
        /// The name.
        asked: String,
        /// Those that there are.
        known: String,
    },
    /// No connection can come that way.
    #[error("nobody comes to listener {listener:?} that way: {hint}")]
    Impossible {
        /// The listener.
        listener: String,
        /// What to ask instead.
        hint: &'static str,
    },
}

impl Snapshot {
    /// Explains what becomes of a connection from `client` that presents this chain; an empty one is no certificate.
    ///
    /// # Errors
    /// When the question makes no sense for this policy.
    pub fn explain(
        &self,
        listener: &str,
        client: ClientAddr,
        chain: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Explanation, ExplainError> {
        let policy = self.named(listener).ok_or_else(|| {
            let known: Vec<_> = self.listeners().iter().map(|policy| &*policy.name).collect();
            ExplainError::UnknownListener { asked: listener.to_owned(), known: known.join(", ") }
        })?;
        let has_port = policy.bind_addrs.iter().any(|bind_addr| matches!(bind_addr.address, ListenAddr::Tcp(_)));
        let is_possible = if client.ip().is_some() { has_port } else { policy.socket_files().next().is_some() };
        if !is_possible {
            let hint = if has_port {
                "it has no Unix socket; give an address"
            } else {
                "it has no port; ask with --source unix"
            };
            return Err(ExplainError::Impossible { listener: listener.to_owned(), hint });
        }
        let mut explanation = Explanation { steps: Vec::new(), refused: None, rule: None };
        explanation.proxy(policy, client);
        explanation.source(policy, client, now);
        if explanation.refused.is_none() {
            explanation.identity(policy, chain, now);
        }
        Ok(explanation)
    }
}

impl Explanation {
    /// In the form of `GET /v1/explain`.
    pub fn in_json(&self) -> Value {
        let steps: Vec<_> = self.steps.iter().map(|(step, text)| json!({ "step": step, "text": text })).collect();
        let mut answer = json!({
            "steps": steps,
            "verdict": if self.refused.is_none() { "admitted" } else { "refused" },
        });
        if let Some(fields) = answer.as_object_mut() {
            fields.extend(self.refused.map(|reason| ("reason".to_owned(), reason.code().into())));
            fields.extend(self.rule.as_ref().map(|rule| ("rule".to_owned(), rule.as_str().into())));
        }
        answer
    }

    /// Of a load balancer's address the other steps tell only half.
    fn proxy(&mut self, policy: &ListenerPolicy, client: ClientAddr) {
        let Some(network) = client.ip().and_then(|ip| policy.proxies.covering(ip)) else { return };
        let ip = client.source();
        self.say("balancer", format_args!("{ip} is a load balancer of proxy_protocol.trusted ({network})"));
        self.say(
            "balancer",
            format_args!("it has to send a PROXY header first, and the client announced there is judged"),
        );
        self.say("balancer", format_args!("a connection of its own (LOCAL, UNKNOWN) is judged as follows"));
    }

    fn source(&mut self, policy: &ListenerPolicy, client: ClientAddr, now: OffsetDateTime) {
        let ip = client.source();
        match policy.sources.admit(client, now) {
            Ok(admitted) => match admitted.source_match() {
                SourceMatch::Rule(rule) => {
                    self.rule = Some(rule.to_string());
                    self.say("source", format_args!("{ip} is trusted by {}", in_words(policy, rule)));
                }
                SourceMatch::Observed => {
                    self.say("source", format_args!("{ip} is not trusted, but enforcement = \"observe\" lets it in"));
                }
                SourceMatch::SocketFile => {
                    for (path, Access { mode, .. }) in policy.socket_files() {
                        let path = path.display();
                        self.say(
                            "source",
                            format_args!("whoever may write to the file {path} (mode {mode:04o}) is let in"),
                        );
                    }
                }
            },
            Err(untrusted) => {
                self.say(
                    "source",
                    format_args!("{ip} is not trusted: {untrusted}; it is closed before a byte is read"),
                );
                if policy.shield != Shield::Off {
                    self.say(
                        "shield",
                        format_args!(
                            "while it is up (portcullis status) the kernel answers nothing, and the audit has no line"
                        ),
                    );
                }
                self.refused = Some(Reason::UntrustedSource);
                let hosts = policy.sources.trusted.rules().iter().filter(|rule| rule.source.host().is_some());
                for rule in hosts.take(MAX_HOSTS) {
                    self.say("source", format_args!("it is none of {}", in_words(policy, rule)));
                }
            }
        }
    }

    fn identity(&mut self, policy: &ListenerPolicy, chain: &[CertificateDer<'_>], now: OffsetDateTime) {
        if policy.tls.is_none() {
            self.say("tls", format_args!("is off, so nobody is asked for a certificate"));
            return;
        }
        let certificates: Vec<_> = policy.server_certificates().iter().map(|leaf| leaf.subject.as_str()).collect();
        self.say("tls", format_args!("is required; the certificate is {}", certificates.join(" or ")));
        if policy.client_auth() == ClientAuth::None {
            self.say("identity", format_args!("no client certificate is asked for (client_auth = \"none\")"));
            return;
        }
        match policy.verify_identity(PresentedIdentity::Chain(chain), now) {
            Ok(ClientIdentity::Anonymous) => {
                self.say("identity", format_args!("no certificate, and none is needed (client_auth = \"optional\")"));
            }
            Ok(ClientIdentity::Certified(identity)) => {
                let facts = &identity.certificate;
                let (subject, end) = (&facts.subject, timestamp::seconds(facts.not_after));
                let trusted_by = trusted_by(policy, &identity.trusted_by);
                self.say("identity", format_args!("{subject} {trusted_by}, valid until {end}"));
                if let Some(lists) = revocation(policy, &identity.trusted_by, now) {
                    self.say("identity", format_args!("{lists}"));
                }
                if let Some(pattern) = policy.trusted_clients().and_then(|clients| clients.pattern_of(facts.names())) {
                    self.say("identity", format_args!("trusted_clients lists it as \"{pattern}\""));
                }
            }
            Err(Outcome { reason, detail }) => {
                let none = "client_auth = \"required\", and no certificate was given (--client-cert)";
                let detail = if detail.is_empty() { none } else { &detail };
                self.say("identity", format_args!("refused: {detail}"));
                self.refused = Some(reason);
            }
        }
    }

    fn say(&mut self, step: &'static str, words: fmt::Arguments<'_>) {
        self.steps.push((step, words.to_string()));
    }
}

/// Why the certificate is good.
fn trusted_by(policy: &ListenerPolicy, trusted_by: &TrustedBy) -> String {
    match trusted_by {
        TrustedBy::Pinned => "is one of client_certificates".to_owned(),
        TrustedBy::Anchor { sha256, .. } => {
            let anchor = policy.anchors.iter().find(|anchor| anchor.sha256 == **sha256);
            let name = anchor.map_or("an anchor", |anchor| &anchor.subject);
            format!("is vouched for by {name} of client_ca")
        }
    }
}

/// What the revocation lists say of a certificate that is good; nothing where there are none.
fn revocation(policy: &ListenerPolicy, trusted_by: &TrustedBy, now: OffsetDateTime) -> Option<String> {
    let TrustedBy::Anchor { sha256, .. } = trusted_by else { return None };
    let (anchor, der) =
        policy.anchors.iter().zip(policy.anchor_ders()).find(|(anchor, _)| anchor.sha256 == **sha256)?;
    let lists = policy.revocation_lists();
    if lists.is_empty() {
        return None;
    }
    let newest = lists.iter().filter(|list| list.is_signed_by(der)).max_by_key(|list| list.this_update);
    Some(match newest {
        Some(Crl { issuer, next_update, .. }) => {
            let end = timestamp::seconds(*next_update);
            let until = if now < *next_update { "good until" } else { "which ran out at" };
            format!("it is not revoked by the list of {issuer}, {until} {end}")
        }
        None => format!("it is in no revocation list, for client_crl has none of {}", anchor.subject),
    })
}

fn in_words(policy: &ListenerPolicy, rule: &Rule) -> String {
    let now = policy.addresses_in_words(rule);
    match &rule.description {
        Some(description) => format!("{rule} ({}){now}", printable::field(description)),
        None => format!("{rule}{now}"),
    }
}

impl ListenerPolicy {
    /// The addresses of a rule's host, for behind its name; nothing where the rule names none.
    pub fn addresses_in_words(&self, rule: &Rule) -> String {
        let Some(host) = rule.source.host() else { return String::new() };
        let all = self.sources.trusted.addresses_of(&host.name);
        let shown: Vec<_> = all.iter().take(MAX_ADDRESSES).map(ToString::to_string).collect();
        match all.len().saturating_sub(shown.len()) {
            _ if shown.is_empty() => ", NO ADDRESS".to_owned(),
            0 => format!(", now {}", shown.join(" ")),
            more => format!(", now {} and {more} more", shown.join(" ")),
        }
    }
}

/// Addresses of a host that are named.
const MAX_ADDRESSES: usize = 8;

/// Host names that a refusal lists.
const MAX_HOSTS: usize = 50;
