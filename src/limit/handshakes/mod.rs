//! How many connections of a listener may be in their handshake at once (`max_handshakes`).
//!
//! A connection counts from accept until its client is identified or it is closed. At the limit a new connection is
//! refused, unless its source has fewer than another source. Then it displaces the oldest handshake of the source that has
//! the most. So one source can use every place while no other source needs one, and cannot keep other sources out.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addr::{ClientAddr, SourceKey};
use crate::outcome::{Outcome, Reason};

/// The handshakes of one listener. Kept from one generation to the next.
#[derive(Debug, Default)]
pub(crate) struct HandshakeLimiter {
    open: Mutex<OpenHandshakes>,
}

#[derive(Debug, Default)]
struct OpenHandshakes {
    count: u32,
    /// The numbers of each source's connections. Numbers rise, so the least is the oldest. Clients of Unix sockets share one
    /// entry.
    sources: HashMap<Option<SourceKey>, BTreeSet<u64>>,
}

/// A connection in its handshake. Counted until this is [finished](Self::finish) or dropped.
#[must_use]
#[derive(Debug)]
pub struct HandshakePermit {
    handshakes: Arc<HandshakeLimiter>,
    source: Option<SourceKey>,
    connection: u64,
}

/// A handshake that may begin.
#[must_use]
#[derive(Debug)]
pub struct AcquiredHandshake {
    /// Its place.
    pub handshake: HandshakePermit,
    /// The number of the connection that lost its place to it. The caller has to close that one.
    pub displaced: Option<u64>,
}

/// Why there is no place for a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeLimitReached {
    /// The listener has as many handshakes as it may have.
    Full(NonZeroU32),
    /// Another source needed the place.
    Displaced,
}

impl fmt::Display for HandshakeLimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(limit) => {
                write!(f, "the listener has {limit} connections in their handshake, its limit (max_handshakes)")
            }
            Self::Displaced => f.write_str(
                "the listener reached max_handshakes, and this was the oldest handshake of the source with the most",
            ),
        }
    }
}

impl From<HandshakeLimitReached> for Outcome {
    fn from(no_place: HandshakeLimitReached) -> Self {
        Self::new(Reason::HandshakeLimit, no_place)
    }
}

impl HandshakeLimiter {
    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.open().count
    }

    /// Takes a place for the connection of this number.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        client: ClientAddr,
        connection: u64,
        limit: NonZeroU32,
    ) -> Result<AcquiredHandshake, HandshakeLimitReached> {
        let source = client.source_key();
        let mut open = self.open();
        let displaced = if open.count < limit.get() {
            None
        } else {
            Some(open.displace_for(source).ok_or(HandshakeLimitReached::Full(limit))?)
        };
        open.add(source, connection);
        Ok(AcquiredHandshake {
            handshake: HandshakePermit { handshakes: Arc::clone(self), source, connection },
            displaced,
        })
    }

    fn open(&self) -> MutexGuard<'_, OpenHandshakes> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenHandshakes {
    fn add(&mut self, source: Option<SourceKey>, connection: u64) {
        self.sources.entry(source).or_default().insert(connection);
        self.count = self.count.saturating_add(1);
    }

    /// Returns whether it was still there.
    fn remove(&mut self, source: Option<SourceKey>, connection: u64) -> bool {
        let Some(connections) = self.sources.get_mut(&source) else { return false };
        let removed = connections.remove(&connection);
        if connections.is_empty() {
            self.sources.remove(&source);
        }
        self.count = self.count.saturating_sub(removed.into());
        removed
    }

    /// Takes a place from the source that has the most, unless that would leave it with fewer than `source` has then.
    fn displace_for(&mut self, source: Option<SourceKey>) -> Option<u64> {
        if self.sources.len() >= usize::try_from(self.count).unwrap_or(usize::MAX) {
            // Each has one. A flood from many sources must not cost a search for each of its connections.
            return None;
        }
        let own = self.sources.get(&source).map_or(0, BTreeSet::len);
        let (largest, connections) = self.sources.iter().max_by_key(|(_, connections)| connections.len())?;
        if connections.len() <= own.saturating_add(1) {
            return None;
        }
        let (largest, oldest) = (*largest, *connections.first()?);
        self.remove(largest, oldest).then_some(oldest)
    }
}

impl HandshakePermit {
    /// A load balancer has announced this client: the connection counts for the client's source from here on.
    pub fn set_client(&mut self, client: ClientAddr) {
        let source = client.source_key();
        let mut open = self.handshakes.open();
        if source != self.source && open.remove(self.source, self.connection) {
            open.add(source, self.connection);
        }
        self.source = source;
    }

    /// Gives the place back, because the client is identified.
    ///
    /// # Errors
    /// When another connection has the place.
    pub fn finish(self) -> Result<(), HandshakeLimitReached> {
        let had_place = self.handshakes.open().remove(self.source, self.connection);
        if had_place { Ok(()) } else { Err(HandshakeLimitReached::Displaced) }
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        // Neither a finished nor a displaced one is there any more.
        self.handshakes.open().remove(self.source, self.connection);
    }
}

/// The limit where the configuration has none. `open_files` is how many files the process may have open.
///
/// 4,096 is more than clients need that all reconnect at once. Clients that only connect can make the process hold 12 MiB
/// then, and 339 MiB in the most expensive case (docs/PERFORMANCE.md has the figures for each). Each is an open file, too,
/// and has a second one reserved for its upstream. A quarter of the open files leaves half of them for sessions.
pub(crate) fn built_in_limit(open_files: Option<u64>) -> NonZeroU32 {
    let quarter = open_files.and_then(|files| u32::try_from(files / 4).ok()).unwrap_or(u32::MAX);
    NonZeroU32::new(quarter.clamp(LEAST_BUILT_IN, MOST_BUILT_IN)).unwrap_or(NonZeroU32::MIN)
}

const MOST_BUILT_IN: u32 = 4096;
/// Where the process may not have as many files open, accepting pauses until some are closed.
const LEAST_BUILT_IN: u32 = 64;
