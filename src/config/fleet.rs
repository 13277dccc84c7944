//! `[fleet]`: the store that replicas share, and which of them this one is.
//!
//! The main process never reads the password or the client key of the store. It only checks that the agent can.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::SourcedFile;
use crate::config::document::{Node, Section};
use crate::config::files::Files;
use crate::config::resolver::{self, Resolvers, WrittenResolvers, require_feature, transposed};
use crate::config::url::{UrlPath, parse_url};
use crate::fleet::settings::{Engine, EtcdSettings, Identity, Login, StoreSettings};
use crate::source::cloud::Resolver;

/// `[fleet]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    pub(crate) store: StoreSettings,
    /// The name of this replica in the fleet.
    pub member: String,
    /// The keys that seal ticket keys in the store.
    pub key_file: Option<SourcedFile>,
    /// How often the fleet makes a new ticket key.
    pub ticket_rotation: Duration,
    /// Where the last good copies are.
    pub directory: PathBuf,
    /// Certificates in PEM: the trust anchors of the store and the client certificate.
    pub certificates: Vec<SourcedFile>,
    /// The files with passwords, tokens and keys, which only the agent reads.
    pub secrets: Vec<PathBuf>,
}

impl Fleet {
    /// The name of the fleet.
    pub fn name(&self) -> &str {
        &self.store.fleet
    }

    /// The last good copy of the rules of a listener.
    pub fn rules_file(&self, listener: &str) -> PathBuf {
        self.directory.join(format!("{listener}.toml"))
    }

    /// The last good copy of the ticket keys, sealed.
    pub fn tickets_file(&self) -> PathBuf {
        self.directory.join("tickets.json")
    }
}

/// Reads `[fleet]`. `state` is the directory of last good answers, and `resolvers` has the connection to Kubernetes that the
/// fleet uses if it names none; `written` says whether that section exists, valid or not.
pub(crate) fn fleet(
    root: &Section<'_>,
    directory: &Path,
    state: &Path,
    files: &mut Files,
    (resolvers, written): (&Resolvers, WrittenResolvers),
) -> Option<Fleet> {
    let section = root.section("fleet")?;
    let name = section.require("name", NAME).and_then(|node| name(&node));
    let member = match section.get("member") {
        Some(node) => member(&node),
        None => host_name().filter(|name| is_member(name)).or_else(|| {
            section.require("member", "a name of this replica, because the host name is not usable as one");
            None
        }),
    };
    let key_file = section.get("key_file").map(|node| node.named_file(directory));
    let ticket_rotation = section.get("ticket_rotation").map(|node| rotation(&node));
    let store = section.require("store", "\"etcd\" or \"kubernetes\"").and_then(|node| store(&node));
    let mut reader = resolver::Reader::new(directory, files);
    let mut certificates = Vec::new();
    let engine = match store {
        Some(Store::Etcd) => {
            unused(section.get("kubernetes").as_ref(), "etcd");
            let node = section.require("etcd", "[fleet.etcd] with endpoints = [\"https://host:2379\"]");
            node.and_then(|node| etcd(&node, &mut reader, &mut certificates)).map(Engine::Etcd)
        }
        Some(Store::Kubernetes) => {
            unused(section.get("etcd").as_ref(), "kubernetes");
            kubernetes(&section, &mut reader, resolvers, written)
        }
        None => {
            let _ = ["etcd", "kubernetes"].map(|key| section.get(key));
            None
        }
    };
    section.finish();
    let resolver::Found { ca, secrets, .. } = reader.finish();
    certificates.extend(ca);
    let (name, key_file, ticket_rotation) = (name?, transposed(key_file)?, transposed(ticket_rotation)?);
    Some(Fleet {
        directory: state.join("fleet").join(&name),
        store: StoreSettings { fleet: name, engine: engine? },
        member: member?,
        key_file,
        ticket_rotation: ticket_rotation.unwrap_or(ROTATION),
        certificates,
        secrets,
    })
}

