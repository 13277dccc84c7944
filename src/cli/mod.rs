//! The command line: parses arguments, runs one command and returns its exit code.

pub(crate) mod certs;
pub(crate) mod check;
pub(crate) mod client;
pub(crate) mod credentials;
pub(crate) mod difference;
pub(crate) mod explain;
pub(crate) mod man;
pub(crate) mod output;
pub(crate) mod password;
pub(crate) mod preflight;
pub(crate) mod reachability;
pub(crate) mod resolvers;
pub(crate) mod run;
pub(crate) mod token;

use std::io::{self, Write as _};
use std::net::{AddrParseError, IpAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::Value;

use crate::addr::ClientAddr;
use crate::agent::process;
use crate::agent::process::ProcessError;
use crate::cli::certs::inspect;
use crate::cli::certs::renew;
use crate::cli::client::args::Running;
use crate::cli::client::certificates;
use crate::cli::client::denials;
use crate::cli::client::denials::DenialsArgs;
use crate::cli::client::events;
use crate::cli::client::events::EventsArgs;
use crate::cli::client::fleet;
use crate::cli::client::fleet::FleetCommand;
use crate::cli::client::issued;
use crate::cli::client::pins;
use crate::cli::client::reload;
use crate::cli::client::sessions;
use crate::cli::client::sessions::SessionsCommand;
use crate::cli::client::sources;
use crate::cli::client::sources::{Place, Plan, SourcesCommand};
use crate::cli::client::status;
use crate::cli::explain::ExplainArgs;
use crate::cli::password::PasswordCommand;
use crate::cli::token::TokenCommand;
use crate::config::files::Fingerprint;
use crate::config::problem::Problems;
use crate::config::values::{parse_duration, parse_positive_duration};
use crate::issuing::IssuingError;
use crate::policy::Built;
use crate::printable;
use crate::resolution::cache::ResolutionCache;

/// TLS-terminating proxy for Redis and PostgreSQL that enforces trusted sources.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, long_about = LONG_ABOUT, after_long_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy
    Run(ConfigFile),
    /// Validate the configuration and print the effective policy, without binding any address
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
        /// Exit with code 1 if there are warnings
        #[arg(long)]
        strict: bool,
        /// Skip checks that use the network: DNS lookups, connections to upstreams, and whether listen addresses can be bound
        #[arg(long)]
        offline: bool,
        /// Also show what would change if the running program loaded this configuration
        #[arg(long)]
        diff: bool,
        /// Admin socket of the running program, instead of the one in the configuration
        #[arg(long, value_name = "PATH", requires = "diff")]
        socket: Option<PathBuf>,
    },
    /// Explain step by step whether a connection would be admitted; asks the running program, if there is one
    Explain(ExplainArgs),
    /// Show the state of the running program, its listeners and its last reload
    Status {
        #[command(flatten)]
        running: Running,
        /// Show which certificates, CAs and sources are in use, by which clients, and which can be removed
        #[arg(long)]
        rotation: bool,
        /// With --rotation: the use at all members of the fleet; unknown where one does not answer
        #[arg(long, requires = "rotation")]
        fleet: bool,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Reload the configuration of the running program and wait for the result
    Reload {
        #[command(flatten)]
        running: Running,
        /// Show what would change and which sessions would be closed, without applying it
        #[arg(long)]
        plan: bool,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// List or change the trusted sources of a listener or a group of the running program
    #[command(subcommand)]
    Sources(SourcesCommand),
    /// Show which sources were denied, why, and the command that would admit each
    Denials(DenialsArgs),
    /// List or close sessions of the running program
    #[command(subcommand)]
    Sessions(SessionsCommand),
    /// Show the members of the fleet, accept its store, or forget a member
    #[command(subcommand)]
    Fleet(FleetCommand),
    /// Show the last 100 audit events of the running program, and follow new ones
    Events(EventsArgs),
    /// Create, list and revoke tokens for the admin API
    #[command(subcommand)]
    Token(TokenCommand),
    /// Add, list and remove the passwords of clients, in a clients_file
    #[command(subcommand)]
    Password(PasswordCommand),
    /// Create, issue, renew and inspect certificates; list those of the running program
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Print a shell completion script
    Completions {
        /// Shell to generate the script for
        shell: Shell,
    },
    /// Print the man page
    Man,
    /// Resolve the sources of clouds for `portcullis run`, which starts this command
    #[command(hide = true)]
    Agent,
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Create a development CA with a server and a client certificate
    Init {
        /// Output directory for ca.crt, ca.key, server.crt, server.key, client.crt and client.key
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Additional host name or IP address of the server; may be repeated
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,
    },
    /// Issue a client or server certificate with a CA on this machine, or a client certificate by the running program
    #[command(long_about = ISSUE)]
    Issue(Box<IssueArgs>),
    /// Admit a client certificate at a listener of the running program
    Pin {
        #[command(flatten)]
        place: Place,
        /// PEM file of the client certificate, which the chain of its issuers may follow; a key in it is never sent
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        plan: Plan,
    },
    /// No longer admit a client certificate at a listener of the running program; its sessions are closed
    Unpin {
        #[command(flatten)]
        place: Place,
        /// SHA-256 fingerprint of the certificate or its first digits, at least 8, or a PEM file with it
        #[arg(value_name = "SHA256|FILE")]
        certificate: PathBuf,
        #[command(flatten)]
        plan: Plan,
    },
    /// Renew a server or client certificate with a new key
    #[command(long_about = RENEW)]
    Renew(RenewArgs),
    /// Show every certificate in PEM files
    Inspect {
        /// PEM files to read
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// List all certificates of the running program with their expiry and use
    List {
        #[command(flatten)]
        running: Running,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// Certificate of the issuing CA; without it, the running program issues with the issuing_ca of --listener
    #[arg(long, value_name = "CRT", requires_all = ["ca_key", "out"])]
    ca: Option<PathBuf>,
    /// Private key of the issuing CA
    #[arg(long, value_name = "KEY", requires = "ca")]
    ca_key: Option<PathBuf>,
    /// Common name, also used as the file name
    #[arg(long, value_name = "CN")]
    name: String,
    /// Issue a server certificate; --name is a host name or IP address and becomes a subject alternative name
    #[arg(long, requires = "ca", conflicts_with_all = ["email", "bundle"])]
    server: bool,
    /// DNS name of the client or server; may be repeated
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// IP address of the server; may be repeated
    #[arg(long, value_name = "IP", requires = "server")]
    ip: Vec<IpAddr>,
    /// URI of the client or server, such as spiffe://prod/app; may be repeated
    #[arg(long, value_name = "URI", requires = "ca")]
    uri: Vec<String>,
    /// E-mail address of the client; may be repeated
    #[arg(long, value_name = "ADDRESS", requires = "ca")]
    email: Vec<String>,
    /// Validity in days [default: 90; by the running program, at most until its CA expires]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: Option<u32>,
    /// Also write CN.zip for the client: redis_user.crt, redis_user_private.key and redis_ca.pem, or postgres_… for
    /// PostgreSQL. It contains the CA of --server-ca or --listener, or else the issuing CA
    #[arg(long, requires = "ca")]
    bundle: bool,
    /// CA file for the bundle, with which the client verifies the server
    #[arg(long, value_name = "FILE", requires = "bundle", conflicts_with = "listener")]
    server_ca: Option<PathBuf>,
    /// Listener that the client connects to; sets the CA in the bundle and the protocol in its file names
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Protocol in the file names of the bundle; default: redis, or the protocol of --listener
    #[arg(long, value_name = "PROTOCOL", requires = "bundle", conflicts_with = "listener",
          value_parser = PossibleValuesParser::new(["redis", "postgres"]))]
    protocol: Option<String>,
    #[command(flatten)]
    running: Running,
    /// Output directory for CN.crt and CN.key, or for CN.zip of the running program [default there: .]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON instead of text; only without --ca
    #[arg(long, conflicts_with = "ca")]
    json: bool,
}

/// `certs issue` with a CA on this machine.
pub(crate) struct LocalIssue<'a> {
    ca: &'a Path,
    ca_key: &'a Path,
    out: &'a Path,
    args: &'a IssueArgs,
}

