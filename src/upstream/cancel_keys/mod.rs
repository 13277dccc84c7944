//! CancelRequests of one PostgreSQL listener: at which node the session of a key is, and how many requests may pass.
//!
//! A request with the key of an open session comes from somebody who knows its secret. It is limited with that session
//! alone, so a client can cancel all its sessions at once while others flood the listener. Requests that name no open
//! session are limited for each source and for the listener. They may pass because the session may be at another replica.

pub(crate) mod limits;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::ClientAddr;
use crate::limit::gcra::Gcra;
use crate::upstream::cancel_keys::limits::{OF_SESSION, Scope, UnknownKeySlot, UnknownKeys};
use crate::upstream::endpoint::Endpoint;

use crate::upstream::cancel_keys::limits::TooManyCancels;

/// The open sessions of one listener. Goes on from one generation to the next.
pub struct CancelKeys {
    sessions: Mutex<Sessions>,
    unnamed: Arc<UnknownKeys>,
    /// The moment the time of rates is counted from.
    since: Instant,
}

#[derive(Default)]
struct Sessions {
    by_key: HashMap<Box<[u8]>, Endpoint>,
    /// The open sessions for which there was a request before.
    cancelled: HashMap<Box<[u8]>, CancelledSession>,
}

/// The CancelRequests of one session.
#[derive(Default)]
struct CancelledSession {
    rate: Gcra,
    /// Its references are this one and one for each request under way.
    under_way: Arc<()>,
}

/// A session that can be found by its key, as long as this lives.
pub struct CancelRegistration {
    keys: Arc<CancelKeys>,
    key: Box<[u8]>,
}

/// A CancelRequest that may pass, counted for as long as this lives.
#[must_use]
#[derive(Debug)]
pub struct PendingCancel {
    /// Where the session is. `None` where the request names no open session.
    pub endpoint: Option<Endpoint>,
    _counted: CancelSlot,
}

#[derive(Debug)]
enum CancelSlot {
    WithItsSession { _under_way: Arc<()> },
    WithItsSource { _place: UnknownKeySlot },
}

impl CancelKeys {
    /// Notes where the session of this key is: process id and secret, as a CancelRequest has them.
    pub fn note(self: &Arc<Self>, key: &[u8], whereabouts: Endpoint) -> CancelRegistration {
        self.sessions().by_key.insert(key.into(), whereabouts);
        CancelRegistration { keys: Arc::clone(self), key: key.into() }
    }

    /// Admits a CancelRequest with this key.
    ///
    /// # Errors
    /// When it is above a limit.
    pub fn begin(&self, key: &[u8], client: ClientAddr, now: Instant) -> Result<PendingCancel, TooManyCancels> {
        let now = now.saturating_duration_since(self.since);
        let mut sessions = self.sessions();
        if let Some(endpoint) = sessions.by_key.get(key).cloned() {
            let under_way = sessions.cancelled.entry(key.into()).or_default().take(now)?;
            return Ok(PendingCancel {
                endpoint: Some(endpoint),
                _counted: CancelSlot::WithItsSession { _under_way: under_way },
            });
        }
        drop(sessions);
        let endpoint = self.unnamed.take(client.source_key(), now)?;
        Ok(PendingCancel { endpoint: None, _counted: CancelSlot::WithItsSource { _place: endpoint } })
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for CancelKeys {
    fn default() -> Self {
        Self { sessions: Mutex::default(), unnamed: Arc::default(), since: Instant::now() }
    }
}

impl CancelledSession {
    fn take(&mut self, now: Duration) -> Result<Arc<()>, TooManyCancels> {
        let under_way = u32::try_from(Arc::strong_count(&self.under_way) - 1).unwrap_or(u32::MAX);
        if under_way >= OF_SESSION.at_once {
            return Err(TooManyCancels::at_once(Scope::Session));
        }
        if !self.rate.take(OF_SESSION.rate, now) {
            return Err(TooManyCancels::in_a_short_time(Scope::Session));
        }
        Ok(Arc::clone(&self.under_way))
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
        f.debug_struct("Cancellable").finish_non_exhaustive()
    }
}

/// The keys are secrets.
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

    /// Requests for one key that all stay under way, until one is refused.
    fn crowd(keys: &CancelKeys, key: &[u8], now: Instant) -> (Vec<PendingCancel>, Reason) {
        let mut passed = Vec::new();
        loop {
            match keys.begin(key, client(), now) {
                Ok(begun) => passed.push(begun),
                Err(refused) => return (passed, Outcome::from(refused).reason),
            }
        }
    }

    #[test]
    fn a_session_is_found_by_its_key_as_long_as_it_lives() {
        let keys = Arc::new(CancelKeys::default());
        let session = keys.note(KEY, endpoint());
        let find = |key| keys.begin(key, client(), Instant::now()).unwrap().endpoint;
        assert_eq!(find(KEY).unwrap().configured.address(), &UpstreamAddr::Unix("/run/db".into()));
        assert!(find(b"12345679").is_none());
        assert!(!format!("{keys:?}").contains("1234"));
        drop(session);
        assert!(find(KEY).is_none());
        let sessions = keys.sessions();
        assert_eq!((sessions.by_key.len(), sessions.cancelled.len()), (0, 0), "nothing is kept of it");
    }

    #[test]
    fn requests_for_one_session_are_limited_at_once_and_in_time() {
        let keys = Arc::new(CancelKeys::default());
        let _session = keys.note(KEY, endpoint());
        let (under_way, reason) = crowd(&keys, KEY, keys.since);
        assert_eq!((under_way.len(), reason), (4, Reason::SourceConnectionLimit));
        drop(under_way);
        let pass = |after: Duration| {
            let passes = |_: &_| keys.begin(KEY, client(), keys.since + after).is_ok();
            (0..100).filter(passes).count()
        };
        assert_eq!(pass(Duration::ZERO), 20 - 4);
        assert_eq!(pass(Duration::from_secs(1)), 10);
        let refused = keys.begin(KEY, client(), keys.since + Duration::from_secs(1)).unwrap_err();
        assert_eq!(Outcome::from(refused).reason, Reason::RateLimited);
    }

    #[test]
    fn flood_that_names_no_session_keeps_no_session_from_being_cancelled() {
        let keys = Arc::new(CancelKeys::default());
        let numbers = || (0..500_u32).map(u32::to_be_bytes);
        let _sessions: Vec<_> = numbers().map(|key| keys.note(&key, endpoint())).collect();
        let (flood, _) = crowd(&keys, b"unknown", keys.since);
        // A pool that cancels all its queries, from the source of the flood.
        let pool: Vec<_> = numbers().map(|key| keys.begin(&key, client(), keys.since).unwrap()).collect();
        assert!(pool.iter().all(|begun| begun.endpoint.is_some()));
        drop(flood);
    }
}
