//! When which sources are polled.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::agent::digitalocean::answer::Retry;
use crate::agent::digitalocean::budget::{refresh_wait, retry_wait};
use crate::source::cloud::CloudSource;

/// The plan of the next polls. `budget` is always the wait that the rate limit demands before one more request.
#[derive(Debug)]
pub(super) struct Schedule {
    refresh: Duration,
    sources: Arc<BTreeSet<CloudSource>>,
    /// Sources that are polled before the others: new ones, and those that failed.
    pending: BTreeSet<CloudSource>,
    pending_due: Instant,
    /// When all sources are polled.
    full_due: Instant,
    /// What the API asked for.
    not_before: Instant,
    /// Consecutive polls or probes with a failure.
    failures: u32,
    /// The first request that failed.
    failed_request: Option<String>,
    /// Requests of the last poll of all sources.
    full_cost: u64,
    is_full: bool,
}

/// What is done when a poll is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Resolve these sources.
    Poll(BTreeSet<CloudSource>),
    /// Only repeat the request that failed, because the budget is used up.
    Probe(String),
}

/// A finished poll.
pub(super) struct Poll {
    /// Its requests.
    pub(super) cost: u64,
    pub(super) failed: BTreeSet<CloudSource>,
    /// Set if the service as a whole failed.
    pub(super) failure: Option<Retry>,
    pub(super) failed_request: Option<String>,
}

impl Schedule {
    pub(super) fn new(refresh: Duration) -> Self {
        let now = Instant::now();
        Self {
            refresh,
            sources: Arc::default(),
            pending: BTreeSet::new(),
            pending_due: now,
            full_due: now,
            not_before: now,
            failures: 0,
            failed_request: None,
            full_cost: 0,
            is_full: false,
        }
    }

    /// Takes over the sources. New ones are due at once, or when the budget allows it.
    pub(super) fn set_sources(&mut self, sources: &Arc<BTreeSet<CloudSource>>, budget: Duration, now: Instant) {
        let added: Vec<_> = sources.difference(&self.sources).cloned().collect();
        self.sources = Arc::clone(sources);
        self.pending.retain(|source| sources.contains(source));
        if self.pending.is_empty() {
            self.forget_failures();
        }
        if added.is_empty() {
            return;
        }
        // With an empty budget, the next retry also decides for the new ones.
        if !self.is_failing() || budget.is_zero() {
            self.pending_due = now;
        }
        self.pending.extend(added);
    }

    /// The sources that are polled before the others.
    pub(super) fn pending(&self) -> &BTreeSet<CloudSource> {
        &self.pending
    }

