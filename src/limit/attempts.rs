//! Slows down the attempts to authenticate of a source, and as a user, that fail often.
//!
//! Only failures count, so any number of clients with the right password connect at once. After 20 failures in a second of one
//! source, or as one user from any sources, each further attempt waits for its turn before it is judged, 20 turns a second. A
//! turn is at most [`MAX_DELAY`] away: however often others fail, a client with the right password is admitted.
//!
//! Users count whether they exist or not, because a difference would tell which do. Clients choose these names, so only a keyed
//! hash of each is kept, in a table of fixed size.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::time::{Duration, Instant};

use crate::addr::{ClientAddr, SourceKey};
use crate::limit::gcra::{Gcra, GcraLimit};
use crate::limit::table::{BoundedTable, SourceTable, TableEntry};

/// The failures of all sources and users of one listener. Clients of Unix sockets are one source.
#[derive(Debug)]
pub(crate) struct AttemptLimiter {
    /// Origin of the times in the tables.
    start: Instant,
    hasher: RandomState,
    sources: SourceTable<Failures>,
    users: UserTable,
    successes: BoundedTable<Pairing, LastSuccess, 32>,
}

/// A keyed hash of a source and a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pairing(u64);

/// Milliseconds since the start, and one; 0 for never.
#[derive(Debug, Default)]
struct LastSuccess(u64);

/// The failures of all users, 16,384 in total.
type UserTable = BoundedTable<UserKey, Failures, 32>;

/// A keyed hash of a name. Two names with the same one would only wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct UserKey(u64);

/// The state of one source or user.
#[derive(Debug, Default)]
struct Failures(Gcra);

/// The turn of one attempt. Ends with [`AttemptLimiter::failed`] or [`AttemptLimiter::succeeded`]; one whose client leaves
/// before remains counted.
#[must_use]
#[derive(Debug)]
pub(crate) struct Turn {
    /// How long to wait before the attempt is judged; at most [`MAX_DELAY`].
    pub(crate) delay: Duration,
    source: Share<Option<SourceKey>>,
    /// `None` for a user that has succeeded from this source before. Guesses from elsewhere do not slow it down.
    user: Option<Share<UserKey>>,
    pairing: Pairing,
}

/// What a turn takes from the limit of one source or user.
#[derive(Debug)]
struct Share<K> {
    key: K,
    /// The turn is counted like a failure until the attempt succeeds.
    is_counted: bool,
}

impl TableEntry for Failures {
    fn score(&self) -> u64 {
        self.0.theoretical_arrival()
    }
}

impl TableEntry for LastSuccess {
    fn score(&self) -> u64 {
        self.0
    }
}

impl Default for AttemptLimiter {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            hasher: RandomState::new(),
            sources: SourceTable::default(),
            users: UserTable::default(),
            successes: BoundedTable::default(),
        }
    }
}

impl AttemptLimiter {
    /// Returns the turn of an attempt to authenticate as a user, who need not exist.
    pub(crate) fn turn(&self, client: ClientAddr, user: &[u8], now: Instant) -> Turn {
        let now = self.since_start(now);
        let (by_source, source) = Share::take(&self.sources, client.source_key(), now);
        let pairing = Pairing(self.hasher.hash_one((client.source_key(), user)));
        if self.successes.of(pairing, |LastSuccess(at)| *at > 0).0 {
            return Turn { delay: by_source, source, user: None, pairing };
        }
        let (by_user, user) = Share::take(&self.users, UserKey(self.hasher.hash_one(user)), now);
        Turn { delay: by_source.max(by_user), source, user: Some(user), pairing }
    }

    /// Counts an attempt that has failed.
    pub(crate) fn failed(&self, turn: &Turn, now: Instant) {
        let now = self.since_start(now);
        turn.source.count(&self.sources, now);
        turn.user.iter().for_each(|user| user.count(&self.users, now));
    }