impl<'a> LocalIssue<'a> {
    /// `None` if the running program issues.
    fn from_args(args: &'a IssueArgs) -> Result<Option<Self>, Failure> {
        let IssueArgs { ca: Some(ca), ca_key: Some(ca_key), out: Some(out), listener, bundle, running, .. } = args
        else {
            return Ok(None);
        };
        if listener.is_some() && !bundle {
            return Err(Failure::Usage(
                "--listener with --ca sets the CA in the bundle; add --bundle, or leave out --ca to ask the running program"
                    .to_owned(),
            ));
        }
        if running.socket.is_some() || running.remote.url.is_some() {
            return Err(Failure::Usage(
                "--socket and --url ask the running program; leave out --ca to issue there".to_owned(),
            ));
        }
        Ok(Some(Self { ca, ca_key, out, args }))
    }
}

#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    /// Certificate to renew; intermediates in the same file are kept if the issuer stays the same
    #[arg(value_name = "CERT")]
    certificate: PathBuf,
    /// Certificate of the issuing CA
    #[arg(long, value_name = "CRT")]
    ca: PathBuf,
    /// Private key of the issuing CA
    #[arg(long, value_name = "KEY")]
    ca_key: PathBuf,
    /// Validity in days; default: the validity period of the old certificate
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: Option<u32>,
    /// Output directory for NAME.crt and NAME.key, where NAME is the file name of CERT without its extension
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", env = "PORTCULLIS_CONFIG", hide_env_values = true, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

