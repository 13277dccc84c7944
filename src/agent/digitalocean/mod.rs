//! Resolves droplets, tags, clusters and apps of DigitalOcean.
//!
//! The API has no watch, so it is polled. All sources share one list of the account's droplets.

mod answer;
mod budget;
mod pages;
mod resolve;
mod round;
mod shapes;

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::agent::client::api::ApiClient;
use crate::agent::client::endpoint::Endpoint;
use crate::agent::digitalocean::answer::Retry;
use crate::agent::digitalocean::budget::{Budget, refresh_wait, retry_wait};
use crate::agent::digitalocean::round::{Api, Outcome};
use crate::printable;
use crate::resolution::observation::Observation;
use crate::resolution::settings::DigitalOceanSettings;
use crate::source::cloud::CloudSource;

/// Polls the API for these sources until their channel or that of the observations is closed.
pub(crate) async fn run(
    settings: DigitalOceanSettings,
    mut sources: watch::Receiver<Arc<BTreeSet<CloudSource>>>,
    observed: mpsc::Sender<(CloudSource, Observation)>,
) {
    let refresh = Duration::from_millis(settings.refresh_ms).max(MIN_REFRESH);
    let Some(endpoint) = Endpoint::parse(&settings.endpoint) else {
        return reject(&settings.endpoint, sources, observed).await;
    };
    let budget = Budget::new(Instant::now());
    let client = ApiClient::new(endpoint, settings.ca);
    let mut api = Api { client, secret: settings.token, choice: settings.addresses, budget, token: None };
    let mut schedule = Schedule::new(refresh);
    loop {
        schedule.set_sources(&sources.borrow_and_update(), Instant::now());
        tokio::select! {
            changed = sources.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            () = sleep_until(schedule.due().unwrap_or_else(Instant::now)), if schedule.due().is_some() => {}
            // Whoever replaces a token waits for its effect.
            () = sleep(TOKEN_CHECK), if schedule.is_failing() => {
                if api.has_newer_token() {
                    schedule.retry(Instant::now());
                }
                continue;
            }
        }
        let polled = schedule.start(Instant::now());
        let before = api.budget.requests();
        let Outcome { observations, failure } = api.resolve(&polled).await;
        let is_failure = |observation: &Observation| matches!(observation, Observation::Failed { .. });
        let failed = observations.iter().filter(|(_, observation)| is_failure(observation));
        let failed = failed.map(|(source, _)| source.clone()).collect();
        let cost = api.budget.requests().saturating_sub(before);
        let now = Instant::now();
        let wait = api.budget.wait(schedule.expected_cost(cost), now);
        schedule.finish(Poll { cost, failed, failure }, wait, random(), now);
        for one in observations {
            if observed.send(one).await.is_err() {
                return;
            }
        }
    }
}

/// Reports every source as failed, because the endpoint is not valid.
async fn reject(
    endpoint: &str,
    mut sources: watch::Receiver<Arc<BTreeSet<CloudSource>>>,
    observed: mpsc::Sender<(CloudSource, Observation)>,
) {
    let error = printable::field(format_args!("[resolver.digitalocean] endpoint is not an https URL: {endpoint}"));
    loop {
        let current = Arc::clone(&sources.borrow_and_update());
        for source in current.iter() {
            if observed.send((source.clone(), Observation::Failed { error: error.clone() })).await.is_err() {
                return;
            }
        }
        if sources.changed().await.is_err() {
            return;
        }
    }
}

/// When which sources are polled.
#[derive(Debug)]
struct Schedule {
    refresh: Duration,
    sources: Arc<BTreeSet<CloudSource>>,
    /// Sources that are polled before the others: new ones, and those that failed.
    pending: BTreeSet<CloudSource>,
    pending_due: Instant,
    /// When all sources are polled.
    full_due: Instant,
    /// What the API asked for.
    not_before: Instant,
    /// Consecutive polls with a failure.
    failures: u32,
    /// Requests of the last poll of all sources.
    full_cost: u64,
    is_full: bool,
}

/// A finished poll.
struct Poll {
    /// Its requests.
    cost: u64,
    failed: BTreeSet<CloudSource>,
    failure: Option<Retry>,
}

impl Schedule {
    fn new(refresh: Duration) -> Self {
        let now = Instant::now();
        Self {
            refresh,
            sources: Arc::default(),
            pending: BTreeSet::new(),
            pending_due: now,
            full_due: now,
            not_before: now,
            failures: 0,
            full_cost: 0,
            is_full: false,
        }
    }

    /// Takes over the sources. New ones are due at once.
    fn set_sources(&mut self, sources: &Arc<BTreeSet<CloudSource>>, now: Instant) {
        let added: Vec<_> = sources.difference(&self.sources).cloned().collect();
        self.sources = Arc::clone(sources);
        self.pending.retain(|source| sources.contains(source));
        if !added.is_empty() {
            self.pending.extend(added);
            self.pending_due = now;
        }
    }

