//! The questions a connection is asked, put to one that does not exist: for `portcullis explain` and `/v1/explain`.

use std::fmt;

use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::addr::{ClientAddr, ListenAddr};
use crate::config::Shield;
use crate::identity::client_verifier::{Evidence, Identity};
use crate::identity::settings::ClientAuth;
use crate::identity::verified::Voucher;
use crate::outcome::{Outcome, Reason};
use crate::policy::{Snapshot, Terms};
use crate::printable;
use crate::source::rule::Rule;
use crate::source::trusted::Standing;
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
pub enum Unexplained {
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
    ) -> Result<Explanation, Unexplained> {
        let terms = self.named(listener).ok_or_else(|| {
            let known: Vec<_> = self.listeners().iter().map(|terms| &*terms.name).collect();
            Unexplained::UnknownListener { asked: listener.to_owned(), known: known.join(", ") }
        })?;
        let has_port = terms.bind_addrs.iter().any(|bind_addr| matches!(bind_addr.address, ListenAddr::Tcp(_)));
        let is_possible = if client.ip().is_some() { has_port } else { terms.socket_files().next().is_some() };
        if !is_possible {
            let hint = if has_port {
                "it has no Unix socket; give an address"
            } else {
                "it has no port; ask with --source unix"
            };
            return Err(Unexplained::Impossible { listener: listener.to_owned(), hint });
        }
        let mut explanation = Explanation { steps: Vec::new(), refused: None, rule: None };
        explanation.balancer(terms, client);
        explanation.source(terms, client, now);
        if explanation.refused.is_none() {
            explanation.identity(terms, chain, now);
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
    fn balancer(&mut self, terms: &Terms, client: ClientAddr) {
        let Some(network) = client.ip().and_then(|ip| terms.balancers.around(ip)) else { return };
        let ip = client.source();
        self.say("balancer", format_args!("{ip} is a load balancer of proxy_protocol.trusted ({network})"));
        self.say(
            "balancer",
            format_args!("it has to send a PROXY header first, and the client announced there is judged"),
        );
        self.say("balancer", format_args!("a connection of its own (LOCAL, UNKNOWN) is judged as follows"));
    }

    fn source(&mut self, terms: &Terms, client: ClientAddr, now: OffsetDateTime) {
        let ip = client.source();
        match terms.sources.admit(client, now) {
            Ok(admitted) => match admitted.standing() {
                Standing::Rule(rule) => {
                    self.rule = Some(rule.to_string());
                    self.say("source", format_args!("{ip} is trusted by {}", in_words(terms, rule)));
                }
                Standing::Observed => {
                    self.say("source", format_args!("{ip} is not trusted, but enforcement = \"observe\" lets it in"));
                }
                Standing::SocketFile => {
                    for (path, Access { mode, .. }) in terms.socket_files() {
                        let path = path.display();
                        self.say(
                            "source",
                            format_args!("whoever may write to the file {path} (mode {mode:04o}) is let in"),
                        );
                    }
                }
            },
            Err(stranger) => {
                self.say("source", format_args!("{ip} is not trusted: {stranger}; it is closed before a byte is read"));
                if terms.shield != Shield::Off {
                    self.say(
                        "shield",
                        format_args!(
                            "while it is up (portcullis status) the kernel answers nothing, and the audit has no line"
                        ),
                    );
                }
                self.refused = Some(Reason::UntrustedSource);
                let hosts = terms.sources.trusted.rules().iter().filter(|rule| rule.source.host().is_some());
                for rule in hosts.take(MAX_HOSTS) {
                    self.say("source", format_args!("it is none of {}", in_words(terms, rule)));
                }
            }
        }
    }

    fn identity(&mut self, terms: &Terms, chain: &[CertificateDer<'_>], now: OffsetDateTime) {
        if terms.tls.is_none() {
            self.say("tls", format_args!("is off, so nobody is asked for a certificate"));
            return;
        }
        let certificates: Vec<_> = terms.server_certificates().iter().map(|leaf| leaf.subject.as_str()).collect();
        self.say("tls", format_args!("is required; the certificate is {}", certificates.join(" or ")));
        if terms.client_auth() == ClientAuth::None {
            self.say("identity", format_args!("no client certificate is asked for (client_auth = \"none\")"));
            return;
        }
        match terms.judge_identity(Evidence::Chain(chain), now) {
            Ok(Identity::Anonymous) => {
                self.say("identity", format_args!("no certificate, and none is needed (client_auth = \"optional\")"));
            }
            Ok(Identity::Certified(credential)) => {
                let facts = &credential.certificate;
                let (subject, end) = (&facts.subject, timestamp::seconds(facts.not_after));
                let voucher = voucher(terms, &credential.voucher);
                self.say("identity", format_args!("{subject} {voucher}, valid until {end}"));
                if let Some(lists) = revocation(terms, &credential.voucher, now) {
                    self.say("identity", format_args!("{lists}"));
                }
                if let Some(pattern) = terms.trusted_clients().and_then(|clients| clients.pattern_of(facts.names())) {
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
fn voucher(terms: &Terms, voucher: &Voucher) -> String {
    match voucher {
        Voucher::Pinned => "is one of client_certificates".to_owned(),
        Voucher::Anchor { sha256, .. } => {
            let anchor = terms.anchors.iter().find(|anchor| anchor.sha256 == **sha256);
            let name = anchor.map_or("an anchor", |anchor| &anchor.subject);
            format!("is vouched for by {name} of client_ca")
        }
    }
}

/// What the revocation lists say of a certificate that is good; nothing where there are none.
fn revocation(terms: &Terms, voucher: &Voucher, now: OffsetDateTime) -> Option<String> {
    let Voucher::Anchor { sha256, .. } = voucher else { return None };
    let (anchor, der) = terms.anchors.iter().zip(terms.anchor_ders()).find(|(anchor, _)| anchor.sha256 == **sha256)?;
    let lists = terms.revocation_lists();
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

fn in_words(terms: &Terms, rule: &Rule) -> String {
    let now = terms.addresses_in_words(rule);
    match &rule.description {
        Some(description) => format!("{rule} ({}){now}", printable::field(description)),
        None => format!("{rule}{now}"),
    }
}

impl Terms {
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
