//! `[[listener]]` and the tables inside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::addr::ListenAddr;
use crate::config::credentials::credentials;
use crate::config::document::{Node, Section};
use crate::config::fleet::Fleet;
use crate::config::limits::limits;
use crate::config::listen::{Listen, listen};
use crate::config::problem::Problem;
use crate::config::rule_reader::{ReadRules, RuleReader};
use crate::config::sources::GroupScope;
use crate::config::upstream::upstream;
use crate::config::{FleetRules, Listener, Revoke, SharedTicketKeys, Shield, SourcedPath, Tls, process, sources, tls};
use crate::protocol::Protocol;
use crate::source::group::GroupName;
use crate::source::proxies::TrustedProxies;
use crate::source::rule::{Network, NetworkError};
use crate::source::trusted::{Enforcement, SourcePolicy, TrustedSources};

/// Reads the listeners and detects names and addresses that are used twice.
#[derive(Debug)]
pub(crate) struct Listeners<'a> {
    directory: &'a Path,
    reader: RuleReader<'a>,
    /// The groups that rules may name.
    groups: Vec<GroupName>,
    /// The addresses of `[admin]`.
    admin: Vec<ListenAddr>,
    /// The default of each listener's `revoke`.
    revoke: Revoke,
    /// `[fleet]`: whether it is written, and the section if it is valid.
    fleet: (bool, Option<&'a Fleet>),
    names: Vec<String>,
    /// Each address with the name of its listener.
    addresses: BTreeMap<ListenAddr, String>,
    /// The position of each address in the configuration.
    positions: BTreeMap<String, SourcedPath>,
}

impl<'a> Listeners<'a> {
    pub(crate) fn new(reader: RuleReader<'a>, groups: Vec<GroupName>, admin: Vec<ListenAddr>, revoke: Revoke) -> Self {
        let (names, addresses, positions) = Default::default();
        let fleet = (false, None);
        Self { directory: reader.directory, reader, groups, admin, revoke, fleet, names, addresses, positions }
    }

    /// Lets listeners use the store of a fleet.
    pub(crate) fn with_fleet(self, root: &Section<'_>, fleet: Option<&'a Fleet>) -> Self {
        Self { fleet: (root.get("fleet").is_some(), fleet), ..self }
    }

    /// Returns every valid listener, and the problems of the `sources_file` files.
    /// Adds the position of each address to `positions`.
    pub(crate) fn read(
        mut self,
        root: &Section<'_>,
        positions: &mut BTreeMap<String, SourcedPath>,
    ) -> (Vec<Listener>, Vec<Problem>) {
        let nodes = root.require("listener", "at least one [[listener]]");
        let nodes = nodes.and_then(|node| {
            let nodes = node.list("a list of tables: write [[listener]], in double brackets")?;
            if nodes.is_empty() {
                node.expected("at least one [[listener]]");
            }
            Some(nodes)
        });
        let listeners = nodes.unwrap_or_default().iter().filter_map(|node| self.listener(node)).collect();
        positions.append(&mut self.positions);
        (listeners, self.reader.into_problems())
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
        let FurtherRules { sources, file: sources_file, fleet: fleet_rules } =
            self.sources(&section, name.as_deref().unwrap_or_default());
        let ca_bundle = section.get("ca_bundle").map(|node| node.named_file(self.directory));
        let tls_node = section.require("tls", TLS_MISSING);
        let tls = tls_node.as_ref().and_then(|node| self.tls(node));
        if let (Some(node), Some(tls)) = (&tls_node, &tls) {
            self.check_ticket_keys(node, tls.as_ref());
        }
        if let (Some(node), Some(tls), Some(listen)) = (&tls_node, &tls, &listen) {
            check_exposure(node, tls.is_some(), listen);
        }
        let upstream = section
            .require("upstream", "\"host:port\" or \"unix:/path\"")
            .and_then(|node| upstream(&node, protocol, self.directory));
        let credentials = credentials(&section, protocol, self.directory);
        let limits = limits(section.section("limits"));
        let proxies = proxies(&section);
        let shield = section.get("shield").and_then(|node| node.choice(&SHIELDS));
        let plaintext_cancel = plaintext_cancel(&section, protocol);
        let revoke = section.get("revoke").and_then(|node| process::revoke(&node));
        section.add_misplaced_keys("write it in [listener.tls]", &OF_TLS);
        section.add_misplaced_keys("write it in [listener.limits]", &OF_LIMITS);
        section.add_misplaced_keys("write it in [listener.upstream]", &OF_UPSTREAM);
        section.add_misplaced_keys("write it in [listener.credentials]", &OF_CREDENTIALS);
        section.finish();
        let listen = listen?;
        let access = |listen: &Listen| match (&listen.address, listen.access) {
            (ListenAddr::Unix(path), Some(access)) => Some((path.clone(), access)),
            _ => None,
        };
        Some(Listener {
            name: name?,
            protocol: protocol?,
            socket_files: listen.iter().filter_map(access).collect(),
            listen: listen.into_iter().map(|listen| listen.address).collect(),
            sources,
            sources_file,
            fleet_rules,
            ca_bundle: ca_bundle.map_or(Some(None), |file| file.map(Some))?,
            proxies,
            shield: shield.unwrap_or_default(),
            tls: tls?,
            upstream: upstream?,
            credentials: credentials?,
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
            node.problem(format_args!(
                "found {}, which is already the name of another listener; choose another name",
                node.found()
            ));
            return None;
        }
        self.names.push(name.to_owned());
        Some(name.to_owned())
    }

    fn listen(&mut self, node: &Node<'_>, ipv6_only: bool, name: Option<&str>) -> Option<Vec<Listen>> {
        let nodes = node.one_or_list();
        if nodes.is_empty() {
            node.expected("at least one address");
        }
        let mut all = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let Some(one) = listen(node, ipv6_only, self.directory) else { continue };
            let address = &one.address;
            let taken = self.addresses.iter().find(|(other, _)| address.overlaps(other));
            if let Some((other, owner)) = taken {
                node.problem(format_args!(
                    "found {}, but listener \"{owner}\" already uses {other}; use another address",
                    node.found()
                ));
                continue;
            }
            if self.admin.iter().any(|taken| address.overlaps(taken)) {
                node.problem(format_args!("found {}, but [admin] already uses it; use another address", node.found()));
                continue;
            }
            let position = SourcedPath { position: node.position(), key: node.key().to_owned() };
            self.positions.insert(address.to_string(), position);
            self.addresses.insert(address.clone(), name.unwrap_or("?").to_owned());
            all.push(one);
        }
        Some(all).filter(|all| all.len() == nodes.len() && !all.is_empty())
    }

