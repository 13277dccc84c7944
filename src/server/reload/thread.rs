//! The thread that builds policies.
//!
//! glibc gives each thread an arena of its own and seldom returns its memory. Policies that are built on whichever thread of
//! the pool is idle leave a copy of the largest policy in each of these arenas; on one thread the arena is used again.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use tokio::task::spawn_blocking;

use crate::fault;
use crate::fault::Job;
use crate::fault::record::Fault;
use crate::server::reload::PART;

/// A thread that runs one job after another, as long as this lives.
#[derive(Debug)]
pub(crate) struct PolicyThread {
    jobs: SyncSender<Job>,
}

impl PolicyThread {
    /// Starts it. Where the system gives no thread, jobs run on the blocking pool.
    pub(crate) fn start() -> Self {
        let (jobs, queue) = sync_channel::<Job>(MAX_WAITING);
        let work = move || {
            for job in queue {
                // The fault is noted; the thread is there for the next job.
                let _ = fault::contain(PART, job);
            }
        };
        // Without a thread the queue is closed.
        let _ = thread::Builder::new().name("policy".to_owned()).spawn(work);
        Self { jobs }
    }

    /// Runs a job.
    ///
    /// # Errors
    /// The fault, when it panics.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
        let start = |job| match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => drop(spawn_blocking(job)),
        };
        fault::contained_on(PART, work, start).await
    }
}

/// Jobs that wait while one runs: a caller that was dropped may leave its job behind.
const MAX_WAITING: usize = 1;
