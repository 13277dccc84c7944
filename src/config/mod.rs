//! The configuration: parses TOML into typed values, or reports all problems at once.
//!
//! [`document`] gives every value its position. The other modules turn the tree into a [`Config`], in which nothing is missing
//! and every value has its type. Certificate files are only named here; [`crate::policy`] reads them.

pub(crate) mod admin;
pub(crate) mod credentials;
pub(crate) mod document;
pub(crate) mod edit;
pub(crate) mod files;
pub(crate) mod fleet;
pub(crate) mod limits;
pub(crate) mod listen;
pub(crate) mod listener;
pub(crate) mod problem;
pub(crate) mod process;
pub(crate) mod resolver;
pub(crate) mod rule_cache;
pub(crate) mod rule_reader;
pub(crate) mod shown;
pub(crate) mod source_group;
pub(crate) mod sources;
pub(crate) mod systemd_credential;
pub(crate) mod tls;
pub(crate) mod upstream;
pub(crate) mod url;
pub(crate) mod values;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::admin::Admin;
use crate::config::credentials::CredentialSettings;
use crate::config::files::{Files, Location};
use crate::config::fleet::Fleet;
use crate::config::problem::{Position, Problem, Problems};
use crate::config::resolver::Resolvers;
use crate::protocol::proxy_header::write;

use crate::addr::{ListenAddr, UpstreamAddr};
use crate::config::listener::Listeners;
use crate::config::rule_reader::RuleReader;
use crate::config::source_group::SourceGroup;
use crate::identity::settings::ClientAuth;
use crate::identity::trusted_clients::TrustedClients;
use crate::limit::rate::Rate;
use crate::permissions;
use crate::protocol::{MinTlsVersion, Negotiation, Protocol, Target, Verification};
use crate::source::addresses::Resolvable;
use crate::source::group::RuleOwner;
use crate::source::proxies::TrustedProxies;
use crate::source::trusted::SourcePolicy;
use crate::transport::unix_socket::Access;
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub file: PathBuf,
    pub log: Log,
    /// `[state] directory`: where state is kept across restarts. The directory may be missing.
    pub state_directory: PathBuf,
    /// `[admin]`; `None` if the admin API is off.
    pub admin: Option<Admin>,
    pub reload: Reload,
    /// `[shutdown] drain`: how long open sessions may continue after SIGTERM.
    pub drain: Duration,
    /// `[resolver]`: how cloud sources are resolved.
    pub resolvers: Resolvers,
    /// `[fleet]`: the store that replicas share.
    pub fleet: Option<Fleet>,
    /// `[[source_group]]`
    pub source_groups: Vec<SourceGroup>,
    /// `[[listener]]`, at least one.
    pub listeners: Vec<Listener>,
    /// Positions of settings that can fail on this machine only: `admin.listen`, `log.audit_file`, and each address by its
    /// text.
    pub(crate) positions: BTreeMap<String, SourcedPath>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A valid tracing filter.
    pub level: String,
    pub format: LogFormat,
    /// A file that also receives audit events.
    pub audit_file: Option<PathBuf>,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One JSON object per line.
    Json,
    /// For humans.
    Text,
}

/// `[reload]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reload {
    /// Whether to react to file change events.
    pub watch: bool,
    /// Interval of the content comparison; `None` turns it off.
    pub poll: Option<Duration>,
    pub revoke: Revoke,
}

/// What happens to open sessions that the policy no longer admits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Revoke {
    /// Portcullis closes them.
    #[default]
    Disconnect,
    /// They continue until a peer closes them.
    Keep,
}

