//! Limits the concurrent handshakes of a listener (`max_handshakes`).
//!
//! A connection counts from accept until its client is authorized or it is closed. At the limit, a new connection is rejected
//! unless another source has more handshakes. In that case it displaces the oldest handshake of the source that has the most. One
//! source can use all handshakes while no other source needs them, and cannot block other sources.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addr::{ClientAddr, SourceKey};
use crate::outcome::{Outcome, Reason};

/// The handshakes of one listener. Shared by all generations.
#[derive(Debug, Default)]
pub(crate) struct HandshakeLimiter {
    open: Mutex<OpenHandshakes>,
}

#[derive(Debug, Default)]
struct OpenHandshakes {
    count: u32,
    /// The connection numbers of each source. Numbers increase, so the lowest is the oldest. Clients of Unix sockets share one
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

/// A handshake that may start.
#[must_use]
#[derive(Debug)]
pub struct AcquiredHandshake {
    pub handshake: HandshakePermit,
    /// The number of the connection that it displaced. The caller must close that connection.
    pub displaced: Option<u64>,
}

/// Why a handshake is rejected or displaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeLimitReached {
    /// The listener has reached this limit.
    Full(NonZeroU32),
    /// A handshake of another source replaced this one.
    Displaced,
}

impl fmt::Display for HandshakeLimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(limit) => {
                write!(f, "the listener has reached its limit of {limit} concurrent handshakes (max_handshakes)")
            }
            Self::Displaced => f.write_str(
                "displaced by another source: the listener reached max_handshakes, and this was the oldest handshake of the source with the most",
            ),
        }
    }
}

impl From<HandshakeLimitReached> for Outcome {
    fn from(reached: HandshakeLimitReached) -> Self {
        Self::new(Reason::HandshakeLimit, reached)
    }
}

impl HandshakeLimiter {
    pub(crate) fn count(&self) -> u32 {
        self.open().count
    }

    /// Counts the handshake of the connection with this number.
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

    /// Returns whether the connection was still counted.
    fn remove(&mut self, source: Option<SourceKey>, connection: u64) -> bool {
        let Some(connections) = self.sources.get_mut(&source) else { return false };
        let removed = connections.remove(&connection);
        if connections.is_empty() {
            self.sources.remove(&source);
        }
        self.count = self.count.saturating_sub(removed.into());
        removed
    }

    /// Removes the oldest handshake of the source with the most, unless it would then have fewer than `source`.
    fn displace_for(&mut self, source: Option<SourceKey>) -> Option<u64> {
        if self.sources.len() >= usize::try_from(self.count).unwrap_or(usize::MAX) {
            // Each source has one. A flood from many sources must not cost a search for each connection.
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
    /// Counts the connection for the source of the client that a load balancer has announced.
    pub fn set_client(&mut self, client: ClientAddr) {
        let source = client.source_key();
        let mut open = self.handshakes.open();
        if source != self.source && open.remove(self.source, self.connection) {
            open.add(source, self.connection);
        }
        self.source = source;
    }

    /// Ends the handshake because the client is authorized.
    ///
    /// # Errors
    /// When another handshake has displaced this one.
    pub fn finish(self) -> Result<(), HandshakeLimitReached> {
        let was_counted = self.handshakes.open().remove(self.source, self.connection);
        if was_counted { Ok(()) } else { Err(HandshakeLimitReached::Displaced) }
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        // Does nothing after `finish`, and for a displaced handshake.
        self.handshakes.open().remove(self.source, self.connection);
    }
}

/// The limit if none is configured. `open_files` is the maximum number of open files of the process.
///
/// 4,096 handshakes are enough even if all clients reconnect at once. They use 12 MiB if the clients only connect, and 339
/// MiB in the most expensive case (see docs/PERFORMANCE.md). Each handshake uses one open file and reserves a second one for
/// its upstream, so a quarter of the open files leaves half of them for sessions.
pub(crate) fn built_in_limit(open_files: Option<u64>) -> NonZeroU32 {
    let quarter = open_files.and_then(|files| u32::try_from(files / 4).ok()).unwrap_or(u32::MAX);
    NonZeroU32::new(quarter.clamp(MIN_BUILT_IN, MAX_BUILT_IN)).unwrap_or(NonZeroU32::MIN)
}

const MAX_BUILT_IN: u32 = 4096;
/// If the process may not open as many files, accepting pauses until some are closed.
const MIN_BUILT_IN: u32 = 64;
