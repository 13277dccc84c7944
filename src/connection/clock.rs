//! Ends a session that has been silent for too long.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::Limits;
use crate::outcome::Reason;

/// The silence of one session, and how long it may last.
#[derive(Debug)]
pub(super) struct Clock {
    idle_timeout: Option<Duration>,
    half_close_timeout: Duration,
    silent_since: Instant,
    half_closed: bool,
    /// Set only where there is a limit, and moved only when it goes off: progress must not cost a timer each time.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    pub(super) fn new(limits: Limits) -> Self {
        let Limits { idle_timeout, half_close_timeout, .. } = limits;
        Self { idle_timeout, half_close_timeout, silent_since: Instant::now(), half_closed: false, alarm: None }
    }

    /// Ready when the silence has lasted too long. To be asked at every wake-up of the session: `progress` says whether a
    /// byte has moved since the last time, `half_closed` whether one side has ended.
    pub(super) fn poll(&mut self, half_closed: bool, progress: bool, cx: &mut Context<'_>) -> Poll<Reason> {
        let (limit, reason) = match (half_closed, self.idle_timeout) {
            (true, _) => (self.half_close_timeout, Reason::HalfCloseTimeout),
            (false, Some(idle)) => (idle, Reason::IdleTimeout),
            (false, None) => return Poll::Pending,
        };
        if progress || half_closed != self.half_closed {
            self.silent_since = Instant::now();
            self.half_closed = half_closed;
        }
        let due = self.silent_since + limit;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if alarm.deadline() > due {
            alarm.as_mut().reset(due);
        }
        while alarm.as_mut().poll(cx).is_ready() {
            if alarm.deadline() >= due {
                return Poll::Ready(reason);
            }
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{advance, timeout};

    use super::*;

    fn clock(idle_timeout: Option<Duration>) -> Clock {
        let half_close_timeout = Duration::from_secs(300);
        Clock::new(Limits { idle_timeout, half_close_timeout, ..Limits::default() })
    }

    /// How long the session stays silent from here before it is ended, and why.
    async fn silence(clock: &mut Clock, half_closed: bool) -> Option<(Duration, Reason)> {
        let start = Instant::now();
        let a_day = Duration::from_secs(86_400);
        let reason = timeout(a_day, poll_fn(|cx| clock.poll(half_closed, false, cx))).await.ok()?;
        // The timer wheel counts whole milliseconds.
        Some((Duration::from_secs(start.elapsed().as_secs()), reason))
    }

    async fn progress(clock: &mut Clock) {
        let ended = poll_fn(|cx| Poll::Ready(clock.poll(false, true, cx).is_ready())).await;
        assert!(!ended);
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_idle_timeout_silence_lasts_for_ever() {
        assert_eq!(silence(&mut clock(None), false).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_puts_the_end_off() {
        let mut clock = clock(Some(Duration::from_secs(60)));
        progress(&mut clock).await;
        advance(Duration::from_secs(59)).await;
        progress(&mut clock).await;
        assert_eq!(silence(&mut clock, false).await, Some((Duration::from_secs(60), Reason::IdleTimeout)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_close_has_its_own_time_however_old_the_session_is() {
        let expected = Some((Duration::from_secs(300), Reason::HalfCloseTimeout));
        for idle in [None, Some(Duration::from_secs(60)), Some(Duration::from_secs(7_200))] {
            let mut clock = clock(idle);
            progress(&mut clock).await;
            advance(Duration::from_secs(30)).await;
            assert_eq!(silence(&mut clock, true).await, expected, "idle_timeout {idle:?}");
        }
        let mut old = clock(None);
        advance(Duration::from_secs(86_400)).await;
        assert_eq!(silence(&mut old, true).await, expected);
    }
}
