//! Resolves droplets, tags, clusters and apps of DigitalOcean.
//!
//! The API has no watch, so it is polled. All sources share one list of the account's droplets.

mod answer;
mod budget;
mod pages;
mod resolve;
mod round;
mod schedule;
mod shapes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::agent::client::api::ApiClient;
use crate::agent::client::endpoint::Endpoint;
use crate::agent::digitalocean::answer::Trouble;
use crate::agent::digitalocean::budget::Budget;
use crate::agent::digitalocean::round::{Api, Outcome};
use crate::agent::digitalocean::schedule::{Poll, Schedule, Turn};
use crate::jitter::random;
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
        let now = Instant::now();
        let budget = api.budget.wait(1, now);
        schedule.set_sources(&sources.borrow_and_update(), budget, now);
        let due = schedule.due(budget, now);
        tokio::select! {
            changed = sources.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            // Whoever replaces a token waits for its effect.
            () = sleep(TOKEN_CHECK), if schedule.is_failing() => {
                if api.has_newer_token() {
                    schedule.retry(Instant::now());
                }
                continue;
            }
        }
        let now = Instant::now();
        let observations = match schedule.start(api.budget.wait(1, now), now) {
            Turn::Poll(polled) => poll(&mut api, &mut schedule, &polled).await,
            Turn::Probe(request) => probe(&mut api, &mut schedule, &request).await,
        };
        for one in observations {
            if observed.send(one).await.is_err() {
                return;
            }
        }
    }
}

/// Resolves these sources, and plans what follows.
async fn poll(
    api: &mut Api,
    schedule: &mut Schedule,
    polled: &BTreeSet<CloudSource>,
) -> Vec<(CloudSource, Observation)> {
    let before = api.budget.requests();
    let Outcome { observations, failure, failed_request } = api.resolve(polled).await;
    let is_failure = |observation: &Observation| matches!(observation, Observation::Failed { .. });
    let failed = observations.iter().filter(|(_, observation)| is_failure(observation));
    let failed = failed.map(|(source, _)| source.clone()).collect();
    let cost = api.budget.requests().saturating_sub(before);
    let now = Instant::now();
    let wait = api.budget.wait(schedule.expected_cost(cost), now);
    schedule.finish(Poll { cost, failed, failure, failed_request }, wait, random(), now);
    observations
}

/// Repeats the request that failed, and plans what follows.
async fn probe(api: &mut Api, schedule: &mut Schedule, request: &str) -> Vec<(CloudSource, Observation)> {
    let trouble = api.probe(request).await.err();
    let now = Instant::now();
    let wait = api.budget.wait(1, now);
    match trouble {
        None => {
            schedule.finish_probe(now);
            Vec::new()
        }
        Some(Trouble::Service { error, retry }) => {
            schedule.fail(Some(retry), wait, random(), now);
            let failed = |source: &CloudSource| (source.clone(), Observation::Failed { error: error.clone() });
            schedule.pending().iter().map(failed).collect()
        }
        // Which sources need it is known only to a poll, which has reported them.
        Some(Trouble::Gone | Trouble::Request(_)) => {
            schedule.fail(None, wait, random(), now);
            Vec::new()
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

/// How often a token is read again while requests fail.
const TOKEN_CHECK: Duration = Duration::from_secs(1);

const MIN_REFRESH: Duration = Duration::from_secs(1);
