//! `[admin]`: the addresses of the admin API, its TLS and its tokens.

pub(crate) mod tokens;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use time::OffsetDateTime;

use crate::addr::{ListenAddr, TcpListenAddr};
use crate::config::document::{Node, Section};
use crate::config::files::Files;
use crate::config::problem::Problem;
use crate::config::{CertificateFiles, SourcedFile, tls};
use crate::timestamp;
use crate::token::Token;

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Unix sockets and TCP addresses, at least one.
    pub listen: Vec<ListenAddr>,
    /// The address of `/metrics`, `/healthz` and `/readyz`.
    pub metrics: Option<SocketAddr>,
    /// Further host names under which a browser may open the control panel.
    pub hosts: Vec<String>,
    /// TLS of the TCP addresses; `None` if they are loopback addresses without TLS.
    pub tls: Option<AdminTls>,
    /// The tokens of both places.
    pub tokens: Arc<Vec<Token>>,
    /// A file of further tokens, which API and CLI rewrite.
    pub tokens_file: Option<PathBuf>,
}

/// `[admin.tls]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminTls {
    /// At least one.
    pub certificates: Vec<CertificateFiles>,
    /// Bundles of trust anchors; empty if clients need no certificate.
    pub client_ca: Vec<SourcedFile>,
}

impl Admin {
    /// The first Unix socket in `listen`.
    pub fn socket(&self) -> Option<&Path> {
        self.listen.iter().find_map(|address| match address {
            ListenAddr::Unix(path) => Some(path.as_path()),
            ListenAddr::Tcp(_) => None,
        })
    }

    /// All addresses, that of `metrics` included.
    pub fn addresses(&self) -> impl Iterator<Item = ListenAddr> {
        self.listen.iter().cloned().chain(self.metrics_address())
    }

    pub(crate) fn metrics_address(&self) -> Option<ListenAddr> {
        self.metrics.map(|socket| ListenAddr::Tcp(TcpListenAddr { socket, ipv6_only: false }))
    }

    /// One Unix socket without anything else.
    pub(crate) fn at_socket(path: &Path) -> Self {
        let (metrics, hosts, tls, tokens, tokens_file) = Default::default();
        Self { listen: vec![ListenAddr::Unix(path.to_owned())], metrics, hosts, tls, tokens, tokens_file }
    }

    /// Adds the tokens of `tokens_file`, or returns its problems. `root` is the configuration that names the file.
    pub(crate) fn read_tokens_file(&mut self, root: &Section<'_>, files: &mut Files) -> Vec<Problem> {
        let named = self.tokens_file.clone().zip(root.position_of("admin", "tokens_file"));
        let Some((path, named_at)) = named else { return Vec::new() };
        let file = SourcedFile { path, position: named_at.position, key: named_at.key };
        match tokens::from_file(&file, &self.tokens, files) {
            Ok(more) => {
                self.tokens = Arc::new(self.tokens.iter().cloned().chain(more).collect());
                Vec::new()
            }
            Err(problems) => problems,
        }
    }

    /// Messages for the operator that do not prevent a start.
    pub(crate) fn warnings(&self, now: OffsetDateTime) -> impl Iterator<Item = String> {
        let expired = move |token: &&Token| token.is_expired(now);
        self.tokens.iter().filter(expired).filter_map(|Token { name, expires_at, .. }| {
            let end = timestamp::seconds((*expires_at)?);
            Some(format!("the admin token \"{name}\" expired at {end}; remove it, or set a later expires_at"))
        })
    }
}

/// Reads `[admin]`, without the tokens of `tokens_file`.
pub(crate) fn admin(root: &Section<'_>, directory: &Path) -> Option<Admin> {
    let section = root.section("admin")?;
    let listen_node = section.require("listen", LISTEN);
    let listen = listen_node.as_ref().and_then(|node| listen(node, directory));
    let metrics = section.get("metrics").map(|node| metrics(&node, listen.as_deref().unwrap_or_default()));
    let hosts = section.get("hosts").map(|node| hosts(&node)).unwrap_or_default();
    let tls = section.get("tls").map(|node| admin_tls(&node, directory));
    let tokens_file = section.get("tokens_file").map(|node| node.path(directory));
    let tokens = section.get("token").map_or_else(|| Some(Vec::new()), |node| tokens::configured(&node));
    section.finish();
    let listen = listen?;
    if let Some(node) = &listen_node {
        check_exposure(node, &listen, tls.is_some());
        check_usability(node, &listen, !tokens.as_ref().is_some_and(Vec::is_empty) || tokens_file.is_some());
    }
    Some(Admin {
        listen,
        metrics: metrics.map_or(Some(None), |metrics| metrics.map(Some))?,
        hosts,
        tls: tls.map_or(Some(None), |tls| tls.map(Some))?,
        tokens: Arc::new(tokens?),
        tokens_file: tokens_file.map_or(Some(None), |file| file.map(Some))?,
    })
}

