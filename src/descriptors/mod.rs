//! The budget of file descriptors for connections.
//!
//! A connection needs two: the client's socket and the upstream's. An accept loop takes both from the budget before it
//! accepts, and waits while there are none. The rest of the limit is a reserve for reloads, the admin API, host names,
//! health checks and log rotation. So clients cannot prevent an operator from removing them.

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tracing::{info, warn};

/// Raises the soft limit of open files to the hard one.
///
/// # Errors
/// The error of the kernel. The soft limit then stays as it is.
pub(crate) fn raise_limit() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// Whether an error means that this machine or process lacks descriptors, memory for sockets or local ports. Such an error is
/// not the peer's fault.
pub(crate) fn is_local_shortage(error: &io::Error) -> bool {
    const LOCAL: [i32; 5] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| LOCAL.contains(&code))
}

/// The error of opening a file, if no descriptor is available. The system's resolver reports that as a failure of the name.
pub(crate) fn shortage() -> Option<io::Error> {
    File::open("/").err().filter(is_local_shortage)
}

/// The budget of descriptors for connections. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Descriptors(Arc<Budget>);

#[derive(Debug, Default)]
struct Budget {
    /// Connections that hold descriptors, or are about to be accepted.
    connections: AtomicUsize,
    max_connections: AtomicUsize,
    /// The limit that `max_connections` was computed from.
    limit: AtomicUsize,
    /// Descriptors that were open at the start, without listening sockets.
    fixed: OnceLock<usize>,
    released: Notify,
    pause: Mutex<Pause>,
}

/// Accept loops that wait for descriptors.
#[derive(Debug, Default)]
struct Pause {
    waiting: usize,
    since: Option<OffsetDateTime>,
    last: Option<OffsetDateTime>,
    logged_at: Option<Instant>,
    /// Whether this pause was logged, so that its end is logged too.
    is_logged: bool,
}

/// The descriptors of one connection, released when dropped.
#[derive(Debug)]
pub(crate) struct DescriptorPermit(Option<Descriptors>);

/// The state of the budget, for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DescriptorStatus {
    /// The limit of open files of the process.
    pub limit: usize,
    /// Descriptors that connections never use.
    pub reserved: usize,
    /// Connections that hold descriptors.
    pub connections: usize,
    pub max_connections: usize,
    /// Since when accepting is paused.
    pub paused_since: Option<OffsetDateTime>,
    /// When accepting was paused last.
    pub last_paused_at: Option<OffsetDateTime>,
}

impl Descriptors {
    /// Computes the budget for this number of listening sockets, which are already open, and the present limit. Nothing is
    /// accepted before the first call.
    pub(crate) fn follow(&self, listening: usize) {
        let budget = &self.0;
        let fixed = *budget.fixed.get_or_init(|| open_now().saturating_sub(listening));
        let limit = limit();
        let max_connections = max_connections(limit, fixed.saturating_add(listening));
        budget.limit.store(limit, Ordering::Relaxed);
        let former = budget.max_connections.swap(max_connections, Ordering::SeqCst);
        if max_connections != former && max_connections < FEW {
            warn!(
                limit,
                max_connections, "few file descriptors for connections; raise the limit (LimitNOFILE, ulimit -n)"
            );
        }
        budget.released.notify_waiters();
    }

