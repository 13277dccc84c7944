//! Looks after the host names that rules trust, for as long as the program runs: each is asked for again and again, and what
//! is known of it is kept on disk.
//!
//! The next look is due when the answer may be another one, by the time to live of its records, and after the refresh time
//! of the name at the latest.
//!
//! What comes of a look is noted in [`HostCache`]; the one task that publishes policies hears of it there.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use crate::dns::cache_file::CacheFile;
use crate::dns::lookup::{Answer, ask};
use crate::dns::ttl::TtlProbe;
use crate::dns::{HostCache, HostChange, Watched};
use crate::fault;
use crate::source::host::{AddressBook, Addresses, HostName};
use crate::timestamp;

/// Looks after the names that rules trust until there are none any more.
pub(crate) async fn run(current: watch::Receiver<Arc<Watched>>, host_cache: Arc<HostCache>) {
    let places = Arc::new(Semaphore::new(MOST_LOOKUPS));
    let mut resolver = Refresher {
        current,
        host_cache,
        lives: Arc::default(),
        places,
        plans: BTreeMap::new(),
        lookups: JoinSet::new(),
        cache_file: None,
        writing: JoinSet::new(),
        unwritable: false,
    };
    resolver.plan();
    resolver.keep();
    while resolver.step().await {}
}

struct Refresher {
    current: watch::Receiver<Arc<Watched>>,
    host_cache: Arc<HostCache>,
    lives: Arc<TtlProbe>,
    /// Bounds how many threads hang in the system's resolver.
    places: Arc<Semaphore>,
    plans: BTreeMap<HostName, LookupPlan>,
    lookups: JoinSet<FinishedLookup>,
    /// What was given to be written last, and where.
    cache_file: Option<(CacheFile, AddressBook)>,
    /// At most one write at a time: a disk may hang, and the names must be looked after all the same.
    writing: JoinSet<Result<(), String>>,
    /// Whether the last write failed, so that this is said once.
    unwritable: bool,
}

/// A look at a name, over.
struct FinishedLookup {
    name: HostName,
    answer: Answer,
    /// Until when the answer is good, where that is known.
    good_until: Option<Instant>,
}

/// When a name is asked for next.
struct LookupPlan {
    refresh: Duration,
    /// Nothing while it is being asked for.
    due: Option<Instant>,
    /// Looks that failed in a row.
    failures: u32,
}

impl Refresher {
    /// One thing that happens. Returns whether there will be another.
    async fn step(&mut self) -> bool {
        let due = self.plans.values().filter_map(|plan| plan.due).min();
        tokio::select! {
            changed = self.current.changed() => match changed {
                Ok(()) => self.plan(),
                Err(_) => return false,
            },
            Some(done) = self.lookups.join_next() => match done {
                Ok(look) => self.note(look),
                // Nobody knows which name it was, so all that are being asked for are asked for again.
                Err(error) => {
                    fault::note_task(PART, error);
                    self.plans.values_mut().for_each(|plan| plan.due = plan.due.or(Some(Instant::now() + plan.refresh)));
                }
            },
            Some(done) = self.writing.join_next() => self.written(done.unwrap_or(Ok(()))),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.ask_those_due(),
        }
        self.keep();
        true
    }

    /// Takes over the names of the snapshot that has come into force. New ones have just been asked for, but nobody knows
    /// yet for how long the answer is good; so those that have one are looked at once more.
    fn plan(&mut self) {
        let watched = Arc::clone(&self.current.borrow_and_update());
        let now = Instant::now();
        let mut plans = BTreeMap::new();
        for (name, refresh) in watched.refresh.clone() {
            let plan = match self.plans.remove(&name) {
                Some(plan) if plan.refresh == refresh => plan,
                Some(LookupPlan { due, failures, .. }) => {
                    let due = due.map(|due| due.min(now + pause(refresh, failures, random())));
                    if let Some(due) = due {
                        let wait = due.saturating_duration_since(now);
                        self.host_cache.plan(&name, timestamp::after(OffsetDateTime::now_utc(), wait));
                    }
                    LookupPlan { refresh, due, failures }
                }
                None => {
                    let failing = self.host_cache.state(&name).is_none_or(|state| state.failure.is_some());
                    let wait = if failing { pause(refresh, 1, random()) } else { Duration::ZERO };
                    LookupPlan { refresh, due: Some(now + wait), failures: failing.into() }
                }
            };
            plans.insert(name, plan);
        }
        self.plans = plans;
        self.lives.keep_only(&self.plans.keys().collect::<BTreeSet<_>>());
    }