#[derive(Clone, Copy, Debug)]
enum Store {
    Etcd,
    Kubernetes,
}

fn store(node: &Node<'_>) -> Option<Store> {
    let store = node.choice(&STORES)?;
    let is_built_in = match store {
        Store::Etcd => require_feature(node, "etcd", cfg!(feature = "etcd")),
        Store::Kubernetes => require_feature(node, "kubernetes", cfg!(feature = "kubernetes")),
    };
    is_built_in.then_some(store)
}

fn unused(section: Option<&Node<'_>>, store: &str) {
    if let Some(node) = section {
        node.problem(format_args!("is set, but store = \"{store}\" does not use it; remove it, or change store"));
    }
}

fn name(node: &Node<'_>) -> Option<String> {
    let name = node.text(NAME)?;
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_plain);
    if !is_name {
        node.expected(NAME);
    }
    is_name.then(|| name.to_owned())
}

fn member(node: &Node<'_>) -> Option<String> {
    let name = node.text(MEMBER)?;
    if !is_member(name) {
        node.expected(MEMBER);
    }
    is_member(name).then(|| name.to_owned())
}

/// Whether a name can be a part of a key in the store.
pub(crate) fn is_member(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(is_plain)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

fn host_name() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned())
}

fn rotation(node: &Node<'_>) -> Option<Duration> {
    let rotation = node.duration()?;
    if rotation < MIN_ROTATION {
        node.expected("a duration of at least 1m");
        return None;
    }
    Some(rotation)
}

fn etcd(
    node: &Node<'_>,
    reader: &mut resolver::Reader<'_>,
    certificates: &mut Vec<SourcedFile>,
) -> Option<EtcdSettings> {
    let section = node.section("a table with endpoints")?;
    let endpoints = section.require("endpoints", ENDPOINTS).and_then(|node| endpoints(&node));
    let ca = section.get("ca").map(|node| reader.ca(&node));
    let (cert, key) = (section.get("cert"), section.get("key"));
    let (user, password) = (section.get("user"), section.get("password_file"));
    let prefix = section.get("prefix").map(|node| prefix(&node));
    section.finish();
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => {
            let cert = cert.named_file(reader.directory());
            let key = reader.file(&key);
            certificates.extend(cert.clone());
            cert.zip(key).map(|(cert, key)| Some(Identity { cert: resolver::absolute(&cert.path), key }))
        }
        (None, None) => Some(None),
        (Some(node), None) => alone(&node, "key"),
        (None, Some(node)) => alone(&node, "cert"),
    };
    let login = match (user, password) {
        (Some(user), Some(password)) => {
            let user = user.text("the name of a user of etcd").map(str::to_owned);
            let password = reader.secret(&password);
            user.zip(password).map(|(user, password)| Some(Login { user, password }))
        }
        (None, None) => Some(None),
        (Some(node), None) => alone(&node, "password_file"),
        (None, Some(node)) => alone(&node, "user"),
    };
    let (ca, prefix) = (transposed(ca)?, transposed(prefix)?);
    let prefix = prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned());
    Some(EtcdSettings { endpoints: endpoints?, ca, identity: identity?, login: login?, prefix })
}

/// Records that a key is set without its partner.
fn alone<T>(node: &Node<'_>, partner: &str) -> Option<Option<T>> {
    node.problem(format_args!("is set, but {partner} is not; set both, or remove it"));
    None
}

fn endpoints(node: &Node<'_>) -> Option<Vec<String>> {
    let nodes = node.list(ENDPOINTS)?;
    if nodes.is_empty() {
        node.expected(ENDPOINTS);
        return None;
    }
    let endpoint = |node: &Node<'_>| {
        let parsed = parse_endpoint(node.text(ENDPOINTS)?);
        if parsed.is_none() {
            node.expected("an http or https URL without path such as \"https://10.0.0.1:2379\"");
        }
        parsed
    };
    let all: Vec<_> = nodes.iter().map(endpoint).collect();
    all.into_iter().collect()
}

