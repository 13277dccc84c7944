//! Suppresses audit events in a flood of denied connections, CancelRequests or admin requests, so that they do not fill the disk.
//!
//! The events of a source are limited by rate, and so are those of all sources. A line counts once for each KiB begun, because
//! a client can make lines long. Suppressed events are counted by source and summarised by an event such as `denials.suppressed`
//! when the flood is over, or after [`MAX_SUMMARY_DELAY`]. With more sources than the table or the
//! summaries hold, the rest is summarised together.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::SourceKey;
use crate::audit::event::{ConnectionFields, Event};
use crate::limit::gcra::{Gcra, GcraLimit};
use crate::limit::table::{SourceTable, TableEntry};
use crate::outcome::Reason;

/// What the summary of suppressed events shows of the last one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloodEvent<'a> {
    /// `None` for a client of a Unix socket.
    pub source: Option<SourceKey>,
    pub listener: Option<&'a Arc<str>>,
    /// The code of the reason.
    pub reason: Option<&'static str>,
}

impl<'a> FloodEvent<'a> {
    pub(crate) fn of_connection(fields: &'a ConnectionFields, reason: Option<Reason>) -> Self {
        let source = fields.client.source_key();
        Self { source, listener: Some(&fields.listener), reason: reason.map(Reason::code) }
    }
}

/// A kind of events with its limits.
#[derive(Debug)]
pub(crate) struct FloodKind {
    /// The name of the summary event.
    summary: &'static str,
    per_source: GcraLimit,
    overall: GcraLimit,
}

/// Limits the events of one kind and counts the suppressed ones.
#[derive(Debug)]
pub(crate) struct FloodLimiter {
    kind: &'static FloodKind,
    /// The zero of all times below.
    since: Instant,
    sources: SourceTable<Quota>,
    total: Mutex<FloodSummary>,
}

/// The remaining quota of one source.
#[derive(Debug, Default)]
struct Quota {
    gcra: Gcra,
    flood: Option<Box<FloodCount>>,
}

/// The suppressed events of one source since its last summary.
#[derive(Debug)]
struct FloodCount {
    suppressed: u64,
    first: Duration,
    last: Duration,
    /// Of the last event.
    listener: Option<Arc<str>>,
    reason: Option<&'static str>,
}

/// The state of all sources together.
#[derive(Debug, Default)]
struct FloodSummary {
    logged: Gcra,
    reports: Gcra,
    /// Suppressed events that are not counted under a source.
    suppressed: u64,
    /// When `suppressed` was last reported.
    reported_at: Duration,
}

impl TableEntry for Quota {
    fn score(&self) -> u64 {
        self.gcra.theoretical_arrival()
    }
}

impl Quota {
    fn take(&mut self, allowance: GcraLimit, event: FloodEvent<'_>, now: Duration) -> bool {
        if self.gcra.take(allowance, now) {
            return true;
        }
        let fresh = || Box::new(FloodCount { suppressed: 0, first: now, last: now, listener: None, reason: None });
        let flood = self.flood.get_or_insert_with(fresh);
        flood.suppressed += 1;
        flood.last = now;
        flood.reason = event.reason;
        if flood.listener.as_ref().map(Arc::as_ptr) != event.listener.map(Arc::as_ptr) {
            flood.listener = event.listener.cloned();
        }
        false
    }

    /// The count, if its summary is due.
    fn take_pending(&mut self, now: Duration) -> Option<FloodCount> {
        let over = |flood: &FloodCount| now >= flood.last + OVER_AFTER || now >= flood.first + MAX_SUMMARY_DELAY;
        self.flood.take_if(|flood| over(flood)).map(|flood| *flood)
    }
}

impl FloodLimiter {
    pub(crate) fn new(kind: &'static FloodKind) -> Self {
        Self { kind, since: Instant::now(), sources: SourceTable::default(), total: Mutex::default() }
    }

    /// Whether an event may be logged. If not, it is counted as suppressed.
    pub(crate) fn allow(&self, event: FloodEvent<'_>) -> bool {
        self.allow_at(self.since.elapsed(), event)
    }

    /// Counts the size of the line of an event that was allowed.
    pub(crate) fn count_line(&self, event: FloodEvent<'_>, bytes: usize) {
        self.count_line_at(self.since.elapsed(), event, bytes);
    }

    /// The summaries that are due; all of them if `at_once`.
    pub(crate) fn summaries(&self, at_once: bool) -> Vec<Event> {
        let now = self.since.elapsed();
        self.summaries_at(now, if at_once { now + MAX_SUMMARY_DELAY } else { now })
    }

    fn allow_at(&self, now: Duration, event: FloodEvent<'_>) -> bool {
        let take = |quota: &mut Quota| quota.take(self.kind.per_source, event, now);
        let (logged, evicted) = self.sources.of(event.source, take);
        if !logged && evicted.is_none() {
            return false;
        }
        let mut total = self.total();
        total.add(evicted);
        let too_many = logged && !total.logged.take(self.kind.overall, now);
        total.suppressed += u64::from(too_many);
        logged && !too_many
    }

