//! Timestamps in UTC, and their RFC 3339 text.
//!
//! A timestamp from a file, a certificate or a response is converted by [`utc`] or [`parse`]. After that it is in UTC and in a
//! year that RFC 3339 supports, so no later operation on it can fail.

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

/// Converts a timestamp to UTC. An offset can lead out of the years 0000 to 9999. Such a timestamp becomes the first or the last
/// one in that range, which no clock reaches: `9999-12-31T23:59:59-05:00` is still in the future, and the year 0 in the past.
#[allow(clippy::disallowed_methods, reason = "the one place where an offset is taken off")]
pub fn utc(at: OffsetDateTime) -> OffsetDateTime {
    let beyond = if at.year() > 0 { LAST } else { FIRST };
    at.checked_to_offset(UtcOffset::UTC).map_or(beyond, |at| at.clamp(FIRST, LAST))
}

/// Parses an RFC 3339 text with any offset.
#[allow(clippy::disallowed_methods, reason = "the one place where a text is read")]
pub fn parse(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(utc)
}

/// The timestamp after `wait`.
pub fn after(now: OffsetDateTime, wait: std::time::Duration) -> OffsetDateTime {
    utc(now.saturating_add(wait.try_into().unwrap_or(Duration::MAX)))
}

/// `2027-01-31T00:00:00Z`, for messages.
pub fn seconds(at: OffsetDateTime) -> String {
    let at = utc(at);
    format!("{}T{:02}:{:02}:{:02}Z", date(at), at.hour(), at.minute(), at.second())
}

/// `2027-01-31T00:00:00.000Z`, for log lines.
pub fn milliseconds(at: OffsetDateTime) -> String {
    let at = utc(at);
    format!("{}T{:02}:{:02}:{:02}.{:03}Z", date(at), at.hour(), at.minute(), at.second(), at.millisecond())
}

fn date(at: OffsetDateTime) -> String {
    format!("{:04}-{:02}-{:02}", at.year(), u8::from(at.month()), at.day())
}

/// `0000-01-01T00:00:00Z`
const FIRST: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_sub(Duration::seconds(62_167_219_200));

/// `9999-12-31T23:59:59.999999999Z`
const LAST: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::MAX);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Option<String> {
        parse(text).map(seconds)
    }

    #[test]
    fn timestamp_with_offset_is_shown_in_utc() {
        let at = OffsetDateTime::UNIX_EPOCH.replace_offset(UtcOffset::from_hms(-2, 0, 0).unwrap());
        assert_eq!(seconds(at), "1970-01-01T02:00:00Z");
        assert_eq!(milliseconds(at), "1970-01-01T02:00:00.000Z");
        assert_eq!(shown("2027-01-31T01:00:00+02:00").as_deref(), Some("2027-01-30T23:00:00Z"));
        assert_eq!(shown("2027-01-31 01:00"), None);
    }

    #[test]
    fn timestamp_beyond_the_years_of_rfc_3339_is_clamped() {
        for (text, expected) in [
            ("9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59Z"),
            ("9999-12-31T00:00:00-23:59", "9999-12-31T23:59:00Z"),
            ("9999-12-31T23:59:60Z", "9999-12-31T23:59:59Z"),
            ("9999-12-31T23:59:60-00:01", "-"),
            ("0000-01-01T00:00:00+00:01", "0000-01-01T00:00:00Z"),
            ("0000-01-01T23:59:00+23:59", "0000-01-01T00:00:00Z"),
        ] {
            assert_eq!(shown(text).unwrap_or("-".to_owned()), expected, "{text}");
        }
        assert!(parse("9999-12-31T23:59:59-05:00") >= parse("9999-12-31T23:59:59.999999999Z"), "it comes no earlier");
        for year in [-9999, -1] {
            let early = OffsetDateTime::UNIX_EPOCH.replace_year(year).unwrap();
            assert_eq!(seconds(early), "0000-01-01T00:00:00Z");
        }
    }

    #[test]
    fn timestamp_after_any_wait_is_in_range() {
        let wait = std::time::Duration::from_secs;
        assert_eq!(seconds(after(OffsetDateTime::UNIX_EPOCH, wait(86_400))), "1970-01-02T00:00:00Z");
        for now in [FIRST, LAST] {
            assert_eq!(after(now, wait(u64::MAX)), LAST);
        }
    }

    proptest! {
        #[test]
        fn parsed_timestamp_is_in_utc_and_survives_formatting(
            year in prop_oneof![Just(0), Just(1), Just(9998), Just(9999), 0..=9999],
            (month, day) in (0..=13, 0..=32),
            (hour, minute, second) in (0..=24, 0..=60, 0..=60),
            (sign, hours, minutes) in (prop_oneof![Just('+'), Just('-')], 0..=24, 0..=60),
        ) {
            let date = format!("{year:04}-{month:02}-{day:02}");
            let text = format!("{date}T{hour:02}:{minute:02}:{second:02}{sign}{hours:02}:{minutes:02}");
            if let Some(at) = parse(&text) {
                prop_assert_eq!(at.offset(), UtcOffset::UTC);
                prop_assert_eq!(shown(&seconds(at)), Some(seconds(at)));
                prop_assert!(at.format(&Rfc3339).is_ok(), "JSON of certificates is written so");
            }
        }
    }
}
