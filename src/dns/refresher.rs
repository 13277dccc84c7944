//! Refreshes the host names in trusted sources.
//!
//! The next lookup of a name is due when the time to live of its records expires, and after its refresh time at the latest.
//!
//! Results go to [`ResolutionCache`], which notifies the task that publishes policies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use crate::dns::lookup::lookup;
use crate::dns::ttl::TtlProbe;
use crate::fault;
use crate::jitter;
use crate::resolution::cache::ResolutionCache;
use crate::resolution::host::{Answer, HostChange};
use crate::source::addresses::Addresses;
use crate::source::host::HostName;
use crate::timestamp;

/// The names to refresh, each with the maximum time between two lookups.
pub(crate) type Watched = BTreeMap<HostName, Duration>;

/// Refreshes the watched names until the policy channel is closed.
pub(crate) async fn run(current: watch::Receiver<Arc<Watched>>, cache: Arc<ResolutionCache>) {
    let permits = Arc::new(Semaphore::new(MAX_CONCURRENT_LOOKUPS));
    let mut refresher = Refresher {
        current,
        cache,
        ttl_probe: Arc::default(),
        permits,
        plans: BTreeMap::new(),
        lookups: JoinSet::new(),
    };
    refresher.plan();
    while refresher.step().await {}
}

struct Refresher {
    current: watch::Receiver<Arc<Watched>>,
    cache: Arc<ResolutionCache>,
    ttl_probe: Arc<TtlProbe>,
    /// Bounds the number of threads that wait for the system's resolver.
    permits: Arc<Semaphore>,
    plans: BTreeMap<HostName, LookupPlan>,
    lookups: JoinSet<FinishedLookup>,
}

/// A finished lookup.
struct FinishedLookup {
    name: HostName,
    answer: Answer,
    /// When the time to live of the answer expires, if it is known.
    good_until: Option<Instant>,
}

/// The schedule of a name.
struct LookupPlan {
    refresh: Duration,
    /// `None` while a lookup is running.
    due: Option<Instant>,
    /// Consecutive failed lookups.
    failures: u32,
}

