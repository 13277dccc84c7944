//! Points in time as text: RFC 3339, always in UTC.

use time::{OffsetDateTime, UtcOffset};

/// `2027-01-31T00:00:00Z`, for words that people read.
pub fn seconds(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC);
    format!("{}T{:02}:{:02}:{:02}Z", date(at), at.hour(), at.minute(), at.second())
}

/// `2027-01-31T00:00:00.000Z`, for lines of the log.
pub fn milliseconds(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC);
    format!("{}T{:02}:{:02}:{:02}.{:03}Z", date(at), at.hour(), at.minute(), at.second(), at.millisecond())
}

fn date(at: OffsetDateTime) -> String {
    format!("{:04}-{:02}-{:02}", at.year(), u8::from(at.month()), at.day())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        let at = OffsetDateTime::UNIX_EPOCH.to_offset(UtcOffset::from_hms(2, 0, 0).unwrap());
        assert_eq!(seconds(at), "1970-01-01T00:00:00Z");
        assert_eq!(milliseconds(at), "1970-01-01T00:00:00.000Z");
    }
}
