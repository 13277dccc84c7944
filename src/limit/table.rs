//! What is kept of each source, in a table that never grows.
//!
//! Whoever has a /8 or an IPv6 /32 can come from more sources than there is memory for. So a source that comes anew takes the
//! place of another one: of the eight that share its row, the one of which the least is known. Which row that is depends on a
//! key of this process, so that nobody can aim at the row of somebody else.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::addr::SourceKey;

/// What is kept of one source. The default is that of a source of which nothing is known.
pub(crate) trait TableEntry: Default {
    /// How much would be forgotten with it, beside the others.
    fn score(&self) -> u64;
}

/// The accounts of all sources; clients of Unix sockets share one.
///
/// Memory is taken shard by shard as sources come: none before the first one does.
#[derive(Debug)]
pub(crate) struct SourceTable<T> {
    hasher: RandomState,
    shards: [Mutex<Shard<T>>; SHARDS],
}

#[derive(Debug)]
struct Shard<T> {
    /// Empty, or as long as it will ever be.
    entries: Vec<Entry<T>>,
}

#[derive(Debug, Default)]
struct Entry<T> {
    source: Option<SourceKey>,
    account: T,
}

impl<T: TableEntry> Default for SourceTable<T> {
    fn default() -> Self {
        let empty = |_| Mutex::new(Shard { entries: Vec::new() });
        Self { hasher: RandomState::new(), shards: std::array::from_fn(empty) }
    }
}

impl<T: TableEntry> SourceTable<T> {
    /// Does something with the account of a source. Returned with what comes of it is the account that had to give way, if
    /// one had to.
    pub(crate) fn of<R>(&self, source: Option<SourceKey>, work: impl FnOnce(&mut T) -> R) -> (R, Option<T>) {
        let place = usize::try_from(self.hasher.hash_one(source) % PLACES).unwrap_or_default();
        let [first, ..] = &self.shards;
        let mut shard = lock(self.shards.get(place % SHARDS).unwrap_or(first));
        let row = shard.row(place / SHARDS);
        if let Some(known) = row.iter_mut().find(|entry| entry.source == source) {
            return (work(&mut known.account), None);
        }
        let mut nowhere = Entry::default();
        let entry = row.iter_mut().min_by_key(|entry| entry.account.score()).unwrap_or(&mut nowhere);
        let former = std::mem::replace(entry, Entry { source, account: T::default() });
        (work(&mut entry.account), Some(former.account))
    }

    /// Does something with every account.
    pub(crate) fn each(&self, mut work: impl FnMut(Option<SourceKey>, &mut T)) {
        for shard in &self.shards {
            for entry in &mut lock(shard).entries {
                work(entry.source, &mut entry.account);
            }
        }
    }
}

impl<T: TableEntry> Shard<T> {
    fn row(&mut self, number: usize) -> &mut [Entry<T>] {
        if self.entries.is_empty() {
            self.entries = std::iter::repeat_with(Entry::default).take(ROWS * IN_A_ROW).collect();
        }
        self.entries.chunks_exact_mut(IN_A_ROW).nth(number).unwrap_or_default()
    }
}

fn lock<T>(shard: &Mutex<Shard<T>>) -> MutexGuard<'_, Shard<T>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks, so that workers seldom meet.
const SHARDS: usize = 64;

/// Rows of a shard, and accounts of a row: 16,384 accounts in all.
const ROWS: usize = 32;
const IN_A_ROW: usize = 8;

/// Rows of all shards.
const PLACES: u64 = (SHARDS * ROWS) as u64;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default)]
    struct Count(u64);

    impl TableEntry for Count {
        fn score(&self) -> u64 {
            self.0
        }
    }

    fn source(number: u32) -> Option<SourceKey> {
        Some(SourceKey::V4(Ipv4Addr::from(number)))
    }

    fn add(accounts: &SourceTable<Count>, source: Option<SourceKey>) -> (u64, u64) {
        let (now, former) = accounts.of(source, |count| {
            count.0 += 1;
            count.0
        });
        (now, former.map_or(0, |count| count.0))
    }

    fn all(accounts: &SourceTable<Count>) -> Vec<(Option<SourceKey>, u64)> {
        let mut all = Vec::new();
        accounts.each(|source, count| all.push((source, count.0)));
        all.retain(|(_, count)| *count > 0);
        all
    }

    #[test]
    fn a_whole_slash_eight_takes_no_more_than_the_table_and_nothing_is_lost_unseen() {
        let accounts = SourceTable::default();
        let mut forgotten = 0;
        // Every 64th address of 10.0.0.0/8.
        for number in (0x0a00_0000_u32..0x0b00_0000).step_by(64) {
            forgotten += add(&accounts, source(number)).1;
        }
        let known = all(&accounts);
        assert!(known.len() <= SHARDS * ROWS * IN_A_ROW, "{}", known.len());
        assert_eq!(known.iter().map(|(_, count)| count).sum::<u64>() + forgotten, 1 << 18);
    }

    #[test]
    fn who_has_the_heavier_account_stays_whoever_comes() {
        let accounts = SourceTable::default();
        for _ in 0..100 {
            add(&accounts, source(1));
        }
        for number in 2..200_000 {
            add(&accounts, source(number));
        }
        assert_eq!(add(&accounts, source(1)).0, 101);
    }

    #[test]
    fn no_memory_is_taken_for_sources_that_never_come() {
        let accounts = SourceTable::<Count>::default();
        let taken = |accounts: &SourceTable<Count>| {
            accounts.shards.iter().filter(|shard| !lock(shard).entries.is_empty()).count()
        };
        assert_eq!(taken(&accounts), 0);
        add(&accounts, source(1));
        assert_eq!(taken(&accounts), 1);
    }

    proptest! {
        #[test]
        fn each_source_has_an_account_of_its_own(sources in prop::collection::vec(prop::option::of(0_u32..40), 0..300)) {
            let accounts = SourceTable::default();
            let mut expected = std::collections::HashMap::new();
            for number in sources {
                let source = number.and_then(source);
                let count: &mut u64 = expected.entry(source).or_default();
                *count += 1;
                // Forty sources all in one row would be a wonder.
                let (now, former) = add(&accounts, source);
                prop_assert_eq!((now, former), (*count, 0));
            }
        }
    }
}
