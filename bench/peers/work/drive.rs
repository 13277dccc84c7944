//! Runs lanes that repeat a step, and measures the cost in the target.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Figure, Outcome, Trial};
use crate::fault::Result;

/// The time in which a target completes its work after the last reply.
const SETTLE: Duration = Duration::from_millis(20);
/// The time by which a phase may exceed its length.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The number of failures at which a lane stops.
const MAX_FAILURES: u64 = 20;

/// A client, or a sequence of clients, that repeats a step.
pub(super) trait Lane: Send + 'static {
    fn step(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// The results of lanes.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    failed: u64,
    /// The first failure.
    why: Option<String>,
}

/// A sample, and the lanes with their recorded data.
#[derive(Debug)]
pub(super) struct Measured<L> {
    pub(super) lanes: Vec<L>,
    /// Successful steps.
    pub(super) steps: u64,
    pub(super) failures: u64,
    pub(super) cpu: Duration,
    pub(super) wall: Duration,
}

/// Warms up, then measures. `between` is called for each lane after the warm-up.
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

/// Runs all lanes for `time`, and then until the end of their last step.
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
                if Instant::now() >= end || tally.failed >= MAX_FAILURES {
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
    timeout(time + TIMEOUT, all).await.map_err(|_| format!("a client waited for more than {TIMEOUT:?}"))?
}

impl Tally {
    /// More than one failure in a hundred steps invalidates a sample.
    fn judge(&self) -> Result<()> {
        if self.failed * 100 <= self.done {
            return Ok(());
        }
        let why = self.why.as_deref().unwrap_or("no reason known");
        Err(format!("{} of {} failed: {why}", self.failed, self.failed + self.done).into())
    }
}

impl<L> Measured<L> {
    /// CPU time in microseconds for each unit.
    pub(super) fn per(&self, units: u64, unit: &'static str) -> Outcome {
        let value = self.cpu.as_secs_f64() * 1e6 / units as f64;
        self.outcome(units, vec![Figure::new("CPU", unit, value)])
    }

    pub(super) fn outcome(&self, units: u64, figures: Vec<Figure>) -> Outcome {
        Outcome { figures, units, cpu: self.cpu, wall: self.wall, failures: self.failures }
    }
}
