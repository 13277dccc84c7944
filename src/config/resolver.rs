//! `[resolver.digitalocean]` and `[resolver.kubernetes]`: how the agent reaches the APIs that resolve cloud sources.
//!
//! The main process never reads a token or a kubeconfig. It only checks that the agent can.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::document::{Node, Section};
use crate::config::files::{Files, Location};
use crate::config::url::{UrlPath, parse_url};
use crate::config::{SourcedFile, SourcedPem, sources};
use crate::resolution::settings::{AddressChoice, DigitalOceanSettings, KubernetesSettings, Secret};
use crate::source::cloud::Resolver;

/// `[resolver]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolvers {
    pub(crate) digitalocean: Option<DigitalOceanSettings>,
    pub(crate) kubernetes: Option<KubernetesSettings>,
    /// The `ca` files of both.
    pub ca: Vec<SourcedFile>,
    /// The files with tokens and keys, which only the agent reads.
    pub secrets: Vec<PathBuf>,
}

/// The sections below `[resolver]` that are written, valid or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrittenResolvers {
    digitalocean: bool,
    kubernetes: bool,
}

impl WrittenResolvers {
    /// No section.
    pub(crate) const NONE: Self = Self { digitalocean: false, kubernetes: false };

    pub(crate) const fn has(self, resolver: Resolver) -> bool {
        match resolver {
            Resolver::DigitalOcean => self.digitalocean,
            Resolver::Kubernetes => self.kubernetes,
        }
    }

    /// Distinguishes all values.
    pub(crate) const fn as_byte(self) -> u8 {
        match (self.digitalocean, self.kubernetes) {
            (false, false) => 0,
            (true, false) => 1,
            (false, true) => 2,
            (true, true) => 3,
        }
    }
}

impl Resolvers {
    /// The sections of a valid configuration.
    pub(crate) const fn written(&self) -> WrittenResolvers {
        WrittenResolvers { digitalocean: self.digitalocean.is_some(), kubernetes: self.kubernetes.is_some() }
    }
}

/// Reads `[resolver]`.
pub(crate) fn resolvers(root: &Section<'_>, directory: &Path, files: &mut Files) -> (Resolvers, WrittenResolvers) {
    let mut reader = Reader::new(directory, files);
    let Some(section) = root.section("resolver") else { return (reader.found, WrittenResolvers::NONE) };
    let (digitalocean, kubernetes) = (section.get("digitalocean"), section.get("kubernetes"));
    let written = WrittenResolvers { digitalocean: digitalocean.is_some(), kubernetes: kubernetes.is_some() };
    let digitalocean =
        digitalocean.filter(|node| require_feature(node, "digitalocean", cfg!(feature = "digitalocean")));
    reader.found.digitalocean = digitalocean.and_then(|node| reader.digitalocean(&node));
    let kubernetes = kubernetes.filter(|node| require_feature(node, "kubernetes", cfg!(feature = "kubernetes")));
    reader.found.kubernetes = kubernetes.and_then(|node| reader.kubernetes(&node));
    section.finish();
    (reader.found, written)
}

/// Reports a problem with the value if this program lacks the cargo feature that it needs. Returns whether it is built in.
pub(crate) fn require_feature(node: &Node<'_>, feature: &str, is_built_in: bool) -> bool {
    if !is_built_in {
        node.problem(format_args!(
            "this program was built without the cargo feature \"{feature}\"; build it with --features {feature}"
        ));
    }
    is_built_in
}

/// Reads how APIs are reached, for `[resolver]` and for `[fleet]`.
pub(crate) struct Reader<'a> {
    directory: &'a Path,
    files: &'a mut Files,
    found: Found,
}

/// The files that settings name.
pub(crate) type Found = Resolvers;

impl<'a> Reader<'a> {
    pub(crate) fn new(directory: &'a Path, files: &'a mut Files) -> Self {
        Self { directory, files, found: Found::default() }
    }

