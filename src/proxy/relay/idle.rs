//! Ends a session after `idle_timeout` or `half_close_timeout` without a byte.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::Limits;
use crate::outcome::Reason;
use crate::proxy::relay::span::Span;

#[derive(Debug)]
pub(crate) struct IdleTimer {
    idle_timeout: Option<Span>,
    half_close_timeout: Span,
    /// `None` while no timeout applies, which is the case for most sessions.
    deadline: Option<Box<IdleDeadline>>,
}

#[derive(Debug)]
struct IdleDeadline {
    idle_since: Instant,
    half_closed: bool,
    /// Reset only when it fires, so that progress does not cost a timer operation.
    timer: Pin<Box<Sleep>>,
}

impl IdleTimer {
    pub(crate) fn new(limits: Limits) -> Self {
        let Limits { idle_timeout, half_close_timeout, .. } = limits;
        let idle_timeout = idle_timeout.map(Span::from);
        Self { idle_timeout, half_close_timeout: half_close_timeout.into(), deadline: None }
    }

    /// Ready when the session has been idle for too long. Call it at every wake-up of the session, with `progress` if a byte
    /// has moved since the last call and `half_closed` if one side has ended.
    pub(crate) fn poll(&mut self, half_closed: bool, progress: bool, cx: &mut Context<'_>) -> Poll<Reason> {
        let (limit, reason) = match (half_closed, self.idle_timeout) {
            (true, _) => (self.half_close_timeout.duration(), Reason::HalfCloseTimeout),
            (false, Some(idle)) => (idle.duration(), Reason::IdleTimeout),
            (false, None) => return Poll::Pending,
        };
        let deadline = self.deadline.get_or_insert_with(|| Box::new(IdleDeadline::new(half_closed, limit)));
        if progress || half_closed != deadline.half_closed {
            (deadline.idle_since, deadline.half_closed) = (Instant::now(), half_closed);
        }
        deadline.poll(limit, cx).map(|()| reason)
    }
}

impl IdleDeadline {
    fn new(half_closed: bool, limit: Duration) -> Self {
        let idle_since = Instant::now();
        Self { idle_since, half_closed, timer: Box::pin(sleep_until(idle_since + limit)) }
    }

    fn poll(&mut self, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.idle_since + limit;
        if self.timer.deadline() > due {
            self.timer.as_mut().reset(due);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.timer.deadline() >= due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{advance, timeout};

    use super::*;

    fn idle_timer(idle_timeout: Option<Duration>) -> IdleTimer {
        let half_close_timeout = Duration::from_secs(300);
        IdleTimer::new(Limits { idle_timeout, half_close_timeout, ..Limits::default() })
    }

    /// Stays idle until the timer ends the session, for at most a day. Returns the time and the reason.
    async fn stay_idle(idle_timer: &mut IdleTimer, half_closed: bool) -> Option<(Duration, Reason)> {
        let start = Instant::now();
        let a_day = Duration::from_secs(86_400);
        let reason = timeout(a_day, poll_fn(|cx| idle_timer.poll(half_closed, false, cx))).await.ok()?;
        // The timer wheel counts whole milliseconds.
        Some((Duration::from_secs(start.elapsed().as_secs()), reason))
    }

    async fn progress(idle_timer: &mut IdleTimer) {
        let ended = poll_fn(|cx| Poll::Ready(idle_timer.poll(false, true, cx).is_ready())).await;
        assert!(!ended);
    }

    #[tokio::test(start_paused = true)]
    async fn session_without_idle_timeout_never_ends() {
        assert_eq!(stay_idle(&mut idle_timer(None), false).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_restarts_the_idle_timeout() {
        let mut idle_timer = idle_timer(Some(Duration::from_secs(60)));
        progress(&mut idle_timer).await;
        advance(Duration::from_secs(59)).await;
        progress(&mut idle_timer).await;
        assert_eq!(stay_idle(&mut idle_timer, false).await, Some((Duration::from_secs(60), Reason::IdleTimeout)));
    }

    #[tokio::test(start_paused = true)]
    async fn half_close_starts_its_own_timeout_at_any_age_of_the_session() {
        let expected = Some((Duration::from_secs(300), Reason::HalfCloseTimeout));
        for idle in [None, Some(Duration::from_secs(60)), Some(Duration::from_secs(7_200))] {
            let mut idle_timer = idle_timer(idle);
            progress(&mut idle_timer).await;
            assert_eq!(idle_timer.deadline.is_some(), idle.is_some(), "no timer without a timeout");
            advance(Duration::from_secs(30)).await;
            assert_eq!(stay_idle(&mut idle_timer, true).await, expected, "idle_timeout {idle:?}");
        }
        let mut old = idle_timer(None);
        advance(Duration::from_secs(86_400)).await;
        assert_eq!(stay_idle(&mut old, true).await, expected);
    }
}
