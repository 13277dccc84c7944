//! Lanes that do the same step again and again, and what a target spends on it.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Figure, Outcome, Trial};
use crate::fault::Result;

/// What a target still does for the last step after its client is content.
const SETTLE: Duration = Duration::from_millis(20);
/// How much longer than asked a phase may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where a lane gives up.
const TOO_MANY: u64 = 20;

/// One client, or what is one at a time.
pub(super) trait Lane: Send + 'static {
    fn step(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// How lanes fared.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    failed: u64,
    /// What failed first.
    why: Option<String>,
}

/// A sample, and the lanes for what they have noted.
#[derive(Debug)]
pub(super) struct Measured<L> {
    pub(super) lanes: Vec<L>,
    /// Steps that went well.
    pub(super) steps: u64,
    pub(super) failures: u64,
    pub(super) cpu: Duration,
    pub(super) wall: Duration,
}

/// Warms up, then measures. `between` sees the lanes after the warm-up.
pub(super) async fn measure<L: Lane>(
    trial: Trial<'_>,
    lanes: Vec<L>,
    between: impl FnMut(&mut L),
) -> Result<Measured<L>> {
    let (mut lanes, warmed) = phase(lanes, trial.plan.warm_up).await?;
    warmed.judge()?;
    lanes.iter_mut().for_each(between);
    sleep(SETTLE).await;
    let tree = trial.instance.tree();
    let (cpu, begun) = (tree.cpu()?, Instant::now());
    let (lanes, tally) = phase(lanes, trial.plan.sample).await?;
    let wall = begun.elapsed();
    sleep(SETTLE).await;
    let cpu = tree.cpu()?.saturating_sub(cpu);
    tally.judge()?;
    Ok(Measured { lanes, steps: tally.done, failures: tally.failed, cpu, wall })
}

/// Runs all lanes for a time, and then to the end of their last step.
async fn phase<L: Lane>(lanes: Vec<L>, time: Duration) -> Result<(Vec<L>, Tally)> {
    let end = Instant::now() + time;
    let mut running = JoinSet::new();
    for mut lane in lanes {
        running.spawn(async move {
            let mut tally = Tally::default();
            loop {
                match lane.step().await {
                    Ok(()) => tally.done += 1,
                    Err(error) => {
                        tally.failed += 1;
                        tally.why.get_or_insert_with(|| error.to_string());
                    }
                }
                if Instant::now() >= end || tally.failed >= TOO_MANY {
                    return (lane, tally);
                }
            }
        });
    }
    let all = async {
        let (mut lanes, mut sum) = (Vec::new(), Tally::default());
        while let Some(ended) = running.join_next().await {
            let (lane, tally) = ended?;
            lanes.push(lane);
            sum.done += tally.done;
            sum.failed += tally.failed;
            sum.why = sum.why.or(tally.why);
        }
        Ok((lanes, sum))
    };
    timeout(time + PATIENCE, all).await.map_err(|_| format!("a client waited for more than {PATIENCE:?}"))?
}

impl Tally {
    /// One failure in a hundred is told; more make a sample worthless.
    fn judge(&self) -> Result<()> {
        if self.failed * 100 <= self.done {
            return Ok(());
        }
        let why = self.why.as_deref().unwrap_or("no reason known");
        Err(format!("{} of {} failed: {why}", self.failed, self.failed + self.done).into())
    }
}

impl<L> Measured<L> {
    /// CPU in microseconds for each of so many units.
    pub(super) fn per(&self, units: u64, unit: &'static str) -> Outcome {
        let value = self.cpu.as_secs_f64() * 1e6 / units as f64;
        self.outcome(units, vec![Figure::new("CPU", unit, value)])
    }

    pub(super) fn outcome(&self, units: u64, figures: Vec<Figure>) -> Outcome {
        Outcome { figures, units, cpu: self.cpu, wall: self.wall, failures: self.failures }
    }
}