/// One `[[listener]]`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Unique among the listeners.
    pub name: String,
    /// The protocol inside TLS.
    pub protocol: Protocol,
    /// At least one address.
    pub listen: Vec<ListenAddr>,
    /// Owner and permissions of the Unix sockets in `listen`.
    pub socket_files: BTreeMap<PathBuf, Access>,
    pub sources: SourcePolicy,
    /// A file of further rules. With `sources_store`, the last good copy of the rules in the store.
    pub sources_file: Option<PathBuf>,
    /// `sources_store`: the further rules are in the store of the fleet.
    pub fleet_rules: Option<FleetRules>,
    /// The certificates that clients should trust, for download.
    pub ca_bundle: Option<SourcedFile>,
    /// `[listener.proxy_protocol]`: the load balancers whose PROXY headers are accepted.
    pub proxies: TrustedProxies,
    pub shield: Shield,
    /// `[listener.tls]`; `None` if TLS is off.
    pub tls: Option<Tls>,
    pub upstream: Upstream,
    /// `[listener.credentials]`; `None` if clients authenticate to the database themselves.
    pub credentials: Option<CredentialSettings>,
    pub limits: Limits,
    /// The listener's own `revoke`, or that of `[reload]`.
    pub revoke: Revoke,
    /// `[listener.postgres] plaintext_cancel`: whether a CancelRequest is accepted without TLS.
    pub plaintext_cancel: bool,
}

/// The rules of a listener in the store of the fleet, as this configuration has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetRules {
    /// The digest of the last good copy, in hexadecimal digits; `None` if there is no copy yet.
    pub(crate) copy: Option<String>,
}

/// Where the session ticket keys that replicas share are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SharedTicketKeys {
    /// In a file.
    File(SourcedFile),
    /// In the store of the fleet.
    Fleet,
}

/// `[listener.tls]`
#[derive(Clone, Debug)]
pub struct Tls {
    /// At least one.
    pub certificates: Vec<CertificateFiles>,
    pub min_version: MinTlsVersion,
    /// Whether clients must present a certificate.
    pub client_auth: ClientAuth,
    /// Bundles of trust anchors for client certificates.
    pub client_ca: Vec<SourcedFile>,
    /// Certificate revocation lists.
    pub client_crl: Vec<SourcedFile>,
    /// What a CRL past its nextUpdate means.
    pub crl_expired: CrlExpired,
    /// Whether the validity dates of the certificates in `client_ca` are enforced.
    pub anchor_validity: AnchorValidity,
    /// Files, patterns and directories of pinned client certificates, which need no CA. With `client_auth` other than none,
    /// this or `client_ca` is set.
    pub client_certificates: Vec<SourcedFile>,
    /// Which clients with a valid certificate are admitted.
    pub trusted_clients: TrustedClients,
    /// The CA with which the admin API issues client certificates.
    pub issuing_ca: Option<CertificateFiles>,
    /// Session ticket keys that several replicas share.
    pub ticket_keys: Option<SharedTicketKeys>,
}

/// One entry of `certificates`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub cert: SourcedPem,
    /// The private key of the leaf.
    pub key: SourcedPem,
    /// Its first line is the passphrase of the key.
    pub key_passphrase_file: Option<SourcedFile>,
}

/// A configuration key and its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcedPath {
    pub position: Position,
    pub key: String,
}

impl SourcedPath {
    /// Returns a problem with the value of the key.
    pub fn problem(&self, why: impl std::fmt::Display) -> Problem {
        Problem { position: self.position.clone(), key: self.key.clone(), message: why.to_string() }
    }
}

/// The location of a PEM text (a file or an environment variable), with the key and position that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcedPem {
    pub location: Location,
    pub position: Position,
    pub key: String,
}

impl SourcedPem {
    /// Returns a problem with this text.
    pub fn problem(&self, why: impl std::fmt::Display) -> Problem {
        let message = format!("{} {why}", shown::location(&self.key, &self.location));
        Problem { position: self.position.clone(), key: self.key.clone(), message }
    }

    /// Returns the problem that the text cannot be read, with the command that grants access if there is one.
    pub fn unreadable(&self, why: &str) -> Problem {
        self.problem(with_fix(why, &self.key, &self.location))
    }

    fn unreadable_by(&self, files: &mut Files) -> Option<Problem> {
        files.read(&self.location).err().map(|why| self.unreadable(&why))
    }
}