    /// Gives the turn of an attempt that has succeeded to the next one.
    pub(crate) fn succeeded(&self, turn: &Turn, now: Instant) {
        turn.source.give_back(&self.sources);
        turn.user.iter().for_each(|user| user.give_back(&self.users));
        let at = u64::try_from(self.since_start(now).as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        self.successes.of(turn.pairing, |success| success.0 = at);
    }

    fn since_start(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }
}

impl<K: Copy + Eq + Hash> Share<K> {
    /// Takes a turn. Returns the time until then.
    fn take<const ROWS: usize>(table: &BoundedTable<K, Failures, ROWS>, key: K, now: Duration) -> (Duration, Self) {
        let take = |Failures(gcra): &mut Failures| match gcra.wait(LIMIT, now) {
            Duration::ZERO => (Duration::ZERO, false),
            delay if delay > MAX_DELAY => (MAX_DELAY, false),
            delay => {
                gcra.overdraw(LIMIT, 1, now);
                (delay, true)
            }
        };
        let (delay, is_counted) = table.of(key, take).0;
        (delay, Self { key, is_counted })
    }

    fn count<const ROWS: usize>(&self, table: &BoundedTable<K, Failures, ROWS>, now: Duration) {
        if !self.is_counted {
            let count = |Failures(gcra): &mut Failures| {
                // A debt beyond the last turn would only be waited for by nobody.
                if gcra.wait(LIMIT, now) <= MAX_DELAY {
                    gcra.overdraw(LIMIT, 1, now);
                }
            };
            table.of(self.key, count);
        }
    }

