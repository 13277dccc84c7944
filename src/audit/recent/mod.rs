//! The most recent audit events in memory, for readers that follow them live.
//!
//! Writers never wait for readers: they append under a short lock, and the oldest events make room. A reader that falls behind
//! loses events and learns how many.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::audit::event::Event;

/// The last [`MAX_EVENTS`] events, in at most [`MAX_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct RecentEvents {
    ring: Mutex<Ring>,
    pushed: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    /// Oldest first, with consecutive sequence numbers.
    events: VecDeque<Arc<RecordedEvent>>,
    /// Size of the JSON of `events`.
    bytes: usize,
    /// The sequence number of the next event.
    next: u64,
}

/// An audit event as the audit file has it.
#[derive(Debug)]
pub(crate) struct RecordedEvent {
    /// Counted from 0 since the start of the process, over all events that were recorded.
    pub sequence: u64,
    /// Such as `connection.denied`.
    pub name: &'static str,
    /// The listener, or `group:NAME`.
    pub listener: Option<Box<str>>,
    /// One flat object without a line feed.
    pub json: Box<str>,
}

/// Which events a reader gets. The default passes all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// The listener, or `group:NAME`.
    pub listener: Option<Box<str>>,
    /// The name of the event.
    pub event: Option<Box<str>>,
}

/// Reads events in order. Dropping it ends the subscription; writers keep nothing for a reader.
#[derive(Debug)]
pub struct EventReader {
    recent: Arc<RecentEvents>,
    filter: EventFilter,
    /// The sequence number of the next event.
    next: u64,
    /// The sequence number before which the reader ends.
    until: Option<u64>,
    /// No batch is returned earlier. See [`GATHER_TIME`].
    due: Instant,
}

/// What a reader gets at once: at least one event or a loss.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// How many events before `events` are lost, also those that the filter would have removed.
    pub lost: u64,
    /// Oldest first. Their JSON has at most [`MAX_BATCH_BYTES`] together.
    pub events: Vec<Arc<RecordedEvent>>,
}

impl RecentEvents {
    /// Appends an event. `line` is its JSON, with or without a line feed.
    pub(crate) fn push(&self, event: &Event, line: &str) {
        let (name, json) = (event.name(), Box::from(line.trim_end()));
        self.ring().push(name, event.owner().map(String::into_boxed_str), json);
        // Costs an atomic operation unless a reader waits.
        self.pushed.notify_waiters();
    }

    /// Forgets all events. They count as lost for a reader that has not read them.
    pub(crate) fn clear(&self) {
        let mut ring = self.ring();
        ring.events = VecDeque::new();
        ring.bytes = 0;
    }

    /// A reader that begins with the last `recent` events that pass the filter.
    pub(crate) fn reader(self: &Arc<Self>, recent: usize, filter: EventFilter) -> EventReader {
        let next = self.ring().first_of(recent, &filter);
        EventReader { recent: Arc::clone(self), filter, next, until: None, due: Instant::now() }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn push(&mut self, name: &'static str, listener: Option<Box<str>>, json: Box<str>) {
        self.bytes = self.bytes.saturating_add(json.len());
        self.events.push_back(Arc::new(RecordedEvent { sequence: self.next, name, listener, json }));
        self.next = self.next.saturating_add(1);
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(oldest.json.len());
        }
    }

    /// The sequence number of the oldest event, or of the next one if there is none.
    fn oldest(&self) -> u64 {
        self.events.front().map_or(self.next, |event| event.sequence)
    }

    fn first_of(&self, count: usize, filter: &EventFilter) -> u64 {
        let newest_first = self.events.iter().rev().filter(|event| filter.passes(event));
        newest_first.take(count).last().map_or(self.next, |event| event.sequence)
    }

    /// What a reader gets that expects the event `next`, and the event that it expects then.
    fn batch(&self, next: u64, filter: &EventFilter) -> (Batch, u64) {
        let lost = self.oldest().saturating_sub(next);
        let mut batch = Batch { lost, events: Vec::new() };
        let first = next.max(self.oldest());
        let skipped = usize::try_from(first.saturating_sub(self.oldest())).unwrap_or(usize::MAX);
        let mut bytes: usize = 0;
        for event in self.events.iter().skip(skipped).filter(|event| filter.passes(event)) {
            bytes = bytes.saturating_add(event.json.len());
            if bytes > MAX_BATCH_BYTES && !batch.events.is_empty() {
                return (batch, event.sequence);
            }
            batch.events.push(Arc::clone(event));
        }
        (batch, self.next)
    }
}

impl EventFilter {
    fn passes(&self, event: &RecordedEvent) -> bool {
        let Self { listener, event: name } = self;
        (listener.is_none() || *listener == event.listener) && name.as_deref().is_none_or(|name| name == event.name)
    }
}

impl EventReader {
    /// The same reader, which ends with the events of the past.
    #[must_use]
    pub(crate) fn of_the_past(self) -> Self {
        let until = Some(self.recent.ring().next);
        Self { until, ..self }
    }

    /// Waits for events, or returns `None` if no more come. Nothing is lost or read twice if the future is dropped before it
    /// completes.
    pub(crate) async fn next(&mut self) -> Option<Batch> {
        sleep_until(self.due).await;
        let recent = Arc::clone(&self.recent);
        loop {
            // Created before the look into the ring, so that no event in between is missed.
            let pushed = recent.pushed.notified();
            if let Some(batch) = self.take() {
                self.due = Instant::now() + GATHER_TIME;
                return Some(batch);
            }
            if self.until.is_some() {
                return None;
            }
            pushed.await;
        }
    }

    /// What there is now.
    pub(crate) fn take(&mut self) -> Option<Batch> {
        if self.until.is_some_and(|until| self.next >= until) {
            return None;
        }
        let (mut batch, next) = self.recent.ring().batch(self.next, &self.filter);
        self.next = next;
        if let Some(until) = self.until {
            batch.events.retain(|event| event.sequence < until);
            self.next = next.min(until);
        }
        (batch.lost > 0 || !batch.events.is_empty()).then_some(batch)
    }
}

/// Maximum number of events in memory.
pub(crate) const MAX_EVENTS: usize = 1_024;

/// Maximum size of their JSON in bytes. An event has about 300 to 700 bytes, and at most 64 KiB.
pub(crate) const MAX_BYTES: usize = 2 << 20;

/// Maximum size of a batch in bytes; a single event may be as long as a line.
pub(crate) const MAX_BATCH_BYTES: usize = 64 << 10;

/// The minimum time between two batches. A waiting reader costs a writer its wake-up, so a reader does not wait for every
/// single event of many.
const GATHER_TIME: Duration = Duration::from_millis(10);
