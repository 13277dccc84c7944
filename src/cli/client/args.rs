//! The arguments by which a command reaches the running program.

use std::path::PathBuf;

use clap::Args;

use crate::cli::ConfigFile;
use crate::cli::client::url::AdminUrl;

/// How to reach the running program: over its Unix socket, or with `--url` over TCP.
#[derive(Debug, Args)]
pub(crate) struct Running {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// Admin socket of the running program, instead of the one in the configuration
    #[arg(long, value_name = "PATH", conflicts_with = "url")]
    pub(crate) socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

/// `help_heading` is set for each option: `next_help_heading` would also apply to the options after these.
#[derive(Debug, Args)]
pub(crate) struct RemoteArgs {
    /// TCP address of the program's admin API, such as https://host:9642; requires a token in $PORTCULLIS_TOKEN or --token-file
    #[arg(long, help_heading = REMOTE, value_name = "URL")]
    pub(crate) url: Option<AdminUrl>,
    /// File whose first line is the token, instead of $PORTCULLIS_TOKEN
    #[arg(long, help_heading = REMOTE, value_name = "FILE", requires = "url")]
    pub(crate) token_file: Option<PathBuf>,
    /// CA certificates in PEM that the server is verified with, instead of the system's
    #[arg(long, help_heading = REMOTE, value_name = "FILE", requires = "url")]
    pub(crate) cacert: Option<PathBuf>,
    /// Client certificate in PEM, followed by its intermediates
    #[arg(long, help_heading = REMOTE, value_name = "FILE", requires_all = ["url", "key"])]
    pub(crate) cert: Option<PathBuf>,
    /// Private key of the client certificate in PEM
    #[arg(long, help_heading = REMOTE, value_name = "FILE", requires_all = ["url", "cert"])]
    pub(crate) key: Option<PathBuf>,
}

const REMOTE: &str = "Options for a program on another machine";
