//! Limits the concurrent sessions of a listener (`max_connections`, `max_connections_per_source`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addr::{ClientAddr, SourceKey};
use crate::outcome::{Outcome, Reason};

/// The sessions of one listener, in total and by source. Shared by all generations, even if the limits change.
#[derive(Debug, Default)]
pub(crate) struct SessionLimiter {
    all: AtomicU32,
    hasher: RandomState,
    /// Number of sessions of each source; only sources that have any.
    sources: [Mutex<HashMap<SourceKey, u32>>; SHARDS],
}

/// The limits in force; `None` means no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SessionLimits {
    pub(crate) total: Option<NonZeroU32>,
    pub(crate) per_source: Option<NonZeroU32>,
}

/// One session, counted until this is dropped.
#[must_use]
#[derive(Debug)]
pub struct SessionPermit {
    sessions: Arc<SessionLimiter>,
    source: Option<SourceKey>,
}

/// A session limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// `max_connections`
    Listener(NonZeroU32),
    /// `max_connections_per_source`
    Source(NonZeroU32),
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(limit) => {
                write!(f, "the listener has reached its limit of {limit} sessions (max_connections)")
            }
            Self::Source(limit) => {
                write!(f, "the source has reached its limit of {limit} sessions (max_connections_per_source)")
            }
        }
    }
}

impl From<LimitReached> for Outcome {
    fn from(reached: LimitReached) -> Self {
        let reason = match reached {
            LimitReached::Listener(_) => Reason::ConnectionLimit,
            LimitReached::Source(_) => Reason::SourceConnectionLimit,
        };
        Self::new(reason, reached)
    }
}

impl SessionLimiter {
    /// Counts one more session unless a limit is reached. A lowered limit closes no session; it admits new ones when enough have
    /// ended.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        client: ClientAddr,
        limits: SessionLimits,
    ) -> Result<SessionPermit, LimitReached> {
        let source = client.source_key();
        let Some(key) = source else {
            self.acquire_total(limits.total)?;
            return Ok(SessionPermit { sessions: Arc::clone(self), source });
        };
        // Locked until both limits are checked, so that a rejected session is never counted.
        let mut sources = self.shard_of(key);
        let of_source = sources.get(&key).copied().unwrap_or_default();
        if let Some(limit) = limits.per_source.filter(|limit| of_source >= limit.get()) {
            return Err(LimitReached::Source(limit));
        }
        self.acquire_total(limits.total)?;
        sources.insert(key, of_source.saturating_add(1));
        Ok(SessionPermit { sessions: Arc::clone(self), source })
    }

    fn acquire_total(&self, limit: Option<NonZeroU32>) -> Result<(), LimitReached> {
        let one_more = |all: u32| match limit {
            Some(limit) if all >= limit.get() => None,
            Some(_) | None => Some(all.saturating_add(1)),
        };
        let counted = self.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        match (counted, limit) {
            (Err(_), Some(limit)) => Err(LimitReached::Listener(limit)),
            (Ok(_), _) | (Err(_), None) => Ok(()),
        }
    }

    fn shard_of(&self, key: SourceKey) -> MutexGuard<'_, HashMap<SourceKey, u32>> {
        let [first, ..] = &self.sources;
        let number = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        self.sources.get(number).unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        self.sessions.all.fetch_sub(1, Ordering::Relaxed);
        let Some(key) = self.source else { return };
        if let Entry::Occupied(mut of_source) = self.sessions.shard_of(key).entry(key) {
            *of_source.get_mut() -= 1;
            if *of_source.get() == 0 {
                of_source.remove();
            }
        }
    }
}

#[cfg(test)]
impl SessionPermit {
    /// A permit without limits, for other tests.
    pub(crate) fn unlimited() -> Self {
        Arc::new(SessionLimiter::default()).acquire(ClientAddr::UNIX, SessionLimits::default()).unwrap()
    }
}

