//! Bound addresses and their accept loops. The loops run on the workers, so with one worker a connection never changes
//! threads.
//!
//! The source is authorized here, before an untrusted source costs a task, a timer or a read. The accept loop looks up the
//! listener of its address in the policy at every accept, so a reload does not restart loops.

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
use crate::metrics::listener::ListenerMetrics;
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

/// All bound addresses of the process.
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
    /// Dropping the sender stops the loop.
    _running: watch::Sender<()>,
}

/// New addresses that are bound but not accepted from yet. Dropping the value unbinds them.
#[derive(Debug)]
pub(crate) struct Prepared {
    new: Vec<(BindAddr, PendingListener)>,
}

impl Prepared {
    /// Whether the new policy has no new address.
    pub(crate) fn is_empty(&self) -> bool {
        self.new.is_empty()
    }
}

/// A bound socket that is registered with the runtime of a worker.
#[derive(Debug)]
struct PendingListener {
    ready: AsyncFd<Arc<BoundSocket>>,
    worker: WorkerHandle,
}

#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: {address} {}", describe_bind_error(.address, .error))]
pub(crate) struct BindError {
    listener: Arc<str>,
    address: ListenAddr,
    error: io::Error,
}

/// A predicate for the address, such as `cannot be bound: …`.
fn describe_bind_error(address: &ListenAddr, error: &io::Error) -> String {
    let failure = permissions::cannot("cannot be bound", error);
    match address {
        ListenAddr::Tcp(address) if error.kind() == io::ErrorKind::PermissionDenied => {
            format!("{failure}; {}", permissions::fix_for_privileged_port(address.socket))
        }
        // The errors of a Unix socket already name the denied permission and the fix.
        ListenAddr::Unix(_) => format!("cannot be bound: {error}"),
        ListenAddr::Tcp(_) => failure,
    }
}

impl Listeners {
    pub(crate) fn new(shared: Shared, workers: Arc<Workers>) -> Self {
        let shields = Shields::new(shared.audit.clone());
        Self { shared, workers, bound: HashMap::new(), shields, loops: JoinSet::new() }
    }

    /// Binds the addresses of `snapshot` that are not bound yet.
    ///
    /// # Errors
    /// One of the addresses cannot be bound. Then none of the new addresses stays bound.
    pub(crate) fn prepare(&self, snapshot: &Snapshot) -> Result<Prepared, BindError> {
        let mut new = Vec::new();
        for policy in snapshot.listeners() {
            for bind_addr in policy.bind_addrs.iter().filter(|bind_addr| !self.is_bound(bind_addr)) {
                let leaving = self.share_port_of_leaving(bind_addr, snapshot);
                let pending = self.bind(policy, &bind_addr.address, !leaving.is_empty()).map_err(|error| {
                    BindError { listener: Arc::clone(&policy.name), address: bind_addr.address.clone(), error }
                })?;
                new.push((bind_addr.clone(), pending));
            }
        }
        Ok(Prepared { new })
    }

    /// Makes the shields accept the trusted sources of both policies. Call it just before `next` replaces `current`, so that
    /// no shield drops packets of a newly trusted source.
    pub(crate) fn widen(&mut self, next: &Snapshot, current: &Snapshot) {
        self.with_shields(|shields, _| shields.widen(next, current));
    }