    pub(crate) fn directory(&self) -> &'a Path {
        self.directory
    }

    pub(crate) fn finish(self) -> Found {
        self.found
    }

    fn digitalocean(&mut self, node: &Node<'_>) -> Option<DigitalOceanSettings> {
        let section = node.section("a table with token_file")?;
        let token = section.require("token_file", TOKEN_FILE).map(|node| self.secret(&node));
        let endpoint = section.get("endpoint").map(|node| https_url(&node, UrlPath::Forbidden, ENDPOINT));
        let ca = section.get("ca").map(|node| self.ca(&node));
        let refresh = section.get("refresh").map(|node| sources::refresh_time(&node));
        let addresses = section.get("addresses").map(|node| node.choice(&ADDRESSES));
        section.finish();
        Some(DigitalOceanSettings {
            token: token??,
            endpoint: endpoint.unwrap_or_else(|| Some(DEFAULT_ENDPOINT.to_owned()))?,
            ca: transposed(ca)?,
            refresh_ms: u64::try_from(refresh.unwrap_or(Some(REFRESH))?.as_millis()).unwrap_or(u64::MAX),
            addresses: addresses.unwrap_or_else(|| Some(AddressChoice::default()))?,
        })
    }

    fn kubernetes(&mut self, node: &Node<'_>) -> Option<KubernetesSettings> {
        let section = node.section("a table, which is empty inside a cluster")?;
        let connection = self.connection(node, &section);
        section.finish();
        connection
    }

    /// Reads the keys that say how a Kubernetes API is reached.
    pub(crate) fn connection(&mut self, node: &Node<'_>, section: &Section<'_>) -> Option<KubernetesSettings> {
        let kubeconfig = section.get("kubeconfig");
        let server = section.get("server");
        let (ca, token) = (section.get("ca"), section.get("token_file"));
        match (kubeconfig, server) {
            (Some(node), None) => {
                let further = [&ca, &token].into_iter().flatten().next();
                if let Some(further) = further {
                    further.problem("applies to server only, and the kubeconfig has its own; remove it");
                    return None;
                }
                self.kubeconfig(&node)
            }
            (None, Some(node)) => {
                let server = https_url(&node, UrlPath::Allowed, SERVER);
                let (ca, token) = (ca.map(|node| self.ca(&node)), token.map(|node| self.secret(&node)));
                Some(KubernetesSettings::Server { server: server?, ca: transposed(ca)?, token: transposed(token)? })
            }
            (Some(_), Some(server)) => {
                server.problem("is set beside kubeconfig, which names a server; remove one of them");
                None
            }
            (None, None) => {
                let further = [ca, token].into_iter().flatten().next();
                match further {
                    Some(further) => {
                        further.problem("applies to server only; add server = \"https://host:6443\", or remove it");
                        None
                    }
                    None => self.in_cluster(node),
                }
            }
        }
    }

    fn kubeconfig(&mut self, node: &Node<'_>) -> Option<KubernetesSettings> {
        let file = node.path(self.directory)?;
        self.inspect(node, &Location::File(file.clone()))?;
        Some(KubernetesSettings::Kubeconfig { file: absolute(&file) })
    }

    fn in_cluster(&mut self, node: &Node<'_>) -> Option<KubernetesSettings> {
        if std::env::var_os(SERVICE_HOST).is_none_or(|host| host.is_empty()) {
            node.problem(format_args!(
                "names no API server, and ${SERVICE_HOST} is not set, so this is not a pod of a cluster; add kubeconfig = \
                 \"FILE\", or server, ca and token_file"
            ));
            return None;
        }
        let token = Path::new(SERVICE_ACCOUNT_TOKEN);
        if let Err(why) = self.files.inspect(&Location::from(token)) {
            node.problem(format_args!(
                "names no API server, and the token of the service account, {SERVICE_ACCOUNT_TOKEN}, {why}; set \
                 automountServiceAccountToken: true in the pod, or add kubeconfig = \"FILE\""
            ));
            return None;
        }
        Some(KubernetesSettings::InCluster)
    }

    pub(crate) fn secret(&mut self, node: &Node<'_>) -> Option<Secret> {
        let location = node.location(self.directory)?;
        self.inspect(node, &location)?;
        Some(match location {
            Location::File(path) => Secret::File(absolute(&path)),
            Location::Variable(name) => Secret::Environment(name),
        })
    }

    /// A secret that must be a file.
    pub(crate) fn file(&mut self, node: &Node<'_>) -> Option<PathBuf> {
        let path = node.path(self.directory)?;
        self.inspect(node, &Location::File(path.clone()))?;
        Some(absolute(&path))
    }

    /// Checks that the agent can read a secret, without reading it.
    fn inspect(&mut self, node: &Node<'_>, location: &Location) -> Option<()> {
        if let Err(why) = self.files.inspect(location) {
            let named =
                SourcedPem { location: location.clone(), position: node.position(), key: node.key().to_owned() };
            node.problem(named.unreadable(&why).message);
            return None;
        }
        if let Location::File(path) = location {
            self.found.secrets.push(path.clone());
        }
        Some(())
    }

    pub(crate) fn ca(&mut self, node: &Node<'_>) -> Option<PathBuf> {
        let file = node.named_file(self.directory)?;
        let path = absolute(&file.path);
        self.found.ca.push(file);
        Some(path)
    }
}

