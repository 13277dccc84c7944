//! Bound addresses and the loops that accept from them. The loops run on the workers, so that where there is one worker
//! a connection never changes threads.
//!
//! The source question is put here, before a task, a timer or a byte is spent on a stranger. Which listener an address
//! belongs to is looked up in the snapshot at every accept, so a reload never has to restart a loop it did not mean.

pub(crate) mod socket;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};
use tokio::time::sleep;
use tracing::warn;

use crate::addr::{ClientAddr, ListenAddr};
use crate::audit::event::Facts;
use crate::descriptors;
use crate::descriptors::{Descriptors, Share};
use crate::fault;
use crate::fault::Backoff;
use crate::limit::handshakes::{Begun, NoPlace};
use crate::outcome::Reason;
use crate::permissions;
use crate::policy::{Door, Snapshot, Terms};
use crate::proxy::accepted::{Arrival, Entrance, House};
use crate::proxy::listener::socket::{Acceptor, BACKLOG};
use crate::proxy::worker::{Seat, Workers};
use crate::shield::{Shields, Standing};
use crate::transport::listen_socket::Port;
use crate::transport::socket::Accepted;
use crate::transport::unix_socket::Place;

/// Every bound address of the process.
#[derive(Debug)]
pub struct Listeners {
    house: House,
    workers: Arc<Workers>,
    bound: HashMap<Door, Bound>,
    shields: Shields,
    loops: JoinSet<()>,
}

#[derive(Debug)]
struct Bound {
    socket: Arc<Acceptor>,
    /// Dropped to stop the loop.
    _running: watch::Sender<()>,
}

/// Addresses that are bound but not accepted from yet. Dropped, they are free again.
#[derive(Debug)]
pub struct Prepared {
    fresh: Vec<(Door, Opening)>,
}

impl Prepared {
    /// Whether every address is bound already.
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty()
    }
}

/// A bound socket that can be waited on.
#[derive(Debug)]
struct Opening {
    ready: AsyncFd<Arc<Acceptor>>,
    /// Where its loop is to run.
    seat: Seat,
}

/// An address that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: {address} {}", cannot_be_bound(.address, .error))]
pub struct BindError {
    listener: Arc<str>,
    address: ListenAddr,
    error: io::Error,
}

/// In words that fit behind the address.
fn cannot_be_bound(address: &ListenAddr, error: &io::Error) -> String {
    let words = permissions::cannot("cannot be bound", error);
    match address {
        ListenAddr::Tcp(address) if error.kind() == io::ErrorKind::PermissionDenied => {
            format!("{words}; {}", permissions::fix_for_privileged_port(address.socket))
        }
        // Those of a Unix socket say what was denied, and what grants it.
        ListenAddr::Unix(_) => format!("cannot be bound: {error}"),
        ListenAddr::Tcp(_) => words,
    }
}

impl Listeners {
    /// No addresses yet.
    pub fn new(house: House, workers: Arc<Workers>) -> Self {
        let shields = Shields::new(house.audit.clone());
        Self { house, workers, bound: HashMap::new(), shields, loops: JoinSet::new() }
    }

    /// Binds every address of `snapshot` that is not bound already.
    ///
    /// # Errors
    /// When one of them cannot be bound; then none is.
    pub fn prepare(&self, snapshot: &Snapshot) -> Result<Prepared, BindError> {
        let mut fresh = Vec::new();
        for terms in snapshot.listeners() {
            for door in terms.doors.iter().filter(|door| !self.has(door)) {
                let leaving = self.share_port_of_leaving(door, snapshot);
                let opening = self.open(terms, &door.address, !leaving.is_empty()).map_err(|error| BindError {
                    listener: Arc::clone(&terms.name),
                    address: door.address.clone(),
                    error,
                })?;
                fresh.push((door.clone(), opening));
            }
        }
        Ok(Prepared { fresh })
    }

    /// Lets nobody be kept out by a shield whom `next` will let in. To be called when `next` is about to come into force, in
    /// place of `current`.
    pub fn widen(&mut self, next: &Snapshot, current: &Snapshot) {
        self.with_shields(|shields, _| shields.widen(next, current));
    }

