//! `[admin]`: the addresses of the admin API, its TLS and its tokens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::addr::{ListenAddr, TcpListenAddr};
use crate::config::document::{Document, Node, Section};
use crate::config::files::Files;
use crate::config::problem::{Position, Problem, Problems};
use crate::config::sources::SOURCE;
use crate::config::{CertificateFiles, SourcedFile, tls};
use crate::source::rule::{Network, NetworkError};
use crate::token::{Role, Token, TokenDigest, TokenOrigin};

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
        let metrics = self.metrics.map(|socket| ListenAddr::Tcp(TcpListenAddr { socket, ipv6_only: false }));
        self.listen.iter().cloned().chain(metrics)
    }

    /// Adds the tokens of `tokens_file`, or returns its problems.
    pub(crate) fn read_tokens_file(&mut self, files: &mut Files) -> Vec<Problem> {
        let Some(file) = &self.tokens_file else { return Vec::new() };
        match tokens_from_file(file, &self.tokens, files) {
            Ok(more) => {
                self.tokens = Arc::new(self.tokens.iter().cloned().chain(more).collect());
                Vec::new()
            }
            Err(problems) => problems,
        }
    }
}

/// Reads `[admin]`, without the tokens of `tokens_file`.
pub(crate) fn admin(root: &Section<'_>, directory: &Path) -> Option<Admin> {
    let section = root.section("admin")?;
    let listen_node = section.require("listen", LISTEN);
    let listen = listen_node.as_ref().and_then(|node| listen(node, directory));
    let metrics = section.get("metrics").map(|node| tcp_address(&node, METRICS));
    let hosts = section.get("hosts").map(|node| hosts(&node)).unwrap_or_default();
    let tls = section.get("tls").map(|node| admin_tls(&node, directory));
    let tokens_file = section.get("tokens_file").map(|node| node.path(directory));
    let token_node = section.get("token");
    let tokens = token_node.as_ref().map(tokens).unwrap_or_default();
    section.finish();
    let listen = listen?;
    if let (Some(node), Some(address)) = (&listen_node, listen.iter().find(|address| !address.is_local()))
        && tls.is_none()
    {
        node.problem(format_args!(
            "has {address}, which other machines can reach, but TLS is off; add [admin.tls] with certificates, or listen on 127.0.0.1 or [::1]"
        ));
    }
    let is_tcp = |address: &ListenAddr| matches!(address, ListenAddr::Tcp(_));
    if let (Some(node), Some(address)) = (&listen_node, listen.iter().find(|address| is_tcp(address)))
        && token_node.is_none()
        && tokens_file.is_none()
    {
        node.problem(format_args!(
            "has the TCP address {address}, but no token is configured, so nobody could use it; \
             run \"portcullis token new --offline --name NAME --role ROLE\" and add its [[admin.token]], or set tokens_file"
        ));
    }
    Some(Admin {
        listen,
        metrics: metrics.map_or(Some(None), |metrics| metrics.map(Some))?,
        hosts,
        tls: tls.map_or(Some(None), |tls| tls.map(Some))?,
        tokens: Arc::new(tokens),
        tokens_file: tokens_file.map_or(Some(None), |file| file.map(Some))?,
    })
}

/// Reads the tokens of a `tokens_file`. A missing file has none: the first new token creates it.
fn tokens_from_file(file: &Path, known: &[Token], files: &mut Files) -> Result<Vec<Token>, Vec<Problem>> {
    let whole_file = |message: String| vec![Problem { position: Position::file(file), key: String::new(), message }];
    if !file.exists() {
        // Recorded, so that a reload notices when the file appears.
        let _ = files.read(file);
        return Ok(Vec::new());
    }
    let bytes = files.read(file).map_err(whole_file)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| whole_file(format!("is not UTF-8: {error}")))?;
    let document = Document::new(file, text);
    let tree = document.parse().map_err(Problems::into_vec)?;
    let root = document.root(tree.get_ref());
    let mut read: Vec<Token> = Vec::new();
    for node in root.get("token").and_then(|node| node.list(TOKEN_TABLES)).unwrap_or_default() {
        let Some(token) = token(&node, TokenOrigin::TokensFile) else { continue };
        if known.iter().chain(&read).any(|other| other.name == token.name) {
            node.problem(format_args!("has the name {:?}, which another token has already", token.name));
            continue;
        }
        read.push(token);
    }
    root.finish();
    let problems = document.into_problems();
    if problems.is_empty() { Ok(read) } else { Err(problems) }
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
            node.problem(format_args!("found {}, but {other} is in the list already", node.found()));
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