    fn sources(&mut self, section: &Section<'_>, listener: &str) -> FurtherRules {
        let enforcement = section.get("enforcement").and_then(|node| node.choice(&ENFORCEMENTS));
        let stored = section.get("sources_store").and_then(|node| Some((self.stored_rules(&node, listener)?, node)));
        let fleet = stored.as_ref().map(|(copy, _)| FleetRules { copy: self.reader.digest_of(copy) });
        let ReadRules { rules, file, .. } =
            self.reader.read_with(section, listener, GroupScope::Named(&self.groups), stored);
        let enforcement = enforcement.unwrap_or(Enforcement::Enforce);
        let sources = SourcePolicy { trusted: Arc::new(TrustedSources::shared(rules)), enforcement };
        FurtherRules { sources, file, fleet }
    }

    /// The last good copy of rules in the store of the fleet.
    fn stored_rules(&self, node: &Node<'_>, listener: &str) -> Option<PathBuf> {
        node.choice(&[(tls::FLEET, ())])?;
        if !self.fleet.0 {
            node.problem(format_args!("is \"fleet\", but {NO_FLEET}"));
        }
        Some(self.fleet.1?.rules_file(listener))
    }

    /// Checks that the fleet can share ticket keys.
    fn check_ticket_keys(&self, node: &Node<'_>, tls: Option<&Tls>) {
        if tls.and_then(|tls| tls.ticket_keys.as_ref()) != Some(&SharedTicketKeys::Fleet) {
            return;
        }
        if !self.fleet.0 {
            node.problem(format_args!("has ticket_keys = \"fleet\", but {NO_FLEET}"));
        }
        if self.fleet.1.is_some_and(|fleet| fleet.key_file.is_none()) {
            node.problem(
                "has ticket_keys = \"fleet\", which needs [fleet] key_file; create it with \
                 (umask 077; openssl rand -base64 32 > fleet.key) and copy it to every member",
            );
        }
    }

    /// `Some(None)` if TLS is off.
    fn tls(&self, node: &Node<'_>) -> Option<Option<Tls>> {
        if node.is_table() {
            return tls::tls(node, self.directory).map(Some);
        }
        match node.text(TLS)? {
            "off" => Some(None),
            "disable" | "require" | "verify-ca" | "verify-full" => {
                node.expected(format_args!("{TLS}; for TLS to the upstream, set tls in [listener.upstream]"));
                None
            }
            _ => {
                node.expected(TLS);
                None
            }
        }
    }
}

