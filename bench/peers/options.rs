//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::fault::Result;
use crate::targets::OTHERS;

/// Measures what Portcullis, its peers and a plain relay spend on the same work.
#[derive(Debug, Parser)]
#[command(name = "peers", disable_help_subcommand = true)]
pub(crate) struct Options {
    /// How often every target does every work
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: u32,

    /// How long one sample lasts
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    pub(crate) seconds: f64,

    /// Only these works: names of --list, or what they begin with
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub(crate) works: Vec<String>,

    /// Only these targets
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub(crate) targets: Vec<String>,

    /// Where the report, the chart and the raw samples go
    #[arg(long, default_value = "target/bench-report", value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Measure this Portcullis and not the one built for the occasion; several, under names of their own, side by side
    #[arg(long, value_name = "[NAME=]PATH")]
    pub(crate) binary: Vec<String>,

    /// One tiny round: does everything work? Fails where anything does
    #[arg(long)]
    pub(crate) smoke: bool,

    /// Show works and targets, and what is not installed
    #[arg(long)]
    pub(crate) list: bool,

    /// What cargo bench passes
    #[arg(long, hide = true)]
    pub(crate) bench: bool,

    #[command(subcommand)]
    pub(crate) part: Option<Part>,
}

/// What the benchmark starts itself as, in processes of their own.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// The plain relay
    #[command(hide = true)]
    Floor {
        /// PORT=UPSTREAM
        pairs: Vec<String>,
    },
    /// Clients that never rest
    #[command(hide = true)]
    Crowd {
        port: u16,
        /// Speak TLS, and trust this authority
        #[arg(long)]
        ca: Option<PathBuf>,
        /// SET and not GET
        #[arg(long)]
        set: bool,
    },
}

/// How much of everything.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) sample: Duration,
    pub(crate) warm_up: Duration,
    /// Numbers of idle sessions.
    pub(crate) idle: Vec<usize>,
    /// Number of clients that stop in their handshake.
    pub(crate) unidentified: usize,
    /// Connections at once.
    pub(crate) storm: usize,
    /// Lengths of allowlists.
    pub(crate) rules: Vec<u32>,
    /// Decisions whose time is taken.
    pub(crate) lookups: u32,
    /// How long the memory of idle sessions is left to itself before it is measured.
    pub(crate) settle: Duration,
}

impl Options {
    pub(crate) fn plan(&self) -> Result<Plan> {
        if self.smoke {
            let sample = Duration::from_millis(40);
            return Ok(Plan {
                rounds: 1,
                sample,
                warm_up: sample / 5,
                idle: vec![20, 40],
                unidentified: 20,
                storm: 40,
                rules: vec![10, 1_000],
                lookups: 100,
                settle: sample,
            });
        }
        if self.rounds == 0 {
            return Err("--rounds: there has to be one at least".into());
        }
        let sample = Duration::try_from_secs_f64(self.seconds)?;
        Ok(Plan {
            rounds: self.rounds,
            sample,
            warm_up: sample / 5,
            idle: vec![1_000, 5_000, 9_500],
            unidentified: 1_000,
            storm: 1_000,
            rules: vec![10, 1_000, 100_000],
            lookups: 100_000,
            settle: Duration::from_millis(500),
        })
    }

    /// The Portcullis binaries and the names they go by.
    pub(crate) fn binaries(&self) -> Result<Vec<(String, PathBuf)>> {
        const NAME: &str = "portcullis";
        if self.binary.is_empty() {
            return Ok(vec![(NAME.to_owned(), env!("CARGO_BIN_EXE_portcullis").into())]);
        }
        let mut named: Vec<(String, PathBuf)> = Vec::new();
        for binary in &self.binary {
            let (name, path) = binary.split_once('=').unwrap_or((NAME, binary));
            let path = PathBuf::from(path);
            if !path.is_file() {
                return Err(format!("--binary {binary}: there is no file {}", path.display()).into());
            }
            if OTHERS.contains(&name) || named.iter().any(|(other, _)| other == name) {
                return Err(format!("--binary {binary}: {name} is somebody else's name; use NAME=PATH").into());
            }
            named.push((name.to_owned(), std::fs::canonicalize(path)?));
        }
        Ok(named)
    }
}
