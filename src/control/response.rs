//! Responses of the admin API.

use std::fmt::Display;

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CONTENT_DISPOSITION, ETAG, HeaderName, HeaderValue, LOCATION};
use serde_json::{Value, json};

use crate::audit::recent::EventReader;
use crate::control::error::ErrorKind;
use crate::panel::files::PanelFile;
use crate::printable;

/// The response to an [`AdminRequest`](crate::control::AdminRequest).
#[derive(Debug)]
pub struct AdminResponse {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body.
    pub content: Content,
    /// Headers beside those of every response.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// What a response contains.
#[derive(Debug)]
pub enum Content {
    /// No body.
    Empty,
    Json(Value),
    /// JSON that is written already, with a line feed at its end.
    Text(Bytes),
    Error {
        kind: ErrorKind,
        /// For people, without control characters.
        message: String,
    },
    /// Bytes of this type.
    File {
        bytes: Bytes,
        content_type: &'static str,
    },
    /// A stream of audit events that ends with the connection.
    Events(Box<EventReader>),
}

impl AdminResponse {
    /// A 200 response.
    pub fn ok(body: Value) -> Self {
        Self::of(StatusCode::OK, Content::Json(body))
    }

    /// A 201 response.
    pub fn created(body: Value) -> Self {
        Self::of(StatusCode::CREATED, Content::Json(body))
    }

    /// A 200 response with a file of the panel.
    pub(crate) fn panel_file(file: &'static PanelFile) -> Self {
        let (bytes, content_type) = (Bytes::from_static(file.content), file.content_type());
        Self::of(StatusCode::OK, Content::File { bytes, content_type })
    }

    /// A 303 response that shows another page.
    pub(crate) fn see_other(path: &'static str) -> Self {
        Self::of(StatusCode::SEE_OTHER, Content::Empty).with_header(LOCATION, HeaderValue::from_static(path))
    }

    /// A 204 response.
    pub fn no_content() -> Self {
        Self::of(StatusCode::NO_CONTENT, Content::Empty)
    }

    /// An error; `message` is for people.
    pub fn error(kind: ErrorKind, message: impl Display) -> Self {
        // A message may repeat a part of the request, which has up to 32 MiB.
        let message = printable::cut_lines(&message.to_string(), MAX_MESSAGE);
        Self::of(kind.status(), Content::Error { kind, message })
    }

    /// A 409 response; `message` is for people.
    pub(crate) fn conflict(message: impl Display) -> Self {
        Self::error(ErrorKind::Conflict, message)
    }

    /// A 200 response that clients save as a file. `name` has letters, digits, dots, underscores, hyphens and @ only.
    pub(crate) fn file(bytes: impl Into<Bytes>, content_type: &'static str, name: &str) -> Self {
        let response = Self::of(StatusCode::OK, Content::File { bytes: bytes.into(), content_type });
        match HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
            Ok(value) => response.with_header(CONTENT_DISPOSITION, value),
            Err(_) => response,
        }
    }

    /// A 200 response that sends audit events as they happen.
    pub(crate) fn events(reader: EventReader) -> Self {
        Self::of(StatusCode::OK, Content::Events(Box::new(reader)))
    }

    /// Adds the entity tag (RFC 9110 §8.8.3). `tag` is without quotes.
    #[must_use]
    pub fn with_etag(self, tag: &str) -> Self {
        match HeaderValue::from_str(&format!("\"{tag}\"")) {
            Ok(value) => self.with_header(ETAG, value),
            Err(_) => self,
        }
    }

    /// Adds a header.
    #[must_use]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Replaces the status.
    #[must_use]
    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The JSON of a success.
    pub(crate) fn into_json(self) -> Option<Value> {
        match self.content {
            Content::Json(value) => Some(value),
            Content::Text(text) => serde_json::from_slice(&text).ok(),
            Content::Empty | Content::Error { .. } | Content::File { .. } | Content::Events(_) => None,
        }
    }

    /// Writes the JSON. That of a long list takes so long that it must not happen on the server loop.
    #[must_use]
    pub(crate) fn written(self) -> Self {
        match self.content {
            Content::Json(value) => Self { content: Content::Text(Bytes::from(format!("{value}\n"))), ..self },
            content => Self { content, ..self },
        }
    }

    /// The JSON object of a success, for adding fields.
    pub fn json_mut(&mut self) -> Option<&mut serde_json::Map<String, Value>> {
        match &mut self.content {
            Content::Json(Value::Object(fields)) => Some(fields),
            _ => None,
        }
    }

    fn of(status: StatusCode, content: Content) -> Self {
        Self { status, content, headers: Vec::new() }
    }
}

/// The JSON of an error.
pub(crate) fn error_body(id: &str, message: &str, request_id: &str) -> Value {
    json!({ "id": id, "message": message, "request_id": request_id })
}

/// Bytes. All problems of a long configuration fit in.
const MAX_MESSAGE: usize = 64 << 10;