/// Rejects addresses without TLS that other machines can reach.
fn check_exposure(node: &Node<'_>, listen: &[ListenAddr], has_tls: bool) {
    if let Some(address) = listen.iter().find(|address| !has_tls && !address.is_local()) {
        node.problem(format_args!(
            "has {address}, which other machines can reach, but TLS is off; \
             add [admin.tls] with certificates, or listen on 127.0.0.1 or [::1]"
        ));
    }
}

/// Rejects TCP addresses that nobody could use.
fn check_usability(node: &Node<'_>, listen: &[ListenAddr], has_tokens: bool) {
    let is_tcp = |address: &&ListenAddr| matches!(address, ListenAddr::Tcp(_));
    if let Some(address) = listen.iter().find(is_tcp).filter(|_| !has_tokens) {
        node.problem(format_args!(
            "has the TCP address {address}, but no token is configured, so nobody could use it; run \
             \"portcullis token new --offline --name NAME --role ROLE\" and add its [[admin.token]], or set tokens_file"
        ));
    }
}

fn listen(node: &Node<'_>, directory: &Path) -> Option<Vec<ListenAddr>> {
    let nodes = node.one_or_list();
    if nodes.is_empty() {
        node.expected("at least one address");
    }
    let mut all: Vec<ListenAddr> = Vec::with_capacity(nodes.len());
    for node in &nodes {
        let Some(address) = address(node, directory) else { continue };
        if let Some(other) = all.iter().find(|other| address.overlaps(other)) {
            node.problem(format_args!(
                "found {}, but {other} is in the list already; remove one of them",
                node.found()
            ));
            continue;
        }
        all.push(address);
    }
    Some(all).filter(|all| all.len() == nodes.len() && !all.is_empty())
}

fn address(node: &Node<'_>, directory: &Path) -> Option<ListenAddr> {
    let text = node.text(LISTEN)?;
    if text.parse::<SocketAddr>().is_ok() {
        let socket = tcp_address(node, LISTEN)?;
        return Some(ListenAddr::Tcp(TcpListenAddr { socket, ipv6_only: false }));
    }
    node.socket_path(directory, LISTEN).map(ListenAddr::Unix)
}

fn tcp_address(node: &Node<'_>, expected: &str) -> Option<SocketAddr> {
    let parsed = node.text(expected)?.parse().ok();
    if parsed.is_none() {
        node.expected(expected);
    }
    parsed
}

fn metrics(node: &Node<'_>, listen: &[ListenAddr]) -> Option<SocketAddr> {
    let socket = tcp_address(node, METRICS)?;
    let address = ListenAddr::Tcp(TcpListenAddr { socket, ipv6_only: false });
    if let Some(other) = listen.iter().find(|other| address.overlaps(other)) {
        node.problem(format_args!("found {}, but listen already has {other}; use another port", node.found()));
        return None;
    }
    Some(socket)
}

fn hosts(node: &Node<'_>) -> Vec<String> {
    node.one_or_list().iter().filter_map(Node::host_name).collect()
}

fn admin_tls(node: &Node<'_>, directory: &Path) -> Option<AdminTls> {
    let section = node.section("a table with certificates = [{ cert = \"…\", key = \"…\" }]")?;
    let certificates = section
        .require("certificates", "[{ cert = \"admin.crt\", key = \"admin.key\" }]")
        .and_then(|node| tls::certificates(&node, directory));
    let client_ca = section.get("client_ca").map(|node| node.named_files(directory)).unwrap_or_default();
    section.finish();
    Some(AdminTls { certificates: certificates?, client_ca })
}

const LISTEN: &str =
    "a Unix socket such as \"unix:/run/portcullis/admin.sock\", or an IP address and port such as \"127.0.0.1:9642\"";
const METRICS: &str = "an IP address and port such as \"127.0.0.1:9643\"";