    /// Makes the shields accept exactly the trusted sources of `snapshot`, which must be in force.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot) {
        self.with_shields(|shields, bound| {
            shields.follow(snapshot, |bind_addr| bound.get(bind_addr)?.socket.shielded_socket().cloned());
        });
    }

    /// Returns when `update_shields` is due.
    pub(crate) async fn shields_due(&self) {
        self.shields.due().await;
    }

    /// Activates and deactivates shields by the rate of connections from untrusted sources.
    pub(crate) fn update_shields(&mut self, snapshot: &Snapshot) {
        self.with_shields(|shields, _| shields.check(snapshot));
    }

    pub(crate) fn descriptors(&self) -> descriptors::DescriptorStatus {
        self.shared.descriptors.status()
    }

    pub(crate) fn shield(&self, policy: &ListenerPolicy) -> ShieldStatus {
        self.shields.status(policy)
    }

    /// Starts to accept from the prepared addresses, and stops to accept from addresses that `snapshot` no longer has.
    /// `snapshot` must be in force.
    pub(crate) fn commit(&mut self, prepared: Prepared, snapshot: &Snapshot) {
        self.bound.retain(|bind_addr, _| snapshot.at_address(bind_addr).is_some());
        self.shared.descriptors.follow(self.bound.len().saturating_add(prepared.new.len()));
        for (bind_addr, bound) in &self.bound {
            if let (Some(policy), Some(socket_file), ListenAddr::Unix(path)) =
                (snapshot.at_address(bind_addr), bound.socket.socket_file(), &bind_addr.address)
                && let Err(error) = socket_file.set_access(policy.access(path))
            {
                warn!(listener = %policy.name, address = %bind_addr.address, %error, "cannot change the access to the Unix socket");
            }
        }
        for (bind_addr, bound) in &self.bound {
            if let Some(policy) = snapshot.at_address(bind_addr)
                && let Err(error) = bound.socket.keep_alive(policy.limits.dead_peer_timeout)
            {
                warn!(listener = %policy.name, address = %bind_addr.address, %error, "cannot apply dead_peer_timeout, keeping the previous one");
            }
        }
        for (bind_addr, pending) in prepared.new {
            let bound = self.accept_from(bind_addr.clone(), pending);
            self.bound.insert(bind_addr, bound);
        }
        self.follow(snapshot);
    }

    /// Stops accepting. All addresses are unbound when it returns. Connections in the backlog are still served.
    pub(crate) async fn close(&mut self) {
        self.shields.close("the program stops");
        self.bound.clear();
        while self.loops.join_next().await.is_some() {}
    }

    /// The bound addresses of a listener, in the order of its configuration.
    pub(crate) fn addresses(&self, policy: &ListenerPolicy) -> Vec<String> {
        let address = |bind_addr: &BindAddr| {
            let tcp_addr = self.bound.get(bind_addr)?.socket.tcp_addr();
            Some(tcp_addr.map_or_else(|| bind_addr.address.to_string(), |tcp_addr| tcp_addr.to_string()))
        };
        policy.bind_addrs.iter().filter_map(address).collect()
    }

    /// Whether an address is bound. A Unix socket whose file was removed or replaced is not.
    fn is_bound(&self, bind_addr: &BindAddr) -> bool {
        self.bound.get(bind_addr).is_some_and(|bound| bound.socket.socket_file().is_none_or(UnixSocketFile::is_ours))
    }

    /// Calls `work` with the shields. After a panic their state is unknown, and an outdated filter could drop packets of a
    /// trusted source, so all filters are detached. The accept loops still authorize every source.
    fn with_shields(&mut self, work: impl FnOnce(&mut Shields, &HashMap<BindAddr, Bound>)) {
        let Self { shields, bound, .. } = self;
        if fault::contain("shield", || work(shields, bound)).is_err() {
            shields.abandon();
            bound.values().filter_map(|bound| bound.socket.shielded_socket()).for_each(|socket| socket.detach_filter());
        }
    }

    /// Binds an address. `shared` means that a socket that this reload closes still has the port.
    fn bind(&self, policy: &ListenerPolicy, address: &ListenAddr, shared: bool) -> io::Result<PendingListener> {
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
        let _entered = worker.runtime.enter();
        // The listener of tokio would register every accepted socket with this worker, even that of an untrusted source, and
        // then again with another worker.
        #[allow(
            deprecated,
            reason = "unsound only for types that close their descriptor early; this type keeps it until it is dropped"
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
        let accept_loop = AcceptLoop {
            bind_addr,
            listen_socket: socket.shielded_socket().cloned(),
            shared,
            workers,
            worker,
            owner: None,
        };
        self.loops.spawn_on(accept_loop.keep_running(ready, stopped), &runtime);
        Bound { socket, _running: running }
    }

    /// Allows binding `bind_addr` while an overlapping address that this reload removes is still bound. An example is a
    /// wildcard address that is narrowed to one interface. Otherwise the old address would have to be closed first, and
    /// connections would be lost.
    fn share_port_of_leaving(&self, bind_addr: &BindAddr, snapshot: &Snapshot) -> Vec<SharedPort> {
        let leaving = |(other, _): &(&BindAddr, &Bound)| {
            other.address.overlaps(&bind_addr.address) && snapshot.at_address(other).is_none()
        };
        self.bound.iter().filter(leaving).map(|(_, bound)| SharedPort::new(&bound.socket)).collect()
    }
}