    fn ask_those_due(&mut self) {
        let now = Instant::now();
        for (name, plan) in &mut self.plans {
            if plan.due.is_some_and(|due| due <= now) {
                plan.due = None;
                let (name, host_cache, places) = (name.clone(), Arc::clone(&self.host_cache), Arc::clone(&self.places));
                // Of a name that fails no time to live is of use: it is tried again soon.
                let lives = (plan.failures == 0).then(|| Arc::clone(&self.lives));
                self.lookups.spawn(async move {
                    let good_until = match lives {
                        Some(lives) => good_until(name.clone(), lives, &places).await,
                        None => None,
                    };
                    let known = host_cache.state(&name).and_then(|state| state.good);
                    let asking = || ask_once(name.clone(), Arc::clone(&places));
                    let answer = look(known.map(|(known, _)| known), asking).await;
                    FinishedLookup { name, answer, good_until }
                });
            }
        }
    }

    fn note(&mut self, FinishedLookup { name, answer, good_until }: FinishedLookup) {
        // It may have been taken out meanwhile.
        let Some(plan) = self.plans.get_mut(&name) else { return };
        let failures = if answer.is_ok() { 0 } else { plan.failures.saturating_add(1) };
        let wait = if failures == 0 && plan.failures > 0 {
            // Nobody has asked yet for how long that is good.
            self.lives.hope_for(&name);
            SHORTEST
        } else {
            let good_for = good_until.map(|until| until.saturating_duration_since(Instant::now()));
            wait(pause(plan.refresh, failures, random()), good_for.filter(|_| failures == 0))
        };
        plan.failures = failures;
        plan.due = Some(Instant::now() + wait);
        let now = OffsetDateTime::now_utc();
        match self.host_cache.note(&name, answer, now) {
            Some(HostChange::Bad(words)) => warn!(detail = %words, "dns source degraded"),
            Some(HostChange::Good(words)) => info!(detail = %words, "dns source recovered"),
            None => {}
        }
        self.host_cache.plan(&name, timestamp::after(now, wait));
    }

    /// Has written what is known, where that is something else than before.
    fn keep(&mut self) {
        let cache_file = self.current.borrow().cache_file.clone();
        let known = (cache_file, self.host_cache.book(self.plans.keys()));
        if !self.writing.is_empty()
            || self.cache_file.as_ref() == Some(&known)
            || (self.cache_file.is_none() && known.1.is_empty())
        {
            return;
        }
        let (cache_file, host_cache, list) =
            (known.0.clone(), Arc::clone(&self.host_cache), Vec::from_iter(self.plans.keys().cloned()));
        self.writing.spawn_blocking(move || {
            fault::contain(PART, || cache_file.write(&host_cache, &list)).unwrap_or_else(|fault| Err(fault.to_string()))
        });
        self.cache_file = Some(known);
    }

    fn written(&mut self, result: Result<(), String>) {
        if let Err(error) = &result
            && !self.unwritable
        {
            warn!(%error, "cannot write the last good answers");
        }
        self.unwritable = result.is_err();
    }
}

/// Asks for a name. An answer that takes an address away has to be given twice: of a name with addresses of both families
/// the system's resolver answers with one, where the question for the other one fails.
async fn look<F: Future<Output = Answer>>(known: Option<Addresses>, ask: impl Fn() -> F) -> Answer {
    let (first, omitted) = ask().await?;
    if known.is_none_or(|known| first.cover(&known)) {
        return Ok((first, omitted));
    }
    sleep(BEFORE_THE_SECOND).await;
    let (second, omitted) = ask().await?;
    Ok((first.and(&second), omitted))
}

/// Until when what the system's resolver will answer from now on is good, where that can be learnt.
async fn good_until(name: HostName, lives: Arc<TtlProbe>, places: &Arc<Semaphore>) -> Option<Instant> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    let asked = Instant::now();
    let time = fault::contained_blocking(PART, move || {
        let _place = place;
        lives.of(&name)
    });
    Some(asked + time.await.ok()??)
}

