//! `[[listener]]` and the tables inside it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::document::{Node, Section};
use super::files::Files;
use super::problem::Problem;
use super::{CertificateFiles, Limits, Listener, NamedFile, NamedPem, Revoke, Tls, Upstream, process, sources};
use crate::addr::ListenAddr;
use crate::policy::{ClientAuth, ClientPattern, CrlExpired, Enforcement, SourcePolicy, TrustedClients, TrustedSources};
use crate::protocol::{MinTlsVersion, Protocol};

/// Reads listeners, one after the other, and remembers what is given away already.
#[derive(Debug)]
pub(super) struct Listeners<'a> {
    directory: &'a Path,
    files: &'a mut Files,
    /// What is wrong in other files than the configuration itself.
    elsewhere: Vec<Problem>,
    /// What `[reload]` says of sessions that are no longer let in.
    revoke: Revoke,
    /// Names, and addresses with the listener that has them.
    names: Vec<String>,
    addresses: BTreeMap<ListenAddr, String>,
}

impl<'a> Listeners<'a> {
    pub(super) fn new(directory: &'a Path, files: &'a mut Files, revoke: Revoke) -> Self {
        Self { directory, files, elsewhere: Vec::new(), revoke, names: Vec::new(), addresses: BTreeMap::new() }
    }

    /// Every listener that could be read whole, and the problems of the other files they name.
    pub(super) fn read(mut self, root: &Section<'_>) -> (Vec<Listener>, Vec<Problem>) {
        let nodes = root.require("listener", "at least one [[listener]]");
        let nodes = nodes.and_then(|node| {
            let nodes = node.list("a list of tables: write [[listener]], in double brackets")?;
            if nodes.is_empty() {
                node.expected("at least one [[listener]]");
            }
            Some(nodes)
        });
        let listeners = nodes.unwrap_or_default().iter().filter_map(|node| self.listener(node)).collect();
        (listeners, self.elsewhere)
    }

    fn listener(&mut self, node: &Node<'_>) -> Option<Listener> {
        let section = node.section("a [[listener]] table")?;
        let name = section.require("name", NAME).and_then(|node| self.name(&node));
        let protocol =
            section.require("protocol", "\"redis\", \"postgres\" or \"tcp\"").and_then(|node| node.choice(&PROTOCOLS));
        let ipv6_only = section.get("ipv6_only").and_then(|node| node.boolean()).unwrap_or(false);
        let listen = section
            .require("listen", "an address such as \"0.0.0.0:6380\", or a list of them")
            .and_then(|node| self.listen(&node, ipv6_only, name.as_deref()));
        let sources = self.sources(&section);
        let tls = section
            .require("tls", "tls.certificates = [{ cert = \"…\", key = \"…\" }]")
            .and_then(|node| self.tls(&node));
        let upstream =
            section.require("upstream", "\"host:port\" or \"unix:/path\"").and_then(|node| self.upstream(&node));
        let limits = limits(section.section("limits"));
        let plaintext_cancel = plaintext_cancel(&section, protocol);
        let revoke = section.get("revoke").and_then(|node| process::revoke(&node));
        section.not_yet(&["proxy_protocol"]);
        section.finish();
        Some(Listener {
            name: name?,
            protocol: protocol?,
            listen: listen?,
            sources,
            tls: tls?,
            upstream: upstream?,
            limits,
            revoke: revoke.unwrap_or(self.revoke),
            plaintext_cancel,
        })
    }

    fn name(&mut self, node: &Node<'_>) -> Option<String> {
        let name = node.text(NAME)?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !(1..=63).contains(&name.len()) || !name.bytes().all(plain) {
            node.expected(NAME);
            return None;
        }
        if self.names.iter().any(|taken| taken == name) {
            node.problem(format_args!("found {}, which another listener is called already", node.found()));
            return None;
        }
        self.names.push(name.to_owned());
        Some(name.to_owned())
    }

