//! Many clients that connect at the same time.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Figure, Outcome, PLAIN_OFFER, Trial};
use crate::client::{Endpoint, Exchange, Session};
use crate::fault::Result;
use crate::route::Route;

const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn sample(trial: Trial<'_>) -> Result<Outcome> {
    let endpoint = trial.instance.endpoint(trial.site, Route::Redis, PLAIN_OFFER)?;
    let tree = trial.instance.tree();
    let (cpu, begun) = (tree.cpu()?, Instant::now());
    let mut clients = JoinSet::new();
    for _ in 0..trial.plan.storm {
        clients.spawn(client(endpoint.clone()));
    }
    let (mut sessions, mut failures, mut why) = (Vec::new(), 0, None);
    while let Some(ended) = clients.join_next().await {
        match ended? {
            Ok(session) => sessions.push(session),
            Err(error) => {
                failures += 1;
                why.get_or_insert_with(|| error.to_string());
            }
        }
    }
    let wall = begun.elapsed();
    sleep(Duration::from_millis(20)).await;
    let cpu = tree.cpu()?.saturating_sub(cpu);
    let served = sessions.len();
    for session in sessions {
        timeout(TIMEOUT, session.close()).await.map_err(|_| "a session did not end")??;
    }
    if served == 0 {
        return Err(format!("no client was served: {}", why.unwrap_or_default()).into());
    }
    let figures = vec![
        Figure::new("time until all are served", "ms", wall.as_secs_f64() * 1e3),
        Figure::new("CPU", "µs/connection", cpu.as_secs_f64() * 1e6 / served as f64),
        Figure::info("failed", "connections", failures as f64),
    ];
    Ok(Outcome { figures, units: served as u64, cpu, wall, failures })
}

async fn client(endpoint: Endpoint) -> Result<Session> {
    let served = async {
        let mut session = Session::open(&endpoint).await?;
        session.exchange(&Exchange::ping(), &mut [0; 64]).await?;
        Ok(session)
    };
    timeout(TIMEOUT, served).await.map_err(|_| format!("not served in {TIMEOUT:?}"))?
}