    /// Keeps out whom `snapshot` does not trust, where the kernel does that. It has to be in force already.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        self.with_shields(|shields, bound| {
            shields.follow(snapshot, |door| bound.get(door)?.socket.guarded().cloned());
        });
    }

    /// Returns when the shields want a look.
    pub async fn look_due(&self) {
        self.shields.due().await;
    }

    /// Raises and lowers shields by how many strangers come.
    pub fn look(&mut self, snapshot: &Snapshot) {
        self.with_shields(|shields, _| shields.look(snapshot));
    }

    /// How many connections there is room for.
    pub fn descriptors(&self) -> descriptors::Standing {
        self.house.descriptors.standing()
    }

    /// How the shield of a listener is.
    pub fn shield(&self, terms: &Terms) -> Standing {
        self.shields.standing(terms)
    }

    /// Accepts from the prepared addresses and stops accepting from those `snapshot` has no use for. `snapshot` has to be
    /// in force already.
    pub fn commit(&mut self, prepared: Prepared, snapshot: &Snapshot) {
        self.bound.retain(|door, _| snapshot.behind(door).is_some());
        self.house.descriptors.follow(self.bound.len().saturating_add(prepared.fresh.len()));
        for (door, bound) in &self.bound {
            if let (Some(terms), Some(place), ListenAddr::Unix(path)) =
                (snapshot.behind(door), bound.socket.place(), &door.address)
                && let Err(error) = place.open_to(terms.access(path))
            {
                warn!(listener = %terms.name, address = %door.address, %error, "cannot change the access to a Unix socket");
            }
        }
        for (door, bound) in &self.bound {
            if let Some(terms) = snapshot.behind(door)
                && let Err(error) = bound.socket.keep_alive(terms.limits.dead_peer_timeout)
            {
                warn!(listener = %terms.name, address = %door.address, %error, "cannot apply dead_peer_timeout, keeping the previous one");
            }
        }
        for (door, opening) in prepared.fresh {
            let bound = self.accept_from(door.clone(), opening);
            self.bound.insert(door, bound);
        }
        self.follow(snapshot);
    }

    /// Stops accepting; the addresses are free when it returns. Connections that the kernel had completed are served.
    pub async fn close(&mut self) {
        self.shields.close("the program stops");
        self.bound.clear();
        while self.loops.join_next().await.is_some() {}
    }

    /// The real addresses of a listener, in the order of its configuration.
    pub fn addresses(&self, terms: &Terms) -> Vec<String> {
        let address = |door: &Door| {
            let port = self.bound.get(door)?.socket.port();
            Some(port.map_or_else(|| door.address.to_string(), |port| port.to_string()))
        };
        terms.doors.iter().filter_map(address).collect()
    }

    /// Whether an address is bound, and still is where it was: the file of a Unix socket may have been tidied away.
    fn has(&self, door: &Door) -> bool {
        self.bound.get(door).is_some_and(|bound| bound.socket.place().is_none_or(Place::is_ours))
    }

    /// Works on the shields. Where that panics nobody knows what is before which port, and a filter that is out of date could
    /// keep out who is trusted; so all ports are opened. Whoever comes is judged as ever.
    fn with_shields(&mut self, work: impl FnOnce(&mut Shields, &HashMap<Door, Bound>)) {
        let Self { shields, bound, .. } = self;
        if fault::contain("shield", || work(shields, bound)).is_err() {
            shields.abandon();
            bound.values().filter_map(|bound| bound.socket.guarded()).for_each(|port| port.open());
        }
    }

    /// Binds an address; `shared` where a socket that is about to leave still has its port.
    fn open(&self, terms: &Terms, address: &ListenAddr, shared: bool) -> io::Result<Opening> {
        let seat = self.workers.seat().ok_or_else(|| io::Error::other("there is no worker"))?;
        let socket = match address {
            ListenAddr::Tcp(address) => {
                let before = self.house.current.borrow().named(&terms.name).cloned();
                let filter = self.shields.filter_for(terms, before.as_deref());
                let dead_peer_timeout = terms.limits.dead_peer_timeout;
                Acceptor::tcp(address, shared, filter.as_ref(), self.shields.alarm(), dead_peer_timeout)?
            }
            ListenAddr::Unix(path) => Acceptor::unix(path, terms.access(path))?,
        };
        let _there = seat.runtime.enter();
        // tokio's own listener would register every accepted socket with the worker that accepts, a stranger's too, only to
        // move it to another.
        #[allow(
            deprecated,
            reason = "unsound only for types that let go of their descriptor; this one keeps it for life"
        )]
        let ready = AsyncFd::with_interest(Arc::new(socket), Interest::READABLE)?;
        Ok(Opening { ready, seat })
    }

    fn accept_from(&mut self, door: Door, opening: Opening) -> Bound {
        let Opening { ready, seat } = opening;
        let socket = Arc::clone(ready.get_ref());
        let (running, stopped) = watch::channel(());
        let runtime = seat.runtime.clone();
        let (house, workers) = (self.house.clone(), Arc::clone(&self.workers));
        let gate = Gate { door, port: socket.guarded().cloned(), house, workers, seat, owner: None };
        self.loops.spawn_on(gate.keep_running(ready, stopped), &runtime);
        Bound { socket, _running: running }
    }

    /// Lets `door` be bound beside addresses that overlap it and leave with this reload, as when a wildcard is narrowed to
    /// one interface. Without this the old address would have to be closed first, and connections be lost.
    fn share_port_of_leaving(&self, door: &Door, snapshot: &Snapshot) -> Vec<SharedPort> {
        let leaving =
            |(other, _): &(&Door, &Bound)| other.address.overlaps(&door.address) && snapshot.behind(other).is_none();
        self.bound.iter().filter(leaving).map(|(_, bound)| SharedPort::new(&bound.socket)).collect()
    }
}

