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
use crate::audit::event::ConnectionFields;
use crate::descriptors;
use crate::descriptors::{DescriptorPermit, Descriptors};
use crate::fault;
use crate::fault::Backoff;
use crate::limit::handshakes::{AcquiredHandshake, HandshakeLimitReached};
use crate::outcome::Reason;
use crate::permissions;
use crate::policy::{BindAddr, ListenerPolicy, Snapshot};
use crate::proxy::accepted::{AcceptedConnection, Admission, Shared};
use crate::proxy::listener::socket::{BACKLOG, BoundSocket};
use crate::proxy::worker::{WorkerHandle, Workers};
use crate::shield::{ShieldStatus, Shields};
use crate::transport::listen_socket::ListenSocket;
use crate::transport::socket::AcceptedSocket;
use crate::transport::unix_socket::UnixSocketFile;

/// Every bound address of the process.
#[derive(Debug)]
pub(crate) struct Listeners {
    shared: Shared,
    workers: Arc<Workers>,
    bound: HashMap<BindAddr, Bound>,
    shields: Shields,
    loops: JoinSet<()>,
}

#[derive(Debug)]
struct Bound {
    socket: Arc<BoundSocket>,
    /// Dropped to stop the loop.
    _running: watch::Sender<()>,
}

/// Addresses that are bound but not accepted from yet. Dropped, they are free again.
#[derive(Debug)]
pub(crate) struct Prepared {
    fresh: Vec<(BindAddr, PendingListener)>,
}

impl Prepared {
    /// Whether every address is bound already.
    pub(crate) fn is_empty(&self) -> bool {
        self.fresh.is_empty()
    }
}

/// A bound socket that can be waited on.
#[derive(Debug)]
struct PendingListener {
    ready: AsyncFd<Arc<BoundSocket>>,
    /// Where its loop is to run.
    worker: WorkerHandle,
}

/// An address that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: {address} {}", cannot_be_bound(.address, .error))]
pub(crate) struct BindError {
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
    pub(crate) fn new(shared: Shared, workers: Arc<Workers>) -> Self {
        let shields = Shields::new(shared.audit.clone());
        Self { shared, workers, bound: HashMap::new(), shields, loops: JoinSet::new() }
    }

    /// Binds every address of `snapshot` that is not bound already.
    ///
    /// # Errors
    /// When one of them cannot be bound; then none is.
    pub(crate) fn prepare(&self, snapshot: &Snapshot) -> Result<Prepared, BindError> {
        let mut fresh = Vec::new();
        for policy in snapshot.listeners() {
            for bind_addr in policy.bind_addrs.iter().filter(|bind_addr| !self.has(bind_addr)) {
                let leaving = self.share_port_of_leaving(bind_addr, snapshot);
                let pending = self.open(policy, &bind_addr.address, !leaving.is_empty()).map_err(|error| {
                    BindError { listener: Arc::clone(&policy.name), address: bind_addr.address.clone(), error }
                })?;
                fresh.push((bind_addr.clone(), pending));
            }
        }
        Ok(Prepared { fresh })
    }

    /// Lets nobody be kept out by a shield whom `next` will let in. To be called when `next` is about to come into force, in
    /// place of `current`.
    pub(crate) fn widen(&mut self, next: &Snapshot, current: &Snapshot) {
        self.with_shields(|shields, _| shields.widen(next, current));
    }

