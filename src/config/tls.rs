//! `[listener.tls]`: TLS towards clients and the authentication of clients.

use std::path::Path;

use crate::config::document::Node;
use crate::config::{CertificateFiles, SharedTicketKeys, Tls};
use crate::identity::settings::ClientAuth;
use crate::identity::trusted_clients::{ClientPattern, TrustedClients};
use crate::protocol::MinTlsVersion;
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};

pub(crate) fn tls(node: &Node<'_>, directory: &Path) -> Option<Tls> {
    let section = node.section("a table with certificates = [{ cert = \"…\", key = \"…\" }]")?;
    let certificates = section
        .require("certificates", "[{ cert = \"server.crt\", key = \"server.key\" }]")
        .and_then(|node| certificates(&node, directory));
    let min_version = section.get("min_version").and_then(|node| node.choice(&MIN_VERSIONS));
    let auth_node = section.get("client_auth");
    let client_auth = match &auth_node {
        Some(node) => node.choice(&CLIENT_AUTHS),
        None => Some(ClientAuth::None),
    };
    let [client_ca, client_crl, client_certificates] =
        ["client_ca", "client_crl", "client_certificates"].map(|key| section.get(key));
    let crl_expired = section.get("crl_expired").and_then(|node| node.choice(&CRL_EXPIRED));
    let anchor_validity = section.get("anchor_validity").and_then(|node| anchor_validity(&node));
    let trusted_clients = section.get("trusted_clients");
    let issuing_ca = section.get("issuing_ca");
    match (client_auth, &auth_node) {
        (Some(ClientAuth::None), _) => {
            let names_some = trusted_clients.as_ref().filter(|node| !node.one_or_list().is_empty());
            let files = [&client_ca, &client_crl, &client_certificates, &issuing_ca].map(Option::as_ref);
            for node in files.into_iter().chain([names_some]).flatten() {
                node.problem(CLIENT_AUTH_NONE);
            }
        }
        (Some(ClientAuth::Optional | ClientAuth::Required), Some(node))
            if client_ca.is_none() && client_certificates.is_none() =>
        {
            node.problem(
                "needs client_ca (the CAs that issue client certificates) or client_certificates (the client certificates \
                 themselves); set one of them",
            );
        }
        _ => {}
    }
    if let (Some(node), None) = (&client_crl, &client_ca)
        && client_auth != Some(ClientAuth::None)
    {
        node.problem("is set, but client_ca is not, so it revokes no certificate; set client_ca, or remove it");
    }
    let ticket_keys = section.get("ticket_keys").and_then(|node| match node.text(TICKET_KEYS)? {
        FLEET => Some(SharedTicketKeys::Fleet),
        _ => node.named_file(directory).map(SharedTicketKeys::File),
    });
    section.finish();
    // Reads all of them before returning, so that all problems are reported.
    let files = |node: Option<Node<'_>>| node.map(|node| node.named_files(directory)).unwrap_or_default();
    let [client_ca, client_crl] = [client_ca, client_crl].map(files);
    let client_certificates =
        client_certificates.map(|node| node.named_files_or_directories(directory)).unwrap_or_default();
    let trusted_clients = trusted_clients.map(|node| patterns(&node)).unwrap_or_default();
    let issuing_ca = match issuing_ca {
        Some(node) => certificate(&node, directory).map(Some),
        None => Some(None),
    };
    Some(Tls {
        certificates: certificates?,
        min_version: min_version.unwrap_or(MinTlsVersion::Tls12),
        client_auth: client_auth?,
        client_ca,
        client_crl,
        crl_expired: crl_expired.unwrap_or_default(),
        anchor_validity: anchor_validity.unwrap_or_default(),
        client_certificates,
        trusted_clients,
        issuing_ca: issuing_ca?,
        ticket_keys,
    })
}

pub(crate) fn certificates(node: &Node<'_>, directory: &Path) -> Option<Vec<CertificateFiles>> {
    let nodes = node.list("a list of { cert = \"…\", key = \"…\" }")?;
    if nodes.is_empty() {
        node.expected("at least one { cert = \"…\", key = \"…\" }");
    }
    let pairs: Vec<_> = nodes.iter().map(|node| certificate(node, directory)).collect();
    let pairs: Option<Vec<_>> = pairs.into_iter().collect();
    pairs.filter(|pairs| !pairs.is_empty())
}

fn certificate(node: &Node<'_>, directory: &Path) -> Option<CertificateFiles> {
    let section = node.section("{ cert = \"…\", key = \"…\" }")?;
    let cert = section.require("cert", "the file of the certificate chain").and_then(|node| node.named_pem(directory));
    let key = section.require("key", "the file of its private key").and_then(|node| node.named_pem(directory));
    let key_passphrase_file = match section.get("key_passphrase_file") {
        Some(node) => node.named_file(directory).map(Some),
        None => Some(None),
    };
    section.finish();
    Some(CertificateFiles { cert: cert?, key: key?, key_passphrase_file: key_passphrase_file? })
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

pub(crate) fn anchor_validity(node: &Node<'_>) -> Option<AnchorValidity> {
    node.choice(&[("enforce", AnchorValidity::Enforce), ("ignore", AnchorValidity::Ignore)])
}

const MIN_VERSIONS: [(&str, MinTlsVersion); 2] = [("1.2", MinTlsVersion::Tls12), ("1.3", MinTlsVersion::Tls13)];

const TICKET_KEYS: &str = "a file of ticket keys, or \"fleet\"";

/// The value of `ticket_keys` and `sources_store` that means the store of the fleet.
pub(crate) const FLEET: &str = "fleet";

const CLIENT_AUTH_NONE: &str = "is set, but client_auth = \"none\" does not request client certificates; \
                                set client_auth to \"required\" or \"optional\", or remove it";

const CRL_EXPIRED: [(&str, CrlExpired); 2] = [("refuse", CrlExpired::Refuse), ("allow", CrlExpired::Allow)];

const CLIENT_AUTHS: [(&str, ClientAuth); 3] =
    [("none", ClientAuth::None), ("optional", ClientAuth::Optional), ("required", ClientAuth::Required)];
