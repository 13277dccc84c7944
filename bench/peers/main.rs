//! Compares Portcullis with its peers: the cost of the same work. `make bench` runs it; bench/README.md explains it.

mod account;
mod client;
mod databases;
#[path = "../decision.rs"]
mod decision;
mod fault;
mod machine;
mod options;
mod pki;
mod process;
mod report;
mod rounds;
mod route;
mod sample;
mod site;
mod targets;
mod tls;
mod work;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use fault::{Context, Fault, Result};
use machine::Cores;
use options::{Options, Part};
use report::Report;
use sample::Samples;
use site::Site;
use targets::{Target, relay};
use work::{Work, neighbour};

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    // All processes are started from this thread, because they are killed when it ends.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match &options.part {
            Some(Part::Relay { pairs }) => relay::run(&ports(pairs)?).await.map(|()| ExitCode::SUCCESS),
            Some(Part::Crowd { port, ca, set }) => {
                neighbour::run_crowd(*port, ca.as_deref(), *set).await.map(|()| ExitCode::SUCCESS)
            }
            None if options.list => list(options).map(|()| ExitCode::SUCCESS),
            None => {
                let (mut interrupt, mut end) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
                // Dropping the future terminates all servers.
                tokio::select! {
                    code = measure(options) => code,
                    _ = interrupt.recv() => Err("interrupted".into()),
                    _ = end.recv() => Err("terminated".into()),
                }
            }
        }
    })
}

async fn measure(options: &Options) -> Result<ExitCode> {
    let plan = options.plan()?;
    let works = Work::chosen(&options.works)?;
    let (targets, absent) = chosen(options)?;
    let cores = Cores::choose()?;
    let files = machine::raise_file_limit()?;
    cores.settle()?;
    process::adopt_orphans()?;
    let mut samples = Samples::create(&options.out)?;
    let postgres = works.iter().any(|work| work.needs_postgres());
    let site = Site::build(cores, files, postgres).await?;
    let record = rounds::run(&site, &plan, &works, &targets, &mut samples).await?;
    let report = Report { plan: &plan, cores, targets: &targets, absent: &absent, record: &record };
    let text = report.write(&samples.read()?, &options.out)?;
    println!("{text}");
    let complete = record.failures.is_empty();
    eprintln!("report, chart and samples: {}", options.out.display());
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The requested targets that are installed, and the names of those that are not.
fn chosen(options: &Options) -> Result<(Vec<Target>, Vec<String>)> {
    let (mut targets, absent) = Target::all(&options.binaries()?);
    let known = |name: &String| targets.iter().any(|target| target.name == *name) || absent.contains(name);
    if let Some(unknown) = options.targets.iter().find(|name| !known(name)) {
        return Err(format!("--targets: unknown target {unknown}; see --list").into());
    }
    targets.retain(|target| options.targets.is_empty() || options.targets.contains(&target.name));
    Ok((targets, absent))
}

fn list(options: &Options) -> Result<()> {
    let (targets, absent) = chosen(options)?;
    println!("works");
    for work in Work::chosen(&[])? {
        println!("  {:<18} {}", work.name, work.title);
    }
    println!("targets");
    for target in targets {
        println!("  {:<18} {}", target.name, target.version);
    }
    for name in absent {
        println!("  {name:<18} not installed");
    }
    Ok(())
}

/// Parses PORT=UPSTREAM pairs.
fn ports(pairs: &[String]) -> Result<Vec<(u16, u16)>> {
    let pair = |text: &String| -> Result<_> {
        let (port, upstream) = text.split_once('=').ok_or_else(|| Fault::from("expected PORT=UPSTREAM"))?;
        Ok((port.parse::<u16>()?, upstream.parse::<u16>()?))
    };
    pairs.iter().map(|text| pair(text).context(|| text.clone())).collect()
}