    fn give_back<const ROWS: usize>(&self, table: &BoundedTable<K, Failures, ROWS>) {
        if self.is_counted {
            table.of(self.key, |Failures(gcra)| gcra.give_back(LIMIT));
        }
    }
}

/// Failures of one source or user: 20 at once, then 20 a second.
const LIMIT: GcraLimit = GcraLimit { burst: 20, interval: Duration::from_millis(50) };

/// The longest wait for a turn. Shorter than half of the default of `handshake_timeout`.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(number: u32) -> ClientAddr {
        ClientAddr::from_ip(std::net::Ipv4Addr::from(0x0a00_0000 + number).into())
    }

    /// The delays of attempts that arrive at once and fail, each from the source and as the user of its number.
    fn fail(limiter: &AttemptLimiter, attempts: impl IntoIterator<Item = (u32, u32)>, now: Instant) -> Vec<Duration> {
        let mut delays = Vec::new();
        for (source, user) in attempts {
            let turn = limiter.turn(client(source), &user.to_be_bytes(), now);
            limiter.failed(&turn, now);
            delays.push(turn.delay);
        }
        delays
    }

    fn assert_slows_down(one_key: fn(u32) -> (u32, u32), another: (u32, u32)) {
        let limiter = AttemptLimiter::default();
        let delays = fail(&limiter, (0..1000).map(one_key), limiter.start);
        assert!(delays.iter().take(20).all(Duration::is_zero));
        assert_eq!(delays[20], Duration::from_millis(50));
        assert_eq!(delays[59], Duration::from_secs(2));
        assert_eq!(delays[999], MAX_DELAY);
        assert_eq!(fail(&limiter, [another], limiter.start), [Duration::ZERO]);
        let later = limiter.start + MAX_DELAY + Duration::from_secs(2);
        assert_eq!(fail(&limiter, [one_key(2000)], later), [Duration::ZERO], "the debt is bounded");
    }

    #[test]
    fn failures_of_a_source_as_any_users_wait_and_never_longer_than_the_maximum() {
        assert_slows_down(|number| (1, number), (2, 3000));
    }

    #[test]
    fn failures_as_a_user_from_any_sources_wait_and_never_longer_than_the_maximum() {
        assert_slows_down(|number| (number, 1), (3000, 2));
    }

    #[test]
    fn user_who_is_guessed_at_waits_also_among_many_other_names() {
        let limiter = AttemptLimiter::default();
        fail(&limiter, (0..1000).map(|number| (number, 1)), limiter.start);
        fail(&limiter, (0..200_000).map(|number| (number, 2 + number)), limiter.start);
        let mut known = 0;
        limiter.users.each(|_, _| known += 1);
        assert!(known <= 16_384, "{known}");
        assert_eq!(limiter.turn(client(300_000), &1_u32.to_be_bytes(), limiter.start).delay, MAX_DELAY);
    }

    #[test]
    fn successes_do_not_count() {
        let limiter = AttemptLimiter::default();
        let now = limiter.start;
        let succeed = |expected: Duration| {
            for _ in 0..1000 {
                let turn = limiter.turn(client(1), b"app", now);
                assert_eq!(turn.delay, expected);
                limiter.succeeded(&turn, now);
            }
        };
        succeed(Duration::ZERO);
        for number in 0..20 {
            let turn = limiter.turn(client(1), &[number], now);
            limiter.failed(&turn, now);
        }
        succeed(Duration::from_millis(50));
    }

    #[test]
    fn user_that_has_succeeded_from_a_source_does_not_wait_for_guesses_from_others() {
        let limiter = AttemptLimiter::default();
        let now = limiter.start;
        let turn = |source| limiter.turn(client(source), b"app", now);
        limiter.succeeded(&turn(1), now);
        for source in 100..2000 {
            let turn = turn(source);
            limiter.failed(&turn, now);
        }
        assert_eq!((turn(1).delay, turn(2).delay), (Duration::ZERO, MAX_DELAY));
        for _ in 0..20 {
            limiter.failed(&turn(1), now);
        }
        assert!(turn(1).delay > Duration::ZERO, "its own failures count");
    }

    proptest! {
        /// Guesses from any sources as any users, with pauses in milliseconds.
        #[test]
        fn turns_are_never_late_and_judged_guesses_stay_within_the_limit(
            guesses in prop::collection::vec((0_u32..4, 0_u32..4, prop_oneof![4 => Just(0), 1 => 0_u64..400]), 1..300),
        ) {
            let limiter = AttemptLimiter::default();
            let mut now = limiter.start;
            let mut judged: Vec<(u32, u32, Instant)> = Vec::new();
            for (source, user, pause) in guesses {
                now += Duration::from_millis(pause);
                let turn = limiter.turn(client(source), &user.to_be_bytes(), now);
                prop_assert!(turn.delay <= MAX_DELAY);
                // A turn at the maximum is not counted, so that nobody is locked out.
                if turn.delay < MAX_DELAY {
                    judged.push((source, user, now + turn.delay));
                }
                limiter.failed(&turn, now);
            }
            for key in 0..4 {
                for of_key in [|guess: &(u32, u32, Instant)| guess.0, |guess: &(u32, u32, Instant)| guess.1] {
                    let of_key: Vec<_> = judged.iter().filter(|guess| of_key(guess) == key).map(|guess| guess.2).collect();
                    // Any second has the burst and the turns of that second.
                    for from in &of_key {
                        let within = of_key.iter().filter(|at| *at >= from && **at < *from + Duration::from_secs(1));
                        prop_assert!(within.count() <= 40);
                    }
                }
            }
        }

        #[test]
        fn right_password_leaves_the_limits_as_they_were(
            before in prop::collection::vec((0_u32..4, 0_u32..4), 0..60),
            source in 0_u32..4,
            user in 0_u32..4,
        ) {
            let limiter = AttemptLimiter::default();
            let now = limiter.start;
            fail(&limiter, before, now);
            let mut delays = Vec::new();
            for _ in 0..3 {
                let turn = limiter.turn(client(source), &user.to_be_bytes(), now);
                limiter.succeeded(&turn, now);
                delays.push(turn.delay);
            }
            // From the second on, only the failures of the source count.
            prop_assert!(delays[1] == delays[2] && delays[1] <= delays[0] && delays[0] <= MAX_DELAY);
        }
    }
}
