//! Ends a session that has been silent for too long.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::Limits;
use crate::outcome::Reason;
use crate::proxy::relay::timing::Span;

/// The silence of one session, and how long it may last.
#[derive(Debug)]
pub(crate) struct IdleTimer {
    idle_timeout: Option<Span>,
    half_close_timeout: Span,
    /// Nothing as long as there is no limit, which is all their life for most sessions.
    silence: Option<Box<IdleDeadline>>,
}

/// A silence that has a limit.
#[derive(Debug)]
struct IdleDeadline {
    since: Instant,
    half_closed: bool,
    /// Moved only when it goes off: progress must not cost a timer each time.
    alarm: Pin<Box<Sleep>>,
}

impl IdleTimer {
    pub(crate) fn new(limits: Limits) -> Self {
        let Limits { idle_timeout, half_close_timeout, .. } = limits;
        let idle_timeout = idle_timeout.map(Span::from);
        Self { idle_timeout, half_close_timeout: half_close_timeout.into(), silence: None }
    }

    /// Ready when the silence has lasted too long. To be asked at every wake-up of the session: `progress` says whether a
    /// byte has moved since the last time, `half_closed` whether one side has ended.
    pub(crate) fn poll(&mut self, half_closed: bool, progress: bool, cx: &mut Context<'_>) -> Poll<Reason> {
        let (limit, reason) = match (half_closed, self.idle_timeout) {
            (true, _) => (self.half_close_timeout.duration(), Reason::HalfCloseTimeout),
            (false, Some(idle)) => (idle.duration(), Reason::IdleTimeout),
            (false, None) => return Poll::Pending,
        };
        let silence = self.silence.get_or_insert_with(|| Box::new(IdleDeadline::new(half_closed, limit)));
        if progress || half_closed != silence.half_closed {
            (silence.since, silence.half_closed) = (Instant::now(), half_closed);
        }
        silence.poll(limit, cx).map(|()| reason)
    }
}

impl IdleDeadline {
    /// One that begins now.
    fn new(half_closed: bool, limit: Duration) -> Self {
        let since = Instant::now();
        Self { since, half_closed, alarm: Box::pin(sleep_until(since + limit)) }
    }

    /// Ready when it has lasted so long.
    fn poll(&mut self, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.since + limit;
        if self.alarm.deadline() > due {
            self.alarm.as_mut().reset(due);
        }
        while self.alarm.as_mut().poll(cx).is_ready() {
            if self.alarm.deadline() >= due {
                return Poll::Ready(());
            }
            self.alarm.as_mut().reset(due);
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

    /// How long the session stays silent from here before it is ended, and why.
    async fn silence(idle_timer: &mut IdleTimer, half_closed: bool) -> Option<(Duration, Reason)> {
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
    async fn without_an_idle_timeout_silence_lasts_for_ever() {
        assert_eq!(silence(&mut idle_timer(None), false).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_puts_the_end_off() {
        let mut idle_timer = idle_timer(Some(Duration::from_secs(60)));
        progress(&mut idle_timer).await;
        advance(Duration::from_secs(59)).await;
        progress(&mut idle_timer).await;
        assert_eq!(silence(&mut idle_timer, false).await, Some((Duration::from_secs(60), Reason::IdleTimeout)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_close_has_its_own_time_however_old_the_session_is() {
        let expected = Some((Duration::from_secs(300), Reason::HalfCloseTimeout));
        for idle in [None, Some(Duration::from_secs(60)), Some(Duration::from_secs(7_200))] {
            let mut idle_timer = idle_timer(idle);
            progress(&mut idle_timer).await;
            assert_eq!(idle_timer.silence.is_some(), idle.is_some(), "what has no limit is not measured");
            advance(Duration::from_secs(30)).await;
            assert_eq!(silence(&mut idle_timer, true).await, expected, "idle_timeout {idle:?}");
        }
        let mut old = idle_timer(None);
        advance(Duration::from_secs(86_400)).await;
        assert_eq!(silence(&mut old, true).await, expected);
    }
}
