//! What goes back to a caller.

use std::fmt::Display;

use serde_json::{Value, json};

use crate::printable;

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200: here it is.
    Done,
    /// 404: there is no such thing.
    NotFound,
    /// 405: not with this method.
    MethodNotAllowed,
    /// 408: the request did not come to its end.
    RequestTimeout,
    /// 409: not in the present state.
    Conflict,
    /// 413: the body is too large.
    ContentTooLarge,
    /// 414: the target is too long.
    TargetTooLong,
    /// 422: understood, and refused for what it says.
    Unprocessable,
    /// 500: this program failed.
    Failed,
}

impl Status {
    /// The status code of HTTP.
    pub const fn code(self) -> u16 {
        match self {
            Self::Done => 200,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::Conflict => 409,
            Self::ContentTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::Unprocessable => 422,
            Self::Failed => 500,
        }
    }
}

/// An answer to an [`AdminRequest`](crate::control::AdminRequest).
#[derive(Clone, Debug, PartialEq)]
pub struct AdminResponse {
    /// How it went.
    pub status: Status,
    /// What is told.
    pub body: Value,
}

impl AdminResponse {
    /// What was asked for.
    pub fn done(body: Value) -> Self {
        Self { status: Status::Done, body }
    }

    /// Why not: a stable `id` for programs, a message for people.
    pub fn error(status: Status, id: &str, message: impl Display) -> Self {
        Self { status, body: json!({ "id": id, "message": printable::lines(&message.to_string()) }) }
    }
}
