//! The configuration: TOML in, values that can be used as they are out, or every problem at once.
//!
//! It is parsed twice and then forgotten. [`document`](self) gives every value its place; the readers below turn the tree
//! into a [`Config`] in which nothing is missing and nothing is text that still has to be understood. Certificate files
//! are only named here; [`crate::policy`] opens them.

pub(crate) mod credential;
pub(crate) mod document;
pub(crate) mod files;
pub(crate) mod limits;
pub(crate) mod listen;
pub(crate) mod listener;
pub(crate) mod problem;
pub(crate) mod process;
pub(crate) mod shown;
pub(crate) mod sources;
pub(crate) mod tls;
pub(crate) mod upstream;
pub(crate) mod values;

use crate::protocol::proxy_header::write;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::files::{Files, Location};
use crate::config::problem::{Position, Problem, Problems};

use crate::addr::{ListenAddr, UpstreamAddr};
use crate::config::listener::Listeners;
use crate::identity::settings::ClientAuth;
use crate::identity::trusted_clients::TrustedClients;
use crate::limit::rate::Rate;
use crate::permissions;
use crate::protocol::{MinTlsVersion, Negotiation, Protocol, Target, Verification};
use crate::source::proxies::TrustedProxies;
use crate::source::trusted::SourcePolicy;
use crate::transport::unix_socket::Access;
use crate::x509::chain::settings::{AnchorValidity, CrlExpired};

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub file: PathBuf,
    /// `[log]`
    pub log: Log,
    /// `[state] directory`: where the program keeps what it has to know after a restart. It need not be there.
    pub state_directory: PathBuf,
    /// `[admin]`: where the commands reach the running program; `None` nowhere.
    pub admin: Option<Admin>,
    /// `[reload]`
    pub reload: Reload,
    /// `[shutdown] drain`: how long open sessions may go on after SIGTERM.
    pub drain: Duration,
    /// `[[listener]]`, at least one.
    pub listeners: Vec<Listener>,
    /// Where settings of this machine stand in the file: `admin.listen`, `log.audit_file`, and each address by its text.
    pub(crate) places: BTreeMap<String, SourcedPath>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A tracing filter that has been parsed once already.
    pub level: String,
    /// What a log line looks like.
    pub format: LogFormat,
    /// Where audit events also go.
    pub audit_file: Option<PathBuf>,
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One JSON object a line.
    Json,
    /// For reading.
    Text,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The Unix socket it listens at.
    pub socket: PathBuf,
}

/// `[reload]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reload {
    /// React to change events.
    pub watch: bool,
    /// Compare contents this often; `None` never.
    pub poll: Option<Duration>,
    /// What becomes of open sessions that the policy no longer lets in.
    pub revoke: Revoke,
}

/// What becomes of open sessions that the policy no longer lets in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Revoke {
    /// They are ended.
    #[default]
    Disconnect,
    /// They go on until they end by themselves.
    Keep,
}

/// One `[[listener]]`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Unique among the listeners.
    pub name: String,
    /// What clients speak inside TLS.
    pub protocol: Protocol,
    /// Where it listens; at least one address.
    pub listen: Vec<ListenAddr>,
    /// Who may open those of its addresses that are Unix sockets.
    pub socket_files: BTreeMap<PathBuf, Access>,
    /// Whose connections it takes.
    pub sources: SourcePolicy,
    /// Where further rules are read from.
    pub sources_file: Option<PathBuf>,
    /// `[listener.proxy_protocol] trusted`: whose word on where a client comes from it takes.
    pub proxies: TrustedProxies,
    /// Whether the kernel turns strangers away already.
    pub shield: Shield,
    /// `[listener.tls]`; `None` where it is off.
    pub tls: Option<Tls>,
    /// `[listener.upstream]`
    pub upstream: Upstream,
    /// `[listener.limits]`
    pub limits: Limits,
    /// What becomes of its open sessions that the policy no longer lets in: its own `revoke`, or that of `[reload]`.
    pub revoke: Revoke,
    /// `[listener.postgres] plaintext_cancel`: whether a CancelRequest may come without TLS.
    pub plaintext_cancel: bool,
}

/// `[listener.tls]`
#[derive(Clone, Debug)]
pub struct Tls {
    /// At least one.
    pub certificates: Vec<CertificateFiles>,
    /// The lowest version taken.
    pub min_version: MinTlsVersion,
    /// Whether clients must show a certificate.
    pub client_auth: ClientAuth,
    /// Bundles of trust anchors.
    pub client_ca: Vec<SourcedFile>,
    /// Revocation lists.
    pub client_crl: Vec<SourcedFile>,
    /// What a revocation list past its nextUpdate means.
    pub crl_expired: CrlExpired,
    /// What the dates of the certificates in `client_ca` mean.
    pub anchor_validity: AnchorValidity,
    /// Client certificates that need no CA. Where `client_auth` is not none, there is one of these or a trust anchor.
    pub client_certificates: Vec<SourcedFile>,
    /// Whom of the holders of a good certificate to let in.
    pub trusted_clients: TrustedClients,
    /// Keys of session tickets that several replicas share.
    pub ticket_keys: Option<SourcedFile>,
}

