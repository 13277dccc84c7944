//! The reply of the running program to one request.

use serde_json::Value;

use crate::cli::Failure;
use crate::cli::client::json_view::JsonView;

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// The entity tag with its quotes, ready for `If-Match`.
    pub(crate) etag: Option<String>,
    /// `Value::Null` without a body.
    pub(crate) body: Value,
}

impl Reply {
    /// Whether the status is 2xx.
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Returns the body of a success, or the error message as a failure.
    pub(crate) fn into_body(self) -> Result<Value, Failure> {
        if self.is_success() { Ok(self.body) } else { Err(Failure::Failed(self.message())) }
    }

    /// The same for a request whose only object is a listener: an unknown one is wrong usage.
    pub(crate) fn into_listener_body(self) -> Result<Value, Failure> {
        if self.has_id("not_found") { Err(Failure::Usage(self.message())) } else { self.into_body() }
    }

    /// Whether this is the error with this ID.
    pub(crate) fn has_id(&self, id: &str) -> bool {
        !self.is_success() && JsonView(&self.body).text("id").as_deref() == Some(id)
    }

    /// Returns the message of an error.
    pub(crate) fn message(&self) -> String {
        if self.has_id("path_not_found") {
            return "the version of the running program does not support this command; upgrade and restart it"
                .to_owned();
        }
        let message = JsonView(&self.body).lines("message");
        if message.is_empty() { format!("the program replied with status {}", self.status) } else { message.join("\n") }
    }
}