    /// Whether a source waits for another attempt.
    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0 && !self.pending.is_empty()
    }

    /// Makes the failed sources due, because the cause may have gone.
    pub(super) fn retry(&mut self, now: Instant) {
        self.pending_due = now;
    }

    /// When the next turn is due; `None` without sources. Only a retry does not wait for the budget.
    pub(super) fn due(&self, budget: Duration, now: Instant) -> Option<Instant> {
        if self.sources.is_empty() {
            return None;
        }
        let affordable = now + budget;
        let full = self.full_due.max(affordable);
        let due = match (self.pending.is_empty(), self.is_failing()) {
            (true, _) => full,
            (false, true) => full.min(self.pending_due),
            (false, false) => full.min(self.pending_due.max(affordable)),
        };
        Some(due.max(self.not_before))
    }

    /// What to do now.
    pub(super) fn start(&mut self, budget: Duration, now: Instant) -> Turn {
        if self.is_failing()
            && !budget.is_zero()
            && let Some(request) = &self.failed_request
        {
            return Turn::Probe(request.clone());
        }
        self.is_full = now >= self.full_due || self.pending.len() == self.sources.len();
        Turn::Poll(if self.is_full { BTreeSet::clone(&self.sources) } else { self.pending.clone() })
    }

    /// The requests of the next poll of all sources.
    pub(super) fn expected_cost(&self, cost: u64) -> u64 {
        if self.is_full { cost } else { self.full_cost }
    }

    /// Plans what follows a poll. `budget` is the wait before the next poll of all sources.
    pub(super) fn finish(&mut self, poll: Poll, budget: Duration, random: u64, now: Instant) {
        let Poll { cost, failed, failure, failed_request } = poll;
        if self.is_full {
            self.full_due = now + refresh_wait(self.refresh, budget, random);
            self.full_cost = cost;
        }
        self.pending = failed;
        if self.pending.is_empty() {
            self.forget_failures();
        } else {
            self.failed_request = failed_request;
            self.fail(failure, budget, random, now);
        }
    }

    /// Plans a poll, because the request that failed now has an answer.
    pub(super) fn finish_probe(&mut self, now: Instant) {
        self.forget_failures();
        self.pending_due = now;
    }

    /// Plans the next retry. `failure` is set if the service as a whole failed.
    pub(super) fn fail(&mut self, failure: Option<Retry>, budget: Duration, random: u64, now: Instant) {
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

    fn forget_failures(&mut self) {
        self.failures = 0;
        self.failed_request = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent::digitalocean::budget::Budget;

    fn sources(numbers: &[u64]) -> BTreeSet<CloudSource> {
        numbers.iter().copied().map(CloudSource::Droplet).collect()
    }

    /// A schedule of these sources, all of which were polled now.
    fn polled(numbers: &[u64], now: Instant) -> Schedule {
        let mut schedule = Schedule::new(Duration::from_secs(100));
        set(&mut schedule, numbers, now);
        assert_eq!(schedule.start(FREE, now), Turn::Poll(sources(numbers)));
        finish(&mut schedule, &[], None, now);
        schedule
    }

    fn set(schedule: &mut Schedule, numbers: &[u64], now: Instant) {
        schedule.set_sources(&Arc::new(sources(numbers)), FREE, now);
    }

    fn finish(schedule: &mut Schedule, failed: &[u64], failure: Option<Retry>, now: Instant) {
        let failed_request = (!failed.is_empty()).then(|| "/v2/droplets".to_owned());
        schedule.finish(Poll { cost: 2, failed: sources(failed), failure, failed_request }, FREE, 0, now);
    }

    /// Seconds until the next turn.
    fn due(schedule: &Schedule, now: Instant) -> u64 {
        due_with(schedule, FREE, now)
    }

    fn due_with(schedule: &Schedule, budget: Duration, now: Instant) -> u64 {
        schedule.due(budget, now).unwrap().saturating_duration_since(now).as_secs()
    }

    const FREE: Duration = Duration::ZERO;
    const USED_UP: Duration = Duration::from_secs(20);

    #[test]
    fn new_source_is_polled_at_once_and_the_others_when_they_are_due() {
        let now = Instant::now();
        let mut schedule = polled(&[1, 2], now);
        assert_eq!(due(&schedule, now), 100);
        set(&mut schedule, &[2, 3], now);
        assert_eq!(due(&schedule, now), 0);
        assert_eq!(schedule.start(FREE, now), Turn::Poll(sources(&[3])));
        finish(&mut schedule, &[], None, now);
        assert_eq!(due(&schedule, now), 100);
        assert_eq!(schedule.start(FREE, now + Duration::from_secs(100)), Turn::Poll(sources(&[2, 3])));
        schedule.set_sources(&Arc::default(), FREE, now);
        assert_eq!(schedule.due(FREE, now), None);
    }

    #[test]
    fn new_source_waits_for_an_empty_budget() {
        let now = Instant::now();
        let mut schedule = polled(&[1, 2], now);
        schedule.set_sources(&Arc::new(sources(&[1, 2, 3])), USED_UP, now);
        assert_eq!(due_with(&schedule, USED_UP, now), 20);
        assert_eq!(due(&schedule, now), 0);
    }

    #[test]
    fn retry_with_an_empty_budget_is_one_request_until_it_succeeds() {
        let now = Instant::now();
        let mut schedule = polled(&[1, 2], now);
        schedule.start(FREE, now + Duration::from_secs(100));
        finish(&mut schedule, &[1, 2], Some(Retry::default()), now);
        assert_eq!(due_with(&schedule, USED_UP, now), 7, "a retry does not wait for the budget");
        schedule.set_sources(&Arc::new(sources(&[1, 2, 3])), USED_UP, now);
        assert_eq!(due_with(&schedule, USED_UP, now), 7, "nor comes earlier for a new source");
        assert_eq!(schedule.start(USED_UP, now), Turn::Probe("/v2/droplets".to_owned()));
        schedule.fail(Some(Retry::default()), FREE, 0, now);
        assert_eq!(due_with(&schedule, USED_UP, now), 15);
        assert_eq!(schedule.start(USED_UP, now), Turn::Probe("/v2/droplets".to_owned()));
        schedule.finish_probe(now);
        assert_eq!(due_with(&schedule, USED_UP, now), 20, "the poll waits for the budget");
        assert_eq!(schedule.start(FREE, now), Turn::Poll(sources(&[1, 2, 3])));
    }

    #[test]
    fn removed_source_takes_its_failures_along() {
        let now = Instant::now();
        let mut schedule = polled(&[1, 2], now);
        schedule.start(FREE, now + Duration::from_secs(100));
        finish(&mut schedule, &[2], None, now);
        set(&mut schedule, &[1], now);
        set(&mut schedule, &[1, 3], now);
        assert!(!schedule.is_failing());
        assert_eq!(schedule.start(USED_UP, now), Turn::Poll(sources(&[3])));
    }

    #[test]
    fn failed_source_is_retried_before_the_others() {
        let now = Instant::now();
        let mut schedule = polled(&[1, 2], now);
        schedule.start(FREE, now + Duration::from_secs(100));
        finish(&mut schedule, &[2], None, now);
        assert_eq!(due(&schedule, now), 7);
        assert_eq!(schedule.start(FREE, now + Duration::from_secs(7)), Turn::Poll(sources(&[2])));
        finish(&mut schedule, &[2], None, now);
        assert_eq!(due(&schedule, now), 15);
        finish(&mut schedule, &[], None, now);
        assert_eq!((due(&schedule, now), schedule.failures), (100, 0));
    }

    #[test]
    fn retry_after_also_delays_new_sources() {
        let now = Instant::now();
        let mut schedule = polled(&[1, 2], now);
        schedule.start(FREE, now + Duration::from_secs(100));
        let retry = Retry { after: Some(Duration::from_secs(500)), reset: None };
        finish(&mut schedule, &[1, 2], Some(retry), now);
        set(&mut schedule, &[1, 2, 3], now);
        assert_eq!(due(&schedule, now), 500);
        assert_eq!(schedule.start(FREE, now + Duration::from_secs(500)), Turn::Poll(sources(&[1, 2, 3])));
        finish(&mut schedule, &[], None, now);
        assert_eq!(due(&schedule, now), 500, "the plan of a finished poll begins now");
    }

    /// What happens to a turn.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Succeeds,
        SourceFails,
        /// After all requests but the last have succeeded.
        ServiceFails,
    }

    /// Requests of an hour: those of polls, and those of probes.
    #[derive(Debug, Default)]
    struct Sent {
        polls: u64,
        probes: u64,
    }

    /// Drives a schedule for an hour. `additions` are seconds after which one more source is added.
    fn hour(cost: u64, refresh: u64, additions: &[u64], fates: &[Fate], budget: &mut Budget) -> Sent {
        let start = Instant::now();
        let end = start + Duration::from_secs(3_600);
        let mut schedule = Schedule::new(Duration::from_secs(refresh));
        let (mut now, mut numbers, mut sent) = (start, vec![0], Sent::default());
        let mut additions = additions.iter().map(|after| start + Duration::from_secs(*after)).peekable();
        let mut fates = fates.iter().copied().cycle();
        schedule.set_sources(&Arc::new(sources(&numbers)), FREE, now);
        loop {
            let wait = budget.wait(1, now);
            let due = schedule.due(wait, now).unwrap().max(now);
            if let Some(added_at) = additions.next_if(|added_at| *added_at <= due) {
                now = now.max(added_at);
                numbers.push(u64::try_from(numbers.len()).unwrap());
                schedule.set_sources(&Arc::new(sources(&numbers)), budget.wait(1, now), now);
                continue;
            }
            now = due;
            if now > end {
                return sent;
            }
            let fate = fates.next().unwrap_or(Fate::Succeeds);
            let failure = matches!(fate, Fate::ServiceFails).then(Retry::default);
            match schedule.start(budget.wait(1, now), now) {
                Turn::Poll(polled) => {
                    (0..cost).for_each(|_| budget.spend(now));
                    sent.polls += cost;
                    let failed = if matches!(fate, Fate::Succeeds) { BTreeSet::new() } else { polled };
                    let failed_request = (!failed.is_empty()).then(|| "/v2/droplets".to_owned());
                    let wait = budget.wait(schedule.expected_cost(cost), now);
                    schedule.finish(Poll { cost, failed, failure, failed_request }, wait, 0, now);
                }
                Turn::Probe(_) => {
                    budget.spend(now);
                    sent.probes += 1;
                    match fate {
                        Fate::Succeeds => schedule.finish_probe(now),
                        _ => schedule.fail(failure, budget.wait(1, now), 0, now),
                    }
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn additions_and_failures_keep_the_budget(
            cost in 1_u64..300,
            refresh in 1_u64..120,
            mut additions in proptest::collection::vec(0_u64..3_600, 0..200),
            fates in proptest::collection::vec(
                prop_oneof![Just(Fate::Succeeds), Just(Fate::SourceFails), Just(Fate::ServiceFails)], 1..20,
            ),
        ) {
            additions.sort_unstable();
            let mut budget = Budget::new(Instant::now());
            let Sent { polls, probes } = hour(cost, refresh, &additions, &fates, &mut budget);
            prop_assert!(polls <= 1_000 + cost, "{polls} requests of polls");
            // Each came after four refresh times or a minute, or ended a series of failures.
            prop_assert!(probes <= 2 * 3_600 / (4 * refresh).min(60) + polls / cost, "{probes} probes");
        }
    }
}