/// Allows another socket of this user on the same port until it is dropped.
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

struct AcceptedClient {
    stream: AcceptedSocket,
    descriptor_permit: DescriptorPermit,
    accepted_at: Instant,
}

/// The accept loop of one address.
struct AcceptLoop {
    bind_addr: BindAddr,
    /// Counts untrusted sources. `None` for a Unix socket.
    listen_socket: Option<Arc<ListenSocket>>,
    shared: Shared,
    workers: Arc<Workers>,
    /// The worker that runs this loop.
    worker: WorkerHandle,
    /// The listener that had the address last.
    owner: Option<Owner>,
}

/// What remains of a listener when its policy is gone.
struct Owner {
    name: Arc<str>,
    metrics: Arc<ListenerMetrics>,
}

impl AcceptLoop {
    /// Accepts until `stopped`. After a fault the loop continues with the same socket, so clients wait in the backlog and none
    /// is refused.
    async fn keep_running(mut self, socket: AsyncFd<Arc<BoundSocket>>, mut stopped: watch::Receiver<()>) {
        let mut backoff = Backoff::default();
        while fault::contained(PART, self.run(&socket, &mut stopped)).await.is_err() {
            if stopped.has_changed().is_err() {
                // The fault may have occurred while the backlog was served after the stop.
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
            if turn % ACCEPTS_PER_TURN == 0 {
                // A flood of connections must not delay the sessions of this worker.
                yield_now().await;
            }
            let accepted = tokio::select! {
                // Returns only when the sender is dropped.
                _ = stopped.changed() => break,
                accepted = accept(socket, &self.shared.descriptors) => accepted,
            };
            match accepted {
                Ok((stream, client, descriptor_permit)) => {
                    backoff.succeeded();
                    self.handle(stream, client, descriptor_permit).await;
                }
                Err(error) if is_client_error(&error) => {}
                Err(error) => backoff.failed(&error).await,
            }
        }
        // The clients in the backlog are already connected, so they are served. At most a full backlog, because new clients
        // may arrive faster, and only while descriptors are left, because the address must become free.
        for _ in 0..BACKLOG {
            let Some(descriptor_permit) = self.shared.descriptors.try_take() else { break };
            match socket.get_ref().accept() {
                Ok((stream, client)) => self.handle(stream, client, descriptor_permit).await,
                Err(_) => break,
            }
            yield_now().await;
        }
    }

    /// Handles one client. A fault closes only this client.
    async fn handle(&mut self, stream: AcceptedSocket, client: ClientAddr, descriptor_permit: DescriptorPermit) {
        let accepted = AcceptedClient { stream, descriptor_permit, accepted_at: Instant::now() };
        let _ = fault::contained(PART, self.admit(accepted, client)).await;
    }

    /// Authorizes the source. A source that is untrusted or far above its rate costs only this lookup and a close.
    async fn admit(&mut self, accepted: AcceptedClient, client: ClientAddr) {
        let accepted_at = accepted.accepted_at;
        let Some(policy) = self.policy() else { return self.reject(client) };
        if policy.proxies.contains(client) {
            // The worker reads the PROXY header and authorizes the announced source.
            return self.hand_over(accepted, Admission::Proxied(client), policy).await;
        }
        let mut fields = ConnectionFields::new(None, Arc::clone(&policy.name), client);
        fields.is_health_checker = policy.proxies.is_health_checker(client);
        let admitted = match policy.sources.admit(client, OffsetDateTime::now_utc()) {
            Ok(admitted) => admitted,
            Err(untrusted) => {
                drop(accepted);
                self.listen_socket.iter().for_each(|socket| socket.count_untrusted());
                if !fields.is_health_check(Reason::UntrustedSource) {
                    policy.metrics.note_denied(Reason::UntrustedSource);
                }
                return self.shared.audit.denied(&fields, Reason::UntrustedSource, untrusted, accepted_at.elapsed());
            }
        };
        match policy.check_rate(client, accepted_at) {
            Ok(rate) => self.hand_over(accepted, Admission::Direct(admitted, rate), policy).await,
            Err(rate_exceeded) => {
                drop(accepted);
                fields.source_match = Some(admitted.source_match().clone());
                policy.metrics.note_denied(Reason::RateLimited);
                self.shared.audit.denied(&fields, Reason::RateLimited, rate_exceeded, accepted_at.elapsed());
            }
        }
    }

    /// Sends a connection to a worker, if `max_handshakes` allows it.
    async fn hand_over(&self, accepted: AcceptedClient, admission: Admission, policy: Arc<ListenerPolicy>) {
        let AcceptedClient { stream, descriptor_permit, accepted_at } = accepted;
        let guard = self.shared.registry.enter(Arc::clone(&policy.name), admission.peer());
        let handshake = match policy.acquire_handshake(admission.peer(), guard.id()) {
            Ok(AcquiredHandshake { handshake, displaced }) => {
                if let Some(displaced) = displaced.and_then(|displaced| self.shared.registry.find(displaced)) {
                    displaced.end(HandshakeLimitReached::Displaced.into());
                }
                handshake
            }
            Err(limit_reached) => {
                drop((stream, descriptor_permit, guard));
                policy.metrics.note_denied(Reason::HandshakeLimit);
                let fields = admission.fields(None, &policy.name);
                return self.shared.audit.denied(&fields, Reason::HandshakeLimit, limit_reached, accepted_at.elapsed());
            }
        };
        let connection =
            AcceptedConnection { stream, admission, policy, guard, handshake, accepted_at, descriptor_permit };
        self.workers.hand_over(connection, &self.worker).await;
    }

    /// Audits a client whose listener was removed while the client was in the backlog.
    fn reject(&self, client: ClientAddr) {
        if let Some(Owner { name, metrics }) = &self.owner {
            metrics.note_denied(Reason::ListenerRemoved);
            let fields = ConnectionFields::new(None, Arc::clone(name), client);
            self.shared.audit.denied(&fields, Reason::ListenerRemoved, "", Duration::ZERO);
        }
    }

    /// The policy of the listener that has this address now or, after its removal, had it last.
    fn policy(&mut self) -> Option<Arc<ListenerPolicy>> {
        let snapshot = self.shared.current.borrow();
        let policy = match (snapshot.at_address(&self.bind_addr), &self.owner) {
            (Some(policy), _) => policy,
            (None, Some(owner)) => snapshot.named(&owner.name)?,
            (None, None) => return None,
        };
        let policy = Arc::clone(policy);
        self.owner = Some(Owner { name: Arc::clone(&policy.name), metrics: Arc::clone(&policy.metrics) });
        Some(policy)
    }
}

/// Accepts the next client when descriptors are available for it. The permit is acquired only when a client is in the
/// backlog, so that an idle loop holds none.
async fn accept(
    socket: &AsyncFd<Arc<BoundSocket>>,
    descriptors: &Descriptors,
) -> io::Result<(AcceptedSocket, ClientAddr, DescriptorPermit)> {
    loop {
        let mut ready = socket.readable().await?;
        let descriptor_permit = descriptors.take().await;
        // Fails if the client has disconnected meanwhile; then the loop waits for the next one.
        if let Ok(accepted) = ready.try_io(|socket| socket.get_ref().accept()) {
            return accepted.map(|(stream, client)| (stream, client, descriptor_permit));
        }
    }
}

/// Errors of accept(2) that concern only the client, which has already disconnected.
fn is_client_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::PermissionDenied
    )
}

/// The wait after accept(2) fails for lack of a resource, usually file descriptors.
#[derive(Debug, Default)]
struct AcceptBackoff {
    wait: Duration,
    last_logged: Option<Instant>,
}

impl AcceptBackoff {
    async fn failed(&mut self, error: &io::Error) {
        if self.last_logged.is_none_or(|logged| logged.elapsed() > LOG_INTERVAL) {
            warn!(%error, "accept failed, retrying (further errors are logged once a minute)");
            self.last_logged = Some(Instant::now());
        }
        self.wait = (self.wait * 2).clamp(MIN_WAIT, MAX_WAIT);
        sleep(self.wait).await;
    }

    fn succeeded(&mut self) {
        self.wait = Duration::ZERO;
    }
}

/// The name under which faults of accept loops are counted.
const PART: &str = "accept loop";

const MIN_WAIT: Duration = Duration::from_millis(5);
const MAX_WAIT: Duration = Duration::from_secs(1);
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Connections accepted before the sessions of the worker get their turn.
const ACCEPTS_PER_TURN: usize = 16;
