//! Bodies in JSON.

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;

use crate::control::error::ErrorKind;
use crate::control::parameters::invalid;
use crate::control::response::AdminResponse;

/// Reads a JSON object. Unknown and repeated keys are errors.
///
/// # Errors
/// A 400 response if the body is not JSON, a 422 response if it is not what was expected.
pub(crate) fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, AdminResponse> {
    if body.trim_ascii().is_empty() {
        return Err(AdminResponse::error(ErrorKind::BadRequest, "the body is empty; send a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => invalid(format_args!("the body is not as expected: {error}")),
        Category::Syntax | Category::Eof | Category::Io => {
            AdminResponse::error(ErrorKind::BadRequest, format_args!("the body is not JSON: {error}"))
        }
    })
}

/// The value of a key that is present, also if it is `null`.
///
/// # Errors
/// If the value has another type.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A text, checked for a NUL, which no value may contain.
///
/// # Errors
/// If the value is not a text, or contains a NUL.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.contains('\0') { Err(D::Error::custom("a text must not contain NUL")) } else { Ok(text) }
}
