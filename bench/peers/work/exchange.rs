//! Requests and replies over open connections: bulk, small ones, and latency.

use std::time::{Duration, Instant};

use super::drive::{Lane, measure};
use super::{Figure, Outcome, PLAIN_OFFER, Trial};
use crate::client::{Endpoint, Exchange, Session};
use crate::databases::{BULK, SMALL, value};
use crate::fault::Result;
use crate::route::Route;

/// Size of the read buffer of a client in bytes, the same as in the plain relay.
const BUFFER: usize = 64 * 1024;

/// Clients that repeat one request.
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
        let endpoint = trial.instance.endpoint(trial.site, Route::Redis, PLAIN_OFFER)?;
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
            lanes.push(Client::open(&endpoint, if writes { &set } else { &get }).await?);
        }
        let measured = measure(trial, lanes, |_| ()).await?;
        let requests = measured.steps * self.depth as u64;
        if self.size != BULK {
            return Ok(measured.per(requests, "µs/request"));
        }
        let gigabytes = (requests * BULK as u64) as f64 / 1e9;
        let cpu = Figure::new("CPU", "ms/GB", measured.cpu.as_secs_f64() * 1e3 / gigabytes);
        let rate = Figure::info("rate", "MB/s", gigabytes * 1e3 / measured.wall.as_secs_f64());
        Ok(measured.outcome(requests, vec![cpu, rate]))
    }
}

/// A client with one connection and one request.
#[derive(Debug)]
pub(super) struct Client {
    session: Session,
    exchange: Exchange,
    buffer: Vec<u8>,
}

impl Client {
    pub(super) async fn open(endpoint: &Endpoint, exchange: &Exchange) -> Result<Self> {
        Ok(Self { session: Session::open(endpoint).await?, exchange: exchange.clone(), buffer: vec![0; BUFFER] })
    }
}

impl Lane for Client {
    async fn step(&mut self) -> Result<()> {
        self.session.exchange(&self.exchange, &mut self.buffer).await
    }
}

/// A client that measures each exchange.
#[derive(Debug)]
struct Timed {
    client: Client,
    times: Vec<Duration>,
}

impl Lane for Timed {
    async fn step(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.client.step().await?;
        self.times.push(begun.elapsed());
        Ok(())
    }
}

/// The latency of a PING at the client, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// Sends PINGs on one connection, each after the reply to the last. Returns the latency and the cost in the target.
pub(super) async fn ping_pong(trial: Trial<'_>) -> Result<(Latency, Outcome)> {
    let endpoint = trial.instance.endpoint(trial.site, Route::Redis, PLAIN_OFFER)?;
    let client = Client::open(&endpoint, &Exchange::ping()).await?;
    let mut measured = measure(trial, vec![Timed { client, times: Vec::new() }], |lane| lane.times.clear()).await?;
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
