//! The register of live connections: who is in, by what, and a way to show each of them out.
//!
//! A connection signs in when it is accepted and signs out by dropping its [`Presence`]. Whoever wants it to end says so
//! here; the connection hears it at its next wake-up, wherever in its life it is. So that an open session can be judged
//! again without asking it, what it was let in by stands here too.

pub(crate) mod state;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::addr::{ClientAddr, Provenance};
use crate::outcome::{Ending, Reason};
use crate::policy::usage::Reliance;
use crate::session::registry::state::Progress;
use crate::session::registry::state::State;

/// All live connections of the process.
#[derive(Debug, Default)]
pub struct Register {
    present: Mutex<Present>,
    /// Told when the last one leaves.
    empty: Notify,
    /// Told when a session comes that has to be judged again sooner than all others.
    sooner: Notify,
}

#[derive(Debug, Default)]
struct Present {
    next_id: u64,
    connections: HashMap<u64, Arc<Live>>,
    /// When which session has to be judged again.
    due: BTreeSet<(OffsetDateTime, u64)>,
}

/// A live connection.
#[derive(Debug)]
pub struct Live {
    id: u64,
    listener: Arc<str>,
    /// Whose socket it is.
    from: ClientAddr,
    /// Whom that speaks for, where it is a load balancer's.
    client: OnceLock<ClientAddr>,
    session: Mutex<Option<Arc<Session>>>,
    progress: Progress,
    exit: Exit,
}

/// A connection whose client was confirmed. It is listed as a session once its bytes are relayed.
#[derive(Clone, Debug)]
pub struct Session {
    /// What it was let in by.
    pub reliance: Reliance,
}

/// One connection's entry in the register; gone when dropped.
#[derive(Debug)]
pub struct Presence {
    live: Arc<Live>,
    register: Arc<Register>,
}

/// The way one connection is shown out.
#[derive(Debug, Default)]
struct Exit {
    ending: OnceLock<Box<Ending>>,
    told: Notify,
}

impl Register {
    /// Enters a connection.
    pub fn enter(self: &Arc<Self>, listener: Arc<str>, from: ClientAddr) -> Presence {
        let mut present = self.present();
        present.next_id += 1;
        let id = present.next_id;
        let live = Arc::new(Live {
            id,
            listener,
            from,
            client: OnceLock::new(),
            session: Mutex::default(),
            progress: Progress::default(),
            exit: Exit::default(),
        });
        present.connections.insert(id, Arc::clone(&live));
        Presence { live, register: Arc::clone(self) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.present().connections.len()
    }

    /// All that there are, in no order.
    pub fn all(&self) -> Vec<Arc<Live>> {
        self.present().connections.values().cloned().collect()
    }

    /// The one of this number.
    pub fn find(&self, id: u64) -> Option<Arc<Live>> {
        self.present().connections.get(&id).cloned()
    }

    /// The sessions that have to be judged again by `now`. Each is named once, unless it is [renewed](Self::renew).
    pub fn take_due(&self, now: OffsetDateTime) -> Vec<Arc<Live>> {
        let mut present = self.present();
        let later = present.due.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut present.due, later);
        due.iter().filter_map(|(_, id)| present.connections.get(id).cloned()).collect()
    }

    /// When the next session has to be judged again.
    pub fn next_due(&self) -> Option<OffsetDateTime> {
        self.present().due.first().map(|(at, _)| *at)
    }

    /// Returns when that may be sooner than it was.
    pub async fn sooner(&self) {
        self.sooner.notified().await;
    }

    /// Notes what an open session is let in by from now on.
    pub fn renew(&self, live: &Live, reliance: Reliance) {
        // Most are let in by what they were let in by before, and then nobody has to wait for the register.
        if live.session().is_some_and(|session| !session.reliance.is_as_good_as(&reliance)) {
            self.set(live, Session { reliance });
        }
    }

    /// Asks every connection to end.
    pub fn end_all(&self, reason: Reason) {
        for live in self.present().connections.values() {
            live.end(reason.into());
        }
    }

    /// Returns when nobody is left.
    pub async fn emptied(&self) {
        loop {
            let last_left = self.empty.notified();
            if self.count() == 0 {
                return;
            }
            last_left.await;
        }
    }