    fn listen(&mut self, node: &Node<'_>, ipv6_only: bool, name: Option<&str>) -> Option<Vec<ListenAddr>> {
        let nodes = node.one_or_list();
        if nodes.is_empty() {
            node.expected("at least one address");
        }
        let mut listen = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let Some(socket) = node.socket_address() else { continue };
            let address = ListenAddr { socket, ipv6_only };
            let taken = self.addresses.iter().find(|(other, _)| address.overlaps(other));
            if let Some((other, owner)) = taken {
                node.problem(format_args!("found {}, but listener \"{owner}\" has {other} already", node.found()));
                continue;
            }
            self.addresses.insert(address, name.unwrap_or("?").to_owned());
            listen.push(address);
        }
        Some(listen).filter(|listen| listen.len() == nodes.len() && !listen.is_empty())
    }

    fn sources(&mut self, section: &Section<'_>) -> SourcePolicy {
        let enforcement = section.get("enforcement").and_then(|node| node.choice(&ENFORCEMENTS));
        let mut rules = section.get("trusted_sources").map(|node| sources::configured(&node)).unwrap_or_default();
        if let Some(node) = section.get("sources_file")
            && let Some(path) = node.path(self.directory)
        {
            match sources::from_file(&path, self.files) {
                Ok(more) => rules.extend(more),
                Err(problems) => {
                    for problem in problems {
                        match problem.place.position {
                            Some(_) => self.elsewhere.push(problem),
                            None => node.problem(format_args!("{} {}", path.display(), problem.message)),
                        }
                    }
                }
            }
        }
        let enforcement = enforcement.unwrap_or(Enforcement::Enforce);
        SourcePolicy { trusted: Arc::new(TrustedSources::new(rules)), enforcement }
    }

    fn tls(&self, node: &Node<'_>) -> Option<Tls> {
        let section = node.section("a table with certificates = [{ cert = \"…\", key = \"…\" }]")?;
        let certificates = section
            .require("certificates", "[{ cert = \"server.crt\", key = \"server.key\" }]")
            .and_then(|node| self.certificates(&node));
        let min_version = section.get("min_version").and_then(|node| node.choice(&MIN_VERSIONS));
        let auth_node = section.get("client_auth");
        let client_auth = match &auth_node {
            Some(node) => node.choice(&CLIENT_AUTHS),
            None => Some(ClientAuth::None),
        };
        let [client_ca, client_crl, client_certificates] =
            ["client_ca", "client_crl", "client_certificates"].map(|key| section.get(key));
        let crl_expired = section.get("crl_expired").and_then(|node| node.choice(&CRL_EXPIRED));
        let trusted_clients = section.get("trusted_clients");
        match (client_auth, &auth_node) {
            (Some(ClientAuth::None), _) => {
                let names_some = trusted_clients.as_ref().filter(|node| !node.one_or_list().is_empty());
                let files = [&client_ca, &client_crl, &client_certificates].map(Option::as_ref);
                for node in files.into_iter().chain([names_some]).flatten() {
                    node.problem(NOBODY_ASKED);
                }
            }
            (Some(ClientAuth::Optional | ClientAuth::Required), Some(node))
                if client_ca.is_none() && client_certificates.is_none() =>
            {
                node.problem(
                    "needs client_ca, a file with the certificates that issue the clients', \
                     or client_certificates, files with the clients' own",
                );
            }
            _ => {}
        }
        if let (Some(node), None) = (&client_crl, &client_ca)
            && client_auth != Some(ClientAuth::None)
        {
            node.problem("is set, but without client_ca there is no CA whose certificates it could revoke; set client_ca, or take it out");
        }
        let ticket_keys = section.get("ticket_keys").and_then(|node| self.file(&node));
        section.finish();
        // All of them, before anything is given up, so that all that is wrong is told.
        let files = |node: Option<Node<'_>>| node.map(|node| self.file_list(&node)).unwrap_or_default();
        let [client_ca, client_crl, client_certificates] = [client_ca, client_crl, client_certificates].map(files);
        let trusted_clients = trusted_clients.map(|node| patterns(&node)).unwrap_or_default();
        Some(Tls {
            certificates: certificates?,
            min_version: min_version.unwrap_or(MinTlsVersion::Tls12),
            client_auth: client_auth?,
            client_ca,
            client_crl,
            crl_expired: crl_expired.unwrap_or_default(),
            client_certificates,
            trusted_clients,
            ticket_keys,
        })
    }

    fn certificates(&self, node: &Node<'_>) -> Option<Vec<CertificateFiles>> {
        let nodes = node.list("a list of { cert = \"…\", key = \"…\" }")?;
        if nodes.is_empty() {
            node.expected("at least one { cert = \"…\", key = \"…\" }");
        }
        let pairs: Vec<_> = nodes.iter().map(|node| self.certificate(node)).collect();
        let pairs: Option<Vec<_>> = pairs.into_iter().collect();
        pairs.filter(|pairs| !pairs.is_empty())
    }

    fn certificate(&self, node: &Node<'_>) -> Option<CertificateFiles> {
        let section = node.section("{ cert = \"…\", key = \"…\" }")?;
        let cert = section.require("cert", "the file of the certificate chain").and_then(|node| self.pem(&node));
        let key = section.require("key", "the file of its private key").and_then(|node| self.pem(&node));
        let key_passphrase_file = match section.get("key_passphrase_file") {
            Some(node) => self.file(&node).map(Some),
            None => Some(None),
        };
        section.finish();
        Some(CertificateFiles { cert: cert?, key: key?, key_passphrase_file: key_passphrase_file? })
    }

    fn pem(&self, node: &Node<'_>) -> Option<NamedPem> {
        let location = node.location(self.directory)?;
        Some(NamedPem { location, place: node.place(), key: node.key().to_owned() })
    }

    fn file_list(&self, node: &Node<'_>) -> Vec<NamedFile> {
        let nodes = node.one_or_list();
        if nodes.is_empty() {
            node.expected("at least one file");
        }
        nodes.iter().filter_map(|node| self.file(node)).collect()
    }

    fn file(&self, node: &Node<'_>) -> Option<NamedFile> {
        Some(NamedFile { path: node.path(self.directory)?, place: node.place(), key: node.key().to_owned() })
    }

    fn upstream(&self, node: &Node<'_>) -> Option<Upstream> {
        let default = Duration::from_secs(5);
        if !node.is_table() {
            let address = node.upstream_address(self.directory)?;
            return Some(Upstream { address, connect_timeout: default });
        }
        let section = node.section("a table")?;
        let address =
            section.require("address", "\"host:port\" or \"unix:/path\"").and_then(|node| self.only_address(&node));
        let connect_timeout = section.get("connect_timeout").and_then(|node| node.positive_duration());
        section.not_yet_but("tls", "disable");
        section.not_yet_but("proxy_protocol", "off");
        section.not_yet(&["ca", "cert", "key", "server_name"]);
        section.finish();
        Some(Upstream { address: address?, connect_timeout: connect_timeout.unwrap_or(default) })
    }

    fn only_address(&self, node: &Node<'_>) -> Option<crate::addr::UpstreamAddr> {
        match node.one_or_list().as_slice() {
            [only] => only.upstream_address(self.directory),
            [] => {
                node.expected("an address");
                None
            }
            [_, _, ..] => {
                node.problem(format_args!("a list of several addresses {}", super::document::NOT_YET));
                None
            }
        }
    }
}

