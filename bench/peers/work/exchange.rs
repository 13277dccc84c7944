//! Requests and replies over connections that stay: bulk, small ones, and the time of one.

use std::time::{Duration, Instant};

use super::drive::{Lane, measure};
use super::{Figure, Outcome, PLAIN_OFFER, Trial};
use crate::client::{Exchange, Session, Way};
use crate::databases::{BULK, SMALL, value};
use crate::door::Door;
use crate::fault::Result;

/// What clients read into. As large as the floor's own, so that it reads no less at a time.
const BUFFER: usize = 64 * 1024;

/// Clients that do nothing but ask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchanges {
    connections: usize,
    size: usize,
    depth: usize,
    /// Which clients write: none, all, or every other one.
    writers: Writers,
}

#[derive(Debug, Clone, Copy)]
enum Writers {
    None,
    All,
    Half,
}

impl Exchanges {
    pub(super) const fn bulk(set: bool, connections: usize) -> Self {
        let writers = if set { Writers::All } else { Writers::None };
        Self { connections, size: BULK, depth: 1, writers }
    }

    pub(super) const fn small(depth: usize) -> Self {
        Self { connections: 50, size: SMALL, depth, writers: Writers::Half }
    }

    pub(super) async fn sample(self, trial: Trial<'_>) -> Result<Outcome> {
        let way = trial.instance.way(trial.site, Door::Redis, PLAIN_OFFER)?;
        let value = value(self.size);
        let key = if self.size == BULK { "bulk" } else { "small" };
        let (get, set) = (Exchange::get(key, &value), Exchange::set(key, &value));
        let (get, set) = (get.pipelined(self.depth), set.pipelined(self.depth));
        let mut lanes = Vec::new();
        for number in 0..self.connections {
            let writes = match self.writers {
                Writers::None => false,
                Writers::All => true,
                Writers::Half => number % 2 == 1,
            };
            lanes.push(Asker::open(&way, if writes { &set } else { &get }).await?);
        }
        let measured = measure(trial, lanes, |_| ()).await?;
        let requests = measured.steps * self.depth as u64;
        if self.size != BULK {
            return Ok(measured.per(requests, "µs/request"));
        }
        let gigabytes = (requests * BULK as u64) as f64 / 1e9;
        let cpu = Figure::new("CPU", "ms/GB", measured.cpu.as_secs_f64() * 1e3 / gigabytes);
        let rate = Figure::told("rate", "MB/s", gigabytes * 1e3 / measured.wall.as_secs_f64());
        Ok(measured.outcome(requests, vec![cpu, rate]))
    }
}

/// A client with one connection and one thing to ask.
#[derive(Debug)]
pub(super) struct Asker {
    session: Session,
    exchange: Exchange,
    buffer: Vec<u8>,
}

impl Asker {
    pub(super) async fn open(way: &Way, exchange: &Exchange) -> Result<Self> {
        Ok(Self { session: Session::open(way).await?, exchange: exchange.clone(), buffer: vec![0; BUFFER] })
    }
}

impl Lane for Asker {
    async fn step(&mut self) -> Result<()> {
        self.session.exchange(&self.exchange, &mut self.buffer).await
    }
}

/// One that looks at the clock.
#[derive(Debug)]
struct Timed {
    asker: Asker,
    times: Vec<Duration>,
}

impl Lane for Timed {
    async fn step(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.asker.step().await?;
        self.times.push(begun.elapsed());
        Ok(())
    }
}

/// How long a PING takes, from the client's side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// One connection that asks again as soon as it is answered, and what that cost the target.
pub(super) async fn ping_pong(trial: Trial<'_>) -> Result<(Latency, Outcome)> {
    let way = trial.instance.way(trial.site, Door::Redis, PLAIN_OFFER)?;
    let asker = Asker::open(&way, &Exchange::ping()).await?;
    let mut measured = measure(trial, vec![Timed { asker, times: Vec::new() }], |lane| lane.times.clear()).await?;
    let mut times: Vec<f64> = Vec::new();
    for lane in &mut measured.lanes {
        times.extend(lane.times.drain(..).map(|time| time.as_secs_f64() * 1e6));
    }
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len() - 1)).copied();
    let (Some(p50), Some(p99), Some(max)) = (at(50), at(99), at(100)) else {
        return Err("no PING was answered".into());
    };
    Ok((Latency { p50, p99, max }, measured.per(measured.steps, "µs/request")))
}

pub(super) async fn latency(trial: Trial<'_>) -> Result<Outcome> {
    let (latency, mut outcome) = ping_pong(trial).await?;
    outcome.figures.push(Figure::new("p50", "µs", latency.p50));
    outcome.figures.push(Figure::new("p99", "µs", latency.p99));
    Ok(outcome)
}