/// A location that the configuration names, and what its path may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedLocation {
    pub(crate) source: SourcedPem,
    pub(crate) form: PathForm,
}

/// What a path in the configuration may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathForm {
    /// A file, or a pattern of files.
    Files,
    /// The same, or a directory of files.
    FilesOrDirectory,
}

impl NamedLocation {
    /// Returns a problem for each file that cannot be read, or for a pattern that matches no file.
    fn unreadable_files(&self, files: &mut Files) -> Vec<Problem> {
        let Self { source, form } = self;
        let paths = match (&source.location, form) {
            (Location::Variable(_), _) => return source.unreadable_by(files).into_iter().collect(),
            (Location::File(path), PathForm::Files) => files.matching(path),
            (Location::File(path), PathForm::FilesOrDirectory) => files.named(path).map(|(_, paths)| paths),
        };
        let paths = match paths {
            Ok(paths) => paths,
            Err(why) => return vec![source.problem(why)],
        };
        let one = |path| SourcedPem { location: Location::File(path), ..source.clone() };
        paths.into_iter().map(one).filter_map(|one| one.unreadable_by(files)).collect()
    }
}

/// A file, with the key and position that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcedFile {
    pub path: PathBuf,
    pub position: Position,
    pub key: String,
}

impl SourcedFile {
    /// Returns a problem with this file.
    pub fn problem(&self, why: impl std::fmt::Display) -> Problem {
        let message = format!("{} {why}", shown::file(&self.key, &self.path));
        Problem { position: self.position.clone(), key: self.key.clone(), message }
    }

    /// Returns the problem that the file cannot be read, with the command that grants access if there is one.
    pub fn unreadable(&self, why: &str) -> Problem {
        self.problem(with_fix(why, &self.key, &Location::from(&self.path)))
    }
}

/// Adds to a read error what to do about it, if that is known.
fn with_fix(why: &str, key: &str, location: &Location) -> String {
    let Location::File(path) = location else { return why.to_owned() };
    let is_clients_file = key.ends_with("clients_file");
    match permissions::fix_for_reading(path, shown::is_secret(key) || is_clients_file) {
        Some(fix) => format!("{why}; run: {fix}"),
        None if !path.exists() && key.ends_with("sources_file") => {
            format!("{why}; create it with \"rule = []\", or fix the path")
        }
        None if !path.exists() && is_clients_file => {
            format!("{why}; create it with portcullis password add USER -f FILE, or fix the path")
        }
        None if !path.exists() => format!("{why}; create it, or fix the path"),
        None => why.to_owned(),
    }
}

/// `[listener.upstream]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// At least one address, tried in this order.
    pub addresses: Vec<UpstreamAddr>,
    /// Timeout for each address. Includes name resolution, TCP, SSLRequest and TLS.
    pub connect_timeout: Duration,
    /// How long a client waits while the upstream refuses connections and Portcullis redials it. Zero disables redialling.
    pub dial_retry: Duration,
    /// `None` for plaintext.
    pub tls: Option<UpstreamTls>,
    /// The version of the PROXY header sent to the upstream; `None` sends none.
    pub proxy_header: Option<write::Version>,
    /// Which role an address must have.
    pub target: Target,
}

/// `tls` of `[listener.upstream]` and the related keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The position of `tls`.
    pub position: SourcedPath,
    /// How the upstream is authenticated.
    pub verification: Verification,
    /// Bundles of trust anchors; empty means the system roots.
    pub ca: Vec<SourcedFile>,
    /// Whether the validity dates of the trust anchors are enforced.
    pub anchor_validity: AnchorValidity,
    /// The client certificate presented to the upstream.
    pub identity: Option<CertificateFiles>,
    /// The expected name; `None` means the host of the address.
    pub server_name: Option<String>,
    /// How TLS starts; PostgreSQL only.
    pub negotiation: Negotiation,
}

/// Whether the kernel drops packets from untrusted sources before a connection is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shield {
    #[default]
    Off,
    /// During a flood from untrusted sources.
    Auto,
    On,
}

