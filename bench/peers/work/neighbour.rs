//! What a client with small requests feels of others who move bulk through the same process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::drive::Lane;
use super::exchange::{Asker, Latency, ping_pong};
use super::{Figure, Outcome, Trial};
use crate::client::{Exchange, Way};
use crate::databases::{BULK, local, value};
use crate::door::Door;
use crate::fault::{Context, Result};
use crate::process::{Manner, Running};
use crate::tls::Offer;

/// Connections of the crowd.
const CROWD: usize = 4;
/// How often the crowd tells how far it is.
const TELL: Duration = Duration::from_millis(20);

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
            crowd.still_there().context(|| "the crowd".to_owned())?;
            if begun.elapsed() > Duration::from_secs(20) {
                return Err("the crowd moves nothing".into());
            }
            sleep(TELL).await;
            moved = progress(&crowd);
        }
        let tree = trial.instance.tree();
        let cpu = tree.cpu()?;
        begun = Instant::now();
        let (beside, outcome) = ping_pong(trial).await?;
        let wall = begun.elapsed().as_secs_f64();
        let busy = tree.cpu()?.saturating_sub(cpu).as_secs_f64() / wall * 100.0;
        let rate = (progress(&crowd) - moved) as f64 * BULK as f64 / 1e6 / wall;
        crowd.still_there().context(|| "the crowd".to_owned())?;
        let figures = figures(alone, beside).into_iter().chain([
            Figure::told("rate of the bulk", "MB/s", rate),
            Figure::told("the proxy's core is busy", "%", busy),
        ]);
        Ok(Outcome { figures: figures.collect(), ..outcome })
    }

    /// Starts the bulk clients. They and their Redis run only when nobody else wants the clients' core, so that what the
    /// small client waits for is the proxy.
    fn crowd(self, trial: Trial<'_>) -> Result<Running> {
        let manner = Manner { idle: true, ..Manner::on(trial.site.cores.clients) };
        let mut command = manner.command(&std::env::current_exe()?);
        command.arg("crowd").arg(trial.instance.port(Door::Bulk)?.to_string());
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
        Figure::told("p50 alone", "µs", alone.p50),
        Figure::told("p99 alone", "µs", alone.p99),
        Figure::new("p50", "µs", beside.p50),
        Figure::new("p99", "µs", beside.p99),
        Figure::told("max", "µs", beside.max),
        Figure::told("p99 added", "µs", beside.p99 - alone.p99),
    ]
}

/// How many values the crowd has moved so far, as it last told.
fn progress(crowd: &Running) -> u64 {
    crowd.last_words().rsplit(" | ").find_map(|line| line.trim().parse().ok()).unwrap_or(0)
}

/// What the crowd's process does until it is killed.
pub(crate) async fn be_the_crowd(port: u16, ca: Option<&Path>, set: bool) -> Result<()> {
    let tls = match ca {
        Some(ca) => Some(Offer::default().config(&CertificateDer::from_pem_file(ca)?, None)?),
        None => None,
    };
    let way = Way { address: local(port), tls };
    let value = value(BULK);
    let exchange = if set { Exchange::set("bulk", &value) } else { Exchange::get("bulk", &value) };
    let moved = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::<Result<()>>::new();
    for _ in 0..CROWD {
        let (mut asker, moved) = (Asker::open(&way, &exchange).await?, Arc::clone(&moved));
        clients.spawn(async move {
            loop {
                asker.step().await?;
                moved.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    loop {
        tokio::select! {
            Some(ended) = clients.join_next() => return ended?,
            () = sleep(TELL) => println!("{}", moved.load(Ordering::Relaxed)),
        }
    }
}
