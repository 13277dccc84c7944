//! Keeps a flood of refused connections, or of CancelRequests, from filling the disk: of those of one source so many are
//! told, of the others only how many they were. A line counts once for each KiB begun, because a client can make lines
//! long.
//!
//! What is suppressed is counted under its source and told of by `denials.suppressed` or `cancel_keys.suppressed`, when the
//! flood is over or has lasted for a while. Where there are more sources than can be told apart, or named, the rest is told
//! of as one.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::SourceKey;
use crate::audit::event::{ConnectionFields, Event};
use crate::limit::gcra::{Gcra, GcraLimit};
use crate::limit::table::{SourceTable, TableEntry};
use crate::outcome::Reason;

/// Events of one kind, and how many of them are told.
#[derive(Debug)]
pub(crate) struct FloodKey {
    /// The event that sums up the rest.
    summary: &'static str,
    of_a_source: GcraLimit,
    of_all: GcraLimit,
}

/// What was told and what was not.
#[derive(Debug)]
pub(crate) struct FloodLimiter {
    kind: &'static FloodKey,
    /// The moment its time is counted from.
    since: Instant,
    sources: SourceTable<Quota>,
    together: Mutex<FloodSummary>,
}

/// What is still told of one source.
#[derive(Debug, Default)]
struct Quota {
    bucket: Gcra,
    flood: Option<Box<FloodCount>>,
}

/// What was not told of one source since it was last said how much that was.
#[derive(Debug)]
struct FloodCount {
    suppressed: u64,
    first: Duration,
    last: Duration,
    /// Of the last.
    listener: Arc<str>,
    reason: Option<Reason>,
}

/// All sources together.
#[derive(Debug, Default)]
struct FloodSummary {
    told: Gcra,
    reports: Gcra,
    /// What was not told, of whomever.
    suppressed: u64,
    /// When that was last said.
    said: Duration,
}

impl TableEntry for Quota {
    fn score(&self) -> u64 {
        self.bucket.theoretical_arrival()
    }
}

impl Quota {
    fn take(&mut self, allowance: GcraLimit, fields: &ConnectionFields, reason: Option<Reason>, now: Duration) -> bool {
        if self.bucket.take(allowance, now) {
            return true;
        }
        let fresh = || {
            Box::new(FloodCount {
                suppressed: 0,
                first: now,
                last: now,
                listener: Arc::clone(&fields.listener),
                reason,
            })
        };
        let flood = self.flood.get_or_insert_with(fresh);
        flood.suppressed += 1;
        flood.last = now;
        flood.reason = reason;
        if !Arc::ptr_eq(&flood.listener, &fields.listener) {
            flood.listener = Arc::clone(&fields.listener);
        }
        false
    }

    /// What has to be said now.
    fn take_pending(&mut self, now: Duration) -> Option<FloodCount> {
        let over = |flood: &FloodCount| now >= flood.last + OVER_AFTER || now >= flood.first + AT_LATEST;
        self.flood.take_if(|flood| over(flood)).map(|flood| *flood)
    }
}

impl FloodLimiter {
    pub(crate) fn new(kind: &'static FloodKey) -> Self {
        Self { kind, since: Instant::now(), sources: SourceTable::default(), together: Mutex::default() }
    }

    /// Whether a connection is to be told by itself. If not, it has been counted.
    pub(crate) fn let_through(&self, fields: &ConnectionFields, reason: Option<Reason>) -> bool {
        self.let_through_at(self.since.elapsed(), fields, reason)
    }

    /// Counts the size of a line that was let through.
    pub(crate) fn wrote(&self, fields: &ConnectionFields, bytes: usize) {
        self.wrote_at(self.since.elapsed(), fields, bytes);
    }

    /// What is to be said of the others by now; of all of them, if `at_once`.
    pub(crate) fn reports(&self, at_once: bool) -> Vec<Event> {
        let now = self.since.elapsed();
        self.reports_at(now, if at_once { now + AT_LATEST } else { now })
    }

    fn let_through_at(&self, now: Duration, fields: &ConnectionFields, reason: Option<Reason>) -> bool {
        let take = |quota: &mut Quota| quota.take(self.kind.of_a_source, fields, reason, now);
        let (told, forgotten) = self.sources.of(fields.client.source_key(), take);
        if !told && forgotten.is_none() {
            return false;
        }
        let mut together = self.together();
        together.remember(forgotten);
        let too_many = told && !together.told.take(self.kind.of_all, now);
        together.suppressed += u64::from(too_many);
        told && !too_many
    }

