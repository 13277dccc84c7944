//! The counters of one listener. They continue through reloads, and when a removed listener returns.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::relayed::RelayedBytes;
use crate::outcome::Reason;

/// What the connections of one listener did since the start of the process. Shared by all generations of its policy.
#[derive(Debug)]
pub(crate) struct ListenerMetrics {
    opened: AtomicU64,
    ended: AtomicU64,
    denied: [AtomicU64; Reason::ALL.len()],
    revoked: [AtomicU64; Reason::ALL.len()],
    pub(crate) relayed: RelayedBytes,
    /// Seconds from accept to the end of the TLS handshake.
    pub(crate) handshake_seconds: Histogram,
    handshakes: [AtomicU64; HANDSHAKES.len()],
    shield_dropped: AtomicU64,
}

/// The kinds of completed TLS handshakes: the version in the form of audit events, and whether a session was resumed.
pub(crate) const HANDSHAKES: [(&str, bool); 4] =
    [("TLSv1.2", false), ("TLSv1.2", true), ("TLSv1.3", false), ("TLSv1.3", true)];

/// Upper bounds in seconds.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl Default for ListenerMetrics {
    fn default() -> Self {
        Self {
            opened: AtomicU64::default(),
            ended: AtomicU64::default(),
            denied: array::from_fn(|_| AtomicU64::default()),
            revoked: array::from_fn(|_| AtomicU64::default()),
            relayed: RelayedBytes::default(),
            handshake_seconds: Histogram::new(BUCKETS),
            handshakes: array::from_fn(|_| AtomicU64::default()),
            shield_dropped: AtomicU64::default(),
        }
    }
}

impl ListenerMetrics {
    /// Counts a connection that was denied before it became a session.
    pub(crate) fn note_denied(&self, reason: Reason) {
        increment(&self.denied, reason);
    }

    pub(crate) fn note_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of an opened session. Call it exactly once for each.
    pub(crate) fn note_ended(&self, reason: Reason) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        if reason.is_revocation() {
            increment(&self.revoked, reason);
        }
    }

    /// Counts a completed TLS handshake. `duration` counts from accept.
    pub(crate) fn note_handshake(&self, version: Option<&str>, is_resumed: bool, duration: Duration) {
        self.handshake_seconds.observe(duration.as_secs_f64());
        let kind = HANDSHAKES.iter().position(|kind| Some(kind.0) == version && kind.1 == is_resumed);
        if let Some(count) = kind.and_then(|kind| self.handshakes.get(kind)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts packets that the kernel dropped for the shield.
    pub(crate) fn note_shield_drops(&self, packets: u64) {
        self.shield_dropped.fetch_add(packets, Ordering::Relaxed);
    }

    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// The number of open sessions.
    pub(crate) fn active(&self) -> u64 {
        // Read first: a session that ends in between must not make the result negative.
        let ended = self.ended.load(Ordering::Relaxed);
        self.opened().saturating_sub(ended)
    }

    /// The denied connections of every reason.
    pub(crate) fn denied(&self) -> impl Iterator<Item = (Reason, u64)> {
        counts(&self.denied)
    }

    /// The revoked sessions of every reason for which a policy ends sessions.
    pub(crate) fn revoked(&self) -> impl Iterator<Item = (Reason, u64)> {
        counts(&self.revoked).filter(|(reason, _)| reason.is_revocation())
    }

    /// The completed handshakes of every kind in [`HANDSHAKES`].
    pub(crate) fn handshakes(&self) -> impl Iterator<Item = (&'static str, bool, u64)> {
        let counts = self.handshakes.iter().map(|count| count.load(Ordering::Relaxed));
        HANDSHAKES.into_iter().zip(counts).map(|((version, is_resumed), count)| (version, is_resumed, count))
    }

    pub(crate) fn shield_dropped(&self) -> u64 {
        self.shield_dropped.load(Ordering::Relaxed)
    }
}

fn increment(counts: &[AtomicU64], reason: Reason) {
    if let Some(count) = counts.get(reason as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn counts(counts: &[AtomicU64]) -> impl Iterator<Item = (Reason, u64)> {
    Reason::ALL.into_iter().zip(counts.iter().map(|count| count.load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_kind_starts_at_zero() {
        let metrics = ListenerMetrics::default();
        assert_eq!(metrics.denied().count(), Reason::ALL.len());
        assert!(metrics.denied().chain(metrics.revoked()).all(|(_, count)| count == 0));
        assert!(metrics.handshakes().all(|(.., count)| count == 0));
        assert_eq!((metrics.opened(), metrics.active()), (0, 0));
    }

    #[test]
    fn each_event_is_counted_under_its_own_reason() {
        let metrics = ListenerMetrics::default();
        for _ in 0..3 {
            metrics.note_opened();
        }
        metrics.note_ended(Reason::ClientClosed);
        metrics.note_ended(Reason::SourceRevoked);
        metrics.note_denied(Reason::UntrustedSource);
        metrics.note_handshake(Some("TLSv1.3"), true, Duration::from_millis(3));
        assert_eq!((metrics.opened(), metrics.active()), (3, 1));
        let nonzero =
            |counts: Vec<(Reason, u64)>| counts.into_iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
        assert_eq!(nonzero(metrics.denied().collect()), [(Reason::UntrustedSource, 1)]);
        assert_eq!(nonzero(metrics.revoked().collect()), [(Reason::SourceRevoked, 1)]);
        assert!(metrics.handshakes().eq([
            ("TLSv1.2", false, 0),
            ("TLSv1.2", true, 0),
            ("TLSv1.3", false, 0),
            ("TLSv1.3", true, 1)
        ]));
    }
}
