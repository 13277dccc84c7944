//! `[listener.upstream]`: the addresses of the database and TLS towards it.

use std::path::Path;
use std::time::Duration;

use crate::addr::UpstreamAddr;
use crate::config::document::{Node, Section};
use crate::config::tls::anchor_validity;
use crate::config::{CertificateFiles, SourcedPath, Upstream, UpstreamTls};
use crate::protocol::proxy_header::write::Version;
use crate::protocol::{Negotiation, Protocol, Target, Verification};

pub(crate) fn upstream(node: &Node<'_>, protocol: Option<Protocol>, directory: &Path) -> Option<Upstream> {
    if !node.is_table() {
        let addresses = addresses(node, directory)?;
        let (proxy_header, target) = Default::default();
        return Some(Upstream {
            addresses,
            connect_timeout: CONNECT_TIMEOUT,
            dial_retry: DIAL_RETRY,
            tls: None,
            proxy_header,
            target,
        });
    }
    let section = node.section("a table")?;
    let addresses = section.require("address", ADDRESS).and_then(|node| addresses(&node, directory));
    let connect_timeout = section.get("connect_timeout").and_then(|node| node.positive_duration());
    let dial_retry = section.get("dial_retry").and_then(|node| node.duration_or_never());
    let tls = tls(&section, protocol, addresses.as_deref().unwrap_or_default(), directory);
    let proxy_header = section.get("proxy_protocol").map(|node| node.choice(&PROXY_HEADERS));
    let target = section.get("target").map(|node| target(&node, protocol));
    section.finish();
    Some(Upstream {
        addresses: addresses?,
        connect_timeout: connect_timeout.unwrap_or(CONNECT_TIMEOUT),
        dial_retry: dial_retry.map_or(DIAL_RETRY, Option::unwrap_or_default),
        tls: tls?,
        proxy_header: proxy_header.unwrap_or(Some(None))?,
        target: target.unwrap_or(Some(Target::Any))?,
    })
}

fn addresses(node: &Node<'_>, directory: &Path) -> Option<Vec<UpstreamAddr>> {
    let nodes = node.one_or_list();
    if nodes.is_empty() {
        node.expected("at least one address");
    }
    let mut addresses = Vec::with_capacity(nodes.len());
    for node in &nodes {
        let Some(address) = node.upstream_address(directory) else { continue };
        if addresses.contains(&address) {
            node.problem(format_args!("found {}, which is already in the list; remove one of them", node.found()));
            continue;
        }
        addresses.push(address);
    }
    Some(addresses).filter(|addresses| addresses.len() == nodes.len() && !nodes.is_empty())
}

/// `tls` and the related keys. `Some(None)` for plaintext.
fn tls(
    section: &Section<'_>,
    protocol: Option<Protocol>,
    addresses: &[UpstreamAddr],
    directory: &Path,
) -> Option<Option<UpstreamTls>> {
    let mode = section.get("tls");
    let verification = mode.as_ref().map_or(Some(None), |node| node.choice(&MODES));
    let keys = ["ca", "anchor_validity", "cert", "key", "key_passphrase_file", "server_name", "negotiation"];
    let nodes = keys.map(|key| section.get(key));
    let Some(verification) = verification else {
        // Reports the problems of these keys too.
        let [ca, _, cert, key, key_passphrase_file, ..] = nodes;
        let _ = ca.map(|node| node.named_files(directory));
        let _ = identity(cert, key, key_passphrase_file, directory);
        return None;
    };
    let (Some(verification), Some(mode)) = (verification, mode) else {
        for node in nodes.iter().flatten() {
            node.problem(NO_TLS);
        }
        return Some(None);
    };
    if addresses.iter().any(|address| address.host().is_none()) {
        mode.problem(format_args!(
            "found {}, but a Unix socket does not support TLS; use host:port, or remove tls",
            mode.found()
        ));
    }
    let [ca, validity, cert, key, key_passphrase_file, server_name, negotiation] = nodes;
    if let (Some(node), Some(other @ (Protocol::Redis | Protocol::Tcp))) = (&negotiation, protocol) {
        node.problem(format_args!(
            "is set, but applies to protocol \"postgres\" only, and the listener's protocol is \"{other}\"; remove it"
        ));
    }
    let ca = ca.map(|node| node.named_files(directory)).unwrap_or_default();
    let identity = identity(cert, key, key_passphrase_file, directory);
    let server_name = server_name.map(|node| node.host_name());
    let negotiation = negotiation.map(|node| node.choice(&NEGOTIATIONS));
    Some(Some(UpstreamTls {
        position: SourcedPath { position: mode.position(), key: mode.key().to_owned() },
        verification,
        ca,
        anchor_validity: validity.and_then(|node| anchor_validity(&node)).unwrap_or_default(),
        identity: identity?,
        server_name: server_name.map_or(Some(None), |name| name.map(Some))?,
        negotiation: negotiation.unwrap_or(Some(Negotiation::Postgres))?,
    }))
}

/// The client certificate for the upstream. `Some(None)` if none is set.
fn identity(
    cert: Option<Node<'_>>,
    key: Option<Node<'_>>,
    key_passphrase_file: Option<Node<'_>>,
    directory: &Path,
) -> Option<Option<CertificateFiles>> {
    match (cert, key) {
        (None, None) => {
            if let Some(node) = &key_passphrase_file {
                node.problem("is set, but key is not; set key, or remove it");
            }
            Some(None)
        }
        (Some(cert), Some(key)) => {
            let key_passphrase_file = key_passphrase_file.map(|node| node.named_file(directory));
            let (cert, key) = (cert.named_pem(directory), key.named_pem(directory));
            Some(Some(CertificateFiles {
                cert: cert?,
                key: key?,
                key_passphrase_file: key_passphrase_file.map_or(Some(None), |file| file.map(Some))?,
            }))
        }
        (Some(one), None) | (None, Some(one)) => {
            one.problem("is set, but a client certificate needs both cert and key; set both");
            None
        }
    }
}

fn target(node: &Node<'_>, protocol: Option<Protocol>) -> Option<Target> {
    match protocol {
        Some(Protocol::Postgres) => node.choice(&[("any", Target::Any), ("primary", Target::Primary)]),
        Some(Protocol::Redis) => node.choice(&[("any", Target::Any), ("master", Target::Primary)]),
        Some(Protocol::Tcp) => node.choice(&[("any", Target::Any)]),
        // The invalid protocol has been reported.
        None => None,
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Covers the restart of a database, and is shorter than the timeout of `pg_isready` (3 s).
const DIAL_RETRY: Duration = Duration::from_secs(2);

const ADDRESS: &str = "\"host:port\", \"unix:/path\", or a list of them";

const MODES: [(&str, Option<Verification>); 4] = [
    ("disable", None),
    ("require", Some(Verification::Require)),
    ("verify-ca", Some(Verification::VerifyCa)),
    ("verify-full", Some(Verification::VerifyFull)),
];

const NEGOTIATIONS: [(&str, Negotiation); 2] = [("postgres", Negotiation::Postgres), ("direct", Negotiation::Direct)];

const PROXY_HEADERS: [(&str, Option<Version>); 3] =
    [("off", None), ("v1", Some(Version::V1)), ("v2", Some(Version::V2))];

const NO_TLS: &str = "is set, but the connection to the upstream is plaintext (tls = \"disable\"); \
                      set tls to \"verify-full\", \"verify-ca\" or \"require\", or remove it";
