//! CancelRequests of one PostgreSQL listener: the endpoint of each session, by cancel key, and the limits.
//!
//! A request with the key of an open session proves knowledge of its secret. It counts only against the limit of that
//! session, so a client can cancel all its sessions while others flood the listener. Requests with an unknown key are limited
//! per source and per listener. They are forwarded because the session may belong to another replica of Portcullis.

pub(crate) mod limits;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::ClientAddr;
use crate::limit::gcra::Gcra;
use crate::upstream::cancel_keys::limits::{SESSION_LIMIT, Scope, TooManyCancels, UnknownKeySlot, UnknownKeys};
use crate::upstream::endpoint::Endpoint;

/// The cancel keys of one listener's open sessions. They outlive reloads.
pub struct CancelKeys {
    sessions: Mutex<Sessions>,
    unknown: Arc<UnknownKeys>,
    /// The origin of the time of the rate limits.
    since: Instant,
}

#[derive(Default)]
struct Sessions {
    by_key: HashMap<Box<[u8]>, Endpoint>,
    /// The open sessions that had a request before.
    cancelled: HashMap<Box<[u8]>, CancelledSession>,
}

/// The CancelRequests of one session.
#[derive(Default)]
struct CancelledSession {
    rate: Gcra,
    /// One reference, and one more for each request in flight.
    in_flight: Arc<()>,
}

/// Keeps a session registered until it is dropped.
pub struct CancelRegistration {
    keys: Arc<CancelKeys>,
    key: Box<[u8]>,
}

/// An admitted CancelRequest. It counts as in flight until it is dropped.
#[must_use]
#[derive(Debug)]
pub struct PendingCancel {
    /// The endpoint of the session. `None` if the key is unknown.
    pub endpoint: Option<Endpoint>,
    _slot: CancelSlot,
}

#[derive(Debug)]
enum CancelSlot {
    Session { _request: Arc<()> },
    UnknownKey { _slot: UnknownKeySlot },
}

impl CancelKeys {
    /// Registers a session. `key` is process id and secret, as in a CancelRequest.
    pub fn register(self: &Arc<Self>, key: &[u8], endpoint: Endpoint) -> CancelRegistration {
        self.sessions().by_key.insert(key.into(), endpoint);
        CancelRegistration { keys: Arc::clone(self), key: key.into() }
    }

    /// Admits a CancelRequest with this key.
    ///
    /// # Errors
    /// The request exceeds a limit.
    pub fn admit(&self, key: &[u8], client: ClientAddr, now: Instant) -> Result<PendingCancel, TooManyCancels> {
        let now = now.saturating_duration_since(self.since);
        let mut sessions = self.sessions();
        if let Some(endpoint) = sessions.by_key.get(key).cloned() {
            let request = sessions.cancelled.entry(key.into()).or_default().acquire(now)?;
            return Ok(PendingCancel { endpoint: Some(endpoint), _slot: CancelSlot::Session { _request: request } });
        }
        drop(sessions);
        let slot = self.unknown.acquire(client.source_key(), now)?;
        Ok(PendingCancel { endpoint: None, _slot: CancelSlot::UnknownKey { _slot: slot } })
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for CancelKeys {
    fn default() -> Self {
        Self { sessions: Mutex::default(), unknown: Arc::default(), since: Instant::now() }
    }
}

impl CancelledSession {
    fn acquire(&mut self, now: Duration) -> Result<Arc<()>, TooManyCancels> {
        let count = u32::try_from(Arc::strong_count(&self.in_flight) - 1).unwrap_or(u32::MAX);
        if count >= SESSION_LIMIT.max_in_flight {
            return Err(TooManyCancels::in_flight(Scope::Session));
        }
        if !self.rate.take(SESSION_LIMIT.rate, now) {
            return Err(TooManyCancels::rate(Scope::Session));
        }
        Ok(Arc::clone(&self.in_flight))
    }
}

impl Drop for CancelRegistration {
    fn drop(&mut self) {
        let mut sessions = self.keys.sessions();
        sessions.by_key.remove(&self.key);
        sessions.cancelled.remove(&self.key);
    }
}

impl fmt::Debug for CancelRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelRegistration").finish_non_exhaustive()
    }
}

/// Omits the keys, which are secrets.
impl fmt::Debug for CancelKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelKeys").field("sessions", &self.sessions().by_key.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::UpstreamAddr;
    use crate::outcome::{Outcome, Reason};
    use crate::upstream::endpoint::Endpoints;

    const KEY: &[u8] = b"12345678";

    fn endpoint() -> Endpoint {
        Endpoints::after(None, &[UpstreamAddr::Unix("/run/db".into())]).in_order(false)[0].as_endpoint()
    }

    fn client() -> ClientAddr {
        ClientAddr::from_ip([10, 0, 0, 1].into())
    }

    /// Sends requests for one key that all stay in flight, until one is refused.
    fn fill(keys: &CancelKeys, key: &[u8], now: Instant) -> (Vec<PendingCancel>, Reason) {
        let mut admitted = Vec::new();
        loop {
            match keys.admit(key, client(), now) {
                Ok(pending) => admitted.push(pending),
                Err(refused) => return (admitted, Outcome::from(refused).reason),
            }
        }
    }

    #[test]
    fn session_is_found_by_its_key_until_it_ends() {
        let keys = Arc::new(CancelKeys::default());
        let session = keys.register(KEY, endpoint());
        let find = |key| keys.admit(key, client(), Instant::now()).unwrap().endpoint;
        assert_eq!(find(KEY).unwrap().configured.address(), &UpstreamAddr::Unix("/run/db".into()));
        assert!(find(b"12345679").is_none());
        assert!(!format!("{keys:?}").contains("1234"));
        drop(session);
        assert!(find(KEY).is_none());
        let sessions = keys.sessions();
        assert_eq!((sessions.by_key.len(), sessions.cancelled.len()), (0, 0), "the session is removed");
    }

    #[test]
    fn requests_for_one_session_are_limited_in_flight_and_in_rate() {
        let keys = Arc::new(CancelKeys::default());
        let _session = keys.register(KEY, endpoint());
        let (in_flight, reason) = fill(&keys, KEY, keys.since);
        assert_eq!((in_flight.len(), reason), (4, Reason::SourceConnectionLimit));
        drop(in_flight);
        let pass = |after: Duration| {
            let passes = |_: &_| keys.admit(KEY, client(), keys.since + after).is_ok();
            (0..100).filter(passes).count()
        };
        assert_eq!(pass(Duration::ZERO), 20 - 4);
        assert_eq!(pass(Duration::from_secs(1)), 10);
        let refused = keys.admit(KEY, client(), keys.since + Duration::from_secs(1)).unwrap_err();
        assert_eq!(Outcome::from(refused).reason, Reason::RateLimited);
    }

    #[test]
    fn flood_of_unknown_keys_does_not_block_requests_for_open_sessions() {
        let keys = Arc::new(CancelKeys::default());
        let numbers = || (0..500_u32).map(u32::to_be_bytes);
        let _sessions: Vec<_> = numbers().map(|key| keys.register(&key, endpoint())).collect();
        let (flood, _) = fill(&keys, b"unknown", keys.since);
        // A pool at the source of the flood cancels all its queries.
        let pool: Vec<_> = numbers().map(|key| keys.admit(&key, client(), keys.since).unwrap()).collect();
        assert!(pool.iter().all(|pending| pending.endpoint.is_some()));
        drop(flood);
    }
}
