//! Parses requests to `/v1/reload`.

use std::path::PathBuf;

use serde::Deserialize;

use crate::control::AdminRequest;
use crate::control::parameters::invalid;
use crate::control::request::json;
use crate::control::response::AdminResponse;
use crate::control::route::{Call, Operation};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    file: Option<PathBuf>,
}

/// # Errors
/// A response with status 400 or 422.
pub(crate) fn parse(call: &Call<'_>) -> Result<Operation, AdminResponse> {
    let plan = call.query.flag("plan", false)?;
    let Body { file } = if call.body.trim_ascii().is_empty() { Body::default() } else { json::object(call.body)? };
    if let Some(file) = file.as_ref().filter(|file| !file.is_absolute()) {
        return Err(invalid(format_args!("file is {file:?}; it must be an absolute path")));
    }
    match (plan, file) {
        (true, file) => Ok(Operation::Request(AdminRequest::Plan { file })),
        (false, None) => Ok(Operation::Request(AdminRequest::Reload)),
        (false, Some(_)) => {
            Err(invalid("a reload always applies the running configuration; \"file\" requires ?plan=true"))
        }
    }
}