    /// Keeps out whom `snapshot` does not trust, where the kernel does that. It has to be in force already.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot) {
        self.with_shields(|shields, bound| {
            shields.follow(snapshot, |bind_addr| bound.get(bind_addr)?.socket.shielded_socket().cloned());
        });
    }

    /// Returns when the shields want a look.
    pub(crate) async fn look_due(&self) {
        self.shields.due().await;
    }

    /// Activates and deactivates shields by the number of untrusted connections.
    pub(crate) fn look(&mut self, snapshot: &Snapshot) {
        self.with_shields(|shields, _| shields.check(snapshot));
    }

    /// How many connections there is room for.
    pub(crate) fn descriptors(&self) -> descriptors::DescriptorStatus {
        self.shared.descriptors.status()
    }

    /// How the shield of a listener is.
    pub(crate) fn shield(&self, policy: &ListenerPolicy) -> ShieldStatus {
        self.shields.status(policy)
    }

    /// Accepts from the prepared addresses and stops accepting from those `snapshot` has no use for. `snapshot` has to be
    /// in force already.
    pub(crate) fn commit(&mut self, prepared: Prepared, snapshot: &Snapshot) {
        self.bound.retain(|bind_addr, _| snapshot.at_address(bind_addr).is_some());
        self.shared.descriptors.follow(self.bound.len().saturating_add(prepared.fresh.len()));
        for (bind_addr, bound) in &self.bound {
            if let (Some(policy), Some(socket_file), ListenAddr::Unix(path)) =
                (snapshot.at_address(bind_addr), bound.socket.socket_file(), &bind_addr.address)
                && let Err(error) = socket_file.open_to(policy.access(path))
            {
                warn!(listener = %policy.name, address = %bind_addr.address, %error, "cannot change the access to a Unix socket");
            }
        }
        for (bind_addr, bound) in &self.bound {
            if let Some(policy) = snapshot.at_address(bind_addr)
                && let Err(error) = bound.socket.keep_alive(policy.limits.dead_peer_timeout)
            {
                warn!(listener = %policy.name, address = %bind_addr.address, %error, "cannot apply dead_peer_timeout, keeping the previous one");
            }
        }
        for (bind_addr, pending) in prepared.fresh {
            let bound = self.accept_from(bind_addr.clone(), pending);
            self.bound.insert(bind_addr, bound);
        }
        self.follow(snapshot);
    }

    /// Stops accepting; the addresses are free when it returns. Connections that the kernel had completed are served.
    pub(crate) async fn close(&mut self) {
        self.shields.close("the program stops");
        self.bound.clear();
        while self.loops.join_next().await.is_some() {}
    }

    /// The real addresses of a listener, in the order of its configuration.
    pub(crate) fn addresses(&self, policy: &ListenerPolicy) -> Vec<String> {
        let address = |bind_addr: &BindAddr| {
            let port = self.bound.get(bind_addr)?.socket.port();
            Some(port.map_or_else(|| bind_addr.address.to_string(), |port| port.to_string()))
        };
        policy.bind_addrs.iter().filter_map(address).collect()
    }

    /// Whether an address is bound, and still is where it was: the file of a Unix socket may have been tidied away.
    fn has(&self, bind_addr: &BindAddr) -> bool {
        self.bound.get(bind_addr).is_some_and(|bound| bound.socket.socket_file().is_none_or(UnixSocketFile::is_ours))
    }

    /// Works on the shields. Where that panics nobody knows what is before which port, and a filter that is out of date could
    /// keep out who is trusted; so all ports are opened. Whoever comes is judged as ever.
    fn with_shields(&mut self, work: impl FnOnce(&mut Shields, &HashMap<BindAddr, Bound>)) {
        let Self { shields, bound, .. } = self;
        if fault::contain("shield", || work(shields, bound)).is_err() {
            shields.abandon();
            bound.values().filter_map(|bound| bound.socket.shielded_socket()).for_each(|port| port.open());
        }
    }

    /// Binds an address; `shared` where a socket that is about to leave still has its port.
    fn open(&self, policy: &ListenerPolicy, address: &ListenAddr, shared: bool) -> io::Result<PendingListener> {
        let worker = self.workers.worker().ok_or_else(|| io::Error::other("there is no worker"))?;
        let socket = match address {
            ListenAddr::Tcp(address) => {
                let before = self.shared.current.borrow().named(&policy.name).cloned();
                let filter = self.shields.filter_for(policy, before.as_deref());
                let dead_peer_timeout = policy.limits.dead_peer_timeout;
                BoundSocket::tcp(address, shared, filter.as_ref(), self.shields.alarm(), dead_peer_timeout)?
            }
            ListenAddr::Unix(path) => BoundSocket::unix(path, policy.access(path))?,
        };
        let _there = worker.runtime.enter();
        // tokio's own listener would register every accepted socket with the worker that accepts, a stranger's too, only to
        // move it to another.
        #[allow(
            deprecated,
            reason = "unsound only for types that let go of their descriptor; this one keeps it for life"
        )]
        let ready = AsyncFd::with_interest(Arc::new(socket), Interest::READABLE)?;
        Ok(PendingListener { ready, worker })
    }

    fn accept_from(&mut self, bind_addr: BindAddr, pending: PendingListener) -> Bound {
        let PendingListener { ready, worker } = pending;
        let socket = Arc::clone(ready.get_ref());
        let (running, stopped) = watch::channel(());
        let runtime = worker.runtime.clone();
        let (shared, workers) = (self.shared.clone(), Arc::clone(&self.workers));
        let accept_loop =
            AcceptLoop { bind_addr, port: socket.shielded_socket().cloned(), shared, workers, worker, owner: None };
        self.loops.spawn_on(accept_loop.keep_running(ready, stopped), &runtime);
        Bound { socket, _running: running }
    }

    /// Lets `bind_addr` be bound beside addresses that overlap it and leave with this reload, as when a wildcard is narrowed to
    /// one interface. Without this the old address would have to be closed first, and connections be lost.
    fn share_port_of_leaving(&self, bind_addr: &BindAddr, snapshot: &Snapshot) -> Vec<SharedPort> {
        let leaving = |(other, _): &(&BindAddr, &Bound)| {
            other.address.overlaps(&bind_addr.address) && snapshot.at_address(other).is_none()
        };
        self.bound.iter().filter(leaving).map(|(_, bound)| SharedPort::new(&bound.socket)).collect()
    }
}

