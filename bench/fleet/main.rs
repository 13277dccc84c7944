//! Measures a fleet: how long after its acknowledgement a change is in force on all members, how long ten thousand sessions take
//! to end, and what the store has to do. `cargo bench --bench fleet` runs it; docs/FLEET.md has the results.
//!
//! Members, store and clients share one machine and its clock, so times of different processes can be compared.

#[path = "../peers/account.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod account;
#[path = "../peers/fault.rs"]
mod fault;
#[path = "../peers/machine.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod machine;
mod measures;
mod member;
#[path = "../peers/pki.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod pki;
#[path = "../peers/process.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod process;
mod sessions;
mod simulation;
mod stand_ins;
mod store;
mod summary;
#[path = "../peers/tls.rs"]
#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod tls;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use fault::Result;
use process::{need, version_line};
use simulation::Simulation;

/// What is measured.
#[derive(Debug, Parser)]
struct Options {
    /// Replicas of the fleet
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..))]
    replicas: u16,
    /// Changes of one rule
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    writes: u16,
    /// Sessions that one change ends; 0 omits them
    #[arg(long, default_value_t = 10_000)]
    sessions: u32,
    /// Rules of the long list; 0 omits it
    #[arg(long, default_value_t = 100_000)]
    rules: u32,
    /// Sizes of simulated fleets
    #[arg(long, default_values_t = [100, 1_000], value_delimiter = ',')]
    simulated: Vec<u16>,
    /// The program
    #[arg(long, default_value = env!("CARGO_BIN_EXE_portcullis"))]
    binary: PathBuf,
    /// Run as the upstream of all sessions
    #[arg(long, hide = true)]
    upstream: bool,
    /// Given by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match start(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fleet: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: &Options) -> Result<()> {
    process::adopt_orphans()?;
    // A file for each session here, and another one in the process of the upstream.
    let (limit, needed) = (machine::raise_file_limit()?, u64::from(options.sessions) + 1_000);
    if limit < needed {
        let sessions = options.sessions;
        return Err(format!("--sessions {sessions} needs {needed} open files; raise ulimit -n from {limit}").into());
    }
    // All processes are started from this thread, because they are killed when it ends.
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut end) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // Dropping the future terminates all members and the store, and removes their files.
        tokio::select! {
            result = sessions::serve(), if options.upstream => result,
            result = run(options), if !options.upstream => result,
            _ = interrupt.recv() => Err("interrupted".into()),
            _ = end.recv() => Err("terminated".into()),
        }
    })
}

async fn run(options: &Options) -> Result<()> {
    println!("{}; load {:.2}", version_line(&need("etcd")?, "--version"), machine::load());
    // Two members have a core each on most machines, so they show how fast a member is that shares its machine with no other.
    let pair = measures::small_changes(options, 2).await?;
    let fleet = measures::small_changes(options, usize::from(options.replicas)).await?;
    let simulation = Simulation { pair: &pair, fleet: &fleet };
    simulation.check().await?;
    for members in &options.simulated {
        simulation.run(usize::from(*members)).await?;
    }
    measures::large_changes(options).await
}
