//! Requests of the control panel that are no part of the API.

use serde::Deserialize;

use crate::control::access::token_in;
use crate::control::error::ErrorKind;
use crate::control::request::json;
use crate::control::response::AdminResponse;
use crate::control::route::{Call, Operation};
use crate::panel::files::PanelFile;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    #[serde(deserialize_with = "json::text")]
    token: String,
}

/// `GET /ui/{file}`
///
/// # Errors
/// A 404 response for a file that the panel does not have.
pub(crate) fn file(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let name = call.segment(0);
    let missing = || AdminResponse::error(ErrorKind::PathNotFound, format_args!("the panel has no file {name:?}"));
    PanelFile::named(&name).map(Operation::PanelFile).ok_or_else(missing)
}

/// `POST /ui/session`, with the token in the body, or in `Authorization` as in every other request.
///
/// # Errors
/// A response with status 400 or 422.
pub(crate) fn sign_in(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let in_header = token_in(call.headers).filter(|_| call.body.is_empty());
    if let Some(token) = in_header.and_then(|token| std::str::from_utf8(token).ok()) {
        return Ok(Operation::SignIn(token.to_owned()));
    }
    let SignIn { token } = json::object(call.body)?;
    Ok(Operation::SignIn(token))
}