/// Number of locks; reduces contention between workers.
const SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn client(ip: &str) -> ClientAddr {
        ClientAddr::from_ip(ip.parse().unwrap())
    }

    fn limits(total: u32, per_source: u32) -> SessionLimits {
        SessionLimits { total: NonZeroU32::new(total), per_source: NonZeroU32::new(per_source) }
    }

    fn sources(sessions: &SessionLimiter) -> usize {
        sessions.sources.iter().map(|sources| sources.lock().unwrap().len()).sum()
    }

    fn refused(counted: Result<SessionPermit, LimitReached>) -> Reason {
        Outcome::from(counted.unwrap_err()).reason
    }

    #[test]
    fn each_limit_admits_again_when_a_session_ends() {
        let sessions = Arc::new(SessionLimiter::default());
        let limits = limits(3, 2);
        let first = sessions.acquire(client("10.0.0.1"), limits).unwrap();
        let _second = sessions.acquire(client("10.0.0.1"), limits).unwrap();
        assert_eq!(refused(sessions.acquire(client("10.0.0.1"), limits)), Reason::SourceConnectionLimit);
        let _third = sessions.acquire(client("10.0.0.2"), limits).unwrap();
        assert_eq!(refused(sessions.acquire(client("10.0.0.3"), limits)), Reason::ConnectionLimit);
        drop(first);
        let _fourth = sessions.acquire(client("10.0.0.1"), limits).unwrap();
        assert_eq!(refused(sessions.acquire(client("10.0.0.2"), limits)), Reason::ConnectionLimit);
    }

    #[test]
    fn source_without_sessions_is_forgotten() {
        let sessions = Arc::new(SessionLimiter::default());
        let all: Vec<_> = (0..1000_u32)
            .map(|number| ClientAddr::from_ip(std::net::Ipv4Addr::from(number).into()))
            .map(|client| sessions.acquire(client, limits(0, 0)).unwrap())
            .collect();
        assert_eq!((sources(&sessions), sessions.all.load(Ordering::Relaxed)), (1000, 1000));
        drop(all);
        assert_eq!((sources(&sessions), sessions.all.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn ipv6_64_is_one_source_and_unix_socket_clients_have_none() {
        let sessions = Arc::new(SessionLimiter::default());
        let limits = limits(4, 1);
        let _first = sessions.acquire(client("2001:db8::1"), limits).unwrap();
        assert_eq!(refused(sessions.acquire(client("2001:db8::2"), limits)), Reason::SourceConnectionLimit);
        let _second = sessions.acquire(client("2001:db8:0:1::1"), limits).unwrap();
        let _local = [(); 2].map(|()| sessions.acquire(ClientAddr::UNIX, limits).unwrap());
        assert_eq!(refused(sessions.acquire(ClientAddr::UNIX, limits)), Reason::ConnectionLimit);
    }

    #[test]
    fn lowered_limit_keeps_sessions_and_admits_none_until_enough_have_ended() {
        let sessions = Arc::new(SessionLimiter::default());
        let mut open: Vec<_> = (0..4).map(|_| sessions.acquire(client("10.0.0.1"), limits(0, 0)).unwrap()).collect();
        for left in (2..4).rev() {
            assert_eq!(refused(sessions.acquire(client("10.0.0.1"), limits(0, 2))), Reason::SourceConnectionLimit);
            assert_eq!(refused(sessions.acquire(client("10.0.0.2"), limits(2, 0))), Reason::ConnectionLimit);
            open.pop();
            assert_eq!(open.len(), left);
        }
        open.pop();
        open.push(sessions.acquire(client("10.0.0.1"), limits(2, 2)).unwrap());
    }

    /// Each thread counts the permits held at the same time.
    #[test]
    fn concurrent_sessions_never_exceed_the_limits() {
        let sessions = Arc::new(SessionLimiter::default());
        let limits = limits(3, 2);
        let held = [(); 3].map(|()| AtomicU32::new(0));
        let [all, sources @ ..] = &held;
        thread::scope(|scope| {
            for number in 0..6 {
                let (sessions, source) = (&sessions, &sources[number % 2]);
                scope.spawn(move || {
                    let client = client(["10.0.0.1", "10.0.0.2"][number % 2]);
                    for _ in 0..20_000 {
                        let Ok(counted) = sessions.acquire(client, limits) else { continue };
                        assert!(all.fetch_add(1, Ordering::SeqCst) < 3);
                        assert!(source.fetch_add(1, Ordering::SeqCst) < 2);
                        source.fetch_sub(1, Ordering::SeqCst);
                        all.fetch_sub(1, Ordering::SeqCst);
                        drop(counted);
                    }
                });
            }
        });
        assert_eq!(sessions.all.load(Ordering::SeqCst), 0);
    }
}
