//! Evaluates the policy for a hypothetical connection: `portcullis explain` and `/v1/explain`.

use std::fmt;
use std::net::IpAddr;

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
use crate::resolution::cache::ResolutionCache;
use crate::resolution::status::ResolutionState;
use crate::source::group::GroupName;
use crate::source::rule::Rule;
use crate::source::trusted::SourceMatch;
use crate::timestamp;
use crate::transport::unix_socket::Access;
use crate::x509::crl::Crl;

/// The decision about a connection, step by step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    steps: Vec<(&'static str, String)>,
    refused: Option<Reason>,
    /// The rule that trusts the source, as `type:value`.
    rule: Option<String>,
    /// The group of the rule.
    group: Option<String>,
}

/// A connection that may come.
#[derive(Clone, Copy, Debug)]
pub struct Hypothetical<'a> {
    pub client: ClientAddr,
    /// The certificates that the client presents; empty for none.
    pub chain: &'a [CertificateDer<'a>],
}

/// Why a connection cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    #[error("unknown listener {asked:?}; expected {known}")]
    UnknownListener {
        asked: String,
        /// The names of all listeners.
        known: String,
    },
    /// The listener has no address of this kind.
    #[error("listener {listener:?} {hint}")]
    Impossible {
        listener: String,
        /// What is missing, and which argument to pass instead.
        hint: &'static str,
    },
}

impl Snapshot {
    /// Explains the decision about a connection. `resolutions` has the states of the sources that are resolved.
    ///
    /// # Errors
    /// When the listener is unknown or has no address that `client` could connect to.
    pub fn explain(
        &self,
        listener: &str,
        connection: Hypothetical<'_>,
        resolutions: &ResolutionCache,
        now: OffsetDateTime,
    ) -> Result<Explanation, ExplainError> {
        let Hypothetical { client, chain } = connection;
        let policy = self.named(listener).ok_or_else(|| {
            let known: Vec<_> = self.listeners().iter().map(|policy| &*policy.name).collect();
            ExplainError::UnknownListener { asked: listener.to_owned(), known: known.join(", ") }
        })?;
        let has_port = policy.bind_addrs.iter().any(|bind_addr| matches!(bind_addr.address, ListenAddr::Tcp(_)));
        let is_possible = if client.ip().is_some() { has_port } else { policy.socket_files().next().is_some() };
        if !is_possible {
            let hint = if has_port {
                "has no Unix socket; pass an IP address to --source"
            } else {
                "has no TCP address; pass --source unix"
            };
            return Err(ExplainError::Impossible { listener: listener.to_owned(), hint });
        }
        let mut explanation = Explanation { steps: Vec::new(), refused: None, rule: None, group: None };
        explanation.proxy(policy, client);
        explanation.source(policy, client, resolutions, now);
        if explanation.refused.is_none() {
            explanation.identity(policy, chain, now);
        }
        Ok(explanation)
    }
}

impl Explanation {
    /// The body of `GET /v1/explain`.
    pub fn in_json(&self) -> Value {
        let steps: Vec<_> = self.steps.iter().map(|(step, text)| json!({ "step": step, "text": text })).collect();
        let mut answer = json!({
            "steps": steps,
            "verdict": if self.refused.is_none() { "admitted" } else { "refused" },
        });
        if let Some(fields) = answer.as_object_mut() {
            fields.extend(self.refused.map(|reason| ("reason".to_owned(), reason.code().into())));
            fields.extend(self.rule.as_ref().map(|rule| ("rule".to_owned(), rule.as_str().into())));
            fields.extend(self.group.as_ref().map(|group| ("group".to_owned(), group.as_str().into())));
        }
        answer
    }

    /// For the address of a load balancer, the announced client is decisive.
    fn proxy(&mut self, policy: &ListenerPolicy, client: ClientAddr) {
        let Some(network) = client.ip().and_then(|ip| policy.proxies.covering(ip)) else { return };
        let ip = client.source();
        self.add("balancer", format_args!("{ip} is a load balancer listed in proxy_protocol.trusted ({network})"));
        self.add(
            "balancer",
            format_args!("it must send a PROXY header first; the announced client address is then checked"),
        );
        self.add(
            "balancer",
            format_args!("a connection without an announced client (LOCAL, UNKNOWN) is checked as follows"),
        );
    }

