//! The command line: arguments in, an exit code out.

pub(crate) mod certs;
pub(crate) mod check;
pub(crate) mod client;
pub(crate) mod difference;
pub(crate) mod explain;
pub(crate) mod man;
pub(crate) mod output;
pub(crate) mod preflight;
pub(crate) mod reachability;
pub(crate) mod run;

use crate::cli::certs::inspect;
use crate::cli::certs::renew;
use crate::cli::client::reload;
use crate::cli::client::sessions;
use crate::cli::client::status;
use std::io::{self, Write as _};
use std::net::{AddrParseError, IpAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::Value;

use crate::addr::ClientAddr;
use crate::cli::explain::ExplainArgs;
use crate::config::files::Fingerprint;
use crate::config::problem::Problems;
use crate::dns::HostCache;
use crate::policy::Built;
use crate::printable;

/// TLS-terminating proxy for Redis and PostgreSQL that enforces trusted sources.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, long_about = LONG_ABOUT, after_long_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the listeners of the configuration
    Run(ConfigFile),
    /// Check everything a start would need, and print what would be enforced; binds nothing
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
        /// Exit with 1 where there is a warning
        #[arg(long)]
        strict: bool,
        /// Leave out what touches the network: resolve no name, connect to no upstream, and do not ask whether addresses and
        /// ports of listeners can be had on this machine
        #[arg(long)]
        offline: bool,
        /// Ask the running program, too, what would change if this were its configuration
        #[arg(long)]
        diff: bool,
        /// Where the running program is asked, instead of where the configuration says
        #[arg(long, value_name = "PATH", requires = "diff")]
        socket: Option<PathBuf>,
    },
    /// Say step by step whether a connection would be admitted, and by which rule; asks the running program where there is one
    Explain(ExplainArgs),
    /// Tell how the running program is, what it serves, and what became of the last reload
    Status {
        #[command(flatten)]
        running: Running,
        /// Tell which certificates and sources are in use, by whom, and which could go
        #[arg(long)]
        rotation: bool,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Have the running program read everything anew, and wait for the verdict
    Reload {
        #[command(flatten)]
        running: Running,
        /// Only tell what would change, and which sessions would end
        #[arg(long)]
        plan: bool,
        /// Print JSON instead of words
        #[arg(long)]
        json: bool,
    },
    /// Look at the sessions of the running program, and end them
    #[command(subcommand)]
    Sessions(SessionsCommand),
    /// Make, issue and look at certificates
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the man page
    Man,
}

