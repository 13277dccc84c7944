//! When a flood of strangers begins and when it is over, from how many come in a second.

use std::time::Duration;

/// Watches one listener whose shield is there for floods only.
#[derive(Debug)]
pub(crate) struct FloodDetector {
    /// Looks in a row that say the other thing.
    streak: u32,
    /// How long the shield stays up where nobody can say how many it keeps out.
    hold: Duration,
}

impl Default for FloodDetector {
    fn default() -> Self {
        Self { streak: 0, hold: SHORTEST_HOLD }
    }
}

impl FloodDetector {
    /// One look while the shield is down. Returns whether a flood has begun.
    pub(crate) fn observe_start(&mut self, strangers_per_second: u64) -> bool {
        if strangers_per_second == 0 {
            self.hold = SHORTEST_HOLD;
        }
        self.counts(strangers_per_second >= MANY, LOOKS_TO_BEGIN)
    }

    /// One look while the shield is up, which it has been for `up`. Returns whether the flood is over; where that cannot be
    /// known, whether it is time to find out.
    pub(crate) fn observe_end(&mut self, strangers_per_second: Option<u64>, up: Duration) -> bool {
        let Some(count) = strangers_per_second else {
            let over = up >= self.hold;
            if over {
                self.streak = 0;
                self.hold = (self.hold * 2).min(LONGEST_HOLD);
            }
            return over;
        };
        self.counts(count <= FEW, LOOKS_TO_END)
    }

    fn counts(&mut self, other: bool, enough: u32) -> bool {
        self.streak = if other { self.streak + 1 } else { 0 };
        let turns = self.streak >= enough;
        if turns {
            self.streak = 0;
        }
        turns
    }
}

/// So many strangers a second are a flood, and so few are none. A hundred cost a quarter of a percent of one core; what
/// floods are about is thousands.
const MANY: u64 = 100;
const FEW: u64 = 50;

/// Looks, one a second, that have to agree. The end takes longer: who is kept out tries again, later and later.
const LOOKS_TO_BEGIN: u32 = 2;
const LOOKS_TO_END: u32 = 10;

const SHORTEST_HOLD: Duration = Duration::from_secs(30);
const LONGEST_HOLD: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_busy_seconds_in_a_row_are_a_flood() {
        let mut flood = FloodDetector::default();
        assert!(!flood.observe_start(10_000), "one alone is none");
        assert!(!flood.observe_start(99));
        assert!(!flood.observe_start(100));
        assert!(flood.observe_start(100));
        assert!(!flood.observe_start(100), "the next begins anew");
    }

    #[test]
    fn ten_quiet_seconds_in_a_row_are_its_end() {
        let mut flood = FloodDetector::default();
        for second in 0..9 {
            assert!(!flood.observe_end(Some(50), Duration::from_secs(second)));
        }
        assert!(!flood.observe_end(Some(51), Duration::from_secs(9)));
        let quiet = (0..10).map(|second| flood.observe_end(Some(0), Duration::from_secs(10 + second)));
        assert_eq!(quiet.collect::<Vec<_>>(), [[false; 9].as_slice(), &[true]].concat());
    }

    #[test]
    fn where_nothing_can_be_counted_it_is_tried_out_ever_more_seldom() {
        let mut flood = FloodDetector::default();
        let seconds = Duration::from_secs;
        assert!(!flood.observe_end(None, seconds(29)) && flood.observe_end(None, seconds(30)));
        assert!(!flood.observe_start(5_000) && flood.observe_start(5_000));
        assert!(!flood.observe_end(None, seconds(59)) && flood.observe_end(None, seconds(60)));
        for _ in 0..10 {
            assert!(flood.observe_end(None, seconds(900)), "no more than a quarter of an hour");
        }
        assert!(!flood.observe_start(0), "it is really over");
        assert!(flood.observe_end(None, seconds(30)));
    }
}
