//! Internal faults: panics that are contained, so that a defect costs one piece of work and not the process.
//!
//! Every long-running task, and every independent step of it, goes through [`contain`], [`contained`] or [`restarted`].
//! Tasks that hold a socket or a queue are resumed with it after a [`Backoff`]. A fault is logged as an error, kept for
//! `status` ([`record::recent`]) and returned to the caller, which decides how to continue. All locks in the program ignore
//! poisoning.

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

/// Runs `work`, and records a fault if it panics.
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
    done.map_err(|panic| record::note(part, message_of(&*panic), LOCATION.take()))
}

/// Runs a future, and records a fault if it panics. The future is then dropped.
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

/// Runs blocking work on a separate thread, and records a fault if it panics.
///
/// # Errors
/// The fault, when it panics.
pub(crate) async fn contained_blocking<T: Send + 'static>(
    part: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    contained_on(part, work, |job| drop(spawn_blocking(job))).await
}

/// Runs work on a thread that `start` chooses, and records a fault if it panics.
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
        // Fails if the caller was dropped.
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

/// Runs a task until it returns. A task that panics is restarted after a pause.
pub(crate) async fn restarted<F: Future<Output = ()>>(part: &'static str, mut start: impl FnMut() -> F) {
    while contained(part, async { start().await }).await.is_err() {
        sleep(RESTART_PAUSE).await;
    }
}

/// The pause before a task that keeps its state is resumed after a fault. It doubles with each consecutive fault.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// The end and the length of the last pause.
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

/// Records the panic of a task of a `JoinSet`. No other report exists if its runtime runs inside of [`contain`].
pub(crate) fn note_task(part: &'static str, error: JoinError) {
    if let Ok(panic) = error.try_into_panic() {
        record::note(part, message_of(&*panic), LOCATION.take());
    }
}

/// Installs a panic hook. A contained panic then records its location in the code, and goes to the log instead of standard error.
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
    /// Nesting depth of [`contain`] on this thread.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Location of the last panic of this thread that is not recorded yet.
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

/// The message of a panic.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// Too short for a client in the backlog of a socket to notice.
pub(crate) const MIN_PAUSE: Duration = Duration::from_millis(10);

/// Prevents a task that panics at once from using a whole processor.
pub(crate) const RESTART_PAUSE: Duration = Duration::from_secs(1);