    fn source(
        &mut self,
        policy: &ListenerPolicy,
        client: ClientAddr,
        resolutions: &ResolutionCache,
        now: OffsetDateTime,
    ) {
        let ip = client.source();
        match policy.sources.admit(client, now) {
            Ok(admitted) => match admitted.source_match() {
                SourceMatch::Rule(matching) => {
                    let rule = &matching.rule;
                    self.rule = Some(rule.to_string());
                    self.group = matching.group().map(ToString::to_string);
                    self.add("source", format_args!("{ip} is trusted by {}", describe(policy, rule, matching.group())));
                    let known = rule.source.resolvable().and_then(|source| policy.sources.trusted.known(&source));
                    if let Some(object) = client.ip().and_then(|ip| known?.object_of(ip)) {
                        self.add("source", format_args!("{ip} is {} by {rule}", printable::quoted(object)));
                    }
                    self.add_state(rule, resolutions);
                }
                SourceMatch::Observed => {
                    self.add("source", format_args!("{ip} is not trusted, but enforcement = \"observe\" admits it"));
                }
                SourceMatch::SocketFile => {
                    for (path, Access { mode, .. }) in policy.socket_files() {
                        let path = path.display();
                        self.add(
                            "source",
                            format_args!(
                                "every client that may write to the socket {path} (mode {mode:04o}) is admitted"
                            ),
                        );
                    }
                }
            },
            Err(untrusted) => {
                self.add(
                    "source",
                    format_args!("{ip} is not trusted: {untrusted}; the connection is closed before a byte is read"),
                );
                if policy.shield != Shield::Off {
                    self.add(
                        "shield",
                        format_args!(
                            "while the shield is active (see portcullis status), the kernel drops the packets, and there is no audit event"
                        ),
                    );
                }
                self.refused = Some(Reason::UntrustedSource);
                let trusted = &policy.sources.trusted;
                let of_listener = trusted.rules().iter().map(|rule| (rule, None));
                let groups = trusted.groups();
                let of_groups =
                    groups.flat_map(|group| group.sources.rules().iter().map(|rule| (rule, Some(&group.name))));
                let rules = of_listener.chain(of_groups);
                let resolved = rules.filter(|(rule, _)| rule.source.resolvable().is_some());
                for (rule, group) in resolved.take(MAX_RESOLVED) {
                    self.add("source", format_args!("{ip} is not an address of {}", describe(policy, rule, group)));
                    self.add_state(rule, resolutions);
                }
            }
        }
    }