impl Refresher {
    /// Handles one event. Returns whether to continue.
    async fn step(&mut self) -> bool {
        let due = self.plans.values().filter_map(|plan| plan.due).min();
        tokio::select! {
            changed = self.current.changed() => match changed {
                Ok(()) => self.plan(),
                Err(_) => return false,
            },
            Some(done) = self.lookups.join_next() => match done {
                Ok(lookup) => self.note(lookup),
                // It is unknown which name it was, so all running lookups are scheduled again.
                Err(error) => {
                    fault::note_task(PART, error);
                    self.plans.values_mut().for_each(|plan| plan.due = plan.due.or(Some(Instant::now() + plan.refresh)));
                }
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.start_due_lookups(),
        }
        true
    }

    /// Takes over the names of the policy that has come into force. New names were just looked up, but without their time to
    /// live, so those with an answer are looked up once more.
    fn plan(&mut self) {
        let watched = Arc::clone(&self.current.borrow_and_update());
        let now = Instant::now();
        let mut plans = BTreeMap::new();
        for (name, refresh) in Watched::clone(&watched) {
            let plan = match self.plans.remove(&name) {
                Some(plan) if plan.refresh == refresh => plan,
                Some(LookupPlan { due, failures, .. }) => {
                    let due = due.map(|due| due.min(now + pause(refresh, failures, jitter::random())));
                    if let Some(due) = due {
                        let wait = due.saturating_duration_since(now);
                        self.cache.plan(&name, timestamp::after(OffsetDateTime::now_utc(), wait));
                    }
                    LookupPlan { refresh, due, failures }
                }
                None => {
                    let failing = self.cache.host(&name).is_none_or(|state| state.failure.is_some());
                    let wait = if failing { pause(refresh, 1, jitter::random()) } else { Duration::ZERO };
                    LookupPlan { refresh, due: Some(now + wait), failures: failing.into() }
                }
            };
            plans.insert(name, plan);
        }
        self.plans = plans;
        self.ttl_probe.keep_only(&self.plans.keys().collect::<BTreeSet<_>>());
    }

    fn start_due_lookups(&mut self) {
        let now = Instant::now();
        for (name, plan) in &mut self.plans {
            if plan.due.is_some_and(|due| due <= now) {
                plan.due = None;
                let (name, cache, permits) = (name.clone(), Arc::clone(&self.cache), Arc::clone(&self.permits));
                // A failing name needs no time to live, because it is retried soon.
                let ttl_probe = (plan.failures == 0).then(|| Arc::clone(&self.ttl_probe));
                self.lookups.spawn(async move {
                    let good_until = match ttl_probe {
                        Some(ttl_probe) => good_until(name.clone(), ttl_probe, &permits).await,
                        None => None,
                    };
                    let known = cache.host(&name).and_then(|state| state.good);
                    let ask = || lookup_once(name.clone(), Arc::clone(&permits));
                    let answer = confirmed_lookup(known.map(|(known, _)| known), ask).await;
                    FinishedLookup { name, answer, good_until }
                });
            }
        }
    }

    fn note(&mut self, FinishedLookup { name, answer, good_until }: FinishedLookup) {
        // The name may have been removed meanwhile.
        let Some(plan) = self.plans.get_mut(&name) else { return };
        let failures = if answer.is_ok() { 0 } else { plan.failures.saturating_add(1) };
        let wait = if failures == 0 && plan.failures > 0 {
            // The time to live of this answer is not known yet.
            self.ttl_probe.retry_at_once(&name);
            MIN_WAIT
        } else {
            let good_for = good_until.map(|until| until.saturating_duration_since(Instant::now()));
            wait(pause(plan.refresh, failures, jitter::random()), good_for.filter(|_| failures == 0))
        };
        plan.failures = failures;
        plan.due = Some(Instant::now() + wait);
        let now = OffsetDateTime::now_utc();
        match self.cache.note(&name, answer, now) {
            Some(HostChange::Degraded(message)) => warn!(detail = %message, "dns source degraded"),
            Some(HostChange::Recovered(message)) => info!(detail = %message, "dns source recovered"),
            None => {}
        }
        self.cache.plan(&name, timestamp::after(now, wait));
    }
}

/// Looks a name up, twice if the answer lacks a known address. For a name with addresses of both families, the system's resolver
/// returns one family if the query for the other fails.
async fn confirmed_lookup<F: Future<Output = Answer>>(known: Option<Addresses>, ask: impl Fn() -> F) -> Answer {
    let (first, omitted) = ask().await?;
    if known.is_none_or(|known| first.cover(&known)) {
        return Ok((first, omitted));
    }
    sleep(CONFIRMATION_DELAY).await;
    let (second, omitted) = ask().await?;
    Ok((first.and(&second), omitted))
}

/// When the next answer of the system's resolver expires, if that can be determined.
async fn good_until(name: HostName, ttl_probe: Arc<TtlProbe>, permits: &Arc<Semaphore>) -> Option<Instant> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    let asked = Instant::now();
    let time = fault::contained_blocking(PART, move || {
        let _permit = permit;
        ttl_probe.of(&name)
    });
    Some(asked + time.await.ok()??)
}

/// Looks a name up. The thread is occupied until the system's resolver returns, even after the timeout.
async fn lookup_once(name: HostName, permits: Arc<Semaphore>) -> Answer {
    let permit = permits.acquire_owned().await.map_err(|error| error.to_string())?;
    let answer = fault::contained_blocking(PART, move || {
        let _permit = permit;
        lookup(&name)
    });
    match timeout(LOOKUP_TIMEOUT, answer).await {
        Ok(answer) => answer.unwrap_or_else(|fault| Err(fault.to_string())),
        Err(_) => Err(format!("no answer within {LOOKUP_TIMEOUT:?}")),
    }
}

/// The wait after an answer with this time to live: at least [`MIN_WAIT`], at most `pause`.
fn wait(pause: Duration, good_for: Option<Duration>) -> Duration {
    good_for.map_or(pause, |time| time.max(MIN_WAIT).min(pause))
}

