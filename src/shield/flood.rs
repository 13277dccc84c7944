//! Detects the start and the end of a flood from the number of untrusted connections a second.

use std::time::Duration;

/// Detects floods at one listener with `shield = "auto"`.
#[derive(Debug)]
pub(crate) struct FloodDetector {
    /// Consecutive checks that suggest a change.
    streak: u32,
    /// How long the shield stays active if the kernel does not report dropped packets.
    hold: Duration,
}

impl Default for FloodDetector {
    fn default() -> Self {
        Self { streak: 0, hold: MIN_HOLD }
    }
}

impl FloodDetector {
    /// A check while the shield is inactive. Returns whether a flood has started.
    pub(crate) fn observe_start(&mut self, untrusted_per_second: u64) -> bool {
        if untrusted_per_second == 0 {
            self.hold = MIN_HOLD;
        }
        self.advance(untrusted_per_second >= FLOOD_RATE, CHECKS_TO_START)
    }

    /// A check while the shield is active. Returns whether the flood is over. Without a rate, returns whether the shield has to
    /// be deactivated to find out.
    pub(crate) fn observe_end(&mut self, untrusted_per_second: Option<u64>, active_for: Duration) -> bool {
        let Some(count) = untrusted_per_second else {
            let over = active_for >= self.hold;
            if over {
                self.streak = 0;
                self.hold = (self.hold * 2).min(MAX_HOLD);
            }
            return over;
        };
        self.advance(count <= QUIET_RATE, CHECKS_TO_END)
    }

    fn advance(&mut self, other: bool, enough: u32) -> bool {
        self.streak = if other { self.streak + 1 } else { 0 };
        let is_reached = self.streak >= enough;
        if is_reached {
            self.streak = 0;
        }
        is_reached
    }
}

/// Untrusted connections a second from which on there is a flood. A hundred cost a quarter of a percent of one core; real
/// floods have thousands.
const FLOOD_RATE: u64 = 100;

/// Untrusted connections a second up to which a flood is over.
const QUIET_RATE: u64 = 50;

/// Consecutive checks, one a second, that have to agree. The end takes longer, because dropped clients retry at growing
/// intervals.
const CHECKS_TO_START: u32 = 2;
const CHECKS_TO_END: u32 = 10;

const MIN_HOLD: Duration = Duration::from_secs(30);
const MAX_HOLD: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_consecutive_busy_seconds_start_a_flood() {
        let mut flood = FloodDetector::default();
        assert!(!flood.observe_start(10_000), "one busy second is not a flood");
        assert!(!flood.observe_start(99));
        assert!(!flood.observe_start(100));
        assert!(flood.observe_start(100));
        assert!(!flood.observe_start(100), "the count restarts");
    }

    #[test]
    fn ten_consecutive_quiet_seconds_end_a_flood() {
        let mut flood = FloodDetector::default();
        for second in 0..9 {
            assert!(!flood.observe_end(Some(50), Duration::from_secs(second)));
        }
        assert!(!flood.observe_end(Some(51), Duration::from_secs(9)));
        let quiet = (0..10).map(|second| flood.observe_end(Some(0), Duration::from_secs(10 + second)));
        assert_eq!(quiet.collect::<Vec<_>>(), [[false; 9].as_slice(), &[true]].concat());
    }

    #[test]
    fn hold_doubles_when_dropped_packets_are_not_reported() {
        let mut flood = FloodDetector::default();
        let seconds = Duration::from_secs;
        assert!(!flood.observe_end(None, seconds(29)) && flood.observe_end(None, seconds(30)));
        assert!(!flood.observe_start(5_000) && flood.observe_start(5_000));
        assert!(!flood.observe_end(None, seconds(59)) && flood.observe_end(None, seconds(60)));
        for _ in 0..10 {
            assert!(flood.observe_end(None, seconds(900)), "at most a quarter of an hour");
        }
        assert!(!flood.observe_start(0), "the flood is over");
        assert!(flood.observe_end(None, seconds(30)));
    }
}
