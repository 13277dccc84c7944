//! The error type of the benchmark: a text that names what failed.

use std::error::Error;

pub(crate) type Fault = Box<dyn Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Fault>;

/// Adds the failed action to an error.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Fault>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| format!("{}: {}", what(), error.into()).into())
    }
}