    fn identity(&mut self, policy: &ListenerPolicy, chain: &[CertificateDer<'_>], now: OffsetDateTime) {
        if policy.tls.is_none() {
            self.add("tls", format_args!("off; no client certificate is requested"));
            return;
        }
        let certificates: Vec<_> = policy.server_certificates().iter().map(|leaf| leaf.subject.as_str()).collect();
        self.add("tls", format_args!("required; the server certificate is {}", certificates.join(" or ")));
        if policy.client_auth() == ClientAuth::None {
            self.add("identity", format_args!("no client certificate is requested (client_auth = \"none\")"));
            return;
        }
        match policy.authorize_identity(PresentedIdentity::Chain(chain), now) {
            Ok(ClientIdentity::Anonymous) => {
                self.add(
                    "identity",
                    format_args!("no client certificate, and none is required (client_auth = \"optional\")"),
                );
            }
            Ok(ClientIdentity::Certified(identity)) => {
                let certificate = &identity.certificate;
                let (subject, end) = (&certificate.subject, timestamp::seconds(certificate.not_after));
                let trusted_by = trusted_by(policy, &identity.trusted_by);
                self.add("identity", format_args!("{subject} {trusted_by}, valid until {end}"));
                if let Some(lists) = revocation(policy, &identity.trusted_by, now) {
                    self.add("identity", format_args!("{lists}"));
                }
                if let Some(pattern) =
                    policy.trusted_clients().and_then(|clients| clients.pattern_of(certificate.names()))
                {
                    self.add("identity", format_args!("it matches \"{pattern}\" in trusted_clients"));
                }
            }
            Err(Outcome { reason, detail }) => {
                let missing = "client_auth = \"required\", and no client certificate was given; pass --client-cert";
                let detail = if detail.is_empty() { missing } else { &detail };
                self.add("identity", format_args!("refused: {detail}"));
                self.refused = Some(reason);
            }
        }
    }

    /// Adds why the addresses of a rule are not current.
    fn add_state(&mut self, rule: &Rule, resolutions: &ResolutionCache) {
        let Some(source) = rule.source.resolvable() else { return };
        let status = resolutions.status(&source);
        if status.state != ResolutionState::Resolved {
            let detail = status.detail.map(|detail| format!(": {}", printable::field(detail))).unwrap_or_default();
            self.add("source", format_args!("{rule} is {}{detail}", status.state.code()));
        }
    }

    fn add(&mut self, step: &'static str, text: fmt::Arguments<'_>) {
        self.steps.push((step, text.to_string()));
    }
}

/// Describes why the certificate is trusted.
fn trusted_by(policy: &ListenerPolicy, trusted_by: &TrustedBy) -> String {
    match trusted_by {
        TrustedBy::Pinned => "is listed in client_certificates".to_owned(),
        TrustedBy::Anchor { sha256, .. } => {
            let anchor = policy.anchors.iter().find(|anchor| anchor.sha256.as_str() == &**sha256);
            let name = anchor.map_or("an anchor", |anchor| &anchor.subject);
            format!("chains to {name} in client_ca")
        }
    }
}

/// Describes the CRL check of a valid certificate; `None` if there is no CRL.
fn revocation(policy: &ListenerPolicy, trusted_by: &TrustedBy, now: OffsetDateTime) -> Option<String> {
    let TrustedBy::Anchor { sha256, .. } = trusted_by else { return None };
    let (anchor, der) =
        policy.anchors.iter().zip(policy.anchor_ders()).find(|(anchor, _)| anchor.sha256.as_str() == &**sha256)?;
    let lists = policy.revocation_lists();
    if lists.is_empty() {
        return None;
    }
    let newest = lists.iter().filter(|list| list.is_signed_by(der)).max_by_key(|list| list.this_update);
    Some(match newest {
        Some(Crl { issuer, next_update, .. }) => {
            let end = timestamp::seconds(*next_update);
            let until = if now < *next_update { "valid until" } else { "expired at" };
            format!("it is not revoked by the CRL of {issuer}, {until} {end}")
        }
        None => format!("its revocation is not checked: client_crl contains no CRL of {}", anchor.subject),
    })
}

/// `ip_addr:10.0.0.0/8 of group web (office)`, with the addresses of a host or a cloud source.
fn describe(policy: &ListenerPolicy, rule: &Rule, group: Option<&GroupName>) -> String {
    let of_group = group.map(|group| format!(" of group {group}")).unwrap_or_default();
    let description = rule.description.as_ref().map(|text| format!(" ({})", printable::field(text)));
    let addresses =
        rule.source.resolvable().map(|source| describe_addresses(policy.sources.trusted.addresses_of(&source)));
    format!("{rule}{of_group}{}{}", description.unwrap_or_default(), addresses.unwrap_or_default())
}

/// Describes the addresses of a host or a cloud source, to be appended to the rule.
pub(crate) fn describe_addresses(all: &[IpAddr]) -> String {
    let shown: Vec<_> = all.iter().take(MAX_ADDRESSES).map(ToString::to_string).collect();
    match all.len().saturating_sub(shown.len()) {
        _ if shown.is_empty() => ", NO ADDRESS".to_owned(),
        0 => format!(", now {}", shown.join(" ")),
        more => format!(", now {} and {more} more", shown.join(" ")),
    }
}

/// Maximum number of addresses of a source that are listed.
const MAX_ADDRESSES: usize = 8;

/// Maximum number of rules with changing addresses that are listed for an untrusted source.
const MAX_RESOLVED: usize = 50;