/// Why a command does not exit with code 0.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The configuration is invalid or missing; exit code 78.
    Configuration(Problems),
    /// The command failed; exit code 1.
    Failed(String),
    /// `explain` reports that the connection would be refused; the reason is already printed.
    Refused,
    /// The arguments are wrong; exit code 2.
    Usage(String),
}

impl Cli {
    /// Runs the command and reports a failure on standard error.
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Run(ConfigFile { config }) => run::run(&config),
            Command::Check { config, json, strict, offline, diff, socket } => {
                let options = check::CheckOptions { as_json: json, strict, offline };
                if diff {
                    check::check_against(&config.config, socket.as_deref(), options)
                } else {
                    check::check(&config.config, options)
                }
            }
            Command::Explain(args) => explain::explain(&args),
            Command::Status { running, rotation, fleet, json } => {
                status::status(&running, status::Shown { rotation, fleet, json })
            }
            Command::Reload { running, plan: false, json } => reload::reload(&running, json),
            Command::Reload { running, plan: true, json } => reload::plan(&running, json),
            Command::Sources(command) => sources::run(&command),
            Command::Denials(args) => denials::denials(&args),
            Command::Sessions(command) => sessions::run(&command),
            Command::Fleet(command) => fleet::run(&command),
            Command::Events(args) => events::events(&args),
            Command::Token(command) => token::run(&command),
            Command::Password(command) => password::run(&command),
            Command::Certs(CertsCommand::Init { directory, hosts }) => certs::init(&directory, &hosts),
            Command::Certs(CertsCommand::Issue(args)) => issue(&args),
            Command::Certs(CertsCommand::Pin { place, file, plan }) => pins::pin(&place, &file, plan),
            Command::Certs(CertsCommand::Unpin { place, certificate, plan }) => pins::unpin(&place, &certificate, plan),
            Command::Certs(CertsCommand::Renew(args)) => renew::renew(&args),
            Command::Certs(CertsCommand::Inspect { files }) => inspect::inspect(&files),
            Command::Certs(CertsCommand::List { running, json }) => certificates::list(&running, json),
            Command::Completions { shell } => completions(shell),
            Command::Man => man::man(&Self::command()),
            Command::Agent => agent(),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        }
    }
}

fn issue(args: &IssueArgs) -> Result<(), Failure> {
    match LocalIssue::from_args(args)? {
        Some(local) => certs::issue(&local),
        None => issue_remotely(args),
    }
}

fn issue_remotely(args: &IssueArgs) -> Result<(), Failure> {
    let IssueArgs { name, dns, days, listener, running, out, json, .. } = args;
    let listener = listener.as_deref().ok_or_else(|| {
        Failure::Usage(
            "certs issue needs a CA: --listener NAME asks the running program for a certificate of its issuing_ca; --ca CRT, \
             --ca-key KEY and --out DIR sign here"
                .to_owned(),
        )
    })?;
    let request = issued::Request { listener, name, dns, days: *days };
    issued::issue(running, &request, out.as_deref().unwrap_or(Path::new(".")), *json)
}

fn parse_source(text: &str) -> Result<ClientAddr, AddrParseError> {
    match text {
        "unix" => Ok(ClientAddr::UNIX),
        _ => text.parse().map(ClientAddr::from_ip),
    }
}

/// Checks a duration that is sent to the program as text.
fn parse_duration_text(text: &str) -> Result<String, String> {
    parse_duration(text).map(|_| text.to_owned()).map_err(|error| format!("expected {error}"))
}

/// The same for a duration greater than zero.
fn parse_positive_duration_text(text: &str) -> Result<String, String> {
    parse_positive_duration(text).map(|_| text.to_owned()).map_err(|error| format!("expected {error}"))
}

