//! The memory of idle sessions.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Figure, Outcome, PLAIN_OFFER, Trial};
use crate::client::{Endpoint, Exchange, Session};
use crate::fault::Result;
use crate::route::Route;

/// Number of parallel handshakes.
const LANES: usize = 32;
const TIMEOUT: Duration = Duration::from_secs(120);

pub(super) async fn sample(trial: Trial<'_>) -> Result<Outcome> {
    // A new process: memory freed by earlier sessions would not be counted.
    let instance = trial.target.start(trial.site, 1).await?;
    let endpoint = instance.endpoint(trial.site, Route::Redis, PLAIN_OFFER)?;
    let before = instance.tree().pss()?;
    let mut outcome = Outcome::default();
    outcome.figures.push(Figure::info("without a session", "KiB", before as f64));
    let mut sessions = Vec::new();
    for &size in &trial.plan.idle {
        // A proxy has two sockets for each session.
        if size as u64 * 2 + 100 > trial.site.files {
            eprintln!("  {size} idle sessions need more than {} open files: omitted", trial.site.files);
            continue;
        }
        let missing = size - sessions.len();
        let opened = timeout(TIMEOUT, open(&endpoint, missing)).await;
        sessions.extend(opened.map_err(|_| format!("{size} sessions did not open in {TIMEOUT:?}"))??);
        sleep(trial.plan.settle).await;
        let each = (instance.tree().pss()?.saturating_sub(before)) as f64 / size as f64;
        outcome.figures.push(Figure::new(format!("PSS, {size} sessions"), "KiB/session", each));
        outcome.units = size as u64;
    }
    Ok(outcome)
}

/// Opens `count` sessions, each of which has received its PONG.
async fn open(endpoint: &Endpoint, count: usize) -> Result<Vec<Session>> {
    let (mut opening, mut sessions) = (JoinSet::new(), Vec::new());
    let mut begun = 0;
    while sessions.len() < count {
        while begun < count && opening.len() < LANES {
            opening.spawn(client(endpoint.clone()));
            begun += 1;
        }
        if let Some(opened) = opening.join_next().await {
            sessions.push(opened??);
        }
    }
    Ok(sessions)
}

async fn client(endpoint: Endpoint) -> Result<Session> {
    let mut session = Session::open(&endpoint).await?;
    session.exchange(&Exchange::ping(), &mut [0; 64]).await?;
    Ok(session)
}
