//! The register of live connections: who is in, by what, and a way to show each of them out.
//!
//! A connection signs in when it is accepted and signs out by dropping its [`ConnectionGuard`]. Whoever wants it to end says so
//! here; the connection hears it at its next wake-up, wherever in its life it is. So that an open session can be judged
//! again without asking it, what it was let in by stands here too.

pub(crate) mod state;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::addr::{ClientAddr, ClientOrigin};
use crate::outcome::{Outcome, Reason};
use crate::policy::usage::Authorization;
use crate::session::registry::state::Progress;
use crate::session::registry::state::SessionState;

/// All live connections of the process.
#[derive(Debug, Default)]
pub struct ConnectionRegistry {
    entries: Mutex<Entries>,
    /// Told when the last one leaves.
    empty: Notify,
    /// Told when a session comes that has to be judged again sooner than all others.
    sooner: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    next_id: u64,
    connections: HashMap<u64, Arc<LiveConnection>>,
    /// When which session has to be judged again.
    due: BTreeSet<(OffsetDateTime, u64)>,
}

/// A live connection.
#[derive(Debug)]
pub struct LiveConnection {
    id: u64,
    listener: Arc<str>,
    /// Whose socket it is.
    from: ClientAddr,
    /// Whom that speaks for, where it is a load balancer's.
    client: OnceLock<ClientAddr>,
    session: Mutex<Option<Arc<Session>>>,
    progress: Progress,
    shutdown: ShutdownSignal,
}

/// A connection whose client was confirmed. It is listed as a session once its bytes are relayed.
#[derive(Clone, Debug)]
pub struct Session {
    /// What it was let in by.
    pub authorization: Authorization,
}

/// One connection's entry in the register; gone when dropped.
#[derive(Debug)]
pub struct ConnectionGuard {
    live: Arc<LiveConnection>,
    registry: Arc<ConnectionRegistry>,
}

/// The way one connection is shown out.
#[derive(Debug, Default)]
struct ShutdownSignal {
    ending: OnceLock<Box<Outcome>>,
    notify: Notify,
}

impl ConnectionRegistry {
    /// Enters a connection.
    pub fn enter(self: &Arc<Self>, listener: Arc<str>, from: ClientAddr) -> ConnectionGuard {
        let mut entries = self.entries();
        entries.next_id += 1;
        let id = entries.next_id;
        let live = Arc::new(LiveConnection {
            id,
            listener,
            from,
            client: OnceLock::new(),
            session: Mutex::default(),
            progress: Progress::default(),
            shutdown: ShutdownSignal::default(),
        });
        entries.connections.insert(id, Arc::clone(&live));
        ConnectionGuard { live, registry: Arc::clone(self) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.entries().connections.len()
    }

    /// All that there are, in no order.
    pub fn all(&self) -> Vec<Arc<LiveConnection>> {
        self.entries().connections.values().cloned().collect()
    }

    /// The one of this number.
    pub fn find(&self, id: u64) -> Option<Arc<LiveConnection>> {
        self.entries().connections.get(&id).cloned()
    }

    /// The sessions that have to be judged again by `now`. Each is named once, unless it is [renewed](Self::renew).
    pub fn take_pending(&self, now: OffsetDateTime) -> Vec<Arc<LiveConnection>> {
        let mut entries = self.entries();
        let later = entries.due.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut entries.due, later);
        due.iter().filter_map(|(_, id)| entries.connections.get(id).cloned()).collect()
    }

    /// When the next session has to be judged again.
    pub fn next_due(&self) -> Option<OffsetDateTime> {
        self.entries().due.first().map(|(at, _)| *at)
    }

    /// Returns when that may be sooner than it was.
    pub async fn due_earlier(&self) {
        self.sooner.notified().await;
    }

    /// Notes what an open session is let in by from now on.
    pub fn renew(&self, live: &LiveConnection, authorization: Authorization) {
        // Most are let in by what they were let in by before, and then nobody has to wait for the register.
        if live.session().is_some_and(|session| !session.authorization.is_same_as(&authorization)) {
            self.set(live, Session { authorization });
        }
    }

    /// Asks every connection to end.
    pub fn terminate_all(&self, reason: Reason) {
        for live in self.entries().connections.values() {
            live.end(reason.into());
        }
    }

    /// Returns when nobody is left.
    pub async fn drained(&self) {
        loop {
            let last_left = self.empty.notified();
            if self.count() == 0 {
                return;
            }
            last_left.await;
        }
    }

