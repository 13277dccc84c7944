//! State of each key, such as a source, in a table of fixed size.
//!
//! An attacker with a /8 or an IPv6 /32 has more source addresses than fit into memory. So a new key replaces another one: of
//! the entries in its row, the one with the lowest score. The row depends on a random key of the process, so an attacker cannot
//! target the row of another source.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::addr::SourceKey;

/// The state of one key. The default is that of an unknown key.
pub(crate) trait TableEntry: Default {
    /// The value of the entry; the entry with the lowest score in a row is replaced.
    fn score(&self) -> u64;
}

/// The entries of all sources, 16,384 in total; clients of Unix sockets share one.
pub(crate) type SourceTable<T> = BoundedTable<Option<SourceKey>, T, 32>;

/// `SHARDS * ROWS * ROW_LEN` entries.
///
/// The memory of a shard is allocated with its first key.
#[derive(Debug)]
pub(crate) struct BoundedTable<K, T, const ROWS: usize> {
    hasher: RandomState,
    shards: [Mutex<Shard<K, T>>; SHARDS],
}

#[derive(Debug)]
struct Shard<K, T> {
    /// Empty, or of the final size.
    entries: Vec<Entry<K, T>>,
}

#[derive(Debug)]
struct Entry<K, T> {
    key: Option<K>,
    state: T,
}

impl<K, T: Default> Default for Entry<K, T> {
    fn default() -> Self {
        Self { key: None, state: T::default() }
    }
}

impl<K, T, const ROWS: usize> Default for BoundedTable<K, T, ROWS> {
    fn default() -> Self {
        let empty = |_| Mutex::new(Shard { entries: Vec::new() });
        Self { hasher: RandomState::new(), shards: std::array::from_fn(empty) }
    }
}

impl<K: Eq + Hash, T: TableEntry, const ROWS: usize> BoundedTable<K, T, ROWS> {
    /// Applies `work` to the state of a key. Returns its result, and the state that was replaced, if any.
    pub(crate) fn of<R>(&self, key: K, work: impl FnOnce(&mut T) -> R) -> (R, Option<T>) {
        let rows = const { (SHARDS * ROWS) as u64 };
        let row = usize::try_from(self.hasher.hash_one(&key).checked_rem(rows).unwrap_or_default()).unwrap_or_default();
        let [first, ..] = &self.shards;
        let mut shard = lock(self.shards.get(row % SHARDS).unwrap_or(first));
        let row = shard.row(ROWS, row / SHARDS);
        if let Some(known) = row.iter_mut().find(|entry| entry.key.as_ref() == Some(&key)) {
            return (work(&mut known.state), None);
        }
        let mut fallback = Entry::default();
        let entry = row.iter_mut().min_by_key(|entry| entry.state.score()).unwrap_or(&mut fallback);
        let former = std::mem::replace(entry, Entry { key: Some(key), state: T::default() });
        (work(&mut entry.state), former.key.is_some().then_some(former.state))
    }

    /// Applies `work` to the state of every key.
    pub(crate) fn each(&self, mut work: impl FnMut(&K, &mut T)) {
        for shard in &self.shards {
            for entry in &mut lock(shard).entries {
                if let Some(key) = &entry.key {
                    work(key, &mut entry.state);
                }
            }
        }
    }

    /// Removes all keys and frees their memory.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            lock(shard).entries = Vec::new();
        }
    }
}

impl<K, T: Default> Shard<K, T> {
    fn row(&mut self, rows: usize, number: usize) -> &mut [Entry<K, T>] {
        if self.entries.is_empty() {
            self.entries = std::iter::repeat_with(Entry::default).take(rows.saturating_mul(ROW_LEN)).collect();
        }
        self.entries.chunks_exact_mut(ROW_LEN).nth(number).unwrap_or_default()
    }
}

fn lock<K, T>(shard: &Mutex<Shard<K, T>>) -> MutexGuard<'_, Shard<K, T>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Number of locks; reduces contention between workers.
pub(crate) const SHARDS: usize = 64;

/// Entries in a row.
pub(crate) const ROW_LEN: usize = 8;

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
        table.each(|source, count| all.push((*source, count.0)));
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
        assert!(known.len() <= 16_384, "{}", known.len());
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
