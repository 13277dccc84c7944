//! Worker threads, each with a runtime of its own. A connection stays on the worker it was handed to, so the data path
//! never wakes another thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;

use crate::fault;
use crate::fault::Backoff;
use crate::proxy::accepted::{AcceptedConnection, Shared};
use crate::proxy::{PART, serve};

/// The near ends of all workers. Once nobody holds them, no accept loop either, the workers finish what they have and end.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Vec<Worker>,
    /// Seats given so far.
    seated: AtomicUsize,
}

/// A place on one worker, for what has to run beside its connections.
#[derive(Clone, Debug)]
pub(crate) struct WorkerHandle {
    number: usize,
    /// The worker's runtime.
    pub runtime: Handle,
}

#[derive(Debug)]
struct Worker {
    arrivals: mpsc::Sender<AcceptedConnection>,
    runtime: Handle,
    /// Connections handed over and not yet ended.
    load: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub(crate) fn start(count: usize, shared: &Shared) -> io::Result<Self> {
        let workers =
            (0..count.max(1)).map(|number| Worker::start(number, shared.clone())).collect::<io::Result<_>>()?;
        Ok(Self { workers, seated: AtomicUsize::new(0) })
    }

    /// A seat on the workers in turn.
    pub(crate) fn worker(&self) -> Option<WorkerHandle> {
        let number = self.seated.fetch_add(1, Ordering::Relaxed) % self.workers.len().max(1);
        self.workers.get(number).map(|worker| WorkerHandle { number, runtime: worker.runtime.clone() })
    }

