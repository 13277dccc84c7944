//! Worker threads, each with a runtime of its own. A connection stays on the worker it was handed to, so the data path
//! never wakes another thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Arrival, House, serve};

/// The near ends of all workers. Once nobody holds them, no accept loop either, the workers finish what they have and end.
#[derive(Debug)]
pub struct Workers {
    workers: Vec<Worker>,
    /// Seats given so far.
    seated: AtomicUsize,
}

/// A place on one worker, for what has to run beside its connections.
#[derive(Clone, Debug)]
pub struct Seat {
    number: usize,
    /// The worker's runtime.
    pub runtime: Handle,
}

#[derive(Debug)]
struct Worker {
    arrivals: mpsc::Sender<Arrival>,
    runtime: Handle,
    /// Connections handed over and not yet ended.
    load: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub fn start(count: usize, house: &House) -> io::Result<Self> {
        let workers =
            (0..count.max(1)).map(|number| Worker::start(number, house.clone())).collect::<io::Result<_>>()?;
        Ok(Self { workers, seated: AtomicUsize::new(0) })
    }

    /// A seat on the workers in turn.
    pub fn seat(&self) -> Option<Seat> {
        let number = self.seated.fetch_add(1, Ordering::Relaxed) % self.workers.len().max(1);
        self.workers.get(number).map(|worker| Seat { number, runtime: worker.runtime.clone() })
    }

    /// Hands a connection to the worker with the fewest, and rather to the one it was accepted by, which then need not wake
    /// another. The kernel's own spreading (SO_REUSEPORT) hashes addresses, which is uneven for the few and long-lived
    /// connections databases have.
    ///
    /// Waits while that worker has a full queue, which slows accepting down and nothing else.
    pub async fn hand_over(&self, arrival: Arrival, accepted_by: &Seat) {
        let by_load = |(number, worker): &(usize, &Worker)| {
            let load = worker.load.load(Ordering::Relaxed);
            // One whose thread has ended would seem to have the fewest.
            (worker.arrivals.is_closed(), load, *number != accepted_by.number)
        };
        let Some((_, worker)) = self.workers.iter().enumerate().min_by_key(by_load) else { return };
        worker.load.fetch_add(1, Ordering::Relaxed);
        if worker.arrivals.send(arrival).await.is_err() {
            worker.load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Worker {
    fn start(number: usize, house: House) -> io::Result<Self> {
        let (arrivals, queue) = mpsc::channel(QUEUE_LENGTH);
        let load = Arc::new(AtomicUsize::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (theirs, handle) = (Arc::clone(&load), runtime.handle().clone());
        std::thread::Builder::new().name(format!("portcullis-{number}")).spawn(move || {
            // A task of its own: waking the future of `block_on` costs a system call, even on its own thread.
            let work = runtime.spawn(work(queue, theirs, house));
            runtime.block_on(work)
        })?;
        Ok(Self { arrivals, runtime: handle, load })
    }
}

/// Serves connections until no more can come and the last one has ended.
async fn work(mut queue: mpsc::Receiver<Arrival>, load: Arc<AtomicUsize>, house: House) {
    let house = Arc::new(house);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            arrival = queue.recv() => {
                let Some(arrival) = arrival else { break };
                connections.spawn(serve(arrival, &house));
            }
            // A panic ends here too; the connection's `Visit` has told the audit already.
            Some(_) = connections.join_next() => {
                load.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
    while connections.join_next().await.is_some() {
        load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connections that may wait for a busy worker. More would only hide from the clients how busy it is.
const QUEUE_LENGTH: usize = 256;
