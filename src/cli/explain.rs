//! `portcullis explain`: the questions a connection is asked, put to one that does not exist.

use std::fmt::Write as _;
use std::path::Path;

use time::OffsetDateTime;

use super::check::is_now;
use super::inspect::read_certificates;
use super::{Failure, load, print};
use crate::addr::{ClientAddr, ListenAddr};
use crate::config::Shield;
use crate::names::Names;
use crate::policy::{ClientAuth, Rule, Standing};
use crate::printable;
use crate::snapshot::Terms;
use crate::socket_file::Access;
use crate::timestamp;
use crate::tls::{Crl, Evidence, Identity, Voucher};

pub(super) fn explain(
    file: &Path,
    listener: &str,
    source: ClientAddr,
    client_cert: Option<&Path>,
) -> Result<(), Failure> {
    let (built, _) = load(file, &Names::default())?;
    let snapshot = built.snapshot;
    let Some(terms) = snapshot.named(listener) else {
        let names: Vec<_> = snapshot.listeners().iter().map(|terms| &*terms.name).collect();
        return Err(Failure::Usage(format!("there is no listener \"{listener}\"; there is {}", names.join(", "))));
    };
    let has_port = terms.doors.iter().any(|door| matches!(door.address, ListenAddr::Tcp(_)));
    let possible = if source.ip().is_some() { has_port } else { terms.socket_files().next().is_some() };
    if !possible {
        let hint =
            if has_port { "it has no Unix socket; give an address" } else { "it has no port; ask with --source unix" };
        return Err(Failure::Usage(format!("nobody comes to listener \"{listener}\" that way: {hint}")));
    }
    let mut steps = Steps { out: String::new(), refused: None };
    steps.balancer(terms, source);
    steps.source(terms, source);
    if steps.refused.is_none() {
        steps.identity(terms, client_cert)?;
    }
    steps.verdict()
}

/// The steps so far.
struct Steps {
    out: String,
    refused: Option<String>,
}

impl Steps {
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

    fn source(&mut self, terms: &Terms, client: ClientAddr) {
        let ip = client.source();
        match terms.sources.admit(client, OffsetDateTime::now_utc()) {
            Ok(admitted) => match admitted.standing() {
                Standing::Rule(rule) => {
                    self.say("source", format_args!("{ip} is trusted by {}", in_words(terms, rule)))
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
                self.refused = Some("untrusted_source".to_owned());
                for rule in terms.sources.trusted.rules().iter().filter(|rule| rule.source.host().is_some()) {
                    self.say("source", format_args!("it is none of {}", in_words(terms, rule)));
                }
            }
        }
    }

    fn identity(&mut self, terms: &Terms, client_cert: Option<&Path>) -> Result<(), Failure> {
        if terms.tls.is_none() {
            self.say("tls", format_args!("is off, so nobody is asked for a certificate"));
            return Ok(());
        }
        let certificates: Vec<_> = terms.server_certificates().iter().map(|leaf| leaf.subject.as_str()).collect();
        self.say("tls", format_args!("is required; the certificate is {}", certificates.join(" or ")));
        if terms.client_auth() == ClientAuth::None {
            self.say("identity", format_args!("no client certificate is asked for (client_auth = \"none\")"));
            return Ok(());
        }
        let chain = client_cert.map(read_certificates).transpose()?.unwrap_or_default();
        match terms.judge_identity(Evidence::Chain(&chain), OffsetDateTime::now_utc()) {
            Ok(Identity::Anonymous) => {
                self.say("identity", format_args!("no certificate, and none is needed (client_auth = \"optional\")"));
            }
            Ok(Identity::Certified(credential)) => {
                let facts = &credential.certificate;
                let (subject, end) = (&facts.subject, timestamp::seconds(facts.not_after));
                let voucher = voucher(terms, &credential.voucher);
                self.say("identity", format_args!("{subject} {voucher}, valid until {end}"));
                if let Some(lists) = revocation(terms, &credential.voucher) {
                    self.say("identity", format_args!("{lists}"));
                }
                if let Some(pattern) = terms.trusted_clients().and_then(|clients| clients.pattern_of(facts.names())) {
                    self.say("identity", format_args!("trusted_clients lists it as \"{pattern}\""));
                }
            }
            Err(ending) => {
                let none = "client_auth = \"required\", and no certificate was given (--client-cert)";
                let detail = if ending.detail.is_empty() { none } else { &ending.detail };
                self.say("identity", format_args!("refused: {detail}"));
                self.refused = Some(ending.reason.code().to_owned());
            }
        }
        Ok(())
    }

    fn verdict(mut self) -> Result<(), Failure> {
        match self.refused.take() {
            None => {
                self.say("verdict", format_args!("let in"));
                print(&self.out)
            }
            Some(reason) => {
                self.say("verdict", format_args!("refused ({reason})"));
                print(&self.out)?;
                Err(Failure::Refused)
            }
        }
    }

    fn say(&mut self, step: &str, words: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.out, "{step:<9} {words}");
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
fn revocation(terms: &Terms, voucher: &Voucher) -> Option<String> {
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
            let until = if OffsetDateTime::now_utc() < *next_update { "good until" } else { "which ran out at" };
            format!("it is not revoked by the list of {issuer}, {until} {end}")
        }
        None => format!("it is in no revocation list, for client_crl has none of {}", anchor.subject),
    })
}

fn in_words(terms: &Terms, rule: &Rule) -> String {
    let now = is_now(terms, rule);
    match &rule.description {
        Some(description) => format!("{rule} ({}){now}", printable::field(description)),
        None => format!("{rule}{now}"),
    }
}