    /// Takes the descriptors of a connection, if available.
    pub(crate) fn try_take(&self) -> Option<DescriptorPermit> {
        let Budget { connections, max_connections, .. } = &*self.0;
        let one_more = |open: usize| (open < max_connections.load(Ordering::SeqCst)).then(|| open.saturating_add(1));
        let taken = connections.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more);
        taken.ok().map(|_| DescriptorPermit(Some(self.clone())))
    }

    /// Takes the descriptors of a connection, and waits while there are none.
    pub(crate) async fn take(&self) -> DescriptorPermit {
        if let Some(permit) = self.try_take() {
            return permit;
        }
        let _pause = Paused::begin(self);
        loop {
            // Registers before the next try, so that no release in between is missed.
            let mut released = pin!(self.0.released.notified());
            released.as_mut().enable();
            if let Some(permit) = self.try_take() {
                return permit;
            }
            released.await;
        }
    }

    /// Releases the descriptors of a connection that [kept](DescriptorPermit::keep) them.
    pub(crate) fn release(&self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
        self.0.released.notify_one();
    }

    pub(crate) fn status(&self) -> DescriptorStatus {
        let (limit, pause) = (self.0.limit.load(Ordering::Relaxed), self.pause());
        DescriptorStatus {
            limit,
            reserved: reserve(limit),
            connections: self.0.connections.load(Ordering::SeqCst),
            max_connections: self.0.max_connections.load(Ordering::SeqCst),
            paused_since: pause.since,
            last_paused_at: pause.last,
        }
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.0.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DescriptorPermit {
    /// Keeps the descriptors taken until [`Descriptors::release`] is called.
    pub(crate) fn keep(&mut self) {
        self.0 = None;
    }
}

impl Drop for DescriptorPermit {
    fn drop(&mut self) {
        if let Some(descriptors) = &self.0 {
            descriptors.release();
        }
    }
}

/// An accept loop that waits, until dropped.
struct Paused<'a>(&'a Descriptors);

impl<'a> Paused<'a> {
    fn begin(descriptors: &'a Descriptors) -> Self {
        let DescriptorStatus { limit, reserved, connections, .. } = descriptors.status();
        let mut pause = descriptors.pause();
        pause.waiting = pause.waiting.saturating_add(1);
        if pause.since.is_none() {
            let now = OffsetDateTime::now_utc();
            (pause.since, pause.last) = (Some(now), Some(now));
            if pause.logged_at.is_none_or(|at| at.elapsed() > LOG_EVERY) {
                (pause.logged_at, pause.is_logged) = (Some(Instant::now()), true);
                warn!(
                    connections,
                    limit,
                    reserved,
                    "accepting paused, all file descriptors for connections are in use; raise the limit (LimitNOFILE) \
                     or set limits.max_connections_per_source"
                );
            }
        }
        drop(pause);
        Self(descriptors)
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        let mut pause = self.0.pause();
        pause.waiting = pause.waiting.saturating_sub(1);
        if pause.waiting == 0 {
            pause.since = None;
            if std::mem::take(&mut pause.is_logged) {
                info!("accepting resumed");
            }
        }
    }
}

/// The number of connections within `limit` beside `open` permanent descriptors. At least one, so that a limit that is far too
/// low slows the program down and does not stop it.
fn max_connections(limit: usize, open: usize) -> usize {
    let left = limit.saturating_sub(reserve(limit)).saturating_sub(open);
    (left / PER_CONNECTION).max(1)
}

/// The number of descriptors that connections never use.
fn reserve(limit: usize) -> usize {
    (limit / 4).clamp(MIN_RESERVE, MAX_RESERVE)
}

fn limit() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// The number of open descriptors. Without /proc it is estimated by the number of the next one.
fn open_now() -> usize {
    use std::os::fd::AsRawFd as _;
    let listed = || Some(fs::read_dir("/proc/self/fd").ok()?.count());
    let next = || usize::try_from(File::open("/").ok()?.as_raw_fd()).ok();
    // The list includes the descriptor of the directory itself.
    listed().map(|count| count.saturating_sub(1)).or_else(next).unwrap_or_default()
}

/// The client's socket and the upstream's. A lookup of the upstream's name happens before the latter and needs no more.
const PER_CONNECTION: usize = 2;

/// Enough for sixteen requests of the admin API and a reload.
const MIN_RESERVE: usize = 16;
/// Enough for all of these at once: the clients of a Unix socket and a TCP address of the admin API and of the metrics, sixteen
/// health checks, sixteen lookups of host names, a reload that opens some fifty sockets.
const MAX_RESERVE: usize = 256;

/// Below this number of connections the limit is probably a mistake.
const FEW: usize = 100;

/// The minimum time between two logged pauses. There may be thousands of pauses in a second.
const LOG_EVERY: Duration = Duration::from_secs(60);
