//! The kinds of errors of the admin API: status, ID, and the words of DigitalOcean's API.

use hyper::StatusCode;

/// Why a request failed. A permanent failure is never a 5xx, because clients repeat those for minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// 400: not HTTP or not JSON.
    BadRequest,
    /// 401: without a valid token.
    Unauthorized,
    /// 403: the role of the token does not suffice.
    Forbidden,
    /// 404: the object does not exist.
    NotFound,
    /// 404: the path does not exist.
    PathNotFound,
    /// 405: the path does not support this method.
    MethodNotAllowed,
    /// 408: the request is incomplete.
    RequestTimeout,
    /// 409: not possible in the current state.
    Conflict,
    /// 412: `If-Match` does not match.
    PreconditionFailed,
    /// 413: the body is too large.
    PayloadTooLarge,
    /// 414: the target is too long.
    UriTooLong,
    /// 415: the body has a content type that a form of another page can send.
    UnsupportedMediaType,
    /// 421: the panel has no such host name.
    MisdirectedRequest,
    /// 422: the request is understood, but its content is invalid.
    Unprocessable,
    /// 422: the policy that the request leads to is invalid.
    ReloadRejected,
    /// 429: too many requests with invalid tokens, or too many event streams.
    TooManyRequests,
    /// 500: the program failed.
    ServerError,
    /// 503: not possible now, but the same request may succeed soon.
    ServiceUnavailable,
}

impl ErrorKind {
    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound | Self::PathNotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::MisdirectedRequest => StatusCode::MISDIRECTED_REQUEST,
            Self::Unprocessable | Self::ReloadRejected => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::ServerError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The stable ID in JSON.
    pub const fn id(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::PathNotFound => "path_not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::Conflict => "conflict",
            Self::PreconditionFailed => "precondition_failed",
            Self::PayloadTooLarge => "payload_too_large",
            Self::UriTooLong => "uri_too_long",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::MisdirectedRequest => "misdirected_request",
            Self::Unprocessable => "unprocessable_entity",
            Self::ReloadRejected => "reload_rejected",
            Self::TooManyRequests => "too_many_requests",
            Self::ServerError => "server_error",
            Self::ServiceUnavailable => "service_unavailable",
        }
    }

    /// The ID in DigitalOcean's API.
    pub const fn digitalocean_id(self) -> &'static str {
        match self {
            Self::PathNotFound => "not_found",
            Self::ReloadRejected => "unprocessable_entity",
            other => other.id(),
        }
    }

    /// The message in DigitalOcean's API, where it has a fixed one.
    pub const fn digitalocean_message(self) -> Option<&'static str> {
        match self {
            Self::BadRequest => Some("error parsing request body"),
            Self::Unauthorized => Some("Unable to authenticate you."),
            Self::Forbidden => Some("You do not have permission to perform this action."),
            Self::NotFound | Self::PathNotFound => Some("The resource you requested could not be found."),
            Self::TooManyRequests => Some("API rate limit exceeded."),
            Self::ServerError => Some("Unexpected server-side error"),
            Self::MethodNotAllowed
            | Self::RequestTimeout
            | Self::Conflict
            | Self::PreconditionFailed
            | Self::PayloadTooLarge
            | Self::UriTooLong
            | Self::UnsupportedMediaType
            | Self::MisdirectedRequest
            | Self::Unprocessable
            | Self::ReloadRejected
            | Self::ServiceUnavailable => None,
        }
    }
}
