//! What an answer of the API means.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use time::OffsetDateTime;

use crate::agent::client::api::Answer;
use crate::agent::digitalocean::shapes::ApiError;
use crate::printable;

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The object does not exist.
    Gone,
    /// This request failed; another may succeed.
    Request(String),
    /// Every request would fail now.
    Service { error: String, retry: Retry },
}

/// When the API wants the next request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Retry {
    /// `Retry-After`
    pub(super) after: Option<Duration>,
    /// Until `ratelimit-reset`, if the rate limit is exceeded.
    pub(super) reset: Option<Duration>,
}

impl Trouble {
    pub(super) fn service(error: impl std::fmt::Display) -> Self {
        Self::Service { error: printable::field(error), retry: Retry::default() }
    }

    pub(super) fn request(path: &str, error: impl std::fmt::Display) -> Self {
        Self::Request(printable::field(format_args!("GET {}: {error}", without_query(path))))
    }

    /// The text for the source's state.
    pub(super) fn error(&self, path: &str) -> String {
        match self {
            Self::Gone => printable::field(format_args!("GET {}: 404", without_query(path))),
            Self::Request(error) | Self::Service { error, .. } => error.clone(),
        }
    }
}

/// Judges the status of an answer. `Ok` has the body of a 200.
pub(super) fn judge(path: &str, answer: &Answer, now: OffsetDateTime) -> Result<(), Trouble> {
    let Answer { status, headers, body } = answer;
    if *status == StatusCode::OK {
        return Ok(());
    }
    let message = serde_json::from_slice::<ApiError>(body).ok().map(|error| printable::quoted(error.message));
    let shown = match &message {
        Some(message) => format!("{}: {message}", status.as_u16()),
        None => status.as_u16().to_string(),
    };
    let request = |advice: &str| Trouble::request(path, format_args!("{shown}{advice}"));
    let service = |error: String, reset| Trouble::Service {
        error: printable::field(error),
        retry: Retry { after: retry_after(headers, now), reset },
    };
    let path = without_query(path);
    Err(match *status {
        // A web server that knows nothing of the API answers with a page.
        StatusCode::NOT_FOUND if !is_html(headers) => Trouble::Gone,
        StatusCode::UNAUTHORIZED => {
            service(format!("the token is rejected ({shown}); replace the token of [resolver.digitalocean]"), None)
        }
        StatusCode::FORBIDDEN => request("; give the token a scope that can read it"),
        StatusCode::TOO_MANY_REQUESTS => {
            let reset = number(headers, "ratelimit-reset").and_then(|at| until(at, now));
            service(format!("the rate limit of the token is exceeded ({shown})"), reset)
        }
        status if status.is_server_error() => service(format!("GET {path}: {shown}"), None),
        status if status.is_redirection() => request(", a redirect, which is not followed; correct endpoint"),
        _ => request(""),
    })
}

/// A header that is a number.
pub(super) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// `Retry-After` in seconds or as a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => until(http_date(text)?, now),
    }
}

/// Seconds since the epoch of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    let (_, date) = text.strip_suffix(" GMT")?.split_once(", ")?;
    let mut parts = date.split(' ');
    let (day, month, year, clock) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month)?.saturating_add(1);
    let date = crate::timestamp::parse(&format!("{year}-{month:02}-{day}T{clock}Z"))?;
    u64::try_from(date.unix_timestamp()).ok()
}

/// The time until a number of seconds since the epoch; `None` if that is in the past.
fn until(seconds: u64, now: OffsetDateTime) -> Option<Duration> {
    let now = u64::try_from(now.unix_timestamp()).ok()?;
    seconds.checked_sub(now).filter(|wait| *wait > 0).map(Duration::from_secs)
}

fn is_html(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    const NOW: i64 = 1_785_000_000;

    fn judged(status: u16, headers: &[(&str, &str)], body: &str) -> Result<(), Trouble> {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()));
        let status = StatusCode::from_u16(status).unwrap();
        let answer = Answer { status, headers: headers.collect(), body: Bytes::from(body.to_owned()) };
        judge("/v2/droplets?page=1", &answer, OffsetDateTime::from_unix_timestamp(NOW).unwrap())
    }

    fn error(status: u16, body: &str) -> String {
        judged(status, &[], body).unwrap_err().error("/v2/droplets?page=1")
    }

    #[test]
    fn error_has_the_status_and_the_message_of_the_api() {
        let body = r#"{"id":"x","message":"Unable to\nauthenticate you."}"#;
        assert_eq!(judged(200, &[], ""), Ok(()));
        assert_eq!(judged(404, &[], body), Err(Trouble::Gone));
        assert!(matches!(judged(404, &[("content-type", "text/html")], "<p>"), Err(Trouble::Request(_))));
        assert_eq!(
            error(401, body),
            "the token is rejected (401: Unable to\\nauthenticate you.); replace the token of [resolver.digitalocean]"
        );
        assert_eq!(error(403, "<p>"), "GET /v2/droplets: 403; give the token a scope that can read it");
        assert_eq!(error(503, ""), "GET /v2/droplets: 503");
        assert_eq!(error(302, ""), "GET /v2/droplets: 302, a redirect, which is not followed; correct endpoint");
        assert_eq!(error(204, ""), "GET /v2/droplets: 204");
        assert!(error(500, &format!(r#"{{"message":"{}"}}"#, "a".repeat(9_000))).len() <= printable::MAX_FIELD);
    }

    #[test]
    fn service_says_when_it_wants_the_next_request() {
        let retry = |headers: &[(&str, &str)]| match judged(429, headers, "").unwrap_err() {
            Trouble::Service { retry, .. } => (retry.after.map(|t| t.as_secs()), retry.reset.map(|t| t.as_secs())),
            other => panic!("{other:?}"),
        };
        assert_eq!(retry(&[]), (None, None));
        assert_eq!(retry(&[("retry-after", "17"), ("ratelimit-reset", "1785000060")]), (Some(17), Some(60)));
        assert_eq!(retry(&[("retry-after", "Sat, 25 Jul 2026 17:20:05 GMT")]), (Some(5), None));
        assert_eq!(retry(&[("retry-after", "soon"), ("ratelimit-reset", "1784999999")]), (None, None));
        assert_eq!(retry(&[("retry-after", "-1"), ("ratelimit-reset", "x")]), (None, None));
    }
}