#[derive(Debug, Subcommand)]
enum SessionsCommand {
    /// List the open sessions
    List {
        #[command(flatten)]
        running: Running,
        /// Those of this listener only
        #[arg(value_name = "LISTENER")]
        listener: Option<String>,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// End sessions; their clients may come back
    Close {
        #[command(flatten)]
        running: Running,
        /// Their numbers, as `sessions list` and the audit have them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<u64>,
    },
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Make a development CA, a server and a client certificate
    Init {
        /// Where to put ca.crt, ca.key, server.crt, server.key, client.crt, client.key
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// A further host name or IP address of the server; may be repeated
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,
    },
    /// Issue a client or server certificate
    Issue(Box<IssueArgs>),
    /// Issue the certificate of a server or client once more, with a new key
    #[command(long_about = RENEW)]
    Renew(RenewArgs),
    /// List every certificate of PEM files
    Inspect {
        /// The files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// What `certs issue` is asked for.
#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// The certificate of the issuing CA
    #[arg(long, value_name = "CRT")]
    ca: PathBuf,
    /// Its private key
    #[arg(long, value_name = "KEY")]
    ca_key: PathBuf,
    /// The common name, and the name of the files
    #[arg(long, value_name = "CN")]
    name: String,
    /// Issue a server certificate; --name is a host name or IP address, and is among the names of the certificate
    #[arg(long, conflicts_with_all = ["email", "bundle"])]
    server: bool,
    /// A DNS name of the client or server; may be repeated
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// An IP address of the server; may be repeated
    #[arg(long, value_name = "IP", requires = "server")]
    ip: Vec<IpAddr>,
    /// A URI of the client or server, such as spiffe://prod/app; may be repeated
    #[arg(long, value_name = "URI")]
    uri: Vec<String>,
    /// An e-mail address of the client; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    email: Vec<String>,
    /// How long it is valid
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Write CN.zip too, for whoever runs the client: redis_user.crt, redis_user_private.key and redis_ca.pem, or
    /// postgres_… for PostgreSQL. The CA in it is that of --server-ca or of --listener, and otherwise the issuing CA
    #[arg(long)]
    bundle: bool,
    /// What the client verifies the server with, for the bundle: every certificate of this file
    #[arg(long, value_name = "FILE", requires = "bundle", conflicts_with = "listener")]
    server_ca: Option<PathBuf>,
    /// The listener that the client connects to: the bundle has the CA of its certificate, and names for its protocol
    #[arg(long, value_name = "NAME", requires = "bundle")]
    listener: Option<String>,
    /// The protocol that the files of the bundle are named after; default: redis, or that of --listener
    #[arg(long, value_name = "PROTOCOL", requires = "bundle", conflicts_with = "listener",
          value_parser = PossibleValuesParser::new(["redis", "postgres"]))]
    protocol: Option<String>,
    #[command(flatten)]
    config: ConfigFile,
    /// Where to put CN.crt and CN.key
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// What `certs renew` is asked for.
#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    /// The certificate to renew; what stands behind it in its file is kept if it leads to the CA
    #[arg(value_name = "CERT")]
    certificate: PathBuf,
    /// The certificate of the issuing CA
    #[arg(long, value_name = "CRT")]
    ca: PathBuf,
    /// Its private key
    #[arg(long, value_name = "KEY")]
    ca_key: PathBuf,
    /// How long it is valid; otherwise as long as the old one was
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: Option<u32>,
    /// Where to put NAME.crt and NAME.key, NAME being that of CERT
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration
    #[arg(short, long, value_name = "FILE", env = "PORTCULLIS_CONFIG", hide_env_values = true, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

/// Where the running program is reached.
#[derive(Debug, Args)]
pub(crate) struct Running {
    #[command(flatten)]
    config: ConfigFile,
    /// The program's admin socket, instead of the one that the configuration names
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// How a command ended, where it did not simply succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The configuration is invalid or missing.
    Configuration(Problems),
    /// Something failed while running.
    Failed(String),
    /// `explain` found that the connection would be refused; it has said so.
    Refused,
    /// The arguments do not fit.
    Usage(String),
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Run(ConfigFile { config }) => run::run(&config),
            Command::Check { config, json, strict, offline, diff, socket } => {
                let manner = check::Manner { as_json: json, strict, offline };
                if diff {
                    check::check_against(&config.config, socket.as_deref(), manner)
                } else {
                    check::check(&config.config, manner)
                }
            }
            Command::Explain(args) => explain::explain(&args),
            Command::Status { running, rotation, json } => status::status(&running, rotation, json),
            Command::Reload { running, plan: false, json } => reload::reload(&running, json),
            Command::Reload { running, plan: true, json } => reload::plan(&running, json),
            Command::Sessions(SessionsCommand::List { running, listener, json }) => {
                sessions::list(&running, listener.as_deref(), json)
            }
            Command::Sessions(SessionsCommand::Close { running, ids }) => sessions::close(&running, &ids),
            Command::Certs(CertsCommand::Init { directory, hosts }) => certs::init(&directory, &hosts),
            Command::Certs(CertsCommand::Issue(args)) => certs::issue(&args),
            Command::Certs(CertsCommand::Renew(args)) => renew::renew(&args),
            Command::Certs(CertsCommand::Inspect { files }) => inspect::inspect(&files),
            Command::Completions { shell } => completions(shell),
            Command::Man => man::man(&Self::command()),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        }
    }
}