/// While it lives, another socket of this user may be bound to the same port.
struct SharedPort(Arc<BoundSocket>);

impl SharedPort {
    fn new(socket: &Arc<BoundSocket>) -> Self {
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
struct AcceptedClient {
    stream: AcceptedSocket,
    descriptor_permit: DescriptorPermit,
    accepted_at: Instant,
}

/// The loop behind one address.
struct AcceptLoop {
    bind_addr: BindAddr,
    /// Where strangers are counted.
    port: Option<Arc<ListenSocket>>,
    shared: Shared,
    workers: Arc<Workers>,
    /// The worker it runs on.
    worker: WorkerHandle,
    /// The listener the address belonged to last.
    owner: Option<Arc<str>>,
}

impl AcceptLoop {
    /// Accepts until `stopped`. After a fault it is resumed with the same socket, so that clients wait in the backlog and
    /// none is refused.
    async fn keep_running(mut self, socket: AsyncFd<Arc<BoundSocket>>, mut stopped: watch::Receiver<()>) {
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

    async fn run(&mut self, socket: &AsyncFd<Arc<BoundSocket>>, stopped: &mut watch::Receiver<()>) {
        let mut backoff = AcceptBackoff::default();
        for turn in 1_usize.. {
            if turn % AT_A_TIME == 0 {
                // A flood of strangers is not to keep the sessions of this worker waiting.
                yield_now().await;
            }
            let accepted = tokio::select! {
                // Only a dropped sender ends the wait.
                _ = stopped.changed() => break,
                accepted = accept(socket, &self.shared.descriptors) => accepted,
            };
            match accepted {
                Ok((stream, client, descriptor_permit)) => {
                    backoff.succeeded();
                    self.take(stream, client, descriptor_permit).await;
                }
                Err(error) if is_client_error(&error) => {}
                Err(error) => backoff.failed(&error).await,
            }
        }
        // These clients were told by the kernel that they are connected. No more than can have waited: others may come
        // faster than they are served. Nor more than there are descriptors for: the address has to become free.
        for _ in 0..BACKLOG {
            let Some(descriptor_permit) = self.shared.descriptors.try_take() else { break };
            match socket.get_ref().accept() {
                Ok((stream, client)) => self.take(stream, client, descriptor_permit).await,
                Err(_) => break,
            }
            yield_now().await;
        }
    }

    /// Takes one client. A fault costs that one, and not the address.
    async fn take(&mut self, stream: AcceptedSocket, client: ClientAddr, descriptor_permit: DescriptorPermit) {
        let accepted = AcceptedClient { stream, descriptor_permit, accepted_at: Instant::now() };
        let _ = fault::contained(PART, self.admit(accepted, client)).await;
    }

    /// Puts the source question. A stranger costs this lookup and a close, and so does who comes far too often.
    async fn admit(&mut self, accepted: AcceptedClient, client: ClientAddr) {
        let accepted_at = accepted.accepted_at;
        let Some(policy) = self.policy() else { return self.reject(client) };
        if policy.proxies.contains(client) {
            // Whom it speaks for is asked, and whether that one is trusted, where there is time to listen.
            return self.hand_over(accepted, Admission::Proxied(client), policy).await;
        }
        let mut fields = ConnectionFields::new(None, Arc::clone(&policy.name), client);
        fields.is_health_checker = policy.proxies.is_health_checker(client);
        let admitted = match policy.sources.admit(client, OffsetDateTime::now_utc()) {
            Ok(admitted) => admitted,
            Err(untrusted) => {
                drop(accepted);
                self.port.iter().for_each(|port| port.count_untrusted());
                return self.shared.audit.denied(&fields, Reason::UntrustedSource, untrusted, accepted_at.elapsed());
            }
        };
        match policy.check_rate(client, accepted_at) {
            Ok(rate) => self.hand_over(accepted, Admission::Direct(admitted, rate), policy).await,
            Err(rate_exceeded) => {
                drop(accepted);
                fields.source_match = Some(admitted.source_match().clone());
                self.shared.audit.denied(&fields, Reason::RateLimited, rate_exceeded, accepted_at.elapsed());
            }
        }
    }

    /// Hands a connection to a worker, if there is a place for its handshake.
    async fn hand_over(&self, accepted: AcceptedClient, admission: Admission, policy: Arc<ListenerPolicy>) {
        let AcceptedClient { stream, descriptor_permit, accepted_at } = accepted;
        let guard = self.shared.registry.enter(Arc::clone(&policy.name), admission.from());
        let handshake = match policy.acquire_handshake(admission.from(), guard.id()) {
            Ok(AcquiredHandshake { handshake, displaced }) => {
                if let Some(displaced) = displaced.and_then(|displaced| self.shared.registry.find(displaced)) {
                    displaced.end(HandshakeLimitReached::Displaced.into());
                }
                handshake
            }
            Err(full) => {
                drop((stream, descriptor_permit, guard));
                let fields = admission.fields(None, &policy.name);
                return self.shared.audit.denied(&fields, Reason::HandshakeLimit, full, accepted_at.elapsed());
            }
        };
        let connection =
            AcceptedConnection { stream, admission, policy, guard, handshake, accepted_at, descriptor_permit };
        self.workers.hand_over(connection, &self.worker).await;
    }

    /// The listener was removed while the client waited to be accepted.
    fn reject(&self, client: ClientAddr) {
        if let Some(owner) = &self.owner {
            let fields = ConnectionFields::new(None, Arc::clone(owner), client);
            self.shared.audit.denied(&fields, Reason::ListenerRemoved, "", Duration::ZERO);
        }
    }

    /// The terms of the listener that has this address now or, once it is to be closed, had it last.
    fn policy(&mut self) -> Option<Arc<ListenerPolicy>> {
        let snapshot = self.shared.current.borrow();
        let policy = match (snapshot.at_address(&self.bind_addr), &self.owner) {
            (Some(policy), _) => policy,
            (None, Some(owner)) => snapshot.named(owner)?,
            (None, None) => return None,
        };
        let policy = Arc::clone(policy);
        self.owner = Some(Arc::clone(&policy.name));
        Some(policy)
    }
}

/// Takes the next client, once there are descriptors for it. They are taken only when a client waits, so that a loop without
/// clients keeps none from the others.
async fn accept(
    socket: &AsyncFd<Arc<BoundSocket>>,
    descriptors: &Descriptors,
) -> io::Result<(AcceptedSocket, ClientAddr, DescriptorPermit)> {
    loop {
        let mut ready = socket.readable().await?;
        let descriptor_permit = descriptors.take().await;
        // Nothing where the client has gone meanwhile.
        if let Ok(accepted) = ready.try_io(|socket| socket.get_ref().accept()) {
            return accepted.map(|(stream, client)| (stream, client, descriptor_permit));
        }
    }
}

/// Errors that `accept` passes on from a connection that is gone already; the next one may be well.
fn is_client_error(error: &io::Error) -> bool {
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
struct AcceptBackoff {
    wait: Duration,
    said: Option<Instant>,
}

impl AcceptBackoff {
    async fn failed(&mut self, error: &io::Error) {
        if self.said.is_none_or(|said| said.elapsed() > SAY_EVERY) {
            warn!(%error, "accept failed, retrying (further errors are logged once a minute)");
            self.said = Some(Instant::now());
        }
        self.wait = (self.wait * 2).clamp(SHORTEST_WAIT, LONGEST_WAIT);
        sleep(self.wait).await;
    }

    fn succeeded(&mut self) {
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