/// One entry of `certificates`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub cert: SourcedPem,
    /// The key of the leaf.
    pub key: SourcedPem,
    /// In its first line the passphrase of the key.
    pub key_passphrase_file: Option<SourcedFile>,
}

/// A key and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcedPath {
    /// Where.
    pub position: Position,
    /// The key.
    pub key: String,
}

impl SourcedPath {
    /// A problem with its value.
    pub fn problem(&self, why: impl std::fmt::Display) -> Problem {
        Problem { position: self.position.clone(), key: self.key.clone(), message: why.to_string() }
    }
}

/// A PEM text, which may stand in a file or in an environment variable, and the place that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcedPem {
    /// Where the text is.
    pub location: Location,
    /// Where the configuration names it.
    pub position: Position,
    /// Under which key.
    pub key: String,
}

impl SourcedPem {
    /// A problem with this text.
    pub fn problem(&self, why: impl std::fmt::Display) -> Problem {
        let message = format!("{} {why}", shown::location(&self.key, &self.location));
        Problem { position: self.position.clone(), key: self.key.clone(), message }
    }

    /// What is wrong with it, or with those of the files that its pattern describes that cannot be read.
    fn unreadable_files(&self, files: &mut Files) -> Vec<Problem> {
        let locations = match &self.location {
            Location::File(path) => files.matching(path).map(|paths| paths.into_iter().map(Location::File).collect()),
            Location::Variable(_) => Ok(vec![self.location.clone()]),
        };
        let locations = match locations {
            Ok(locations) => locations,
            Err(why) => return vec![self.problem(why)],
        };
        let one = |location| Self { location, ..self.clone() };
        let unreadable = |one: Self| files.read(&one.location).err().map(|why| one.unreadable(&why));
        locations.into_iter().map(one).filter_map(unreadable).collect()
    }

    /// The problem that the text cannot be read, with the command that lets this user read it where one does.
    pub fn unreadable(&self, why: &str) -> Problem {
        self.problem(with_fix(why, &self.key, &self.location))
    }
}

/// A file and the place that names it, so that what is wrong with the file can be reported there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcedFile {
    /// The file.
    pub path: PathBuf,
    /// Where the configuration names it.
    pub position: Position,
    /// Under which key.
    pub key: String,
}

impl SourcedFile {
    /// A problem with this file.
    pub fn problem(&self, why: impl std::fmt::Display) -> Problem {
        let message = format!("{} {why}", shown::file(&self.key, &self.path));
        Problem { position: self.position.clone(), key: self.key.clone(), message }
    }

    /// The problem that the file cannot be read, with the command that lets this user read it where one does.
    pub fn unreadable(&self, why: &str) -> Problem {
        self.problem(with_fix(why, &self.key, &Location::from(&self.path)))
    }
}

/// An error about reading what `key` names, with what mends it.
fn with_fix(why: &str, key: &str, location: &Location) -> String {
    let Location::File(path) = location else { return why.to_owned() };
    let fix = permissions::fix_for_reading(path, shown::is_secret(key));
    fix.map_or_else(|| why.to_owned(), |fix| format!("{why}; run: {fix}"))
}

/// `[listener.upstream]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where the database is: at least one address, tried in this order.
    pub addresses: Vec<UpstreamAddr>,
    /// How long each address may take: name resolution, TCP, SSLRequest and TLS together.
    pub connect_timeout: Duration,
    /// How long a client is held, and the upstream dialled again, while it refuses connections. Zero: not at all.
    pub dial_retry: Duration,
    /// `None` where it is spoken to in plaintext.
    pub tls: Option<UpstreamTls>,
    /// How it is told where a client comes from; `None` not at all.
    pub proxy_header: Option<write::Version>,
    /// Which of the addresses will do.
    pub target: Target,
}

/// `tls` of `[listener.upstream]` and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Where `tls` stands.
    pub position: SourcedPath,
    /// How far it has to show who it is.
    pub verification: Verification,
    /// Bundles of trust anchors; where there are none, those of the system.
    pub ca: Vec<SourcedFile>,
    /// What the dates of the trust anchors mean.
    pub anchor_validity: AnchorValidity,
    /// The certificate shown to it.
    pub identity: Option<CertificateFiles>,
    /// Its name, where that is not the host of its address.
    pub server_name: Option<String>,
    /// How TLS begins; of PostgreSQL only.
    pub negotiation: Negotiation,
}