/// An `http` or `https` URL without user information, path, query and fragment. Returned without a slash at its end.
fn parse_endpoint(text: &str) -> Option<String> {
    parse_url(text, &["http", "https"], UrlPath::Forbidden)
}

fn prefix(node: &Node<'_>) -> Option<String> {
    let text = node.text(PREFIX)?;
    let is_plain = |byte: u8| byte.is_ascii_graphic();
    let is_prefix =
        text.starts_with('/') && !text.ends_with('/') && text.len() <= MAX_PREFIX && text.bytes().all(is_plain);
    if !is_prefix {
        node.expected(PREFIX);
    }
    is_prefix.then(|| text.to_owned())
}

fn kubernetes(
    fleet: &Section<'_>,
    reader: &mut resolver::Reader<'_>,
    resolvers: &Resolvers,
    written: WrittenResolvers,
) -> Option<Engine> {
    let known = resolvers.kubernetes.clone();
    // An invalid [resolver.kubernetes] has been reported, and is the connection all the same.
    let has_resolver = written.has(Resolver::Kubernetes);
    let Some(node) = fleet.get("kubernetes") else {
        if !has_resolver {
            fleet
                .require("kubernetes", "[fleet.kubernetes], which is empty inside a cluster, or [resolver.kubernetes]");
        }
        return Some(Engine::Kubernetes { connection: known?, namespace: None });
    };
    let section = node.section("a table, which is empty inside a cluster")?;
    let namespace = section.get("namespace").map(|node| namespace(&node));
    let names_one = CONNECTION.map(|key| section.get(key)).iter().any(Option::is_some);
    let connection = if has_resolver && !names_one { known } else { reader.connection(&node, &section) };
    section.finish();
    Some(Engine::Kubernetes { namespace: transposed(namespace)?, connection: connection? })
}

/// A DNS label (RFC 1123).
fn namespace(node: &Node<'_>) -> Option<String> {
    name(node).filter(|name| {
        let is_label = !name.starts_with('-') && !name.ends_with('-');
        if !is_label {
            node.expected("the name of a namespace");
        }
        is_label
    })
}

/// The keys that name a Kubernetes API.
const CONNECTION: [&str; 4] = ["kubeconfig", "server", "ca", "token_file"];

const NAME: &str = "a name of 1 to 63 lower-case letters, digits and hyphens, such as \"prod\"";
const MEMBER: &str = "a name of 1 to 63 letters, digits, hyphens, dots and underscores, such as \"proxy-1\"";
const MAX_NAME: usize = 63;

const STORES: [(&str, Store); 2] = [("etcd", Store::Etcd), ("kubernetes", Store::Kubernetes)];

const ENDPOINTS: &str = "a list of URLs such as [\"https://10.0.0.1:2379\"]";
const PREFIX: &str = "a prefix of keys that starts with a slash and does not end with one, such as \"/portcullis\"";
const DEFAULT_PREFIX: &str = "/portcullis";
const MAX_PREFIX: usize = 128;

/// As long as a ticket is accepted.
const ROTATION: Duration = Duration::from_secs(12 * 60 * 60);
const MIN_ROTATION: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_a_url_without_path() {
        for text in ["https://10.0.0.1:2379", "http://localhost:2379", "https://[::1]:2379"] {
            assert_eq!(parse_endpoint(text).as_deref(), Some(text));
            assert_eq!(parse_endpoint(&format!("{text}/")).as_deref(), Some(text));
        }
        for text in [
            "",
            "10.0.0.1:2379",
            "ftp://host",
            "https://user@host",
            "https://host/v3",
            "https://host:0",
            "https://host?x",
        ] {
            assert_eq!(parse_endpoint(text), None, "{text}");
        }
    }

    #[test]
    fn member_is_one_part_of_a_key() {
        assert!(["a", "proxy-1", "host.example.net", "A_1"].into_iter().all(is_member));
        assert!(!["", "-a", ".", "a/b", "a b", "ä"].into_iter().any(is_member));
    }
}
