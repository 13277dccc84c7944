//! Human-readable times, relative to now.

use time::{Duration, OffsetDateTime};

use crate::timestamp;

/// `2 min ago`.
pub(crate) fn ago(then: OffsetDateTime, now: OffsetDateTime) -> String {
    if now - then < Duration::SECOND { "just now".to_owned() } else { format!("{} ago", since(then, now)) }
}

/// `in 2 min`, rounded: two hours that begin now are not one hour a second later.
pub(crate) fn ahead(then: OffsetDateTime, now: OffsetDateTime) -> String {
    let seconds = (then - now).whole_seconds();
    let rounded = |unit: i64| seconds.saturating_add(unit / 2) / unit;
    match seconds {
        ..=0 => "now".to_owned(),
        1..MINUTE => format!("in {seconds} s"),
        _ if rounded(MINUTE) < HOUR / MINUTE => format!("in {} min", rounded(MINUTE)),
        _ if rounded(HOUR) < TWO_DAYS / HOUR => format!("in {} h", rounded(HOUR)),
        _ => format!("in {} d", rounded(DAY)),
    }
}

/// Elapsed time: `45 s`, `2 min`, `3 h`, `9 d`. A negative time (clock skew) counts as 0 s.
pub(crate) fn since(then: OffsetDateTime, now: OffsetDateTime) -> String {
    let seconds = (now - then).whole_seconds().max(0);
    match seconds {
        0..MINUTE => format!("{seconds} s"),
        MINUTE..HOUR => format!("{} min", seconds / MINUTE),
        HOUR..TWO_DAYS => format!("{} h", seconds / HOUR),
        _ => format!("{} d", seconds / DAY),
    }
}

/// `2026-11-30 14:05Z`.
pub(crate) fn minute(moment: OffsetDateTime) -> String {
    let utc = timestamp::utc(moment);
    format!("{} {:02}:{:02}Z", utc.date(), utc.hour(), utc.minute())
}

/// Below this remaining time, expiry times are shown to the minute.
pub(crate) const NEAR: Duration = Duration::days(2);

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const TWO_DAYS: i64 = 2 * DAY;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elapsed_times_use_the_largest_suitable_unit() {
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
        for (seconds, text) in cases {
            assert_eq!(ago(now - Duration::seconds(seconds), now), text, "{seconds}");
        }
        for (seconds, text) in
            [(-5, "now"), (0, "now"), (1, "in 1 s"), (120, "in 2 min"), (7_199, "in 2 h"), (172_799, "in 2 d")]
        {
            assert_eq!(ahead(now + Duration::seconds(seconds), now), text, "{seconds}");
        }
    }
}
