//! The registry of live connections, with the authorization of each session and a way to terminate it.
//!
//! A connection is registered when it is accepted, and removed when its [`ConnectionGuard`] is dropped. A request to
//! terminate it takes effect at its next wake-up, in any phase. The registry holds the authorization, so that a session is
//! judged again without waking it.

pub(crate) mod state;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::addr::{ClientAddr, ClientOrigin};
use crate::outcome::{Outcome, Reason};
use crate::policy::usage::Authorization;
use crate::session::registry::state::Progress;

/// All live connections of the process.
#[derive(Debug, Default)]
pub struct ConnectionRegistry {
    entries: Mutex<Entries>,
    /// Notified when the last connection is removed.
    empty: Notify,
    /// Notified when a session has to be judged again earlier than all others.
    earlier: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    next_id: u64,
    connections: HashMap<u64, Arc<LiveConnection>>,
    /// The times at which sessions have to be judged again.
    due: BTreeSet<(OffsetDateTime, u64)>,
}

/// A live connection.
#[derive(Debug)]
pub struct LiveConnection {
    id: u64,
    listener: Arc<str>,
    /// The peer of its socket.
    from: ClientAddr,
    /// The client that the peer announced, if the peer is a load balancer.
    client: OnceLock<ClientAddr>,
    session: Mutex<Option<Arc<Session>>>,
    progress: Progress,
    shutdown: ShutdownSignal,
}

/// An authorized connection. It is listed as a session once its bytes are relayed.
#[derive(Clone, Debug)]
pub struct Session {
    pub authorization: Authorization,
}

/// The registration of a connection, which ends when it is dropped.
#[derive(Debug)]
pub struct ConnectionGuard {
    live: Arc<LiveConnection>,
    registry: Arc<ConnectionRegistry>,
}

/// A session that authenticates again. Does not keep the connection registered.
#[derive(Clone, Debug)]
pub struct ConnectionHandle {
    live: Arc<LiveConnection>,
    registry: Arc<ConnectionRegistry>,
}

/// The request to terminate a connection.
#[derive(Debug, Default)]
struct ShutdownSignal {
    outcome: OnceLock<Box<Outcome>>,
    notify: Notify,
}

impl ConnectionRegistry {
    /// Registers a connection.
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

    /// The number of live connections.
    pub fn count(&self) -> usize {
        self.entries().connections.len()
    }

    /// All live connections, in no particular order.
    pub fn all(&self) -> Vec<Arc<LiveConnection>> {
        self.entries().connections.values().cloned().collect()
    }

    /// The connection with this id.
    pub fn find(&self, id: u64) -> Option<Arc<LiveConnection>> {
        self.entries().connections.get(&id).cloned()
    }

