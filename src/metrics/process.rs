//! The counters of the process that belong to no listener.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Reloads, admin requests, and whether the process is ready.
#[derive(Debug, Default)]
pub(crate) struct ProcessMetrics {
    pub(crate) reloads: ReloadMetrics,
    pub(crate) admin: AdminMetrics,
    pub(crate) readiness: Readiness,
}

/// The results of reloads since the start.
#[derive(Debug, Default)]
pub(crate) struct ReloadMetrics {
    applied: AtomicU64,
    rejected: AtomicU64,
    /// Whether the last reload was rejected.
    is_failing: AtomicBool,
}

impl ReloadMetrics {
    pub(crate) fn note(&self, is_applied: bool) {
        let count = if is_applied { &self.applied } else { &self.rejected };
        count.fetch_add(1, Ordering::Relaxed);
        self.is_failing.store(!is_applied, Ordering::Relaxed);
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    pub(crate) fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Whether the last reload was applied; true before the first one.
    pub(crate) fn was_applied(&self) -> bool {
        !self.is_failing.load(Ordering::Relaxed)
    }
}

/// Requests of the admin API. They are rare and counted under a lock that is held for one insertion.
#[derive(Debug, Default)]
pub(crate) struct AdminMetrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    auth_failures: AtomicU64,
}

impl AdminMetrics {
    /// Counts an answered request: the code of its role, or `None` without a valid token, and the status of the answer.
    pub(crate) fn note_request(&self, role: Option<&'static str>, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let count = requests.entry((role.unwrap_or(NO_ROLE), status)).or_default();
        *count = count.saturating_add(1);
    }

    /// Counts a request without a valid token.
    pub(crate) fn note_auth_failure(&self) {
        self.auth_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The requests by role and status.
    pub(crate) fn requests(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn auth_failures(&self) -> u64 {
        self.auth_failures.load(Ordering::Relaxed)
    }
}

/// Whether new connections should be sent here.
#[derive(Debug, Default)]
pub(crate) struct Readiness(AtomicU8);

impl Readiness {
    /// All listeners are bound.
    pub(crate) fn set_ready(&self) {
        self.0.store(READY, Ordering::Release);
    }

    /// The process stops. It never becomes ready again.
    pub(crate) fn set_draining(&self) {
        self.0.store(DRAINING, Ordering::Release);
    }

    /// # Errors
    /// Why the process is not ready.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        match self.0.load(Ordering::Acquire) {
            READY => Ok(()),
            DRAINING => Err("draining"),
            _ => Err("starting: not all listeners are bound"),
        }
    }
}

const READY: u8 = 1;
const DRAINING: u8 = 2;

/// The `role` of a request without a valid token.
const NO_ROLE: &str = "none";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_ready_between_start_and_drain() {
        let readiness = Readiness::default();
        assert!(readiness.check().is_err());
        readiness.set_ready();
        assert_eq!(readiness.check(), Ok(()));
        readiness.set_draining();
        assert_eq!(readiness.check(), Err("draining"));
    }

    #[test]
    fn last_reload_counts_as_applied_until_one_is_rejected() {
        let reloads = ReloadMetrics::default();
        assert!(reloads.was_applied());
        reloads.note(false);
        assert!(!reloads.was_applied());
        reloads.note(true);
        assert!(reloads.was_applied());
        assert_eq!((reloads.applied(), reloads.rejected()), (1, 1));
    }

    #[test]
    fn admin_requests_are_counted_by_role_and_status() {
        let admin = AdminMetrics::default();
        admin.note_request(Some("owner"), 200);
        admin.note_request(Some("owner"), 200);
        admin.note_request(None, 401);
        admin.note_auth_failure();
        assert_eq!(admin.requests(), BTreeMap::from([(("none", 401), 1), (("owner", 200), 2)]));
        assert_eq!(admin.auth_failures(), 1);
    }
}
