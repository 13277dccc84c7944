//! What DigitalOcean's API adds to every response.

use hyper::header::{HeaderName, HeaderValue};
use time::OffsetDateTime;

/// The rate limit of a token. Portcullis does not limit valid tokens, so nothing is ever used up.
pub(crate) fn rate_limit_headers() -> [(HeaderName, HeaderValue); 3] {
    let reset = OffsetDateTime::now_utc().unix_timestamp().saturating_add(WINDOW);
    [
        (HeaderName::from_static("ratelimit-limit"), HeaderValue::from(LIMIT)),
        (HeaderName::from_static("ratelimit-remaining"), HeaderValue::from(LIMIT)),
        (HeaderName::from_static("ratelimit-reset"), HeaderValue::from(reset)),
    ]
}

/// Requests in a window: DigitalOcean's own limit, which clients know.
const LIMIT: u32 = 5_000;

/// Seconds.
const WINDOW: i64 = 3_600;