    /// Whether a source waits for another attempt.
    fn is_failing(&self) -> bool {
        self.failures > 0 && !self.pending.is_empty()
    }

    /// Makes the failed sources due, because the cause may have gone.
    fn retry(&mut self, now: Instant) {
        self.pending_due = now;
    }

    /// When the next poll is due; `None` without sources.
    fn due(&self) -> Option<Instant> {
        if self.sources.is_empty() {
            return None;
        }
        let due = if self.pending.is_empty() { self.full_due } else { self.full_due.min(self.pending_due) };
        Some(due.max(self.not_before))
    }

    /// The sources to poll now.
    fn start(&mut self, now: Instant) -> BTreeSet<CloudSource> {
        self.is_full = now >= self.full_due || self.pending.len() == self.sources.len();
        if self.is_full { BTreeSet::clone(&self.sources) } else { self.pending.clone() }
    }

    /// The requests of the next poll of all sources.
    fn expected_cost(&self, cost: u64) -> u64 {
        if self.is_full { cost } else { self.full_cost }
    }

    /// Plans the next polls. `budget` is the wait that the rate limit demands.
    fn finish(&mut self, poll: Poll, budget: Duration, random: u64, now: Instant) {
        let Poll { cost, failed, failure } = poll;
        if self.is_full {
            self.full_due = now + refresh_wait(self.refresh, budget, random);
            self.full_cost = cost;
        }
        self.pending = failed;
        if self.pending.is_empty() {
            self.failures = 0;
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let retry = failure.unwrap_or_default();
        self.pending_due = now + retry_wait(self.refresh, self.failures, retry, budget, random);
        if failure.is_some() {
            // No other source would have an answer before.
            self.full_due = self.full_due.max(self.pending_due);
        }
        if retry.after.is_some() {
            self.not_before = self.pending_due;
        }
    }
}

/// A random number from the hash seed of the standard library.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// How often a token is read again while requests fail.
const TOKEN_CHECK: Duration = Duration::from_secs(1);

const MIN_REFRESH: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(numbers: &[u64]) -> BTreeSet<CloudSource> {
        numbers.iter().copied().map(CloudSource::Droplet).collect()
    }

    /// A schedule of these sources, all of which were polled now.
    fn polled(numbers: &[u64], now: Instant) -> Schedule {
        let mut schedule = Schedule::new(Duration::from_secs(100));
        schedule.set_sources(&Arc::new(sources(numbers)), now);
        assert_eq!(schedule.start(now), sources(numbers));
        finish(&mut schedule, &[], None, now);
        schedule
    }

    fn finish(schedule: &mut Schedule, failed: &[u64], failure: Option<Retry>, now: Instant) {
        schedule.finish(Poll { cost: 2, failed: sources(failed), failure }, Duration::ZERO, 0, now);
    }

    /// Seconds until the next poll.
    fn due(schedule: &Schedule, now: Instant) -> u64 {
        schedule.due().unwrap().saturating_duration_since(now).as_secs()
    }

    #[test]
    fn new_source_is_polled_at_once_and_the_others_when_they_are_due() {
        let now = Instant::now();
        let mut schedule = polled(&[1, 2], now);
        assert_eq!(due(&schedule, now), 100);
        schedule.set_sources(&Arc::new(sources(&[2, 3])), now);
        assert_eq!(due(&schedule, now), 0);
        assert_eq!(schedule.start(now), sources(&[3]));
        finish(&mut schedule, &[], None, now);
        assert_eq!(due(&schedule, now), 100);
        assert_eq!(schedule.start(now + Duration::from_secs(100)), sources(&[2, 3]));
        schedule.set_sources(&Arc::default(), now);
        assert_eq!(schedule.due(), None);
    }

    #[test]
    fn failed_source_is_retried_before_the_others() {
        let now = Instant::now();
        let mut schedule = polled(&[1, 2], now);
        schedule.start(now + Duration::from_secs(100));
        finish(&mut schedule, &[2], None, now);
        assert_eq!(due(&schedule, now), 7);
        assert_eq!(schedule.start(now + Duration::from_secs(7)), sources(&[2]));
        finish(&mut schedule, &[2], None, now);
        assert_eq!(due(&schedule, now), 15);
        finish(&mut schedule, &[], None, now);
        assert_eq!((due(&schedule, now), schedule.failures), (100, 0));
    }

    #[test]
    fn retry_after_also_delays_new_sources() {
        let now = Instant::now();
        let mut schedule = polled(&[1, 2], now);
        schedule.start(now + Duration::from_secs(100));
        let retry = Retry { after: Some(Duration::from_secs(500)), reset: None };
        finish(&mut schedule, &[1, 2], Some(retry), now);
        schedule.set_sources(&Arc::new(sources(&[1, 2, 3])), now);
        assert_eq!(due(&schedule, now), 500);
        assert_eq!(schedule.start(now + Duration::from_secs(500)), sources(&[1, 2, 3]));
        finish(&mut schedule, &[], None, now);
        assert_eq!(due(&schedule, now), 500, "the plan of a finished poll begins now");
    }
}
