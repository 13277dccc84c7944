//! Conversion between `time` and the time type of rustls and webpki.

use std::time::Duration;

use rustls::Error;
use rustls::pki_types::UnixTime;
use time::OffsetDateTime;

/// Times before 1970 become 1970.
pub(crate) fn unix_time(moment: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(moment.unix_timestamp()).unwrap_or(0)))
}

/// # Errors
/// If the time is outside the range of [`OffsetDateTime`].
pub(crate) fn moment(now: UnixTime) -> Result<OffsetDateTime, Error> {
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
    now.ok_or(Error::FailedToGetCurrentTime)
}