    fn wrote_at(&self, now: Duration, fields: &ConnectionFields, bytes: usize) {
        // `let_through` has counted one already.
        let more = u32::try_from(bytes.saturating_sub(1) / COUNTS_AS_ONE).unwrap_or(u32::MAX);
        if more == 0 {
            return;
        }
        let overdraw = |quota: &mut Quota| quota.bucket.overdraw(self.kind.of_a_source, more, now);
        let ((), forgotten) = self.sources.of(fields.client.source_key(), overdraw);
        let mut together = self.together();
        together.remember(forgotten);
        together.told.overdraw(self.kind.of_all, more, now);
    }

    fn reports_at(&self, now: Duration, due_by: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        self.sources.each(|source, quota| {
            let Some(flood) = quota.take_pending(due_by) else { return };
            let mut together = self.together();
            if together.reports.take(NAMED, now) {
                events.push(flood.event(self.kind.summary, source));
            } else {
                together.suppressed += flood.suppressed;
            }
        });
        let mut together = self.together();
        if together.suppressed > 0 && due_by >= together.said + AT_LATEST {
            together.said = now;
            events.push(of_many(self.kind.summary, std::mem::take(&mut together.suppressed)));
        }
        events
    }

    fn together(&self) -> MutexGuard<'_, FloodSummary> {
        self.together.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FloodSummary {
    /// Adds the suppressed denials of a source whose account was replaced.
    fn remember(&mut self, forgotten: Option<Quota>) {
        self.suppressed += forgotten.and_then(|quota| quota.flood).map_or(0, |flood| flood.suppressed);
    }
}

impl FloodCount {
    fn event(&self, summary: &'static str, source: Option<SourceKey>) -> Event {
        let Self { suppressed, listener, reason, .. } = self;
        let of_the_last = if reason.is_some() { "the listener and the reason are" } else { "the listener is" };
        Event::new(summary)
            .with("listener", &**listener)
            .with("source", source.map_or_else(|| "unix".to_owned(), |source| source.to_string()))
            .with_some("reason", reason.map(Reason::code))
            .with("suppressed", *suppressed)
            .with("detail", format!("{suppressed} more suppressed; {of_the_last} of the last one"))
    }
}

fn of_many(summary: &'static str, suppressed: u64) -> Event {
    let detail = format!("{suppressed} more suppressed, of more sources than can be named");
    Event::new(summary).with("suppressed", suppressed).with("detail", detail)
}

/// Bytes of a line that count as one event. Lines without long names are shorter.
const COUNTS_AS_ONE: usize = 1 << 10;

/// Refused connections. Of one source enough are told to see who it is and what it wants; of all, 100 a second are some
/// 2 GB of lines a day, and at the very most 8.
pub(crate) static DENIALS: FloodKey = FloodKey {
    summary: "denials.suppressed",
    of_a_source: GcraLimit { burst: 500, interval: Duration::from_secs(1) },
    of_all: GcraLimit { burst: 10_000, interval: Duration::from_millis(10) },
};

/// CancelRequests that were passed on. A pool that cancels a hundred queries has a line for each.
pub(crate) static CANCELS: FloodKey = FloodKey {
    summary: "cancels.suppressed",
    of_a_source: GcraLimit { burst: 100, interval: Duration::from_secs(1) },
    of_all: GcraLimit { burst: 1_000, interval: Duration::from_millis(100) },
};

/// CancelRequests that were refused. One costs its sender a packet, and above the limit of the listener every source has some.
pub(crate) static CANCEL_DENIALS: FloodKey = FloodKey {
    summary: "denials.suppressed",
    of_a_source: GcraLimit { burst: 100, interval: Duration::from_secs(1) },
    of_all: GcraLimit { burst: 1_000, interval: Duration::from_millis(100) },
};

/// Sources named by the summaries.
const NAMED: GcraLimit = GcraLimit { burst: 1_000, interval: Duration::from_millis(100) };

/// A flood that has paused for so long is over, and one that has not is told of after so long.
const OVER_AFTER: Duration = Duration::from_secs(2);
const AT_LATEST: Duration = Duration::from_secs(10);
