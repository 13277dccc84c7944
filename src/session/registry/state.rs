//! The listed state of a session: when it was opened, and whether it is half-closed or closing.
//!
//! The connection records each change once. Relaying bytes does not touch the state.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

use time::OffsetDateTime;

use crate::outcome::Reason;
use crate::session::registry::{ConnectionGuard, ConnectionRegistry, LiveConnection, Session};

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Bytes pass in both directions.
    Open,
    /// One side has ended its direction, and the other may still send.
    HalfClosed(ClosedSide),
    /// No more bytes go to the upstream. The client receives the remaining bytes, and has a few seconds to close.
    Closing,
}

/// The side that ended its direction of a half-closed session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedSide {
    Client,
    Upstream,
}

/// A session in `sessions list`.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    pub state: SessionState,
    /// When the upstream was reached and relaying began.
    pub opened_at: OffsetDateTime,
    pub session: Arc<Session>,
}

/// The recorded state of a connection.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// [`NO_SESSION`] until it becomes a session.
    state: AtomicU8,
    /// Seconds since 1970, the precision of the list.
    opened_at: AtomicI64,
}

impl SessionState {
    /// Whether bytes may still pass between client and upstream, so that the session uses its authorization.
    pub const fn is_relaying(self) -> bool {
        !matches!(self, Self::Closing)
    }

    /// The stable code in JSON.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::HalfClosed(_) => "half_closed",
            Self::Closing => "closing",
        }
    }

    /// The side that ended its direction, if only one has.
    pub const fn half_closed_by(self) -> Option<&'static str> {
        match self {
            Self::HalfClosed(ClosedSide::Client) => Some("client"),
            Self::HalfClosed(ClosedSide::Upstream) => Some("upstream"),
            Self::Open | Self::Closing => None,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::HalfClosed(ClosedSide::Client) => 2,
            Self::HalfClosed(ClosedSide::Upstream) => 3,
            Self::Closing => 4,
        }
    }

    const fn of(number: u8) -> Option<Self> {
        match number {
            NO_SESSION => None,
            1 => Some(Self::Open),
            2 => Some(Self::HalfClosed(ClosedSide::Client)),
            3 => Some(Self::HalfClosed(ClosedSide::Upstream)),
            _ => Some(Self::Closing),
        }
    }
}

impl ClosedSide {
    /// The side that ended first, by the reason of its end.
    pub const fn of(reason: Reason) -> Self {
        if matches!(reason, Reason::UpstreamClosed) { Self::Upstream } else { Self::Client }
    }
}

impl ConnectionRegistry {
    /// The number of sessions whose bytes may still pass.
    pub fn relaying(&self) -> usize {
        let is_relaying = |live: &Arc<LiveConnection>| live.state().is_some_and(SessionState::is_relaying);
        self.entries().connections.values().filter(|live| is_relaying(live)).count()
    }
}

impl LiveConnection {
    /// The state of the session. `None` before the upstream is reached, and for a denied connection until its end.
    pub fn state(&self) -> Option<SessionState> {
        let noted = SessionState::of(self.progress.state.load(Ordering::Acquire))?;
        // A terminated connection ends at its next wake-up, before it relays another byte.
        Some(if self.shutdown.outcome.get().is_some() { SessionState::Closing } else { noted })
    }

    /// The session for the list, also while it is closing.
    pub fn listed(&self) -> Option<SessionInfo> {
        let state = self.state()?;
        let opened_at = OffsetDateTime::from_unix_timestamp(self.progress.opened_at.load(Ordering::Relaxed)).ok()?;
        Some(SessionInfo { state, opened_at, session: self.current().clone()? })
    }
}

impl ConnectionGuard {
    /// Records that the upstream is reached and relaying begins.
    pub fn mark_open(&self) {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        self.live.progress.opened_at.store(now, Ordering::Relaxed);
        self.mark(SessionState::Open);
    }

    /// Records that one side has ended its direction.
    pub fn mark_half_closed(&self, by: ClosedSide) {
        self.mark(SessionState::HalfClosed(by));
    }

    /// Records that relaying has ended and the client is being closed.
    pub fn mark_closing(&self) {
        self.mark(SessionState::Closing);
    }

    fn mark(&self, state: SessionState) {
        self.live.progress.state.store(state.number(), Ordering::Release);
    }
}

/// The number of a connection that is not listed.
const NO_SESSION: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::ClientAddr;
    use crate::policy::usage::Authorization;

    fn enter(registry: &Arc<ConnectionRegistry>) -> (ConnectionGuard, Arc<LiveConnection>) {
        let guard = registry.enter("db".into(), ClientAddr::UNIX);
        let live = registry.find(guard.id()).unwrap();
        (guard, live)
    }

    #[test]
    fn connection_before_its_upstream_is_judged_and_not_listed() {
        let registry = Arc::new(ConnectionRegistry::default());
        let (guard, live) = enter(&registry);
        assert!(live.listed().is_none() && live.session().is_none());
        guard.activate(Authorization::default());
        assert!(live.listed().is_none(), "it may still be denied");
        assert!(live.session().is_some(), "a new policy could not end it");
        live.end(Reason::SourceRevoked.into());
        assert_eq!(live.state(), None);
        assert_eq!((registry.relaying(), registry.count()), (0, 1));
    }

    #[test]
    fn session_is_listed_with_its_state_until_it_ends() {
        let registry = Arc::new(ConnectionRegistry::default());
        let (guard, live) = enter(&registry);
        guard.activate(Authorization::default());
        let before = OffsetDateTime::now_utc().unix_timestamp();
        guard.mark_open();
        let listed = live.listed().unwrap();
        assert_eq!(listed.state, SessionState::Open);
        assert!((before..=before + 60).contains(&listed.opened_at.unix_timestamp()), "{}", listed.opened_at);
        for by in [ClosedSide::Client, ClosedSide::Upstream] {
            guard.mark_half_closed(by);
            assert_eq!(live.state(), Some(SessionState::HalfClosed(by)));
            assert!(live.session().is_some(), "a new policy could not end it");
            assert_eq!(registry.relaying(), 1);
        }
        guard.mark_closing();
        assert_eq!(live.listed().unwrap().state, SessionState::Closing);
        assert_eq!(live.listed().unwrap().opened_at, listed.opened_at);
        assert!(live.session().is_some(), "a new policy could not cut its farewell short");
        assert_eq!((registry.relaying(), registry.count()), (0, 1));
        drop(guard);
        assert!(registry.find(live.id()).is_none());
    }

    #[test]
    fn terminated_session_is_closing_at_once() {
        let registry = Arc::new(ConnectionRegistry::default());
        let (guard, live) = enter(&registry);
        guard.activate(Authorization::default());
        guard.mark_open();
        live.end(Reason::ClosedByAdmin.into());
        assert_eq!(live.state(), Some(SessionState::Closing));
        guard.mark_half_closed(ClosedSide::Client);
        assert_eq!(live.state(), Some(SessionState::Closing), "a later state does not replace it");
        assert_eq!(registry.relaying(), 0);
    }

    #[test]
    fn state_survives_its_encoding() {
        let states = [
            SessionState::Open,
            SessionState::HalfClosed(ClosedSide::Client),
            SessionState::HalfClosed(ClosedSide::Upstream),
            SessionState::Closing,
        ];
        for state in states {
            assert_eq!(SessionState::of(state.number()), Some(state));
        }
        assert_eq!(SessionState::of(NO_SESSION), None);
    }
}