/// While it lives, another socket of this user may be bound to the same port.
struct SharedPort(Arc<Acceptor>);

impl SharedPort {
    fn new(socket: &Arc<Acceptor>) -> Self {
        socket.share_port(true);
        Self(Arc::clone(socket))
    }
}

impl Drop for SharedPort {
    fn drop(&mut self) {
        self.0.share_port(false);
    }
}

/// A client that was accepted a moment ago.
struct Incoming {
    stream: Accepted,
    share: Share,
    accepted_at: Instant,
}

/// The loop behind one address.
struct Gate {
    door: Door,
    /// Where strangers are counted.
    port: Option<Arc<Port>>,
    house: House,
    workers: Arc<Workers>,
    /// The worker it runs on.
    seat: Seat,
    /// The listener the address belonged to last.
    owner: Option<Arc<str>>,
}

impl Gate {
    /// Accepts until `stopped`. After a fault it is resumed with the same socket, so that clients wait in the backlog and
    /// none is refused.
    async fn keep_running(mut self, socket: AsyncFd<Arc<Acceptor>>, mut stopped: watch::Receiver<()>) {
        let mut backoff = Backoff::default();
        while fault::contained(PART, self.run(&socket, &mut stopped)).await.is_err() {
            if stopped.has_changed().is_err() {
                // It may have panicked over those who still waited.
                return;
            }
            tokio::select! {
                _ = stopped.changed() => {}
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    async fn run(&mut self, socket: &AsyncFd<Arc<Acceptor>>, stopped: &mut watch::Receiver<()>) {
        let mut patience = Patience::default();
        for turn in 1_usize.. {
            if turn % AT_A_TIME == 0 {
                // A flood of strangers is not to keep the sessions of this worker waiting.
                yield_now().await;
            }
            let accepted = tokio::select! {
                // Only a dropped sender ends the wait.
                _ = stopped.changed() => break,
                accepted = accept(socket, &self.house.descriptors) => accepted,
            };
            match accepted {
                Ok((stream, client, share)) => {
                    patience.restored();
                    self.take(stream, client, share).await;
                }
                Err(error) if is_one_clients_fault(&error) => {}
                Err(error) => patience.lost(&error).await,
            }
        }
        // These clients were told by the kernel that they are connected. No more than can have waited: others may come
        // faster than they are served. Nor more than there are descriptors for: the address has to become free.
        for _ in 0..BACKLOG {
            let Some(share) = self.house.descriptors.try_take() else { break };
            match socket.get_ref().accept() {
                Ok((stream, client)) => self.take(stream, client, share).await,
                Err(_) => break,
            }
            yield_now().await;
        }
    }

    /// Takes one client. A fault costs that one, and not the address.
    async fn take(&mut self, stream: Accepted, client: ClientAddr, share: Share) {
        let incoming = Incoming { stream, share, accepted_at: Instant::now() };
        let _ = fault::contained(PART, self.let_in(incoming, client)).await;
    }

    /// Puts the source question. A stranger costs this lookup and a close, and so does who comes far too often.
    async fn let_in(&mut self, incoming: Incoming, client: ClientAddr) {
        let accepted_at = incoming.accepted_at;
        let Some(terms) = self.terms() else { return self.turn_away(client) };
        if terms.balancers.speak_from(client) {
            // Whom it speaks for is asked, and whether that one is trusted, where there is time to listen.
            return self.hand_over(incoming, Entrance::Balancer(client), terms).await;
        }
        let mut facts = Facts::new(None, Arc::clone(&terms.name), client);
        facts.from_checker = terms.balancers.check_from(client);
        let admitted = match terms.sources.admit(client, OffsetDateTime::now_utc()) {
            Ok(admitted) => admitted,
            Err(stranger) => {
                drop(incoming);
                self.port.iter().for_each(|port| port.turned_away());
                return self.house.audit.denied(&facts, Reason::UntrustedSource, stranger, accepted_at.elapsed());
            }
        };
        match terms.pace(client, accepted_at) {
            Ok(pace) => self.hand_over(incoming, Entrance::Admitted(admitted, pace), terms).await,
            Err(too_fast) => {
                drop(incoming);
                facts.standing = Some(admitted.standing().clone());
                self.house.audit.denied(&facts, Reason::RateLimited, too_fast, accepted_at.elapsed());
            }
        }
    }

    /// Hands a connection to a worker, if there is a place for its handshake.
    async fn hand_over(&self, incoming: Incoming, entrance: Entrance, terms: Arc<Terms>) {
        let Incoming { stream, share, accepted_at } = incoming;
        let presence = self.house.register.enter(Arc::clone(&terms.name), entrance.from());
        let handshake = match terms.begin_handshake(entrance.from(), presence.id()) {
            Ok(Begun { handshake, displaced }) => {
                if let Some(displaced) = displaced.and_then(|displaced| self.house.register.find(displaced)) {
                    displaced.end(NoPlace::Displaced.into());
                }
                handshake
            }
            Err(full) => {
                drop((stream, share, presence));
                let facts = entrance.facts(None, &terms.name);
                return self.house.audit.denied(&facts, Reason::HandshakeLimit, full, accepted_at.elapsed());
            }
        };
        let arrival = Arrival { stream, entrance, terms, presence, handshake, accepted_at, share };
        self.workers.hand_over(arrival, &self.seat).await;
    }

    /// The listener was removed while the client waited to be accepted.
    fn turn_away(&self, client: ClientAddr) {
        if let Some(owner) = &self.owner {
            let facts = Facts::new(None, Arc::clone(owner), client);
            self.house.audit.denied(&facts, Reason::ListenerRemoved, "", Duration::ZERO);
        }
    }

    /// The terms of the listener that has this address now or, once it is to be closed, had it last.
    fn terms(&mut self) -> Option<Arc<Terms>> {
        let snapshot = self.house.current.borrow();
        let terms = match (snapshot.behind(&self.door), &self.owner) {
            (Some(terms), _) => terms,
            (None, Some(owner)) => snapshot.named(owner)?,
            (None, None) => return None,
        };
        let terms = Arc::clone(terms);
        self.owner = Some(Arc::clone(&terms.name));
        Some(terms)
    }
}

/// Takes the next client, once there are descriptors for it. They are taken only when a client waits, so that a loop without
/// clients keeps none from the others.
async fn accept(
    socket: &AsyncFd<Arc<Acceptor>>,
    descriptors: &Descriptors,
) -> io::Result<(Accepted, ClientAddr, Share)> {
    loop {
        let mut ready = socket.readable().await?;
        let share = descriptors.take().await;
        // Nothing where the client has gone meanwhile.
        if let Ok(accepted) = ready.try_io(|socket| socket.get_ref().accept()) {
            return accepted.map(|(stream, client)| (stream, client, share));
        }
    }
}

/// Errors that `accept` passes on from a connection that is gone already; the next one may be well.
fn is_one_clients_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
    )
}

/// How long to wait when the system is out of something, most often file descriptors: long enough not to spin, short
/// enough to be there when some are free again.
#[derive(Debug, Default)]
struct Patience {
    wait: Duration,
    said: Option<Instant>,
}

impl Patience {
    async fn lost(&mut self, error: &io::Error) {
        if self.said.is_none_or(|said| said.elapsed() > SAY_EVERY) {
            warn!(%error, "accept failed, retrying (further errors are logged once a minute)");
            self.said = Some(Instant::now());
        }
        self.wait = (self.wait * 2).clamp(SHORTEST_WAIT, LONGEST_WAIT);
        sleep(self.wait).await;
    }

    fn restored(&mut self) {
        self.wait = Duration::ZERO;
    }
}

/// What the faults of accept loops are noted under.
const PART: &str = "accept loop";

const SHORTEST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Connections accepted before the worker's sessions have their turn.
const AT_A_TIME: usize = 16;
