//! What is shown of a session: since when it is open, and whether it is ending.
//!
//! The connection notes each change itself, once; whoever lists sessions reads it. Relaying a byte touches none of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

use time::OffsetDateTime;

use crate::outcome::Reason;
use crate::session::registry::{Live, Presence, Register, Session};

/// Where a session is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Bytes pass in both directions.
    Open,
    /// One side has ended its direction, and the other may still send.
    HalfClosed(EndedBy),
    /// Nothing goes to the upstream any more. The client is sent what is left for it, and its own end is awaited for a
    /// few seconds.
    Closing,
}

/// The side that ended its direction of a half-closed session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// The client sends nothing more.
    Client,
    /// The upstream sends nothing more.
    Upstream,
}

/// A session as it is listed.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Where it is in its life.
    pub state: State,
    /// When its upstream had been reached and bytes began to be relayed.
    pub opened_at: OffsetDateTime,
    /// What it was let in by.
    pub session: Arc<Session>,
}

/// What a connection has noted of its life as a session.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// [`NO_SESSION`] until it is one.
    state: AtomicU8,
    /// In seconds since 1970, which is all that is shown.
    opened_at: AtomicI64,
}

impl State {
    /// Whether bytes may still pass between client and upstream: then the session uses what it was let in by.
    pub const fn is_relaying(self) -> bool {
        !matches!(self, Self::Closing)
    }

    /// The stable word for it.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::HalfClosed(_) => "half_closed",
            Self::Closing => "closing",
        }
    }

    /// The side that ended its direction, where only one has.
    pub const fn half_closed_by(self) -> Option<&'static str> {
        match self {
            Self::HalfClosed(EndedBy::Client) => Some("client"),
            Self::HalfClosed(EndedBy::Upstream) => Some("upstream"),
            Self::Open | Self::Closing => None,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::HalfClosed(EndedBy::Client) => 2,
            Self::HalfClosed(EndedBy::Upstream) => 3,
            Self::Closing => 4,
        }
    }

    const fn of(number: u8) -> Option<Self> {
        match number {
            NO_SESSION => None,
            1 => Some(Self::Open),
            2 => Some(Self::HalfClosed(EndedBy::Client)),
            3 => Some(Self::HalfClosed(EndedBy::Upstream)),
            _ => Some(Self::Closing),
        }
    }
}

impl EndedBy {
    /// The side that `reason` names as the first to end.
    pub const fn of(reason: Reason) -> Self {
        if matches!(reason, Reason::UpstreamClosed) { Self::Upstream } else { Self::Client }
    }
}

impl Register {
    /// How many sessions there are between which and their upstream bytes may still pass.
    pub fn relaying(&self) -> usize {
        let is_relaying = |live: &Arc<Live>| live.state().is_some_and(State::is_relaying);
        self.present().connections.values().filter(|live| is_relaying(live)).count()
    }
}

impl Live {
    /// Where it is in its life as a session. Nothing while it is on its way to its upstream, and nothing if it was refused,
    /// however long it takes to tell the client.
    pub fn state(&self) -> Option<State> {
        let noted = State::of(self.progress.state.load(Ordering::Acquire))?;
        // Who is told to end does so at its next wake-up, before another byte.
        Some(if self.exit.ending.get().is_some() { State::Closing } else { noted })
    }

    /// The session that it is, or was until it began to close.
    pub fn listed(&self) -> Option<Listed> {
        let state = self.state()?;
        let opened_at = OffsetDateTime::from_unix_timestamp(self.progress.opened_at.load(Ordering::Relaxed)).ok()?;
        Some(Listed { state, opened_at, session: self.current().clone()? })
    }
}

impl Presence {
    /// Notes that the upstream is reached and that bytes are relayed from now on.
    pub fn mark_open(&self) {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        self.live.progress.opened_at.store(now, Ordering::Relaxed);
        self.mark(State::Open);
    }

    /// Notes that one side has ended its direction.
    pub fn mark_half_closed(&self, by: EndedBy) {
        self.mark(State::HalfClosed(by));
    }

    /// Notes that nothing is relayed any more, and that only the client is still to be seen off.
    pub fn mark_closing(&self) {
        self.mark(State::Closing);
    }

    fn mark(&self, state: State) {
        self.live.progress.state.store(state.number(), Ordering::Release);
    }
}

/// The number of what is not listed.
const NO_SESSION: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::ClientAddr;
    use crate::policy::usage::Reliance;

    fn enter(register: &Arc<Register>) -> (Presence, Arc<Live>) {
        let presence = register.enter("db".into(), ClientAddr::UNIX);
        let live = register.find(presence.id()).unwrap();
        (presence, live)
    }

    #[test]
    fn connection_that_has_not_reached_its_upstream_is_judged_and_not_listed() {
        let register = Arc::new(Register::default());
        let (presence, live) = enter(&register);
        assert!(live.listed().is_none() && live.session().is_none());
        presence.stands(Reliance::default());
        assert!(live.listed().is_none(), "it may be refused still");
        assert!(live.session().is_some(), "a new policy could not end it");
        live.end(Reason::SourceRevoked.into());
        assert_eq!(live.state(), None);
        assert_eq!((register.relaying(), register.count()), (0, 1));
    }

    #[test]
    fn session_is_listed_with_its_state_until_it_is_gone() {
        let register = Arc::new(Register::default());
        let (presence, live) = enter(&register);
        presence.stands(Reliance::default());
        let before = OffsetDateTime::now_utc().unix_timestamp();
        presence.mark_open();
        let listed = live.listed().unwrap();
        assert_eq!(listed.state, State::Open);
        assert!((before..=before + 60).contains(&listed.opened_at.unix_timestamp()), "{}", listed.opened_at);
        for by in [EndedBy::Client, EndedBy::Upstream] {
            presence.mark_half_closed(by);
            assert_eq!(live.state(), Some(State::HalfClosed(by)));
            assert!(live.session().is_some(), "a new policy could not end it");
            assert_eq!(register.relaying(), 1);
        }
        presence.mark_closing();
        assert_eq!(live.listed().unwrap().state, State::Closing);
        assert_eq!(live.listed().unwrap().opened_at, listed.opened_at);
        assert!(live.session().is_none(), "there is nothing left to end");
        assert_eq!((register.relaying(), register.count()), (0, 1));
        drop(presence);
        assert!(register.find(live.id()).is_none());
    }

    #[test]
    fn session_that_was_told_to_end_is_closing_at_once() {
        let register = Arc::new(Register::default());
        let (presence, live) = enter(&register);
        presence.stands(Reliance::default());
        presence.mark_open();
        live.end(Reason::ClosedByAdmin.into());
        assert_eq!(live.state(), Some(State::Closing));
        presence.mark_half_closed(EndedBy::Client);
        assert_eq!(live.state(), Some(State::Closing), "it cannot become more than that");
        assert_eq!(register.relaying(), 0);
    }

    #[test]
    fn state_is_read_as_it_was_noted() {
        let states =
            [State::Open, State::HalfClosed(EndedBy::Client), State::HalfClosed(EndedBy::Upstream), State::Closing];
        for state in states {
            assert_eq!(State::of(state.number()), Some(state));
        }
        assert_eq!(State::of(NO_SESSION), None);
    }
}