/// As written in the configuration.
impl std::fmt::Display for Shield {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::On => "on",
        })
    }
}

/// `[listener.limits]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of concurrent sessions.
    pub max_connections: Option<NonZeroU32>,
    /// Maximum number of concurrent sessions from one source: an IPv4 address, or the /64 of an IPv6 address.
    pub max_connections_per_source: Option<NonZeroU32>,
    /// Maximum number of concurrent connections whose clients are not authorized yet; `None` for the built-in limit.
    pub max_handshakes: Option<NonZeroU32>,
    /// Maximum rate of new connections from one source.
    pub connection_rate_per_source: Option<Rate>,
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// Maximum time without a byte in either direction; `None` for no limit.
    pub idle_timeout: Option<Duration>,
    /// Maximum time without a byte after one side has ended its stream.
    pub half_close_timeout: Duration,
    /// How long a peer may leave sent data or keepalive probes unacknowledged. Does not apply to a peer that acknowledges
    /// data and does not read it.
    pub dead_peer_timeout: Duration,
}

/// A configuration as far as it is valid, and its problems.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Contains every valid listener.
    pub config: Config,
    /// If there are any, `config` must not be put in force. It is returned nevertheless, so that the files it names can be
    /// checked and all problems reported at once.
    pub problems: Vec<Problem>,
    /// Every file and environment variable that the configuration names, including those of invalid listeners.
    pub named: Vec<NamedLocation>,
}

impl Loaded {
    /// Returns a problem for each named file or variable that cannot be read.
    pub fn unreadable(&self, files: &mut Files) -> Vec<Problem> {
        self.named.iter().flat_map(|named| named.unreadable_files(files)).collect()
    }
}

impl Config {
    /// Reads the configuration and the source files it names.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML. All other problems are in [`Loaded::problems`].
    pub fn load(file: &Path, files: &mut Files) -> Result<Loaded, Problems> {
        let bytes = read(file, files)?;
        let document = document::Document::new(file, text(file, &bytes)?);
        let tree = document.parse()?;
        let root = document.root(tree.get_ref());
        let directory = directory_of(file);
        let log = process::log(&root, directory);
        let state_directory = process::state(&root, directory);
        let mut admin = admin::admin(&root, directory);
        let tokens_problems = admin.as_mut().map(|admin| admin.read_tokens_file(&root, files)).unwrap_or_default();
        let reload = process::reload(&root);
        let drain = process::drain(&root);
        let machine_settings = [
            ("admin", "listen", "admin.listen"),
            ("admin", "metrics", "admin.metrics"),
            ("log", "audit_file", "log.audit_file"),
        ];
        let machine_settings = machine_settings
            .into_iter()
            .filter_map(|(table, key, name)| Some((name.to_owned(), root.position_of(table, key)?)));
        let mut positions: BTreeMap<_, _> = machine_settings.collect();
        let taken = admin.as_ref().map(|admin| admin.addresses().collect()).unwrap_or_default();
        let (resolvers, written) = resolver::resolvers(&root, directory, files);
        let fleet = fleet::fleet(&root, directory, &state_directory, files, (&resolvers, written));
        let mut reader = RuleReader::new(directory, files, written);
        let source_groups = source_group::source_groups(&root, &mut reader);
        let names = source_groups.iter().map(|group| group.name.clone()).collect();
        let readers = Listeners::new(reader, names, taken, reload.revoke).with_fleet(&root, fleet.as_ref());
        let (listeners, mut file_problems) = readers.read(&root, &mut positions);
        root.add_misplaced_keys("write [listener.upstream], below its [[listener]]", &["upstream"]);
        root.add_misplaced_keys("write [listener.tls], below its [[listener]]", &["tls"]);
        root.add_misplaced_keys("write [listener.credentials], below its [[listener]]", &["credentials"]);
        root.add_misplaced_keys("write [listener.limits], below its [[listener]]", &["limits"]);
        root.add_misplaced_keys("write [listener.proxy_protocol], below its [[listener]]", &["proxy_protocol"]);
        root.add_misplaced_keys(
            "write it below a [[listener]] or a [[source_group]]",
            &["trusted_sources", "sources_file"],
        );
        root.add_misplaced_keys(
            "write it below a [[listener]]",
            &["name", "protocol", "listen", "sources_store", "ca_bundle", "shield"],
        );
        root.add_misplaced_keys("write [resolver.digitalocean]", &["digitalocean"]);
        root.add_misplaced_keys("write [resolver.kubernetes]", &["kubernetes"]);
        root.add_misplaced_keys("write [fleet.etcd]", &["etcd"]);
        root.add_misplaced_keys("write [[admin.token]]", &["token"]);
        root.add_misplaced_keys("write it in [admin]", &["metrics", "hosts", "tokens_file"]);
        root.finish();

        let named = document.take_named();
        let mut problems = document.into_problems();
        problems.append(&mut file_problems);
        problems.extend(tokens_problems);
        let file = file.to_owned();
        let config = Self {
            file,
            log,
            state_directory,
            admin,
            reload,
            drain,
            resolvers,
            fleet,
            source_groups,
            listeners,
            positions,
        };
        Ok(Loaded { config, problems, named })
    }