    fn set(&self, live: &Live, session: Session) {
        let mut present = self.present();
        if !present.connections.contains_key(&live.id) {
            // It has left meanwhile.
            return;
        }
        let until = session.reliance.until();
        let former = live.current().replace(Arc::new(session));
        if let Some(former) = former.and_then(|former| former.reliance.until()) {
            present.due.remove(&(former, live.id));
        }
        if let Some(until) = until {
            present.due.insert((until, live.id));
            if present.due.first() == Some(&(until, live.id)) {
                self.sooner.notify_one();
            }
        }
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Its number, unique within this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The listener it came to.
    pub fn listener(&self) -> &Arc<str> {
        &self.listener
    }

    /// Where it comes from.
    pub fn client(&self) -> ClientAddr {
        self.client.get().copied().unwrap_or(self.from)
    }

    /// Where it comes from, and by whose word.
    pub fn provenance(&self) -> Provenance {
        Provenance { client: self.client(), balancer: self.client.get().map(|_| self.from) }
    }

    /// What the policy has to judge it by; nothing while it is on its way in, nor once it only sees its client off.
    pub fn session(&self) -> Option<Arc<Session>> {
        if self.state() == Some(State::Closing) { None } else { self.current().clone() }
    }

    /// Asks it to end. The first ending counts.
    pub fn end(&self, ending: Ending) {
        let _ = self.exit.ending.set(Box::new(ending));
        self.exit.told.notify_waiters();
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Presence {
    /// The connection's number, unique within this process.
    pub fn id(&self) -> u64 {
        self.live.id
    }

    /// The socket is a load balancer's, and this is the client it speaks for, if only itself.
    pub fn is_for(&self, client: ClientAddr) {
        let _ = self.live.client.set(client);
    }

    /// It may be a session, let in by this. From here on it is judged again when the policy or the time has changed; so
    /// whoever calls this has to look at the policy once more behind it.
    pub fn stands(&self, reliance: Reliance) {
        self.register.set(&self.live, Session { reliance });
    }

    /// What it was last let in by, if anything.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.live.current().clone()
    }

    /// Returns when the connection has to end, with the ending.
    pub async fn shown_out(&self) -> Ending {
        loop {
            let told = self.live.exit.told.notified();
            if let Some(ending) = self.live.exit.ending.get() {
                return (**ending).clone();
            }
            told.await;
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut present = self.register.present();
        present.connections.remove(&self.live.id);
        let until = self.live.current().as_ref().and_then(|session| session.reliance.until());
        if let Some(until) = until {
            present.due.remove(&(until, self.live.id));
        }
        if present.connections.is_empty() {
            self.register.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use time::Duration;

    use super::*;
    use crate::source::rule::{Origin, Rule, Source};

    fn enter(register: &Arc<Register>) -> Presence {
        register.enter("db".into(), ClientAddr::from_ip(IpAddr::V4(Ipv4Addr::LOCALHOST)))
    }

    fn until(end: OffsetDateTime) -> Reliance {
        let source = Source::Network("127.0.0.1".parse().unwrap());
        let rule = Rule { source, description: None, expires_at: Some(end), origin: Origin::Configuration };
        Reliance { rule: Some(Arc::new(rule)), ..Reliance::default() }
    }

    #[tokio::test]
    async fn everybody_is_told_to_leave_and_the_register_knows_when_they_have() {
        let register = Arc::new(Register::default());
        register.emptied().await;
        let (first, second) = (enter(&register), enter(&register));
        assert_ne!(first.id(), second.id());
        register.end_all(Reason::Shutdown);
        register.end_all(Reason::IoError);
        assert_eq!(first.shown_out().await.reason, Reason::Shutdown);
        assert_eq!(second.shown_out().await.reason, Reason::Shutdown);

        let leave = async {
            drop(first);
            assert_eq!(register.count(), 1);
            drop(second);
        };
        tokio::join!(register.emptied(), leave);
    }

    #[test]
    fn a_session_is_due_when_what_it_was_let_in_by_ends_and_not_before_nor_twice() {
        let register = Arc::new(Register::default());
        let now = OffsetDateTime::UNIX_EPOCH;
        let ids = |at: OffsetDateTime| register.take_due(at).iter().map(|live| live.id()).collect::<Vec<_>>();
        let (soon, later, never) = (enter(&register), enter(&register), enter(&register));
        later.stands(until(now + Duration::HOUR));
        soon.stands(until(now + Duration::MINUTE));
        never.stands(Reliance::default());
        assert_eq!(register.next_due(), Some(now + Duration::MINUTE));
        assert_eq!(ids(now + Duration::MINUTE - Duration::NANOSECOND), [0_u64; 0]);
        assert_eq!(ids(now + Duration::MINUTE), [soon.id()]);
        assert_eq!(ids(now + Duration::MINUTE), [0_u64; 0]);

        // Another rule lets it in now.
        register.renew(&register.find(soon.id()).unwrap(), until(now + Duration::DAY));
        assert_eq!(ids(now + Duration::HOUR), [later.id()]);
        assert_eq!(register.next_due(), Some(now + Duration::DAY));
        drop(soon);
        assert_eq!(register.next_due(), None, "who has left is not waited for");

        let closing = enter(&register);
        closing.stands(until(now + Duration::DAY));
        closing.mark_open();
        closing.mark_closing();
        drop(closing);
        assert_eq!(register.next_due(), None, "nor who was closing when it left");
    }
}