fn tokens(node: &Node<'_>) -> Vec<Token> {
    let mut all: Vec<Token> = Vec::new();
    for node in node.list(TOKEN_TABLES).unwrap_or_default() {
        let Some(token) = token(&node, TokenOrigin::Configuration) else { continue };
        if all.iter().any(|other| other.name == token.name) {
            node.problem(format_args!("has the name {:?}, which another token has already", token.name));
            continue;
        }
        all.push(token);
    }
    all
}

fn token(node: &Node<'_>, origin: TokenOrigin) -> Option<Token> {
    let section = node.section("a table with name, role and sha256")?;
    let name = section.require("name", NAME).and_then(|node| name(&node));
    let role = section.require("role", "\"viewer\", \"operator\" or \"owner\"").and_then(|node| node.choice(&ROLES));
    let digest = section.require("sha256", DIGEST).and_then(|node| digest(&node));
    let created_at = section.get("created_at").map(|node| node.instant());
    let expires_at = section.get("expires_at").map(|node| node.instant());
    let sources = section.get("sources").map(|node| (node.one_or_list().len(), networks(&node)));
    section.finish();
    // A token with an invalid restriction must not become a token without it.
    let sources = match sources {
        None => Vec::new(),
        Some((count, networks)) if count == networks.len() && count > 0 => networks,
        Some(_) => return None,
    };
    Some(Token {
        name: name?,
        role: role?,
        digest: digest?,
        created_at: created_at.map_or(Some(None), |at| at.map(Some))?,
        expires_at: expires_at.map_or(Some(None), |at| at.map(Some))?,
        sources,
        origin,
    })
}

fn networks(node: &Node<'_>) -> Vec<Network> {
    let nodes = node.one_or_list();
    if nodes.is_empty() {
        node.problem("is empty, so the token could be used from nowhere; list networks, or remove the key");
    }
    let network = |node: &Node<'_>| {
        let problem = |error: NetworkError| node.problem(format_args!("found {}, which is {error}", node.found()));
        node.text(SOURCE)?.parse().map_err(problem).ok()
    };
    nodes.iter().filter_map(network).collect()
}

fn name(node: &Node<'_>) -> Option<String> {
    let name = node.text(NAME)?;
    if !is_token_name(name) {
        node.expected(NAME);
        return None;
    }
    Some(name.to_owned())
}

/// Whether a text is a valid name of a token.
pub(crate) fn is_token_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(is_allowed)
}

fn digest(node: &Node<'_>) -> Option<TokenDigest> {
    let digest = TokenDigest::from_hex(node.text(DIGEST)?);
    if digest.is_none() {
        // The value may be the token itself.
        node.problem(format_args!("is not a SHA-256; expected {DIGEST}"));
    }
    digest
}

const LISTEN: &str =
    "a Unix socket such as \"unix:/run/portcullis/admin.sock\", or an IP address and port such as \"127.0.0.1:9642\"";
const METRICS: &str = "an IP address and port such as \"127.0.0.1:9643\"";
const TOKEN_TABLES: &str = "a list of tables: write [[admin.token]], in double brackets";
const ROLES: [(&str, Role); 3] = [("viewer", Role::Viewer), ("operator", Role::Operator), ("owner", Role::Owner)];
const DIGEST: &str = "the SHA-256 of the token as 64 lower-case hexadecimal digits";
pub(crate) const NAME: &str = "a name of 1 to 64 letters, digits and \"-\", \"_\", \".\", \"@\", such as \"ci\"";
