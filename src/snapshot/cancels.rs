//! Which node each PostgreSQL session is at, by the key that a CancelRequest names it by.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Whereabouts;

/// The open sessions of one listener. Goes on from one generation to the next.
#[derive(Default)]
pub struct CancelKeys {
    sessions: Mutex<HashMap<Box<[u8]>, Whereabouts>>,
}

/// A session that can be found by its key, as long as this lives.
pub struct Cancellable {
    keys: Arc<CancelKeys>,
    key: Box<[u8]>,
}

impl CancelKeys {
    /// Notes where the session of this key is: process id and secret, as a CancelRequest has them.
    pub fn note(self: &Arc<Self>, key: &[u8], whereabouts: Whereabouts) -> Cancellable {
        self.sessions().insert(key.into(), whereabouts);
        Cancellable { keys: Arc::clone(self), key: key.into() }
    }

    /// Where the session of this key is.
    pub fn find(&self, key: &[u8]) -> Option<Whereabouts> {
        self.sessions().get(key).cloned()
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Whereabouts>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cancellable {
    fn drop(&mut self) {
        self.keys.sessions().remove(&self.key);
    }
}

impl fmt::Debug for Cancellable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancellable").finish_non_exhaustive()
    }
}

/// The keys are secrets.
impl fmt::Debug for CancelKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelKeys").field("sessions", &self.sessions().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::UpstreamAddr;
    use crate::snapshot::Nodes;

    #[test]
    fn a_session_is_found_by_its_key_as_long_as_it_lives() {
        let keys = Arc::new(CancelKeys::default());
        let nodes = Nodes::after(None, &[UpstreamAddr::Unix("/run/db".into())]);
        let session = keys.note(b"12345678", nodes.in_order(false)[0].itself());
        assert_eq!(keys.find(b"12345678").unwrap().node.address(), &UpstreamAddr::Unix("/run/db".into()));
        assert!(keys.find(b"12345679").is_none());
        assert!(!format!("{keys:?}").contains("1234"));
        drop(session);
        assert!(keys.find(b"12345678").is_none());
    }
}
