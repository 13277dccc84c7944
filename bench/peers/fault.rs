//! One error type for the whole benchmark: a text that says what failed and where, never matched on.

use std::error::Error;

pub(crate) type Fault = Box<dyn Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Fault>;

/// Puts what was being done before an error.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Fault>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| format!("{}: {}", what(), error.into()).into())
    }
}