/// The maximum wait before the next lookup: the refresh time, or an exponential backoff after failures. It is reduced by a
/// random part of up to 10%, so that lookups of several names spread out.
fn pause(refresh: Duration, failures: u32, random: u64) -> Duration {
    let whole = match failures {
        0 => refresh,
        _ => {
            let doubled = MIN_RETRY.saturating_mul(1 << (failures - 1).min(16));
            doubled.min(refresh).min(MAX_RETRY)
        }
    };
    jitter::less(whole, 10, random)
}

/// The name of this part in fault reports.
pub(crate) const PART: &str = "resolver";

/// Maximum number of concurrent lookups, each with one thread.
const MAX_CONCURRENT_LOOKUPS: usize = 8;

/// The time that the system's resolver may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

const CONFIRMATION_DELAY: Duration = Duration::from_secs(1);

/// The minimum time between two lookups of a name, whatever the time to live of its records.
const MIN_WAIT: Duration = Duration::from_secs(1);

const MIN_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::ready;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn answer(last: &[u8]) -> Answer {
        let ips = last.iter().map(|last| IpAddr::from([10, 0, 0, *last]));
        Addresses::of(ips).map_err(|error| error.to_string())
    }

    /// The result of a lookup of a name with the known addresses 10.0.0.1 and 10.0.0.2, and the number of unused answers.
    async fn looked(answers: &[&[u8]]) -> (Result<String, String>, usize) {
        let left = RefCell::new(answers.iter());
        let (known, _) = answer(&[1, 2]).unwrap();
        let found = confirmed_lookup(Some(known), || ready(answer(left.borrow_mut().next().unwrap()))).await;
        (found.map(|(found, _)| found.to_string()), left.into_inner().len())
    }

    #[tokio::test(start_paused = true)]
    async fn address_is_removed_when_two_answers_lack_it() {
        let found = |text: &str| Ok(text.to_owned());
        assert_eq!(looked(&[&[1, 2, 3], &[]]).await, (found("10.0.0.1, 10.0.0.2, 10.0.0.3"), 1));
        assert_eq!(looked(&[&[1], &[1]]).await, (found("10.0.0.1"), 0));
        assert_eq!(looked(&[&[1], &[2, 1]]).await, (found("10.0.0.1, 10.0.0.2"), 0));
        assert_eq!(looked(&[&[3], &[4]]).await, (found("10.0.0.3, 10.0.0.4"), 0));
        assert!(looked(&[&[1], &[]]).await.0.is_err(), "the last good answer stays whole");
        assert!(matches!(looked(&[&[], &[1]]).await, (Err(_), 1)));
    }

    #[test]
    fn failed_lookup_is_retried_with_exponential_backoff() {
        let seconds = |refresh, failures| pause(Duration::from_secs(refresh), failures, 0).as_secs();
        assert_eq!([0, 1, 2, 3, 5, 6, 7, 99].map(|failures| seconds(30, failures)), [30, 1, 2, 4, 16, 30, 30, 30]);
        assert_eq!([0, 1, 7, 99, u32::MAX].map(|failures| seconds(3600, failures)), [3600, 1, 60, 60, 60]);
        assert_eq!([0, 1, 9].map(|failures| seconds(1, failures)), [1, 1, 1]);
    }

    #[test]
    fn time_to_live_shortens_the_wait_and_never_extends_it() {
        let milliseconds = Duration::from_millis;
        for (good_for, expected) in [
            (None, 30_000),
            (Some(0), 1_000),
            (Some(999), 1_000),
            (Some(5_000), 5_000),
            (Some(31_000), 30_000),
            (Some(u64::MAX), 30_000),
        ] {
            assert_eq!(wait(milliseconds(30_000), good_for.map(milliseconds)), milliseconds(expected), "{good_for:?}");
        }
        assert_eq!(wait(milliseconds(900), Some(Duration::ZERO)), milliseconds(900));
    }

    proptest! {
        #[test]
        fn pause_is_never_zero_and_never_exceeds_the_refresh_time(
            refresh in 1_000_u64..10_000_000, failures: u32, random: u64,
        ) {
            let refresh = Duration::from_millis(refresh);
            let pause = pause(refresh, failures, random);
            prop_assert!(pause <= refresh && pause >= Duration::from_millis(900), "{pause:?}");
        }
    }
}