impl Failure {
    /// Prints the failure to standard error and returns the exit code.
    fn report(self) -> ExitCode {
        let (code, text) = match self {
            Self::Configuration(problems) => {
                let count = match problems.count() {
                    1 => "1 problem".to_owned(),
                    count => format!("{count} problems"),
                };
                (78, Some(format!("{problems}\nportcullis: the configuration is not valid: {count}")))
            }
            Self::Failed(text) => (1, Some(format!("portcullis: {text}"))),
            Self::Refused => (3, None),
            Self::Usage(text) => (2, Some(format!("portcullis: {text}"))),
        };
        if let Some(text) = text {
            let _ = writeln!(io::stderr(), "{}", printable::lines(&text));
        }
        ExitCode::from(code)
    }

    fn file(path: &Path, why: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{}: {why}", path.display()))
    }
}

impl From<IssuingError> for Failure {
    fn from(error: IssuingError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Loads the configuration in the same way as `run`.
fn load(file: &Path, resolutions: &ResolutionCache) -> Result<(Built, Fingerprint), Failure> {
    let (built, fingerprint) = crate::server::reload::build(file, None, resolutions);
    match built {
        Ok(built) => Ok((built, fingerprint)),
        Err(problems) => {
            if !file.exists() {
                hint(&missing_configuration(file));
            }
            Err(Failure::Configuration(problems))
        }
    }
}

/// Explains how to create a configuration file.
fn missing_configuration(file: &Path) -> String {
    let example = format!("{}.example", file.display());
    let example = if Path::new(&example).exists() { &example } else { EXAMPLE };
    format!(
        "configuration file {} does not exist; create one (cp {example} {}, then edit it), or set another path with \
         -c FILE or $PORTCULLIS_CONFIG",
        file.display(),
        file.display()
    )
}

/// Prints advice to standard error, ahead of the failure itself.
fn hint(text: &str) {
    let _ = writeln!(io::stderr(), "portcullis: {}", printable::lines(text));
}

/// Prints text, with every control character except line feeds escaped.
fn print(text: &str) -> Result<(), Failure> {
    print_raw(&printable::lines(text))
}

/// Prints JSON with strings escaped as in [`print()`], so that the output of `jq -r` is safe for a terminal, too.
fn print_json(value: &Value) -> Result<(), Failure> {
    print_raw(&format!("{:#}\n", escaped(value)))
}

fn escaped(value: &Value) -> Value {
    match value {
        Value::String(text) => printable::lines(text).into(),
        Value::Array(items) => items.iter().map(escaped).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), escaped(value))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Writes to standard output without escaping. A closed pipe, as after `head`, is not a failure.
fn print_raw(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot write to standard output: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn agent() -> Result<(), Failure> {
    process::run().map_err(|error| match error {
        ProcessError::NotStarted => Failure::Usage(error.to_string()),
        ProcessError::Runtime(_) | ProcessError::Frame(_) => Failure::Failed(error.to_string()),
    })
}

fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "portcullis", &mut script);
    print_raw(&String::from_utf8_lossy(&script))
}

const DEFAULT_CONFIG: &str = "/etc/portcullis/portcullis.toml";

/// Installed by `make install`.
const EXAMPLE: &str = "/etc/portcullis/portcullis.toml.example";

const LONG_ABOUT: &str = "\
TLS-terminating connection proxy for Redis and PostgreSQL that enforces trusted sources.

A connection reaches the database only from a trusted source, over TLS, and with a valid client certificate where one is required. \
Certificates, CA bundles, sources and listeners are reloaded when their files change, on SIGHUP, or with `portcullis reload`. \
A reload applies completely or not at all.";

const ISSUE: &str = "\
Issue a client or server certificate. With --ca, this command reads the CA and its key from files of this machine and writes \
CN.crt and CN.key. Without it, the running program issues a client certificate with the issuing_ca of --listener, and the \
command writes CN.zip. No file is overwritten.";

const RENEW: &str = "\
Renew a server or client certificate. The subject, names, key usages and key type stay the same; the key and the validity \
period are new. No file is overwritten: move the new files over the old ones, and a running Portcullis reloads them.";

const EXIT_CODES: &str = "\
Exit codes:
  0   success
  1   failure: a port is in use, no program is running, a reload is rejected, or check --strict finds a warning
  2   wrong usage, including an unknown listener name
  3   explain: the connection would be refused
  78  invalid or missing configuration (EX_CONFIG)";