/// The thread stays taken until the system's resolver gives up, also when nobody waits for it any more.
async fn ask_once(name: HostName, places: Arc<Semaphore>) -> Answer {
    let place = places.acquire_owned().await.map_err(|error| error.to_string())?;
    let answer = fault::contained_blocking(PART, move || {
        let _place = place;
        ask(&name)
    });
    match timeout(PATIENCE, answer).await {
        Ok(answer) => answer.unwrap_or_else(|fault| Err(fault.to_string())),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// How long to wait where an answer is good for a known time: no longer than the pause, and a second at least.
fn wait(pause: Duration, good_for: Option<Duration>) -> Duration {
    good_for.map_or(pause, |time| time.max(SHORTEST).min(pause))
}

/// How long to wait before a name is asked for again: its refresh time, a little less by chance, so that names do not stay
/// together; after failures less, at first.
fn pause(refresh: Duration, failures: u32, random: u64) -> Duration {
    let whole = match failures {
        0 => refresh,
        _ => {
            let doubled = FIRST_RETRY.saturating_mul(1 << (failures - 1).min(16));
            doubled.min(refresh).min(LAST_RETRY)
        }
    };
    let tenth = u32::try_from(random % 1_000).unwrap_or_default();
    whole.saturating_sub(whole / 10_000 * tenth)
}

/// The standard library's hash maps need chance, too, and this is theirs.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// What its faults are noted under.
pub(crate) const PART: &str = "resolver";

/// Lookups under way at once, one thread each.
const MOST_LOOKUPS: usize = 8;

/// How long the system's resolver may take.
const PATIENCE: Duration = Duration::from_secs(10);

const BEFORE_THE_SECOND: Duration = Duration::from_secs(1);

/// The least time between two looks at a name, whatever its records say.
const SHORTEST: Duration = Duration::from_secs(1);

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

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

    /// What comes of a look at a name that was 10.0.0.1 and 10.0.0.2, where these are the answers; and how many are left.
    async fn looked(answers: &[&[u8]]) -> (Result<String, String>, usize) {
        let left = RefCell::new(answers.iter());
        let (known, _) = answer(&[1, 2]).unwrap();
        let found = look(Some(known), || ready(answer(left.borrow_mut().next().unwrap()))).await;
        (found.map(|(found, _)| found.to_string()), left.into_inner().len())
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_gone_when_two_answers_do_not_have_it() {
        let found = |text: &str| Ok(text.to_owned());
        assert_eq!(looked(&[&[1, 2, 3], &[]]).await, (found("10.0.0.1, 10.0.0.2, 10.0.0.3"), 1));
        assert_eq!(looked(&[&[1], &[1]]).await, (found("10.0.0.1"), 0));
        assert_eq!(looked(&[&[1], &[2, 1]]).await, (found("10.0.0.1, 10.0.0.2"), 0));
        assert_eq!(looked(&[&[3], &[4]]).await, (found("10.0.0.3, 10.0.0.4"), 0));
        assert!(looked(&[&[1], &[]]).await.0.is_err(), "the last good answer stays whole");
        assert!(matches!(looked(&[&[], &[1]]).await, (Err(_), 1)));
    }

    #[test]
    fn what_fails_is_tried_again_soon_and_then_more_seldom() {
        let seconds = |refresh, failures| pause(Duration::from_secs(refresh), failures, 0).as_secs();
        assert_eq!([0, 1, 2, 3, 5, 6, 7, 99].map(|failures| seconds(30, failures)), [30, 1, 2, 4, 16, 30, 30, 30]);
        assert_eq!([0, 1, 7, 99, u32::MAX].map(|failures| seconds(3600, failures)), [3600, 1, 60, 60, 60]);
        assert_eq!([0, 1, 9].map(|failures| seconds(1, failures)), [1, 1, 1]);
    }

    #[test]
    fn the_time_to_live_shortens_the_wait_and_never_makes_it_longer() {
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
        fn a_pause_is_never_longer_than_the_refresh_time_and_never_nothing(
            refresh in 1_000_u64..10_000_000, failures: u32, random: u64,
        ) {
            let refresh = Duration::from_millis(refresh);
            let pause = pause(refresh, failures, random);
            prop_assert!(pause <= refresh && pause >= Duration::from_millis(900), "{pause:?}");
        }
    }
}