/// Whether the kernel turns strangers away before they are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shield {
    /// Never.
    #[default]
    Off,
    /// While there is a flood of them.
    Auto,
    /// Always.
    On,
}

/// As the configuration has it.
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
    /// Sessions at once.
    pub max_connections: Option<NonZeroU32>,
    /// Sessions at once from one source: an IPv4 address, or the /64 of an IPv6 address.
    pub max_connections_per_source: Option<NonZeroU32>,
    /// Connections at once whose clients are not identified yet; `None` for the built-in limit.
    pub max_handshakes: Option<NonZeroU32>,
    /// How often one source may connect.
    pub connection_rate_per_source: Option<Rate>,
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// Longest silence both ways; `None` for ever.
    pub idle_timeout: Option<Duration>,
    /// Longest silence after one side has ended.
    pub half_close_timeout: Duration,
    /// How long a peer may leave sent data, or keepalive probes, unacknowledged. One that acknowledges and does not read
    /// is never ended by it.
    pub dead_peer_timeout: Duration,
}

/// What could be read of a configuration, and what could not.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Holds every listener that could be read whole.
    pub config: Config,
    /// What is wrong. Not to be used while there is anything; kept apart so that the files the rest names can be looked
    /// at too, and everything be told at once.
    pub problems: Vec<Problem>,
    /// Every file and environment variable that the configuration names, also where a listener could not be read whole.
    pub named: Vec<SourcedPem>,
}

impl Loaded {
    /// What is wrong with those that are missing or cannot be read.
    pub fn unreadable(&self, files: &mut Files) -> Vec<Problem> {
        self.named.iter().flat_map(|named| named.unreadable_files(files)).collect()
    }
}

impl Config {
    /// Reads the configuration and the source files it names.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML, so that there is nothing to go on with.
    pub fn load(file: &Path, files: &mut Files) -> Result<Loaded, Problems> {
        let bytes = read(file, files)?;
        let document = document::Document::new(file, text(file, &bytes)?);
        let tree = document.parse()?;
        let root = document.root(tree.get_ref());
        let directory = directory_of(file);
        let log = process::log(&root, directory);
        let state_directory = process::state(&root, directory);
        let admin = process::admin(&root, directory);
        let reload = process::reload(&root);
        let drain = process::drain(&root);
        let own = [("admin", "listen", "admin.listen"), ("log", "audit_file", "log.audit_file")];
        let own = own.into_iter().filter_map(|(table, key, name)| Some((name.to_owned(), root.place_of(table, key)?)));
        let mut places: BTreeMap<_, _> = own.collect();
        let admin_socket = admin.as_ref().map(|admin| admin.socket.as_path());
        let readers = Listeners::new(directory, files, admin_socket, reload.revoke);
        let (listeners, mut misplaced_keys) = readers.read(&root, &mut places);
        root.misplaced_keys("write [listener.upstream], below its [[listener]]", &["upstream"]);
        root.misplaced_keys("write [listener.tls], below its [[listener]]", &["tls"]);
        root.misplaced_keys("write [listener.limits], below its [[listener]]", &["limits"]);
        root.misplaced_keys("write [listener.proxy_protocol], below its [[listener]]", &["proxy_protocol"]);
        root.misplaced_keys(
            "write it below a [[listener]]",
            &["name", "protocol", "listen", "trusted_sources", "sources_file", "shield"],
        );
        root.finish();

        let named = document.take_named();
        let mut problems = document.into_problems();
        problems.append(&mut misplaced_keys);
        let config = Self { file: file.to_owned(), log, state_directory, admin, reload, drain, listeners, places };
        Ok(Loaded { config, problems, named })
    }

    /// A problem with `admin.listen`, `log.audit_file` or an address of a listener.
    pub fn problem_at(&self, setting: &str, why: impl std::fmt::Display) -> Problem {
        match self.places.get(setting) {
            Some(position) => position.problem(why),
            None => Problem { position: Position::file(&self.file), key: setting.to_owned(), message: why.to_string() },
        }
    }

    /// Reads `[admin]` alone, whatever is wrong beside it: a configuration that is not valid is when the running program is
    /// most asked about.
    ///
    /// # Errors
    /// When the file cannot be read, `[admin]` itself is wrong, or the file is not TOML and no `[admin]` is found in it.
    pub fn admin_of(file: &Path) -> Result<Option<Admin>, Problems> {
        let bytes = read(file, &mut Files::default())?;
        let document = document::Document::new(file, text(file, &bytes)?);
        let (tree, errors) = document.parse_around_errors();
        let admin = process::admin(&document.root(tree.get_ref()), directory_of(file));
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
