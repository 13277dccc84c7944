//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::fault::Result;
use crate::targets::OTHERS;

/// Measures the cost of the same work in Portcullis, its peers and a plain relay.
#[derive(Debug, Parser)]
#[command(name = "peers", disable_help_subcommand = true)]
pub(crate) struct Options {
    /// Number of rounds in which each target does each work
    #[arg(long, default_value_t = 5)]
    pub(crate) rounds: u32,

    /// Length of one sample in seconds
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    pub(crate) seconds: f64,

    /// Only these works: names from --list, or their prefixes
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub(crate) works: Vec<String>,

    /// Only these targets
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    pub(crate) targets: Vec<String>,

    /// Directory for the report, the chart and the raw samples
    #[arg(long, default_value = "target/bench-report", value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Measure this Portcullis binary instead of the release build; repeat with different names to compare several
    #[arg(long, value_name = "[NAME=]PATH")]
    pub(crate) binary: Vec<String>,

    /// Run everything once with small amounts, and fail if anything fails
    #[arg(long)]
    pub(crate) smoke: bool,

    /// List works and targets, and those not installed
    #[arg(long)]
    pub(crate) list: bool,

    /// Passed by cargo bench
    #[arg(long, hide = true)]
    pub(crate) bench: bool,

    #[command(subcommand)]
    pub(crate) part: Option<Part>,
}

/// The roles in which the benchmark starts itself as a separate process.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// The plain relay
    #[command(hide = true)]
    Relay {
        /// PORT=UPSTREAM
        pairs: Vec<String>,
    },
    /// Background load
    #[command(hide = true)]
    Crowd {
        port: u16,
        /// Use TLS and trust this CA
        #[arg(long)]
        ca: Option<PathBuf>,
        /// Send SET instead of GET
        #[arg(long)]
        set: bool,
    },
}

/// The amounts of a run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) sample: Duration,
    pub(crate) warm_up: Duration,
    /// Numbers of idle sessions.
    pub(crate) idle: Vec<usize>,
    /// Number of clients that stop in their handshake.
    pub(crate) unidentified: usize,
    /// Number of simultaneous connections.
    pub(crate) storm: usize,
    /// Sizes of allowlists.
    pub(crate) rules: Vec<u32>,
    /// Number of measured lookups.
    pub(crate) lookups: u32,
    /// The wait before the memory of idle sessions is measured.
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
            return Err("--rounds: must be at least 1".into());
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

    /// The Portcullis binaries with their names.
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
                return Err(format!("--binary {binary}: file {} does not exist", path.display()).into());
            }
            if OTHERS.contains(&name) || named.iter().any(|(other, _)| other == name) {
                return Err(format!("--binary {binary}: the name {name} is already used; use NAME=PATH").into());
            }
            named.push((name.to_owned(), std::fs::canonicalize(path)?));
        }
        Ok(named)
    }
}