    fn count_line_at(&self, now: Duration, event: FloodEvent<'_>, bytes: usize) {
        // `allow` has counted the first KiB.
        let more = u32::try_from(bytes.saturating_sub(1) / BYTES_PER_EVENT).unwrap_or(u32::MAX);
        if more == 0 {
            return;
        }
        let overdraw = |quota: &mut Quota| quota.gcra.overdraw(self.kind.per_source, more, now);
        let ((), evicted) = self.sources.of(event.source, overdraw);
        let mut total = self.total();
        total.add(evicted);
        total.logged.overdraw(self.kind.overall, more, now);
    }

    fn summaries_at(&self, now: Duration, due_by: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        self.sources.each(|source, quota| {
            let Some(flood) = quota.take_pending(due_by) else { return };
            let mut total = self.total();
            if total.reports.take(NAMED_SOURCES, now) {
                events.push(flood.event(self.kind.summary, *source));
            } else {
                total.suppressed += flood.suppressed;
            }
        });
        let mut total = self.total();
        if total.suppressed > 0 && due_by >= total.reported_at + MAX_SUMMARY_DELAY {
            total.reported_at = now;
            events.push(summary_of_many(self.kind.summary, std::mem::take(&mut total.suppressed)));
        }
        events
    }

    fn total(&self) -> MutexGuard<'_, FloodSummary> {
        self.total.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FloodSummary {
    /// Adds the suppressed events of a source that was evicted from the table.
    fn add(&mut self, evicted: Option<Quota>) {
        self.suppressed += evicted.and_then(|quota| quota.flood).map_or(0, |flood| flood.suppressed);
    }
}

impl FloodCount {
    fn event(&self, summary: &'static str, source: Option<SourceKey>) -> Event {
        let Self { suppressed, listener, reason, .. } = self;
        let of_last = match (listener, reason) {
            (Some(_), Some(_)) => "the listener and the reason are",
            (Some(_), None) => "the listener is",
            (None, _) => "the reason is that",
        };
        Event::new(summary)
            .with_some("listener", listener.as_deref())
            .with("source", source.map_or_else(|| "unix".to_owned(), |source| source.to_string()))
            .with_some("reason", *reason)
            .with("suppressed", *suppressed)
            .with("detail", format!("{suppressed} more suppressed; {of_last} of the last one"))
    }
}

fn summary_of_many(summary: &'static str, suppressed: u64) -> Event {
    let detail = format!("{suppressed} more suppressed, from more sources than are listed one by one");
    Event::new(summary).with("suppressed", suppressed).with("detail", detail)
}

/// Bytes of a line that count as one event. Lines without long names are shorter.
const BYTES_PER_EVENT: usize = 1 << 10;

/// Denied connections. The limit of a source leaves enough events to diagnose it. The limit for all sources, 100 events a
/// second, is about 2 GB of lines a day, and at most 8 GB.
pub(crate) static DENIALS: FloodKind = FloodKind {
    summary: "denials.suppressed",
    per_source: GcraLimit { burst: 500, interval: Duration::from_secs(1) },
    overall: GcraLimit { burst: 10_000, interval: Duration::from_millis(10) },
};

/// Forwarded CancelRequests. A pool that cancels a hundred queries has a line for each.
pub(crate) static CANCELS: FloodKind = FloodKind {
    summary: "cancels.suppressed",
    per_source: GcraLimit { burst: 100, interval: Duration::from_secs(1) },
    overall: GcraLimit { burst: 1_000, interval: Duration::from_millis(100) },
};

/// Denied CancelRequests. One costs its sender a single packet, and above the limit of the listener every
/// source has some.
pub(crate) static CANCEL_DENIALS: FloodKind = FloodKind {
    summary: "denials.suppressed",
    per_source: GcraLimit { burst: 100, interval: Duration::from_secs(1) },
    overall: GcraLimit { burst: 1_000, interval: Duration::from_millis(100) },
};

/// Attempts to authenticate that failed. There are at most 20 a second from a source that fails.
pub(crate) static FAILED_LOGINS: FloodKind = FloodKind {
    summary: "authentications.suppressed",
    per_source: GcraLimit { burst: 500, interval: Duration::from_secs(1) },
    overall: GcraLimit { burst: 10_000, interval: Duration::from_millis(10) },
};

/// Denied requests to the admin API. A caller with a wrong token retries every few seconds, and an operator needs a few lines.
pub(crate) static ADMIN_DENIALS: FloodKind = FloodKind {
    summary: "admin_denials.suppressed",
    per_source: GcraLimit { burst: 100, interval: Duration::from_secs(1) },
    overall: GcraLimit { burst: 1_000, interval: Duration::from_millis(100) },
};

/// The limit of summaries that name a source.
const NAMED_SOURCES: GcraLimit = GcraLimit { burst: 1_000, interval: Duration::from_millis(100) };

/// A flood is over after a pause of this length.
const OVER_AFTER: Duration = Duration::from_secs(2);

/// A flood without a pause is summarised after this time.
const MAX_SUMMARY_DELAY: Duration = Duration::from_secs(10);