fn source(text: &str) -> Result<ClientAddr, AddrParseError> {
    match text {
        "unix" => Ok(ClientAddr::UNIX),
        _ => text.parse().map(ClientAddr::from_ip),
    }
}

impl Failure {
    /// Tells the operator on standard error, and the caller by the exit code.
    fn report(self) -> ExitCode {
        let (code, words) = match self {
            Self::Configuration(problems) => {
                let count = match problems.count() {
                    1 => "1 problem".to_owned(),
                    count => format!("{count} problems"),
                };
                (78, Some(format!("{problems}\nportcullis: the configuration is not valid: {count}")))
            }
            Self::Failed(words) => (1, Some(format!("portcullis: {words}"))),
            Self::Refused => (3, None),
            Self::Usage(words) => (2, Some(format!("portcullis: {words}"))),
        };
        if let Some(words) = words {
            let _ = writeln!(io::stderr(), "{}", printable::lines(&words));
        }
        ExitCode::from(code)
    }

    fn file(path: &Path, why: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{}: {why}", path.display()))
    }
}

/// Reads the configuration as a start would.
fn load(file: &Path, names: &HostCache) -> Result<(Built, Fingerprint), Failure> {
    let (built, fingerprint) = crate::server::reload::build(file, None, names);
    match built {
        Ok(built) => Ok((built, fingerprint)),
        Err(problems) => {
            if !file.exists() {
                hint(&no_configuration(file));
            }
            Err(Failure::Configuration(problems))
        }
    }
}

/// What to do where there is no configuration.
fn no_configuration(file: &Path) -> String {
    let example = format!("{}.example", file.display());
    let example = if Path::new(&example).exists() { &example } else { EXAMPLE };
    format!(
        "there is no configuration file {}; write one (cp {example} {}, and edit it), or name another with -c FILE or \
         $PORTCULLIS_CONFIG",
        file.display(),
        file.display()
    )
}

/// Something that may help, before the failure itself is reported.
fn hint(words: &str) {
    let _ = writeln!(io::stderr(), "portcullis: {}", printable::lines(words));
}

/// Writes to standard output. A reader that has gone away, as `head` does, is no failure.
/// Prints text. Everything in it is escaped but line feeds.
fn print(words: &str) -> Result<(), Failure> {
    print_raw(&printable::lines(words))
}

/// Prints JSON whose texts are escaped as [`print()`] does, so that `jq -r` shows the same.
fn print_json(value: &Value) -> Result<(), Failure> {
    print_raw(&format!("{:#}\n", shown(value)))
}

fn shown(value: &Value) -> Value {
    match value {
        Value::String(text) => printable::lines(text).into(),
        Value::Array(items) => items.iter().map(shown).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), shown(value))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Prints what the program has generated itself: a completion script, a man page.
fn print_raw(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("standard output cannot be written: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "portcullis", &mut script);
    print_raw(&String::from_utf8_lossy(&script))
}

const DEFAULT_CONFIG: &str = "/etc/portcullis/portcullis.toml";

/// What `make install` puts beside it.
const EXAMPLE: &str = "/etc/portcullis/portcullis.toml.example";

const LONG_ABOUT: &str = "\
TLS-terminating connection proxy for Redis and PostgreSQL that enforces trusted sources.

Nothing reaches the database unless it comes from a trusted source, over TLS, with a credential that is still good. \
Certificates, CA bundles, sources and listeners are reloaded when their files change, at SIGHUP or by `portcullis reload`, all or nothing.";

const RENEW: &str = "\
Issue the certificate of a server or client once more: the same subject, names, key usages and kind of key, a new key and a \
new validity. Nothing is overwritten: the new files go into another directory, and from there into the place of the old \
ones, which a running Portcullis notices.";

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   failed while running: a port is in use, no running program to talk to, a reload that was rejected, a warning of check --strict
  2   wrong usage, also a listener name that explain does not find
  3   explain: the connection would be refused
  78  the configuration is invalid or missing (EX_CONFIG)";
