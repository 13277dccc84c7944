//! When to report a certificate that is about to expire.

use time::{Duration, OffsetDateTime};

/// The latest milestone that has passed, in days before expiry: 30, 14, 7, 3, 1, and then every day. `None` before the first.
/// Callers report each value once.
pub(crate) fn expiry_milestone(not_after: OffsetDateTime, now: OffsetDateTime) -> Option<i64> {
    let days_left = days_left(not_after, now);
    if days_left < 1 {
        return Some(days_left);
    }
    MILESTONES.iter().rev().copied().find(|milestone| days_left <= *milestone)
}

/// Days until expiry, rounded up. Zero or negative after expiry.
pub(crate) fn days_left(not_after: OffsetDateTime, now: OffsetDateTime) -> i64 {
    let left = not_after - now;
    left.whole_days() + i64::from(left > Duration::days(left.whole_days()))
}

/// Days before expiry, the earliest milestone first.
const MILESTONES: [i64; 5] = [30, 14, 7, 3, 1];

#[cfg(test)]
mod tests {
    use super::*;

    fn after(days: f64) -> Option<i64> {
        let end = OffsetDateTime::UNIX_EPOCH;
        expiry_milestone(end, end - Duration::seconds_f64(days * 86_400.0))
    }

    #[test]
    fn milestone_lasts_from_its_day_until_the_next_milestone() {
        let cases = [
            (30.01, None),
            (30.0, Some(30)),
            (14.01, Some(30)),
            (14.0, Some(14)),
            (7.0, Some(7)),
            (3.5, Some(7)),
            (3.0, Some(3)),
            (1.5, Some(3)),
            (1.0, Some(1)),
            (0.5, Some(1)),
            (0.0, Some(0)),
            (-0.5, Some(0)),
            (-1.0, Some(-1)),
            (-10.25, Some(-10)),
        ];
        for (days_left, milestone) in cases {
            assert_eq!(after(days_left), milestone, "{days_left} days left");
        }
    }

    #[test]
    fn days_left_between_minimum_and_maximum_time_do_not_overflow() {
        let [first, last] = [Duration::MIN, Duration::MAX].map(|far| OffsetDateTime::UNIX_EPOCH.saturating_add(far));
        assert_eq!(expiry_milestone(last, first), None);
        assert!(expiry_milestone(first, last).is_some_and(|days| days < -7_000_000));
    }
}