/// `Some(None)` if the key is not set, `None` if it is not valid.
pub(crate) fn transposed<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    value.map_or(Some(None), |value| value.map(Some))
}

/// The agent need not have the same working directory.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// An `https` URL without user information, query and fragment. Returned without a slash at its end.
fn https_url(node: &Node<'_>, path: UrlPath, expected: &str) -> Option<String> {
    let parsed = parse_url(node.text(expected)?, &["https"], path);
    if parsed.is_none() {
        node.expected(expected);
    }
    parsed
}

const DEFAULT_ENDPOINT: &str = "https://api.digitalocean.com";

/// A droplet that is destroyed loses its access after two polls.
const REFRESH: Duration = Duration::from_secs(60);

const ADDRESSES: [(&str, AddressChoice); 3] =
    [("all", AddressChoice::All), ("public", AddressChoice::Public), ("private", AddressChoice::Private)];

const TOKEN_FILE: &str = "a file with the token, or \"env:NAME\" or \"credential:NAME\"";
const ENDPOINT: &str = "an https URL without path such as \"https://api.digitalocean.com\"";
const SERVER: &str = "an https URL such as \"https://10.0.0.1:6443\"";

const SERVICE_HOST: &str = "KUBERNETES_SERVICE_HOST";
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::document::Document;

    #[test]
    fn section_without_its_cargo_feature_is_a_problem() {
        let document = Document::new(Path::new("x.toml"), "[resolver]\ndigitalocean = {}\n");
        let tree = document.parse().unwrap();
        let node = document.root(tree.get_ref()).section("resolver").unwrap().get("digitalocean").unwrap();
        assert!(require_feature(&node, "digitalocean", true));
        assert!(!require_feature(&node, "digitalocean", false));
        let problems: Vec<_> = document.into_problems().iter().map(ToString::to_string).collect();
        let expected = "x.toml:2:16: resolver.digitalocean: this program was built without the cargo feature \"digitalocean\"; \
                        build it with --features digitalocean";
        assert_eq!(problems, [expected]);
    }

    #[test]
    fn url_is_https_without_user_query_and_fragment() {
        let endpoint = |text: &str| parse_url(text, &["https"], UrlPath::Forbidden);
        for text in ["https://api.digitalocean.com", "https://127.0.0.1:8443", "https://[::1]:8443"] {
            assert_eq!(endpoint(text).as_deref(), Some(text));
            assert_eq!(endpoint(&format!("{text}/")).as_deref(), Some(text));
        }
        for text in [
            "",
            "api.digitalocean.com",
            "http://api.digitalocean.com",
            "http://127.0.0.1:8443",
            "http://localhost",
            "https://",
            "https://user@host",
            "https://user:secret@host",
            "https://host?x=1",
            "https://host/#x",
            "https://host/v2",
            "https://host:0",
            "https://host:99999",
            "https://host:",
            "https://a b",
            "unix:/run/x",
        ] {
            assert_eq!(endpoint(text), None, "{text}");
        }
        let server = |text: &str| parse_url(text, &["https"], UrlPath::Allowed);
        assert_eq!(server("https://host/k8s/clusters/c-1/").as_deref(), Some("https://host/k8s/clusters/c-1"));
        assert_eq!(server("https://host/k8s?x"), None);
    }
}
