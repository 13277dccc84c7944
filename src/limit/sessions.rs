//! How many sessions a listener has at once (`max_connections`, `max_connections_per_source`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addr::{ClientAddr, SourceKey};
use crate::outcome::{Outcome, Reason};

/// The sessions of one listener, in all and by source. Goes on from one generation to the next, whatever the limits are.
#[derive(Debug, Default)]
pub(crate) struct SessionLimiter {
    all: AtomicU32,
    hasher: RandomState,
    /// Sources that have sessions, and how many.
    sources: [Mutex<HashMap<SourceKey, u32>>; SHARDS],
}

/// The limits in force; where there is none, any number of sessions is accepted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SessionLimits {
    pub(crate) total: Option<NonZeroU32>,
    pub(crate) per_source: Option<NonZeroU32>,
}

/// One session, counted for as long as this lives.
#[must_use]
#[derive(Debug)]
pub struct SessionPermit {
    sessions: Arc<SessionLimiter>,
    source: Option<SourceKey>,
}

/// There is no room for one more session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// The listener has so many.
    Listener(NonZeroU32),
    /// The source has so many.
    Source(NonZeroU32),
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(most) => write!(f, "the listener may have no more than {most} at once (max_connections)"),
            Self::Source(most) => {
                write!(f, "its source may have no more than {most} at once (max_connections_per_source)")
            }
        }
    }
}

impl From<LimitReached> for Outcome {
    fn from(full: LimitReached) -> Self {
        let reason = match full {
            LimitReached::Listener(_) => Reason::ConnectionLimit,
            LimitReached::Source(_) => Reason::SourceConnectionLimit,
        };
        Self::new(reason, full)
    }
}

impl SessionLimiter {
    /// Counts one more session, unless there is no room for it. A limit that was lowered ends nobody; it has room again when
    /// enough have gone.
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
        // Held until both are decided, so that none is counted that is then refused.
        let mut sources = self.sources_like(key);
        let of_source = sources.get(&key).copied().unwrap_or_default();
        if let Some(most) = limits.per_source.filter(|most| of_source >= most.get()) {
            return Err(LimitReached::Source(most));
        }
        self.acquire_total(limits.total)?;
        sources.insert(key, of_source.saturating_add(1));
        Ok(SessionPermit { sessions: Arc::clone(self), source })
    }

    fn acquire_total(&self, most: Option<NonZeroU32>) -> Result<(), LimitReached> {
        let one_more = |all: u32| match most {
            Some(most) if all >= most.get() => None,
            Some(_) | None => Some(all.saturating_add(1)),
        };
        let counted = self.all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        match (counted, most) {
            (Err(_), Some(most)) => Err(LimitReached::Listener(most)),
            (Ok(_), _) | (Err(_), None) => Ok(()),
        }
    }

    fn sources_like(&self, key: SourceKey) -> MutexGuard<'_, HashMap<SourceKey, u32>> {
        let [first, ..] = &self.sources;
        let number = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        self.sources.get(number).unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        self.sessions.all.fetch_sub(1, Ordering::Relaxed);
        let Some(key) = self.source else { return };
        if let Entry::Occupied(mut of_source) = self.sessions.sources_like(key).entry(key) {
            *of_source.get_mut() -= 1;
            if *of_source.get() == 0 {
                of_source.remove();
            }
        }
    }
}

#[cfg(test)]
impl SessionPermit {
    /// A session by itself, for tests of what is not about limits.
    pub(crate) fn alone() -> Self {
        Arc::new(SessionLimiter::default()).acquire(ClientAddr::UNIX, SessionLimits::default()).unwrap()
    }
}

/// Locks, so that workers seldom meet.
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
    fn each_limit_counts_by_itself_and_has_room_again_when_one_goes() {
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
    fn nothing_is_kept_of_a_source_without_sessions() {
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
    fn an_ipv6_64_is_one_source_and_clients_of_a_unix_socket_have_none() {
        let sessions = Arc::new(SessionLimiter::default());
        let limits = limits(4, 1);
        let _first = sessions.acquire(client("2001:db8::1"), limits).unwrap();
        assert_eq!(refused(sessions.acquire(client("2001:db8::2"), limits)), Reason::SourceConnectionLimit);
        let _second = sessions.acquire(client("2001:db8:0:1::1"), limits).unwrap();
        let _local = [(); 2].map(|()| sessions.acquire(ClientAddr::UNIX, limits).unwrap());
        assert_eq!(refused(sessions.acquire(ClientAddr::UNIX, limits)), Reason::ConnectionLimit);
    }

    #[test]
    fn a_limit_that_is_lowered_ends_nobody_and_lets_nobody_in_until_enough_have_gone() {
        let sessions = Arc::new(SessionLimiter::default());
        let mut inside: Vec<_> = (0..4).map(|_| sessions.acquire(client("10.0.0.1"), limits(0, 0)).unwrap()).collect();
        for left in (2..4).rev() {
            assert_eq!(refused(sessions.acquire(client("10.0.0.1"), limits(0, 2))), Reason::SourceConnectionLimit);
            assert_eq!(refused(sessions.acquire(client("10.0.0.2"), limits(2, 0))), Reason::ConnectionLimit);
            inside.pop();
            assert_eq!(inside.len(), left);
        }
        inside.pop();
        inside.push(sessions.acquire(client("10.0.0.1"), limits(2, 2)).unwrap());
    }

    /// Threads that come and go all the time; whoever is in can see how many others are.
    #[test]
    fn there_is_never_one_too_many_whoever_comes_at_once() {
        let sessions = Arc::new(SessionLimiter::default());
        let limits = limits(3, 2);
        let inside = [(); 3].map(|()| AtomicU32::new(0));
        let [all, sources @ ..] = &inside;
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
