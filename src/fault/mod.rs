//! Internal faults: panics that are contained, so that a defect costs one piece of work and not the process.
//!
//! Whatever runs for as long as the process, and every step of it that others do not depend on, goes through [`contain`],
//! [`contained`] or [`restarted`]. Tasks that hold a socket or a queue are resumed with it after a [`Backoff`]. A fault is logged as an error, kept for `status` ([`record::recent`]), and returned to the caller,
//! who decides what becomes of the work. Locks are no obstacle: every one in the program is taken over when it is poisoned.

#[cfg(test)]
pub(crate) mod injection;
pub(crate) mod record;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::panic::{self, AssertUnwindSafe};
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::sleep;

use crate::fault::record::Fault;

/// Does a piece of work, and notes the fault if it panics.
///
/// # Errors
/// The fault, when it panics.
pub(crate) fn contain<T>(part: &'static str, work: impl FnOnce() -> T) -> Result<T, Fault> {
    let inside = Inside::enter();
    let done = panic::catch_unwind(AssertUnwindSafe(|| {
        #[cfg(test)]
        injection::strike(part);
        work()
    }));
    drop(inside);
    done.map_err(|panic| record::note(part, words(&*panic), LOCATION.take()))
}

/// The same for work that waits. The future is dropped when it panics.
///
/// # Errors
/// The fault, when it panics.
pub(crate) async fn contained<F: Future>(part: &'static str, work: F) -> Result<F::Output, Fault> {
    let mut work = pin!(work);
    poll_fn(|cx| match contain(part, || work.as_mut().poll(cx)) {
        Ok(polled) => polled.map(Ok),
        Err(fault) => Err(fault).into(),
    })
    .await
}

/// The same for work that blocks, on a thread of its own.
///
/// # Errors
/// The fault, when it panics.
pub(crate) async fn contained_blocking<T: Send + 'static>(
    part: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    contained_on(part, work, |job| drop(spawn_blocking(job))).await
}

/// The same where the caller chooses the thread: `start` gets the work and has it run.
///
/// # Errors
/// The fault, when it panics.
pub(crate) async fn contained_on<T: Send + 'static>(
    part: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
    start: impl FnOnce(Job),
) -> Result<T, Fault> {
    #[cfg(test)]
    let work = injection::carried(part, work);
    let (answer, answered) = oneshot::channel();
    start(Box::new(move || {
        // Nobody waits any more where the caller was dropped.
        let _ = answer.send(contain(part, work));
    }));
    match answered.await {
        Ok(done) => done,
        // Only the end of the runtime drops the work, and this task with it.
        Err(_) => pending().await,
    }
}

/// Work for another thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Keeps a task running until it returns: one that panics is started again, after a pause.
pub(crate) async fn restarted<F: Future<Output = ()>>(part: &'static str, mut start: impl FnMut() -> F) {
    while contained(part, async { start().await }).await.is_err() {
        sleep(RESTART_PAUSE).await;
    }
}

/// How long a task that keeps its state waits before it is resumed after a fault: longer with each fault in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// When the last pause ended, and how long it was.
    last: Option<(Instant, Duration)>,
}

impl Backoff {
    /// The next pause, from [`MIN_PAUSE`] to [`RESTART_PAUSE`].
    pub(crate) fn pause(&mut self) -> Duration {
        self.pause_at(Instant::now())
    }

    fn pause_at(&mut self, now: Instant) -> Duration {
        let in_a_row = self.last.filter(|(resumed, _)| now.saturating_duration_since(*resumed) < RESTART_PAUSE);
        let pause = in_a_row.map_or(MIN_PAUSE, |(_, before)| (before * 2).min(RESTART_PAUSE));
        self.last = Some((now + pause, pause));
        pause
    }
}

/// Notes that a task of a `JoinSet` has panicked. Where its runtime runs inside of [`contain`], nothing else tells of it.
pub(crate) fn note_task(part: &'static str, error: JoinError) {
    if let Ok(panic) = error.try_into_panic() {
        record::note(part, words(&*panic), LOCATION.take());
    }
}

/// From now on a panic that is contained remembers where in the code it was, and does not write to standard error, which
/// nobody may be reading: the log has it.
pub(crate) fn install_hook() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if DEPTH.get() == 0 {
            return report(panic);
        }
        LOCATION.set(panic.location().map(ToString::to_string));
    }));
}

thread_local! {
    /// How many [`contain`]s this thread is inside of.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Where the last panic of this thread was that nobody has noted yet.
    static LOCATION: Cell<Option<String>> = const { Cell::new(None) };
}

struct Inside;

impl Inside {
    fn enter() -> Self {
        DEPTH.set(DEPTH.get().saturating_add(1));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
    }
}

/// What `panic!` was given.
fn words(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Short enough that a client in the backlog of a socket does not notice.
pub(crate) const MIN_PAUSE: Duration = Duration::from_millis(10);

/// Keeps a task that panics at once from taking a whole processor.
pub(crate) const RESTART_PAUSE: Duration = Duration::from_secs(1);