    /// The hosts and cloud sources in the rules of all listeners and groups.
    pub(crate) fn resolvables(&self) -> impl Iterator<Item = Resolvable> {
        let of_listeners = self.listeners.iter().flat_map(|listener| listener.sources.trusted.resolvables());
        let rules = self.source_groups.iter().flat_map(|group| &*group.rules);
        of_listeners.chain(rules.filter_map(|rule| rule.source.resolvable()))
    }

    /// The `sources_file` of a listener or a group; `None` if it has none, and for an unknown owner.
    pub(crate) fn sources_file(&self, owner: RuleOwner<'_>) -> Option<&Path> {
        match owner {
            RuleOwner::Listener(name) => {
                self.listeners.iter().find(|listener| listener.name == name)?.sources_file.as_deref()
            }
            RuleOwner::Group(name) => {
                let mut groups = self.source_groups.iter();
                groups.find(|group| group.name.as_str() == name)?.sources_file.as_deref()
            }
        }
    }

    /// Returns a problem with `admin.listen`, `log.audit_file` or an address of a listener.
    pub fn problem_at(&self, setting: &str, why: impl std::fmt::Display) -> Problem {
        match self.positions.get(setting) {
            Some(position) => position.problem(why),
            None => Problem { position: Position::file(&self.file), key: setting.to_owned(), message: why.to_string() },
        }
    }

    /// Reads `[admin]` only and ignores problems elsewhere, so that the commands work while the file is invalid.
    ///
    /// # Errors
    /// When the file cannot be read, `[admin]` is invalid, or the file is not TOML and contains no readable `[admin]`.
    pub fn admin_of(file: &Path) -> Result<Option<Admin>, Problems> {
        let bytes = read(file, &mut Files::default())?;
        let document = document::Document::new(file, text(file, &bytes)?);
        let (tree, errors) = document.parse_recovering();
        let admin = admin::admin(&document.root(tree.get_ref()), directory_of(file));
        match (admin, errors) {
            (None, Some(errors)) => Err(errors),
            (admin, Some(_)) => Ok(admin),
            (admin, None) => Problems::unless_any(document.into_problems(), admin),
        }
    }
}

fn read(file: &Path, files: &mut Files) -> Result<Arc<[u8]>, Problem> {
    files.read(file).map_err(|message| whole_file(file, with_fix(&message, "", &Location::from(file))))
}

fn text<'a>(file: &Path, bytes: &'a [u8]) -> Result<&'a str, Problem> {
    std::str::from_utf8(bytes).map_err(|error| whole_file(file, format!("is not UTF-8: {error}")))
}

fn whole_file(file: &Path, message: String) -> Problem {
    Problem { position: Position::file(file), key: String::new(), message }
}

/// Relative paths are relative to the file that names them.
fn directory_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}
