//! Responses of the admin API.

use std::fmt::Display;

use serde_json::{Value, json};

use crate::printable;

/// The HTTP status of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200
    Ok,
    /// 404: the path or the object does not exist.
    NotFound,
    /// 405: the path does not support this method.
    MethodNotAllowed,
    /// 408: the request is incomplete.
    RequestTimeout,
    /// 409: not possible in the current state.
    Conflict,
    /// 413: the body is too large.
    ContentTooLarge,
    /// 414: the target is too long.
    TargetTooLong,
    /// 422: the request is understood, but its content is invalid.
    Unprocessable,
    /// 500: the program failed.
    InternalError,
}

impl Status {
    /// The numeric status code.
    pub const fn code(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::Conflict => 409,
            Self::ContentTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::Unprocessable => 422,
            Self::InternalError => 500,
        }
    }
}

/// The response to an [`AdminRequest`](crate::control::AdminRequest).
#[derive(Clone, Debug, PartialEq)]
pub struct AdminResponse {
    /// The HTTP status.
    pub status: Status,
    /// The JSON body.
    pub body: Value,
}

impl AdminResponse {
    /// A 200 response.
    pub fn ok(body: Value) -> Self {
        Self { status: Status::Ok, body }
    }

    /// An error response: a stable `id` for programs and a message for people.
    pub fn error(status: Status, id: &str, message: impl Display) -> Self {
        Self { status, body: json!({ "id": id, "message": printable::lines(&message.to_string()) }) }
    }
}
