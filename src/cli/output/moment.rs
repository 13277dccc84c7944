//! Times as people say them, seen from now.

use time::{Duration, OffsetDateTime};

use crate::timestamp;

/// `2 min ago`.
pub(crate) fn ago(then: OffsetDateTime, now: OffsetDateTime) -> String {
    if now - then < Duration::SECOND { "just now".to_owned() } else { format!("{} ago", since(then, now)) }
}

/// `in 2 min`.
pub(crate) fn ahead(then: OffsetDateTime, now: OffsetDateTime) -> String {
    if then - now < Duration::SECOND { "now".to_owned() } else { format!("in {}", since(now, then)) }
}

/// How long it has been: `45 s`, `2 min`, `3 h`, `9 d`. A clock that runs behind the other program's is no matter.
pub(crate) fn since(then: OffsetDateTime, now: OffsetDateTime) -> String {
    let seconds = (now - then).whole_seconds().max(0);
    match seconds {
        0..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => format!("{} min", seconds / MINUTE),
        HOUR..TWO_DAYS => format!("{} h", seconds / HOUR),
        _ => format!("{} d", seconds / DAY),
    }
}

/// `2026-11-30 14:05Z`: a moment that is near.
pub(crate) fn minute(moment: OffsetDateTime) -> String {
    let utc = timestamp::utc(moment);
    format!("{} {:02}:{:02}Z", utc.date(), utc.hour(), utc.minute())
}

/// Below it a time that is left is worth knowing to the minute.
pub(crate) const NEAR: Duration = Duration::days(2);

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const TWO_DAYS: i64 = 2 * DAY;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_the_unit_that_people_would_take() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let cases = [
            (-5, "just now"),
            (0, "just now"),
            (1, "1 s ago"),
            (59, "59 s ago"),
            (120, "2 min ago"),
            (3_599, "59 min ago"),
            (10_800, "3 h ago"),
            (172_799, "47 h ago"),
            (777_600, "9 d ago"),
        ];
        for (seconds, words) in cases {
            assert_eq!(ago(now - Duration::seconds(seconds), now), words, "{seconds}");
        }
        for (seconds, words) in [(-5, "now"), (0, "now"), (1, "in 1 s"), (120, "in 2 min")] {
            assert_eq!(ahead(now + Duration::seconds(seconds), now), words, "{seconds}");
        }
    }
}