    fn set(&self, live: &LiveConnection, session: Session) {
        let mut entries = self.entries();
        if !entries.connections.contains_key(&live.id) {
            // It has left meanwhile.
            return;
        }
        let until = session.authorization.until();
        let former = live.current().replace(Arc::new(session));
        if let Some(former) = former.and_then(|former| former.authorization.until()) {
            entries.due.remove(&(former, live.id));
        }
        if let Some(until) = until {
            entries.due.insert((until, live.id));
            if entries.due.first() == Some(&(until, live.id)) {
                self.sooner.notify_one();
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveConnection {
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
    pub fn origin(&self) -> ClientOrigin {
        ClientOrigin { client: self.client(), via: self.client.get().map(|_| self.from) }
    }

    /// What the policy has to judge it by; nothing while it is on its way in, nor once it only sees its client off.
    pub fn session(&self) -> Option<Arc<Session>> {
        if self.state() == Some(SessionState::Closing) { None } else { self.current().clone() }
    }

    /// Asks it to end. The first ending counts.
    pub fn end(&self, ending: Outcome) {
        let _ = self.shutdown.ending.set(Box::new(ending));
        self.shutdown.notify.notify_waiters();
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionGuard {
    /// The connection's number, unique within this process.
    pub fn id(&self) -> u64 {
        self.live.id
    }

    /// The socket is a load balancer's, and this is the client it speaks for, if only itself.
    pub fn set_client(&self, client: ClientAddr) {
        let _ = self.live.client.set(client);
    }

    /// It may be a session, let in by this. From here on it is judged again when the policy or the time has changed; so
    /// whoever calls this has to look at the policy once more behind it.
    pub fn activate(&self, authorization: Authorization) {
        self.registry.set(&self.live, Session { authorization });
    }

    /// What it was last let in by, if anything.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.live.current().clone()
    }

    /// Returns when the connection has to end, with the ending.
    pub async fn terminated(&self) -> Outcome {
        loop {
            let notify = self.live.shutdown.notify.notified();
            if let Some(ending) = self.live.shutdown.ending.get() {
                return (**ending).clone();
            }
            notify.await;
        }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut entries = self.registry.entries();
        entries.connections.remove(&self.live.id);
        let until = self.live.current().as_ref().and_then(|session| session.authorization.until());
        if let Some(until) = until {
            entries.due.remove(&(until, self.live.id));
        }
        if entries.connections.is_empty() {
            self.registry.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use time::Duration;

    use super::*;
    use crate::source::rule::{Origin, Rule, Source};

    fn enter(registry: &Arc<ConnectionRegistry>) -> ConnectionGuard {
        registry.enter("db".into(), ClientAddr::from_ip(IpAddr::V4(Ipv4Addr::LOCALHOST)))
    }

    fn until(end: OffsetDateTime) -> Authorization {
        let source = Source::Network("127.0.0.1".parse().unwrap());
        let rule = Rule { source, description: None, expires_at: Some(end), origin: Origin::Configuration };
        Authorization { rule: Some(Arc::new(rule)), ..Authorization::default() }
    }

    #[tokio::test]
    async fn everybody_is_told_to_leave_and_the_register_knows_when_they_have() {
        let registry = Arc::new(ConnectionRegistry::default());
        registry.drained().await;
        let (first, second) = (enter(&registry), enter(&registry));
        assert_ne!(first.id(), second.id());
        registry.terminate_all(Reason::Shutdown);
        registry.terminate_all(Reason::IoError);
        assert_eq!(first.terminated().await.reason, Reason::Shutdown);
        assert_eq!(second.terminated().await.reason, Reason::Shutdown);

        let leave = async {
            drop(first);
            assert_eq!(registry.count(), 1);
            drop(second);
        };
        tokio::join!(registry.drained(), leave);
    }

    #[test]
    fn a_session_is_due_when_what_it_was_let_in_by_ends_and_not_before_nor_twice() {
        let registry = Arc::new(ConnectionRegistry::default());
        let now = OffsetDateTime::UNIX_EPOCH;
        let ids = |at: OffsetDateTime| registry.take_pending(at).iter().map(|live| live.id()).collect::<Vec<_>>();
        let (soon, later, never) = (enter(&registry), enter(&registry), enter(&registry));
        later.activate(until(now + Duration::HOUR));
        soon.activate(until(now + Duration::MINUTE));
        never.activate(Authorization::default());
        assert_eq!(registry.next_due(), Some(now + Duration::MINUTE));
        assert_eq!(ids(now + Duration::MINUTE - Duration::NANOSECOND), [0_u64; 0]);
        assert_eq!(ids(now + Duration::MINUTE), [soon.id()]);
        assert_eq!(ids(now + Duration::MINUTE), [0_u64; 0]);

        // Another rule lets it in now.
        registry.renew(&registry.find(soon.id()).unwrap(), until(now + Duration::DAY));
        assert_eq!(ids(now + Duration::HOUR), [later.id()]);
        assert_eq!(registry.next_due(), Some(now + Duration::DAY));
        drop(soon);
        assert_eq!(registry.next_due(), None, "who has left is not waited for");

        let closing = enter(&registry);
        closing.activate(until(now + Duration::DAY));
        closing.mark_open();
        closing.mark_closing();
        drop(closing);
        assert_eq!(registry.next_due(), None, "nor who was closing when it left");
    }
}
