//! When to speak of a certificate that is about to run out.

use time::{Duration, OffsetDateTime};

/// The last of the moments to speak up that has passed: 30, 14, 7, 3 and 1 days before the end, and every day after.
/// `None` while it is too early. Two calls with the same answer need to be spoken of once.
pub(crate) fn expiry_milestone(not_after: OffsetDateTime, now: OffsetDateTime) -> Option<i64> {
    let days_left = days_left(not_after, now);
    if days_left < 1 {
        return Some(days_left);
    }
    MILESTONES.iter().rev().copied().find(|milestone| days_left <= *milestone)
}

/// Days until the end, counting a day that has begun; not above 0 once it has passed.
pub(crate) fn days_left(not_after: OffsetDateTime, now: OffsetDateTime) -> i64 {
    let left = not_after - now;
    left.whole_days() + i64::from(left > Duration::days(left.whole_days()))
}

/// Days before the end, the earliest first.
const MILESTONES: [i64; 5] = [30, 14, 7, 3, 1];

#[cfg(test)]
mod tests {
    use super::*;

    fn after(days: f64) -> Option<i64> {
        let end = OffsetDateTime::UNIX_EPOCH;
        expiry_milestone(end, end - Duration::seconds_f64(days * 86_400.0))
    }

    #[test]
    fn each_milestone_comes_when_its_days_are_left_and_stays_until_the_next() {
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
    fn days_left_between_the_ends_of_time_are_counted() {
        let [first, last] = [Duration::MIN, Duration::MAX].map(|far| OffsetDateTime::UNIX_EPOCH.saturating_add(far));
        assert_eq!(expiry_milestone(last, first), None);
        assert!(expiry_milestone(first, last).is_some_and(|days| days < -7_000_000));
    }
}
