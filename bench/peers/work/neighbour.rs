//! The latency of small requests while other clients move bulk data through the same process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::drive::Lane;
use super::exchange::{Client, Latency, ping_pong};
use super::{Figure, Outcome, Trial};
use crate::client::{Endpoint, Exchange};
use crate::databases::{BULK, local, value};
use crate::fault::{Context, Result};
use crate::process::{Placement, Running};
use crate::route::Route;
use crate::tls::Offer;

/// Number of connections of the background load.
const CROWD: usize = 4;
/// How often the background load reports its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy)]
pub(super) struct Neighbour {
    pub(super) set: bool,
}

impl Neighbour {
    pub(super) async fn sample(self, trial: Trial<'_>) -> Result<Outcome> {
        let (alone, _) = ping_pong(trial).await?;
        let mut crowd = self.crowd(trial)?;
        let (mut begun, mut moved) = (Instant::now(), 0);
        while moved < 8 {
            crowd.check_alive().context(|| "background load".to_owned())?;
            if begun.elapsed() > Duration::from_secs(20) {
                return Err("the background load makes no progress".into());
            }
            sleep(PROGRESS_INTERVAL).await;
            moved = progress(&crowd);
        }
        let tree = trial.instance.tree();
        let cpu = tree.cpu()?;
        begun = Instant::now();
        let (beside, outcome) = ping_pong(trial).await?;
        let wall = begun.elapsed().as_secs_f64();
        let busy = tree.cpu()?.saturating_sub(cpu).as_secs_f64() / wall * 100.0;
        let rate = (progress(&crowd) - moved) as f64 * BULK as f64 / 1e6 / wall;
        crowd.check_alive().context(|| "background load".to_owned())?;
        let figures = figures(alone, beside).into_iter().chain([
            Figure::info("rate of the bulk", "MB/s", rate),
            Figure::info("utilisation of the proxy's core", "%", busy),
        ]);
        Ok(Outcome { figures: figures.collect(), ..outcome })
    }

    /// Starts the bulk clients. They and their Redis use the scheduler's idle class, so that the small client waits only for
    /// the proxy.
    fn crowd(self, trial: Trial<'_>) -> Result<Running> {
        let placement = Placement { idle: true, ..Placement::on(trial.site.cores.clients) };
        let mut command = placement.command(&std::env::current_exe()?);
        command.arg("crowd").arg(trial.instance.port(Route::Bulk)?.to_string());
        if trial.instance.can.tls {
            command.arg("--ca").arg(&trial.site.pki.ca);
        }
        if self.set {
            command.arg("--set");
        }
        let log = trial.site.write("crowd.log", "")?;
        Running::start(command, &log)
    }
}

fn figures(alone: Latency, beside: Latency) -> Vec<Figure> {
    vec![
        Figure::info("p50 alone", "µs", alone.p50),
        Figure::info("p99 alone", "µs", alone.p99),
        Figure::new("p50", "µs", beside.p50),
        Figure::new("p99", "µs", beside.p99),
        Figure::info("max", "µs", beside.max),
        Figure::info("p99 added", "µs", beside.p99 - alone.p99),
    ]
}

/// The number of values that the background load has moved, by its last report.
fn progress(crowd: &Running) -> u64 {
    crowd.log_tail().rsplit(" | ").find_map(|line| line.trim().parse().ok()).unwrap_or(0)
}

/// The main function of the background load, which runs until it is killed.
pub(crate) async fn run_crowd(port: u16, ca: Option<&Path>, set: bool) -> Result<()> {
    let tls = match ca {
        Some(ca) => Some(Offer::default().config(&CertificateDer::from_pem_file(ca)?, None)?),
        None => None,
    };
    let endpoint = Endpoint { address: local(port), tls };
    let value = value(BULK);
    let exchange = if set { Exchange::set("bulk", &value) } else { Exchange::get("bulk", &value) };
    let moved = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::<Result<()>>::new();
    for _ in 0..CROWD {
        let (mut client, moved) = (Client::open(&endpoint, &exchange).await?, Arc::clone(&moved));
        clients.spawn(async move {
            loop {
                client.step().await?;
                moved.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    loop {
        tokio::select! {
            Some(ended) = clients.join_next() => return ended?,
            () = sleep(PROGRESS_INTERVAL) => println!("{}", moved.load(Ordering::Relaxed)),
        }
    }
}
