//! Limits how much the agent reports of the store a second, because the program ends an agent that sends too much.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What was sent in the current second.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    bytes: usize,
    messages: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), bytes: 0, messages: 0 }
    }
}

impl Pace {
    /// Waits until another message may be sent. Dropping the future loses nothing.
    pub(super) async fn ready(&mut self) {
        if self.bytes >= MAX_BYTES || self.messages >= MAX_MESSAGES {
            sleep_until(self.since + SECOND).await;
        }
        if self.since.elapsed() >= SECOND {
            *self = Self::default();
        }
    }

    /// Counts a message.
    pub(super) const fn count(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.messages = self.messages.saturating_add(1);
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// The program allows 64 MiB in a second, which can include two of this one with a message of 16 MiB at the end of each.
const MAX_BYTES: usize = 16 << 20;

/// The program allows 10,000.
const MAX_MESSAGES: usize = 4_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn message_waits_for_the_next_second_when_this_one_is_used() {
        let started = Instant::now();
        let mut pace = Pace::default();
        for _ in 0..2 {
            pace.ready().await;
            pace.count(MAX_BYTES - 1);
        }
        assert_eq!(started.elapsed(), Duration::ZERO);
        pace.ready().await;
        assert_eq!(started.elapsed(), SECOND);
        (0..MAX_MESSAGES).for_each(|_| pace.count(1));
        pace.ready().await;
        assert_eq!(started.elapsed(), 2 * SECOND);
    }
}