    /// The sessions that have to be judged again by `now`. Each is returned once, unless it is [renewed](Self::renew).
    pub fn take_pending(&self, now: OffsetDateTime) -> Vec<Arc<LiveConnection>> {
        let mut entries = self.entries();
        let later = entries.due.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut entries.due, later);
        due.iter().filter_map(|(_, id)| entries.connections.get(id).cloned()).collect()
    }

    /// Makes every session due again at its time, after sessions that fell due could not be judged.
    pub fn restore_due(&self) {
        let mut entries = self.entries();
        let Entries { connections, due, .. } = &mut *entries;
        for (id, live) in connections {
            due.extend(
                live.current().as_ref().and_then(|session| session.authorization.until()).map(|until| (until, *id)),
            );
        }
    }

    /// When the next session has to be judged again.
    pub fn next_due(&self) -> Option<OffsetDateTime> {
        self.entries().due.first().map(|(at, _)| *at)
    }

    /// Returns when [`next_due`](Self::next_due) may have become earlier.
    pub async fn due_earlier(&self) {
        self.earlier.notified().await;
    }

    /// Replaces the authorization of a session that was judged as `judged`. One that has authenticated again meanwhile keeps its
    /// new authorization.
    pub fn renew(&self, live: &LiveConnection, judged: &Arc<Session>, authorization: Authorization) {
        // Most sessions keep their authorization and need no lock on the registry.
        if !judged.authorization.is_same_as(&authorization) {
            self.replace(live, judged, authorization);
        }
    }

    /// Returns whether the session was still the one that was judged.
    fn replace(&self, live: &LiveConnection, judged: &Arc<Session>, authorization: Authorization) -> bool {
        self.set_if(live, Session { authorization }, |session| session.is_some_and(|now| Arc::ptr_eq(now, judged)))
    }

    /// Asks every connection to end.
    pub fn terminate_all(&self, reason: Reason) {
        for live in self.entries().connections.values() {
            live.end(reason.into());
        }
    }

    /// Returns when no connection is left.
    pub async fn drained(&self) {
        loop {
            let emptied = self.empty.notified();
            if self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn set_if(&self, live: &LiveConnection, session: Session, may: impl FnOnce(Option<&Arc<Session>>) -> bool) -> bool {
        let mut entries = self.entries();
        let mut current = live.current();
        // The connection may have ended meanwhile.
        if !entries.connections.contains_key(&live.id) || !may(current.as_ref()) {
            return false;
        }
        let until = session.authorization.until();
        let former = current.replace(Arc::new(session));
        drop(current);
        if let Some(former) = former.and_then(|former| former.authorization.until()) {
            entries.due.remove(&(former, live.id));
        }
        if let Some(until) = until {
            entries.due.insert((until, live.id));
            if entries.due.first() == Some(&(until, live.id)) {
                self.earlier.notify_one();
            }
        }
        true
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveConnection {
    /// The session id, unique within this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn listener(&self) -> &Arc<str> {
        &self.listener
    }

    pub fn client(&self) -> ClientAddr {
        self.client.get().copied().unwrap_or(self.from)
    }

    pub fn origin(&self) -> ClientOrigin {
        ClientOrigin { client: self.client(), via: self.client.get().map(|_| self.from) }
    }

    /// The session that the policy has to judge. `None` before the client is authorized, and once
    /// it was terminated. A session that closes by itself may still send bytes to its client.
    pub fn session(&self) -> Option<Arc<Session>> {
        if self.shutdown.outcome.get().is_some() { None } else { self.current().clone() }
    }

    /// Requests its end. Only the first outcome counts.
    pub fn end(&self, outcome: Outcome) {
        let _ = self.shutdown.outcome.set(Box::new(outcome));
        self.shutdown.notify.notify_waiters();
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionGuard {
    /// The session id, unique within this process.
    pub fn id(&self) -> u64 {
        self.live.id
    }

    /// Sets the client that the peer, a load balancer, has announced. It may be the load balancer itself.
    pub fn set_client(&self, client: ClientAddr) {
        let _ = self.live.client.set(client);
    }

    /// Makes the connection a session with this authorization, or gives the session another one. From now on it is judged again
    /// when the policy or the time changes. The caller has to check the policy once more after the call.
    pub fn activate(&self, authorization: Authorization) {
        // Fails if the connection has ended.
        let _ = self.registry.set_if(&self.live, Session { authorization }, |_| true);
    }

    /// The present authorization, if there is one.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.live.current().clone()
    }

    /// For a session that may authenticate again.
    pub fn handle(&self) -> ConnectionHandle {
        ConnectionHandle { live: Arc::clone(&self.live), registry: Arc::clone(&self.registry) }
    }

    /// Returns the outcome when the connection has to end.
    pub async fn terminated(&self) -> Outcome {
        loop {
            let notify = self.live.shutdown.notify.notified();
            if let Some(outcome) = self.live.shutdown.outcome.get() {
                return (**outcome).clone();
            }
            notify.await;
        }
    }
}

impl ConnectionHandle {
    /// The session; `None` once it was terminated.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.live.session()
    }

    /// Gives the session another authorization, unless it was judged again since `judged`. Returns whether it has it. The caller
    /// has to check the policy once more after the call.
    pub fn replace(&self, judged: &Arc<Session>, authorization: Authorization) -> bool {
        self.registry.replace(&self.live, judged, authorization)
    }

    /// Requests its end.
    pub fn end(&self, outcome: Outcome) {
        self.live.end(outcome);
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
        let rule = Rule { expires_at: Some(end), ..Rule::of(source, Origin::Configuration) };
        Authorization { rule: Some(Arc::new(rule).into()), ..Authorization::default() }
    }

    #[tokio::test]
    async fn terminated_connections_drain_the_registry() {
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
    fn session_that_authenticates_while_it_is_judged_keeps_its_new_authorization() {
        let registry = Arc::new(ConnectionRegistry::default());
        let now = OffsetDateTime::UNIX_EPOCH;
        let guard = enter(&registry);
        guard.activate(until(now + Duration::MINUTE));
        let judged = guard.session().unwrap();
        guard.activate(until(now + Duration::HOUR));
        registry.renew(&registry.find(guard.id()).unwrap(), &judged, until(now + Duration::DAY));
        assert_eq!(registry.next_due(), Some(now + Duration::HOUR));
        let judged = guard.session().unwrap();
        registry.renew(&registry.find(guard.id()).unwrap(), &judged, until(now + Duration::DAY));
        assert_eq!(registry.next_due(), Some(now + Duration::DAY));
    }

    #[test]
    fn session_is_due_once_when_its_authorization_expires() {
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

        // Another rule admits it now.
        let judged = soon.session().unwrap();
        registry.renew(&registry.find(soon.id()).unwrap(), &judged, until(now + Duration::DAY));
        assert_eq!(ids(now + Duration::HOUR), [later.id()]);
        assert_eq!(registry.next_due(), Some(now + Duration::DAY));
        drop(soon);
        assert_eq!(registry.next_due(), None, "a removed connection is not due");

        let closing = enter(&registry);
        closing.activate(until(now + Duration::DAY));
        closing.mark_open();
        closing.mark_closing();
        drop(closing);
        assert_eq!(registry.next_due(), None, "nor one that was closing");
    }
}
