//! The thread that builds policies.
//!
//! glibc gives each thread its own malloc arena and seldom returns the memory. Building policies on arbitrary threads of the
//! blocking pool would leave the memory of the largest policy in each arena. One dedicated thread reuses one arena.

use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use tokio::task::spawn_blocking;

use crate::fault;
use crate::fault::Job;
use crate::fault::record::Fault;
use crate::server::reload::PART;

/// A thread that runs jobs in sequence until this value is dropped.
#[derive(Debug)]
pub(crate) struct PolicyThread {
    jobs: SyncSender<Job>,
}

impl PolicyThread {
    /// Starts the thread. If that fails, jobs run on the blocking pool.
    pub(crate) fn start() -> Self {
        let (jobs, queue) = sync_channel::<Job>(MAX_WAITING);
        let work = move || {
            for job in queue {
                // The fault is recorded, and the thread stays available.
                let _ = fault::contain(PART, job);
            }
        };
        // If the thread cannot be started, the queue is closed.
        let _ = thread::Builder::new().name("policy".to_owned()).spawn(work);
        Self { jobs }
    }

    /// Runs a job.
    ///
    /// # Errors
    /// The internal fault, if the job panics.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
        let start = |job| match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => drop(spawn_blocking(job)),
        };
        fault::contained_on(PART, work, start).await
    }
}

/// Queued jobs. A caller that was dropped may leave its job in the queue.
const MAX_WAITING: usize = 1;
