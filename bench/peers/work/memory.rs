//! What sessions that do nothing keep in memory.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Figure, Outcome, PLAIN_OFFER, Trial};
use crate::client::{Exchange, Session, Way};
use crate::door::Door;
use crate::fault::Result;

/// Handshakes at a time.
const LANES: usize = 32;
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn sample(trial: Trial<'_>) -> Result<Outcome> {
    // One that has served nobody yet: what others left behind would be taken for free.
    let instance = trial.target.start(trial.site, 1).await?;
    let way = instance.way(trial.site, Door::Redis, PLAIN_OFFER)?;
    let before = instance.tree().pss()?;
    let mut outcome = Outcome::default();
    outcome.figures.push(Figure::told("without a session", "KiB", before as f64));
    let mut sessions = Vec::new();
    for &size in &trial.plan.idle {
        // A proxy has two sockets for each session.
        if size as u64 * 2 + 100 > trial.site.files {
            eprintln!("  {size} idle sessions do not fit into {} open files: left out", trial.site.files);
            continue;
        }
        let missing = size - sessions.len();
        let opened = timeout(PATIENCE, open(&way, missing)).await;
        sessions.extend(opened.map_err(|_| format!("{size} sessions did not open in {PATIENCE:?}"))??);
        sleep(trial.plan.settle).await;
        let each = (instance.tree().pss()?.saturating_sub(before)) as f64 / size as f64;
        outcome.figures.push(Figure::new(format!("PSS, {size} sessions"), "KiB/session", each));
        outcome.units = size as u64;
    }
    Ok(outcome)
}

/// Opens so many sessions, each of which has had its PONG.
async fn open(way: &Way, count: usize) -> Result<Vec<Session>> {
    let (mut opening, mut sessions) = (JoinSet::new(), Vec::new());
    let mut begun = 0;
    while sessions.len() < count {
        while begun < count && opening.len() < LANES {
            opening.spawn(client(way.clone()));
            begun += 1;
        }
        if let Some(opened) = opening.join_next().await {
            sessions.push(opened??);
        }
    }
    Ok(sessions)
}

async fn client(way: Way) -> Result<Session> {
    let mut session = Session::open(&way).await?;
    session.exchange(&Exchange::ping(), &mut [0; 64]).await?;
    Ok(session)
}