    /// Hands a connection to the worker with the fewest, and rather to the one it was accepted by, which then need not wake
    /// another. The kernel's own spreading (SO_REUSEPORT) hashes addresses, which is uneven for the few and long-lived
    /// connections databases have.
    ///
    /// Waits while that worker has a full queue, which slows accepting down and nothing else.
    pub(crate) async fn hand_over(&self, connection: AcceptedConnection, accepted_by: &WorkerHandle) {
        let by_load = |(number, worker): &(usize, &Worker)| {
            let load = worker.load.load(Ordering::Relaxed);
            // One whose thread has ended would seem to have the fewest.
            (worker.arrivals.is_closed(), load, *number != accepted_by.number)
        };
        let Some((_, worker)) = self.workers.iter().enumerate().min_by_key(by_load) else { return };
        worker.load.fetch_add(1, Ordering::Relaxed);
        if worker.arrivals.send(connection).await.is_err() {
            worker.load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Worker {
    fn start(number: usize, shared: Shared) -> io::Result<Self> {
        let (arrivals, queue) = mpsc::channel(QUEUE_LENGTH);
        let load = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (theirs, handle) = (Arc::clone(&load), runtime.handle().clone());
        std::thread::Builder::new().name(format!("portcullis-{number}")).spawn(move || {
            // A task of its own: waking the future of `block_on` costs a system call, even on its own thread.
            let work = runtime.spawn(work(queue, theirs, shared));
            let worked = fault::contain(PART, || runtime.block_on(work));
            if let Ok(Err(error)) = worked {
                fault::note_task(PART, error);
            }
        })?;
        Ok(Self { arrivals, runtime: handle, load })
    }
}

/// Serves connections until no more can come and the last one has ended.
/// A fault of the loop itself ends no connection.
async fn work(mut queue: mpsc::Receiver<AcceptedConnection>, load: Arc<AtomicUsize>, shared: Shared) {
    let (shared, mut connections, mut backoff) = (Arc::new(shared), JoinSet::new(), Backoff::default());
    while fault::contained(LOOP, serve_all(&mut queue, &mut connections, &load, &shared)).await.is_err() {
        sleep(backoff.pause()).await;
    }
}

async fn serve_all(
    queue: &mut mpsc::Receiver<AcceptedConnection>,
    connections: &mut JoinSet<()>,
    load: &AtomicUsize,
    shared: &Arc<Shared>,
) {
    let gone = |ended: Result<(), JoinError>| {
        load.fetch_sub(1, Ordering::Relaxed);
        shared.descriptors.release();
        if let Err(error) = ended {
            // A panic; the connection's `ConnectionRecord` has told the audit already.
            fault::note_task(PART, error);
        }
    };
    loop {
        tokio::select! {
            connection = queue.recv() => {
                let Some(mut connection) = connection else { break };
                // Given back when the connection is gone, sockets and all.
                connection.descriptor_permit.keep();
                match fault::contain(PART, || serve(connection, shared)) {
                    Ok(connection) => drop(connections.spawn(connection)),
                    Err(_) => gone(Ok(())),
                }
            }
            Some(ended) = connections.join_next() => gone(ended),
        }
    }
    while let Some(ended) = connections.join_next().await {
        gone(ended);
    }
}

/// What faults of the loop of a worker are noted under.
const LOOP: &str = "worker";

/// Connections that may wait for a busy worker. More would only hide from the clients how busy it is.
const QUEUE_LENGTH: usize = 256;

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use time::OffsetDateTime;
    use tokio::sync::watch;

    use super::*;
    use crate::addr::ClientAddr;
    use crate::audit::{Audit, LineFormat, open_audit_file};
    use crate::descriptors::Descriptors;
    use crate::fault::injection::inject;
    use crate::limit::rate_limiter::RateDecision;
    use crate::policy::fixtures::{Site, listener};
    use crate::proxy::accepted::Admission;
    use crate::proxy::record::ConnectionRecord;
    use crate::session::registry::ConnectionRegistry;
    use crate::transport::socket::AcceptedSocket;

    /// A house with one listener, whose audit is a file.
    fn shared() -> (Site, Shared) {
        let site = Site::new();
        site.install("main", OffsetDateTime::now_utc() + time::Duration::days(365));
        let snapshot = site.snapshot(listener("main", 1, ""), None);
        let audit = Audit::start(LineFormat::Json, Some(open_audit_file(site.path("audit.log")).unwrap()));
        let descriptors = Descriptors::default();
        descriptors.follow(0);
        (site, Shared { current: watch::channel(Arc::new(snapshot)).1, registry: Arc::default(), audit, descriptors })
    }

    fn connection(shared: &Shared) -> (UnixStream, AcceptedConnection) {
        let (client, stream) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_nonblocking(true).unwrap();
        let policy = Arc::clone(shared.current.borrow().named("main").unwrap());
        let admitted = policy.sources.admit(ClientAddr::UNIX, OffsetDateTime::now_utc()).unwrap();
        let admission = Admission::Direct(admitted, RateDecision::Free);
        let guard = ConnectionRegistry::enter(&shared.registry, Arc::clone(&policy.name), ClientAddr::UNIX);
        let handshake = policy.acquire_handshake(ClientAddr::UNIX, guard.id()).unwrap().handshake;
        let (stream, accepted_at) = (AcceptedSocket::Unix(stream), Instant::now());
        let descriptor_permit = shared.descriptors.try_take().unwrap();
        (client, AcceptedConnection { stream, admission, policy, guard, handshake, accepted_at, descriptor_permit })
    }

    /// The reasons of all denials in the audit.
    fn denials(site: &Site, shared: &Shared) -> Vec<String> {
        shared.audit.flush();
        let text = std::fs::read_to_string(site.path("audit.log")).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let denials = events.filter(|event| event["event"] == "connection.denied");
        denials.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn fault_in_one_connection_leaves_the_next_one_served() {
        let (site, shared) = shared();
        let (arrivals, queue) = mpsc::channel(QUEUE_LENGTH);
        let load = Arc::new(AtomicUsize::new(2));
        let (mut first, arrival_of_first) = connection(&shared);
        let (second, arrival_of_second) = connection(&shared);
        drop(second.shutdown(std::net::Shutdown::Write));
        arrivals.try_send(arrival_of_first).unwrap();
        arrivals.try_send(arrival_of_second).unwrap();
        drop(arrivals);
        inject(PART);
        inject(LOOP);
        work(queue, Arc::clone(&load), shared.clone()).await;
        assert_eq!(first.read(&mut [0]).unwrap(), 0, "it is closed");
        assert_eq!(load.load(Ordering::Relaxed), 0);
        assert_eq!((shared.registry.count(), shared.descriptors.status().connections), (0, 0));
        let denials = denials(&site, &shared);
        assert!(denials.len() == 1 && denials[0] != "io_error", "the second is judged and not dropped: {denials:?}");
    }

    #[test]
    fn connection_that_panics_is_audited_once() {
        let (site, shared) = shared();
        let (_client, AcceptedConnection { admission, policy, guard, accepted_at, .. }) = connection(&shared);
        let fault = fault::contain(PART, || {
            let _visit = ConnectionRecord::new(Arc::new(shared.clone()), &policy, &admission, &guard, accepted_at);
            panic!("on the way in")
        });
        fault.unwrap_err();
        assert_eq!(denials(&site, &shared), ["io_error"]);
    }
}
