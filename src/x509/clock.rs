//! Moments as rustls and webpki have them.

use std::time::Duration;

use rustls::Error;
use rustls::pki_types::UnixTime;
use time::OffsetDateTime;

/// The time as rustls and webpki take it.
pub(crate) fn unix_time(moment: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(moment.unix_timestamp()).unwrap_or(0)))
}

/// The time as rustls tells it to a verifier.
pub(crate) fn moment(now: UnixTime) -> Result<OffsetDateTime, Error> {
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
    now.ok_or(Error::FailedToGetCurrentTime)
}
