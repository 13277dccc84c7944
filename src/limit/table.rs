//! State of each source, in a table of fixed size.
//!
//! An attacker with a /8 or an IPv6 /32 has more source addresses than fit into memory. So a new source replaces another one: of
//! the entries in its row, the one with the lowest score. The row depends on a random key of the process, so an attacker cannot
//! target the row of another source.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::addr::SourceKey;

/// The state of one source. The default is that of an unknown source.
pub(crate) trait TableEntry: Default {
    /// The value of the entry; the entry with the lowest score in a row is replaced.
    fn score(&self) -> u64;
}

/// The entries of all sources; clients of Unix sockets share one.
///
/// The memory of a shard is allocated with its first source.
#[derive(Debug)]
pub(crate) struct SourceTable<T> {
    hasher: RandomState,
    shards: [Mutex<Shard<T>>; SHARDS],
}

#[derive(Debug)]
struct Shard<T> {
    /// Empty, or of the final size.
    entries: Vec<Entry<T>>,
}

#[derive(Debug, Default)]
struct Entry<T> {
    source: Option<SourceKey>,
    state: T,
}

impl<T: TableEntry> Default for SourceTable<T> {
    fn default() -> Self {
        let empty = |_| Mutex::new(Shard { entries: Vec::new() });
        Self { hasher: RandomState::new(), shards: std::array::from_fn(empty) }
    }
}

impl<T: TableEntry> SourceTable<T> {
    /// Applies `work` to the state of a source. Returns its result, and the state that was replaced, if any.
    pub(crate) fn of<R>(&self, source: Option<SourceKey>, work: impl FnOnce(&mut T) -> R) -> (R, Option<T>) {
        let row = usize::try_from(self.hasher.hash_one(source) % ALL_ROWS).unwrap_or_default();
        let [first, ..] = &self.shards;
        let mut shard = lock(self.shards.get(row % SHARDS).unwrap_or(first));
        let row = shard.row(row / SHARDS);
        if let Some(known) = row.iter_mut().find(|entry| entry.source == source) {
            return (work(&mut known.state), None);
        }
        let mut fallback = Entry::default();
        let entry = row.iter_mut().min_by_key(|entry| entry.state.score()).unwrap_or(&mut fallback);
        let former = std::mem::replace(entry, Entry { source, state: T::default() });
        (work(&mut entry.state), Some(former.state))
    }

    /// Applies `work` to the state of every source.
    pub(crate) fn each(&self, mut work: impl FnMut(Option<SourceKey>, &mut T)) {
        for shard in &self.shards {
            for entry in &mut lock(shard).entries {
                work(entry.source, &mut entry.state);
            }
        }
    }
}

impl<T: TableEntry> Shard<T> {
    fn row(&mut self, number: usize) -> &mut [Entry<T>] {
        if self.entries.is_empty() {
            self.entries = std::iter::repeat_with(Entry::default).take(ROWS * ROW_LEN).collect();
        }
        self.entries.chunks_exact_mut(ROW_LEN).nth(number).unwrap_or_default()
    }
}

fn lock<T>(shard: &Mutex<Shard<T>>) -> MutexGuard<'_, Shard<T>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of locks; reduces contention between workers.
const SHARDS: usize = 64;

/// Rows in a shard and entries in a row: 16,384 entries in total.
const ROWS: usize = 32;
const ROW_LEN: usize = 8;

/// Rows in all shards.
const ALL_ROWS: u64 = (SHARDS * ROWS) as u64;

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

    fn add(table: &SourceTable<Count>, source: Option<SourceKey>) -> (u64, u64) {
        let (now, former) = table.of(source, |count| {
            count.0 += 1;
            count.0
        });
        (now, former.map_or(0, |count| count.0))
    }

    fn all(table: &SourceTable<Count>) -> Vec<(Option<SourceKey>, u64)> {
        let mut all = Vec::new();
        table.each(|source, count| all.push((source, count.0)));
        all.retain(|(_, count)| *count > 0);
        all
    }

    #[test]
    fn flood_from_a_slash_eight_fits_the_table_and_every_replacement_is_returned() {
        let table = SourceTable::default();
        let mut forgotten = 0;
        // Every 64th address of 10.0.0.0/8.
        for number in (0x0a00_0000_u32..0x0b00_0000).step_by(64) {
            forgotten += add(&table, source(number)).1;
        }
        let known = all(&table);
        assert!(known.len() <= SHARDS * ROWS * ROW_LEN, "{}", known.len());
        assert_eq!(known.iter().map(|(_, count)| count).sum::<u64>() + forgotten, 1 << 18);
    }

    #[test]
    fn entry_with_high_score_survives_many_new_sources() {
        let table = SourceTable::default();
        for _ in 0..100 {
            add(&table, source(1));
        }
        for number in 2..200_000 {
            add(&table, source(number));
        }
        assert_eq!(add(&table, source(1)).0, 101);
    }

    #[test]
    fn table_without_sources_allocates_no_memory() {
        let table = SourceTable::<Count>::default();
        let taken =
            |table: &SourceTable<Count>| table.shards.iter().filter(|shard| !lock(shard).entries.is_empty()).count();
        assert_eq!(taken(&table), 0);
        add(&table, source(1));
        assert_eq!(taken(&table), 1);
    }

    proptest! {
        #[test]
        fn each_source_has_a_separate_entry(sources in prop::collection::vec(prop::option::of(0_u32..40), 0..300)) {
            let table = SourceTable::default();
            let mut expected = std::collections::HashMap::new();
            for number in sources {
                let source = number.and_then(source);
                let count: &mut u64 = expected.entry(source).or_default();
                *count += 1;
                // Forty sources overfill one row with negligible probability.
                let (now, former) = add(&table, source);
                prop_assert_eq!((now, former), (*count, 0));
            }
        }
    }
}