/// The patterns of `trusted_clients`.
fn patterns(node: &Node<'_>) -> TrustedClients {
    let nodes = node.one_or_list();
    let pattern = |node: &Node<'_>| -> Option<ClientPattern> {
        let text = node.text("a name such as \"cn:app\"")?;
        text.parse().map_err(|error| node.expected(error)).ok()
    };
    nodes.iter().filter_map(pattern).collect()
}

fn limits(section: Option<Section<'_>>) -> Limits {
    let mut limits = Limits {
        handshake_timeout: Duration::from_secs(10),
        idle_timeout: None,
        half_close_timeout: Duration::from_secs(300),
    };
    let Some(section) = section else { return limits };
    if let Some(timeout) = section.get("handshake_timeout").and_then(|node| node.positive_duration()) {
        limits.handshake_timeout = timeout;
    }
    if let Some(timeout) = section.get("idle_timeout").and_then(|node| node.duration_or_never()) {
        limits.idle_timeout = timeout;
    }
    if let Some(timeout) = section.get("half_close_timeout").and_then(|node| node.positive_duration()) {
        limits.half_close_timeout = timeout;
    }
    section.not_yet(&["max_connections", "max_connections_per_source", "connection_rate_per_source"]);
    section.finish();
    limits
}

fn plaintext_cancel(section: &Section<'_>, protocol: Option<Protocol>) -> bool {
    let Some(node) = section.get("postgres") else { return true };
    if protocol.is_some_and(|protocol| protocol != Protocol::Postgres) {
        node.problem("is set, but the listener's protocol is not \"postgres\"; take it out");
        return true;
    }
    let Some(section) = node.section("a table") else { return true };
    let allowed = section.get("plaintext_cancel").and_then(|node| node.boolean());
    section.finish();
    allowed.unwrap_or(true)
}

const NAME: &str = "a name of 1 to 63 lower-case letters, digits and hyphens, such as \"cache\"";

const PROTOCOLS: [(&str, Protocol); 3] =
    [("redis", Protocol::Redis), ("postgres", Protocol::Postgres), ("tcp", Protocol::Tcp)];

const ENFORCEMENTS: [(&str, Enforcement); 2] = [("enforce", Enforcement::Enforce), ("observe", Enforcement::Observe)];

const MIN_VERSIONS: [(&str, MinTlsVersion); 2] = [("1.2", MinTlsVersion::Tls12), ("1.3", MinTlsVersion::Tls13)];

const NOBODY_ASKED: &str = "is set, but client_auth = \"none\" asks no client for a certificate; \
                            set client_auth to \"required\" or \"optional\", or take it out";

const CRL_EXPIRED: [(&str, CrlExpired); 2] = [("refuse", CrlExpired::Refuse), ("allow", CrlExpired::Allow)];

const CLIENT_AUTHS: [(&str, ClientAuth); 3] =
    [("none", ClientAuth::None), ("optional", ClientAuth::Optional), ("required", ClientAuth::Required)];