/// The sources of a listener, and where its further rules are.
struct FurtherRules {
    sources: SourcePolicy,
    file: Option<PathBuf>,
    /// `Some` if they are in the store of the fleet, and `file` is the last good copy.
    fleet: Option<FleetRules>,
}

/// Rejects TLS on Unix sockets, and addresses without TLS that other machines can reach.
fn check_exposure(node: &Node<'_>, has_tls: bool, listen: &[Listen]) {
    for Listen { address, .. } in listen {
        match (has_tls, address) {
            (true, ListenAddr::Unix(_)) => node.problem(format_args!(
                "is on, but {address} is a Unix socket, where clients do not use TLS; move it to another listener with tls = \"off\""
            )),
            (false, _) if !address.is_local() => node.problem(format_args!(
                "is off, but other machines can reach {address}, and the traffic could be read and changed on the way; \
                 listen on 127.0.0.1, [::1] or a Unix socket, or set tls.certificates"
            )),
            _ => {}
        }
    }
}

/// `[listener.proxy_protocol]`
fn proxies(section: &Section<'_>) -> TrustedProxies {
    let section = section.get("proxy_protocol").and_then(|node| node.section(TRUSTED_PROXIES));
    let Some(section) = section else { return TrustedProxies::default() };
    // An empty list is allowed. It equals the default.
    let nodes = section.get("trusted").as_ref().map(Node::one_or_list).unwrap_or_default();
    let checks = section.get("health_checks");
    section.finish();
    let proxies: TrustedProxies = nodes.iter().filter_map(|node| network(node, "load balancer")).collect();
    let Some(checks) = checks else { return proxies };
    let checkers = if checks.is_boolean() {
        // `true` means from the load balancers.
        if checks.boolean() == Some(true) { proxies.networks().to_vec() } else { Vec::new() }
    } else {
        checks.one_or_list().iter().filter_map(|node| network(node, "health checker")).collect()
    };
    proxies.with_health_checkers(checkers)
}

fn network(node: &Node<'_>, peer: &str) -> Option<Network> {
    let parsed = node.text(sources::SOURCE)?.parse();
    let wrong = |error: NetworkError| {
        node.problem(format_args!("found {}, which is {error}; specify each {peer} by address", node.found()));
    };
    parsed.map_err(wrong).ok()
}

fn plaintext_cancel(section: &Section<'_>, protocol: Option<Protocol>) -> bool {
    let Some(node) = section.get("postgres") else { return true };
    if protocol.is_some_and(|protocol| protocol != Protocol::Postgres) {
        node.problem("is set, but the listener's protocol is not \"postgres\"; remove it");
        return true;
    }
    let Some(section) = node.section("a table") else { return true };
    let allowed = section.get("plaintext_cancel").and_then(|node| node.boolean());
    section.finish();
    allowed.unwrap_or(true)
}

const NO_FLEET: &str = "there is no [fleet]; add [fleet] with name and store";

/// Keys of the tables inside a listener whose names identify their table.
const OF_TLS: [&str; 7] =
    ["certificates", "client_auth", "client_ca", "client_certificates", "client_crl", "trusted_clients", "issuing_ca"];
const OF_LIMITS: [&str; 8] = [
    "max_connections",
    "max_connections_per_source",
    "max_handshakes",
    "connection_rate_per_source",
    "handshake_timeout",
    "idle_timeout",
    "half_close_timeout",
    "dead_peer_timeout",
];
const OF_UPSTREAM: [&str; 5] = ["connect_timeout", "dial_retry", "target", "server_name", "negotiation"];

const OF_CREDENTIALS: [&str; 3] = ["clients_file", "upstream_user", "upstream_password_file"];

const NAME: &str = "a name of 1 to 63 lower-case letters, digits and hyphens, such as \"cache\"";

const PROTOCOLS: [(&str, Protocol); 3] =
    [("redis", Protocol::Redis), ("postgres", Protocol::Postgres), ("tcp", Protocol::Tcp)];

const TLS: &str = "a table with certificates = [{ cert = \"…\", key = \"…\" }], or \"off\"";

const TLS_MISSING: &str =
    "tls.certificates = [{ cert = \"…\", key = \"…\" }], or tls = \"off\" for clients on this machine";

const TRUSTED_PROXIES: &str = "a table with trusted = [\"10.9.0.5\"], the load balancers that send PROXY headers; to send PROXY \
                               headers to the upstream, set proxy_protocol in [listener.upstream]";

const SHIELDS: [(&str, Shield); 3] = [("off", Shield::Off), ("auto", Shield::Auto), ("on", Shield::On)];

const ENFORCEMENTS: [(&str, Enforcement); 2] = [("enforce", Enforcement::Enforce), ("observe", Enforcement::Observe)];
