//! Worker threads, each with its own single-threaded runtime. A connection stays on one worker for life, so the data path
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

/// The sending ends of all worker queues. When the last reference is dropped, the workers finish their connections and end.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Vec<Worker>,
    /// The number of handles returned so far, for round robin.
    next: AtomicUsize,
}

/// One worker, for tasks that run beside its connections.
#[derive(Clone, Debug)]
pub(crate) struct WorkerHandle {
    number: usize,
    pub runtime: Handle,
}

#[derive(Debug)]
struct Worker {
    queue: mpsc::Sender<AcceptedConnection>,
    runtime: Handle,
    /// The number of open and queued connections.
    load: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` workers, at least one.
    ///
    /// # Errors
    /// The kernel refuses a thread or an epoll descriptor.
    pub(crate) fn start(count: usize, shared: &Shared) -> io::Result<Self> {
        let workers =
            (0..count.max(1)).map(|number| Worker::start(number, shared.clone())).collect::<io::Result<_>>()?;
        Ok(Self { workers, next: AtomicUsize::new(0) })
    }

    /// Returns a worker, in round robin.
    pub(crate) fn worker(&self) -> Option<WorkerHandle> {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len().max(1);
        self.workers.get(number).map(|worker| WorkerHandle { number, runtime: worker.runtime.clone() })
    }

    /// Sends a connection to the worker with the fewest connections, on a tie to the worker that accepted it, which need not
    /// wake another thread. SO_REUSEPORT distributes by address hash, which is uneven for few long-lived connections.
    ///
    /// Waits while the queue of that worker is full. This delays only the accept loop.
    pub(crate) async fn hand_over(&self, connection: AcceptedConnection, accepted_by: &WorkerHandle) {
        let by_load = |(number, worker): &(usize, &Worker)| {
            let load = worker.load.load(Ordering::Relaxed);
            // A worker whose thread has ended appears to have no load.
            (worker.queue.is_closed(), load, *number != accepted_by.number)
        };
        let Some((_, worker)) = self.workers.iter().enumerate().min_by_key(by_load) else { return };
        worker.load.fetch_add(1, Ordering::Relaxed);
        if worker.queue.send(connection).await.is_err() {
            worker.load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Worker {
    fn start(number: usize, shared: Shared) -> io::Result<Self> {
        let shared = Shared { worker: number, ..shared };
        let (queue, connections) = mpsc::channel(MAX_QUEUED);
        let load = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (worker_load, handle) = (Arc::clone(&load), runtime.handle().clone());
        std::thread::Builder::new().name(format!("portcullis-{number}")).spawn(move || {
            // A separate task: waking the future of `block_on` costs a system call, even on its own thread.
            let work = runtime.spawn(work(connections, worker_load, shared));
            let result = fault::contain(PART, || runtime.block_on(work));
            if let Ok(Err(error)) = result {
                fault::note_task(PART, error);
            }
        })?;
        Ok(Self { queue, runtime: handle, load })
    }
}

/// Serves connections until the queue is closed and the last connection has ended. A fault of this loop ends no connection.
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
    let release = |ended: Result<(), JoinError>| {
        load.fetch_sub(1, Ordering::Relaxed);
        shared.descriptors.release();
        if let Err(error) = ended {
            // A panic. `ConnectionRecord` has already audited the connection.
            fault::note_task(PART, error);
        }
    };
    loop {
        tokio::select! {
            connection = queue.recv() => {
                let Some(mut connection) = connection else { break };
                // Released when the connection and its sockets are closed.
                connection.descriptor_permit.keep();
                match fault::contain(PART, || serve(connection, shared)) {
                    Ok(connection) => drop(connections.spawn(connection)),
                    Err(_) => release(Ok(())),
                }
            }
            Some(ended) = connections.join_next() => release(ended),
        }
    }
    while let Some(ended) = connections.join_next().await {
        release(ended);
    }
}

/// The name under which faults of the worker loop are counted.
const LOOP: &str = "worker";

/// Connections that wait for a busy worker. A longer queue would only hide the load from the clients.
const MAX_QUEUED: usize = 256;

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
    use crate::policy::fixtures::{ConfigDir, listener};
    use crate::proxy::accepted::Admission;
    use crate::proxy::record::ConnectionRecord;
    use crate::session::registry::ConnectionRegistry;
    use crate::transport::socket::AcceptedSocket;

    /// One listener whose audit is a file.
    fn shared() -> (ConfigDir, Shared) {
        let dir = ConfigDir::new();
        dir.install("main", OffsetDateTime::now_utc() + time::Duration::days(365));
        let snapshot = dir.snapshot(listener("main", 1, ""), None);
        let audit = Audit::start(LineFormat::Json, Some(open_audit_file(dir.path("audit.log")).unwrap()));
        let descriptors = Descriptors::default();
        descriptors.follow(0);
        let current = watch::channel(Arc::new(snapshot)).1;
        (dir, Shared { current, registry: Arc::default(), audit, descriptors, worker: 0 })
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

    /// The reasons of all denied connections in the audit.
    fn denials(dir: &ConfigDir, shared: &Shared) -> Vec<String> {
        shared.audit.flush();
        let text = std::fs::read_to_string(dir.path("audit.log")).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let denials = events.filter(|event| event["event"] == "connection.denied");
        denials.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn fault_in_one_connection_leaves_the_next_one_served() {
        let (dir, shared) = shared();
        let (queue, connections) = mpsc::channel(MAX_QUEUED);
        let load = Arc::new(AtomicUsize::new(2));
        let (mut first_client, first) = connection(&shared);
        let (second_client, second) = connection(&shared);
        drop(second_client.shutdown(std::net::Shutdown::Write));
        queue.try_send(first).unwrap();
        queue.try_send(second).unwrap();
        drop(queue);
        inject(PART);
        inject(LOOP);
        work(connections, Arc::clone(&load), shared.clone()).await;
        assert_eq!(first_client.read(&mut [0]).unwrap(), 0, "the first connection is closed");
        assert_eq!(load.load(Ordering::Relaxed), 0);
        assert_eq!((shared.registry.count(), shared.descriptors.status().connections), (0, 0));
        let denials = denials(&dir, &shared);
        assert!(
            denials.len() == 1 && denials[0] != "io_error",
            "the second connection has its own reason: {denials:?}"
        );
    }

    #[test]
    fn connection_that_panics_is_audited_once() {
        let (dir, shared) = shared();
        let (_client, AcceptedConnection { admission, policy, guard, accepted_at, .. }) = connection(&shared);
        let fault = fault::contain(PART, || {
            let _record = ConnectionRecord::new(Arc::new(shared.clone()), &policy, &admission, &guard, accepted_at);
            panic!("before the session is open")
        });
        fault.unwrap_err();
        assert_eq!(denials(&dir, &shared), ["io_error"]);
    }
}
