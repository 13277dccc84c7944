//! Why a request or a watch failed, in words for an operator.

use std::error::Error;
use std::io;
use std::time::Duration;

use kube::core::Status;

use crate::printable;

/// Why an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) error: String,
    /// How long the server asks to wait.
    pub(crate) retry_after: Option<Duration>,
    /// The HTTP status of the answer.
    pub(crate) code: Option<u16>,
}

/// How to continue after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The server does not know the version of the last list: list again at once.
    Outdated,
    /// The token is not valid (401): read it again.
    Unauthorized,
    /// No answer, or an error of the server: try the same again.
    Unavailable,
    /// An answer that makes no sense: list again.
    Invalid,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, error: impl std::fmt::Display) -> Self {
        Self { kind, error: printable::field(error), retry_after: None, code: None }
    }

    pub(crate) fn invalid(error: impl std::fmt::Display) -> Self {
        Self::new(FailureKind::Invalid, error)
    }

    pub(crate) fn unavailable(error: impl std::fmt::Display) -> Self {
        Self::new(FailureKind::Unavailable, error)
    }

    /// Adds what failed.
    pub(crate) fn while_doing(self, what: &str) -> Self {
        Self { error: printable::field(format_args!("cannot {what}: {}", self.error)), ..self }
    }

    /// An error that a server reports in the stream of a watch.
    pub(crate) fn from_status(status: &Status) -> Self {
        // kube reads any object that is no event as a status.
        if status.code == 0 && status.message.is_empty() {
            return Self::invalid("the answer is not valid: neither an event nor an error");
        }
        let seconds = status.details.as_ref().map(|details| details.retry_after_seconds);
        let after = seconds.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()));
        Self::from_answer(status.code, Some(status), after)
    }

    /// An HTTP status other than 200.
    fn from_answer(code: u16, status: Option<&Status>, retry_after: Option<Duration>) -> Self {
        let too_large = |status: &Status| {
            let by_cause = status.details.iter().flat_map(|details| &details.causes);
            by_cause.into_iter().any(|cause| cause.reason == "ResourceVersionTooLarge")
                || status.message.contains("Too large resource version")
        };
        let kind = match code {
            410 => FailureKind::Outdated,
            _ if status.is_some_and(too_large) => FailureKind::Outdated,
            401 => FailureKind::Unauthorized,
            _ => FailureKind::Unavailable,
        };
        let message = status.map(|status| if status.message.is_empty() { &status.reason } else { &status.message });
        let message = message.map(|text| format!(": {}", printable::cut(text, MAX_MESSAGE))).unwrap_or_default();
        let advice = match code {
            300..=399 => ": redirects are not followed, because the token is for this server only; check the URL",
            401 => "; check the token",
            403 => "; grant the rights in docs/CLOUD-SOURCES.md or, for a fleet, docs/FLEET.md",
            404 => "; check the URL of the server",
            _ => "",
        };
        let error = printable::field(format_args!("the API server answers HTTP {code}{message}{advice}"));
        Self { kind, error, retry_after, code: Some(code) }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let mut next: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(cause) = next {
            if let Some(answer) = cause.downcast_ref::<Rejected>() {
                return Self::from_answer(answer.code, answer.status.as_deref(), answer.retry_after);
            }
            if cause.is::<TooLong>() {
                return Self::invalid(cause);
            }
            next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                // Its `source` would skip this error.
                Some(inner) => Some(inner),
                None => cause.source(),
            };
        }
        match &error {
            kube::Error::Api(status) => Self::from_status(status),
            kube::Error::SerdeError(error) => Self::invalid(format_args!("the answer is not valid: {error}")),
            kube::Error::FromUtf8(error) => Self::invalid(format_args!("the answer is not valid: {error}")),
            // The variants only repeat that a service failed.
            kube::Error::Service(error) => Self::unavailable(with_causes(error.as_ref())),
            error => Self::unavailable(with_causes(error)),
        }
    }
}

/// An answer with another status than 200.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {code}")]
pub(super) struct Rejected {
    pub(super) code: u16,
    /// The body, if it is a `Status` of Kubernetes.
    pub(super) status: Option<Box<Status>>,
    pub(crate) retry_after: Option<Duration>,
}

/// A body, or a line of it, that exceeds its limit.
#[derive(Debug, thiserror::Error)]
#[error("the answer has more than {limit} bytes in one {unit}")]
pub(super) struct TooLong {
    pub(super) limit: usize,
    pub(super) unit: &'static str,
}

/// An error with its causes. hyper's own text names only the step that failed.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    for _ in 0..MAX_CAUSES {
        let Some(cause) = next else { break };
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// The maximum length of a server's message, which leaves room for the rest of the sentence.
const MAX_MESSAGE: usize = 320;

const MAX_CAUSES: usize = 8;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(code: u16, body: serde_json::Value) -> Failure {
        let status: Option<Status> = serde_json::from_value(body).ok();
        Failure::from_answer(code, status.as_ref(), None)
    }

    #[test]
    fn answer_is_shown_with_its_status_and_message() {
        let forbidden = answer(403, json!({ "code": 403, "message": "nodes is forbidden: User \"x\" cannot list" }));
        assert_eq!(
            forbidden.error,
            "the API server answers HTTP 403: nodes is forbidden: User \"x\" cannot list; grant the rights in \
             docs/CLOUD-SOURCES.md or, for a fleet, docs/FLEET.md"
        );
        assert_eq!(forbidden.kind, FailureKind::Unavailable);
        assert_eq!(answer(503, json!("<html>")).error, "the API server answers HTTP 503");
        assert_eq!(
            answer(500, json!({ "reason": "InternalError" })).error,
            "the API server answers HTTP 500: InternalError"
        );
        assert_eq!(answer(401, json!({ "code": 0 })).kind, FailureKind::Unauthorized);
        assert!(answer(302, json!(null)).error.contains("redirects are not followed"));
    }

    #[test]
    fn unknown_version_is_listed_again() {
        assert_eq!(answer(410, json!({ "reason": "Expired" })).kind, FailureKind::Outdated);
        let cause = json!({ "details": { "causes": [{ "reason": "ResourceVersionTooLarge" }] } });
        assert_eq!(answer(504, cause).kind, FailureKind::Outdated);
        let message = json!({ "message": "Timeout: Too large resource version: 9, current: 5" });
        assert_eq!(answer(504, message).kind, FailureKind::Outdated);
        assert_eq!(answer(504, json!({ "message": "Timeout" })).kind, FailureKind::Unavailable);
    }

    #[test]
    fn message_of_a_server_is_printable_and_cut() {
        let failure = answer(500, json!({ "message": format!("\u{1b}[2J\n{}", "x".repeat(100_000)) }));
        assert!(failure.error.contains("\\u{1b}[2J\\nxxx") && failure.error.contains("[truncated]"), "{failure:?}");
        assert!(failure.while_doing("list pods").error.len() <= crate::resolution::observation::MAX_TEXT);
    }
}
