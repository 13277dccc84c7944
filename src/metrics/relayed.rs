//! Bytes relayed by all sessions of a listener, counted while the sessions run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

use crate::outcome::ByteCounts;

/// One total for each worker, so that workers never write to the same cache line.
#[derive(Debug)]
pub(crate) struct RelayedBytes {
    shards: Box<[RelayedShard]>,
}

/// The total of one worker. Two cache lines, because processors prefetch in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct RelayedShard {
    inbound: AtomicU64,
    outbound: AtomicU64,
}

/// Where one session counts its bytes: its own counts, and the total of its worker.
#[derive(Debug)]
pub(crate) struct ByteMeter<'a> {
    pub(crate) counts: &'a mut ByteCounts,
    pub(crate) shard: &'a RelayedShard,
}

impl Default for RelayedBytes {
    fn default() -> Self {
        let workers = available_parallelism().map_or(1, usize::from);
        Self { shards: (0..workers).map(|_| RelayedShard::default()).collect() }
    }
}

impl RelayedBytes {
    /// The shard of a worker. Workers share one if there are more workers than processors.
    #[allow(clippy::indexing_slicing, reason = "there is at least one shard")]
    pub(crate) fn shard(&self, worker: usize) -> &RelayedShard {
        &self.shards[worker % self.shards.len().max(1)]
    }

    /// The sum over all workers.
    pub(crate) fn total(&self) -> ByteCounts {
        self.shards.iter().fold(ByteCounts::default(), |sum, shard| ByteCounts {
            inbound: sum.inbound.wrapping_add(shard.inbound.load(Ordering::Relaxed)),
            outbound: sum.outbound.wrapping_add(shard.outbound.load(Ordering::Relaxed)),
        })
    }
}

#[cfg(test)]
impl<'a> ByteMeter<'a> {
    /// A meter whose total nobody reads.
    pub(crate) fn unpublished(counts: &'a mut ByteCounts) -> Self {
        static TOTAL: std::sync::LazyLock<RelayedShard> = std::sync::LazyLock::new(RelayedShard::default);
        Self { counts, shard: &TOTAL }
    }
}

impl ByteMeter<'_> {
    /// Adds to the total what the session has relayed since its counts were `before`.
    pub(crate) fn publish(&self, before: ByteCounts) {
        let add = |total: &AtomicU64, count: u64, before: u64| {
            if count != before {
                total.fetch_add(count.wrapping_sub(before), Ordering::Relaxed);
            }
        };
        add(&self.shard.inbound, self.counts.inbound, before.inbound);
        add(&self.shard.outbound, self.counts.outbound, before.outbound);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_is_the_sum_of_what_the_sessions_of_all_workers_published() {
        let relayed = RelayedBytes::default();
        for worker in 0..1_000 {
            let mut counts = ByteCounts { inbound: 5, outbound: 0 };
            let meter = ByteMeter { counts: &mut counts, shard: relayed.shard(worker) };
            let before = ByteCounts::default();
            meter.publish(before);
            let before = *meter.counts;
            *meter.counts = ByteCounts { inbound: 6, outbound: 3 };
            meter.publish(before);
        }
        assert_eq!(relayed.total(), ByteCounts { inbound: 6_000, outbound: 3_000 });
    }

    #[test]
    fn shards_share_no_cache_line() {
        assert!(size_of::<RelayedShard>() >= 128 && align_of::<RelayedShard>() >= 128);
    }
}
